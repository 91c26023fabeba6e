"""What the audit sees, and what it falsely sees.

    python benchmarks/audit_power.py --data folder:cifar10/train

1 % copies of one kind among fresh real images that stand for synthetic ones, at a nominal false
discovery rate of 0.1, over random divisions of the same real images into hold-out and "synthetic".
Besides the kinds that every report plants, there are some of other strengths, which the audit does
not know. Everything that was chosen by measurement was chosen on CIFAR-100.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from _machine import write
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import gaussian_blur, rotate

from synthaug import features, load_dataset
from synthaug._audit.calibration import conformal_p_values, q_values
from synthaug._audit.disturbances import Disturbance, disturbances, jpeg
from synthaug._audit.matches import Matches
from synthaug._audit.matching import Matcher
from synthaug._noise import counter_rng

FDR, COPIES = 0.1, 0.01


def flagged(scores: np.ndarray, twins: np.ndarray, null: Matches, rows: np.ndarray) -> np.ndarray:
    """What an audit of these scores flags against these rows of the real images."""
    fresh = null.scores[rows][~null.near_equal[rows]]
    flags = twins >= 0
    p = conformal_p_values(scores[~flags], fresh)
    flags[~flags] = q_values(p) <= FDR
    return flags


def main() -> None:
    """Runs and writes `results/audit_power.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--train", type=int, default=15_000, help="training images")
    parser.add_argument("--holdout", type=int, default=10_000, help="hold-out images")
    parser.add_argument("--synthetic", type=int, default=5_000, help="audited images")
    parser.add_argument("--planted", type=int, default=100, help="copies of each kind to draw from")
    parser.add_argument("--divisions", type=int, default=40)
    args = parser.parse_args()

    start = time.perf_counter()
    real = load_dataset(args.data)
    order = counter_rng(0, 0).permutation(len(real))
    train = real.read(order[: args.train])
    pool = real.read(order[args.train : args.train + args.holdout + args.synthetic])
    spaces = [features.Pixel()]
    matcher = Matcher(train, spaces, k=50)
    null = matcher.match(pool)
    print(f"{len(pool):,} real images matched in {time.perf_counter() - start:.0f} s", flush=True)
    originals = counter_rng(0, 1).choice(len(train), args.planted, replace=False)
    count = round(COPIES * args.synthetic)
    divisions = [counter_rng(0, 2, i).permutation(len(pool)) for i in range(args.divisions)]

    clear = [
        flagged(
            null.scores[o[args.holdout :]], null.twins[o[args.holdout :]], null, o[: args.holdout]
        )
        for o in divisions
    ]
    result: dict[str, Any] = {
        "settings": vars(args) | {"fdr": FDR, "copies": count},
        "natural_twins": int(null.near_equal.sum()),
        "no_copies": {
            "mean_flagged": float(np.mean([f.sum() for f in clear])),
            "any_flagged": float(np.mean([f.any() for f in clear])),
        },
        "power": {},
    }
    print(result["no_copies"], flush=True)
    for kind in [*disturbances((pool.shape[1], pool.shape[2], pool.shape[3])), *others()]:
        copies = matcher.match(kind.apply(train[torch.from_numpy(originals)], 0))
        power, wrong = [], []
        for i, o in enumerate(divisions):
            held, audited = o[: args.holdout], o[args.holdout + count :]
            chosen = counter_rng(0, 3, i).choice(args.planted, count, replace=False)
            flags = flagged(
                np.concatenate([copies.scores[chosen], null.scores[audited]]),
                np.concatenate([copies.twins[chosen], null.twins[audited]]),
                null,
                held,
            )
            power.append(float(flags[:count].mean()))
            wrong.append(float(flags[count:].sum() / max(1, flags.sum())))
        result["power"][kind.name] = {
            "power": float(np.mean(power)),
            "least": float(np.min(power)),
            "false_discoveries": float(np.mean(wrong)),
            "proposed": float((copies.neighbours == originals[:, None]).any(axis=1).mean()),
        }
        print(kind.name, result["power"][kind.name], flush=True)

    result["seconds"] = time.perf_counter() - start
    print(write("audit_power", result))


def others() -> list[Disturbance]:
    """Changes of other strengths than those that the audit plants and looks for."""

    def jpeg_75(pixels: Any, seed: int) -> Any:
        return jpeg(pixels, 75)

    def jpeg_30(pixels: Any, seed: int) -> Any:
        return jpeg(pixels, 30)

    def brighter(pixels: Any, seed: int) -> Any:
        return (pixels.float() * 1.4).round().clamp(0, 255).to(torch.uint8)

    def darker(pixels: Any, seed: int) -> Any:
        return (pixels.float() * 0.7).round().to(torch.uint8)

    def softer(pixels: Any, seed: int) -> Any:
        return gaussian_blur(pixels, [5, 5], [0.7, 0.7])

    def rotated(pixels: Any, seed: int) -> Any:
        return rotate(pixels, 5, InterpolationMode.BILINEAR)

    return [
        Disturbance("JPEG, quality 75", False, jpeg_75),
        Disturbance("JPEG, quality 30", False, jpeg_30),
        Disturbance("brightness x 1.4", False, brighter),
        Disturbance("brightness x 0.7", False, darker),
        Disturbance("blur, sigma 0.7", False, softer),
        Disturbance("rotation by 5 degrees", False, rotated),
    ]


if __name__ == "__main__":
    main()
