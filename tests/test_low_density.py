import functools
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthaug import SynthCache, generate
from synthaug.errors import CheckpointError, DataError, MismatchError
from synthaug.samplers import denoised_estimate, make_scheduler
from synthaug.synthesizers import ClassConditional, LowDensity
from synthaug.synthesizers.low_density._hardness import (
    NoiseAware,
    NoisyEncoder,
    OnEstimate,
)
from tests.checkpoints import Counting, cosine_config, sampled, tiny_unet, write_stable_diffusion
from tests.command_line import fail, succeed
from tests.images import to_images, to_pixels
from tests.tiny import inversions as inversion
from tests.tiny.class_conditional import Real, tiny
from tests.tiny.low_density import (
    SHAPE,
    Bright,
    few_noisy_images,
    fitted,
    noise_aware,
    seeded,
    steered,
)

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(autouse=True)
def _fewer_noisy_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few_noisy_images(monkeypatch)


class Levels(nn.Module):
    """Mean gray of the image's quarters, and a nonlinear feature more."""

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return torch.cat([small, small.square().sum(1, keepdim=True)], dim=1)


# Drawing


@pytest.mark.parametrize(
    ("scheduler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0), ("dpmsolver++", 0.0)]
)
def test_without_strength_images_are_bit_equal_to_the_bases_and_cost_the_same(scheduler, eta):
    counting = Counting(tiny_unet())
    base = tiny(counting, scheduler=scheduler, eta=eta)
    plain = steered(base)
    plan = plain.plan(per_class=2, guidance_scale=[1.0, 2.0], alpha=0, beta=0)
    assert torch.equal(plain.draw(plan), base.draw(plan))
    assert counting.images == 2 * plain.evaluations(plan).sum()
    one = plain.plan(counts={"cat": 1}, alpha=0.1, beta=0.1)
    assert plain.evaluations(one).tolist() == [4 + 3 + 3]
    pushed = plain.plan(per_class=2, alpha=[0.0, 0.5], beta=[0.0, 0.2])
    change = (plain.draw(pushed) - base.draw(pushed)).flatten(1).abs().amax(1)
    assert ((change == 0) == (pushed["alpha"] == 0)).all()


@pytest.mark.parametrize("kind", ["class conditional", "sources", "inversion"])
def test_an_image_does_not_depend_on_the_rows_drawn_with_it(kind):
    if kind == "inversion":
        synthesizer = steered(inversion.learned())
        plan = synthesizer.plan(ratio=1, alpha=[0.0, 0.3], beta=0.2)
    else:
        synthesizer = steered()
        extra: dict[str, Any] = {"per_class": 3}
        if kind == "sources":
            synthesizer = synthesizer.with_sources(Real())
            extra["strength"] = [0.5, 0.9]
        plan = synthesizer.plan(alpha=[0.0, 0.3], beta=[0.2, 0.0], guidance_scale=2.0, **extra)
    # The tiny random network of the inversion magnifies how batches round.
    levels = 4 if kind == "inversion" else 1
    together = to_pixels(synthesizer.draw(plan)).int()
    order = np.random.default_rng(0).permutation(len(plan))
    shuffled = to_pixels(synthesizer.draw(plan[order])).int()
    alone = torch.cat([to_pixels(synthesizer.draw(row)).int() for row in plan.batches(1)])
    assert (together - alone).abs().max() <= levels
    assert (together[torch.from_numpy(order)] - shuffled).abs().max() <= levels


def test_alpha_beta_and_what_the_base_knows_act_together():
    synthesizer = steered()
    kinds = {"alpha": [0.0, 0.5], "beta": [0.0, 0.5], "guidance_scale": [1.0, 3.0]}
    images = []
    for name, (off, on) in kinds.items():
        row: dict[str, Any] = {other: values[0] for other, values in kinds.items()}
        row[name] = [off, on]
        plan = synthesizer.plan(counts={"cat": 2}, **row)
        columns = {**plan.columns, "seed": np.full(2, 7, np.uint64)}
        images.append(synthesizer.draw(replace(plan, columns=columns)))
    for pair in images:
        assert (pair[0] - images[0][0]).abs().max() < 1e-6  # nothing on: the same image each time
        assert (pair[1] - pair[0]).abs().max() > 0.01
    assert (images[0][1] - images[1][1]).abs().max() > 0.01


def test_a_latent_model_is_pushed_in_its_latents(tmp_path):
    write_stable_diffusion(tmp_path)
    base = ClassConditional.from_pretrained(
        tmp_path, classes=["fox", "owl"], sampler={"num_inference_steps": 3}
    )
    synthesizer = steered(base)
    plan = synthesizer.plan(per_class=2, alpha=0.5, beta=0.5, guidance_scale=2.0)
    images = synthesizer.draw(plan)
    assert images.shape == (4, 3, 8, 8)
    assert (images - base.draw(plan)).abs().max() > 0.01
    decoded = LowDensity.on_estimates(base, Pictures(), Levels(), estimator="oas")
    assert (decoded.draw(plan_of(decoded)) - base.draw(plan_of(decoded))).abs().max() > 0.01


class Pictures(Bright):
    """Two classes in color."""

    classes = ("fox", "owl")  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(shape=(3, 8, 8))
        self.targets = [c // 2 for c in self.targets]


def plan_of(synthesizer: LowDensity) -> Any:
    return synthesizer.plan(per_class=2, alpha=0.5, beta=0)


def test_the_estimate_of_evaluations_counts_every_gradient():
    counting = Counting(tiny_unet())
    base = tiny(counting, num_inference_steps=6)
    synthesizer = LowDensity.on_estimates(base, Bright(), Levels(), synthetic=Real())
    plan = synthesizer.plan(per_class=2, alpha=[0.0, 0.1], beta=[0.2], guidance_scale=2.0)
    synthesizer.draw(plan)
    gradients = 5 * ((plan["alpha"] != 0).sum() + (plan["beta"] != 0).sum())
    assert counting.images == 2 * 6 * len(plan) + gradients
    assert synthesizer.evaluations(plan).sum() == 2 * 6 * len(plan) + 3 * gradients
    assert set(counting.timesteps) <= set(range(1000))
    assert torch.isfinite(synthesizer.draw(plan)).all()


# The two kinds of hardness


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_undoes_what_a_network_is_trained_to_predict(kind):
    scheduler = make_scheduler("ddpm", cosine_config(prediction_type=kind))
    x0, noise = torch.randn(2, 3, *SHAPE, generator=seeded())
    t = torch.tensor(400)
    x_t = scheduler.add_noise(x0, noise, t.expand(3))
    velocity = scheduler.get_velocity(x0, noise, t.expand(3))
    target = {"epsilon": noise, "v_prediction": velocity, "sample": x0}[kind]
    signal = float(scheduler.alphas_cumprod[t])
    torch.testing.assert_close(
        denoised_estimate(target, x_t, signal, kind), x0, atol=1e-5, rtol=1e-5
    )


def test_the_gradient_goes_through_the_denoiser():
    """A difference quotient of hardness by x_t, in a random direction."""
    synthesizer = LowDensity.on_estimates(tiny(), Bright(), Levels())
    x = 0.3 * torch.randn(1, *SHAPE, generator=seeded())
    way = torch.randn(1, *SHAPE, generator=seeded(1))
    t, condition, small = torch.tensor(300), torch.tensor([2]), 1e-2

    def own(at: Tensor) -> Tensor:
        return synthesizer.hardness(at, t, condition)[0, 2]

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(own(x), x)
    with torch.no_grad():
        quotient = (own(x + small * way) - own(x - small * way)) / (2 * small)
    assert float((gradient * way).sum()) == pytest.approx(float(quotient), rel=0.02)
    assert abs(float(quotient)) > 1e-3


def test_noisy_images_are_told_apart_by_networks_that_were_trained(tmp_path):
    real = Bright(per_class=20)
    training = {"steps": 60, "batch_size": 24, "learning_rate": 3e-3, "warmup_steps": 5}
    synthesizer = fitted(tmp_path, real=real, num_synthetic=40, config=training)
    t = torch.tensor(200)
    scheduler = make_scheduler("ddpm", cosine_config())
    x0 = to_images(real.pixels)
    noise = torch.randn(x0.shape, generator=seeded())
    x_t = scheduler.add_noise(x0, noise, t.expand(len(x0)))
    hardness = synthesizer.hardness(x_t, t, None)
    assert float((hardness.argmin(1) == torch.tensor(real.targets)).float().mean()) > 0.75
    assert isinstance(synthesizer.realism, NoiseAware)
    drawn = synthesizer.base.draw(synthesizer.base.plan(per_class=10, seed=5))
    x_t = scheduler.add_noise(torch.cat([x0, drawn]), torch.randn(120, *SHAPE), t.expand(120))
    seems_real = synthesizer.realism(x_t, t, None).argmin(1)
    assert float((seems_real == torch.tensor([1] * 80 + [0] * 40)).float().mean()) > 0.75


def test_every_noise_level_has_gaussians_of_its_own():
    guide = noise_aware(4, levels=4)
    shifted = tuple(
        replace(g, log_determinants=g.log_determinants + 2 * i)
        for i, g in enumerate(guide.gaussians)
    )
    x = torch.randn(2, *SHAPE, generator=seeded())
    guide = replace(guide, gaussians=shifted)
    for t, level in ((0, 0), (249, 0), (250, 1), (749, 2), (999, 3)):
        of_first = replace(guide, gaussians=shifted[:1])(x, torch.tensor(t), None)
        torch.testing.assert_close(guide(x, torch.tensor(t), None), of_first + level)


def test_a_network_starts_as_the_first_half_of_the_generators():
    denoiser = tiny().model.denoiser
    network = NoisyEncoder(NoisyEncoder.config_for(denoiser, SHAPE), 4, 3)
    network.start_from(denoiser)
    theirs, same = denoiser.network.state_dict(), 0
    for name, weight in network.state_dict().items():
        same += name in theirs and torch.equal(weight, theirs[name])
    assert same > 0.8 * len(network.state_dict())


# Files


def test_saved_and_loaded_it_draws_the_same_images(tmp_path):
    before = fitted(tmp_path / "copied")
    plan = before.plan(per_class=1, alpha=0.5, beta=0.5)
    images = before.draw(plan)
    assert torch.equal(LowDensity.from_pretrained(tmp_path / "copied").draw(plan), images)
    before.save_pretrained(tmp_path / "again")
    after = LowDensity.from_pretrained(tmp_path / "again")
    assert torch.equal(after.draw(plan), images)
    assert after.recipe() == before.recipe()
    assert after.trained_on == before.trained_on
    assert dict(after.trained_on or {})["guides"] == {"fingerprint": "bright 8", "images": 32}
    files = {path.suffix for path in tmp_path.rglob("*.*")} - {""}
    assert files <= {".json", ".jsonl", ".safetensors"}


def test_a_base_is_named_by_its_path_and_must_stay_what_it_was(tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    synthesizer = fitted(tmp_path / "hard", base=tmp_path / "base")
    assert not (tmp_path / "hard" / "base").exists()
    plan = synthesizer.plan(per_class=1)
    images = synthesizer.draw(plan)
    assert torch.equal(LowDensity.from_pretrained(tmp_path / "hard").draw(plan), images)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(CheckpointError, match="There is no directory"):
        LowDensity.from_pretrained(tmp_path / "hard")
    moved = LowDensity.from_pretrained(tmp_path / "hard", checkpoint=tmp_path / "moved")
    assert torch.equal(moved.draw(plan), images)
    tiny(tiny_unet(num_classes=5)).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"The network in .*other is not the one"):
        LowDensity.from_pretrained(tmp_path / "hard", checkpoint=tmp_path / "other")
    faster = LowDensity.from_pretrained(
        tmp_path / "hard",
        checkpoint=tmp_path / "moved",
        sampler={"num_inference_steps": 2},
        temperature=2.0,
    )
    assert (faster.base.sampler.num_inference_steps, faster.temperature) == (2, 2.0)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "a")
    drawn: list[int] = []
    draw = ClassConditional.draw

    @functools.wraps(draw)
    def counted(self: Any, rows: Any, **arguments: Any) -> Any:
        drawn.append(len(rows))
        return draw(self, rows, **arguments)

    monkeypatch.setattr(ClassConditional, "draw", counted)
    fitted(tmp_path / "b", config={"steps": 1})
    assert sum(drawn) == 4
    resumed = fitted(tmp_path / "b")
    assert sum(drawn) == 4  # what was drawn is not drawn again
    assert resumed.recipe() == whole.recipe()
    with pytest.raises(MismatchError, match="horizontal_flip: False there, True now"):
        fitted(tmp_path / "b", horizontal_flip=True)


def test_whatever_changes_the_images_changes_the_recipe(tmp_path):
    one = steered()
    found = [one, replace(one, temperature=2.0), replace(one, unit="score"), steered(tiny(eta=0.5))]
    found += [replace(one, realism=None), replace(one, hardness=noise_aware(4, levels=3))]
    found += [LowDensity.on_estimates(tiny(), Bright(), Levels())]
    recipes = [synthesizer.recipe() for synthesizer in found]
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    seeds = [synthesizer.plan(per_class=1, beta=0)["seed"][0] for synthesizer in found[:4]]
    assert len(set(seeds)) == 4


def test_the_cache_knows_how_each_image_was_pushed(tmp_path):
    synthesizer = fitted(tmp_path / "hard")
    plan = synthesizer.plan(per_class=2, alpha=[0.1, 0.2], beta=0.5)
    cache = generate(synthesizer, plan, tmp_path / "a.h5", progress=False)
    assert [cache.provenance(i)["alpha"] for i in range(4)] == [0.1, 0.2, 0.1, 0.2]
    recipe = cache.manifest["recipe"]
    assert recipe["settings"]["base"]["synthesizer"] == "ClassConditional"
    assert {"network", "hardness", "realism"} <= set(recipe["weights"])
    again = fitted(tmp_path / "more", synthetic=cache, num_synthetic=None)
    assert again.recipe()["weights"] != recipe["weights"]


# What is refused


def test_plans_and_settings_that_make_no_sense_are_refused():
    one = steered()
    for parameters, message in (
        ({"alpha": -0.1}, "`alpha` must not be negative, got -0.1"),
        ({"beta": [0.1, -1]}, "`beta` must not be negative"),
        ({"gamma": 1.0}, "Unknown row parameter 'gamma'"),
        ({"strength": 0.5}, "`strength` needs `with_sources`"),
    ):
        with pytest.raises(ValueError, match=message):
            one.plan(per_class=1, **parameters)
    with pytest.raises(ValueError, match="there is no discriminator"):
        replace(one, realism=None).plan(per_class=1, beta=0.5)
    with pytest.raises(ValueError, match="there is no discriminator"):
        replace(one, realism=None).draw(one.plan(per_class=1, beta=0.5))
    assert one.default_strengths == {"alpha": 0.5, "beta": 1.0}
    assert replace(one, unit="rms", realism=None).default_strengths == {"alpha": 0.0625, "beta": 0}
    for changes, message in (
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"unit": "grams"}, "`unit` must be one of 'rms', 'length', 'score'"),
        ({"hardness": noise_aware(3)}, "`hardness` knows 3 classes, the base 4"),
        ({"base": one}, "`base` is a LowDensity, whose sampler cannot be steered"),
        ({"base": tiny(scheduler="HeunDiscreteScheduler")}, "steps cannot be pushed"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(one, **changes)
    with pytest.raises(ValueError, match="does not start from other images"):
        steered(inversion.learned()).with_sources(Real())


def test_data_that_do_not_fit_the_base_are_refused_before_any_work(tmp_path):
    with pytest.raises(MismatchError, match="The real images have shape"):
        fitted(tmp_path, real=Bright(shape=(3, 8, 8)))
    lacking = Bright()
    lacking.targets = [c % 3 for c in lacking.targets]
    with pytest.raises(DataError, match="Class 'dog' has no real image"):
        fitted(tmp_path, real=lacking)
    with pytest.raises(MismatchError, match="`synthetic` holds images of shape"):
        fitted(tmp_path, synthetic=Bright(shape=(3, 8, 8)), num_synthetic=None)
    with pytest.raises(ValueError, match="`num_synthetic` is 4, but `synthetic` was given"):
        fitted(tmp_path, synthetic=Bright())
    with pytest.raises(ValueError, match="`noise_levels` must be at least 1"):
        fitted(tmp_path, noise_levels=0)
    assert not any(tmp_path.iterdir())


def test_what_is_not_a_checkpoint_of_ours_says_so(tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="is a checkpoint for 'ClassConditional'"):
        LowDensity.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="`classes` was fixed"):
        LowDensity.from_pretrained(tmp_path / "base", classes=["a"])
    guided = LowDensity.on_estimates(tiny(), Bright(), Levels())
    assert isinstance(guided.hardness, OnEstimate)
    with pytest.raises(TypeError, match="`hardness` is a OnEstimate, which cannot be saved"):
        guided.save_pretrained(tmp_path / "guided")
    fitted(tmp_path / "hard")
    (tmp_path / "hard" / "hardness" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="hardness cannot be read"):
        LowDensity.from_pretrained(tmp_path / "hard")


