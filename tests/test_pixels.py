"""Storage space and model space: what is stored is what was drawn, to the nearest level."""

import hashlib

import numpy as np
import pytest
import torch

from synthaug._pixels import digest, grid, to_images, to_pil, to_pixels

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_every_level_survives_the_round_trip(dtype):
    images = to_images(LEVELS, dtype)
    assert images.dtype == dtype
    assert torch.equal(to_pixels(images), LEVELS)


def test_the_ends_and_the_middle_are_where_they_are_documented():
    assert to_images(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1, 1]
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    assert to_pixels(images).flatten().tolist() == [0, 128, 255]  # 127.5 goes to the even level


def test_a_value_goes_to_the_nearest_level_and_not_to_the_one_below():
    levels = torch.arange(256, dtype=torch.float64)
    for shift in (-0.49, 0.0, 0.49):
        images = ((levels + shift) / 127.5 - 1).view(1, 1, 16, 16)
        assert torch.equal(to_pixels(images), LEVELS)


def test_values_beyond_the_range_are_clamped_and_do_not_wrap_around():
    images = torch.tensor([-5.0, -1.0001, 1.0001, 1.5, 5.0, 1e30, -1e30]).view(1, 1, 1, 7)
    assert to_pixels(images).flatten().tolist() == [0, 0, 255, 255, 255, 255, 0]


def test_the_digest_depends_on_every_byte():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8))
    digests = {digest(image)}
    for i in range(image.numel()):
        for change in (1, 128):
            other = image.clone()
            other.view(-1)[i] ^= change
            digests.add(digest(other))
    assert len(digests) == 1 + 2 * image.numel()
    assert max(digests) < 2**64
    assert max(digests) > 2**63  # all 64 bits are used


def test_the_digest_depends_on_the_shape():
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    shapes = [(3, 4, 5), (3, 5, 4), (1, 12, 5), (1, 60, 1), (5, 4, 3), (1, 6, 10)]
    assert len({digest(image.reshape(shape)) for shape in shapes}) == len(shapes)


def test_the_digest_is_about_the_pixels_and_not_about_their_place_in_memory():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8))
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not channels_last.is_contiguous()
    assert digest(channels_last) == digest(image)


def test_the_digest_is_the_same_in_every_release():
    # It is the source key of plans and caches: a change would orphan all that exist.
    hashed = hashlib.blake2b(
        bytes(range(12)), digest_size=8, person=b"synthaug-image", key=b"3,2,2"
    )
    expected = int.from_bytes(hashed.digest(), "little")
    image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    assert digest(image) == expected == 3789255764246894799


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_pil_image_has_the_pixels_in_their_places(channels, mode):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 4, 6), np.uint8))
    image = to_pil(pixels)
    assert (image.mode, image.size) == (mode, (6, 4))
    for y in range(4):
        for x in range(6):
            expected = pixels[:, y, x].tolist()
            assert image.getpixel((x, y)) == (expected[0] if channels == 1 else tuple(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image_enlarged_in_its_place_on_white(channels):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 255, (5, channels, 2, 3), np.uint8))
    sheet = np.asarray(grid(pixels, columns=3, scale=2, padding=1)).reshape(11, 22, channels)
    covered = np.zeros(sheet.shape[:2], bool)
    for i, image in enumerate(pixels.numpy()):
        for y in range(2):
            for x in range(3):
                top, left = 1 + (i // 3) * 5 + 2 * y, 1 + (i % 3) * 7 + 2 * x
                assert (sheet[top : top + 2, left : left + 2] == image[:, y, x]).all()
                covered[top : top + 2, left : left + 2] = True
    assert (sheet[~covered] == 255).all()
    assert covered.sum() == 5 * 24


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no image to lay out"):
        grid(LEVELS[:0], columns=3)
