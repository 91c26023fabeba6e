"""`evaluate`: checks first, then one run per arm and seed, kept as soon as it is done."""

import json
import logging
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from synthaug._support.devices import choose_device
from synthaug._support.files import check_folder, write_text
from synthaug._support.precision import (
    Precision,
    Resolved,
    check_precision,
    fastest_precision,
    resolve_precision,
)
from synthaug._support.progress import bar
from synthaug._support.report import decode, encode
from synthaug.errors import DataError
from synthaug.evaluation._arms import Arm
from synthaug.evaluation._augment import Augment, standard_augment
from synthaug.evaluation._classifiers import Builder
from synthaug.evaluation._fit import settings_of
from synthaug.evaluation._inputs import Inputs, check_overlap
from synthaug.evaluation._job import Job
from synthaug.evaluation._report import EvaluationReport, Run

logger = logging.getLogger("synthaug")


def evaluate(
    arms: Mapping[str, Dataset[Any] | Arm],
    *,
    test: Dataset[Any],
    validation: Dataset[Any] | None = None,
    seeds: int | Sequence[int] = 3,
    steps: int = 1000,
    batch_size: int = 64,
    model: str | Builder = "small-cnn",
    augment: Augment | Literal["standard"] | None = "standard",
    horizontal_flip: bool = False,
    learning_rate: float = 0.05,
    weight_decay: float | None = None,
    warmup_steps: int | None = None,
    eval_every: int | None = None,
    precision: Precision = "auto",
    baseline: str | None = None,
    allow_overlap: bool = False,
    device: str | torch.device | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Trains the same classifier on every arm and tests it on real images.

        report = synthaug.evaluate({"real": real, "real + synthetic": mixed}, test=test, seeds=3)
        print(report.table())

    Args:
        arms: Name => what to train on: a map-style data set of (image, label), or an `Arm`, which
            says itself how its images are augmented.
        test: Real images that no model and no choice has seen.
        validation: Real images for choosing, in each run, the step whose weights are tested.
            Without them it is the last step.
        seeds: So many seeds, 0, 1, ...; or the seeds themselves.
        steps: Optimiser steps of every run.
        batch_size: Images per step.
        model: "small-cnn", "resnet20", "resnet18", ... (all torchvision classifiers), "timm:NAME",
            or a function of (num_classes, image_shape) that returns a module: images float
            (n, C, H, W) in [-1, 1] => logits.
        augment: For arms given as a data set alone. "standard": shifts by up to 1/8 of the side
            (`StandardAugment`); below 16 pixels a side, small shifts and turns between the pixels
            (`AffineAugment`). Or a function of pixels, uint8 (n, C, H, W) => the same; or a
            torchvision v2 transform, called image by image.
        horizontal_flip: The standard augmentation mirrors half of the images too. Wrong for digits,
            letters and organs; right for CIFAR.
        learning_rate: Its peak.
        weight_decay: L2 penalty; by default 0.5 / (learning_rate * steps), but 0.05 at most, so
            that it shrinks the weights alike whether the training is short or long.
        warmup_steps: Steps of linear warm-up; by default 5 % of `steps`.
        eval_every: Steps between two looks at `validation`; by default 5 % of `steps`.
        precision: "bfloat16" runs the network under autocast, a little less exactly. "auto" is that
            of the finished runs in `output_dir`; without any, "bfloat16" on a device that has it in
            hardware, and "float32" on others.
        baseline: Arm that the others are compared with; by default the first.
        allow_overlap: Go on if `test` or `validation` share images with an arm or each other. The
            report says how many.
        device: By default the GPU if there is one.
        output_dir: Folder that keeps every finished run. Called again with the same data and
            settings, only runs that are missing are made.
        progress: Show one bar over all steps of all runs.

    Returns:
        The report. On a CPU it is the same, to the last bit, whenever data, settings and number of
        threads are.

    Raises:
        ValueError: For wrong arguments, before any training.
        DataError: If data sets are empty, differ in classes or shape, or share images with `test`
            or `validation`.
        DivergedError: If a loss becomes NaN or infinite. Finished runs stay in `output_dir`.
    """
    if output_dir is not None:
        check_folder(output_dir)
    given = _checked_arms(arms, augment)
    seed_list = _checked_seeds(seeds)
    baseline = next(iter(given)) if baseline is None else baseline
    if baseline not in given:
        raise ValueError(f"`baseline` {baseline!r} is not an arm. Arms: {', '.join(given)}.")
    if horizontal_flip and all(arm.augment != "standard" for arm in given.values()):
        raise ValueError(
            '`horizontal_flip` belongs to augment="standard", which no arm has. Mirror in the '
            "augmentation that was given, for example StandardAugment(horizontal_flip=True, ...)."
        )
    check_precision(precision)
    place = choose_device(device)
    settings = settings_of(
        steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        eval_every=eval_every,
        precision=fastest_precision(place) if precision == "auto" else precision,
    )
    datasets = {name: arm.dataset for name, arm in given.items()}
    inputs = Inputs.open(datasets, test, validation, place)
    contents = inputs.contents()
    overlap = check_overlap(contents, allow=allow_overlap)
    standard = standard_augment(inputs.image_shape, horizontal_flip=horizontal_flip)
    augments = {name: _augment_of(arm, standard) for name, arm in given.items()}
    job = Job(inputs=inputs, settings=settings, model=model, augments=augments, device=place)
    samples = {name: job.augmented_sample(name) for name in given}

    def kept(job: Job) -> dict[tuple[str, int], Path]:
        """The file of every run of a job."""
        keys = {} if output_dir is None else job.keys(seed_list, contents, samples)
        return {
            (name, seed): Path(output_dir or "") / f"{_slug(name)}-seed{seed}-{key}.json"
            for (name, seed), key in keys.items()
        }

    files, begun = kept(job), None
    if precision == "auto" and files and not any(path.exists() for path in files.values()):
        other: Resolved = "float32" if settings.precision == "bfloat16" else "bfloat16"
        elsewhere = replace(job, settings=replace(settings, precision=other))
        found = kept(elsewhere)
        if any(path.exists() for path in found.values()):
            job, files, begun = elsewhere, found, other
    resolve_precision(precision, place, begun=begun)
    facts = job.facts(seed_list[0])

    runs: dict[tuple[str, int], Run] = {}
    if output_dir is not None:
        runs = {run: _stored(path) for run, path in files.items() if path.exists()}
        if runs:
            logger.info("%d of %d runs are in %s already.", len(runs), len(files), output_dir)
    # Seed by seed, so that what an interrupted job leaves can be compared.
    todo = [(name, seed) for seed in seed_list for name in given if (name, seed) not in runs]
    with bar(len(todo) * steps, "evaluate", "step", progress=progress) as shown:
        for name, seed in todo:
            shown.set_description(f"{name}, seed {seed}")
            runs[name, seed] = job.run(name, seed, advance=shown.update)
            if files:
                write_text(files[name, seed], encode(runs[name, seed], indent=1))
    return EvaluationReport(
        runs=[runs[name, seed] for name in given for seed in seed_list],
        classes=list(inputs.classes),
        settings={**facts, "overlap": {name: dict(counts) for name, counts in overlap.items()}},
        arms=job.arm_facts(),
        baseline=baseline,
    )


def _checked_arms(
    arms: Mapping[str, Dataset[Any] | Arm], augment: Augment | Literal["standard"] | None
) -> dict[str, Arm]:
    if not isinstance(arms, Mapping) or not arms:
        raise ValueError(
            "`arms` must map at least one name to a data set, for example "
            '{"real": real, "real + synthetic": mixed}.'
        )
    for name in arms:
        if not isinstance(name, str) or not name:
            raise ValueError(f"Names of arms must be text that is not empty, got {name!r}.")
    return {
        name: arm if isinstance(arm, Arm) else Arm(arm, augment=augment)
        for name, arm in arms.items()
    }


def _checked_seeds(seeds: int | Sequence[int]) -> list[int]:
    if not isinstance(seeds, Sequence):
        count = operator.index(seeds)
        if count < 1:
            raise ValueError(f"`seeds` must be at least 1, got {count}.")
        return list(range(count))
    chosen = [operator.index(seed) for seed in seeds]
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise ValueError(f"`seeds` must be different numbers from 0 on, got {chosen}.")
    return chosen


def _augment_of(arm: Arm, standard: Augment) -> Augment | None:
    if arm.augment is None or callable(arm.augment):
        return arm.augment
    if arm.augment == "standard":
        return standard
    raise ValueError(f"`augment` must be 'standard', a function or None, got {arm.augment!r}.")


def _slug(arm: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-") or "arm"


def _stored(path: Path) -> Run:
    try:
        return decode(Run, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no run of an evaluation: {error!r}. Delete it.") from error
