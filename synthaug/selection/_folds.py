"""Classifiers judge images that they have not learned from: folds, and what shares a fold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch.utils.data import Subset

from synthaug._images.source import ImageSource
from synthaug._neighbors import search
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_whole
from synthaug._support.progress import bar
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import Features, Indices, Labels, Pixels, Singles
from synthaug.errors import DataError
from synthaug.evaluation import learning_curves
from synthaug.features import Pixel, extract

_LEAST = 2
"""Images of every class that a classifier learns from."""
_SAME = 4.0
"""Images are near-duplicates if their small versions differ by so many gray levels (RMS)."""
_NEIGHBORS = 8


def check_folds(labels: Labels, classes: Sequence[str], folds: int) -> None:
    """Refuses classes with too few images for the folds with a DataError that names one, and what
    to do."""
    check_whole(1, folds=folds)
    for c, n in enumerate(np.bincount(labels, minlength=len(classes)).tolist()):
        left = n if folds == 1 else n - -(-n // folds)
        if left < _LEAST:
            least = next(
                m for m in range(n, n + 9) if (m if folds == 1 else m - -(-m // folds)) >= 2
            )
            raise DataError(
                f"Class {classes[c]!r} has {n} images, too few for {folds} folds: a classifier "
                f"learns from at least {_LEAST} of each class. Give at least {least}, leave the "
                "class out, or let the classifiers judge images that they learned from: `folds=1`."
            )


def near_duplicates(pixels: Pixels) -> Indices:
    """A number per image, int64 (n,), the same for images that are nearly equal."""
    group = np.arange(len(pixels))
    if len(pixels) < 2:
        return group
    small = extract(Pixel(8), pixels)
    D, ids = search(small, small, min(_NEIGHBORS, len(small)))

    def first(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = int(group[i])
        return i

    for i, j in zip(*np.nonzero(D <= _SAME), strict=True):
        a, b = first(int(i)), first(int(ids[i, j]))
        group[max(a, b)] = min(a, b)
    return np.array([first(i) for i in range(len(group))], np.int64)


def fold_numbers(labels: Labels, groups: Indices, folds: int, rng: np.random.Generator) -> Indices:
    """The fold of every image, int64 (n,): classes are divided evenly, groups stay together."""
    fold = np.zeros(len(labels), np.int64)
    sizes = np.zeros((folds, int(labels.max()) + 1), np.int64)
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(counts)[:-1])
    for g in np.argsort(rng.random(len(names)), kind="stable").tolist():
        label = labels[members[g][0]]
        chosen = int(sizes[:, label].argmin())
        fold[members[g]] = chosen
        sizes[chosen] += np.bincount(labels[members[g]], minlength=sizes.shape[1])
    return fold


@final
@dataclass(frozen=True, kw_only=True)
class Judges:
    """How the classifiers that judge images are trained.

    Args:
        runs: How often, with other seeds and other folds.
        folds: The real images are divided into so many parts, and a classifier for each part learns
            from the others. 1 trains on all.
        seed: Seed of the first run.
        config: Network and training; by default `ClassifierConfig()`.
        progress: Show a bar over all steps.
    """

    runs: int = 3
    folds: int = 2
    seed: int = 0
    config: ClassifierConfig
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole(1, runs=self.runs, folds=self.folds)
        check_whole(0, seed=self.seed)

    def curves(
        self, source: ImageSource, pixels: Pixels, parents: Indices, looks: int
    ) -> Iterator[tuple[Indices, Singles]]:
        """Trains one classifier after the other, and yields what each says of other images.

        Args:
            source: Labeled real images.
            pixels: The images to judge, uint8 (n, C, H, W).
            parents: The real image that each of them is or stems from, int64 (n,), -1 for none:
                classifiers that learned from it do not judge.
            looks: How often they are judged during a training.

        Yields:
            The images that the classifier judges, int64 (m,), and their class probabilities,
            float32 (looks, m, num_classes).

        Raises:
            DataError: If a class has too few images.
        """
        labels = source.labels
        check_folds(labels, source.named_classes(), self.folds)
        groups = near_duplicates(source.pixels()) if self.folds > 1 else np.arange(len(labels))
        with bar(
            self.runs * self.folds * self.config.steps, "judges", "step", progress=self.progress
        ) as shown:
            for run in range(self.runs):
                fold = fold_numbers(labels, groups, self.folds, counter_rng(self.seed, run))
                for part in range(self.folds):
                    outside = (parents < 0) | (fold[parents] == part)
                    judged = np.flatnonzero(outside | (self.folds == 1))
                    learned = np.flatnonzero((fold != part) | (self.folds == 1))
                    self._check_learned(labels[learned], source)
                    whole = len(learned) == len(labels)
                    curves = learning_curves(
                        source if whole else Subset(source.dataset, learned.tolist()),
                        pixels[judged],
                        looks=looks,
                        seed=self.seed + run * self.folds + part,
                        config=self.config,
                        advance=shown.update,
                    )
                    yield judged, curves

    @staticmethod
    def _check_learned(labels: Labels, source: ImageSource) -> None:
        classes = source.named_classes()
        lacking = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
        if len(lacking):
            raise DataError(
                f"All images of class {classes[lacking[0]]!r} are near-duplicates, so they cannot "
                "be divided into folds. Give other images of it, or leave the class out."
            )

    def probabilities(self, source: ImageSource, pixels: Pixels, parents: Indices) -> Features:
        """Mean class probabilities by all classifiers that judge an image, float32 (n, C)."""
        total = np.zeros((len(pixels), len(source.named_classes())))
        count = np.zeros((len(pixels), 1))
        for judged, curves in self.curves(source, pixels, parents, 1):
            total[judged] += curves[-1]
            count[judged] += 1
        return (total / count).astype(np.float32)
