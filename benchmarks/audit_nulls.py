"""What the audit flags where there are no copies, and when its p-values stop being right.

    python benchmarks/audit_nulls.py --data folder:cifar10/train --network resnet20-cifar10.pt

Calibrated tier: real images that the "generator" never saw, divided at random into hold-out and
"synthetic" many times, judged by pixels, by the features of a network, and by all statistics.

Competition: training and hold-out images change places at random many times, while fresh images,
blurred and flattened ones, and those of a collapsed generator look for the closest of them.

Shift: fresh images brought closer to everything by degrees: how many small p-values arise, beside
the share of p-values up to 0.5 that decides which of the two tiers is believed.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from _machine import write
from scipy.stats import rankdata
from torch import Tensor

from synthaug import features, load_dataset
from synthaug._audit.calibration import conformal_p_values, q_values
from synthaug._audit.competition import compete
from synthaug._audit.disturbances import disturbances
from synthaug._audit.matching import Matcher, resembling
from synthaug._noise import counter_rng

LEVELS = (0.05, 0.1)


def main() -> None:
    """Runs and writes `results/audit_nulls.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--network", required=True, metavar="FILE.pt", help="TorchScript features")
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--holdout", type=int, default=4000)
    parser.add_argument("--synthetic", type=int, default=2000)
    parser.add_argument("--competing", type=int, default=600, help="images of each kind")
    parser.add_argument("--splits", type=int, default=200)
    args = parser.parse_args()

    start = time.perf_counter()
    real = load_dataset(args.data)
    sizes = np.cumsum([args.train, args.holdout, args.synthetic])
    train, held, fresh = (
        real.read(rows)
        for rows in np.split(counter_rng(0, 0).permutation(len(real))[: sizes[-1]], sizes[:2])
    )
    spaces: list[features.Extractor] = [features.Pixel(), features.TorchScript(args.network)]
    T, H = (Matcher(images, spaces, k=50) for images in (train, held))
    null = T.match(torch.cat([held, fresh]))
    result: dict[str, Any] = {
        "settings": vars(args),
        "natural_twins": int(null.near_equal.sum()),
        "calibrated": calibrated(null.scores[~null.near_equal], T.statistics, args),
    }
    print(result["calibrated"], f"{time.perf_counter() - start:.0f} s", flush=True)
    result["competition"] = competition(T, H, fresh[: args.competing], args)
    result["shift"] = shift(T, null.scores[: args.holdout], fresh[: args.competing])
    result["seconds"] = time.perf_counter() - start
    print(write("audit_nulls", result))


def calibrated(scores: np.ndarray, statistics: tuple[str, ...], args: Any) -> dict[str, Any]:
    judges = {name: [j] for j, name in enumerate(statistics)}
    judges |= {"pixels and aligned": [0, 2], "all": [0, 1, 2]}
    found: dict[str, Any] = {}
    for name, columns in judges.items():
        flags = []
        for i in range(args.splits):
            order = counter_rng(0, 1, i).permutation(len(scores))
            held, audited = order[: args.holdout], order[args.holdout :]
            p = conformal_p_values(scores[audited][:, columns], scores[held][:, columns])
            q = q_values(p)
            flags.append([(q <= level).sum() for level in LEVELS])
        counts = np.array(flags)
        found[name] = {
            f"any flagged at {level}": float((counts[:, i] > 0).mean())
            for i, level in enumerate(LEVELS)
        }
        found[name]["mean flagged at 0.1"] = float(counts[:, 1].mean())
    return found


def competition(T: Matcher, H: Matcher, fresh: Tensor, args: Any) -> dict[str, Any]:
    kinds = {k.name: k for k in disturbances((fresh.shape[1], fresh.shape[2], fresh.shape[3]))}
    hubs = fresh[: max(1, len(fresh) // 50)].repeat_interleave(50, 0)
    sets = {
        "fresh": fresh,
        "blurred": kinds["blur, sigma 1"].apply(fresh, 0),
        "flattened": flattened(fresh, 0.6),
        "collapsed, 50 each": kinds["noise, sigma 8"].apply(hubs, 0),
    }
    results: dict[str, Any] = {}
    for name, pixels in sets.items():
        _, both = T.ask(T.compare_pooled(H, pixels))[0]
        rows = np.flatnonzero(~both.near_equal)
        ranks = rankdata(both.scores[rows], method="min", axis=0)
        matches = both.neighbours[rows, ranks.argmin(axis=1)]
        place = np.full(len(pixels), -1, np.int64)
        place[rows] = np.arange(len(rows))
        config = features.ExtractionConfig()
        links = place[resembling(pixels, features.Pixel(), both.distances[:, 0], config)]
        total, outcomes = args.train + args.holdout, []
        for i in range(args.splits):
            is_train = counter_rng(0, 2, i).permutation(total) < args.train
            outcome = compete(
                ranks.min(axis=1),
                matches,
                is_train[matches],
                links[(links >= 0).all(axis=1)],
                num_targets=args.train,
                num_decoys=args.holdout,
                fdr=0.1,
            )
            lowest = outcome.q_values.min()
            outcomes.append([lowest <= 0.1, outcome.share_p_value <= 0.05, outcome.leaning])
        shares = np.array(outcomes, float).mean(axis=0)
        results[name] = {
            "clusters": outcome.num_clusters,
            "any found at 0.1": shares[0],
            "share test at 0.05": shares[1],
            "leaning": shares[2],
        }
        print(name, results[name], flush=True)
    return results


def shift(T: Matcher, null: np.ndarray, fresh: Tensor) -> list[dict[str, Any]]:
    """Small p-values of fresh images that are ever more alike."""
    mean = fresh.float().mean(0)
    sets: dict[str, Tensor] = {"fresh": fresh}
    for share in (0.9, 0.7, 0.5, 0.3):
        sets[f"contrast x {share}"] = flattened(fresh, share)
        mixed = mean + share * (fresh.float() - mean)
        sets[f"mixed with the mean image, {1 - share:.1f}"] = mixed.round().to(torch.uint8)
    for side in (24, 16, 12):
        small = torch.nn.functional.interpolate(
            fresh.float(), (side, side), mode="bilinear", antialias=True
        )
        large = torch.nn.functional.interpolate(small, fresh.shape[-2:], mode="bicubic")
        sets[f"from {side} pixels"] = large.round().clamp(0, 255).to(torch.uint8)
    lines: list[dict[str, Any]] = []
    for name, pixels in sets.items():
        scores = T.match(pixels).scores
        line: dict[str, Any] = {"images": name}
        for columns, kind in (([0, 2], "pixels and aligned"), ([0, 1, 2], "all")):
            p = conformal_p_values(scores[:, columns], null[:, columns])
            line[kind] = {
                f"p up to {level}": float((p <= level).mean()) for level in (0.5, 0.1, 0.01)
            }
            line[kind]["flagged at 0.1"] = int((q_values(p) <= 0.1).sum())
        lines.append(line)
        print(line, flush=True)
    return lines


def flattened(pixels: Tensor, share: float) -> Tensor:
    return ((pixels.float() - 128) * share + 128).round().to(torch.uint8)


if __name__ == "__main__":
    main()
