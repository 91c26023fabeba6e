"""Shows what `cold_tables.py` measured: a column per test image.

    python benchmarks/cold_pictures.py --test folder:cifar10/test --runs runs/cold --only blur snow

Rows: the image, degraded to the last level, restored directly, by Algorithm 1, by Algorithm 2.
For generation: with the noise that breaks the symmetry, and without. Writes
`results/NAME_TASK.png`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _machine import RESULTS
from cold_tables import GENERATION, RESTORATION
from torch import Tensor

from synthaug import ColdDiffusion, load_dataset
from synthaug._noise import streams
from synthaug._pixels import grid, to_images, to_pixels


@torch.inference_mode()
def restored(cold: ColdDiffusion, pixels: Tensor) -> Tensor:
    """The rows of one sheet, uint8 (5 n, C, H, W)."""
    T = cold.degradation.num_levels
    realization = cold.degradation.realize(streams(range(len(pixels))), cold.image_shape)
    x_T = cold.degradation(to_images(pixels), T, realization)
    ways = [
        replace(cold, algorithm=name).restore(x_T, T, realization).x0
        for name in ("direct", "naive", "improved")
    ]
    return torch.cat([pixels, *map(to_pixels, (x_T, *ways))])


def generated(cold: ColdDiffusion, count: int) -> Tensor:
    """Two rows from the same colors and seeds, uint8 (2 n, C, H, W)."""
    cold = replace(cold, classes=("image",))
    plain = replace(cold, symmetry_noise=0.0)
    rows = [to_pixels(way.draw(way.plan(per_class=count, seed=0))) for way in (cold, plain)]
    return torch.cat(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", required=True)
    parser.add_argument("--runs", required=True, help="Folder of the checkpoints")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--num-steps", type=int, help="Levels to visit, at most; all by default")
    parser.add_argument("--only", nargs="+", default=[*RESTORATION, "generation"])
    parser.add_argument("--name", default="cold_tables")
    options = parser.parse_args()
    for task in options.only:
        folder = Path(options.runs) / task.replace(" ", "-")
        cold = ColdDiffusion.from_pretrained(folder, device="cpu")
        steps = min(options.num_steps or 10**9, cold.degradation.num_levels)
        cold = replace(cold, num_steps=steps)
        if task in GENERATION:
            sheet = generated(cold, options.images)
        else:
            test = load_dataset(options.test, image_shape=cold.image_shape)
            chosen = np.random.default_rng(0).permutation(len(test))[: options.images]
            sheet = restored(cold, test.read(chosen))
        path = RESULTS / f"{options.name}_{task.replace(' ', '_')}.png"
        scale = max(1, 48 // cold.image_shape[-1])
        grid(sheet, columns=options.images, scale=scale).save(path)
        print("Written:", path)
