"""Memory and time of a plan of very many rows, through every step from the plan to training.

    python benchmarks/plan_memory.py --rows 10000000 100000000 --folder /tmp

Each step runs in a process of its own. Peak is the largest resident memory of that process
(`ru_maxrss`, which counts pages of files that are mapped, too), less what it was after
`import synthaug` and torch. Images have 2 x 2 pixels. Drawing all rows would take days, so
`generate` draws one shard of 1,024, and 1,024 rows are written to be audited, verified and mixed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import write

import synthaug
from synthaug import MixedDataset, Plan, SynthCache, caches

CLASSES = tuple("abcdefghij")
SHAPE = (1, 2, 2)
DONE = 1024
RNG = np.random.default_rng(0)


def images(count: int) -> torch.Tensor:
    """Random images, uint8 (count, 1, 2, 2)."""
    return torch.from_numpy(RNG.integers(0, 256, (count, *SHAPE), np.uint8))


def synthesizer() -> synthaug.synthesizers.Constant:
    """One that draws a gray of its own for every class."""
    pixels = torch.arange(len(CLASSES), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)
    return synthaug.synthesizers.Constant(pixels.contiguous(), range(len(CLASSES)), classes=CLASSES)


def some(rows: int) -> np.ndarray:
    """Rows that are done, spread over all."""
    return np.linspace(0, rows - 1, DONE).astype(np.int64)


def build(folder: Path, rows: int) -> None:
    """Lays a plan out by its quota, and looks at some of it."""
    plan = Plan.build([rows // 10] * 10, classes=CLASSES, settings={}, seed=0)
    assert len(plan[some(rows)]) == DONE
    assert plan[5:9].row(1) == plan.row(6)


def create(folder: Path, rows: int) -> None:
    """Lays a cache of that plan out on the disk: every seed is hashed here."""
    plan = Plan.build([rows // 10] * 10, classes=CLASSES, settings={}, seed=0)
    manifest = {"recipe": synthesizer().recipe()}
    SynthCache.create(folder / "whole.h5", plan, image_shape=SHAPE, manifest=manifest)


def open_(folder: Path, rows: int) -> None:
    """Opens the cache, which compares its plan with its digest, and looks at some of it."""
    cache = SynthCache(folder / "whole.h5")
    assert len(cache.plan[some(rows)]) == DONE
    assert not cache.state_of(some(rows)).any()
    repr(cache)


def generate(folder: Path, rows: int) -> None:
    """Draws one shard of 1,024 into a part of the cache."""
    path = folder / "whole.h5"
    plan = SynthCache(path).plan
    synthaug.generate(synthesizer(), plan, path, shard="2/1024", progress=False)


def fill(folder: Path, rows: int) -> None:
    """Writes some images, and verifies them."""
    cache = SynthCache(folder / "whole.h5")
    cache.write(some(rows), images(DONE))
    assert not len(cache.verify())


def audit(folder: Path, rows: int) -> None:
    """Audits those images."""
    report = synthaug.audit(SynthCache(folder / "whole.h5"), images(500), holdout=images(200))
    assert report.passed.sum() <= DONE


def mix(folder: Path, rows: int) -> None:
    """Mixes them with real images, and reads every item of an epoch."""
    real = synthaug.images.LabeledImages(
        images(1000), np.arange(1000) % 10, CLASSES, name="real images"
    )
    mixed = MixedDataset(real, SynthCache(folder / "whole.h5"), audit=None, fraction=0.5)
    mixed.__getitems__(list(range(len(mixed))))


def halves(folder: Path, rows: int) -> None:
    """Makes the two caches that are merged next, of slices of the plan that the first one holds."""
    cache = SynthCache(folder / "whole.h5")
    for i, part in enumerate((slice(0, rows // 2), slice(rows // 2, rows))):
        half = SynthCache.create(
            folder / f"half-{i}.h5",
            cache.plan[part],
            image_shape=SHAPE,
            manifest={"recipe": cache.manifest["recipe"]},
        )
        half.write(some(rows // 2), images(DONE))
    folder.joinpath("whole.h5").unlink()


def merge(folder: Path, rows: int) -> None:
    """Merges two caches of half of the rows each."""
    merged = caches.merge([folder / "half-0.h5", folder / "half-1.h5"], folder / "merged.h5")
    assert len(merged) == rows


STEPS: dict[str, Callable[[Path, int], None]] = {
    step.__name__.strip("_"): step
    for step in (build, create, open_, generate, fill, audit, mix, halves, merge)
}


def measure(step: str, folder: Path, rows: int) -> dict[str, Any]:
    """Megabytes and seconds of one step in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    STEPS[step](folder, rows)
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "peak_mb": round((after.ru_maxrss - before.ru_maxrss) * 1024 / 1e6),
        "absolute_mb": round(after.ru_maxrss * 1024 / 1e6),
        "processor_seconds": round(processor, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS, help="run one step in this process, for `main`")
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.folder, arguments.rows[0])))
        return
    result: dict[str, Any] = {
        name: " ".join((step.__doc__ or "").split()) for name, step in STEPS.items()
    }
    result = {"steps": result, "rows": {}}
    for rows in arguments.rows:
        found = result["rows"][f"{rows:,}"] = {}
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for step in arguments.steps:
                command = [sys.executable, __file__, "--step", step, "--folder", folder]
                line = subprocess.run(
                    [*command, "--rows", str(rows)], stdout=subprocess.PIPE, text=True, check=True
                ).stdout.splitlines()[-1]
                found[step] = json.loads(line)
                print(f"{rows:,}", step, found[step], flush=True)
                write("plan_memory", result)


if __name__ == "__main__":
    main()
