"""Few-shot classification: do variants help beside standard augmentation, and where not?

    python benchmarks/inversion_fewshot.py runs/tokens --pretrained-on "CIFAR-100, half" \
        --per-class 10 50 100 500 --splits 3

For every split of the labeled images (subsets are nested: those with 10 images per class are among
those with 50) embeddings are learned once. Classifiers are trained for equal steps on the real
images, with the usual augmentations, on the same with variants mixed in, and on variants alone. The
test images are used once per classifier; settings are chosen elsewhere.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _inversion import (
    batch_of,
    common_arguments,
    config_of,
    drawn,
    facts,
    first_per_class,
    fitting,
    inverted,
    plot,
    restricted,
    sampling,
)
from _machine import write

from synthaug import ClassifierConfig, MixedDataset, evaluate
from synthaug.evaluation import Arm, CutMix, StandardAugment, check_labels


def augmentations(size: int, flip: bool) -> dict[str, Any]:
    """Name => augmentation; `None` for none."""
    from torchvision.transforms import v2

    standard = StandardAugment(padding=max(1, size // 8), horizontal_flip=flip)
    randomized = batch_of(v2.RandAugment())
    return {
        "none": None,
        "flip and crop": standard,
        "RandAugment": lambda pixels: randomized(standard(pixels)),
        "CutMix": CutMix(first=standard),
    }


def one_size(
    real: Any, inversion: Any, test: Any, options: argparse.Namespace, split: int
) -> list[dict[str, Any]]:
    cache, cost = drawn(
        inversion,
        ratio=options.ratio,
        seed=split,
        noise=options.noise,
        interpolation=options.interpolation,
        guidance_scale=options.guidance,
    )
    verdicts = None
    if options.withhold:
        verdicts = check_labels(cache, real, percentile=options.withhold, progress=False)
    mixed = MixedDataset(real, cache, audit=verdicts, fraction=options.fraction, seed=split)
    alone = MixedDataset(real, cache, audit=verdicts, fraction=1.0, seed=split)
    arms: dict[str, Arm] = {}
    for name, augment in augmentations(real.image_shape[-1], not options.no_flip).items():
        arms[f"real, {name}"] = Arm(real, augment=augment)
        arms[f"real + variants, {name}"] = Arm(mixed, augment=augment)
        if name == "flip and crop":
            arms["variants alone, flip and crop"] = Arm(alone, augment=augment)
    report = evaluate(
        arms,
        test=test,
        config=ClassifierConfig(
            steps=options.steps,
            batch_size=options.classifier_batch,
            model=options.model,
            precision=options.precision,
        ),
        seeds=[split * options.seeds + s for s in range(options.seeds)],
        baseline="real, flip and crop",
        output_dir=Path(options.work) / "classifiers",
    )
    print(report.table(), flush=True)
    per_class = len(real) // len(real.classes)
    return [
        {
            "split": split,
            "per_class": per_class,
            "arm": arm,
            "accuracies": report.accuracies(arm).tolist(),
            "synthetic": cost if "variants" in arm else None,
        }
        for arm in report.arm_names
    ]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over splits, spread over splits, and the gain over the same arm without variants."""
    table = []
    for per_class in sorted({row["per_class"] for row in rows}):
        means = {
            arm: np.array(
                [
                    np.mean(r["accuracies"])
                    for r in sorted(rows, key=lambda r: r["split"])
                    if r["arm"] == arm and r["per_class"] == per_class
                ]
            )
            for arm in dict.fromkeys(row["arm"] for row in rows)
        }
        for arm, values in means.items():
            gain = None
            if arm.startswith("real + variants"):
                gain = values - means[arm.replace(" + variants", "")]
            table.append(
                {
                    "per_class": per_class,
                    "arm": arm,
                    "accuracy": float(values.mean()),
                    "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "gain": None if gain is None else float(gain.mean()),
                    "gain_std": None if gain is None or len(gain) < 2 else float(gain.std(ddof=1)),
                }
            )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser)
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 50, 100, 500])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1, help="Classifiers per arm and split")
    parser.add_argument("--ratio", type=float, default=5.0, help="Variants per real image")
    parser.add_argument("--fraction", type=float, default=0.5, help="Of variants, where mixed")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1])
    parser.add_argument("--interpolation", type=float, nargs="+", default=[0.1])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    parser.add_argument("--withhold", type=float, help="Percentile of the label check")
    parser.add_argument("--steps", type=int, default=2000, help="Of every classifier")
    parser.add_argument("--classifier-batch", type=int, default=128)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-flip", action="store_true", help="For digits and letters")
    options = parser.parse_args()
    data, test = (fitting(s, options.checkpoint) for s in (options.data, options.test))
    rows: list[dict[str, Any]] = []
    costs = []
    for split in range(options.splits):
        largest = first_per_class(data.targets, max(options.per_class), split)
        inversion, seconds = inverted(
            options.checkpoint,
            data.subset(largest),
            Path(options.work) / f"split-{split}",
            config_of(options),
            **sampling(options),
        )
        costs.append({"split": split, "images": len(largest), "seconds": seconds})
        for per_class in options.per_class:
            chosen = first_per_class(data.targets, per_class, split)
            within = np.searchsorted(largest, chosen)
            part = restricted(inversion, within)
            rows += one_size(data.subset(chosen), part, test, options, split)
    table = summarize(rows)
    for line in table:
        gain = "" if line["gain"] is None else f"  gain {100 * line['gain']:+.2f}"
        print(f"{line['per_class']:4} {line['arm']:40} {100 * line['accuracy']:.2f}{gain}")

    def curves(axes: Any) -> None:
        for arm in dict.fromkeys(line["arm"] for line in table):
            points = [line for line in table if line["arm"] == arm]
            style = "--" if arm.startswith("real,") else "-"
            axes.plot(
                [p["per_class"] for p in points],
                [100 * p["accuracy"] for p in points],
                style,
                marker="o",
                label=arm,
            )
        axes.set_xscale("log")
        axes.set_xlabel("real images per class")
        axes.set_ylabel("test accuracy, %")
        axes.legend(fontsize=7)

    name = options.name or "inversion_fewshot"
    plot(name, curves)
    result = {**facts(options), "inversion": costs, "summary": table, "rows": rows}
    print("Written:", write(name, result))
