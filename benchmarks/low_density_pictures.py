"""Shows what `low_density.py` drew: a row per class, a group of columns per setting.

    python benchmarks/low_density_pictures.py --work runs/low_density --settings 0-0 1-0 0.5-2

Writes `results/low_density_NAME_images.png`, with the settings (alpha-beta) from left to right.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _machine import RESULTS

from synthaug import SynthCache
from synthaug._pixels import grid
from synthaug._types import Pixels


def first_of_each_class(cache: SynthCache, count: int) -> Pixels:
    """uint8 (classes, count, C, H, W)."""
    labels = np.asarray(cache.labels)
    rows = [np.flatnonzero(labels == c)[:count] for c in range(len(cache.classes))]
    return cache.read(np.concatenate(rows)).unflatten(0, (len(rows), count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="That of low_density.py")
    parser.add_argument("--settings", nargs="+", required=True, help="alpha-beta")
    parser.add_argument("--images", type=int, default=6, help="Per class and setting")
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    parts = [
        first_of_each_class(SynthCache(Path(options.work) / f"{setting}.h5"), options.images)
        for setting in options.settings
    ]
    gap = torch.full_like(parts[0][:, :1], 255)
    columns = [image for part in parts for image in (part, gap)][:-1]
    shown = torch.cat(columns, 1)
    path = RESULTS / f"low_density_{options.name}_images.png"
    grid(shown.flatten(0, 1), columns=shown.shape[1], scale=2).save(path)
    print("Written:", path)
