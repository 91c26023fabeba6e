"""A newcomer's path, timed: from `pip install` to the first mixed batch of their own folder.

    python benchmarks/newcomer.py

In a folder that is deleted afterwards: the wheel is built from this checkout and installed, with
all that it needs, into a new virtual environment, without pip's cache. Then everything runs there:
`import synthaug`, `synthaug cache import` of a folder of images made elsewhere, `synthaug audit` of
them, and a script that wraps an `ImageFolder` and takes one batch of a `DataLoader`. Each step is a
process of its own, so imports count every time. Seconds by the clock, and those of the processor,
which other work on the machine changes less.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import write

ROOT = Path(__file__).parents[1]
CLASSES = ("disc", "ring", "square")

BATCH = """
import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

import synthaug

transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
train = datasets.ImageFolder("photos/train", transform)
cache = synthaug.SynthCache("theirs.h5")
report = synthaug.AuditReport.from_json("audit.json")
train = synthaug.MixedDataset(train, cache, audit=report, fraction=0.5)
images, labels = next(iter(DataLoader(train, batch_size=64, shuffle=True)))
assert images.shape == (64, 3, 64, 64), images.shape
print(train)
"""


def write_photos(folder: Path, per_class: int, size: int, seed: int) -> None:
    """Class folders of JPEG files: discs, rings and squares of any place, size and colors."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            (cx, cy), r = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3)
            round_, square = np.hypot(x - cx, y - cy), np.maximum(abs(x - cx), abs(y - cy))
            inside = {"disc": round_ < r, "ring": abs(round_ - r) < r / 4, "square": square < r}
            front, back = rng.uniform(0, 255, (2, 3))
            noise = rng.normal(0, 10, (size, size, 3))
            pixels = np.where(inside[name][..., None], front, back) + noise
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{i:04}.jpg", quality=92)


def timed(folder: Path, *command: str | Path, codes: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Runs a command, and says how long it and its children took."""

    def processor() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, start = processor(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = {"seconds": time.perf_counter() - start, "processor_seconds": processor() - before}
    if done.returncode not in codes:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return {name: round(value, 3) for name, value in took.items()}


def path(folder: Path, per_class: int) -> dict[str, Any]:
    """All steps, in their order."""
    for part, count, seed in (("train", per_class, 0), ("holdout", per_class, 1)):
        write_photos(folder / "photos" / part, count, 64, seed)
    write_photos(folder / "theirs", per_class, 64, 2)
    (folder / "batch.py").write_text(BATCH)

    pip = [sys.executable, "-m", "pip", "--no-cache-dir", "--disable-pip-version-check"]
    steps = {"wheel": timed(folder, *pip, "wheel", "-q", "--no-deps", "-w", ".", ROOT)}
    (wheel,) = folder.glob("*.whl")
    steps["environment"] = timed(folder, sys.executable, "-m", "venv", "env")
    there = folder / "env/bin"
    python, synthaug = there / "python", there / "synthaug"
    steps["install"] = timed(folder, python, *pip[1:], "install", "-q", wheel)
    sites = next((folder / "env/lib").glob("python*/site-packages"))
    installed = {
        "wheel_bytes": wheel.stat().st_size,
        "packages": len(list(sites.glob("*.dist-info"))),
        "gigabytes": round(
            sum(f.lstat().st_size for f in sites.rglob("*") if f.is_file()) / 1e9, 2
        ),
    }

    steps["first import"] = timed(folder, python, "-c", "import synthaug")
    ways = {"python": "pass", "import": "import synthaug", "torch": "import torch"}
    again = {
        name: [timed(folder, python, "-c", code) for _ in range(5)] for name, code in ways.items()
    }
    imports = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in again.items()
    }
    steps["cache import"] = timed(
        folder, synthaug, "cache", "import", "folder:theirs", "theirs.h5", "--name", "shapes"
    )
    audit = ("audit", "theirs.h5", "folder:photos/train", "--holdout", "folder:photos/holdout")
    steps["audit"] = timed(folder, synthaug, *audit, codes=(0, 1, 3))
    steps["first batch"] = timed(folder, python, "batch.py")
    return {
        "images": {"real": per_class * len(CLASSES), "synthetic": per_class * len(CLASSES)},
        "installed": installed,
        "steps": steps,
        "imports": imports,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--per-class", type=int, default=200, help="images of each kind and class")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = path(Path(temporary), arguments.per_class)
    for step, took in result["steps"].items():
        print(f"{step:14} {took['seconds']:8.1f} s, processor {took['processor_seconds']:8.1f} s")
    print(result["installed"], result["imports"])
    print(write("newcomer", result))
