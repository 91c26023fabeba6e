"""Does a cascade gain from what its stages' conditions went through in training?

    python benchmarks/cascade.py --data digits:train --test digits:test --low 4
    python benchmarks/cascade.py --data folder:cifar10/train --test folder:cifar10/test --low 8 \
        --features torchscript:resnet20.pt --steps 2000 --width 24 --precision bfloat16 --compile \
        --levels 100 250 400 --images 500 --horizontal-flip

One base, and one stage each without conditioning augmentation, with blur, and with Gaussian noise,
all trained for the same number of steps; the last one is sampled truncated and non-truncated at
several noise levels. Beside them a single model of the full size, trained at the cost (floating
point operations) of the base and one stage together. Fréchet distance of samples to test images in
the features given, beside that of as many training images, and of what the stages draw of small
copies of the test images, which is what they can do at best; evaluations and seconds per image.
Models are kept in --out: run again, they are not trained again.
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from _inversion import plot
from _machine import write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthaug import (
    Cascade,
    ClassConditional,
    SamplerConfig,
    TrainingConfig,
    features,
    load_dataset,
)
from synthaug._noise import streams
from synthaug._pixels import to_images, to_pixels
from synthaug.denoisers import build_unet
from synthaug.metrics import frechet_distance
from synthaug.synthesizers import CascadeStage, StageConfig

Augmentation = Literal["none", "blur", "gaussian"]


def operations(image_shape: tuple[int, int, int], options: argparse.Namespace, extra: int) -> int:
    """Floating point operations of one network evaluation with `extra` further channels."""
    c, height, width = image_shape
    network = build_unet(
        image_shape,
        num_classes=10,
        channels=options.width,
        num_layers=options.num_layers,
        in_channels=c + extra,
    )
    x = torch.zeros(1, c + extra, height, width)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(x, torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def trained(options: argparse.Namespace, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The models, and what their training cost."""
    large = load_dataset(options.data)
    small = load_dataset(options.data, image_size=options.low)
    c = large.image_shape[0]
    base_cost = operations(small.image_shape, options, 0)
    stage_cost = operations(large.image_shape, options, c)
    single_cost = operations(large.image_shape, options, 0)
    single_steps = round(options.steps * (base_cost + stage_cost) / single_cost)
    common = {
        "channels": options.width,
        "num_layers": options.num_layers,
        "horizontal_flip": options.horizontal_flip,
    }

    def config(steps: int) -> TrainingConfig:
        return TrainingConfig(
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            decay_steps=steps // 5,
            ema_decay=min(0.9995, 1 - 10 / steps),
            precision=options.precision,
            compile=options.compile,
            seed=seed,
        )

    models: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    out = Path(options.out) / f"seed{seed}"
    augmentations: tuple[Augmentation, ...] = get_args(Augmentation)
    jobs: dict[str, tuple[Any, int, Any, Augmentation | None]] = {
        "base": (small, options.steps, base_cost, None),
        **{name: (large, options.steps, stage_cost, name) for name in augmentations},
        "single": (large, single_steps, single_cost, None),
    }
    for name, (data, steps, flops, augmentation) in jobs.items():
        found: Any
        started = time.monotonic()
        if augmentation is None:
            found, result = ClassConditional.fit(data, out / name, config=config(steps), **common)
        else:
            found, result = Cascade.fit_stage(
                data,
                out / name,
                StageConfig(
                    low_size=options.low,
                    conditioning_augmentation=augmentation,
                    max_noise_level=max(options.levels),
                ),
                config=config(steps),
                **common,
            )
        models[name] = replace(
            found, sampler=SamplerConfig(num_inference_steps=options.evaluations)
        )
        costs[name] = {
            "steps": steps,
            "operations_per_image": flops,
            "seconds": time.monotonic() - started if result.examples_per_second else None,
            "loss": result.loss_curve[-1][1],
        }
        print(f"{name}: {steps} steps", flush=True)
    return models, costs


