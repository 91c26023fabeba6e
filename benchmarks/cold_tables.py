"""The tables of the cold diffusion paper, on images and features of your choice.

    python benchmarks/cold_tables.py --train folder:cifar10/train --test folder:cifar10/test \
        --features torchscript:mobilenet_v2_96.pt --runs runs/cold --steps 20000
    python benchmarks/cold_tables.py --train digits:train --test digits:test --features pixels:8 \
        --runs runs/cold --steps 20 --width 8 --images 64 --only blur generation      # a minute

Restoration: a restorer per degradation, test images taken to the last level and restored directly,
by Algorithm 1 and by Algorithm 2 (the recursion's own image, and the last prediction). Generation:
from colors, with and without the noise that breaks the symmetry, beside noise as the "hot" case.

Fréchet distance between the features of the results and those of the test images themselves, as the
paper has it; the extractor is named. SSIM with a Gaussian window of 11 pixels (deviation 1.5), RMSE
over the whole set, both of images in [0, 1]. Training resumes: run it again after a kill.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _machine import write
from torch import Tensor

from synthaug import ColdDiffusion, TrainingConfig, load_dataset
from synthaug._noise import streams
from synthaug._pixels import to_images, to_pixels
from synthaug.degradations import (
    AbstractDegradation,
    Blur,
    GaussianNoise,
    Inpainting,
    Snow,
    SuperResolution,
)
from synthaug.features import extract, named
from synthaug.metrics import frechet_distance

RESTORATION: dict[str, AbstractDegradation] = {
    "blur": Blur(),
    "inpainting": Inpainting(),
    "super-resolution": SuperResolution(),
    "snow": Snow(),
}
GENERATION: dict[str, AbstractDegradation] = {
    "generation": Blur(
        num_levels=40,
        std=1.0,
        rate=0.05,
        schedule="exponential",
        padding="circular",
        exact_mean=True,
    ),
    "hot generation": GaussianNoise(),
}


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of images float (n, C, H, W) in [0, 1] (Wang et al. 2004)."""
    size = min(11, *(side - 1 + side % 2 for side in a.shape[2:]))
    taps = torch.arange(size) - size // 2
    window = torch.exp(-0.5 * (taps / 1.5) ** 2)
    window = (window / window.sum()).outer(window / window.sum())[None, None]

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


class Judge:
    """The test images, and how far others are from them."""

    def __init__(self, pixels: Tensor, extractor: Any) -> None:
        self.pixels, self.extractor = pixels, extractor
        self.features = extract(extractor, pixels)
        if len(pixels) < 2 * self.features.shape[1]:
            print(f"Few images: {len(pixels)} for {self.features.shape[1]} features.", flush=True)

    def frechet(self, images: Tensor) -> float:
        """Returns the distance of any images, float (n, C, H, W) in [-1, 1]."""
        found = extract(self.extractor, to_pixels(images))
        return frechet_distance(found, np.asarray(self.features), force=True)

    def compare(self, images: Tensor) -> dict[str, float]:
        """Returns the scores of restored test images, in their order."""
        a, b = (images.clamp(-1, 1) + 1) / 2, self.pixels.float() / 255
        return {
            "frechet": self.frechet(images),
            "ssim": ssim(a, b),
            "rmse": float((a - b).square().mean().sqrt()),
        }


def batches(pixels: Tensor, size: int) -> Iterator[tuple[Tensor, range]]:
    for start in range(0, len(pixels), size):
        yield to_images(pixels[start : start + size]), range(start, start + size)


@torch.inference_mode()
def restoration(cold: ColdDiffusion, judge: Judge, batch_size: int) -> dict[str, dict[str, float]]:
    T, shape = cold.degradation.num_levels, cold.image_shape
    found: dict[str, list[Tensor]] = {}
    for x, rows in batches(judge.pixels, batch_size):
        drawn = cold.degradation.realize(streams(rows[: len(x)]), shape)
        r = {name: value.to(cold.device) for name, value in drawn.items()}
        x_T = cold.degradation(x.to(cold.device), T, r)
        improved = replace(cold, algorithm="improved").restore(x_T, T, r)
        results = {
            "degraded": x_T,
            "direct": replace(cold, algorithm="direct").restore(x_T, T, r).x0,
            "Algorithm 1": replace(cold, algorithm="naive").restore(x_T, T, r).x0,
            "Algorithm 2": improved.x0,
            "Algorithm 2, last prediction": improved.prediction,
        }
        for name, images in results.items():
            found.setdefault(name, []).append(images.cpu())
    return {name: judge.compare(torch.cat(images)) for name, images in found.items()}


