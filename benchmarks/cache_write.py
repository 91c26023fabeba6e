"""Writing batches of images: our cache beside a bare memory map and a growing HDF5 file.

    python benchmarks/cache_write.py

All ways write the same images in batches of 64; they take turns in every round. "synced" has every
batch on the disk before the next one begins, which is what a row that is done promises.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from _machine import interleave, summary, write

from synthaug import Plan, SynthCache

BATCH = 64


def ways(folder: Path, images: np.ndarray) -> dict[str, Callable[[], float]]:
    plan = Plan.build([len(images)], classes=("a",), settings={}, seed=0)
    tensor = torch.from_numpy(images)
    path = folder / "out"
    starts = range(0, len(images), BATCH)

    def timed(work: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            path.unlink(missing_ok=True)
            began = time.perf_counter()
            work()
            return time.perf_counter() - began

        return run

    def ours(fsync: Literal["never", "batch"]) -> None:
        cache = SynthCache.create(
            path, plan, image_shape=images.shape[1:], manifest={"recipe": {}}, encoding="raw"
        )
        for start in starts:
            rows = range(start, min(start + BATCH, len(images)))
            cache.write(rows, tensor[start : start + BATCH], fsync=fsync)

    def mapped(synced: bool) -> None:
        target = np.memmap(path, np.uint8, "w+", shape=images.shape)
        for start in starts:
            target[start : start + BATCH] = images[start : start + BATCH]
            if synced:
                target.flush()

    def appended(synced: bool) -> None:
        with h5py.File(path, "w") as file:
            data = file.create_dataset(
                "images",
                (0, *images.shape[1:]),
                "u1",
                maxshape=(None, *images.shape[1:]),
                chunks=(BATCH, *images.shape[1:]),
            )
            for start in starts:
                data.resize(min(start + BATCH, len(images)), axis=0)
                data[start:] = images[start : start + BATCH]
                if synced:
                    file.flush()
                    descriptor = os.open(path, os.O_RDONLY)
                    os.fsync(descriptor)
                    os.close(descriptor)

    return {
        "numpy.memmap": timed(lambda: mapped(False)),
        "synthaug, fsync='never'": timed(lambda: ours("never")),
        "HDF5, growing": timed(lambda: appended(False)),
        "numpy.memmap, synced": timed(lambda: mapped(True)),
        "synthaug, fsync='batch'": timed(lambda: ours("batch")),
        "HDF5, growing, synced": timed(lambda: appended(True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"batch": BATCH, "rounds": arguments.rounds, "sizes": {}}
    for size in arguments.sizes:
        count = max(4 * BATCH, 24 * 2**20 // (3 * size * size))
        images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            times = interleave(ways(Path(folder), images), arguments.rounds)
        print(f"\n{size} x {size}, {count:,} images")
        found = {}
        for name, seconds in times.items():
            floor = times[
                "numpy.memmap, synced" if "synced" in name or "batch" in name else "numpy.memmap"
            ]
            ratio = summary([a / b for a, b in zip(seconds, floor, strict=True)])
            rate = images.nbytes / summary(seconds)["median"] / 1e6
            found[name] = {
                "seconds": summary(seconds),
                "ratio": ratio,
                "megabytes_per_second": rate,
            }
            print(f"  {name:28} {rate:8,.0f} MB/s {ratio['median']:7.2f} x")
        results["sizes"][str(size)] = found
    print(write("cache_write", results))


if __name__ == "__main__":
    main()
