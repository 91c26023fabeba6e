"""Compares the estimated with the real cost of drawing, for every method.

    OMP_NUM_THREADS=1 python benchmarks/cost_methods.py

Each network is as `train` makes it, after one step: how good it is does not change what it costs.
Estimates, as `synthaug plan --estimate` makes them, and whole jobs of `generate` take turns in one
process. Seconds are of the processor, which with one thread are those of an idle machine. Writes
`results/cost_methods.json`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _machine import summary, write, written

from synthaug import Cascade, ClassConditional, ColdDiffusion, Plan, TrainingConfig, generate
from synthaug.caches import estimate_cost, evaluations_per_second
from synthaug.degradations import Blur
from synthaug.images import LabeledImages
from synthaug.synthesizers import DiffusionInversion, InversionConfig, LowDensity, StageConfig

ONE_STEP = TrainingConfig(steps=1, batch_size=8, device="cpu")
CLASSES = tuple("abcdefghij")


def pictures(size: int, count: int = 160) -> LabeledImages:
    """Noise in color."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
    return LabeledImages(torch.from_numpy(pixels), np.arange(count) % len(CLASSES), CLASSES)


def conditional(folder: Path, size: int, channels: int = 32) -> ClassConditional:
    real = pictures(size)
    return ClassConditional.fit(
        real, folder / f"base{size}", config=ONE_STEP, channels=channels, progress=False
    )[0]


def plain(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    base = conditional(folder, size).with_settings(num_inference_steps=steps)
    return base, base.plan(per_class=1000, guidance_scale=[1.0, 2.0])


def few_steps(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    base = conditional(folder, size).with_settings(num_inference_steps=min(steps, 2))
    return base, base.plan(per_class=1000)


def variants(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    base = conditional(folder, size).with_settings(num_inference_steps=steps)
    base = base.with_sources(pictures(size))
    return base, base.plan(ratio=50, strength=[0.3, 0.8])


def cascade(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    base = conditional(folder, size // 2)
    stage, _ = Cascade.fit_stage(
        pictures(size),
        folder / "stage",
        StageConfig(low_size=size // 2),
        config=ONE_STEP,
        progress=False,
    )
    whole = Cascade(base=base, stages=[stage]).with_settings(num_inference_steps=steps)
    return whole, whole.plan(per_class=1000)


def cold(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    restorer, _ = ColdDiffusion.fit(
        pictures(size),
        folder / "cold",
        degradation=Blur(num_levels=steps, kernel_size=5),
        config=ONE_STEP,
        progress=False,
    )
    restorer = restorer.with_sources(pictures(size))
    return restorer, restorer.plan(ratio=50)


def low_density(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    base = conditional(folder, size)
    steered, _ = LowDensity.fit(
        pictures(size),
        base,
        folder / "low",
        config=ONE_STEP,
        progress=False,
        num_synthetic=40,
        noise_levels=2,
        embedding_dim=8,
    )
    steered = steered.with_settings(num_inference_steps=steps)
    return steered, steered.plan(per_class=1000, alpha=[0.0, 0.5], beta=1.0)


def inversion(folder: Path, size: int, steps: int) -> tuple[Any, Plan]:
    real = pictures(size, 40)
    trained, _ = DiffusionInversion.fit_generator(
        real, folder / "tokens", config=ONE_STEP, progress=False
    )
    inverted, _ = trained.fit(
        real, folder / "inverted", config=InversionConfig(updates=1), progress=False
    )
    inverted = inverted.with_settings(num_inference_steps=steps)
    return inverted, inverted.plan(ratio=250)


METHODS: dict[str, Callable[[Path, int, int], tuple[Any, Plan]]] = {
    "class-conditional": plain,
    "two steps": few_steps,
    "variants": variants,
    "cascade": cascade,
    "cold": cold,
    "low density": low_density,
    "inversion": inversion,
}


def estimated(synthesizer: Any, plan: Plan, batch_size: int) -> float:
    rate = evaluations_per_second(synthesizer, plan, batch_size=batch_size)
    cost = estimate_cost(
        len(plan),
        synthesizer.image_shape,
        evaluations_per_image=float(synthesizer.evaluations(plan).mean()),
        evaluations_per_second=rate,
    )
    assert cost.seconds is not None
    return cost.seconds


def taken(synthesizer: Any, plan: Plan, batch_size: int, folder: Path) -> float:
    path = folder / "truth.h5"
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    generate(synthesizer, plan, path, batch_size=batch_size, progress=False)
    return time.perf_counter() - started


def compared(method: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """The ratios of estimate to truth for jobs of about so many seconds, whatever the machine."""
    with tempfile.TemporaryDirectory() as name, patch("time.perf_counter", time.process_time):
        folder = Path(name)
        synthesizer, rows = METHODS[method](folder, size, args.steps)
        rate = len(rows) / estimated(synthesizer, rows, args.batch_size)
        images = max(args.batch_size, int(args.seconds * rate))
        plan = rows[np.arange(images) * len(rows) // images]
        pairs = [
            (
                estimated(synthesizer, plan, args.batch_size),
                taken(synthesizer, plan, args.batch_size, folder),
            )
            for _ in range(args.rounds)
        ]
    return {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "images": len(plan),
        "evaluations_per_image": float(synthesizer.evaluations(plan).mean()),
        "estimated_seconds": summary([estimate for estimate, _ in pairs]),
        "seconds": summary([truth for _, truth in pairs]),
        "estimate_to_truth": summary([estimate / truth for estimate, truth in pairs]),
    }


def main() -> None:
    """Measures what is not yet in the file, and writes after each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--steps", type=int, default=10, help="of the samplers")
    parser.add_argument("--seconds", type=float, default=10, help="of a job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", default="cost_methods", help="name of the file in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = written(args.out).get("methods", {})
    for size in args.sizes:
        for method in args.methods:
            name = f"{method}, {size} pixels"
            if name not in done:
                done[name] = compared(method, size, args)
                settings = {
                    k: v for k, v in vars(args).items() if k not in ("methods", "sizes", "steps")
                }
                write(args.out, {"settings": settings, "methods": done})
            print(name, done[name]["estimate_to_truth"], flush=True)


if __name__ == "__main__":
    main()
