"""What the audit sees, and what it falsely sees.

    python benchmarks/audit_power.py --data folder:cifar10/train

Power: 1 % copies of one kind among fresh real images that stand for synthetic ones, at a nominal
false discovery rate of 0.1, over random divisions of the same real images into hold-out and
"synthetic". Nulls: the same without copies, and for the competition of training and hold-out
images also fresh images that are blurred, flattened, or repeated as by a collapsed generator.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from _machine import write

from synthaug import features, load_dataset
from synthaug._audit._calibration import conformal_p_values, q_values
from synthaug._audit._disturbances import disturbances
from synthaug._audit._matching import Matcher, Matches, resembling
from synthaug._audit._pipeline import _contest
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
    parser.add_argument("--holdout", type=int, default=15_000, help="hold-out images")
    parser.add_argument("--synthetic", type=int, default=10_000, help="audited images")
    parser.add_argument("--planted", type=int, default=200, help="copies of each kind to draw from")
    parser.add_argument(
        "--competing", type=int, default=1000, help="images of each null that compete"
    )
    parser.add_argument("--divisions", type=int, default=20)
    args = parser.parse_args()

    start = time.perf_counter()
    real = load_dataset(args.data)
    order = counter_rng(0, 0).permutation(len(real))
    train = real.read(order[: args.train])
    pool = real.read(order[args.train : args.train + args.holdout + args.synthetic])
    spaces = [features.Pixel()]
    matcher = Matcher(train, spaces, k=50, batch_size=512)
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
    for kind in disturbances((pool.shape[1], pool.shape[2], pool.shape[3])):
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

    if args.competing:
        result["competition"] = competition(args, train, pool, spaces)
    result["seconds"] = time.perf_counter() - start
    print(write("audit_power", result))


def competition(args: Any, train: Any, pool: Any, spaces: list[Any]) -> dict[str, Any]:
    """How often the competition finds copies where there are none."""
    held = pool[: args.holdout]
    fresh = pool[args.holdout : args.holdout + args.competing]
    blurs = {k.name: k for k in disturbances((pool.shape[1], pool.shape[2], pool.shape[3]))}
    hubs = fresh[: args.competing // 50].repeat_interleave(50, 0)
    sets = {
        "fresh": fresh,
        "blurred": blurs["blur, sigma 1"].apply(fresh, 0),
        "flattened": ((fresh.float() - 128) * 0.6 + 128).round().to(torch.uint8),
        "collapsed, 50 each": blurs["noise, sigma 8"].apply(hubs, 0),
    }
    both = Matcher(torch.cat([train, held]), spaces, k=50, batch_size=512)
    results: dict[str, Any] = {}
    for name, pixels in sets.items():
        matched = both.match(pixels)
        links = resembling(pixels, spaces[0], matched.distances[:, 0], batch_size=512)
        outcome = _contest(matched, links, len(train), len(train), len(both.distinct), FDR)
        assert outcome is not None
        contest = outcome[1]
        results[name] = {
            "clusters": contest.num_clusters,
            "share": contest.share,
            "expected_share": contest.expected_share,
            "share_p_value": contest.share_p_value,
            "found": int((contest.q_values <= FDR).sum()),
        }
        print(name, results[name], flush=True)
    return results


if __name__ == "__main__":
    main()
