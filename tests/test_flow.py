"""Networks that predict the flow: sampling equals diffusers' own steps, training learns it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import TrainingConfig
from synthaug.errors import CheckpointError
from synthaug.samplers import Step, Trajectory, make_scheduler, sample, set_timesteps, shifted
from synthaug.synthesizers import (
    ClassConditional,
    DiffusionInversion,
    LossGrid,
    SamplerConfig,
    streams,
)
from tests.images import to_images, to_pixels
from tests.tiny.class_conditional import NAMES, Real, tiny

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"


def flow_config(kind: str = EULER, **changes: Any) -> dict[str, Any]:
    return {"_class_name": kind, "num_train_timesteps": 1000, "shift": 3.0, **changes}


class ToPoint:
    """The exact flow if all images are one."""

    device = torch.device("cpu")

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        del condition
        return (x - self.image) / (t / 1000)


@pytest.mark.parametrize("kind", [EULER, HEUN])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_exact_flow_ends_at_the_image(kind, steps):
    image = torch.linspace(-1, 1, 16).view(1, 4, 4)
    drawn = sample(
        ToPoint(image),
        make_scheduler(None, flow_config(kind)),
        None,
        Trajectory(num_inference_steps=steps),
        shape=(1, 4, 4),
        generators=streams(np.arange(2, dtype=np.uint64)),
    )
    torch.testing.assert_close(drawn, image.expand(2, 1, 4, 4), atol=1e-4, rtol=0)


def solver(**changes: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, **changes
    )


@pytest.mark.parametrize("kind", [EULER, HEUN, "dpmsolver++", "of the checkpoint"])
@pytest.mark.parametrize("strength", [None, 0.7])
def test_the_loop_is_that_of_the_diffusers_scheduler(kind, strength):
    config, name = flow_config(), kind
    if kind == "of the checkpoint":
        config, name = {**solver().config, "_class_name": "DPMSolverMultistepScheduler"}, None
    synthesizer = tiny(scheduler_config=config, scheduler=name, num_inference_steps=5)
    synthesizer = synthesizer if strength is None else synthesizer.with_sources(Real())
    settings = {} if strength is None else {"strength": strength}
    plan = synthesizer.plan(per_class=1, guidance_scale=2.0, **settings)
    scheduler = make_scheduler(None, flow_config(kind)) if "Flow" in kind else solver()
    scheduler.set_timesteps(5)
    noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in streams(plan["seed"])])
    timesteps, x = scheduler.timesteps, noise
    if strength is not None:
        timesteps = timesteps[scheduler.order :]  # int(5 - 5 * 0.7) steps are left out
        scheduler.set_begin_index(scheduler.order)
        share = scheduler.sigmas[scheduler.order]
        x = share * noise + (1 - share) * to_images(Real().read(plan["source"]))
    labels = torch.tensor(plan["label"])
    network: Any = synthesizer.model.network
    with torch.inference_mode():
        for t in timesteps:
            c, u = (
                network(x, t.expand(4), class_labels=y).sample
                for y in (labels, torch.full_like(labels, 4))
            )
            x = scheduler.step(u + 2.0 * (c - u), t, x).prev_sample
    torch.testing.assert_close(synthesizer.draw(plan), x.clamp(-1, 1), atol=1e-5, rtol=0)
    assert (synthesizer.evaluations(plan) == 2 * len(timesteps)).all()


def test_a_shift_by_size_is_that_of_diffusers():
    config = flow_config(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    synthesizer = tiny(scheduler_config=config, scheduler=None, num_inference_steps=5)
    mu = 0.5 + (1.15 - 0.5) * (8 * 8 - 256) / (4096 - 256)  # a patch for each pixel
    scheduler = make_scheduler(None, config)
    scheduler.set_timesteps(5, mu=mu)
    ours = synthesizer.model.make_scheduler(None)
    assert ours.config.mu == pytest.approx(mu)
    assert shifted(torch.tensor(0.5), ours) == pytest.approx(np.exp(mu) / (np.exp(mu) + 1))
    set_timesteps(ours, 5)
    assert torch.equal(ours.sigmas, scheduler.sigmas)
    solved = synthesizer.model.make_scheduler("dpmsolver++")
    set_timesteps(solved, 5)
    expected = solver(use_dynamic_shifting=True, time_shift_type="exponential")
    expected.set_timesteps(5, mu=mu)
    assert torch.equal(solved.sigmas, expected.sigmas)
    assert len(synthesizer.draw(synthesizer.plan(per_class=1))) == 4


@pytest.mark.parametrize(("share", "after"), [(0.7, 0.3), (0.7, 0.31), (0.75, 0.25)])
def test_a_score_moves_a_step_of_a_flow_by_its_shares(share, after):
    step = Step.of_flow(torch.tensor(1000 * share), share, after)
    assert step.score_weight == pytest.approx(share * (share - after) / (1 - share))


def test_ddim_is_the_method_of_euler():
    named, euler = (
        tiny(scheduler_config=flow_config(), scheduler=name) for name in ("ddim", EULER)
    )
    assert named.recipe() == euler.recipe()
    plan = named.plan(per_class=1)
    assert torch.equal(named.draw(plan), euler.draw(plan))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"scheduler": "ddpm"}, "is 'ddpm', but the checkpoint's network predicts a flow"),
        ({"scheduler": "UniPCMultistepScheduler"}, "predicts a flow. Use ddim"),
        ({"eta": 0.5}, "`eta` = 0.5 has no effect with FlowMatchEulerDiscreteScheduler"),
        ({"num_inference_steps": 1001}, "only 1000 timesteps"),
    ],
)
def test_what_a_flow_cannot_follow_is_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        tiny(scheduler_config=flow_config(), **sampler)


@pytest.mark.parametrize(
    ("scheduler", "kind", "message"),
    [
        (HEUN, "exponential", r"is FlowMatchHeun.*Use ddim \(Euler's method\) or dpmsolver\+\+\."),
        (
            HEUN,
            "linear",
            r"linearly \(`time_shift_type`\) by the .*\. Use ddim \(Euler's method\)\.",
        ),
        ("dpmsolver++", "linear", r"is DPMSolverMulti.*\. Use ddim \(Euler's method\)\."),
    ],
)
def test_a_shift_by_size_that_a_scheduler_does_not_know_is_refused(scheduler, kind, message):
    config = flow_config(use_dynamic_shifting=True, time_shift_type=kind)
    with pytest.raises(ValueError, match=message):
        tiny(scheduler_config=config, scheduler=scheduler)


def test_timesteps_that_a_pipeline_chooses_are_refused():
    with pytest.raises(CheckpointError, match="at timesteps that its pipeline chooses"):
        tiny(scheduler_config=flow_config(invert_sigmas=True))
    scheduler = make_scheduler(None, flow_config(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="shift depends on the size of the images"):
        set_timesteps(scheduler, 5)
    with pytest.raises(ValueError, match="one of 'v_prediction', 'epsilon', 'sample', got 'flow'"):
        DiffusionInversion.fit_generator(Real(), "unused", prediction_type="flow")


def test_training_learns_the_flow_of_each_class(tmp_path):
    """Four classes of constant gray: after training, each class is drawn in its own gray."""
    real = Real(labels=(0, 1, 2, 3) * 4)
    grays = torch.tensor([32, 96, 160, 224], dtype=torch.uint8)
    real.pixels = grays[torch.tensor(real.targets)].view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    config = TrainingConfig(
        steps=120, batch_size=16, warmup_steps=10, learning_rate=1e-2, ema_decay=0.9, device="cpu"
    )
    ClassConditional.fit(
        real, tmp_path, config=config, channels=8, prediction_type="flow", progress=False
    )
    loaded = ClassConditional.from_pretrained(tmp_path, device="cpu")
    assert loaded.classes == NAMES
    assert loaded.model.scheduler_config["even_shares"]
    synthesizer = replace(loaded, sampler=SamplerConfig(num_inference_steps=10))
    plan = synthesizer.plan(per_class=4)
    drawn = to_pixels(synthesizer.draw(plan)).float().mean((1, 2, 3)).view(4, 4).mean(1)
    assert (drawn - grays.float()).abs().max() < 25


def test_the_loss_of_the_flow_is_asked_by_the_audit():
    synthesizer = tiny(scheduler_config=flow_config())
    pixels, labels = Real().pixels[:2], np.array([0, 1])
    grid = LossGrid(levels=2, draws=1)
    losses = synthesizer.restoration_losses(pixels, labels, grid)
    network: Any = synthesizer.model.network
    for column, (time, seed) in enumerate(zip(grid.times, grid.noise_seeds, strict=True)):
        (generator,) = streams(np.array([seed], np.uint64))
        noise = torch.randn(1, 8, 8, generator=generator)
        x0 = to_images(pixels)
        with torch.inference_mode():
            x_t = (1 - time) * x0 + time * noise
            t = torch.full((2,), time * 1000, dtype=torch.float32)
            flow = network(x_t.float(), t, class_labels=torch.tensor(labels)).sample
        expected = (flow - (noise - x0)).square().flatten(1).mean(1)
        np.testing.assert_allclose(losses[:, column], expected, rtol=1e-4)
