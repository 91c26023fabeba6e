"""Planted copies that were saved as other files go the way of the user's own files."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset, Subset

from synthaug import load_dataset
from synthaug._audit.comparison import _planted
from synthaug._audit.disturbances import disturbances
from synthaug._audit.inputs import read_set
from synthaug._images.source import ImageSource

KINDS = {kind.name.split(",")[0]: kind for kind in disturbances(16) if kind.to_files}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of 60 x 48 pixels, gray ones and color ones."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(8):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        image = small.resize((60, 48), Image.Resampling.BICUBIC)
        (image.convert("L") if i > 5 else image).save(root / "ab"[i % 2] / f"{i}.png")
    return root


def saved(image: Image.Image, kind: str, quality: int) -> NDArray[np.uint8]:
    """An image saved, opened, converted and resized by hand, uint8 (3, 16, 16)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    opened = Image.open(buffer).convert(image.mode).convert("RGB")
    small = ImageOps.fit(opened, (16, 16), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_the_whole_file_is_compressed_and_then_read_as_the_user_reads_it(
    photos: Path, kind: str
) -> None:
    dataset = load_dataset(f"folder:{photos}", image_size=16, channels=3)
    T = read_set(dataset, "train", progress=False)
    originals = np.array([5, 0, 7])
    planted, made = _planted(KINDS[kind], T, originals, seed=3)
    assert planted.name == f"{kind}, quality 50 to 90, whole files"
    assert dataset.paths is not None
    qualities = []

    for place, row in enumerate(originals.tolist()):
        image = Image.open(dataset.paths[row])
        copy = np.asarray(made[place])
        equal = [q for q in range(50, 91) if (saved(image, kind, q) == copy).all()]
        qualities += equal[:1]
    assert len(qualities) == 3, "each is a file of one of these qualities"
    assert len(set(qualities)) > 1
    # Compressed at 16 x 16 pixels the copies would be far easier to see.
    small = KINDS[kind].apply(T.pixels[torch.from_numpy(originals)], 3)

    def error(pixels: torch.Tensor) -> float:
        difference = pixels.float() - T.pixels[torch.from_numpy(originals)].float()
        return float(difference.square().mean().sqrt())

    assert error(torch.as_tensor(made)) < error(small)


def test_images_without_files_are_compressed_as_they_are(photos: Path, tmp_path: Path) -> None:
    dataset = load_dataset(f"folder:{photos}", image_size=16, channels=3)
    pixels = dataset.read(range(8))
    kind, originals = KINDS["JPEG"], np.array([1, 2])
    bare = _planted(kind, read_set(pixels, "train", progress=False), originals, 3)
    assert bare[0] is kind
    torch.testing.assert_close(bare[1], kind.apply(pixels[1:3], 3), rtol=0, atol=0)
    # Files of the size of the images give the same.
    for i, image in enumerate(pixels):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "x" / f"{i}.png")
    same = read_set(load_dataset(f"folder:{tmp_path}"), "train", progress=False)
    torch.testing.assert_close(_planted(kind, same, originals, 3)[1], bare[1], rtol=0, atol=0)
    # Files that are gone since cannot be read again.
    (tmp_path / "x" / "2.png").unlink()
    assert _planted(kind, same, originals, 3)[0] is kind


def test_files_are_found_below_subsets_and_concatenations(photos: Path) -> None:
    dataset = load_dataset(f"folder:{photos}", image_size=16, channels=3)
    joined: Any = ConcatDataset([Subset(dataset, [6, 1]), dataset.subset([3, 4])])
    change = partial(lambda image, place: ImageOps.invert(image.convert("RGB")))
    made = ImageSource.open(joined).changed([3, 0, 1], change)
    direct = ImageSource.open(dataset).changed([4, 6, 1], change)
    assert made is not None
    assert direct is not None
    torch.testing.assert_close(made, direct, rtol=0, atol=0)
    others: Any = [(dataset[0][0], 0)]
    mixed: Any = ConcatDataset([dataset, others])
    assert ImageSource.open(mixed).changed([8], change) is None
