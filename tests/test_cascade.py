import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur as reference_blur

from synthaug import Plan, SynthCache, TrainingConfig, generate
from synthaug.errors import CheckpointError, MismatchError
from synthaug.images import LabeledImages
from synthaug.samplers import Trajectory, make_scheduler, sample, timesteps_until
from synthaug.synthesizers import (
    Cascade,
    CascadeStage,
    ClassConditional,
    SamplerConfig,
    StageConfig,
    streams,
)
from synthaug.synthesizers.cascade._chain import StageCondition, StageDenoiser, downsample, upsample
from synthaug.synthesizers.cascade._fit import blur_some, gaussian_blur
from tests.checkpoints import (
    Counting,
    cosine_config,
    sampled,
    tiny_unet,
    write_stable_diffusion_upscaler,
)
from tests.command_line import check_answer, fail, succeed
from tests.images import randn, to_images, to_pixels
from tests.tiny.cascades import NAMES, job, real, tiny_base, tiny_cascade, tiny_stage

pytestmark = pytest.mark.usefixtures("few_steps")

TINY: dict[str, Any] = {"channels": 8, "progress": False}


def same_seeds(plan: Plan, **columns: Any) -> Plan:
    """The rows with other parameters, and yet the same noise."""
    changed = {**plan.columns, **{k: np.full(len(plan), v) for k, v in columns.items()}}
    return Plan(columns=changed, classes=plan.classes, settings=plan.settings)


# -- the conditioning in training ----------------------------------------------------------------


def test_half_of_the_training_images_are_blurred():
    z = torch.randn(10_000, 1, 4, 4)
    blurred = (blur_some(z, 0.5, (0.4, 0.6)) != z).flatten(1).any(1).float().mean()
    assert float(blurred) == pytest.approx(0.5, abs=0.02)


def test_the_blur_is_a_gaussian_filter_of_three_by_three_pixels():
    z, std = torch.randn(3, 2, 5, 6), torch.tensor([0.4, 0.5, 0.6])
    found = gaussian_blur(z, std)[:, :, 1:-1, 1:-1]
    wanted = torch.stack(
        [reference_blur(x, [3, 3], [float(s)] * 2) for x, s in zip(z, std, strict=True)]
    )
    torch.testing.assert_close(found, wanted[:, :, 1:-1, 1:-1])
    flat = torch.full((1, 1, 4, 4), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, std[:1]), flat)  # also at the border


