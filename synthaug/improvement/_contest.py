"""Training the classifier on every arm: ours, or the user's own.

Both answer with an `EvaluationReport`, keep every run as soon as it is done, and make only runs
that are missing.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from synthaug._images.source import ImageSource
from synthaug._plan import settings_digest
from synthaug._support.files import write_text
from synthaug._support.names import file_stem
from synthaug._support.progress import bar
from synthaug._support.report import encode, read_kept
from synthaug._training.classifier_config import ClassifierConfig, name_of
from synthaug._types import Integers, Labels
from synthaug.errors import DataError
from synthaug.evaluation import AdversarialConfig, Arm, EvaluationReport, Run, evaluate
from synthaug.evaluation._inputs import Inputs, check_overlap, fingerprint

logger = logging.getLogger("synthaug")

Predict: TypeAlias = Callable[[Any], Any]
Fit: TypeAlias = Callable[[Any, int], Predict]
"""Called with a data set and a seed; trains a classifier, and returns a function of a data set of
test images => their predicted classes, int (n,), or scores of all classes, (n, num_classes)."""


class Contest(Protocol):
    """Trains a classifier on each arm with each seed, and tests it."""

    def __call__(
        self, arms: Mapping[str, Arm], test: Any, *, seeds: int, baseline: str
    ) -> EvaluationReport:
        """Returns the runs of the seeds 0, 1, ..."""
        ...


@dataclass(frozen=True, kw_only=True)
class OurClassifier:
    """The classifiers of `evaluate`."""

    config: ClassifierConfig
    adversarial: AdversarialConfig | None
    folder: Path
    progress: bool = True

    def __call__(
        self, arms: Mapping[str, Arm], test: Any, *, seeds: int, baseline: str
    ) -> EvaluationReport:
        """Returns the runs of the seeds 0, 1, ..."""
        return evaluate(
            arms,
            test=test,
            seeds=seeds,
            config=self.config,
            baseline=baseline,
            adversarial=self.adversarial,
            output_dir=self.folder,
            progress=self.progress,
        )


@dataclass(frozen=True, kw_only=True)
class YourClassifier:
    """A function of the user's, which gets the data sets as they are."""

    fit: Fit
    folder: Path
    progress: bool = True

    def __call__(
        self, arms: Mapping[str, Arm], test: Any, *, seeds: int, baseline: str
    ) -> EvaluationReport:
        """Returns the runs of the seeds 0, 1, ...; a seed that failed is missing, and fewer than
        two seeds of an arm are a DataError."""
        datasets = {name: arm.dataset for name, arm in arms.items()}
        inputs = Inputs.open(datasets, test, None, torch.device("cpu"))
        check_overlap({name: images.contents for name, images in inputs.sets.items()}, allow=False)
        held_out = fingerprint(inputs.test)
        labels = ImageSource.open(test, "`test`").labels
        runs, failed = [], {}
        with bar(len(arms) * seeds, "improve", "run", progress=self.progress) as shown:
            for name, images in inputs.arms.items():
                content = fingerprint(images)
                for seed in range(seeds):
                    key = settings_digest(
                        {"fit": name_of(self.fit), "arm": content, "test": held_out, "seed": seed}
                    )
                    path = self.folder / f"{file_stem(name)}-seed{seed}-{key[:16]}.json"
                    try:
                        run = self._run(path, datasets[name], name, seed, test, labels)
                        runs.append(replace(run, arm=name))
                    except _UserError as error:
                        failed[name, seed] = str(error)
                        logger.warning("`fit` failed on arm %r, seed %d: %s", name, seed, error)
                    shown.update(1)
        for name in arms:
            if sum(run.arm == name for run in runs) < 2:
                first = next(text for (arm, _), text in failed.items() if arm == name)
                raise DataError(
                    f"`fit` failed on {sum(arm == name for arm, _ in failed)} of {seeds} seeds of "
                    f"{name!r}, and a gain needs two. The first error: {first}. What is done is "
                    "kept; mend `fit` and run again."
                )
        return EvaluationReport(
            runs=runs,
            classes=list(inputs.classes),
            settings={
                "model": name_of(self.fit),
                "test_images": len(labels),
                "failed": [f"{name}, seed {seed}" for name, seed in failed],
            },
            arms={
                name: {
                    "images": len(images),
                    "augment": "the data set's own",
                    "synthetic": images.source.synthetic_facts,
                }
                for name, images in inputs.arms.items()
            },
            baseline=baseline,
        )

    def _run(
        self, path: Path, dataset: Dataset[Any], arm: str, seed: int, test: Any, labels: Labels
    ) -> Run:
        if path.exists():
            return read_kept(Run, path)
        started = time.perf_counter()
        try:
            answers = self.fit(dataset, seed)(test)
        except Exception as error:  # whatever the user's function raises, other runs are kept
            raise _UserError(f"{type(error).__name__}: {error}") from error
        hits = _predicted(answers, len(labels)) == labels
        classes = int(labels.max()) + 1
        by_class = [hits[labels == c] for c in range(classes)]
        run = Run(
            arm=arm,
            seed=seed,
            steps=0,
            selected_step=0,
            test_accuracy=float(hits.mean()),
            class_accuracies=[float(h.mean()) if len(h) else None for h in by_class],
            validation_accuracy=None,
            images_seen=0,
            unique_real=0,
            unique_synthetic=0,
            seconds=time.perf_counter() - started,
            loss_curve=[],
            validation_curve=[],
            correct="".join(map(str, hits.astype(int).tolist())),
        )
        write_text(path, encode(run, indent=1))
        return run


class _UserError(Exception):
    """Reports what the user's function did wrong."""


def _predicted(answers: Any, count: int) -> Integers:
    """Classes, int64 (n,), of classes or scores."""
    values = answers.detach().cpu().numpy() if isinstance(answers, torch.Tensor) else answers
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != count or values.dtype.kind not in "iuf":
        raise _UserError(
            f"its `predict` returned {values.dtype} of shape {values.shape} for {count} images, "
            "expected their classes, or scores of all classes for each"
        )
    if not np.isfinite(values).all():
        raise _UserError("its `predict` returned NaN or infinity")
    return (values.argmax(1) if values.ndim == 2 else values).astype(np.int64)
