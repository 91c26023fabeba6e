"""Cold diffusion: what the algorithms promise for any restorer, and the synthesizer around them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import synthaug
from synthaug import TrainingConfig, generate
from synthaug.degradations import (
    Blur,
    Custom,
    Decolorization,
    GaussianNoise,
    Inpainting,
    Snow,
    SuperResolution,
)
from synthaug.denoisers import build_unet
from synthaug.errors import CheckpointError, DataError, MismatchError
from synthaug.synthesizers import ColdDiffusion, streams
from synthaug.synthesizers.cold._colors import ColorMixture
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.cold._fit import ColdFitJob
from synthaug.synthesizers.cold._sampling import restore, visited_levels
from tests.checkpoints import Counting, tiny_unet
from tests.degradations import ALL, ids
from tests.images import to_images, to_pixels
from tests.tiny.cold import NAMES, Real, generator, tiny

SHAPE = (3, 16, 16)
every = pytest.mark.parametrize("degradation", ALL, ids=ids)


def random_images(n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(n, *shape, dtype=torch.float64, generator=generator) - 1


def know_nothing(x: Tensor, s: Tensor) -> Tensor:
    """A restorer that is wrong at every level in another way, also in the size of its values."""
    return (x.roll(1, -1) * 3).sin() * 2 + s.view(-1, 1, 1, 1)


# -- the algorithms ------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("algorithm", ["improved", "naive", "direct"])
@pytest.mark.parametrize("num_steps", [None, 3])
def test_a_perfect_restorer_returns_the_image_from_every_level(degradation, algorithm, num_steps):
    s = torch.arange(degradation.num_levels + 1)
    x0 = random_images(len(s))
    r = degradation.realize(streams(range(len(s))), SHAPE)

    def oracle(x: Tensor, levels: Tensor) -> Tensor:
        return x0[-len(x) :]  # later steps hold the rows that started highest

    result = restore(
        oracle, degradation, degradation(x0, s, r), s, r, algorithm=algorithm, num_steps=num_steps
    )
    torch.testing.assert_close(result.x0, x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(result.prediction, x0, atol=1e-12, rtol=0)


def test_a_degradation_linear_in_the_level_is_inverted_by_any_restorer_with_algorithm_2():
    e = 5 * random_images(1)
    degradation = Custom(name="line", num_levels=9, function=lambda x, s, _: x + s * e)
    x0, s = random_images(10), torch.arange(10)
    x_s = degradation(x0, s)
    for num_steps in (None, 4):
        result = restore(know_nothing, degradation, x_s, s, {}, num_steps=num_steps)
        torch.testing.assert_close(result.x0, x0, atol=1e-12, rtol=0)
        assert (result.prediction - x0)[1:].abs().max() > 1
    naive = restore(know_nothing, degradation, x_s, s, {}, algorithm="naive")
    assert torch.equal(naive.x0, naive.prediction)
    assert (naive.x0 - x0)[1:].abs().max() > 1


def test_errors_of_the_restorer_telescope_under_algorithm_2():
    """With D(x, s) = A_s x and R = x_0 + d_s the error is exactly -sum_s (A_s - A_{s-1}) d_s."""
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(8, 16, 16, dtype=torch.float64, generator=generator)
    A[0] = torch.eye(16)
    errors = torch.randn(8, *SHAPE, dtype=torch.float64, generator=generator)
    degradation = Custom(
        name="matrices", num_levels=7, function=lambda x, s, _: A[s[:, 0, 0, 0], None] @ x
    )
    x0 = random_images(1)
    result = restore(
        lambda x, s: x0 + errors[s], degradation, degradation(x0, 7), torch.tensor([7]), {}
    )
    expected = -((A[1:] - A[:-1])[:, None] @ errors[1:]).sum(0, keepdim=True)
    torch.testing.assert_close(result.x0 - x0, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("exact_mean", [False, True])
def test_algorithm_2_keeps_channel_means_under_circular_blur_whatever_the_network(exact_mean):
    blur = Blur(num_levels=12, padding="circular", exact_mean=exact_mean)
    x0 = random_images(3)
    s = torch.tensor([12, 7, 1])
    for algorithm, kept in (("improved", True), ("naive", False)):
        result = restore(know_nothing, blur, blur(x0, s), s, {}, algorithm=algorithm)  # type: ignore[arg-type]
        change = (result.x0.mean((2, 3)) - x0.mean((2, 3))).abs()
        assert (change.max() < 1e-13) == kept


def test_with_a_network_the_mean_is_kept_in_float32_too():
    cold = tiny(degradation=Blur(num_levels=20, padding="circular", kernel_size=5))
    x0 = random_images(2, (3, 8, 8)).float()
    x_s = cold.degradation(x0, 20)
    result = cold.restore(x_s, 20)
    torch.testing.assert_close(result.x0.mean((2, 3)), x0.mean((2, 3)), atol=1e-5, rtol=0)
    assert (result.prediction.mean((2, 3)) - x0.mean((2, 3))).abs().max() > 1e-3


def test_levels_are_visited_one_by_one_or_in_even_steps_that_never_repeat():
    assert visited_levels(torch.tensor([3, 0, 1]), None).tolist() == [
        [3, 2, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
    ]
    s = torch.arange(1, 41)
    for num_steps in (1, 2, 7, 40, 100):
        levels = visited_levels(s, num_steps)
        assert (levels[:, 0] == s).all()
        assert (levels[:, -1] == 0).all()
        fell = levels.diff(dim=1)
        assert ((fell < 0) | (levels[:, :-1] == 0)).all()
        assert ((levels > 0).sum(1) == s.clamp(max=num_steps)).all()
        assert ((fell.amin(1) - fell.masked_fill(fell == 0, -99).amax(1)) >= -1).all()


# -- the synthesizer -----------------------------------------------------------------------------


def view(images: Tensor, severity: float = 0.5) -> Tensor:
    return tiny().degrade_and_restore(images, severity=[severity], seeds=[0])


class Seeing(torch.nn.Module):
    """Keeps what the network is given."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = network
        self.given: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, **arguments: Any) -> Any:
        self.given.append((x.clone(), t.clone()))
        return self._orig_mod(x, t, **arguments)


