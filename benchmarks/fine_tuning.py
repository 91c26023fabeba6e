"""Fine-tuning against training from nothing, on few images of new classes.

    python benchmarks/fine_tuning.py                                         # digits
    python benchmarks/fine_tuning.py --pretrain folder:cifar100-half/train \
        --train folder:cifar10/train --test folder:cifar10/test --image-size 16 --flip \
        --features torchscript:encoder.pt --per-class 50 --name fine_tuning_cifar10

A class-conditional model is pretrained on other classes. Then, for equal optimizer steps on a few
images of each new class: a model of the same kind from nothing, all weights of the pretrained one,
and low-rank adapters in it. For each, alike, learning rate and snapshot are chosen on validation
images, which no model sees: by the accuracy on them of a classifier trained on synthetic images
alone (CAS), or by Fréchet distance, which does not see whether an image shows its class (from
nothing there are no snapshots but the last). Reported on test images, of the choice alone: Fréchet
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
    ClassifierConfig,
    MixedDataset,
    SamplerConfig,
    TrainingConfig,
    evaluate,
    generate,
    load_dataset,
)
from synthaug.evaluation import score_quality
from synthaug.features import named
from synthaug.images import LabeledImages
from synthaug.synthesizers import FineTuningConfig, frechet_score, select_snapshot


def of_classes(images: LabeledImages, names: list[str]) -> LabeledImages:
    """The images of some classes, numbered anew."""
    wanted = [images.class_to_idx[name] for name in names]
    rows = np.flatnonzero(np.isin(images.labels, wanted))
    labels = np.searchsorted(np.sort(wanted), images.labels[rows])
    return LabeledImages(images.read(rows), labels, [images.classes[c] for c in sorted(wanted)])


def parts(options: argparse.Namespace) -> tuple[LabeledImages, ...]:
    """Images to pretrain on; of the new classes for training, validation and test."""
    size = {"image_size": options.image_size} if options.image_size else {}
    whole = load_dataset(options.train, **size)
    test = load_dataset(options.test, **size)
    if options.pretrain:
        others = load_dataset(options.pretrain, **size)
    else:  # one half of the classes
        half = len(whole.classes) // 2
        old, new = list(whole.classes[:half]), list(whole.classes[half:])
        if options.new == "first":
            old, new = new, old
        others, whole, test = of_classes(whole, old), of_classes(whole, new), of_classes(test, new)
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


def train(arm: str, rate: float, folder: Path, base: Path, real: Any, options: Any) -> None:
    """One arm at one learning rate, with snapshots."""
    if arm == "from nothing":
        ClassConditional.fit(
            real,
            folder,
            channels=options.width,
            config=config(options.steps, rate, options),
            horizontal_flip=options.flip,
        )
        shutil.copytree(  # the last step is the only snapshot
            folder,
            folder / "snapshots" / f"{options.steps:08d}",
            ignore=shutil.ignore_patterns("snapshots", "checkpoint"),
            dirs_exist_ok=True,
        )
        return
    ClassConditional.fine_tune(
        base,
        real,
        folder,
        adaptation=FineTuningConfig(
            lora_rank=None if arm == "all weights" else options.rank,
            horizontal_flip=options.flip,
        ),
        config=config(options.steps, rate, options),
        snapshots=[options.steps * share // 100 for share in (12, 25, 50, 100)],
    )


def cas_score(real: LabeledImages, validation: LabeledImages, options: argparse.Namespace) -> Any:
    """Accuracy on validation images of a classifier trained on synthetic images alone."""

    def score(synthesizer: Any) -> float:
        plan = synthesizer.plan(per_class=options.images_per_class, seed=2)
        with tempfile.TemporaryDirectory() as folder:
            cache = generate(synthesizer, plan, Path(folder) / "images.h5", progress=False)
            arms = {"synthetic": MixedDataset(real, cache, audit=None, fraction=1.0)}
            report = evaluate(
                arms,
                test=validation,
                config=ClassifierConfig(
                    model=options.model,
                    steps=options.classifier_steps,
                    horizontal_flip=options.flip,
                ),
                seeds=1,
                progress=False,
            )
        return float(report.accuracies("synthetic").mean())

    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/fine-tuning")
    parser.add_argument("--pretrain", help="Without it, half of the classes")
    parser.add_argument(
        "--new", choices=["first", "last"], default="last", help="Which half is new"
    )
    parser.add_argument("--train", default="digits:train")
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--features", default="pixels:8")
    parser.add_argument("--pretrain-steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--validation-per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
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
    encoder = named(options.features, trusted=True)
    if options.select == "cas":
        score: Any = cas_score(real, validation, options)
    else:
        score = frechet_score(validation, encoder, per_class=options.images_per_class, force=True)
    steps = options.inference_steps
    drawing: dict[str, Any] = {
        "sampler": SamplerConfig(scheduler="dpmsolver++", num_inference_steps=steps)
    }
    arms: dict[str, Any] = {"real": real}
    rows = []
    higher = options.select == "cas"
    for arm in ("from nothing", "all weights", f"adapters of rank {options.rank}"):
        found: dict[float, Any] = {}
        for rate in options.learning_rates:
            folder = work / f"{arm.replace(' ', '-')}-{rate:g}"
            train(arm, rate, folder, work / "base", real, options)
            found[rate] = select_snapshot(folder, score, higher_is_better=higher, **drawing)
            print(arm, rate, found[rate].scores, flush=True)
        rate = (max if higher else min)(found, key=lambda r: found[r].scores[found[r].step])
        best = found[rate]
        synthesizer = ClassConditional.from_pretrained(best.path, **drawing)
        plan = synthesizer.plan(per_class=options.images_per_class, seed=1)
        cache = generate(synthesizer, plan, work / f"{arm}.h5", progress=False)
        quality = score_quality(cache, test, features=encoder, force=True, progress=False)
        arms[f"synthetic, {arm}"] = MixedDataset(real, cache, audit=None, fraction=1.0)
        arms[f"real and synthetic, {arm}"] = MixedDataset(real, cache, audit=None, fraction=0.5)
        rows.append(
            {
                "arm": arm,
                "learning_rate": rate,
                "step": best.step,
                "validation_scores": {r: one.scores for r, one in found.items()},
                "test_frechet": quality.synthetic.frechet_distance,
                "real_frechet": quality.floor.frechet_distance,
            }
        )
        print(rows[-1], flush=True)
    report = evaluate(
        arms,
        test=test,
        config=ClassifierConfig(
            model=options.model, steps=options.classifier_steps, horizontal_flip=options.flip
        ),
        seeds=options.seeds,
        output_dir=work / "classifiers",
        progress=False,
    )
    print(report.table())
    accuracies = {arm: report.accuracies(arm).tolist() for arm in report.arm_names}
    settings = {k: v for k, v in vars(options).items() if k not in ("work", "name")}
    print(
        "Written:",
        write(options.name, {"settings": settings, "rows": rows, "accuracies": accuracies}),
    )