@pytest.mark.parametrize("padding", ["replicate", "reflect", "circular"])
def test_the_blur_sees_beyond_the_border_what_its_padding_says(padding):
    z, std = torch.randn(2, 1, 4, 5), torch.tensor([0.5, 0.6])
    taps = torch.exp(-0.5 * (torch.arange(-1, 2) / std[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    kernel = (taps[:, :, None] * taps[:, None])[:, None]
    wanted = F.conv2d(F.pad(z, [1] * 4, mode=padding).transpose(0, 1), kernel, groups=2)
    torch.testing.assert_close(gaussian_blur(z, std, padding), wanted.transpose(0, 1))
    torch.manual_seed(0)
    some = job("blur", blur_probability=1.0, blur_padding=padding).condition(z.repeat(1, 1, 2, 2))
    torch.manual_seed(0)
    usual = job("blur", blur_probability=1.0).condition(z.repeat(1, 1, 2, 2))
    assert torch.equal(some[0], usual[0]) == (padding == "replicate")


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_a_stage_enlarges_as_in_its_training(mode, tmp_path):
    usual = tiny_stage()
    stage = replace(usual, upsampling=mode)
    assert stage.settings() == {**usual.settings(), "upsampling": mode}
    stage.save_pretrained(tmp_path)
    assert CascadeStage.from_pretrained(tmp_path).upsampling == mode
    low = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    zero, drawn = torch.zeros(1, dtype=torch.int64), []
    for one in (usual, stage):
        noise = [torch.Generator().manual_seed(0)]
        drawn.append(one.draw(low, zero, zero, torch.ones(1), noise))
    assert not torch.equal(*drawn)
    made = job(upsampling=mode)
    network = made._build()
    assert made.stage(network).upsampling == mode
    assert made._identity(network) == {**job()._identity(network), "upsampling": mode}
    assert upsample(low, (8, 8), mode).shape == (1, 1, 8, 8)


def test_smaller_copies_are_those_that_a_data_set_loaded_smaller_holds():
    from PIL import Image, ImageOps

    pixels = real(12, channels=3).read(range(16)) // 2 + 64
    for size in (3, 5, 8):
        found = to_pixels(downsample(to_images(pixels), (size, size))).int()
        for x, y in zip(pixels, found, strict=True):
            image = Image.fromarray(x.permute(1, 2, 0).numpy())
            wanted = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
            difference = (y - torch.tensor(wanted).permute(2, 0, 1).int()).abs()
            assert difference.max() <= 1  # Pillow also rounds between its two passes


def test_the_noise_of_the_small_image_has_nothing_to_do_with_that_of_the_large_one():
    made = job(data=real(n=4))
    seen: dict[str, Tensor] = {}

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, low: Tensor, s: Tensor, y: Tensor) -> Tensor:
            seen.update(x=x, t=t, low=low, s=s)
            return x * self.weight

    indices = np.arange(4).repeat(2000)
    made._loss(Spy(), indices)
    x0 = to_images(made.real.pixels(indices))
    a_t = make_scheduler(None, made.scheduler_config).alphas_cumprod[seen["t"]].view(-1, 1, 1, 1)
    eps = (seen["x"] - a_t.sqrt() * x0) / (1 - a_t).sqrt()
    noisy = seen["s"] > 0
    a_s = made._signals[seen["s"]].view(-1, 1, 1, 1)
    z0 = upsample(downsample(x0, (4, 4)), (8, 8))
    eps_low = ((seen["low"] - a_s.sqrt() * z0) / (1 - a_s).sqrt())[noisy]
    for part in (eps[noisy], upsample(eps[noisy][:, :, ::2, ::2], (8, 8))):
        both = torch.stack([part.flatten(), eps_low.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.02
    # Neither do the two noise levels, which are drawn from the whole of their ranges.
    levels = torch.stack([seen["t"].double(), seen["s"].double()])
    assert abs(float(torch.corrcoef(levels)[0, 1])) < 0.05
    assert set(seen["s"].tolist()) == set(range(501))


@pytest.mark.parametrize("augmentation", ["blur", "gaussian"])
def test_a_killed_training_goes_on_as_if_it_had_not_been(augmentation, tmp_path):
    def fit(folder: str, steps: int) -> Any:
        config = TrainingConfig(steps=steps, batch_size=8, device="cpu")
        return Cascade.fit_stage(
            real(),
            tmp_path / folder,
            StageConfig(low_size=4, conditioning_augmentation=augmentation),
            config=config,
            **TINY,
        )

    fit("resumed", 2)
    resumed, result = fit("resumed", 4)
    straight, _ = fit("straight", 4)
    assert result.step == 4
    assert resumed.weights == straight.weights
    loaded = CascadeStage.from_pretrained(tmp_path / "resumed")
    assert loaded.weights == straight.weights
    assert loaded.settings() == straight.settings()
    assert loaded.conditioning_augmentation == augmentation


def test_training_lowers_the_loss_and_the_stage_looks_at_the_small_image(tmp_path):
    flat = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).repeat(1, 1, 8, 8) * 16
    data = LabeledImages(flat, np.arange(16) % 4, NAMES)
    config = TrainingConfig(
        steps=70, batch_size=16, device="cpu", ema_decay=0.8, learning_rate=3e-3, warmup_steps=10
    )
    stage, result = Cascade.fit_stage(
        data,
        tmp_path,
        StageConfig(low_size=4, conditioning_augmentation="none"),
        config=config,
        **TINY,
    )
    assert result.loss_curve[-1][1] < 0.5 * result.loss_curve[0][1]
    low = to_images(data.read(range(16)))[:, :, :4, :4]
    drawn = replace(stage, sampler=SamplerConfig(num_inference_steps=5)).draw(
        low,
        torch.zeros(16, dtype=torch.int64),
        torch.tensor(data.labels),
        torch.ones(16),
        streams(range(16)),
    )
    together = torch.stack([drawn.mean((1, 2, 3)), low.mean((1, 2, 3))])
    assert float(torch.corrcoef(together)[0, 1]) > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_size": 8}, "`low_size` must be at least 1 and smaller"),
        ({"low_size": (4, 0)}, "`low_size` must be at least 1, got 0"),
        ({"augmentation": "truncated"}, "trained with 'gaussian'"),
        ({"augmentation": "noise"}, "must be one of 'none', 'blur', 'gaussian'"),
        ({"blur_probability": 1.5}, r"in \[0, 1\], got 1.5"),
        ({"blur_std_range": (0.6, 0.4)}, "the smaller first"),
        ({"max_noise_level": 1001}, r"in \[1, 1000\], got 1001"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        job(**changes)


# -- the noise level in sampling -----------------------------------------------------------------


def test_the_network_is_told_the_noise_level():
    stage = tiny_stage()
    call = StageDenoiser(stage)
    x, low = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    classes = stage.model.conditions(torch.tensor([0, 1]))
    found = [
        call(x, torch.tensor(500), StageCondition(low, torch.tensor([s, s]), classes))
        for s in (0, 1, 100, 500)
    ]
    for i in range(4):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("level", "refusal"),
    [
        (501, "trained with whole levels from 0 to 500"),
        (-1, "trained with whole levels from 0 to 500"),
        (0.5, "must be a whole number, got 0.5"),
    ],
)
def test_a_level_that_was_not_trained_is_refused(level, refusal):
    with pytest.raises(ValueError, match=r"must be a whole number in \[0, 500\], got"):
        tiny_cascade().plan(per_class=1, noise_conditioning_level=level)
    with pytest.raises(ValueError, match=refusal):
        replace(tiny_stage(), noise_conditioning_level=level)


def test_a_level_beyond_the_trained_ones_in_a_plan_of_another_cascade_is_refused():
    plan = tiny_cascade().plan(per_class=1, noise_conditioning_level=100)
    with pytest.raises(ValueError, match="`noise_conditioning_level` is 501"):
        tiny_cascade().draw(same_seeds(plan, noise_conditioning_level=501))


@pytest.mark.parametrize("augmentation", ["none", "blur"])
def test_a_stage_without_levels_takes_none(augmentation):
    cascade = tiny_cascade(augmentation)
    assert "noise_conditioning_level" not in cascade.plan(per_class=1).columns
    with pytest.raises(ValueError, match="not trained with noise"):
        cascade.plan(per_class=1, noise_conditioning_level=1)
    with pytest.raises(ValueError, match="`truncated` needs a stage that was trained with noise"):
        replace(cascade, truncated=True)


@pytest.mark.parametrize("augmentation", ["none", "blur", "gaussian"])
def test_a_clean_small_image_reaches_the_stage_as_it_is(augmentation, monkeypatch):
    seen = []

    def spy(self: Any, x: Tensor, t: Tensor, condition: StageCondition) -> Tensor:
        seen.append(condition.low)
        return torch.zeros_like(x)

    monkeypatch.setattr(StageDenoiser, "__call__", spy)
    cascade = tiny_cascade(augmentation)
    plan = cascade.plan(per_class=3)
    cascade.draw(plan)
    small = cascade.base.draw(plan)  # type: ignore[attr-defined]
    assert len(seen) == 3
    assert all(torch.equal(low, upsample(small, (8, 8))) for low in seen)


def test_noise_of_a_level_has_that_levels_variance():
    stage = tiny_stage()
    assert stage.signals is not None
    low, levels = torch.full((3, 1, 4, 4), 0.5), torch.tensor([0, 100, 500])
    drawn = torch.stack(
        [stage.add_noise(low, levels, streams(range(3 * i, 3 * i + 3))) for i in range(500)]
    ).transpose(0, 1)
    assert torch.equal(drawn[0], low[:1].expand(500, -1, -1, -1))
    for i in (1, 2):
        a = float(stage.signals[levels[i]])
        assert float(drawn[i].mean()) == pytest.approx(0.5 * a**0.5, abs=0.03)
        assert float(drawn[i].var()) == pytest.approx(1 - a, rel=0.06)


def test_truncated_and_not_differ_only_above_level_zero():
    whole, truncated = tiny_cascade(), tiny_cascade(truncated=True)
    plan = whole.plan(per_class=2, noise_conditioning_level=0)
    assert torch.equal(truncated.draw(plan), whole.draw(plan))
    noisy = same_seeds(plan, noise_conditioning_level=300)
    assert (truncated.draw(noisy) - whole.draw(noisy)).abs().max() > 0.01
    assert (whole.draw(plan) - whole.draw(noisy)).abs().max() > 0.01


# -- chains that stop halfway --------------------------------------------------------------------

EPSILON = cosine_config(prediction_type="epsilon", clip_sample=False)


class Gaussian:
    """The optimal noise prediction for independent values of N(0, 0.25)."""

    device = torch.device("cpu")
    alphas_cumprod = make_scheduler("ddpm", EPSILON).alphas_cumprod.double()

    def __call__(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        a = self.alphas_cumprod[int(t)]
        return (x.double() * (1 - a).sqrt() / (a / 4 + 1 - a)).float()


def halfway(name: str, until: float, steps: int, eta: float = 0.0, n: int = 200) -> Tensor:
    return sample(
        Gaussian(),
        make_scheduler(name, EPSILON),
        None,
        Trajectory(num_inference_steps=steps, eta=eta, until=until),
        shape=(1, 4, 4),
        generators=streams(range(n)),
    )


@pytest.mark.parametrize(
    ("name", "eta"), [("ddim", 0), ("ddim", 1), ("ddpm", 0), ("dpmsolver++", 0)]
)
@pytest.mark.parametrize("until", [0.9, 0.5, 0.1])
def test_a_chain_stopped_at_a_level_has_the_distribution_of_that_level(name, eta, until):
    x = halfway(name, until, 100, eta)
    assert float(x.var()) == pytest.approx(until / 4 + 1 - until, rel=0.06)


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_stopping_at_a_timestep_is_what_the_scheduler_would_have_done(name, eta, prediction):
    config = cosine_config(prediction_type=prediction, clip_sample=False)

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        states.append(x)
        return 0.3 * x.sin()

    network.device = torch.device("cpu")  # type: ignore[attr-defined]
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(10)
    third = scheduler.timesteps[3]

    def run(until: float) -> Tensor:
        return sample(
            network,  # type: ignore[arg-type]
            make_scheduler(name, config),
            None,
            Trajectory(num_inference_steps=10, eta=eta, until=until),
            shape=(1, 4, 4),
            generators=streams(range(5)),
        )

    states: list[Tensor] = []
    run(1.0)
    wanted, states = states[3], []
    found = run(float(scheduler.alphas_cumprod[third]))
    assert len(states) == 3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_chain_stopped_before_its_first_step_is_noise():
    scheduler = make_scheduler("ddim", EPSILON)
    scheduler.set_timesteps(10)
    assert len(timesteps_until(scheduler, float(scheduler.alphas_cumprod[-1]))) == 0
    x = halfway("ddim", float(scheduler.alphas_cumprod[-1]), 10)
    assert torch.equal(x, randn(streams(range(200)), (1, 4, 4)))


def test_schedulers_that_keep_another_x_are_not_stopped_halfway():
    base = tiny_base(scheduler="EulerDiscreteScheduler")
    with pytest.raises(ValueError, match="cannot be stopped halfway with EulerDiscreteScheduler"):
        Cascade(base=base, stages=[tiny_stage()], truncated=True)
    Cascade(base=base, stages=[tiny_stage()])


# -- the whole -----------------------------------------------------------------------------------


def three() -> Cascade:
    """4 to 8 to 12 pixels, the second stage without levels."""
    stages = [tiny_stage(), tiny_stage("blur", size=12, low=8)]
    return Cascade(base=tiny_base(), stages=stages, truncated=True)


@pytest.mark.parametrize("truncated", [False, True])
def test_an_image_does_not_depend_on_the_rows_drawn_with_it(truncated):
    cascade = tiny_cascade(truncated=truncated)
    plan = cascade.plan(
        per_class=3,
        guidance_scale=[1.0, 2.0],
        stage_guidance_scale=[1.0, 1.0, 3.0],
        noise_conditioning_level=[0, 200, 400],
    )
    together = to_pixels(cascade.draw(plan)).int()
    order = np.random.default_rng(0).permutation(len(plan))
    shuffled = to_pixels(cascade.draw(plan[order])).int()
    alone = torch.cat([to_pixels(cascade.draw(row)).int() for row in plan.batches(1)])
    assert (together - alone).abs().max() <= 1
    assert (together[torch.from_numpy(order)] - shuffled).abs().max() <= 1


def test_no_two_chains_of_a_row_share_noise(monkeypatch):
    drawn: list[Tensor] = []

    def spy(generators: Any, shape: Any) -> Tensor:
        drawn.append(randn(generators, (200,)))
        return torch.zeros(len(generators), *shape)

    monkeypatch.setattr("synthaug.samplers.randn", spy)
    monkeypatch.setattr("synthaug.synthesizers.cascade._stage.randn", spy)
    cascade = replace(three(), truncated=False)
    cascade.draw(cascade.plan(per_class=1))
    assert len(drawn) == 4  # base, noise on its images, two stages
    together = torch.corrcoef(torch.stack([noise.flatten() for noise in drawn]))
    assert (together - torch.eye(4)).abs().max() < 0.2


def test_saved_and_loaded_it_draws_the_same_images(tmp_path):
    before = three()
    plan = before.plan(per_class=1, noise_conditioning_level=250, stage_guidance_scale_2=2.0)
    before.save_pretrained(tmp_path)
    after = Cascade.from_pretrained(tmp_path)
    assert after.recipe() == before.recipe()
    assert torch.equal(after.draw(plan), before.draw(plan))
    json.dumps(after.recipe(), allow_nan=False)
    # Its parts are checkpoints of their own, and can be put together again.
    base = ClassConditional.from_pretrained(tmp_path / "base")
    assert torch.equal(base.draw(plan), tiny_base().draw(plan))
    stages = [tmp_path / "stage_1", tmp_path / "stage_2"]
    again = Cascade.from_pretrained(tmp_path / "base", stages=stages, truncated=True)
    assert again.recipe() == before.recipe()


def test_plain_diffusers_loads_the_networks_that_we_save(tmp_path):
    from diffusers import UNet2DModel

    cascade = tiny_cascade()
    cascade.save_pretrained(tmp_path)
    for folder, model in (("base", cascade.base.model), ("stage_1", cascade.stages[0].model)):
        network = UNet2DModel.from_pretrained(tmp_path / folder, subfolder="unet")
        for name, weight in model.network.state_dict().items():
            assert torch.equal(network.state_dict()[name], weight)
    assert list(tmp_path.rglob("*.bin")) == list(tmp_path.rglob("*.pt")) == []


@pytest.mark.parametrize("truncated", [False, True])
def test_the_estimate_of_evaluations_is_what_the_networks_see(truncated):
    base, stage = tiny_base(num_inference_steps=10), tiny_stage()
    seen = [Counting(base.model.network), Counting(stage.model.network)]
    base = replace(base, model=replace(base.model, network=seen[0]))
    stage = replace(stage, model=replace(stage.model, network=seen[1]))
    cascade = Cascade(base=base, stages=[stage], truncated=truncated)
    plan = cascade.plan(
        per_class=6,
        guidance_scale=[1.0, 2.0],
        stage_guidance_scale=[1.0, 1.0, 2.0],
        noise_conditioning_level=[0, 100, 450],
    )
    cascade.draw(plan)
    assert seen[0].images + seen[1].images == cascade.evaluations(plan).sum()
    assert len(set(cascade.evaluations(plan).tolist())) >= 4


def test_parameters_of_several_stages_are_numbered_and_provenance_has_them_all(tmp_path):
    stages = [tiny_stage(), tiny_stage(size=12, low=8)]
    cascade = Cascade(base=tiny_base(), stages=stages)
    plan = cascade.plan(per_class=1, noise_conditioning_level=100, noise_conditioning_level_2=7)
    assert set(plan["noise_conditioning_level_1"]) == {100}
    assert set(plan["noise_conditioning_level_2"]) == {7}
    assert set(plan["stage_guidance_scale_2"]) == {1.0}
    cache = generate(cascade, plan, tmp_path / "c.h5", progress=False)
    assert cache.image_shape == (1, 12, 12)
    assert cache.provenance(0)["noise_conditioning_level_2"] == 7
    assert cache.manifest["recipe"]["settings"]["truncated"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"truncated": True},
        {"base": tiny_base(num_inference_steps=6)},
        {"stages": [replace(tiny_stage(), sampler=SamplerConfig(eta=0.5))]},
        {"stages": [replace(tiny_stage(), **sampled(scheduler="ddpm", log_variance_mix=0.3))]},
        {"stages": [tiny_stage("blur")]},
    ],
    ids=str,
)
def test_whatever_changes_the_images_changes_the_recipe(change):
    assert replace(tiny_cascade(), **change).recipe() != tiny_cascade().recipe()


def test_models_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"Stage 1 was trained on images of shape \(1, 5, 5\)"):
        Cascade(base=tiny_base(), stages=[tiny_stage(low=5)])
    stage = tiny_stage()
    other = replace(stage, model=replace(stage.model, classes=NAMES[::-1]))
    with pytest.raises(ValueError, match="They must be the same, in one order"):
        Cascade(base=tiny_base(), stages=[other])
    with pytest.raises(ValueError, match="`stages` is empty"):
        Cascade(base=tiny_base(), stages=[])
    with pytest.raises(ValueError, match="starts from noise"):
        Cascade(base=tiny_base().with_sources(real(4)), stages=[stage])
    with pytest.raises(ValueError, match="Unknown row parameter 'strength'"):
        tiny_cascade().plan(per_class=1, strength=0.5)
    with pytest.raises(ValueError, match="`stage_guidance_scale` must not be negative"):
        tiny_cascade().plan(per_class=1, stage_guidance_scale=-1)


def test_directories_that_are_no_cascade_are_named(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="is not a cascade"):
        Cascade.from_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="not a stage of a cascade"):
        Cascade.from_pretrained(tmp_path / "base", stages=[tmp_path / "base"])
    tiny_stage().save_pretrained(tmp_path / "stage")
    with pytest.raises(CheckpointError, match="takes 2 channels, of which 1 are noise"):
        ClassConditional.from_pretrained(tmp_path / "stage")
    (tmp_path / "stage" / "level_embedding" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="level_embedding cannot be read"):
        CascadeStage.from_pretrained(tmp_path / "stage")
    with pytest.raises(ValueError, match="Unknown setting 'steps'"):
        Cascade.from_pretrained(tmp_path / "base", stages=[], sampler={"steps": 3})