def test_the_command_line_trains_and_draws(tmp_path):
    names = tuple(map(str, range(10)))
    model = replace(tiny(tiny_unet(num_classes=10)).model, classes=names)
    ClassConditional(model=model, **sampled(num_inference_steps=3)).save_pretrained(
        tmp_path / "base"
    )
    train = ("train", "digits:train", tmp_path / "hard", "--method", "hardness")
    small = ("--num-synthetic", 10, "--steps", 1, "--batch-size", 4, "--device", "cpu")
    assert "needs `--base`" in fail(2, *train)
    printed = succeed(*train, "--base", tmp_path / "base", *small)
    assert "in turn plain and steered" in printed
    assert (tmp_path / "hard" / "samples.png").exists()
    drawn = tmp_path / "hard.h5"
    rows = ("--counts", '{"3": 4}', "--alpha", "[0, 0.5]", "--beta", 1)
    succeed("generate", tmp_path / "hard", drawn, *rows, "--num-inference-steps", 2)
    cache = SynthCache(drawn)
    assert [cache.provenance(i)["alpha"] for i in range(4)] == [0, 0.5, 0, 0.5]
    wrong = fail(2, "generate", tmp_path / "base", drawn, "--per-class", 1, "--alpha", 0.5)
    assert "There is no --alpha for " in wrong
    stray = fail(2, "train", "digits", tmp_path / "x", "--base", tmp_path / "base")
    assert "`--base` has no meaning with --condition labels" in stray
