"""Fine-tuning against training from nothing, on few images of new classes.

    python benchmarks/fine_tuning.py                                         # digits
    python benchmarks/fine_tuning.py --pretrain folder:cifar100-half/train \
        --train folder:cifar10/train --test folder:cifar10/test --image-size 16 --flip \
        --features torchscript:encoder.pt --per-class 50 --name fine_tuning_cifar10

A class-conditional model is pretrained on other classes. Then, for equal optimiser steps on a few
images of each new class: a model of the same kind from nothing, all weights of the pretrained one,
and low-rank adapters in it. For each the snapshot is chosen on validation images, which no model
sees: by the accuracy on them of a classifier trained on synthetic images alone (CAS), or by Fréchet
distance, which does not see whether an image shows its class. Reported on test images: Fréchet
distance beside that of as many real images, and the accuracy of classifiers trained on the
synthetic images alone and on real and synthetic ones, for equal steps.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _inversion import first_per_class
from _machine import write

from synthaug import (
    ClassConditional,
    LabelledImages,
    MixedDataset,
    TrainingConfig,
    evaluate,
    generate,
    load_dataset,
    score_quality,
)
from synthaug.features import named
from synthaug.synthesizers import frechet_score, select_snapshot


def of_classes(images: LabelledImages, names: list[str]) -> LabelledImages:
    """The images of some classes, numbered anew."""
    wanted = [images.class_to_idx[name] for name in names]
    rows = np.flatnonzero(np.isin(images.labels, wanted))
    labels = np.searchsorted(np.sort(wanted), images.labels[rows])
    return LabelledImages(images.read(rows), labels, [images.classes[c] for c in sorted(wanted)])


def parts(options: argparse.Namespace) -> tuple[LabelledImages, ...]:
    """Images to pretrain on; of the new classes for training, validation and test."""
    size = {"image_size": options.image_size} if options.image_size else {}
    whole = load_dataset(options.train, **size)
    test = load_dataset(options.test, **size)
    if options.pretrain:
        others = load_dataset(options.pretrain, **size)
    else:  # the first half of the classes
        old, new = (
            whole.classes[: len(whole.classes) // 2],
            whole.classes[len(whole.classes) // 2 :],
        )
        others, whole, test = (
            of_classes(whole, list(old)),
            of_classes(whole, list(new)),
            of_classes(test, list(new)),
        )
    both = first_per_class(whole.targets, options.per_class + options.validation_per_class, 0)
    few = first_per_class(whole.targets, options.per_class, 0)
    return others, whole.subset(few), whole.subset(np.setdiff1d(both, few)), test


def config(steps: int, learning_rate: float, options: argparse.Namespace) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=64,
        learning_rate=learning_rate,
        ema_decay=0.99,
        precision=options.precision,
    )


def trainings(options: argparse.Namespace, base: Path, real: LabelledImages) -> dict[str, Any]:
    """Arm => how to train in a folder."""
    kept = [options.steps * share // 100 for share in (12, 25, 50, 100)]
    flip = options.flip

    def scratch(folder: Path) -> None:
        """From nothing there are no snapshots: the last step."""
        ClassConditional.fit(
            real,
            folder,
            channels=options.width,
            config=config(options.steps, 1e-3, options),
            horizontal_flip=flip,
        )
        (folder / "snapshots").mkdir(exist_ok=True)
        shutil.copytree(
            folder,
            folder / "snapshots" / f"{options.steps:08d}",
            ignore=shutil.ignore_patterns("snapshots", "checkpoint"),
            dirs_exist_ok=True,
        )

    def tuned(rank: int | None, rate: float) -> Any:
        def train(folder: Path) -> None:
            ClassConditional.fine_tune(
                base,
                real,
                folder,
                lora_rank=rank,
                config=config(options.steps, rate, options),
                snapshots=kept,
                horizontal_flip=flip,
            )

        return train

    return {
        "from nothing": scratch,
        "all weights": tuned(None, options.learning_rate),
        f"adapters of rank {options.rank}": tuned(options.rank, 3 * options.learning_rate),
    }


def cas_score(real: LabelledImages, validation: LabelledImages, options: argparse.Namespace) -> Any:
    """Accuracy on validation images of a classifier trained on synthetic images alone."""

    def score(synthesizer: Any) -> float:
        plan = synthesizer.plan(per_class=options.images_per_class, seed=2)
        with tempfile.TemporaryDirectory() as folder:
            cache = generate(synthesizer, plan, Path(folder) / "images.h5", progress=False)
            arms = {"synthetic": MixedDataset(real, cache, audit=None, fraction=1.0)}
            report = evaluate(
                arms,
                test=validation,
                model=options.model,
                steps=options.classifier_steps,
                seeds=1,
                horizontal_flip=options.flip,
                progress=False,
            )
        return float(report.accuracies("synthetic").mean())

    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/fine-tuning")
    parser.add_argument("--pretrain", help="Without it, the first half of the classes")
    parser.add_argument("--train", default="digits:train")
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--features", default="pixels:8")
    parser.add_argument("--pretrain-steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--validation-per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="Three times with adapters"
    )
    parser.add_argument("--select", choices=["cas", "frechet"], default="cas")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--flip", action="store_true", help="Mirror images")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--images-per-class", type=int, default=60)
    parser.add_argument("--inference-steps", type=int, default=20)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--classifier-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="fine_tuning", help="Of the results")
    options = parser.parse_args()
    others, real, validation, test = parts(options)
    work = Path(options.work)
    if not (work / "base" / "model_index.json").exists():
        ClassConditional.fit(
            others,
            work / "base",
            channels=options.width,
            config=config(options.pretrain_steps, 1e-3, options),
            horizontal_flip=options.flip,
        )
    encoder = named(options.features)
    if options.select == "cas":
        score: Any = cas_score(real, validation, options)
    else:
        score = frechet_score(validation, encoder, per_class=options.images_per_class, force=True)
    drawing: dict[str, Any] = {
        "scheduler": "dpmsolver++",
        "num_inference_steps": options.inference_steps,
    }
    arms: dict[str, Any] = {"real": real}
    rows = []
    for arm, train in trainings(options, work / "base", real).items():
        folder = work / arm.replace(" ", "-")
        train(folder)
        best = select_snapshot(folder, score, higher_is_better=options.select == "cas", **drawing)
        synthesizer = ClassConditional.from_pretrained(best.path, **drawing)
        plan = synthesizer.plan(per_class=options.images_per_class, seed=1)
        cache = generate(synthesizer, plan, folder / "images.h5", progress=False)
        quality = score_quality(cache, test, features=encoder, force=True, progress=False)
        arms[f"synthetic, {arm}"] = MixedDataset(real, cache, audit=None, fraction=1.0)
        arms[f"real and synthetic, {arm}"] = MixedDataset(real, cache, audit=None, fraction=0.5)
        rows.append(
            {
                "arm": arm,
                "step": best.step,
                "validation_scores": best.scores,
                "test_frechet": quality.synthetic.frechet_distance,
                "real_frechet": quality.floor.frechet_distance,
            }
        )
        print(rows[-1], flush=True)
    report = evaluate(
        arms,
        test=test,
        model=options.model,
        steps=options.classifier_steps,
        seeds=options.seeds,
        horizontal_flip=options.flip,
        output_dir=work / "classifiers",
        progress=False,
    )
    print(report.table())
    accuracies = {arm: report.accuracies(arm).tolist() for arm in report.arm_names}
    settings = {k: v for k, v in vars(options).items() if k not in ("work", "name")}
    found = {"settings": settings, "rows": rows, "accuracies": accuracies}
    print("Written:", write(options.name, found))
