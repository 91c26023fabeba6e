"""Does degrading and restoring training images help a classifier, and what does it cost?

    python benchmarks/cold_augmentation.py --train folder:cifar10/train --test folder:cifar10/test \
        --checkpoint runs/cold/blur --steps 4000 --horizontal-flip
    python benchmarks/cold_augmentation.py --train digits:train --test digits:test \
        --checkpoint runs/cold/blur --steps 20 --seeds 1 --model small-cnn

The same classifier, from the same initial weights, with the same order of images: without
augmentation, with the standard one, with `ColdRestore` at several severities, and with both. Tested
on clean images, and on images corrupted by what no arm was trained with (noise, holes, snow) and by
blur. Cost: seconds per image of each augmentation alone, in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _machine import write
from torch import Tensor

from synthaug import ClassifierConfig, ColdDiffusion, load_dataset
from synthaug._images.source import ImageSource
from synthaug._noise import streams
from synthaug._pixels import to_images, to_pixels
from synthaug.degradations import Blur, GaussianNoise, Inpainting, Snow
from synthaug.evaluation import StandardAugment
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import FitSettings, fit, seed_initial_weights
from synthaug.evaluation._inputs import Batches
from synthaug.transforms import ColdRestore

Augment = Callable[[Tensor], Tensor]


def corrupted(pixels: Tensor) -> dict[str, Tensor]:
    """The test images as they are, and in five other states; uint8 (n, C, H, W)."""
    size = pixels.shape[-1]
    taps = min(11, size // 2 * 2 - 1)
    blur = Blur(kernel_size=taps, std=max(0.5, size / 64), schedule="constant")
    ways = {
        "light blur": (blur, 4),
        "heavy blur": (blur, 16),
        "noise": (GaussianNoise(), 20),
        "holes": (Inpainting(std_step=0.1 * size / 32), 40),
        "snow": (Snow(), 60),
    }
    found = {"clean": pixels}
    generators = streams(range(len(pixels)))
    for name, (degradation, s) in ways.items():
        r = degradation.realize(generators, tuple(pixels.shape[1:]))  # type: ignore[arg-type]
        found[name] = to_pixels(degradation(to_images(pixels), s, r))
    return found


def arms(cold: ColdDiffusion, options: argparse.Namespace, size: int) -> dict[str, Augment | None]:
    standard = StandardAugment(padding=size // 8, horizontal_flip=options.horizontal_flip)
    found: dict[str, Augment | None] = {"none": None, "standard": standard}
    for severity in options.severities:
        restore = ColdRestore(cold, severity_range=(severity, severity), p=options.p)

        # A plain function, since transforms of torchvision are called image by image.
        def alone(pixels: Tensor, restore: ColdRestore = restore) -> Tensor:
            return restore(pixels)

        def both(pixels: Tensor, restore: ColdRestore = restore) -> Tensor:
            return standard(restore(pixels))

        found[f"cold {severity:g}"] = alone
        found[f"standard + cold {severity:g}"] = both
    return found


def seconds_per_image(augment: Augment | None, pixels: Tensor) -> float:
    if augment is None:
        return 0.0
    times = []
    for _ in range(3):
        started = time.perf_counter()
        augment(pixels)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / len(pixels)


def run(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    cold = ColdDiffusion.from_pretrained(
        options.checkpoint, device=device, num_steps=options.num_steps
    )
    size = cold.image_shape[1]
    train, test = (load_dataset(s, image_size=size) for s in (options.train, options.test))
    if options.train_images:
        chosen = np.random.default_rng(0).permutation(len(train))[: options.train_images]
        train = train.subset(chosen)
    labels = torch.tensor(test.targets)
    tests = corrupted(test.read(range(len(test))))
    given = arms(cold, options, train.image_shape[1])
    source = Batches(ImageSource.open(train, "`train`"), train.classes, device)
    settings = FitSettings.of(
        ClassifierConfig(steps=options.steps, batch_size=options.batch_size), "float32"
    )
    rows: list[dict[str, Any]] = []
    for name, augment in given.items():
        for seed in range(options.seeds):
            seed_initial_weights(seed)
            network = build_classifier(options.model, len(train.classes), train.image_shape)
            started = time.monotonic()
            fit(
                network.to(device),
                source,
                settings,
                seed=seed,
                run=name,
                augment=augment,
            )
            seconds = time.monotonic() - started
            network.eval()
            accuracy = {}
            with torch.inference_mode():
                for state, pixels in tests.items():
                    parts = (network(to_images(x.to(device))).cpu() for x in pixels.split(512))
                    accuracy[state] = float(
                        (torch.cat(list(parts)).argmax(1) == labels).float().mean()
                    )
            rows.append({"arm": name, "seed": seed, "accuracy": accuracy, "seconds": seconds})
        means = {
            state: statistics.mean(row["accuracy"][state] for row in rows if row["arm"] == name)
            for state in tests
        }
        text = ", ".join(f"{state} {value:.4f}" for state, value in means.items())
        print(f"{name:24} {text}", flush=True)
    sample = train.read(range(min(64, len(train)))).to(device)
    return {
        "checkpoint": cold.recipe(),
        "model": options.model,
        "train_images": len(train),
        "steps": options.steps,
        "p": options.p,
        "num_steps": options.num_steps,
        "rows": rows,
        "seconds_per_image": {
            name: seconds_per_image(augment, sample) for name, augment in given.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--train-images", type=int, help="Of the training images, so many")
    parser.add_argument("--severities", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--p", type=float, default=0.3)
    parser.add_argument("--num-steps", type=int, default=4, help="Network evaluations per image")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--horizontal-flip", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", default="cold_augmentation", help="Of the JSON file")
    options = parser.parse_args()
    print("Written:", write(options.name, run(options)))
