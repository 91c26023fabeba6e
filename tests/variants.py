"""Real images, and a cache of variants that says of every image which row it is."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthaug import Plan, SynthCache
from synthaug.evaluation import digests
from synthaug.images import LabeledImages

CLASSES = ("ant", "bee")
FIRST_ROW = 100


def real_images(height: int = 4, width: int = 5, seed: int = 0) -> LabeledImages:
    """Eight images, of which only the first six have variants."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 3, height, width), np.uint8)
    return LabeledImages(torch.from_numpy(pixels), np.arange(8) % 2, CLASSES)


def make_cache(
    folder: Path, real: LabeledImages, *, sources: Any = ([0, 2, 4], [1, 3, 5]), shape: Any = None
) -> SynthCache:
    """Nine rows per class, three per source; row `r` has the value `100 + r` everywhere."""
    keys = None if sources is None else digests(real, "real")
    plan = Plan.build(
        [9, 9], classes=CLASSES, settings={}, seed=0, sources=sources, source_keys=keys
    )
    shape = real.image_shape if shape is None else shape
    manifest = {"recipe": {"synthesizer": "test", "settings": {}, "weights": {}}}
    path = folder / f"{len(list(folder.iterdir()))}.h5"
    cache = SynthCache.create(path, plan, image_shape=shape, manifest=manifest)
    values = torch.arange(FIRST_ROW, FIRST_ROW + 18, dtype=torch.uint8, device="cpu")
    cache.write(np.arange(18), values[:, None, None, None].expand(-1, *shape).contiguous())
    return cache


def row_of(image: Any) -> int | None:
    """The row of the cache that an image is; `None` for a real one."""
    pixels = np.asarray(image)
    levels = np.unique(np.round(255 * pixels) if pixels.dtype.kind == "f" else pixels)
    return int(levels[0]) - FIRST_ROW if len(levels) == 1 else None


def rows_from(cache: SynthCache, source: int) -> list[int]:
    """The rows that are variants of a real image."""
    return np.flatnonzero(cache.plan["source"] == source).tolist()