@pytest.mark.parametrize("augmentation", ["none", "gaussian"])
def test_stages_of_other_classes_are_not_loaded_behind_a_base(augmentation, tmp_path):
    stage = tiny_stage(augmentation)
    replace(stage, model=replace(stage.model, classes=NAMES[::-1])).save_pretrained(tmp_path / "s")
    tiny_base().save_pretrained(tmp_path / "base")
    with pytest.raises(MismatchError, match="trained on the classes dog, cat, bee, ant, in this"):
        Cascade.from_pretrained(tmp_path / "base", stages=[tmp_path / "s"])


def test_a_level_can_be_saved_as_the_stages_own(tmp_path):
    tiny_cascade().save_pretrained(tmp_path)
    chosen = Cascade.from_pretrained(tmp_path, noise_conditioning_level=120)
    chosen.save_pretrained(tmp_path)
    plan = Cascade.from_pretrained(tmp_path).plan(per_class=1)
    assert set(plan["noise_conditioning_level"]) == {120}


# -- checkpoints of others -----------------------------------------------------------------------


def test_stable_diffusions_upscaler_draws_what_its_own_pipeline_draws(tmp_path):
    pipeline = write_stable_diffusion_upscaler(tmp_path)
    stage = CascadeStage.from_pretrained(
        tmp_path, classes=["a", "b"], low_size=(8, 8), sampler={"num_inference_steps": 4}
    )
    assert (stage.max_noise_level, stage.image_shape) == (350, (3, 16, 16))
    low, levels = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([20, 20])
    labels, scale = torch.tensor([0, 1]), torch.full((2,), 3.0)
    noised = stage.add_noise(low, levels, streams([1, 2]))
    found = stage.draw(noised, levels, labels, scale, streams([3, 4]))
    wanted = pipeline(
        ["a", "b"],
        image=low,
        noise_level=20,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=streams([1, 2]),
        latents=randn(streams([3, 4]), (4, 8, 8)),
        output_type="pt",
    ).images
    torch.testing.assert_close(found, wanted * 2 - 1, rtol=1e-3, atol=1e-4)


