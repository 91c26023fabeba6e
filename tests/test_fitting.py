"""What the trainings of all generators share."""

import pytest
import torch

from synthaug._training.fit_job import (
    denoising_loss,
    diffusion_config,
    half_mirrored,
    stratified,
)
from synthaug._training.network_config import PREDICTION_TYPES
from synthaug.samplers import denoised_estimate, make_scheduler, set_timesteps


@pytest.mark.parametrize("levels", [8, 1000])
def test_each_stratum_of_the_levels_has_one_example(levels):
    drawn = stratified(8, levels)
    assert (drawn * 8 // levels).tolist() == list(range(8))


def test_an_image_is_mirrored_whole_or_not_at_all_and_half_of_them_are():
    x = torch.arange(4.0).expand(4000, 1, 2, 4)
    mirrored = half_mirrored(x)
    flipped = (mirrored == x.flip(-1)).all(-1).all(-1)
    assert (flipped != (mirrored == x).all(-1).all(-1)).all()
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_loss_is_zero_for_who_knows_the_image_and_is_not_for_others(prediction_type):
    torch.manual_seed(0)
    x0 = torch.rand(6, 1, 4, 4) * 2 - 1
    scheduler = make_scheduler(None, diffusion_config(prediction_type))

    def knowing(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # x_t = alpha x0 + sigma noise (Ho et al. 2020), v = alpha noise - sigma x0
        signal = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        noise = (x_t - alpha * x0) / sigma
        return {
            "sample": x0,
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * x0,
        }[prediction_type]

    assert denoising_loss(scheduler, x0, knowing) < 1e-6
    assert denoising_loss(scheduler, x0, lambda x_t, t: torch.zeros_like(x_t)) > 0.1


def test_an_unknown_prediction_type_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="'v_prediction', 'epsilon', 'sample', got 'score'"):
        diffusion_config("score")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_step_of_ddim_goes_on_from_an_image_and_a_noise_that_belong_together(prediction_type):
    """diffusers' DDIM would clip the one and not the other, if it were told to."""
    scheduler = make_scheduler("ddim", diffusion_config(prediction_type))
    set_timesteps(scheduler, 4)
    t, after = scheduler.timesteps[1:3]
    x, prediction = torch.randn(2, 1, 1, 4, 4, generator=torch.manual_seed(0))
    level, next_level = (float(scheduler.alphas_cumprod[step]) for step in (t, after))
    x0 = denoised_estimate(prediction, x, level, prediction_type)
    assert x0.abs().max() > 1
    noise = (x - level**0.5 * x0) / (1 - level) ** 0.5
    expected = next_level**0.5 * x0 + (1 - next_level) ** 0.5 * noise
    stepped = scheduler.step(prediction, t, x).prev_sample
    torch.testing.assert_close(stepped, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [None, "ddim", "FlowMatchHeunDiscreteScheduler", "dpmsolver++"])
def test_flows_of_our_own_step_evenly_from_noise_to_the_image_and_nothing_warns(name, caplog):
    """The last of the steps that diffusers spaces goes from next to no noise to none."""
    scheduler = make_scheduler(name, diffusion_config("flow"))
    set_timesteps(scheduler, 4)
    shares = scheduler.sigmas.unique().double()
    expected = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)
    imported = make_scheduler(None, {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    set_timesteps(imported, 4)
    assert imported.sigmas[-2] == pytest.approx(1e-3)
    assert not caplog.messages
