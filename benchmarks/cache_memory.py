"""Memory of the workers of a loader that read a large cache once through, in random order.

    python benchmarks/cache_memory.py

Resident memory of every worker after its last batch, less that after its first one.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import write
from torch.utils.data import DataLoader, Dataset

from synthaug import Plan, SynthCache

BATCH = 128


class Watched(Dataset[Any]):
    """Gives, of every image, the worker that read it and the memory which that has then."""

    def __init__(self, cache: SynthCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.cache.read(indices)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return [(os.getpid(), pages * os.sysconf("SC_PAGE_SIZE"))] * len(indices)


def grown(cache: SynthCache, workers: int, start: str) -> list[float]:
    """Megabytes that each worker grew by."""
    loader: Any = DataLoader(
        Watched(cache), BATCH, shuffle=True, num_workers=workers, multiprocessing_context=start
    )
    seen: dict[int, list[int]] = {}
    for processes, memory in loader:
        seen.setdefault(int(processes[0]), []).append(int(memory[0]))
    assert len(seen) == workers
    return [round((memory[-1] - memory[0]) / 1e6, 1) for memory in seen.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"images": arguments.images, "megabytes": {}}
    for size in arguments.sizes:
        shape = (3, size, size)
        plan = Plan.build([arguments.images], classes=("a",), settings={}, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            cache = SynthCache.create(
                Path(folder) / "cache.h5", plan, image_shape=shape, manifest={"recipe": {}}
            )
            rng = np.random.default_rng(0)
            for rows in np.array_split(np.arange(len(plan)), 50):
                block = rng.integers(0, 256, (len(rows), *shape), np.uint8)
                cache.write(rows, torch.from_numpy(block), fsync="never")
            found: dict[str, Any] = {"file": round(os.stat(cache.path).st_size / 1e6)}
            for start in ("fork", "spawn"):
                for workers in (1, 2):
                    found[f"{workers} workers, {start}"] = grown(cache, workers, start)
        result["megabytes"][str(size)] = found
        print(size, found)
    print(write("cache_memory", result))


if __name__ == "__main__":
    main()