def test_latent_super_resolution_draws_what_its_own_pipeline_draws(tmp_path):
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    changes = {"in_channels": 6, "out_channels": 3, "sample_size": 8}
    pipeline = LDMSuperResolutionPipeline(
        vqvae=VQModel(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3).eval(),
        unet=UNet2DModel.from_config({**tiny_unet(None).config, **changes}).eval(),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    stage = CascadeStage.from_pretrained(
        tmp_path, classes=["a"], low_size=(8, 8), sampler={"num_inference_steps": 3}
    )
    low, zeros = torch.rand(2, 3, 8, 8) * 2 - 1, torch.zeros(2, dtype=torch.int64)
    found = stage.draw(low, zeros, zeros, torch.ones(2), streams([1, 2]))
    wanted = pipeline(
        low, num_inference_steps=3, eta=0.0, generator=streams([1, 2]), output_type="pt"
    ).images
    torch.testing.assert_close(found, wanted * 2 - 1, rtol=1e-3, atol=1e-4)
    stage.save_pretrained(tmp_path / "ours")
    again = CascadeStage.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.draw(low, zeros, zeros, torch.ones(2), streams([1, 2])), found)


def test_a_pixel_space_network_with_the_small_image_as_channels_is_a_stage(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    network = UNet2DModel.from_config({**tiny_unet(None).config, "in_channels": 2})
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "up")
    tiny_base().save_pretrained(tmp_path / "base")
    cascade = Cascade.from_pretrained(tmp_path / "base", stages=[tmp_path / "up"])
    cascade.save_pretrained(tmp_path / "both")
    again = Cascade.from_pretrained(tmp_path / "both", sampler={"num_inference_steps": 2})
    assert again.stages[0].conditioning_augmentation == "none"
    assert again.draw(again.plan(per_class=1)).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match="this network knows no classes"):
        again.plan(per_class=1, stage_guidance_scale=2.0)