def test_the_network_is_told_the_level_below_from_the_start_level_on():
    seeing = Seeing(tiny_unet(num_classes=None, channels=3))
    cold = tiny(network=seeing)
    cold.degrade_and_restore(random_images(2, (3, 8, 8)), severity=[0.4, 0.2], seeds=[1, 2])
    assert [t.tolist() for _, t in seeing.given] == [[3, 1], [2, 0], [1], [0]]


def test_the_result_is_the_recursions_own_image_or_the_last_prediction_as_asked():
    x0, seeds = random_images(2, (3, 8, 8)).float(), [1, 2]
    cold = tiny()
    s = cold.levels([0.5, 0.3])
    both = cold.restore(cold.degradation(x0, s), s)
    for output, expected in (("recursion", both.x0), ("prediction", both.prediction)):
        shown = tiny(output=output).degrade_and_restore(x0, severity=[0.5, 0.3], seeds=seeds)
        torch.testing.assert_close(shown, expected.clamp(-1, 1))
    assert (both.x0 - both.prediction).abs().max() > 0.1


def test_severity_is_the_share_of_the_levels_and_at_least_one():
    assert tiny().levels([1.0, 0.5, 0.26, 0.001]).tolist() == [10, 5, 3, 1]


@pytest.mark.parametrize("degradation", [Inpainting(num_levels=10), Snow(num_levels=10)])
def test_a_row_does_not_depend_on_the_rows_drawn_with_it(degradation):
    cold = tiny(degradation=degradation).with_sources(Real())
    plan = cold.plan(per_class=6, severity=[0.2, 0.5, 1.0])
    together = to_pixels(cold.draw(plan)).int()
    order = np.random.default_rng(0).permutation(len(plan))
    shuffled = to_pixels(cold.draw(plan[order])).int()
    alone = torch.cat([to_pixels(cold.draw(row)).int() for row in plan.batches(1)])
    assert (together - alone).abs().max() <= 1
    assert (together[torch.from_numpy(order)] - shuffled).abs().max() <= 1
    keys = plan["source_key"]
    same = [np.flatnonzero((keys == k) & (plan["severity"] == 1.0)) for k in np.unique(keys)]
    for rows in same:  # same image, same severity: another draw of the degradation
        assert len(rows) < 2 or (together[rows[0]] != together[rows[1]]).any()


