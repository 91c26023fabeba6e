"""Equal numbers of images of each set, their features, and the scores of these."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._types import JSON, Features, Indices, Labels
from synthaug.evaluation._comparison import check_comparable, common_classes, features_of, labels_in
from synthaug.evaluation._quality.report import QualityReport, QualityScores
from synthaug.features import Extractor, describe
from synthaug.metrics import (
    check_rank,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
)

_SPLITS = 10


def score_quality(
    synthetic: Any,
    real: Any,
    *,
    features: Extractor,
    holdout: Any = None,
    classifier: Extractor | None = None,
    images: int | None = None,
    k: int = 5,
    force: bool = False,
    seed: int = 0,
    batch_size: int = 512,
    features_dir: str | None = None,
    progress: bool = True,
) -> QualityReport:
    """Scores synthetic images as a whole against real ones.

        quality = synthaug.evaluation.score_quality(cache, test, features=encoder)
        print(quality); quality.to_html("quality.html")

    Every number comes with that of as many other real images against the same reference images.
    Those are the images of `holdout` if it is given; else `real` is divided into two halves that
    share no image, and one of them is the reference.

    Args:
        synthetic: A `SynthCache`, of which the rows that are done are scored, or another labelled
            data set.
        real: Labelled real images, the reference. Distances to the generator's own training images
            reward copies; the report says if it was trained on them.
        features: Extractor, as for `synthaug.audit`. Take that of a classifier or a self-supervised
            network.
        holdout: Labelled real images that are not among `real`.
        classifier: Extractor that returns the logits of a classifier, for the inception score.
        images: Images of each set; by default as many as all of them have.
        k: Neighbours of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        seed: Of the choice of the images.
        batch_size: Images per call of an extractor.
        features_dir: Folder in which features of networks are kept for later calls.
        progress: Show bars.

    Raises:
        ValueError: For fewer images than twice the features, unless `force`, or than neighbours.
        MismatchError: If classes or image shapes differ.
        ImportError: Without torchmetrics.
    """
    sets = {"synthetic": synthetic, "real": real, "holdout": holdout}
    sources = {n: ImageSource.open(x, f"`{n}`") for n, x in sets.items() if x is not None}
    classes = common_classes(sources)
    rows = {name: source.done_rows("scored") for name, source in sources.items()}
    check_comparable(sources, rows)
    chosen = _equal_parts(rows, images, seed)
    n = len(chosen["synthetic"])
    if n <= max(k, 3):
        raise ValueError(f"Each set that is compared has {n} images, not more than `k`={k} and 3.")
    dim = features(sources["real"].pixels(rows["real"][:1])).shape[1]
    check_rank(n, dim, name="Each set that is compared", force=force)

    compared = {
        "synthetic": sources["synthetic"],
        "reference": sources["real"],
        "other": sources.get("holdout", sources["real"]),
    }
    labels = {name: labels_in(classes, one)[chosen[name]] for name, one in compared.items()}
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "features_dir": features_dir,
        "progress": progress,
    }
    vectors = {
        name: features_of(one, chosen[name], features, name, **options)
        for name, one in compared.items()
    }
    logits: dict[str, Features] = {}
    if classifier is not None:
        logits = {
            name: features_of(
                compared[name], chosen[name], classifier, f"{name}, classes", **options
            )
            for name in ("synthetic", "other")
        }
    scores, floor = _both_scores(vectors, k, force, seed, logits)
    return QualityReport(
        identity=sources["synthetic"].identity,
        synthetic=scores,
        floor=floor,
        by_class=_by_class(vectors, labels, classes, k, force, seed),
        reference=_reference(sources),
        floor_from=f"another half of {compared['other'].title}"
        if holdout is None
        else compared["other"].title,
        extractor={**describe(features), "dim": dim},
        classifier=None if classifier is None else describe(classifier),
        settings={
            "k": k,
            "seed": seed,
            "force": force,
            "holdout": None if holdout is None else compared["other"].fingerprint,
        },
    )


def compare(
    synthetic: Features,
    reference: Features,
    *,
    logits: Features | None = None,
    k: int = 5,
    force: bool = False,
    seed: int = 0,
) -> QualityScores:
    """All scores of one set of features against another of the same size.

    The Fréchet distance is left out where there are fewer images than twice the features, unless
    `force`.
    """
    n, d = synthetic.shape
    score = std = None
    if logits is not None and len(logits) >= _SPLITS:
        score, std = inception_score(logits, splits=_SPLITS, seed=seed)
    kernel, kernel_std = kernel_distance(synthetic, reference, seed=seed)
    possible = force or n >= 2 * d
    return QualityScores(
        n=n,
        frechet_distance=frechet_distance(synthetic, reference, force=force) if possible else None,
        kernel_distance=kernel,
        kernel_distance_std=kernel_std,
        **manifold_scores(synthetic, reference, k=k)._asdict(),
        inception_score=score,
        inception_score_std=std,
    )


def _both_scores(
    vectors: Mapping[str, Features],
    k: int,
    force: bool,
    seed: int,
    logits: Mapping[str, Features] | None = None,
) -> tuple[QualityScores, QualityScores]:
    """The scores of the synthetic images, and those of other real ones, against the reference."""
    synthetic, other = (
        compare(
            vectors[name],
            vectors["reference"],
            logits=(logits or {}).get(name),
            k=k,
            force=force,
            seed=seed,
        )
        for name in ("synthetic", "other")
    )
    return synthetic, other


def _reference(sources: Mapping[str, ImageSource]) -> dict[str, JSON]:
    """What a report says of the images that all others are compared with."""
    real = sources["real"]
    return {
        "name": real.title,
        "fingerprint": real.fingerprint,
        "images": len(real),
        "trained_on": _trained_on(sources["synthetic"], real.fingerprint),
    }


def _equal_parts(rows: dict[str, Indices], images: int | None, seed: int) -> dict[str, Indices]:
    """As many random rows of synthetic, reference and other real images."""
    order = {
        name: own[np.argsort(counter_rng(seed, i).random(len(own)), kind="stable")]
        for i, (name, own) in enumerate(rows.items())
    }
    if "holdout" not in order:
        half = len(order["real"]) // 2
        order["holdout"], order["real"] = order["real"][half:], order["real"][:half]
    n = min(len(part) for part in order.values())
    if images is not None:
        if not 1 <= images <= n:
            raise ValueError(
                f"`images` must be from 1 to {n}, as many as every set has; got {images}."
            )
        n = images
    return {
        "synthetic": np.sort(order["synthetic"][:n]),
        "reference": np.sort(order["real"][:n]),
        "other": np.sort(order["holdout"][:n]),
    }


def _by_class(
    vectors: dict[str, Features],
    labels: dict[str, Labels],
    classes: tuple[str, ...],
    k: int,
    force: bool,
    seed: int,
) -> dict[str, tuple[QualityScores, QualityScores]]:
    """Both scores of each class of which all three sets have enough images."""
    scores = {}
    for c, name in enumerate(classes):
        of_class = {key: x[labels[key] == c] for key, x in vectors.items()}
        n = min(map(len, of_class.values()))
        if n >= max(k + 1, 4):
            equal_parts = {key: x[:n] for key, x in of_class.items()}
            scores[name] = _both_scores(equal_parts, k, force, seed)
    return scores


def _trained_on(synthetic: ImageSource, fingerprint: str | None) -> bool | None:
    """Whether the generator saw the images with this fingerprint; `None` if it is not known."""
    seen = fingerprints(synthetic.manifest.get("trained_on"))
    return fingerprint in seen if seen and fingerprint is not None else None


def fingerprints(record: Any) -> set[Any]:
    """Those of the training images of a model, or of all models of a cascade."""
    if not isinstance(record, Mapping):
        return set()
    return {record.get("fingerprint")}.union(*map(fingerprints, record.values())) - {None}
