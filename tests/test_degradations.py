"""Degradations: what they compute, against references, and what the recursion relies on."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug import degradations
from synthaug.degradations import (
    Animorphosis,
    Blur,
    Custom,
    Decolorization,
    GaussianNoise,
    Inpainting,
    Snow,
    SuperResolution,
)
from synthaug.errors import CheckpointError
from synthaug.synthesizers import streams
from tests.degradations import ALL, Others, ids
from tests.images import to_pixels

SHAPE = (3, 16, 16)


every = pytest.mark.parametrize("degradation", ALL, ids=ids)


def images(n: int = 3, shape: tuple[int, ...] = SHAPE, dtype: Any = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(n, *shape, dtype=dtype, generator=generator) - 1


def realized(degradation: Any, n: int = 3) -> Any:
    return degradation.realize(streams(range(n)), SHAPE)


@every
def test_level_0_is_the_image_to_the_bit_also_beyond_the_range_of_images(degradation):
    x = 3 * images()
    assert torch.equal(degradation(x, 0, realized(degradation)), x)


@every
def test_it_is_a_pure_function_of_image_level_and_realization(degradation):
    x, r = images(), realized(degradation)
    kept, before = x.clone(), {name: value.clone() for name, value in r.items()}
    first = degradation(x, 4, r)
    assert torch.equal(degradation(x, 4, r), first)
    assert torch.equal(x, kept)
    assert all(torch.equal(r[name], before[name]) for name in before)
    assert (first - x).abs().max() > 0.01


@every
def test_every_image_of_a_batch_has_its_own_level_and_realization(degradation):
    x, r = images(degradation.num_levels + 1), realized(degradation, degradation.num_levels + 1)
    together = degradation(x, torch.arange(len(x)), r)
    for s in range(len(x)):
        row = {name: value[s : s + 1] for name, value in r.items()}
        alone = degradation(x[s : s + 1], s, row)
        torch.testing.assert_close(together[s : s + 1], alone, atol=1e-5, rtol=0)


@every
def test_the_realization_of_an_image_comes_from_its_own_stream(degradation):
    together = degradation.realize(streams([7, 8, 9]), SHAPE)
    alone = degradation.realize(streams([8]), SHAPE)
    assert together.keys() == alone.keys()
    for name, value in together.items():
        assert torch.equal(value[1:2], alone[name])
        assert len(value) == 3
    if together and degradation.__class__ is not Animorphosis:  # of five images two may be one
        many = degradation.realize(streams(range(20)), SHAPE)
        assert any(len(value.flatten(1).unique(dim=0)) > 10 for value in many.values())


@every
def test_autocast_does_not_make_it_coarser(degradation):
    x, r = images(), realized(degradation)
    exact = degradation(x, 4, r)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(degradation(x, 4, r), exact)
    assert degradation(x.bfloat16(), 4, r).dtype == torch.float32


@every
def test_everything_happens_on_the_device_of_the_images(degradation):
    r = {name: value.to("meta") for name, value in realized(degradation).items()}
    found = degradation(images().to("meta"), torch.tensor([0, 1, 4]), r)
    assert (found.device.type, found.shape) == ("meta", (3, *SHAPE))


@every
def test_what_the_last_level_leaves_is_as_announced(degradation):
    r, T = realized(degradation), degradation.num_levels
    one, other = degradation(images(), T, r), degradation(-images(), T, r)
    spread = (one - one.mean((2, 3), keepdim=True)).abs().max()
    leaves = degradation.leaves(SHAPE)
    assert torch.equal(one, other) == (leaves == "nothing")
    if leaves != "nothing":
        assert (spread < 1e-6) == (leaves == "color")


# -- blur ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["reflect", "circular", "replicate"])
def test_one_pass_of_blur_equals_the_convolutions_one_after_another(padding):
    blur = Blur(num_levels=6, kernel_size=7, std=0.5, rate=0.4, padding=padding)
    x = images(2, (3, 12, 9), torch.float64)
    composed = x
    for i in range(blur.num_levels):
        kernel = torch.outer(blur.step_kernel(i), blur.step_kernel(i)).expand(3, 1, 7, 7)
        composed = F.conv2d(F.pad(composed, [3] * 4, mode=padding), kernel, groups=3)
        torch.testing.assert_close(blur(x, i + 1), composed, atol=1e-13, rtol=0)


def test_the_transfer_function_of_a_level_is_the_product_of_its_steps():
    blur = Blur(num_levels=10, std=1.0, rate=0.3, padding="circular")
    impulse = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    impulse[..., 0, 0] = 1
    product = torch.ones(32, 32, dtype=torch.complex128)
    for s in range(1, 11):
        kernel = torch.zeros(32, dtype=torch.float64)
        kernel[torch.arange(-5, 6)] = blur.step_kernel(s - 1)  # negative indices wrap, as it does
        step = torch.fft.fft(kernel)
        product = product * step[:, None] * step
        found = torch.fft.fft2(blur(impulse, s)[0, 0])
        torch.testing.assert_close(found, product, atol=1e-14, rtol=0)


def test_variances_of_the_kernels_add_up_to_that_of_the_impulse_response():
    blur = Blur(num_levels=20, kernel_size=11, std=7.0, schedule="constant", padding="circular")
    impulse = torch.zeros(1, 1, 256, 1, dtype=torch.float64)
    impulse[0, 0, 128] = 1
    place = torch.arange(256, dtype=torch.float64) - 128
    taps = torch.arange(-5, 6)
    one = float((blur.step_kernel(0) * taps**2).sum())
    for s in (1, 7, 20):
        response = blur(impulse, s)[0, 0, :, 0]
        assert float((response * place**2).sum()) == pytest.approx(s * one, rel=1e-5)
    # The figures of the paper's settings for MNIST: nominal and, cut off at 11 taps, true.
    assert math.sqrt(20) * 7 == pytest.approx(31.3, abs=0.05)
    assert math.sqrt(20 * one) == pytest.approx(13.6, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "nominal", "true"),
    [
        ({}, 4.33, 4.18),
        ({"num_levels": 200, "kernel_size": 15, "std": 1.0, "schedule": "exponential"}, 51.5, 39.3),
        ({"num_levels": 300, "kernel_size": 27, "std": 1.0, "schedule": "exponential"}, 141, 86.0),
    ],
    ids=["CIFAR-10", "CelebA", "CelebA generation"],
)
def test_the_schedules_of_the_paper_reach_their_known_widths(settings, nominal, true):
    blur = Blur(**settings)
    steps = range(blur.num_levels)
    taps = torch.arange(blur.kernel_size) - blur.kernel_size // 2
    variances = [float((blur.step_kernel(i) * taps**2).sum()) for i in steps]
    assert math.sqrt(sum(blur.step_std(i) ** 2 for i in steps)) == pytest.approx(nominal, rel=4e-3)
    assert math.sqrt(sum(variances)) == pytest.approx(true, rel=4e-3)


def test_circular_blur_keeps_the_mean_of_each_channel_and_reflecting_blur_does_not():
    x = images(dtype=torch.float64)
    x[:, :, 0] += 1  # something at the border
    change = {}
    for padding in ("circular", "reflect"):
        blurred = Blur(num_levels=8, std=2.0, padding=padding)(x, 8)
        change[padding] = float((blurred.mean((2, 3)) - x.mean((2, 3))).abs().max())
    assert change["circular"] < 1e-15
    assert change["reflect"] > 1e-3


# -- super-resolution, color --------------------------------------------------------------------


def test_super_resolution_is_torch_resizing_composed():
    degradation = SuperResolution(num_levels=4)
    x = images(2, (3, 32, 16), torch.float64)
    composed = x
    for s in range(1, 5):
        small = F.interpolate(composed, size=(32 >> s, 16 >> s), mode="bicubic")
        composed = F.interpolate(small, size=(32, 16), mode="nearest-exact")
        torch.testing.assert_close(degradation(x, s), composed, atol=1e-13, rtol=0)
        turned = degradation(x.flip(-1, -2), s).flip(-1, -2)
        torch.testing.assert_close(turned, composed, atol=1e-13, rtol=0)


def test_a_half_resolution_pixel_has_the_known_bicubic_weights():
    ramp = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    ramp[..., 3] = 1  # a column; half-way between samples the weights are -3/32 and 19/32 (a=-3/4)
    row = SuperResolution(num_levels=1)(ramp, 1)[0, 0, 0]
    expected = torch.tensor([0, 0, 19, 19, -3, -3, 0, 0], dtype=torch.float64) / 32
    torch.testing.assert_close(row, expected)


def test_decolorization_keeps_the_mean_of_the_channels_and_loses_chroma_linearly():
    x = images()
    degradation = Decolorization(num_levels=20)
    chroma = x - x.mean(1, keepdim=True)
    for s in (1, 10, 20):
        gray = degradation(x, s)
        torch.testing.assert_close(gray.mean(1), x.mean(1))
        torch.testing.assert_close(gray - gray.mean(1, keepdim=True), (1 - s / 20) * chroma)
    with pytest.raises(
        ValueError, match="Images of 1 channels have no color that could be removed"
    ):
        degradation(x[:, :1], 1)


# -- holes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", ["random", "middle"])
def test_the_hole_is_the_product_of_its_masks_around_its_center(center):
    hole = Inpainting(num_levels=9, std_step=0.3, center=center)
    x, r = images(), realized(hole)
    for i in range(3):
        row, column = r["center"][i].tolist() if center == "random" else (7, 7)
        y, z = torch.meshgrid(torch.arange(16) - row, torch.arange(16) - column, indexing="ij")
        mask = torch.ones(16, 16)
        for k in range(9):
            mask = mask * (1 - torch.exp(-(y**2 + z**2) / (2 * (0.3 * (k + 1)) ** 2)))
            found = hole(x, k + 1, r)[i]
            torch.testing.assert_close(found, x[i] * mask, atol=1e-6, rtol=0)


def test_what_is_lost_is_middle_gray_and_not_black():
    hole = Inpainting(center="middle")
    x = torch.full((1, 3, 16, 16), 0.9)
    assert (hole(x, 1)[0, :, 7, 7] == 0).all()
    assert (to_pixels(hole(x, 50))[0, :, 7, 7] == 128).all()  # 127.5 to the nearest even level


def test_a_hole_may_be_anywhere_and_its_color_is_within_half_of_the_range():
    many = Inpainting(fill="color").realize(streams(range(400)), (3, 4, 5))
    assert {tuple(c) for c in many["center"].tolist()} == {
        (y, x) for y in range(4) for x in range(5)
    }
    assert -0.5 <= many["color"].min() < -0.48
    assert 0.48 < many["color"].max() <= 0.5


# -- snow ----------------------------------------------------------------------------------------


def snowed(snow: Snow, image: np.ndarray, s: int, field: np.ndarray, vertical: bool) -> np.ndarray:
    """The recipe, step by step, for one image (3, H, W) in [-1, 1]."""
    share = (s - 1) / (snow.num_levels - 1)
    threshold, std, bright = (
        a + share * (b - a) for a, b in (snow.threshold, snow.motion_std, snow.brightness)
    )
    layer = np.where(field > threshold, field, 0).clip(0, 1)
    layer = layer.T if vertical else layer
    weights = np.exp(-((np.arange(2 * snow.motion_radius + 1) / std) ** 2) / 2)
    blurred = np.zeros_like(layer)
    for y in range(len(layer)):
        for x in range(len(layer)):
            for j, weight in enumerate(weights / weights.sum()):
                blurred[y, x] += weight * layer[y, min(x + j, len(layer) - 1)]
    blurred = blurred.T if vertical else blurred
    unit = (image + 1) / 2
    gray = 0.299 * unit[0] + 0.587 * unit[1] + 0.114 * unit[2]
    unit = bright * unit + (1 - bright) * np.maximum(unit, 1.5 * gray + 0.5)
    unit = unit + blurred + blurred[::-1, ::-1]
    return 2 * unit.clip(0, 1) - 1


def test_snow_is_the_recipe_applied_to_the_clean_image_at_every_level():
    snow = Snow(num_levels=20)
    x, r = images(6, dtype=torch.float64) * 0.5, realized(snow, 6)
    assert r["vertical"].any()
    assert not r["vertical"].all()
    for s in (1, 8, 20):
        found = snow(x, s, r)
        for i in range(6):
            expected = snowed(
                snow, x[i].numpy(), s, r["field"][i, 0].double().numpy(), bool(r["vertical"][i])
            )
            np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-6)


def test_gray_images_can_be_snowed_on_too():
    snow = Snow(num_levels=5)
    x = images(2)
    x[:, 1:] = x[:, :1]
    r = realized(snow, 2)
    torch.testing.assert_close(snow(x[:, :1], 3, r), snow(x, 3, r)[:, :1])


# -- towards other images ------------------------------------------------------------------------


def test_animorphosis_and_noise_follow_the_cosine_schedule_and_end_at_the_other_image():
    others = Others()
    for degradation in (Animorphosis(others=others), GaussianNoise()):
        x, r = images(), realized(degradation)
        signal = math.cos((0.25 + 0.008) / 1.008 * math.pi / 2) / math.cos(
            0.008 / 1.008 * math.pi / 2
        )
        expected = signal * x + math.sqrt(1 - signal**2) * r["other"]
        torch.testing.assert_close(degradation(x, 50, r), expected)
        assert torch.equal(degradation(x, 200, r), r["other"])
    found = to_pixels(realized(Animorphosis(others=others), 40)["other"])
    assert len(found.flatten(1).unique(dim=0)) == 5
    assert all((found[i] == others.pixels).flatten(1).all(1).any() for i in range(40))


# -- descriptions and refusals -------------------------------------------------------------------


@every
def test_a_description_makes_the_same_degradation_or_says_that_it_cannot(degradation):
    text = json.loads(json.dumps(degradation.config(), allow_nan=False))
    if isinstance(degradation, Animorphosis | Custom):
        with pytest.raises(CheckpointError, match="Make the same one and pass it"):
            degradations.from_config(text)
    else:
        assert degradations.from_config(text) == degradation
        assert degradations.from_config(text).config() == degradation.config()


def test_descriptions_tell_degradations_apart():
    texts = {json.dumps(degradation.config()) for degradation in ALL}
    assert len(texts) == len(ALL)
    small = Animorphosis(others=Others(8), num_levels=8)
    assert small.config() != Animorphosis(others=Others(), num_levels=8).config()


def test_degradations_have_short_names():
    assert degradations.named("blur", num_levels=20) == Blur(num_levels=20)
    assert degradations.named("snow", threshold=[1.0, 0.5]) == Snow(threshold=(1.0, 0.5))
    with pytest.raises(
        ValueError, match=r"degradation 'rain' is unknown\. Known are blur, inpainting"
    ):
        degradations.named("rain")
    with pytest.raises(ValueError, match="blur has no setting 'sigma'; it has num_levels"):
        degradations.named("blur", sigma=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(num_levels=0), "`num_levels` must be at least 1, got 0"),
        (lambda: Blur(kernel_size=4), "`kernel_size` must be odd and positive, got 4"),
        (lambda: Blur(std=0.0), r"`std` must be positive, got 0\.0"),
        (lambda: Blur(rate=-0.5), "`std of the last step` must be positive"),
        (lambda: Blur(padding="zeros"), "`padding` .* 'reflect', 'circular', 'replicate', got"),  # type: ignore[arg-type]
        (lambda: Blur()(images(1, (1, 5, 5)), 1), "too large for images of 5 pixels"),
        (lambda: SuperResolution()(images(1, (1, 12, 8)), 1), "12 pixels cannot be halved 3 times"),
        (lambda: Inpainting(fill="black"), "`fill` must be one of 'gray', 'color', got 'black'"),  # type: ignore[arg-type]
        (lambda: Snow(zoom=0.5), r"`zoom` must be at least 1, got 0\.5"),
        (lambda: Animorphosis(others=[]), "`others` holds no images"),
        (lambda: realized(Animorphosis(others=Others(8))), r"of shape \(3, 8, 8\), but the images"),
        (lambda: Snow()(images(), 3), "`realization` lacks 'field'. Draw it with `realize`"),
        (lambda: Blur()(images(), 51), r"`s` must be in \[0, 50\], got 51"),
        (lambda: Blur()(images(), torch.tensor([0, 3, -1])), r"in \[0, 50\], got -1"),
        (lambda: Blur()(images(), torch.tensor([1, 2])), r"`s` has shape \(2,\); give one level"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