@pytest.mark.parametrize(
    "settings", [{}, {"num_steps": 2}, {"algorithm": "direct"}, {"algorithm": "naive"}], ids=str
)
def test_the_estimate_of_evaluations_is_what_the_network_sees(settings):
    counting = Counting(tiny_unet(num_classes=None, channels=3))
    cold = tiny(network=counting, **settings).with_sources(Real())
    plan = cold.plan(per_class=3, severity=[0.1, 0.4])
    cold.draw(plan)
    assert counting.images == cold.evaluations(plan).sum()


@pytest.mark.parametrize(
    "degradation", [Blur(num_levels=4, kernel_size=5), Inpainting(num_levels=4), Snow(num_levels=4)]
)
def test_restoring_happens_on_the_device_of_the_network(degradation):
    network = tiny_unet(num_classes=None, channels=3).to("meta")
    cold = tiny(network=network, degradation=degradation, num_steps=2)
    views = cold.degrade_and_restore(
        random_images(3, (3, 8, 8)), severity=[0.1, 0.5, 1.0], seeds=[0, 1, 2]
    )
    assert (views.device.type, views.shape) == ("meta", (3, 3, 8, 8))


def test_a_little_severity_changes_an_image_less_than_much():
    cold = tiny().with_sources(Real())
    plan = cold.plan(per_class=6, severity=[0.1, 1.0])
    real = to_images(Real().read(plan["source"]))
    change = (cold.draw(plan) - real).abs().mean((1, 2, 3)).numpy()
    assert change[plan["severity"] == 0.1].mean() < 0.5 * change[plan["severity"] == 1.0].mean()


def test_restored_views_fill_a_cache_with_label_source_and_severity(tmp_path):
    cold = tiny().with_sources(Real())
    plan = cold.plan(ratio=2, severity=[0.2, 0.4])
    cache = generate(cold, plan, tmp_path / "views.h5", batch_size=5, progress=False)
    assert len(cache) == 12
    for i in range(12):
        row = cache.plan.row(i)
        assert Real().targets[int(row["source"])] == cache.labels[i]
        assert row["severity"] in (0.2, 0.4)
    again = generate(cold, plan, tmp_path / "again.h5", batch_size=12, progress=False)
    difference = cache.read(range(12)).int() - again.read(range(12)).int()
    assert difference.abs().max() <= 1


def test_views_can_be_trained_on():
    views = tiny().degrade_and_restore(
        random_images(2, (3, 8, 8)), severity=[0.2, 0.2], seeds=[0, 1]
    )
    weight = torch.ones(3, requires_grad=True)
    (views * weight.view(3, 1, 1)).square().sum().backward()
    assert weight.grad is not None
    assert views.dtype == torch.float32


# -- generation ----------------------------------------------------------------------------------


def test_generation_starts_from_a_color_of_the_mixture_and_noise_that_8_bits_would_lose():
    seeing = Seeing(tiny_unet(num_classes=None, channels=3))
    cold = generator(network=seeing)
    plan = cold.plan(counts={"image": 200})
    cold.draw(plan)
    x, t = seeing.given[0]
    assert (t == 5).all()
    color = x.mean((2, 3))
    noise = x - color[:, :, None, None]
    assert float(noise.std()) == pytest.approx(0.002, rel=0.05)
    rounded = to_images(to_pixels(x))
    usual = rounded.flatten(2).median(2).values[:, :, None, None]
    assert (rounded == usual).float().mean() > 0.7
    assert color.mean(0).tolist() == pytest.approx([0.1, -0.2, 0.3], abs=0.04)
    np.testing.assert_allclose(np.cov(color.T), cold.colors.covariances[0], atol=0.006)  # type: ignore[union-attr]
    seeing.given.clear()
    cold.draw(plan)
    assert torch.equal(seeing.given[0][0], x)


def test_without_that_noise_the_start_is_one_exact_color():
    seeing = Seeing(tiny_unet(num_classes=None, channels=3))
    cold = generator(network=seeing, symmetry_noise=0.0)
    cold.draw(cold.plan(per_class=4))
    x, _ = seeing.given[0]
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
    assert len(x[:, :, 0, 0].unique(dim=0)) == 4


