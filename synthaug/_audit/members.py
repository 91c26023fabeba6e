"""Does a model restore its training images better than images that it never saw?

Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 5 (attacks by the
denoising loss); Yeom et al. 2018, "Privacy Risk in Machine Learning" (the loss as evidence of
membership).

Every image is made noisy with the same noises, and the network restores it. Losses are compared
with those of all images of the class, of both sets together, so that a score does not know which
set its image is from. If one random split made the sets, and the model learned nothing of either,
all splits are equally likely, and the p-values are exact whatever the images look like.

Two tests share the level, because memory may be spread over all training images or sit in a few:
the area under the ROC curve, and whether training images are in excess among those restored best.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._audit.discrimination import (
    ASSIGNMENTS,
    Discrimination,
    Division,
    auc,
    auc_interval,
    operating_point,
    threshold_at,
)
from synthaug._audit.inputs import AuditSet, check_comparable, read_set
from synthaug._audit.membership_report import ClassMembership, MembershipReport, judge
from synthaug._audit.precedence import precedence
from synthaug._audit.settings import environment
from synthaug._audit.split import NEAR_DUPLICATE, groups_within
from synthaug._cache.synthesizer import Declared
from synthaug._images.source import ImageSource, recorded
from synthaug._support.arguments import check_type, check_whole, check_within
from synthaug._support.progress import bar
from synthaug._types import JSON, Indices, Labels, Pixels
from synthaug.errors import DivergedError, MismatchError
from synthaug.features import named
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._losses import LossGrid

FEWEST = 20
"""Images of each set, at least: fewer tell nothing."""
CLOSE = 0.1
"""Up to this aligned distance, a correlation of 0.995, images count as one piece of evidence where
the split went image by image."""
_FEWEST_OF_CLASS = 10
"""Images of a class from which on it has its own scale."""
_FEWEST_COMPARED = 5
"""Images of a class, in each set, from which on they are compared."""
_FOLDS = 5
_COMPONENTS = 64
"""Principal components that the reference is given."""


def membership(
    synthesizer: AbstractSynthesizer,
    train: Any,
    holdout: Any,
    *,
    random_split: bool | None = None,
    level: float = 0.01,
    grid: LossGrid | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> MembershipReport:
    """Tests whether a model's losses tell its training images from images that it never saw.

        train, holdout = synthaug.split_for_audit(real, holdout=0.2)   # before it is trained
        report = synthaug.membership(model, Subset(real, train), Subset(real, holdout),
                                     random_split=True)

    This is the attack of somebody who has the weights. `synthaug.audit` looks at images instead: a
    model may pass that and fail here. Training images and hold-out must come from one random split
    (by `split_for_audit` or image by image, by class or not); otherwise all numbers are reported,
    and the verdict is "not interpretable". A reference that never sees the model, a classifier on
    fixed features, tells whether the two sets differ anyway.

    Args:
        synthesizer: A synthesizer with a denoising network: `ClassConditional`, `LowDensity`,
            `Cascade`, `ColdDiffusion`, or `DiffusionInversion`, of which the generator is tested
            and not the embeddings.
        train: The images that it was trained on, or a random part of them; as for
            `synthaug.audit`, but no features.
        holdout: Images that it never saw.
        random_split: Whether one random split made `train` and `holdout`. `None` is not known.
        level: Chance of "fail" for a model that learned nothing of single images.
        grid: Noise levels, draws of noise per level, and their seed.
        batch_size: Images per call of the network.
        seed: Seed of the random assignments and of the reference.
        progress: Shows a bar.

    Raises:
        TypeError: If the synthesizer has no denoising network.
        ValueError: For fewer than 20 images in a set, or a level out of range.
        MismatchError: For images of another shape than the model's, or of classes that it does not
            know.
        DivergedError: If a loss is not finite.
    """
    check_type(AbstractSynthesizer, "a synthesizer of synthaug", synthesizer=synthesizer)
    check_within("(0, 1)", level=level)
    check_whole(1, batch_size=batch_size)
    check_whole(0, seed=seed)
    grid = grid or LossGrid()
    sets = _read(synthesizer, train, holdout, progress=progress)
    pixels = torch.cat([one.pixels for one in sets])
    labels, classes = _classes(synthesizer, sets)
    losses = _losses(synthesizer, pixels, labels, grid, batch_size, progress)
    member = np.arange(len(pixels)) < len(sets[0])
    group = _groups(pixels, member)
    division = Division.of(member, group, labels)
    scores, suspects = ease(losses, labels), guesses(pixels, labels, division, seed=seed)
    told, closest, p_value = _tests(scores, division, level=level, seed=seed)
    reference = Discrimination.of(suspects, division, seed=seed)
    point = operating_point(scores, member)
    verdict, reasons = judge(
        told,
        reference,
        point,
        p_value=p_value,
        level=level,
        random_split=random_split,
        other_images=_names_others(synthesizer, train),
    )
    return MembershipReport(
        verdict=verdict,
        reasons=reasons,
        random_split=random_split,
        p_value=p_value,
        told=told,
        closest=closest,
        low_false_positives=point,
        reference=reference,
        by_class=_by_class(scores, division, labels, classes),
        scores=scores,
        reference_scores=suspects,
        member=member,
        rows=np.concatenate([one.rows for one in sets]),
        group=group,
        labels=labels,
        classes=classes,
        identity={"model": _identity(synthesizer), **{one.name: one.identity for one in sets}},
        settings=_settings(sets, division, grid, level=level, batch_size=batch_size, seed=seed),
        environment=environment(),
    )


def _settings(
    sets: Sequence[AuditSet],
    division: Division,
    grid: LossGrid,
    *,
    level: float,
    batch_size: int,
    seed: int,
) -> dict[str, JSON]:
    """All arguments and counts."""
    train, holdout = map(len, sets)
    return {
        "train": train,
        "holdout": holdout,
        "groups": len(np.unique(division.group)),
        "level": level,
        **asdict(grid),
        "batch_size": batch_size,
        "assignments": ASSIGNMENTS,
        "reference": f"logistic regression on {_COMPONENTS} principal components, {_FOLDS} folds "
        "that keep near-duplicates together",
        "test_seed": seed,
    }


def _tests(
    scores: NDArray[np.float64], division: Division, *, level: float, seed: int
) -> tuple[Discrimination, dict[str, JSON], float]:
    """The test of all scores, that of the images restored best, and the p-value of both."""
    told = Discrimination.of(scores, division, seed=seed)
    closest = precedence(
        -scores,
        division.member,
        group=division.group,
        strata=division.strata,
        level=level / 2,
        seed=seed,
    ).excess
    shown = {name: vars(closest)[name] for name in ("depth", "count", "expected", "p_value")}
    return told, shown, min(1.0, 2 * min(told.p_value, closest.p_value))


def _groups(pixels: Pixels, member: NDArray[np.bool_]) -> Indices:
    """Groups of near-duplicates, as fine as the split that made the sets allows, int64 (N,).

    `split_for_audit` keeps its groups on one side; where all of them are, they change places whole.
    Another split went image by image. Then every grouping is exact, and that of closer images is
    taken: in data such as digits, chains of alike images join most of a set.
    """
    coarse, fine = groups_within(pixels, NEAR_DUPLICATE, CLOSE)
    shares = np.bincount(coarse, weights=member) / np.bincount(coarse)
    return coarse if np.isin(shares, (0, 1)).all() else fine


def ease(losses: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """How much better each image is restored than others of its class, float64 (n,).

    Losses are compared on the scale of logarithms, noise by noise, in robust standard deviations
    from the median of the class, or of all images for classes with fewer than ten.

    Args:
        losses: One column per noise, float64 (n, k), positive.
        labels: Class of each image, int64 (n,).
    """
    values = np.log(np.maximum(losses, np.finfo(np.float64).tiny))
    standardized = _standardized(values)
    for label in np.unique(labels):
        rows = labels == label
        if rows.sum() >= _FEWEST_OF_CLASS:
            standardized[rows] = _standardized(values[rows])
    return -standardized.mean(1)


def _standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns in robust standard deviations from their median."""
    centered = values - np.median(values, 0)
    deviation = 1.4826 * np.median(np.abs(centered), 0)
    return centered / np.where(deviation > 0, deviation, 1)


