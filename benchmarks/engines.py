"""Engines: are the images the same, what do two processes gain, what does an engine cost per row?

    python benchmarks/engines.py

Everything runs on two cores of this machine, the ways in turn. The network is a small random U-Net;
each process has one thread. Rates are by the clock, and mean little while other work runs; costs
are processor time, which other work changes less. Writes results/engines_*.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import summary, write

import synthaug

SHAPE = (3, 32, 32)
CLASSES = ("cat", "dog", "emu", "fox")
PARTS = ("overhead", "same_images", "efficiency")


def note(trace: Path, values: Sequence[float]) -> None:
    """Adds a line to this process's notes."""
    with open(trace / f"{os.getpid()}.json", "a") as file:
        file.write(json.dumps(values) + "\n")


def notes(trace: Path) -> list[list[list[float]]]:
    """The notes of each process."""
    files = sorted(trace.glob("*.json"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


class Timed:
    """A class-conditional model that notes when it draws, beside the images.

    Args:
        checkpoint: Directory in diffusers layout.
        trace: A folder for the notes of each process.
    """

    classes = CLASSES

    def __init__(self, checkpoint: Path, trace: Path) -> None:
        self.model = synthaug.ClassConditional.from_pretrained(
            checkpoint, classes=CLASSES, sampler={"num_inference_steps": 5}, device="cpu"
        )
        self.image_shape = self.model.image_shape
        self.trace = trace

    def draw(self, rows: synthaug.Plan) -> torch.Tensor:
        """Does what the model does."""
        started = time.time(), time.process_time()
        images = self.model.draw(rows)
        note(self.trace, [*started, time.time(), time.process_time(), len(rows)])
        return images

    def recipe(self) -> dict[str, Any]:
        """Does what the model does."""
        return self.model.recipe()


class Free:
    """Gray images that cost next to nothing: what is left is the engine."""

    classes = CLASSES
    image_shape = SHAPE

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def draw(self, rows: synthaug.Plan) -> torch.Tensor:
        """Zeros, float32 (n, 3, 32, 32)."""
        note(self.trace, [time.process_time()])
        return torch.zeros(1, *SHAPE).expand(len(rows), *SHAPE)

    def recipe(self) -> dict[str, Any]:
        """No settings."""
        return {"synthesizer": "Free", "settings": {}}


def save_model(path: Path) -> None:
    """A small random U-Net."""
    from diffusers import DDIMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SHAPE[-1],
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=len(CLASSES),
    )
    DDIMPipeline(network, DDPMScheduler()).save_pretrained(path)


# What a process runs


def draw(folder: Path, rows: int, engine: str, shard: str | None) -> None:
    """Draws the plan into folder/a.h5, as a user's script would."""
    torch.set_num_threads(1)
    checkpoint = folder.parent / "model"
    synthesizer = Timed(checkpoint, folder)
    plan = synthesizer.model.plan(per_class=rows // len(CLASSES), seed=0)
    chosen: Any = engine
    if engine.startswith("ray"):
        actors = int(engine.removeprefix("ray"))
        chosen = synthaug.caches.RayEngine(
            actors=actors, num_cpus=2 / actors, load=lambda: Timed(checkpoint, folder)
        )
    synthaug.generate(
        synthesizer, plan, folder / "a.h5", engine=chosen, shard=shard, progress=False
    )


def commands(folder: Path, way: str, rows: int) -> list[list[str]]:
    """The processes of one way to draw."""
    base = [str(Path(__file__).absolute()), "--draw", str(folder), "--rows", str(rows)]
    python, cores = sys.executable, ["taskset", "-c", "0,1"]
    if way.startswith("core"):
        return [["taskset", "-c", way[-1], python, *base]]
    if way.startswith("shards"):
        count = int(way[-1])
        return [
            ["taskset", "-c", str(i % 2), python, *base, "--shard", f"{i + 1}/{count}"]
            for i in range(count)
        ]
    if way.startswith("torchrun"):
        run = [python, "-m", "torch.distributed.run", "--nproc-per-node", way[-1]]
        return [[*cores, *run, *base, "--engine", "torchrun"]]
    return [[*cores, python, *base, "--engine", way]]


def run(root: Path, way: str, rows: int) -> tuple[Path, dict[str, float]]:
    """Runs one way; the cache, and images per second from the first draw to the last."""
    folder = Path(tempfile.mkdtemp(prefix=way, dir=root))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as the other ways
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    launched = time.time()
    jobs = [subprocess.Popen(c, env=environment) for c in commands(folder, way, rows)]
    for job in jobs:
        if job.wait():
            raise RuntimeError(f"{way} failed")
    whole = time.time() - launched
    by_process = notes(folder)
    first = min(found[0][0] for found in by_process)
    last = max(found[-1][2] for found in by_process)
    images = sum(n[4] for found in by_process for n in found)
    return folder / "a.h5", {
        "images_per_second": images / (last - first),
        "processor_seconds_per_image": sum(f[-1][3] - f[0][1] for f in by_process) / images,
        "seconds_before_the_first_draw": first - launched,
        "seconds_after_the_last_draw": launched + whole - last,
        "processes": len(by_process),
    }


# What is measured


def same_images(root: Path, rows: int) -> dict[str, Any]:
    """Pixels that differ from those of one process, by way."""
    reference, _ = run(root, "core0", rows)
    cache = synthaug.SynthCache(reference)
    expected = cache.read(np.arange(rows)).short()
    found = {}
    for way in ("torchrun2", "shards3", "ray2", "ray4"):
        path, course = run(root, way, rows)
        pixels = synthaug.SynthCache(path).read(np.arange(rows)).short()
        difference = (pixels - expected).abs()
        found[way] = {
            "rows_that_differ": int((difference.flatten(1).amax(1) > 0).sum()),
            "largest_difference_in_gray_levels": int(difference.max()),
            "files_are_equal": path.read_bytes() == reference.read_bytes(),
            "processes_that_drew": course["processes"],
        }
        print(way, found[way], flush=True)
    return {"rows": rows, "against_one_process": found}


def efficiency(root: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Rates of two processes over those of one on either core."""
    ways = ("core0", "shards2", "core1", "torchrun2", "ray2")
    courses: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            courses[way].append(run(root, way, rows)[1])
            print(way, courses[way][-1], flush=True)
    rates = {way: [c["images_per_second"] for c in courses[way]] for way in ways}
    both = [a + b for a, b in zip(rates["core0"], rates["core1"], strict=True)]
    measured = {
        name: {way: summary([course[name] for course in courses[way]]) for way in ways}
        for name in courses["core0"][0]
    }
    cost = {way: [c["processor_seconds_per_image"] for c in courses[way]] for way in ways}
    return {
        "rows": rows,
        **measured,
        "efficiency_of_two_by_the_clock": {
            way: summary([r / b for r, b in zip(rates[way], both, strict=True)])
            for way in ways
            if way[-1] == "2"
        },
        "efficiency_in_processor_time": {
            way: summary([a / b for a, b in zip(cost["core0"], cost[way], strict=True)])
            for way in ways
            if way[-1] == "2"
        },
    }


def overhead(root: Path, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Processor time per row where drawing is free: from two sizes of job, so without the start."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
    plans = {
        rows: synthaug.Plan.build([rows // 4] * 4, classes=CLASSES, settings={}, seed=0)
        for rows in sizes
    }
    ways: Mapping[str, dict[str, Any]] = {
        "local": {},
        "one shard": {"shard": "1/1"},
        "ray, one actor": {"engine": synthaug.caches.RayEngine(actors=1)},
    }
    costs: dict[str, dict[int, list[float]]] = {w: {n: [] for n in sizes} for w in ways}
    for turn in range(rounds + 1):
        for way, arguments in ways.items():
            for rows in sizes:
                folder = Path(tempfile.mkdtemp(dir=root))
                started = time.process_time()
                synthaug.generate(
                    Free(folder), plans[rows], folder / "a.h5", progress=False, **arguments
                )
                used = time.process_time() - started
                if "engine" in arguments:
                    used += sum(found[-1][0] - found[0][0] for found in notes(folder))
                if turn:  # the first is to warm up
                    costs[way][rows].append(used)
                shutil.rmtree(folder)
    ray.shutdown()
    few, many = sizes
    return {
        "rows": list(sizes),
        "bytes_per_row": int(np.prod(SHAPE)),
        "processor_microseconds_per_row": {
            way: summary(
                [1e6 * (b - a) / (many - few) for a, b in zip(used[few], used[many], strict=True)]
            )
            for way, used in costs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs=2, default=(8_192, 32_768))
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    for name, default in (("draw", None), ("engine", "local"), ("shard", None)):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        draw(Path(arguments.draw), arguments.rows, arguments.engine, arguments.shard)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_model(root / "model")
        for part in arguments.parts:
            load = {"load_at_start": round(os.getloadavg()[0], 1)}
            if part == "overhead":
                found = overhead(root, arguments.sizes, arguments.rounds)
            elif part == "same_images":
                found = same_images(root, arguments.rows)
            else:
                found = efficiency(root, arguments.rows, arguments.rounds)
            print(write(f"engines_{part}", load | found))


if __name__ == "__main__":
    main()
