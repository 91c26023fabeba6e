"""`evaluate`: checks first, then one run per arm and seed, kept as soon as it is done."""

import json
import logging
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from synthaug._support.devices import choose_device
from synthaug._support.files import check_folder, write_text
from synthaug._support.precision import (
    Resolved,
    fastest_precision,
    resolve_precision,
)
from synthaug._support.progress import bar
from synthaug._support.report import decode, encode
from synthaug._training.classifier_config import ClassifierConfig
from synthaug.errors import DataError
from synthaug.evaluation._arms import Arm
from synthaug.evaluation._augment import Augment, standard_augment
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
    config: ClassifierConfig | None = None,
    augment: Augment | Literal["standard"] | None = "standard",
    baseline: str | None = None,
    allow_overlap: bool = False,
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
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        augment: For arms given as a data set alone. "standard": shifts by up to 1/8 of the side
            (`StandardAugment`); below 16 pixels a side, small shifts and turns between the pixels
            (`AffineAugment`). Or a function of pixels, uint8 (n, C, H, W) => the same; or a
            torchvision v2 transform, called image by image.
        baseline: Arm that the others are compared with; by default the first.
        allow_overlap: Go on if `test` or `validation` share images with an arm or each other. The
            report says how many.
        output_dir: Folder that keeps every finished run. Called again with the same data and
            settings, only runs that are missing are made.
        progress: Show one bar over all steps of all runs.

    Returns:
        The report. On a CPU it is the same, to the last bit, whenever data, settings and number of
        threads are.

    Raises:
        ValueError: For wrong arguments, before any training.
        DataError: If a data set is empty or cannot be read.
        MismatchError: If data sets differ in classes or shape, or share images with `test` or
            `validation`.
        DivergedError: If a loss becomes NaN or infinite. Finished runs stay in `output_dir`.
    """
    config = config or ClassifierConfig()
    if output_dir is not None:
        check_folder(output_dir)
    checked_arms = _checked_arms(arms, augment, config)
    seed_list = _checked_seeds(seeds)
    baseline = next(iter(checked_arms)) if baseline is None else baseline
    if baseline not in checked_arms:
        raise ValueError(f"`baseline` {baseline!r} is not an arm. Arms: {', '.join(checked_arms)}.")
    device = choose_device(config.device)
    datasets = {name: arm.dataset for name, arm in checked_arms.items()}
    inputs = Inputs.open(datasets, test, validation, device)
    contents = {name: images.contents for name, images in inputs.sets.items()}
    overlap = check_overlap(contents, allow=allow_overlap)
    standard = standard_augment(inputs.test.image_shape, horizontal_flip=config.horizontal_flip)
    augments = {name: _augment_of(arm, standard) for name, arm in checked_arms.items()}
    precision = fastest_precision(device) if config.precision == "auto" else config.precision
    job = Job(inputs=inputs, config=config, augments=augments, precision=precision)
    _ = job.augmented_samples  # an augmentation that fails is found before any training
    job, files = _begun(job, seed_list, output_dir)
    facts = job.facts(seed_list[0])
    runs = _make_runs(job, seed_list, files, progress=progress)
    return EvaluationReport(
        runs=[runs[name, seed] for name in checked_arms for seed in seed_list],
        classes=list(inputs.classes),
        settings={**facts, "overlap": {name: dict(counts) for name, counts in overlap.items()}},
        arms=job.arm_facts(),
        baseline=baseline,
    )


def _begun(
    job: Job, seeds: Sequence[int], folder: str | os.PathLike[str] | None
) -> tuple[Job, dict[tuple[str, int], Path]]:
    """The job in the precision of finished runs, if it may choose one; and the file of each run."""
    files, begun = job.files(seeds, folder), None
    if job.config.precision == "auto" and files and not any(map(Path.exists, files.values())):
        other: Resolved = "float32" if job.precision == "bfloat16" else "bfloat16"
        elsewhere = replace(job, precision=other)
        finished = elsewhere.files(seeds, folder)
        if any(map(Path.exists, finished.values())):
            job, files, begun = elsewhere, finished, other
    resolve_precision(job.config.precision, job.device, begun=begun)
    return job, files


def _make_runs(
    job: Job,
    seeds: Sequence[int],
    files: Mapping[tuple[str, int], Path],
    *,
    progress: bool,
) -> dict[tuple[str, int], Run]:
    """Reads the runs that are kept in files, and makes and keeps the others."""
    runs = {run: _stored(path) for run, path in files.items() if path.exists()}
    if runs:
        folder = next(iter(files.values())).parent
        logger.info("%d of %d runs are in %s already.", len(runs), len(files), folder)
    # Seed by seed, so that what an interrupted job leaves can be compared.
    todo = [(name, seed) for seed in seeds for name in job.augments if (name, seed) not in runs]
    with bar(len(todo) * job.config.steps, "evaluate", "step", progress=progress) as shown:
        for name, seed in todo:
            shown.set_description(f"{name}, seed {seed}")
            runs[name, seed] = job.run(name, seed, advance=shown.update)
            if files:
                write_text(files[name, seed], encode(runs[name, seed], indent=1))
    return runs


def _checked_arms(
    arms: Mapping[str, Dataset[Any] | Arm],
    augment: Augment | Literal["standard"] | None,
    config: ClassifierConfig,
) -> dict[str, Arm]:
    if not isinstance(arms, Mapping) or not arms:
        raise ValueError(
            "`arms` must map at least one name to a data set, for example "
            '{"real": real, "real + synthetic": mixed}.'
        )
    for name in arms:
        if not isinstance(name, str) or not name:
            raise ValueError(f"Names of arms must be text that is not empty, got {name!r}.")
    checked = {
        name: arm if isinstance(arm, Arm) else Arm(arm, augment=augment)
        for name, arm in arms.items()
    }
    if config.horizontal_flip and all(arm.augment != "standard" for arm in checked.values()):
        raise ValueError(
            '`horizontal_flip` belongs to augment="standard", which no arm has. Mirror in the '
            "augmentation that was given, for example StandardAugment(horizontal_flip=True, ...)."
        )
    return checked


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


def _stored(path: Path) -> Run:
    try:
        return decode(Run, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is not a valid evaluation run: {error!r}. Delete it and run again."
        ) from error
