"""Images that cost no generator: what an arm of synthetic images must beat."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from synthaug._images.labeled import LabeledImages
from synthaug._images.source import ImageSource
from synthaug._neighbors import search
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_positive, check_whole
from synthaug._support.rows import rows_by_class
from synthaug._types import Doubles, ImageShape, Indices, Pixels
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation._comparison import features_of
from synthaug.features import ExtractionConfig, Extractor

_BLOCK = 1024


def class_gaussians(real: Any, *, per_class: int, seed: int = 0) -> LabeledImages:
    """Draws images from a Gaussian distribution that is fitted to the pixels of each class.

        gaussians = class_gaussians(real, per_class=500)
        arms["Gaussians"] = Arm(real, augment="standard", synthetic=gaussians, share=0.5)

    The plainest generator there is; under adversarial training even such images help (Gowal et al.
    2021, https://arxiv.org/abs/2110.09468). The covariance of a class is shrunk towards a multiple
    of the identity by as much as the oracle approximating estimator (OAS, Chen et al. 2010) says:
    few images say little about many pixels.

    Args:
        real: Labeled images that name their classes; their pixels before transforms.
        per_class: Images to draw of every class that has images.
        seed: Seed of the draws.

    Returns:
        The images class by class, rounded to levels from 0 to 255.

    Raises:
        DataError: If a class has a single image, which has no covariance.
    """
    check_whole(1, per_class=per_class)
    source = ImageSource.open(real, "`real`")
    names = source.named_classes()
    parts, labels = [], []
    for c, rows in _classes_of(source):
        if len(rows) < 2:
            raise DataError(
                f"Class {names[c]!r} of `real` has a single image, which has no covariance. Give "
                "two or more, or leave the class out."
            )
        levels = source.pixels(rows).flatten(1).double().numpy()
        drawn = _gaussian(levels, per_class, counter_rng(seed, c))
        parts.append(_pixels(drawn, source.image_shape))
        labels += [c] * per_class
    name = f"{source.title}, Gaussians of its classes"
    return LabeledImages(torch.cat(parts), labels, names, name=name)


def noisy_copies(real: Any, *, sigma: float = 0.1, copies: int = 1, seed: int = 0) -> LabeledImages:
    """Copies of real images with Gaussian noise: new pixels that hold nothing new.

    Args:
        real: Labeled images that name their classes; their pixels before transforms.
        sigma: Standard deviation of the noise of every pixel, in [0, 1].
        copies: Copies of every image, each with other noise.
        seed: Seed of the noise.

    Returns:
        The images in the order of `real`, as often as `copies` says.
    """
    check_positive(sigma=sigma)
    check_whole(1, copies=copies)
    source = ImageSource.open(real, "`real`")
    names = source.named_classes()
    parts = []
    for copy in range(copies):
        for block, pixels in enumerate(source.blocks(_BLOCK)):
            levels = pixels.flatten(1).double().numpy()
            noise = counter_rng(seed, copy, block).standard_normal(levels.shape)
            parts.append(_pixels(levels + 255 * sigma * noise, source.image_shape))
    labels = np.tile(source.labels, copies)
    name = f"{source.title}, with noise of {sigma:g}"
    return LabeledImages(torch.cat(parts), labels, names, name=name)


def rare_copies(real: Any, *, fill_to: int | Literal["largest"] = "largest") -> LabeledImages:
    """The copies of rare images that bring every class to one size.

        arms["copies"] = ConcatDataset([real, rare_copies(real)])

    What synthetic images that fill rare classes must beat.

    Args:
        real: Labeled images that name their classes; their pixels before transforms.
        fill_to: Size of every class with its copies, or "largest", that of the largest class.
            Larger classes get no copies.

    Returns:
        The copies alone, class by class; the images of a class in turn.

    Raises:
        DataError: If every class is as large already.
    """
    source = ImageSource.open(real, "`real`")
    names = source.named_classes()
    counts = np.bincount(source.labels, minlength=len(names))
    if fill_to != "largest":
        check_whole(1, fill_to=fill_to)
    size = int(counts.max()) if fill_to == "largest" else int(fill_to)
    chosen = [np.resize(rows, max(0, size - len(rows))) for _, rows in _classes_of(source)]
    rows = np.concatenate(chosen).astype(np.int64)
    if not len(rows):
        raise DataError(
            f"Every class of `real` has {size} images or more already, so there is "
            "nothing to copy. Ask for more images per class."
        )
    pixels = torch.cat([source.pixels(part) for part in _blocks(rows)])
    return LabeledImages(pixels, source.labels[rows], names, name=f"{source.title}, copies")


def retrieved(
    pool: Any,
    real: Any,
    *,
    per_class: int,
    features: Extractor,
    features_dir: str | None = None,
    progress: bool = True,
) -> LabeledImages:
    """Real images of a pool that resemble the labeled ones, with the labels of these.

        encoder = synthaug.features.named("torchvision:resnet50")
        found = retrieved(pool, real, per_class=100, features=encoder)
        arms["retrieved"] = Arm(real, augment="standard", synthetic=found, share=0.5)

    Where a pool of real images can be searched, they match or beat generated ones (Geng et al.
    2024, https://arxiv.org/abs/2406.05184). Each image of the pool gets the class of the real image
    nearest to it; of every class the nearest ones are taken. Labels of the pool are not read. Give
    a pool without test images: `evaluate` refuses equal ones, but not similar ones.

    Args:
        pool: Images of the shape of the real ones, with or without labels.
        real: Labeled images that name their classes.
        per_class: Images to take for every class, or as many as resemble it most.
        features: Extractor whose distances say how alike images are.
        features_dir: Folder in which features of networks are kept for later calls.
        progress: Show bars.

    Returns:
        The images class by class, the nearest first.

    Raises:
        MismatchError: If the shapes differ.
        DataError: If the pool holds no image that is not among the real ones.
    """
    check_whole(1, per_class=per_class)
    extraction = ExtractionConfig(directory=features_dir)
    compute = partial(features_of, extraction=extraction, progress=progress)
    source, candidates = ImageSource.open(real, "`real`"), ImageSource.open(pool, "`pool`")
    names = source.named_classes()
    if candidates.image_shape != source.image_shape:
        raise MismatchError(
            f"`pool` has images of shape {candidates.image_shape}, `real` has "
            f"{source.image_shape}. Load both with one image size and number of channels."
        )
    rows = np.flatnonzero(~np.isin(candidates.digests(), source.digests()))
    if not len(rows):
        raise DataError("All images of `pool` are also in `real`. Give another pool.")
    known = compute(source, np.arange(len(source)), features, "real")
    distances, nearest = search(known, compute(candidates, rows, features, "pool"), 1)
    labels = source.labels[nearest[:, 0]]
    order = np.argsort(distances[:, 0], kind="stable")
    by_class = rows_by_class(order, labels[order], len(names))
    chosen = np.concatenate([of_class[:per_class] for of_class in by_class])
    return LabeledImages(
        torch.cat([candidates.pixels(part) for part in _blocks(rows[chosen])]),
        labels[chosen],
        names,
        name=f"{candidates.title}, retrieved",
    )


def _blocks(rows: Indices) -> list[Indices]:
    return np.array_split(rows, -(-len(rows) // _BLOCK))


def _classes_of(source: ImageSource) -> Iterator[tuple[int, Indices]]:
    """Every class that has images, and their rows."""
    classes = len(source.named_classes())
    for c, rows in enumerate(rows_by_class(np.arange(len(source)), source.labels, classes)):
        if len(rows):
            yield c, rows


def _gaussian(x: Doubles, count: int, rng: np.random.Generator) -> Doubles:
    """Draws from a Gaussian that is fitted to rows, float64 (count, d).

    With residuals R of n rows the covariance is (1 - s) R^T R / n + s m 1, where m is the mean
    variance, so a draw is a random combination of the residuals and white noise: no matrix of all
    pairs of pixels is needed.
    """
    n, d = x.shape
    mean = x.mean(axis=0)
    residuals = x - mean
    weight, level = _shrinkage(residuals)
    structured = rng.standard_normal((count, n)) @ residuals * np.sqrt((1 - weight) / n)
    white = rng.standard_normal((count, d)) * np.sqrt(weight * level)
    drawn: Doubles = mean + structured + white
    return drawn


def _shrinkage(residuals: Doubles) -> tuple[float, float]:
    """The weight of the identity by OAS, in [0, 1], and the mean variance."""
    n, d = residuals.shape
    gram = residuals @ residuals.T if n < d else residuals.T @ residuals
    trace, square = float(np.trace(gram)) / n, float(np.sum(gram**2)) / n**2
    spread = square - trace**2 / d
    if spread <= 0:
        return 1.0, trace / d
    return min(1.0, (square + trace**2) / ((n + 1) * spread)), trace / d


def _pixels(levels: Doubles, image_shape: ImageShape) -> Pixels:
    pixels = torch.from_numpy(levels.round().clip(0, 255).astype(np.uint8))
    return pixels.reshape(-1, *image_shape)
