"""How long the audit takes, and its search for neighbors against others in the same run.

    python benchmarks/audit_speed.py
    python benchmarks/audit_speed.py --train folder:cifar10/train --holdout folder:cifar10/test \\
        --synthetic folder:cifar100-half/train
    python benchmarks/audit_speed.py --rows 1000000

Without arguments: the 5 nearest of 50,000 random vectors for 10,000 others. The floor is the matrix
product alone, in float32 and without keeping its result. With data sets: the whole audit. With
`--rows`: the whole audit of features in files, mapped into memory.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import interleave, summary, write

from synthaug import audit, load_dataset
from synthaug._neighbors import Index, threads

K = 5
CHUNK = 1000


def ways(xb: np.ndarray, xq: np.ndarray) -> dict[str, Callable[[], Any]]:
    from sklearn.neighbors import NearestNeighbors

    tb, tq = torch.from_numpy(xb), torch.from_numpy(xq)

    def floor() -> None:
        for i in range(0, len(tq), CHUNK):
            tq[i : i + CHUNK] @ tb.T

    def ours() -> Any:
        with threads():
            return Index(xb).search(xq, K)[1]

    def cdist() -> Any:
        return torch.cat(
            [
                torch.cdist(tq[i : i + CHUNK], tb).topk(K, largest=False).indices
                for i in range(0, len(tq), CHUNK)
            ]
        )

    def sklearn() -> Any:
        search = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(xb)
        return search.kneighbors(xq, return_distance=False)

    return {
        "matrix product": floor,
        "synthaug": ours,
        "torch.cdist": cdist,
        "scikit-learn": sklearn,
    }


def imagededup(xb: np.ndarray, xq: np.ndarray) -> tuple[str, Callable[[], Any] | None, float]:
    """Returns the name, the function, and the pairs that it compares, as a share of ours.

    It only compares a set with itself, by cosine similarity, and keeps all similarities: so it gets
    a fifth of both sets.
    """
    try:
        from imagededup.handlers.search.retrieval import get_cosine_similarity
    except ImportError as error:
        return f"skipped: {error}", None, 1.0
    some = np.concatenate([xb[::5], xq[::5]])
    share = len(some) ** 2 / (len(xb) * len(xq))
    note = f"a fifth of both sets with itself, {share:.2f} of the pairs; time divided by that"
    return note, lambda: get_cosine_similarity(some, verbose=False), share


def search(args: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    results: dict[str, Any] = {}
    for d in args.dims:
        xb, xq = (rng.standard_normal((n, d), np.float32) for n in (args.database, args.queries))
        functions = ways(xb, xq)
        note, other, share = imagededup(xb, xq)
        if other is not None:
            functions["imagededup"] = other
        clock = time.process_time if args.processor_time else time.perf_counter

        def timed(way: Callable[[], Any], clock: Callable[[], float] = clock) -> float:
            start = clock()
            way()
            return clock() - start

        times = interleave(
            {name: partial(timed, way) for name, way in functions.items()}, args.rounds
        )
        times["imagededup"] = [t / share for t in times.get("imagededup", [])]
        times = {name: t for name, t in times.items() if t}
        floor = summary(times["matrix product"])["median"]
        results[str(d)] = {
            name: summary(t) | {"to floor": summary(t)["median"] / floor}
            for name, t in times.items()
        } | {"about imagededup": note}
        print(d, {n: round(r["to floor"], 2) for n, r in results[str(d)].items() if n in times})
    return results


def main() -> None:
    """Runs and writes `results/audit_speed.json`, `audit_whole.json` or `audit_large.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 512, 3072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that is shared")
    parser.add_argument("--train", metavar="SPEC")
    parser.add_argument("--holdout", metavar="SPEC")
    parser.add_argument("--synthetic", metavar="SPEC")
    parser.add_argument("--rows", type=int, help="training rows of features")
    parser.add_argument(
        "--audited",
        type=int,
        default=10_000,
        help="synthetic images; of features as many are held out",
    )
    parser.add_argument("--html", metavar="FILE")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "settings": vars(args) | {"available_cores": len(os.sched_getaffinity(0))}
    }
    if not args.train and not args.rows:
        result["search"] = search(args)
        print(write("audit_speed", result))
        return
    if args.rows:
        folder = Path(tempfile.mkdtemp())
        inputs: list[Any] = []
        for i, n in enumerate((args.audited, args.rows, args.audited)):
            path = folder / f"{i}.npy"
            out = np.lib.format.open_memmap(path, "w+", np.float32, (n, 512))
            rng = np.random.default_rng(i)
            for start in range(0, n, 10_000):
                rows = out[start : start + 10_000]
                rows[:] = rng.standard_normal(rows.shape, np.float32)
            inputs.append(path)
    else:
        inputs = [load_dataset(spec) for spec in (args.synthetic, args.train, args.holdout)]
        rows = np.random.default_rng(0).permutation(len(inputs[0]))[: args.audited]
        inputs[0] = inputs[0].subset(np.sort(rows))
    wall, cpu = time.perf_counter(), time.process_time()
    report = audit(inputs[0], inputs[1], holdout=inputs[2])
    result |= {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "near_duplicates_in_holdout": (
            int((report.holdout_distances[:, -1] <= 0.3).sum()) if args.train else None
        ),
        "counts": {k: v for k, v in report.settings.items() if k != "command"},
    }
    if args.html:
        report.to_html(args.html)
    print({k: v for k, v in result.items() if k not in ("settings", "counts")})
    print(write("audit_large" if args.rows else "audit_whole", result))


if __name__ == "__main__":
    main()