def test_algorithm_2_generates_an_image_of_the_color_that_it_started_from():
    cold = generator()
    x_T = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    result = cold.restore(x_T, 6)
    torch.testing.assert_close(result.x0.mean((2, 3)), x_T[:, :, 0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "degradation",
    [
        Inpainting(num_levels=5, center="middle", fill="color"),
        GaussianNoise(num_levels=5),
        Custom(name="black", num_levels=5, function=lambda x, s, _: x * (1 - s / 5) - s / 5,
               remains="nothing"),
    ],
    ids=["hole", "noise", "custom"],
)  # fmt: skip
def test_where_the_last_level_leaves_nothing_generation_starts_from_the_realization(degradation):
    seeing = Seeing(tiny_unet(num_classes=None, channels=3))
    cold = tiny(network=seeing, degradation=degradation, classes=["image"], symmetry_noise=0.0)
    cold = replace(cold, classes=("image",))
    plan = cold.plan(per_class=3)
    assert cold.draw(plan).shape == (3, 3, 8, 8)
    r = degradation.realize(streams(plan["seed"]), (3, 8, 8))
    expected = degradation(torch.ones(3, 3, 8, 8), 5, r)
    torch.testing.assert_close(seeing.given[0][0], expected)


def test_a_mixture_of_colors_finds_the_groups_and_gives_them_back():
    mixing = np.array([[0.05, 0.05, 0.0], [0.0, 0.01, 0.0], [0.0, 0.0, 0.03]])
    draws = np.random.default_rng(0).normal(size=(600, 3)) @ mixing
    colors = draws + np.where(np.arange(600) % 3 == 0, 0.5, -0.5)[:, None]
    mixture = ColorMixture.fit(colors, 2, seed=0)
    mixture = ColorMixture.from_config(json.loads(json.dumps(mixture.config())))
    drawn = mixture.sample(streams(range(600)))
    assert torch.equal(mixture.sample(streams([7])), drawn[7:8])
    high = drawn[:, 0] > 0
    assert float(high.float().mean()) == pytest.approx(1 / 3, abs=0.06)
    for group, center in ((drawn[high], 0.5), (drawn[~high], -0.5)):
        assert group.mean(0).tolist() == pytest.approx([center] * 3, abs=0.02)
        np.testing.assert_allclose(np.cov(group.T), mixing.T @ mixing, atol=6e-4)
    with pytest.raises(ValueError, match=r"`color_components` must be in \[1, 600\]"):
        ColorMixture.fit(colors, 601, seed=0)


# -- files and identity --------------------------------------------------------------------------


def test_saved_and_loaded_it_draws_the_same_images(tmp_path):
    before = generator(algorithm="naive", output="prediction", num_steps=4)
    before.save_pretrained(tmp_path)
    after = ColdDiffusion.from_pretrained(tmp_path, device="cpu")
    plan = before.plan(per_class=3)
    assert after.recipe() == before.recipe()
    assert torch.equal(after.draw(plan), before.draw(plan))
    changed = ColdDiffusion.from_pretrained(tmp_path, num_steps=2, classes=["bug"], device="cpu")
    assert (changed.num_steps, changed.algorithm, changed.classes) == (2, "naive", ("bug",))


def test_plain_diffusers_loads_the_network(tmp_path):
    from diffusers import UNet2DModel

    cold = tiny()
    cold.save_pretrained(tmp_path)
    network = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    for name, weight in cold.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)


