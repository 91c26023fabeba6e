"""Images that say where they come from: real ones and a cache, to be mixed.

Image `i` of the real data has the value `i` everywhere, row `r` of the cache has `100 + r`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from synthaug import MixedDataset, Plan, SynthCache
from synthaug.images import LabeledImages
from synthaug.mixing import ItemFormat

CLASSES = ("ant", "bee", "cow")
NAMED = ItemFormat(classes=CLASSES)
"""For real items that do not know their classes."""
FIRST_ROW = 100


def make_cache(
    folder: Path,
    quota: tuple[int, ...] = (7, 5, 9),
    shape: tuple[int, int, int] = (3, 6, 5),
    classes: tuple[str, ...] = CLASSES,
    done: Any = None,
) -> SynthCache:
    plan = Plan.build(quota, classes=classes, settings={}, seed=0)
    return fill(folder, plan, shape, done)


def fill(folder: Path, plan: Plan, shape: tuple[int, int, int], done: Any = None) -> SynthCache:
    manifest = {"recipe": {"synthesizer": "test", "settings": {}, "weights": {}}}
    path = folder / f"{len(list(folder.iterdir()))}.h5"
    cache = SynthCache.create(path, plan, image_shape=shape, manifest=manifest)
    rows = np.arange(len(plan)) if done is None else np.asarray(done)
    values = torch.as_tensor(FIRST_ROW + rows, dtype=torch.uint8)
    cache.write(rows, values[:, None, None, None].expand(-1, *shape).contiguous(), fsync="never")
    return cache


def real_images(counts: tuple[int, ...] = (30, 10, 20)) -> LabeledImages:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], counts))
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return LabeledImages(pixels.expand(-1, 3, 6, 5), labels, CLASSES)


class Listed(Dataset[Any]):
    """The plainest map-style data set."""

    targets: list[int]

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def value(image: Any) -> int:
    """The one value of all pixels of an image."""
    pixels = np.unique(np.asarray(image))
    assert len(pixels) == 1
    return int(pixels[0])


def items_of(mixed: MixedDataset) -> list[Any]:
    return mixed.__getitems__(range(len(mixed)))


def values(mixed: MixedDataset) -> list[int]:
    return [value(image) for image, _ in items_of(mixed)]


def report_on(cache: SynthCache, passed: Any = None, verdict: str = "pass") -> Any:
    passed = np.ones(len(cache), bool) if passed is None else np.asarray(passed)
    return SimpleNamespace(identity=cache.identity, passed=passed, verdict=verdict)
