"""An audit of features that are larger than the memory is meant to be: exact, from a file.

    python benchmarks/audit_ten_million.py --folder /somewhere/with/20/GB --threads 1

Training features are float16 vectors in a .npy file: 2,000 clusters with 32 directions of variation
and noise in all 512, since features of networks have few. The audit takes new vectors, an eighth of
them copies of training vectors moved a little, and a hold-out. Then the nearest neighbors of both
are searched exactly; and among the first million rows by the index ivfpq as well, to compare.

Memory is the largest that the process held in each phase, Python and libraries included. Seconds
are of the processor, since the machine may have other work; the wall clock is beside them.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from _machine import machine, write

from synthaug import audit
from synthaug._neighbors import Index, threads

T = TypeVar("T")
CLUSTERS, DIRECTIONS = 2000, 32
K = 5
BILLION = 10**9
MORE = 20_000
"""Rows added to the finished index ivfpq, since most of its time is that of training."""


def features(path: Path, rows: int, dim: int, seed: int) -> Any:
    """Writes a .npy file, block by block, and maps it."""
    shared = np.random.default_rng(0)
    centers = shared.standard_normal((CLUSTERS, DIRECTIONS), np.float32)
    directions = shared.standard_normal((DIRECTIONS, dim), np.float32) / DIRECTIONS**0.5
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal(8_000_000, np.float32)  # noise, each time from another place
    header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
    size = 10_000
    with open(path, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, rows, size):
            n = min(size, rows - start)
            within = centers[rng.integers(CLUSTERS, size=n)]
            within = within + 0.5 * rng.standard_normal((n, DIRECTIONS), np.float32)
            at = int(rng.integers(len(bank) - n * dim))
            block = within @ directions + 0.1 * bank[at : at + n * dim].reshape(n, dim)
            torch.from_numpy(block).half().numpy().tofile(out)
    return np.load(path, mmap_mode="r")


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Returns the result of a call, with its seconds and its largest memory."""
    if Path("/proc/self/clear_refs").exists():  # forgets what earlier phases held
        Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "load": os.getloadavg()[0],
    }


def copies(train: Any, fresh: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """New vectors of which the first eighth are training vectors, moved a little; and those."""
    rows = np.sort(rng.choice(len(train), len(fresh) // 8, replace=False))
    vectors = np.array(fresh, np.float32)
    noise = rng.standard_normal((len(rows), train.shape[1]), np.float32)
    vectors[: len(rows)] = train[rows] + 0.01 * noise
    return vectors, rows


def extrapolate(
    result: dict[str, Any], rows: int, indexed: int, dim: int, lists: int
) -> dict[str, Any]:
    """Returns the cost of a billion rows on one core like this one, and the formulas behind it."""
    exact, approximate = result["exact"], result["ivfpq"]
    per_query = exact["processor_seconds_per_query"] * BILLION / rows
    index_bytes = BILLION * (64 + 8) + lists * dim * 4
    added = result["ivfpq_more"]["processor_seconds"] / MORE
    trained = result["ivfpq_build"]["processor_seconds"] - added * indexed
    built = trained + added * BILLION
    searched = approximate["processor_seconds_per_query"] * BILLION / indexed
    return {
        "formulas": {
            "exact": "seconds per query = measured * 1e9 / rows; features = 1e9 * dim * 2 bytes",
            "ivfpq": "build = training + 1e9 * seconds to add a row; training = measured build - "
            "indexed * seconds to add a row; seconds per query = measured * 1e9 / indexed, with as "
            "many lists and as many of them searched; "
            "index = 1e9 * (64 + 8) + lists * dim * 4 bytes",
            "row memory": "48 bytes: row number, label, key, its order, and which rows differ",
            "queries from which on ivfpq pays": "build / (exact per query - ivfpq per query)",
        },
        "audit_core_hours": result["audit"]["processor_seconds"] * BILLION / rows / 3600,
        "features_gb": BILLION * dim * 2 / 1e9,
        "row_memory_gb": BILLION * 48 / 1e9,
        "exact_core_hours_per_1000_queries": 1000 * per_query / 3600,
        "ivfpq_index_gb": index_bytes / 1e9,
        "ivfpq_build_core_hours": built / 3600,
        "ivfpq_core_hours_per_1000_queries": 1000 * searched / 3600,
        "queries_from_which_on_ivfpq_pays": built / max(1e-9, per_query - searched),
    }


def main() -> None:
    """Runs and writes `results/audit_ten_million.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--audited", type=int, default=200, help="and as many are held out")
    parser.add_argument("--indexed", type=int, default=1_000_000, help="rows of the index ivfpq")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="for the features; they are deleted afterwards")
    parser.add_argument("--name", default="audit_ten_million")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(1)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("folder", "name")},
        "machine": machine(),
    }

    def note(name: str, measured: dict[str, Any]) -> None:
        result[name] = measured
        print(name, {k: v if isinstance(v, str) else round(v, 3) for k, v in measured.items()})
        write(args.name, result)

    try:
        train, written = timed(lambda: features(folder / "train.npy", args.rows, args.dim, 2))
        note("writing the features", written)
        fresh, holdout = (
            features(folder / f"{seed}.npy", args.audited, args.dim, seed) for seed in (3, 4)
        )
        vectors, originals = copies(train, fresh, rng)
        report, spent = timed(
            lambda: audit(vectors, folder / "train.npy", holdout=holdout, k=K, progress=False)
        )
        flagged = report.tier[: len(originals)] > 0
        note(
            "audit",
            spent
            | {
                "verdict": report.verdict,
                "copies": len(originals),
                "copies_flagged": int(flagged.sum()),
                "right_original_named": int(
                    (report.neighbors[: len(originals)] == originals).sum()
                ),
                "others_flagged": int((report.tier > 0).sum() - flagged.sum()),
            },
        )
        queries = np.concatenate([vectors, np.array(holdout, np.float32)])
        with threads():
            (D, _), spent = timed(lambda: Index(train).search(queries, K))
            each = {"queries": len(queries)}
            rate = spent["processor_seconds"] / len(queries)
            note("exact", spent | each | {"processor_seconds_per_query": rate})
            some = train[: args.indexed]
            D = Index(some).search(queries, K)[0]
            index, spent = timed(lambda: Index(some, "ivfpq"))
            note("ivfpq_build", spent)
            (found, _), spent = timed(lambda: index.search(queries, K))
            more = np.array(train[:MORE], np.float32)
            filled: Any = index._faiss
            note("ivfpq_more", timed(lambda: filled.add(more))[1])
        rate = spent["processor_seconds"] / len(queries)
        recall = float((found <= D[:, -1:]).sum(axis=1).clip(max=K).mean() / K)
        note(
            "ivfpq",
            spent
            | each
            | {
                "processor_seconds_per_query": rate,
                "recall_at_5": recall,
                "recall_at_1": float((found[:, 0] <= D[:, 0]).mean()),
            },
        )
    finally:
        shutil.rmtree(folder)
    lists = min(1024, args.indexed // 39)
    result["billion"] = extrapolate(result, args.rows, args.indexed, args.dim, lists)
    print(result["billion"])
    print(write(args.name, result))


if __name__ == "__main__":
    main()