@pytest.mark.parametrize(
    "change",
    [
        {"degradation": Blur(num_levels=11, kernel_size=5)},
        {"degradation": SuperResolution()},
        {"algorithm": "naive"},
        {"output": "prediction"},
        {"num_steps": 3},
        {"symmetry_noise": 0.0},
        {"network": tiny_unet(num_classes=None, channels=3).requires_grad_(False).double()},
        {"colors": ColorMixture.fit(np.random.default_rng(0).random((9, 3)), 1, seed=0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_images_changes_the_recipe(change):
    json.dumps(tiny(**change).recipe(), allow_nan=False)
    assert tiny(**change).recipe() != tiny().recipe()


def test_a_degradation_of_ones_own_is_named_in_the_checkpoint_and_given_again(tmp_path):
    mine = Custom(name="fade", num_levels=4, function=lambda x, s, _: x * (1 - s / 4))
    cold = tiny(degradation=mine)
    cold.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="trained with the degradation 'fade', which cannot"):
        ColdDiffusion.from_pretrained(tmp_path)
    assert ColdDiffusion.from_pretrained(tmp_path, degradation=mine).recipe() == cold.recipe()
    with pytest.raises(MismatchError, match="not with"):
        ColdDiffusion.from_pretrained(tmp_path, degradation=replace(mine, name="other"))


def test_checkpoints_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="There is no directory"):
        ColdDiffusion.from_pretrained(tmp_path / "nothing")
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Unknown setting 'severity'"):
        ColdDiffusion.from_pretrained(tmp_path, severity=0.3)
    own = json.loads((tmp_path / "synthaug.json").read_text())
    (tmp_path / "synthaug.json").write_text(json.dumps({**own, "image_shape": None}))
    with pytest.raises(CheckpointError, match=r"synthaug\.json is damaged"):
        ColdDiffusion.from_pretrained(tmp_path)
    (tmp_path / "synthaug.json").write_text(json.dumps({"synthesizer": "ClassConditional"}))
    with pytest.raises(MismatchError, match="of cold diffusion, but of ClassConditional"):
        ColdDiffusion.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="takes 1 channels and class labels"):
        tiny(network=tiny_unet())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(algorithm="best"), "`algorithm` must be one of 'improved', 'naive'"),
        (lambda: tiny(output="x0"), "`output` must be one of 'recursion', 'prediction', got 'x0'"),
        (lambda: tiny(num_steps=0), "`num_steps` must be at least 1, got 0"),
        (lambda: tiny(symmetry_noise=-1), r"`symmetry_noise` must be in \[0, 1\), got -1"),
        (lambda: view(random_images(1)), r"`images` has shape \(1, 3, 16, 16\); this restorer was"),
        (lambda: view(random_images(1, (3, 8, 8)), 1.1), r"`s` must be in \[0, 10\], got 11"),
        (lambda: tiny().plan(per_class=1), "cannot be generated from the last level of Blur"),
        (lambda: generator(classes=NAMES).plan(per_class=1), "would bear random labels"),
        (lambda: generator().plan(per_class=1, severity=0.5), "`severity` needs `with_sources`"),
        (lambda: tiny().with_sources(Real()).plan(per_class=1, strength=1), "known: severity"),
        (lambda: tiny().with_sources(Real()).plan(per_class=1, severity=0), r"in \(0, 1\], got 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_changed_or_missing_source_image_is_noticed():
    cold = tiny().with_sources(Real())
    plan = cold.plan(per_class=2)
    with pytest.raises(
        MismatchError, match="Real image 0 is not the one that the plan was made with"
    ):
        tiny().with_sources(Real(seed=1)).draw(plan)
    with pytest.raises(ValueError, match="Call `with_sources"):
        tiny().draw(plan)
    with pytest.raises(
        MismatchError, match=r"have shape \(3, 8, 8\), the model draws \(3, 16, 16\)"
    ):
        tiny(image_shape=(3, 16, 16)).with_sources(Real())
    with pytest.raises(ValueError, match="about the classes ant, bee; this synthesizer"):
        generator().draw(plan)


# -- training ------------------------------------------------------------------------------------


def fit(path: Path, real: Any = None, steps: int = 4, **arguments: Any) -> ColdDiffusion:
    config = TrainingConfig(
        steps=steps, batch_size=4, warmup_steps=1, ema_decay=0.5, device="cpu", seed=3
    )
    arguments = {"degradation": Inpainting(num_levels=5, std_step=0.5), **arguments}
    return ColdDiffusion.fit(
        Real() if real is None else real,
        path,
        config=config,
        channels=8,
        progress=False,
        **arguments,
    )[0]


def test_training_resumed_equals_training_in_one_go(tmp_path):
    whole = fit(tmp_path / "whole", steps=4)
    fit(tmp_path / "parts", steps=2)
    parts = fit(tmp_path / "parts", steps=4)
    assert parts.recipe() == whole.recipe()
    assert ColdDiffusion.from_pretrained(tmp_path / "parts", device="cpu").recipe() == (
        whole.recipe()
    )
    with pytest.raises(MismatchError, match=r"degradation\.name: .* there, .*Snow"):
        fit(tmp_path / "parts", degradation=Snow(num_levels=5))


def test_training_teaches_the_restorer_what_was_taken_away(tmp_path):
    """Images of one color each, red or blue by their brightness: the color can be guessed."""
    real = Real()
    real.pixels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    real.pixels[:3, 0], real.pixels[3:, 2] = 200, 90
    config = TrainingConfig(
        steps=100, batch_size=8, warmup_steps=10, learning_rate=3e-3, ema_decay=0.9, device="cpu"
    )
    cold, result = ColdDiffusion.fit(
        real,
        tmp_path,
        degradation=Decolorization(num_levels=4),
        config=config,
        channels=8,
        progress=False,
    )
    assert result.loss_curve[-1][1] < 0.25 * result.loss_curve[0][1]
    x0 = to_images(real.pixels)
    for algorithm in ("improved", "naive", "direct"):
        cold = replace(cold, algorithm=algorithm)
        gray = cold.degradation(x0, 4)
        error = (cold.restore(gray, 4).x0 - x0).abs().mean()
        assert error < 0.3 * (gray - x0).abs().mean()


def test_the_restorer_is_trained_on_all_levels_alike_at_the_times_that_it_is_asked_about():
    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, return_dict: bool) -> Any:
            self.given = x, t
            return (torch.zeros_like(x),)

    real, hole = Real(), Inpainting(num_levels=6, center="middle", std_step=0.7)
    job = ColdFitJob(real, hole, RestorerConfig(channels=8), seed=0)
    recorder = Recorder()
    indices = np.arange(60) % 6
    loss = job._loss(recorder, indices)
    x, (x_s, t) = to_images(real.read(indices)), recorder.given
    torch.testing.assert_close(x_s, hole(x, t + 1))
    assert torch.bincount(t).tolist() == [10] * 6
    torch.testing.assert_close(loss, x.abs().mean())


