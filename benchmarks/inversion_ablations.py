"""The ablations of the paper at small scale: each setting varied alone, accuracy and cost.

    python benchmarks/inversion_ablations.py runs/tokens --pretrained-on "CIFAR-100, half"
    python benchmarks/inversion_ablations.py runs/tokens --pretrained-on ... --target-size 16

A classifier is trained on the variants alone, and on real images mixed with them, for equal steps,
and tested on the images of the training set that were not learned; the test set is not read. With
`--target-size` one question alone: embeddings learned and images drawn at that size, against the
generator's own size and images made smaller afterwards.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _inversion import (
    common_arguments,
    config_of,
    drawn,
    facts,
    first_per_class,
    fitting,
    inverted,
    sampling,
)
from _machine import RESULTS, write
from torch.nn import functional as F

from synthaug import ClassifierConfig, DiffusionInversion, MixedDataset, SynthCache, evaluate
from synthaug.caches import import_images
from synthaug.images import LabeledImages

BASE: dict[str, Any] = {
    "unconditional": "mean",
    "guidance_scale": 1.5,
    "noise": 0.1,
    "interpolation": 0.1,
    "spherical": False,
    "ratio": 5.0,
}
ROW = ("guidance_scale", "noise", "interpolation", "snapshot")


def grids(options: argparse.Namespace, snapshots: list[int]) -> dict[str, list[Any]]:
    return {
        "unconditional": ["mean", "class_mean", "group_mean", "zero", "null"],
        "guidance_scale": [1.0, 1.5, 2.0, 3.0],
        "snapshot": snapshots,
        "num_inference_steps": [5, 10, 20],
        "noise": [0.0, 0.1, 0.3, 0.6, 1.0],
        "interpolation": [0.0, 0.1, 0.3, 0.5],
        "spherical": [False, True],
        "ratio": [1.0, 2.0, 5.0, 10.0],
    }


def accuracies(
    real: Any, cache: SynthCache, chosen_on: Any, options: argparse.Namespace
) -> dict[str, list[float]]:
    arms = {
        "mixed": MixedDataset(real, cache, audit=None, fraction=0.5, seed=options.seed),
        "alone": MixedDataset(real, cache, audit=None, fraction=1.0, seed=options.seed),
        "real": real,
    }
    report = evaluate(
        arms,
        test=chosen_on,
        config=ClassifierConfig(
            steps=options.steps,
            batch_size=options.classifier_batch,
            model=options.model,
            horizontal_flip=not options.no_flip,
        ),
        seeds=options.seeds,
        baseline="real",
        output_dir=Path(options.work) / "classifiers",
        progress=False,
    )
    return {arm: report.accuracies(arm).tolist() for arm in arms}


def complete(change: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All settings of a row of the table."""
    own = {
        "num_inference_steps": options.inference_steps,
        "snapshot": options.updates,
        "ratio": options.ratio,
    }
    return {**BASE, **own, **change}


def one(
    inversion: DiffusionInversion,
    real: Any,
    chosen_on: Any,
    options: argparse.Namespace,
    **change: Any,
) -> dict[str, Any]:
    settings = complete(change, options)
    changed = inversion.with_settings(
        unconditional=settings["unconditional"],
        num_inference_steps=settings["num_inference_steps"],
        spherical=settings["spherical"],
    )
    row = {name: settings[name] for name in ROW}
    cache, cost = drawn(changed, ratio=settings["ratio"], seed=options.seed, **row)
    found = accuracies(real, cache, chosen_on, options)
    print(
        *(f"{k} {v}" for k, v in change.items()),
        *(f"{arm}: {100 * np.mean(values):.2f}" for arm, values in found.items()),
        f"({cost['seconds']:.0f} s)",
        flush=True,
    )
    return {**settings, "changed": change, **cost, "accuracies": found}


