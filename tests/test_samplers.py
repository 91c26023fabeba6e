import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug.denoisers import ClassifierFreeGuidance, Denoiser
from synthaug.samplers import Trajectory, make_scheduler, sample, step_arguments, step_to
from synthaug.synthesizers import SamplerConfig, streams
from tests.checkpoints import Counting, cosine_config, tiny_unet
from tests.exact_denoisers import EPSILON, ExactDenoiser, GaussianDenoiser
from tests.images import randn
from tests.tiny.class_conditional import tiny


def draw(denoiser: Any, name: str, n: int = 6, steps: int = 50, **arguments: Any) -> Tensor:
    course = {k: arguments.pop(k) for k in ("eta", "sources", "strength") if k in arguments}
    return sample(
        denoiser,
        make_scheduler(name, EPSILON),
        None,
        Trajectory(num_inference_steps=steps, **course),
        shape=arguments.pop("shape", (1, 2, 2)),
        generators=streams(arguments.pop("seeds", range(n))),
        **arguments,
    )


@pytest.mark.parametrize(
    "name",
    [
        "ddpm",
        "ddim",
        "dpmsolver++",
        "DEISMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_the_exact_denoiser_of_a_finite_set_draws_only_its_points(name):
    points = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images = draw(ExactDenoiser(points), name, n=40, steps=200)
    distance = torch.cdist(images.flatten(1), points.flatten(1))
    assert distance.min(1).values.max() < 0.03
    assert len(set(distance.argmin(1).tolist())) == 5  # and all of them


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmsolver++", 2)])
def test_solvers_converge_to_the_exact_solution_with_their_order(name, order):
    """For Gaussian data the probability-flow ODE scales each value by a known factor."""
    std = 0.5
    denoiser = GaussianDenoiser(std)
    noise = randn(streams(range(6)), (1, 2, 2)).double()
    errors = []
    for steps in (10, 20, 40):
        scheduler = make_scheduler(name, EPSILON)
        scheduler.set_timesteps(steps)
        a = denoiser.alphas_cumprod[int(scheduler.timesteps[0])]
        exact = noise * std / (a * std**2 + 1 - a).sqrt()
        images = sample(
            denoiser,
            make_scheduler(name, EPSILON),
            None,
            Trajectory(num_inference_steps=steps),
            shape=(1, 2, 2),
            generators=streams(range(6)),
        )
        errors.append(float((images.double() - exact).abs().max()))
    measured = -np.polyfit(np.log([10, 20, 40]), np.log(errors), 1)[0]
    assert measured > order - 0.35
    assert errors[-1] < 0.1


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_ancestral_sampling_of_gaussian_data_gives_their_variance(name):
    eta = {"eta": 1.0} if name == "ddim" else {}
    images = draw(GaussianDenoiser(0.5), name, n=400, steps=100, shape=(1, 8, 8), **eta)
    assert float(images.std()) == pytest.approx(0.5, abs=0.02)


def test_our_loop_equals_the_diffusers_pipelines():
    from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler

    unet = tiny_unet(num_classes=None)
    trained = DDPMScheduler.from_config(cosine_config(clip_sample=True))
    for name, pipeline in (
        ("ddpm", DDPMPipeline(unet, trained)),
        ("ddim", DDIMPipeline(unet, trained)),
    ):
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            batch_size=3, generator=streams([1, 2, 3]), num_inference_steps=7, output_type="np"
        ).images
        with torch.inference_mode():
            ours = sample(
                Denoiser(unet),
                make_scheduler(name, cosine_config(clip_sample=True)),
                None,
                Trajectory(num_inference_steps=7),
                shape=(1, 8, 8),
                generators=streams([1, 2, 3]),
            )
        ours = (ours.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=2e-5, rtol=0)


def test_a_scheduler_is_fresh_although_such_a_one_was_made_before():
    used = make_scheduler("ddim", cosine_config())
    used.set_timesteps(3)
    used.alphas_cumprod.zero_()
    fresh = make_scheduler("ddim", cosine_config())
    assert fresh.num_inference_steps is None
    assert fresh.alphas_cumprod.min() > 0


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_a_row_is_the_same_alone_in_a_batch_and_in_another_order(name):
    denoiser = Denoiser(tiny_unet())

    @torch.inference_mode()
    def rows(seeds: list[int]) -> Tensor:
        labels = torch.tensor([s % 4 for s in seeds])
        scale = torch.tensor([1.0 + s % 2 for s in seeds])
        guidance = ClassifierFreeGuidance(denoiser, scale, torch.full_like(labels, 4))
        return sample(
            denoiser,
            make_scheduler(name, cosine_config()),
            labels,
            Trajectory(num_inference_steps=4),
            shape=(1, 8, 8),
            generators=streams(seeds),
            terms=[guidance],
        )

    together = rows(list(range(8)))
    alone = torch.cat([rows([s]) for s in range(8)])
    shuffled = rows([5, 2, 7, 0, 1, 6, 3, 4])[torch.tensor([3, 4, 1, 6, 7, 0, 5, 2])]
    level = 1 / 127.5
    assert (together - alone).abs().max() < level / 50
    assert (together - shuffled).abs().max() < level / 50


@pytest.mark.parametrize(
    "name", ["ddpm", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
)
def test_every_draw_of_a_row_is_bit_equal_whatever_the_batch(name):
    """Initial and ancestral noise together: with a denoiser that is elementwise, so are images."""
    denoiser = GaussianDenoiser(0.5)
    together = draw(denoiser, name, seeds=range(5), steps=20)
    alone = torch.cat([draw(denoiser, name, seeds=[s], steps=20) for s in range(5)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_guided_predictions_are_rescaled_as_diffusers_rescales_them(phi):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    conditional, unconditional = torch.randn(2, 3, 2, 4, 4).unbind(0)
    scale = torch.tensor([1.0, 3.0, 7.5])

    class Unconditional:
        device = torch.device("cpu")

        def __call__(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
            return unconditional[condition]

    term = ClassifierFreeGuidance(Unconditional(), scale, torch.arange(3), rescale=phi)
    found = conditional + term(conditional, torch.tensor(1), conditional)
    guided = unconditional + scale.view(-1, 1, 1, 1) * (conditional - unconditional)
    wanted = rescale_noise_cfg(guided, conditional, guidance_rescale=phi)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match=r"`guidance_rescale` must be in \[0, 1\], got 2"):
        SamplerConfig(guidance_rescale=2)
    with pytest.raises(ValueError, match=r"`guidance_rescale` = 0\.7 has no effect"):
        tiny(tiny_unet(num_classes=None), guidance_rescale=0.7)


def guided(
    scale: list[float], unconditional: int = 4, with_term: bool = True
) -> tuple[Tensor, Counting]:
    counting = Counting(tiny_unet())
    denoiser = Denoiser(counting)
    labels = torch.zeros(len(scale), dtype=torch.int64)
    term = ClassifierFreeGuidance(
        denoiser, torch.tensor(scale), torch.full_like(labels, unconditional)
    )
    with torch.inference_mode():
        images = sample(
            denoiser,
            make_scheduler("ddim", cosine_config(clip_sample=False)),
            labels,
            Trajectory(num_inference_steps=1),
            shape=(1, 8, 8),
            generators=streams([7] * len(scale)),
            terms=[term] if with_term else [],
        )
    return images, counting


def test_guidance_scale_one_is_the_conditional_branch_and_costs_nothing():
    images, counting = guided([1.0, 1.0])
    assert counting.images == 2
    plain, _ = guided([1.0, 1.0], with_term=False)
    assert torch.equal(images, plain)


def test_guidance_scale_zero_is_the_unconditional_branch_and_the_scale_acts_linearly():
    images, counting = guided([0.0, 1.0, 2.0, 3.0])
    assert counting.images == 4 + 3  # rows at scale 1 skip the second evaluation
    torch.testing.assert_close(images[2] - images[1], images[1] - images[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(images[3] - images[2], images[1] - images[0], atol=1e-5, rtol=0)
    denoiser = Denoiser(tiny_unet())
    with torch.inference_mode():
        null = sample(
            denoiser,
            make_scheduler("ddim", cosine_config(clip_sample=False)),
            torch.tensor([4]),
            Trajectory(num_inference_steps=1),
            shape=(1, 8, 8),
            generators=streams([7]),
        )
    torch.testing.assert_close(images[:1], null, atol=1e-5, rtol=0)


def test_guidance_towards_the_condition_itself_changes_nothing():
    images, _ = guided([1.0, 5.0], unconditional=0)
    torch.testing.assert_close(images[0], images[1], atol=1e-5, rtol=0)


def test_terms_add_up():
    denoiser = GaussianDenoiser(0.5)

    class Push:
        def __init__(self, size: float) -> None:
            self.size = size

        def __call__(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
            return torch.full_like(prediction, self.size)

        def evaluations(self) -> Tensor:
            return torch.zeros(1, dtype=torch.int64)

    both = draw(denoiser, "ddim", terms=[Push(0.1), Push(0.2)])
    torch.testing.assert_close(both, draw(denoiser, "ddim", terms=[Push(0.3)]))
    assert not torch.allclose(both, draw(denoiser, "ddim"))


def test_a_low_strength_stays_with_the_source_and_a_high_one_leaves_it():
    points = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    denoiser = ExactDenoiser(points)
    stayed = [
        float(
            (draw(denoiser, "ddim", sources=points, strength=s) - points)
            .flatten(1)
            .norm(dim=1)
            .lt(0.1)
            .float()
            .mean()
        )
        for s in (0.1, 1.0)
    ]
    assert stayed[0] == 1
    assert stayed[1] < 1


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 10), (0.5, 5), (0.29, 2), (0.01, 1)])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_strength_is_the_share_of_the_steps_taken(name, strength, calls):
    counting = Counting(tiny_unet(num_classes=None))
    with torch.inference_mode():
        sample(
            Denoiser(counting),
            make_scheduler(name, cosine_config()),
            None,
            Trajectory(num_inference_steps=10, sources=torch.zeros(1, 1, 8, 8), strength=strength),
            shape=(1, 8, 8),
            generators=streams([0]),
        )
    assert counting.images == calls
    assert counting.timesteps == sorted(counting.timesteps, reverse=True)
    assert all(0 <= t <= 999 for t in counting.timesteps)


def test_what_a_scheduler_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"`eta` = 1\.0 has no effect with DPMSolverMultistep"):
        draw(GaussianDenoiser(0.5), "dpmsolver++", eta=1.0)
    for unfit in ("euler?", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"):
        with pytest.raises(ValueError, match=f"`scheduler` is .{re.escape(unfit)}.*Known are ddpm"):
            make_scheduler(unfit, EPSILON)
    with pytest.raises(ValueError, match=r"`strength` must be in \(0, 1\]"):
        draw(GaussianDenoiser(0.5), "ddim", strength=math.inf)


@pytest.mark.parametrize(("mix", "variance_type"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
@pytest.mark.parametrize("steps", [10, 1000])
def test_a_log_variance_mix_of_0_and_1_are_the_fixed_variances_of_diffusers(
    mix, variance_type, steps
):
    from diffusers import DDPMScheduler

    config = {**EPSILON, "timestep_spacing": "leading"}
    ours = draws_of(make_scheduler("ddpm", config, mix), steps)
    theirs = draws_of(DDPMScheduler.from_config(config, variance_type=variance_type), steps)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def draws_of(scheduler: Any, steps: int) -> Tensor:
    """Where the last twelve steps of an ancestral chain lead."""
    share, sources = min(1.0, 12 / steps), torch.zeros(3, 1, 2, 2)
    return sample(
        GaussianDenoiser(0.5),
        scheduler,
        None,
        Trajectory(num_inference_steps=steps, sources=sources, strength=share),
        shape=(1, 2, 2),
        generators=streams(range(3)),
    )


def test_the_mix_interpolates_the_log_of_the_variance_of_the_steps_that_are_taken():
    scheduler = make_scheduler("ddpm", EPSILON)
    scheduler.set_timesteps(10)
    signal, until = (float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps[4:6])
    beta = 1 - signal / until
    small = beta * (1 - until) / (1 - signal)

    def noise(mix: float, how: str) -> float:
        """Standard deviation of what is added to the mean of one step, over its noise."""
        mixed = make_scheduler("ddpm", EPSILON, mix)
        mixed.set_timesteps(10)
        t, x, zero = mixed.timesteps[4], torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        if how == "until":
            moved = step_to(mixed, zero, t, x, until, generators=streams([1]), eta=0.0)
        else:
            both = torch.cat([zero, torch.full_like(zero, 2 * mix - 1)], 1)
            moved = mixed.step(both, t, x, generator=streams([1])).prev_sample
        return float((moved / randn(streams([1]), (1, 2, 2))).mean())

    for mix in (0.0, 0.3, 1.0):
        expected = math.exp(mix * math.log(beta) + (1 - mix) * math.log(small)) ** 0.5
        assert noise(mix, "until") == pytest.approx(expected, rel=1e-5)
        assert noise(mix, "step") == pytest.approx(expected, rel=1e-4)


def test_a_step_that_arrives_at_a_clean_image_adds_no_noise():
    # With "trailing" timesteps the last one is not 0, and diffusers would add noise there.
    points = torch.zeros(1, 1, 2, 2)
    for mix in (0.0, 0.5, 1.0):
        images = sample(
            ExactDenoiser(points),
            make_scheduler("ddpm", EPSILON, mix),
            None,
            Trajectory(num_inference_steps=5),
            shape=(1, 2, 2),
            generators=streams(range(4)),
        )
        assert images.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "mix", "message"),
    [
        ("ddpm", 1.5, "`log_variance_mix` must be in [0, 1], got 1.5"),
        ("ddim", 0.5, "`log_variance_mix` = 0.5 has no effect with DDIMScheduler"),
        ("dpmsolver++", 0.0, "`log_variance_mix` = 0 has no effect with DPMSolverMultistep"),
    ],
)
def test_a_mix_without_a_meaning_is_refused(name, mix, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_scheduler(name, EPSILON, mix)


def test_a_predicted_variance_that_is_not_used_asks_for_a_mix():
    config = cosine_config(variance_type="learned_range")
    with pytest.raises(ValueError, match="Choose it with `log_variance_mix`"):
        step_arguments(make_scheduler("ddpm", config), [], 0.0)
    assert step_arguments(make_scheduler("ddpm", config, 0.3), [], 0.0)["generator"] == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"scheduler": "ddpm", "eta": 0.5, "log_variance_mix": 0.3}),
        ({"scheduler": "ddim"}, {"scheduler": "ddim", "eta": 0.5}),
        ({"scheduler": "DDPMScheduler"}, {"scheduler": "DDPMScheduler", "log_variance_mix": 0.3}),
        ({"scheduler": "dpmsolver++"}, {"scheduler": "dpmsolver++"}),
        ({"scheduler": None}, {"scheduler": None, "eta": 0.5, "log_variance_mix": 0.3}),
        ({"log_variance_mix": None}, {"scheduler": "ddpm", "eta": 0.5, "log_variance_mix": None}),
    ],
)
def test_what_another_scheduler_would_ignore_does_not_carry_over_to_it(given, kept):
    saved = {"scheduler": "ddpm", "eta": 0.5, "log_variance_mix": 0.3}
    assert SamplerConfig.chosen(saved, given) == SamplerConfig(**kept)


def test_a_network_on_another_device_takes_images_of_any_memory_layout():
    x = torch.empty(2, 3, 8, 8, device="meta").to(memory_format=torch.channels_last)
    denoiser = Denoiser(tiny_unet(channels=3).to("meta"))
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    assert denoiser(x, torch.tensor(5), labels).shape == x.shape