def test_checkpoints_that_condition_in_other_ways_are_refused(tmp_path):
    names = [*NAMES, "null"]
    tiny_base().save_pretrained(tmp_path)
    (tmp_path / "synthaug.json").unlink()
    with pytest.raises(CheckpointError, match="with 1 input channels"):
        CascadeStage.from_pretrained(tmp_path, classes=names, low_size=(2, 2))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "image_noising_scheduler": ["diffusers", "DDPMScheduler"]})
    )
    with pytest.raises(CheckpointError, match="whose image_noising_scheduler we cannot use"):
        CascadeStage.from_pretrained(tmp_path, classes=names, low_size=(2, 2))


# -- the command line ----------------------------------------------------------------------------


def test_a_cascade_is_trained_put_together_and_drawn_from_the_command_line(tmp_path):
    base, stage, whole, out = (tmp_path / name for name in ("base", "up", "whole", "cache.h5"))
    common = ("--steps", 2, "--width", 8, "--batch-size", 4, "--device", "cpu")
    succeed("train", "digits", base, "--image-size", 4, *common)
    succeed("train", "digits", stage, "--method", "upsample", "--low-size", 4, *common)
    assert (stage / "samples.png").exists()
    text = succeed("cascade", whole, base, stage, "--noise-conditioning-level", 70)
    assert "4 x 4 to 8 x 8 pixels" in text
    check_answer("cascade", whole, base, stage, "--noise-conditioning-level", 70)
    options = ("--per-class", 1, "--num-inference-steps", 2, "--truncated")
    succeed("generate", whole, out, *options, "--stage-guidance-scale", 2)
    cache = SynthCache(out)
    assert cache.image_shape == (1, 8, 8)
    assert cache.provenance(0)["noise_conditioning_level"] == 70
    assert cache.provenance(0)["stage_guidance_scale"] == 2
    assert set(cache.manifest["trained_on"]) == {"base", "stage_1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "digits", "OUT", "--method", "upsample"), "needs `--low-size`"),
        (("train", "digits", "OUT", "--low-size", "4"), "`--low-size` has no meaning with"),
        (("generate", "STAGE", "OUT", "--per-class", "1"), "is one stage of a cascade"),
        (
            ("generate", "WHOLE", "OUT", "--per-class", "1", "--noise-conditioning-level", "501"),
            "must be a whole number in [0, 500], got 501",
        ),
        (
            ("generate", "WHOLE", "OUT", "--strength", "0.5", "--source", "digits", "--ratio", "1"),
            "`--strength` starts from real images, which a Cascade cannot",
        ),
    ],
)
def test_what_makes_no_sense_on_the_command_line_exits_with_2(arguments, message, tmp_path):
    tiny_cascade().save_pretrained(tmp_path)
    places = {"OUT": tmp_path / "out", "STAGE": tmp_path / "stage_1", "WHOLE": tmp_path}
    assert message in fail(2, *(places.get(argument, argument) for argument in arguments))