def guesses(
    pixels: Pixels, labels: Labels, division: Division, *, seed: int
) -> NDArray[np.float64]:
    """How much each image looks like a member to a classifier that never saw the model, (n,).

    Logistic regression on principal components of small copies and spectra of the images, less the
    mean of their class. Each image is judged by a classifier that was fitted without it and its
    near-duplicates.

    Args:
        pixels: All images, uint8 (n, C, H, W).
        labels: Their classes, int64 (n,).
        division: The division into members and others, and groups that belong together.
        seed: Seed of the folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([named(name)(pixels) for name in ("pixels:8", "spectrum")], 1)
    features = features.astype(np.float64)
    for label in np.unique(labels):
        features[labels == label] -= features[labels == label].mean(0)
    components = min(_COMPONENTS, features.shape[1], len(features) // 10)
    classifier = make_pipeline(
        PCA(components, random_state=seed),
        StandardScaler(),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=500),
    )
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    found: NDArray[np.float64] = cross_val_predict(
        classifier,
        features,
        division.member,
        groups=division.group,
        cv=folds,
        method="decision_function",
    )
    return found


def _read(synthesizer: AbstractSynthesizer, *given: Any, progress: bool) -> list[AuditSet]:
    """Both sets, of the model's shape and large enough."""
    sets = [
        read_set(one, name, progress=progress)
        for one, name in zip(given, ("train", "holdout"), strict=True)
    ]
    check_comparable(*sets)
    for one in sets:
        if len(one) < FEWEST:
            raise ValueError(f"`{one.name}` holds {len(one)} images, at least {FEWEST} are needed.")
    shape = Declared.by(synthesizer).image_shape
    if shape is not None and tuple(sets[0].pixels.shape[1:]) != tuple(shape):
        raise MismatchError(
            f"`train` holds images of shape {tuple(sets[0].pixels.shape[1:])}, the model draws "
            f"{tuple(shape)}. Load both sets with `image_shape={tuple(shape)}`."
        )
    return sets


