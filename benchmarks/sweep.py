"""Sampling parameters and amounts of synthetic images: what helps a classifier?

    python benchmarks/sweep.py                              # digits, trains a generator first
    python benchmarks/sweep.py --checkpoint runs/cifar10 --train folder:cifar10/train \
        --test folder:cifar10/test --features torchscript:encoder.pt --models small-cnn resnet20 \
        --num-inference-steps 5 10 --guidance-scale 1 3 --guidance 1 2 3 5 --per-class 20 \
        --guidance-per-class 100 --real-per-class 30 --ratios 0 1 3 10 --steps 400 --name cifar10

Two stages, after Azizi et al. 2023: schedulers, steps, guidance and log-variance mix on the Fréchet
distance; then guidance on Fréchet distance, inception score and CAS. Both look at a validation
split alone: a part of the training images that no model sees, or, for a checkpoint, which saw the
training images, a part of the test images that is left out of the test. With the chosen setting,
classifiers of each architecture are trained on real images and k times as many synthetic ones, for
equal optimizer steps, and tested on the test images.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import RESULTS, write

from synthaug import (
    ClassConditional,
    ClassifierConfig,
    TrainingConfig,
    evaluate,
    generate,
    load_dataset,
)
from synthaug.evaluation import scaling_arms
from synthaug.features import named
from synthaug.images import LabeledImages
from synthaug.sweeps import SweepConfig, sweep
from synthaug.sweeps._settings import Trial


def split(images: LabeledImages, share: float) -> tuple[LabeledImages, LabeledImages]:
    """The same share of every class for validation; the rest."""
    rng = np.random.default_rng(0)
    held = np.zeros(len(images), bool)
    for c in np.unique(images.labels):
        rows = rng.permutation(np.flatnonzero(images.labels == c))
        held[rows[: round(share * len(rows))]] = True
    return images.subset(~held), images.subset(held)


def generator(options: argparse.Namespace, real: LabeledImages) -> ClassConditional:
    if options.checkpoint:
        return ClassConditional.from_pretrained(options.checkpoint)
    made, _ = ClassConditional.fit(
        real,
        Path(options.work) / "generator",
        channels=options.width,
        config=TrainingConfig(
            steps=options.training_steps, batch_size=64, learning_rate=1e-3, ema_decay=0.995
        ),
    )
    return made


def scaling(
    options: argparse.Namespace,
    synthesizer: Any,
    chosen: dict[str, Any],
    real: LabeledImages,
    test: LabeledImages,
) -> dict[str, Any]:
    if options.real_per_class is not None:
        share = options.real_per_class * len(real.classes) / len(real)
        _, real = split(real, share)
    most = int(np.ceil(max(options.ratios) * len(real) / len(real.classes)))
    trial = Trial.of(synthesizer, chosen, per_class=most, seed=1)
    cache = generate(trial.synthesizer, trial.plan, Path(options.work) / "scaling.h5")
    arms = scaling_arms(real, cache, audit=None, ratios=options.ratios)
    found = {}
    for model in options.models:
        report = evaluate(
            arms,
            test=test,
            config=ClassifierConfig(model=model, steps=options.scaling_steps or options.steps),
            seeds=options.seeds,
            output_dir=Path(options.work) / "scaling",
        )
        print(report.table(), flush=True)
        found[model] = {arm: report.accuracies(arm).tolist() for arm in report.arm_names}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="digits", help="Of the results")
    parser.add_argument("--work", default="sweep-benchmark")
    parser.add_argument("--checkpoint")
    parser.add_argument("--train", default="digits:train")
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--validation-share", type=float, default=1 / 3)
    parser.add_argument("--features", default="pixels:8")
    parser.add_argument("--training-steps", type=int, default=800)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--num-inference-steps", type=int, nargs="+", default=[6, 12])
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--log-variance-mix", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 4.0])
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--guidance-per-class", type=int, help="In the second stage")
    parser.add_argument("--real-per-class", type=int, help="Of the amounts alone; default all")
    parser.add_argument("--models", nargs="+", default=["small-cnn", "resnet20"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0, 1, 3])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scaling-steps", type=int, help="Of the classifiers of the amounts")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    started = time.process_time()
    real, test = load_dataset(options.train), load_dataset(options.test)
    if options.checkpoint:
        test, validation = split(test, options.validation_share)
    else:
        real, validation = split(real, options.validation_share)
    synthesizer = generator(options, real)
    trained = time.process_time()
    report = sweep(
        synthesizer,
        real=real,
        validation=validation,
        test=test,
        output_dir=Path(options.work) / "sweep",
        features=named(options.features, trusted=True),
        grid={
            "scheduler": ["ddpm", "ddim", "dpmsolver++"],
            "num_inference_steps": options.num_inference_steps,
            "guidance_scale": options.guidance_scale,
            "log_variance_mix": options.log_variance_mix,
        },
        guidance=options.guidance,
        config=SweepConfig(
            per_class=options.per_class,
            guidance_per_class=options.guidance_per_class,
            classifiers=ClassifierConfig(model=options.models[0], steps=options.steps),
            seeds=options.seeds,
        ),
    )
    print(report, flush=True)
    name = f"sweep_{options.name}"
    report.plot(RESULTS / f"{name}.png")
    swept = time.process_time()
    result = {
        "options": {k: v for k, v in vars(options).items() if k not in ("work", "checkpoint")},
        "coarse": report.rows("coarse"),
        "fine": report.rows("fine"),
        "captions": [report.caption(stage) for stage in ("coarse", "fine")],
        "chosen": report.chosen,
        "scaling": scaling(options, synthesizer, report.chosen, real, test),
    }
    print(f"Processor seconds: training {trained - started:.0f}, sweep {swept - trained:.0f},")
    print(f"scaling {time.process_time() - swept:.0f}")
    print("Written:", write(name, result))