def generation(cold: ColdDiffusion, judge: Judge, batch_size: int) -> dict[str, dict[str, float]]:
    cold = replace(cold, classes=("image",))
    ways: dict[str, dict[str, Any]] = {"broken symmetry": {}, "symmetric": {"symmetry_noise": 0.0}}
    if cold.colors is None:
        ways = {"fixed noise": {"symmetry_noise": 0.0}}
    table = {}
    for name, settings in ways.items():
        synthesizer = replace(cold, **settings)
        plan = synthesizer.plan(per_class=len(judge.pixels), seed=0)
        images = torch.cat([synthesizer.draw(rows) for rows in plan.batches(batch_size)])
        table[name] = {"frechet": judge.frechet(images)}
    return table


def run(options: argparse.Namespace) -> dict[str, Any]:
    size = options.image_size
    train, test = (load_dataset(s, image_size=size) for s in (options.train, options.test))
    order = np.random.default_rng(0).permutation(len(test))[: options.images]
    judge = Judge(
        test.read(order), named(options.features, trusted=True, device=options.device or "cpu")
    )
    config = TrainingConfig(
        steps=options.steps,
        batch_size=options.batch_size,
        decay_steps=options.steps // 5,
        ema_decay=0.999,
        precision=options.precision,
        device=options.device,
    )
    tasks = {**RESTORATION, **GENERATION}
    half = len(judge.features) // 2
    result: dict[str, Any] = {
        "features": judge.extractor.name,
        "images": len(judge.pixels),
        "half_to_half": frechet_distance(
            np.asarray(judge.features[:half]),
            np.asarray(judge.features[half : 2 * half]),
            force=True,
        ),
        "image_shape": list(train.image_shape),
        "half_to_half_images": half,
        "steps": options.steps,
        "width": options.width,
        "num_steps": options.num_steps,
        "tasks": {},
    }
    for task in options.only or tasks:
        degradation = tasks[task]
        if task == "super-resolution":  # down to 4 pixels, as the paper does from 32
            levels = max(1, int(np.log2(train.image_shape[1] // 4)))
            degradation = SuperResolution(num_levels=levels)
        if isinstance(degradation, Blur) and train.image_shape[1] <= 8:
            degradation = replace(degradation, kernel_size=5)
        if isinstance(degradation, Inpainting):  # the paper's hole is for 32 pixels
            degradation = replace(degradation, std_step=0.1 * train.image_shape[1] / 32)
        started = time.monotonic()
        cold, trained = ColdDiffusion.fit(
            train,
            Path(options.runs) / task.replace(" ", "-"),
            degradation=degradation,
            config=config,
            channels=options.width,
            num_layers=options.num_layers,
            horizontal_flip=options.horizontal_flip,
            progress=False,
        )
        minutes = (time.monotonic() - started) / 60
        measure = restoration if task in RESTORATION else generation
        if options.num_steps:
            steps = min(options.num_steps, cold.degradation.num_levels)
            cold = replace(cold, num_steps=steps)
        table = measure(cold, judge, options.eval_batch_size)
        result["tasks"][task] = {
            "degradation": degradation.config(),
            "loss": trained.loss_curve[-1][1],
            "training_minutes": minutes,
            "table": table,
        }
        for way, numbers in table.items():
            text = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
            print(f"{task:18} {way:30} {text}", flush=True)
        write(options.name, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--features", required=True, help="As in `synthaug.features.named`")
    parser.add_argument("--runs", required=True, help="Folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--num-layers", type=int, default=1)
    parser.add_argument("--horizontal-flip", action="store_true")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--image-size", type=int, help="Make images smaller")
    parser.add_argument("--num-steps", type=int, help="Levels to visit, at most; all by default")
    parser.add_argument("--eval-batch-size", type=int, default=100)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="+", choices=[*RESTORATION, *GENERATION])
    parser.add_argument("--name", default="cold_tables", help="Of the JSON file")
    options = parser.parse_args()
    run(options)