def resolution(options: argparse.Namespace, data: Any, parts: Any) -> list[dict[str, Any]]:
    """Directly at the target size, against the generator's own and made smaller afterwards."""
    results = []
    learned_rows, held_rows = parts
    size = options.target_size
    own = DiffusionInversion.from_pretrained(options.checkpoint, classes=data.classes)
    small = fitting(options.data, options.checkpoint, image_size=size)
    targets = (small.subset(learned_rows), small.subset(held_rows))
    for name, image_size in (("target size", size), ("own size", own.image_shape[-1])):
        pixels = resized(targets[0].read(np.arange(len(targets[0]))), image_size)
        real = LabeledImages(pixels, targets[0].labels, targets[0].classes)
        inversion, seconds = inverted(
            options.checkpoint,
            real,
            Path(options.work) / f"size-{image_size}",
            config_of(options),
            image_size=image_size,
            **sampling(options),
        )
        row = {k: BASE[k] for k in ("guidance_scale", "noise", "interpolation")}
        cache, cost = drawn(inversion, ratio=options.ratio, seed=options.seed, **row)
        if image_size != size:
            images = resized(cache.read(np.arange(len(cache))), size)
            made = LabeledImages(images, np.asarray(cache.labels), cache.classes)
            cache = import_images(made, Path(str(cache.path)).with_name("small.h5"))
        found = accuracies(targets[0], cache, targets[1], options)
        print(name, {arm: round(float(np.mean(v)), 4) for arm, v in found.items()}, flush=True)
        results.append(
            {
                "drawn_at": image_size,
                "used_at": size,
                "inversion_seconds": seconds,
                **cost,
                "accuracies": found,
            }
        )
    return results


def panels(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes `results/NAME.png`: a panel for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = list(dict.fromkeys(row["ablation"] for row in rows))
    figure, axes = pyplot.subplots(2, 4, figsize=(13, 6), sharey=True)
    for setting, panel in zip(settings, axes.flat, strict=False):
        own = [row for row in rows if row["ablation"] == setting]
        for arm, label in (("mixed", "real + variants"), ("alone", "variants alone")):
            means = [100 * np.mean(row["accuracies"][arm]) for row in own]
            panel.plot(range(len(own)), means, "o-", label=label)
        panel.axhline(100 * np.mean(own[0]["accuracies"]["real"]), ls="--", c="gray", label="real")
        panel.set_xticks(range(len(own)), [str(row["value"]) for row in own], fontsize=8)
        if setting == "unconditional":
            panel.tick_params("x", rotation=20)
        panel.set_title(setting.replace("_", " "), fontsize=10)
    for panel in axes[:, 0]:
        panel.set_ylabel("accuracy, %")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    pyplot.close(figure)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic, antialiased, uint8 (n, C, size, size)."""
    if pixels.shape[-1] == size:
        return pixels
    floats = F.interpolate(pixels.float(), (size, size), mode="bicubic", antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--held-per-class", type=int, default=200, help="To choose on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="Of every classifier")
    parser.add_argument("--classifier-batch", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=BASE["ratio"], help="Variants per image")
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--no-flip", action="store_true", help="For digits and letters")
    parser.add_argument("--only", nargs="+", help="Some of the settings")
    parser.add_argument("--target-size", type=int)
    options = parser.parse_args()
    data = fitting(options.data, options.checkpoint)
    both = first_per_class(data.targets, options.per_class + options.held_per_class, options.seed)
    learned_rows = first_per_class(data.targets, options.per_class, options.seed)
    held_rows = np.setdiff1d(both, learned_rows)
    if options.target_size:
        results = resolution(options, data, (learned_rows, held_rows))
        name = options.name or "inversion_resolution"
        print("Written:", write(name, {**facts(options), "rows": results}))
    else:
        real, chosen_on = data.subset(learned_rows), data.subset(held_rows)
        snapshots = sorted({0, *(options.updates * s // 100 for s in (3, 10, 30)), options.updates})
        inversion, seconds = inverted(
            options.checkpoint,
            real,
            Path(options.work) / "ablations",
            config_of(options, snapshots),
            **sampling(options),
        )
        chosen = grids(options, snapshots)
        rows: list[dict[str, Any]] = []
        for name in options.only or chosen:
            for value in chosen[name]:
                extra = {"guidance_scale": 2.0} if name == "unconditional" else {}
                change = {name: value, **extra}
                same = [
                    r for r in rows if complete(r["changed"], options) == complete(change, options)
                ]
                found = same[0] if same else one(inversion, real, chosen_on, options, **change)
                rows.append({**found, "ablation": name, "value": value})

        file = options.name or "inversion_ablations"
        panels(file, rows)
        print(
            "Written:", write(file, {**facts(options), "inversion_seconds": seconds, "rows": rows})
        )
