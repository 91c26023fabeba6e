"""Correctness of a classifier, image by image, and the gain of one training over another."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from synthaug._types import Doubles, Flags, Labels, Singles

_LEVEL = 0.95
_BINS = 15


@final
@dataclass(frozen=True, kw_only=True)
class Correctness:
    """How the classifier of a run does on a set of images, or under attack."""

    accuracy: float
    """Share of the images classified correctly, in [0, 1]."""
    class_accuracies: list[float | None]
    """The same for each class; `None` for a class without images."""
    correct: str
    """For every image, in the order of the set, 1 if it is classified correctly, else 0."""
    calibration_error: float | None = None
    """Expected calibration error: how far confidence and accuracy are apart, in [0, 1]; `None` for
    attacked images."""
    auc: float | None = None
    """Of two classes: area under the receiver operating characteristic, in [0, 1]: how often an
    image of the second class is given more of it than one of the first. `None` for other numbers of
    classes, attacked images, and sets of one class."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of all classes with images, in [0, 1]."""
        return self.over_classes(range(len(self.class_accuracies)))

    def over_classes(self, classes: Iterable[int]) -> float:
        """Mean of the accuracies of some classes, in [0, 1]; NaN if none of them has images."""
        values = [self.class_accuracies[c] for c in classes]
        tested = [value for value in values if value is not None]
        return float(np.mean(tested)) if tested else math.nan

    @classmethod
    def of(
        cls,
        hits: Flags,
        labels: Labels,
        num_classes: int,
        confidence: Singles | None = None,
        scores: Singles | None = None,
    ) -> "Correctness":
        """Sums up what was decided.

        Args:
            hits: For every image, whether it was classified correctly, bool (n,).
            labels: Classes of the images, int64 (n,).
            num_classes: How many classes there are.
            confidence: Probability of the class that was decided for, float32 (n,).
            scores: Numbers that grow with the probability of the second of two classes, float32
                (n,).
        """
        by_class = [hits[labels == c] for c in range(num_classes)]
        return cls(
            accuracy=float(hits.mean()),
            class_accuracies=[float(h.mean()) if len(h) else None for h in by_class],
            correct="".join(map(str, hits.astype(int).tolist())),
            calibration_error=None if confidence is None else calibration_error(hits, confidence),
            auc=None if scores is None or num_classes != 2 else area_under_curve(scores, labels),
        )


def area_under_curve(scores: Singles, labels: Labels) -> float | None:
    """How often an image of class 1 scores above one of class 0, ties by half; `None` if one of the
    classes is missing, or scores are not finite.

    Args:
        scores: float (n,).
        labels: 0 or 1, int64 (n,).
    """
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(labels, scores))


def calibration_error(hits: Flags, confidence: Singles) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017).

    The distance between mean confidence and accuracy in each of 15 bins of confidence, weighted by
    the images in it. https://arxiv.org/abs/1706.04599

    Args:
        hits: Whether each image was classified correctly, bool (n,).
        confidence: Probability of the class that was decided for, float (n,).
    """
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    distance = np.bincount(place, confidence.astype(np.float64) - hits, minlength=_BINS)
    return float(np.abs(distance).sum() / len(hits))


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the baseline, seed by seed and image by image.

    The standard error e has e^2 = variance over seeds / seeds + variance over images / images, of
    the differences averaged over the other of the two; as each of them holds what is left of the
    other, it is a little too large rather than too small. The interval is Student's, with the
    degrees of freedom of Welch and Satterthwaite: at three seeds seldom more than a few.
    """

    mean: float
    """Mean over the seeds of accuracy minus the baseline's accuracy at the same seed."""
    standard_error: float | None
    """Standard error of the mean, over other seeds and other test images; of reports without
    results by image over seeds alone. `None` for a single seed."""
    n: int
    """Seeds that both arms have."""
    seed_error: float | None = None
    """The part of it that seeds make: sample standard deviation / sqrt(n). `None` for one seed."""
    image_error: float | None = None
    """The part that test images make; `None` if results by image are not known."""
    low: float | None = None
    """Lower end of the 95 % confidence interval of the mean; `None` without standard error."""
    high: float | None = None
    """Its upper end."""

    @classmethod
    def of(cls, *sets: Sequence[tuple[Correctness, Correctness]]) -> "Difference":
        """Compares results on the same images: for every seed the arm's and the baseline's.

        Of several sets it is the gain in their mean accuracy; they should have as many images each,
        or images count as not known.
        """
        by_set = [[ours.accuracy - theirs.accuracy for ours, theirs in pairs] for pairs in sets]
        images = [_by_image(pairs) for pairs in sets]
        if len({len(one) for one in images}) > 1:
            images = [np.zeros(0)]
        return cls._from(np.mean(by_set, axis=0), np.mean(images, axis=0))

    @classmethod
    def of_classes(
        cls,
        pairs: Sequence[tuple[Correctness, Correctness]],
        classes: Sequence[int],
        labels: Labels,
    ) -> "Difference":
        """The same for the mean accuracy of some classes; `labels` are those of the images, int64
        (n,), empty if they are not known.

        Raises:
            ValueError: If none of the classes has a test image.
        """
        gains = [
            ours.over_classes(classes) - theirs.over_classes(classes) for ours, theirs in pairs
        ]
        if any(map(math.isnan, gains)):
            raise ValueError(f"Class {classes[0]} has no test image.")
        images = _by_image(pairs)
        if len(images) != len(labels):
            return cls._from(np.array(gains), images)
        rows = np.isin(labels, np.asarray(classes))
        counts = np.bincount(labels[rows])
        # Weights whose mean is 1, so that every class counts alike however many images it has.
        weights = rows.sum() / (np.count_nonzero(counts) * counts[labels[rows]])
        return cls._from(np.array(gains), weights * images[rows])

    @classmethod
    def _from(cls, gains: Doubles, images: Doubles) -> "Difference":
        """Computes it from gains by seed, and by image if these are known."""
        parts = [_squared_error(gains), _squared_error(images) if len(images) else 0.0]
        seed_error = None if math.isnan(parts[0]) else math.sqrt(parts[0])
        known = len(images) > 1
        mean, error, reach = float(gains.mean()), None, None
        if not any(map(math.isnan, parts)):
            error = math.sqrt(sum(parts))
            reach = _student(parts, (len(gains), len(images))) * error
        return cls(
            mean=mean,
            standard_error=error,
            n=len(gains),
            seed_error=seed_error,
            image_error=math.sqrt(parts[1]) if known else None,
            low=None if reach is None else mean - reach,
            high=None if reach is None else mean + reach,
        )


def _by_image(pairs: Sequence[tuple[Correctness, Correctness]]) -> Doubles:
    """For every image the mean over seeds of right minus the baseline's right; empty if unknown."""
    if not all(ours.correct and theirs.correct for ours, theirs in pairs):
        return np.zeros(0)
    hits = [
        [np.frombuffer(one.correct.encode(), np.uint8).astype(np.float64) for one in pair]
        for pair in pairs
    ]
    mean: Doubles = np.mean([ours - theirs for ours, theirs in hits], axis=0)
    return mean


def _squared_error(values: Doubles) -> float:
    """Returns the standard error of their mean; NaN for a single value."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def _student(parts: Sequence[float], counts: Sequence[int]) -> float:
    """The quantile of Student's t for a sum of squared errors, each of so many values."""
    from scipy import stats

    uncertain = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True) if part)
    freedom = sum(parts) ** 2 / uncertain if uncertain else math.inf
    return float(stats.t.ppf((1 + _LEVEL) / 2, freedom))
