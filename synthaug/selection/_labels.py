"""Labels with doubt: what classifiers say of images whose label is unknown, or perhaps wrong."""

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from torch import nn

from synthaug._cache.serving import Planned, SyntheticImages, class_table
from synthaug._images.labeled import LabeledImages
from synthaug._images.source import ImageSource
from synthaug._support.arguments import check_within
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import Features, Indices, Labels
from synthaug.errors import MismatchError
from synthaug.evaluation import probabilities
from synthaug.guidance import ClassifierGuidance
from synthaug.selection._folds import Judges


def parents_of(cache: SyntheticImages, real: ImageSource) -> Indices:
    """The real image that every row of a cache started from, int64 (N,); -1 for none of these."""
    if not isinstance(cache, Planned):
        return np.full(len(cache.labels), -1, np.int64)
    plan = cache.plan
    return np.where(plan["source"] < 0, -1, found_among(plan["source_key"], real.keys()))


def found_among(keys: Any, known: Any) -> Indices:
    """Where each key is among the known ones, int64 (n,); -1 for one that is not."""
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known[order], keys), len(order) - 1)]
    return np.where(known[place] == keys, place, -1)


def teacher_labels(
    cache: SyntheticImages,
    model: nn.Module | None = None,
    *,
    real: Any = None,
    runs: int = 1,
    folds: int = 2,
    seed: int = 0,
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> Features:
    """The class probabilities that classifiers give to synthetic images: soft labels.

        soft = selection.teacher_labels(cache, real=real)
        MixedDataset(real, cache, audit=report, fraction=0.5, items=ItemFormat(soft_labels=soft))

    With `real`, classifiers are trained on real images, and none judges a row whose real image it
    learned from. A classifier of your own may have learned from all of them.

    Args:
        cache: A `SynthCache`; its rows that are done are judged.
        model: Images float32 (n, C, H, W) in [-1, 1] => logits in the order of `real`'s classes,
            without `real` in that of the cache's.
        real: Labeled training images that name their classes; needed without a model.
        runs: How often classifiers are trained, with other seeds.
        folds: Parts that the real images are divided into; 1 lets classifiers judge images that
            stem from those they learned from.
        seed: Seed of the first run.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        progress: Show a bar.

    Returns:
        float32 (N, num_classes); NaN for rows that are not done.

    Raises:
        ValueError: Without `model` and `real`; for a model in training mode or one that gives NaN.
        MismatchError: For a model or real images with other classes.
        DataError: If a class has too few real images to be divided.
    """
    if model is None and real is None:
        raise ValueError("Give a `model`, or `real` images on which classifiers can be trained.")
    source = None if real is None else ImageSource.open(real, "`real`")
    classes = cache.classes if source is None else source.named_classes()
    class_table(cache, classes)
    done = np.flatnonzero(cache.done)
    found = np.full((len(cache.labels), len(classes)), np.nan, np.float32)
    if model is not None:
        ClassifierGuidance(model).check_fits(cache.image_shape, classes)
        for part in np.array_split(done, -(-len(done) // 4096)) if len(done) else ():
            found[part] = probabilities(model, cache.read(part))
    elif source is not None and len(done):
        judges = Judges(
            runs=runs,
            folds=folds,
            seed=seed,
            config=config or ClassifierConfig(),
            progress=progress,
        )
        parents = parents_of(cache, source)[done]
        found[done] = judges.probabilities(source, cache.read(done), parents)
    return found


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabels:
    """Guesses of classifiers for images without labels, made by `selection.pseudo_label`."""

    images: LabeledImages
    """The images whose guess is believed, with it for a label."""
    rows: Indices
    """Where they are in the pool, int64 (n,)."""
    probabilities: Features = field(repr=False)
    """Class probabilities of all images of the pool, float32 (N, num_classes)."""

    @property
    def labels(self) -> Labels:
        """The most probable class of all images of the pool, int64 (N,)."""
        return self.probabilities.argmax(axis=1)


def pseudo_label(
    pool: Any,
    real: Any,
    *,
    threshold: float = 0.5,
    runs: int = 3,
    folds: int = 2,
    seed: int = 0,
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> PseudoLabels:
    """Guesses the labels of a pool of images by classifiers that are trained on labeled ones.

        guessed = selection.pseudo_label(pool, real, threshold=0.9)
        guessed.images                     # a data set of the images that it is sure about

    Args:
        pool: Images of the shape of `real`; labels that they have are not looked at.
        real: Labeled images that name their classes. One that is in the pool too is judged by
            classifiers that did not learn from it.
        threshold: Least probability of a guess that is believed, in [0, 1].
        runs: How often classifiers are trained, with other seeds; their probabilities are averaged.
        folds: Parts that the labeled images are divided into; 1 trains on all of them, for few
            labels and a pool that holds none of them.
        seed: Seed of the first run.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        progress: Show a bar.

    Raises:
        ValueError: For a number out of range.
        MismatchError: If the images have different shapes.
        DataError: If a class has too few labeled images.
    """
    check_within("[0, 1]", threshold=threshold)
    judges = Judges(
        runs=runs, folds=folds, seed=seed, config=config or ClassifierConfig(), progress=progress
    )
    source, others = ImageSource.open(real, "`real`"), ImageSource.open(pool, "`pool`")
    classes = source.named_classes()
    if others.image_shape != source.image_shape:
        raise MismatchError(
            f"`pool` has images of shape {others.image_shape}, `real` of {source.image_shape}. "
            "Load both with one image size and number of channels."
        )
    pixels = others.pixels()
    parents = found_among(others.keys(), source.keys())
    guesses = judges.probabilities(source, pixels, parents)
    rows = np.flatnonzero(guesses.max(axis=1) >= threshold)
    images = LabeledImages(
        pixels[rows], guesses[rows].argmax(axis=1), classes, name="pseudo-labels"
    )
    return PseudoLabels(images=images, rows=rows, probabilities=guesses)
