"""Compares predicted costs with real ones, and makes a plan larger than the memory.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/cost_model.py

1. The rate of one core is measured on a batch, for a network of 32 x 32 and one of 64 x 64 pixels.
   Then more images are generated into a cache, and the prediction is compared with what they took.
2. From these rates: CIFAR-10, ImageNet and 100 million images, on one core and on many.
3. Slices of a plan of 100 million rows are made, and the memory and the time of that are measured.

Seconds are of the processor, which with one thread is what an idle machine would take.
"""

import argparse
import gc
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _machine import machine, write

from synthaug import ClassConditional, Plan, SamplerConfig, generate
from synthaug.caches import estimate_cost, evaluations_per_second
from synthaug.denoisers import build_unet
from synthaug.synthesizers import DiffusionModel

STEPS, BATCH = 20, 16
JOBS = {  # images, side in pixels
    "CIFAR-10, as many again": (50_000, 32),
    "ImageNet, as many again": (1_281_167, 64),
    "100 million": (100_000_000, 32),
}


def synthesizer_of(side: int) -> ClassConditional:
    """Random weights: they take as long as any."""
    torch.manual_seed(0)
    network = build_unet((3, side, side), num_classes=10)
    model = DiffusionModel(
        network=network.eval().requires_grad_(False),
        scheduler_config={"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"},
        classes=tuple("abcdefghij"),
        image_shape=(3, side, side),
    )
    return ClassConditional(model=model, sampler=SamplerConfig(num_inference_steps=STEPS))


def calibrated(side: int, images: int) -> dict[str, Any]:
    synthesizer = synthesizer_of(side)
    plan = synthesizer.plan(per_class=max(1, images // 10))
    with patch("time.perf_counter", time.process_time):
        rate = evaluations_per_second(synthesizer, plan[:BATCH], batch_size=BATCH, seconds=0)
    shape = synthesizer.image_shape
    cost = estimate_cost(len(plan), shape, evaluations_per_image=STEPS, evaluations_per_second=rate)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        cache = generate(synthesizer, plan, Path(folder) / "a.h5", batch_size=BATCH, progress=False)
        taken = time.process_time() - started
        size = cache.path.stat().st_size
    assert cost.seconds is not None
    return {
        "parameters": sum(p.numel() for p in synthesizer.model.network.parameters()),
        "evaluations_per_image": STEPS,
        "evaluations_per_second": rate,
        "images": len(plan),
        "predicted_seconds": cost.seconds,
        "seconds": taken,
        "predicted_to_taken": cost.seconds / taken,
        "predicted_bytes": cost.bytes,
        "bytes": size,
    }


def predicted(rates: dict[int, float], devices: int) -> dict[str, Any]:
    table = {}
    for name, (images, side) in JOBS.items():
        cost = estimate_cost(
            images,
            (3, side, side),
            evaluations_per_image=STEPS,
            evaluations_per_second=rates[side],
            devices=devices,
            parameters=1,
        )
        assert cost.seconds is not None
        table[name] = {
            "side": side,
            "images": images,
            "cache_gb": cost.bytes / 1e9,
            "disk_gb": cost.disk_bytes / 1e9,
            "device_hours": cost.device_hours,
            "hours": cost.seconds / 3600,
        }
    return table


def sliced(rows: int, size: int, slices: int) -> dict[str, Any]:
    """Makes slices of a large plan, spread over all of it, the first and the last among them."""
    quota = np.full(1000, rows // 1000)
    settings: dict[str, Any] = {
        "classes": [f"class {i}" for i in range(1000)],
        "settings": {"steps": STEPS},
    }
    parameters = {"guidance_scale": [1.0, 1.5]}
    gc.collect()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, seeds = time.process_time(), []
    for start in np.linspace(0, rows - size, slices).astype(int):
        part = Plan.build(
            quota, **settings, seed=0, parameters=parameters, rows=slice(start, start + size)
        )
        seeds.append(part["seed"])
        del part
    taken = time.process_time() - started
    made = len(np.concatenate(seeds))
    return {
        "rows": rows,
        "rows_per_slice": size,
        "slices": slices,
        "rows_made": made,
        "different_seeds": len(np.unique(np.concatenate(seeds))),
        "peak_gib_before": held,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "seconds_per_million_rows": 1e6 * taken / made,
        "core_minutes_for_all_rows": taken * rows / made / 60,
        "in_memory_gb": rows * 8 * 6 / 1e9,
    }


def main() -> None:
    """Runs and writes `results/cost_model.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--slice", type=int, default=250_000, help="rows of a slice")
    parser.add_argument("--slices", type=int, default=8, help="that are made; 400 are all of them")
    parser.add_argument("--images", type=int, default=160, help="to compare a prediction with")
    parser.add_argument("--devices", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "settings": vars(args)}
    result["plan"] = sliced(args.rows, args.slice, args.slices)
    print(result["plan"])
    result["calibration"] = {
        32: calibrated(32, args.images),
        64: calibrated(64, args.images // 4),
    }
    print(result["calibration"])
    rates = {side: c["evaluations_per_second"] for side, c in result["calibration"].items()}
    result["one core"] = predicted(rates, 1)
    result[f"{args.devices} cores"] = predicted(rates, args.devices)
    print(write("cost_model", result))


if __name__ == "__main__":
    main()