def arms(models: dict[str, Any], levels: list[int]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Synthesizers by name, with the row parameters to draw with."""

    def cascade(stage: str, truncated: bool = False) -> Cascade:
        return Cascade(base=models["base"], stages=[models[stage]], truncated=truncated)

    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "single": (models["single"], {}),
        "none": (cascade("none"), {}),
        "blur": (cascade("blur"), {}),
        "s = 0": (cascade("gaussian"), {"noise_conditioning_level": 0}),
    }
    for level in levels:
        row = {"noise_conditioning_level": level}
        found[f"truncated, s = {level}"] = (cascade("gaussian", truncated=True), row)
        found[f"non-truncated, s = {level}"] = (cascade("gaussian"), row)
    return found


def enlarged(stage: CascadeStage, pixels: Tensor, labels: Tensor) -> Tensor:
    """Returns the images that a stage draws of small copies of real ones, uint8 (n, C, H, W)."""
    drawn = []
    for rows in torch.arange(len(pixels)).split(100):
        low = stage.shrink(to_images(pixels[rows]))
        level = torch.zeros(len(rows), dtype=torch.int64)
        scale = torch.ones(len(rows))
        drawn.append(stage.draw(low, level, labels[rows], scale, streams(rows.tolist())))
    return to_pixels(torch.cat(drawn))


def main(options: argparse.Namespace) -> None:
    extractor = features.named(options.features, trusted=True)
    real = load_dataset(options.test)
    order = np.random.default_rng(0).permutation(len(real))[: options.images]
    pixels, labels = real.read(order), torch.tensor(real.labels[order])
    reference = features.extract(extractor, pixels)
    if len(order) < 2 * reference.shape[1]:
        raise SystemExit(
            f"--images and the test set must be at least {2 * reference.shape[1]}, twice the "
            "number of features."
        )
    train = load_dataset(options.data)
    other = np.random.default_rng(1).permutation(len(train))[: len(order)]
    floor = frechet_distance(features.extract(extractor, train.read(other)), reference)
    print(f"{options.data} to {options.test}: {floor:.3f}", flush=True)
    rows: list[dict[str, Any]] = []
    all_costs, stages_alone = [], []
    for seed in range(options.seeds):
        models, costs = trained(options, seed)
        all_costs.append(costs)
        alone = {
            name: frechet_distance(
                features.extract(extractor, enlarged(models[name], pixels, labels)), reference
            )
            for name in ("none", "blur", "gaussian")
        }
        print("stages, given small copies of the test images:", alone, flush=True)
        stages_alone.append(alone)
        for name, (synthesizer, row) in arms(models, options.levels).items():
            per_class = math.ceil(len(order) / len(synthesizer.classes))
            plan = synthesizer.plan(per_class=per_class, seed=seed, **row)
            drawn, seconds = [], []
            for batch in plan.batches(100):
                started = time.perf_counter()
                drawn.append(to_pixels(synthesizer.draw(batch)))
                seconds.append((time.perf_counter() - started) / len(batch))
            distance = frechet_distance(features.extract(extractor, torch.cat(drawn)), reference)
            rows.append(
                {
                    "arm": name,
                    "seed": seed,
                    "frechet": distance,
                    "evaluations": float(synthesizer.evaluations(plan).mean()),
                    "seconds_per_image": statistics.median(seconds),
                }
            )
            print(
                f"{name:24} {distance:9.3f} {1e3 * statistics.median(seconds):7.2f} ms", flush=True
            )
    names = list(dict.fromkeys(row["arm"] for row in rows))
    means = {
        name: statistics.mean(row["frechet"] for row in rows if row["arm"] == name)
        for name in names
    }

    def curves(axes: Any) -> None:
        for kind in ("truncated", "non-truncated"):
            levels = [0, *options.levels]
            y = [means["s = 0"], *(means[f"{kind}, s = {s}"] for s in options.levels)]
            axes.plot(levels, y, marker="o", label=f"Gaussian noise, {kind}")
        lines = {"none": means["none"], "blur": means["blur"], "single model": means["single"]}
        for i, (name, value) in enumerate(lines.items(), 2):
            axes.axhline(value, color=f"C{i}", linestyle="--", label=name)
        axes.axhline(floor, color="gray", linestyle=":", label="training images")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("noise-conditioning level s")
        axes.set_ylabel(f"Fréchet distance ({extractor.name})")
        axes.legend(fontsize=7)

    plot(options.name, curves)
    result = {
        **{k: v for k, v in vars(options).items() if k not in ("name", "out")},
        "features": extractor.name,
        "dimensions": reference.shape[1],
        "images": len(order),
        "training_images": floor,
        "training": all_costs,
        "stages_given_real_images": stages_alone,
        "means": means,
        "rows": rows,
    }
    print("Written:", write(options.name, result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits:train")
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--low", type=int, default=4, help="Size of the base's images, in pixels")
    parser.add_argument("--features", default="pixels", help="A name of `features.named`")
    parser.add_argument("--steps", type=int, default=2000, help="Of the base and of each stage")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--num-layers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--horizontal-flip", action="store_true")
    parser.add_argument("--levels", type=int, nargs="+", default=[50, 100, 200, 300, 400])
    parser.add_argument("--evaluations", type=int, default=20, help="Steps of every chain")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few steps, to see that it runs")
    parser.add_argument("--out", help="Where models are kept; a temporary folder by default")
    parser.add_argument("--name", default="cascade", help="Of the results")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.levels, given.evaluations = 20, [100, 300], 4
    if given.out is None:
        given.out = tempfile.mkdtemp(prefix="cascade-")
    main(given)