def test_fitting_also_learns_the_colors_that_the_last_level_leaves(tmp_path):
    real = Real()
    blur = Blur(num_levels=4, kernel_size=5, exact_mean=True)
    cold = fit(tmp_path, real, steps=1, degradation=blur)
    means = to_images(real.pixels).mean((2, 3)).numpy()
    assert cold.colors is not None
    np.testing.assert_allclose(cold.colors.means[0], means.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        cold.colors.covariances[0], np.cov(means.T, bias=True) + 1e-6 * np.eye(3), atol=1e-6
    )
    assert fit(tmp_path / "none", real, steps=1).colors is None


def test_what_cannot_be_trained_on_is_refused_before_any_work(tmp_path):
    empty = Real()
    empty.targets = []
    with pytest.raises(DataError, match="no images to train on"):
        fit(tmp_path / "run", empty)
    with pytest.raises(ValueError, match="8 pixels cannot be halved 4 times"):
        fit(tmp_path / "run", degradation=SuperResolution(num_levels=4))
    with pytest.raises(ValueError, match="`channels` must be at least 1, got 0"):
        ColdDiffusion.fit(Real(), tmp_path / "run", degradation=Snow(), channels=0)
    assert not (tmp_path / "run").exists()


def test_a_network_without_classes_is_built_on_request():
    network = build_unet((3, 8, 8), num_classes=None, channels=8)
    assert network.config.num_class_embeds is None
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 8, 8), 5).sample.shape == (1, 3, 8, 8)


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs/cold_diffusion.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {"synthaug": synthaug, "real": Real(), "images": Real().pixels}
    quick = 'steps=1, device="cpu", batch_size=4'
    for block in blocks:
        code = block.replace("steps=20_000", quick).replace("Blur(", "Blur(kernel_size=5, ")
        exec(code.replace('"runs/', f'"{tmp_path}/'), names)
    assert names["images"].shape == (8, 3, 8, 8)
    assert len(names["cache"]) == 12
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(names["fading"](x, 5), 0.75 * x)