def _classes(
    synthesizer: AbstractSynthesizer, sets: Sequence[AuditSet]
) -> tuple[Labels, tuple[str, ...]]:
    """The class of each image, in the order of the model's classes if it has any, and their names.

    Raises:
        MismatchError: For a class that the model does not know.
    """
    known = synthesizer.classes
    if known in ((), ("image",)):  # it was told none
        known = tuple(dict.fromkeys(name for one in sets for name in one.classes))
    number, parts = {name: c for c, name in enumerate(known)}, []
    for one in sets:
        labels = one.labels
        if unknown := [name for name in one.classes if name not in number]:
            raise MismatchError(
                f"`{one.name}` has the class {unknown[0]!r}, the model knows {', '.join(known)}."
            )
        if one.classes:
            places = np.array([number[name] for name in one.classes])
            labels = np.where(labels < 0, -1, places[labels])
        parts.append(labels)
    return np.concatenate(parts), known if any(one.classes for one in sets) else ()


def _losses(
    synthesizer: AbstractSynthesizer,
    pixels: Pixels,
    labels: Labels,
    grid: LossGrid,
    batch_size: int,
    progress: bool,
) -> NDArray[np.float64]:
    """The losses of all images, float64 (n, k)."""
    parts = []
    with bar(len(pixels), "membership", "image", progress=progress, delay=2) as shown:
        for start in range(0, len(pixels), batch_size):
            chosen = slice(start, start + batch_size)
            parts.append(synthesizer.restoration_losses(pixels[chosen], labels[chosen], grid))
            shown.update(len(parts[-1]))
    losses = np.concatenate(parts)
    if not np.isfinite(losses).all():
        raise DivergedError(
            "A loss of the model is not finite: its weights are damaged. Load an "
            "earlier checkpoint, or train the model again."
        )
    return losses


def _by_class(
    scores: NDArray[np.float64], division: Division, labels: Labels, classes: tuple[str, ...]
) -> tuple[ClassMembership, ...]:
    """How well the images of each class are told apart."""
    threshold = threshold_at(scores[~division.member])
    found = []
    for label, name in enumerate(classes):
        rows = labels == label
        own, train = scores[rows], division.member[rows]
        enough = min(train.sum(), (~train).sum()) >= _FEWEST_COMPARED
        found.append(
            ClassMembership(
                name=name,
                train=int(train.sum()),
                holdout=int((~train).sum()),
                auc=auc(own, train) if enough else None,
                interval=auc_interval(own, train, division.group[rows]) if enough else None,
                recognized=None if threshold is None else int((own[train] > threshold).sum()),
            )
        )
    return tuple(found)


def _identity(synthesizer: AbstractSynthesizer) -> dict[str, JSON]:
    """Returns the model's identity for the report."""
    recipe = synthesizer.recipe()
    return {name: recipe[name] for name in ("synthesizer", "weights") if name in recipe}


def _names_others(synthesizer: AbstractSynthesizer, train: Any) -> bool:
    """Whether the model's record names training images, and not these."""
    known = recorded(synthesizer.trained_on, "fingerprint")
    if isinstance(train, np.ndarray | torch.Tensor | str | os.PathLike):
        return False  # they carry no fingerprint
    own = ImageSource.open(train).fingerprint
    return bool(known) and own is not None and own not in known
