"""How good synthetic images are as a whole, beside as many real ones."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, final

import numpy as np

from synthaug._images.source import ImageSource, recorded
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_between, check_whole
from synthaug._support.html import Part, heading, table
from synthaug._support.report import Report
from synthaug._types import JSON, Features, Indices, Labels
from synthaug.evaluation._comparison import Comparison, features_of
from synthaug.features import ExtractionConfig, Extractor, describe
from synthaug.metrics import (
    check_rank,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
)

_SPLITS = 10
COLUMNS = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "inception_score": "inception score",
}
"""The scores as tables name them."""


@final
@dataclass(frozen=True, kw_only=True)
class QualityScores:
    """n images against n reference images; see `synthaug.metrics`."""

    n: int
    """Images of each of the two sets."""
    frechet_distance: float | None
    """`None` where there are fewer images than twice the features."""
    kernel_distance: float
    """Mean over subsets."""
    kernel_distance_std: float
    """Standard deviation over them."""
    precision: float
    recall: float
    density: float
    coverage: float
    inception_score: float | None = None
    """From the logits of the classifier; `None` without one. The reference plays no part in it."""
    inception_score_std: float | None = None
    """Standard deviation over ten parts of the images."""

    def cells(self) -> list[str]:
        """The scores as text, in the order of `COLUMNS`; "-" for those that are missing."""
        return [self._cell(name) for name in COLUMNS]

    def _cell(self, name: str) -> str:
        value, std = vars(self)[name], vars(self).get(f"{name}_std")
        if value is None:
            return "-"
        return f"{value:.4g}" + ("" if std is None else f" ± {std:.2g}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class QualityReport(Report):
    """Quality of synthetic images; made by `synthaug.evaluation.score_quality`.

        print(report)
        report.synthetic.frechet_distance, report.floor.frechet_distance
        report.to_html("quality.html")
        report.to_json("quality.json"), QualityReport.from_json("quality.json")

    Only numbers of equal n and equal features compare.
    """

    _FORMAT = "synthaug-quality"
    _NOUN = "a quality report"
    _REMEDY = "Score the quality again."
    _TITLE = "Quality of synthetic images"

    identity: dict[str, JSON]
    """Of the cache that was scored."""
    synthetic: QualityScores
    """Synthetic images against the reference images."""
    floor: QualityScores
    """As many other real images against the same reference images: what a perfect generator would
    get."""
    by_class: dict[str, tuple[QualityScores, QualityScores]]
    """For each class that has images enough, both again."""
    reference: dict[str, JSON]
    """The reference images: `name`, `fingerprint`, number of `images`, and whether the generator
    was trained on them (`trained_on`, `None` if it is not known)."""
    floor_from: str
    """Where the real images of the floor come from."""
    extractor: dict[str, JSON]
    """Name of the features, digest of their weights, and their number `dim`."""
    classifier: dict[str, JSON] | None
    """The same of the classifier of the inception score."""
    settings: dict[str, JSON]
    """Neighbors, seed, whether a low-rank distance was forced."""

    def rows(self) -> list[list[str]]:
        """The table as text, header first."""
        shown = [["", "n", *COLUMNS.values()]]
        for name, scores in {"synthetic": self.synthetic, "real (floor)": self.floor}.items():
            shown.append([name, f"{scores.n:,}", *scores.cells()])
        return shown

    def caption(self) -> str:
        """A few sentences on what the numbers are."""
        seen = {True: ", on which the generator was trained", False: "", None: ""}
        trained = self.reference.get("trained_on")
        text = (
            f"n images of each kind against n reference images out of {self.reference['name']}"
            f"{seen[trained if isinstance(trained, bool) else None]}, in the "
            f"{self.extractor['dim']} features of {self.extractor['name']}. The floor is what "
            f"other real images get ({self.floor_from})."
        )
        if self.classifier is not None:
            text += f" Inception score: by the logits of {self.classifier['name']}."
        if self.synthetic.n < 2 * int(str(self.extractor["dim"])) and self.settings["force"]:
            text += (
                " The Fréchet distance was forced: there are fewer images than twice the features."
            )
        return text

    def verdict(self) -> str:
        """One sentence on whether the images are nearer to the reference than real ones, or not.

        By the kernel distance, which any number of images has. A difference is chance up to twice
        the standard deviations over subsets, of both together.
        """
        ours, real = self.synthetic, self.floor
        gap = ours.kernel_distance - real.kernel_distance
        chance = 2 * math.hypot(ours.kernel_distance_std, real.kernel_distance_std)
        told = (
            f"kernel distance {ours.kernel_distance:.4g}, that of the floor "
            f"{real.kernel_distance:.4g}, and up to {chance:.2g} between them can be chance"
        )
        if gap > chance:
            return f"Synthetic images are farther from the reference than real ones: {told}."
        if gap < -chance:
            return (
                f"Synthetic images are nearer to the reference than real ones: {told}. Copies "
                "would be: audit them."
            )
        return f"Synthetic images are as near to the reference as real ones, within chance: {told}."

    def _summary(self) -> list[Part]:
        return [self.rows(), self.caption(), f"Verdict: {self.verdict()}"]

    def _columns(self) -> dict[str, Any]:
        """Returns a row for synthetic images and one for the floor, of all classes and of each."""
        pairs = {"all": (self.synthetic, self.floor), **self.by_class}
        columns: dict[str, Any] = {
            "class": [name for name in pairs for _ in range(2)],
            "images": ["synthetic", "floor"] * len(pairs),
        }
        scores = [asdict(scores) for pair in pairs.values() for scores in pair]
        return columns | {name: [row[name] for row in scores] for name in scores[0]}

    def _sections(self) -> list[Part]:
        """Returns the tables, and how to read them."""
        parts: list[Part] = [
            *self._summary(),
            "Compare numbers of equal n and equal features only. Distances are smaller for better "
            "images, but not below the floor: images below it are closer to the reference than "
            "real ones are, as copies would be. Precision and density say whether synthetic images "
            "look real, recall and coverage whether real ones are all represented.",
        ]
        if self.by_class:
            names = [name for key, name in COLUMNS.items() if key != "inception_score"]
            rows = [
                [label, kind, f"{scores.n:,}", *scores.cells()[: len(names)]]
                for label, pair in self.by_class.items()
                for kind, scores in zip(("synthetic", "floor"), pair, strict=True)
            ]
            header = ["class", "images", "n", *names]
            parts += [heading("By class"), table(header, rows, text_columns=1)]
        return parts

    def _made_with(self) -> dict[str, dict[str, JSON] | None]:
        return {
            "reference": self.reference,
            "features": self.extractor,
            "classifier": self.classifier,
            "": self.settings,
        }


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
        synthetic: A `SynthCache`, of which the rows that are done are scored, or another labeled
            data set.
        real: Labeled real images, the reference. Distances to the generator's own training images
            reward copies; the report says if it was trained on them.
        features: Extractor, as for `synthaug.audit`. Take that of a classifier or a self-supervised
            network.
        holdout: Labeled real images that are not among `real`.
        classifier: Extractor that returns the logits of a classifier, for the inception score.
        images: Images of each set; by default as many as all of them have.
        k: Neighbors of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        seed: Seed of the choice of the images.
        batch_size: Images per call of an extractor.
        features_dir: Folder in which features of networks are kept for later calls.
        progress: Show bars.

    Raises:
        ValueError: For fewer images than twice the features, unless `force`, or than neighbors.
        MismatchError: If classes or image shapes differ.
        ImportError: Without torchmetrics.
    """
    sets = Comparison.open(synthetic=synthetic, real=real, holdout=holdout)
    sources = sets.sources
    check_whole(0, seed=seed)
    measure = Measure(k=k, force=force, seed=seed)
    chosen = _equal_parts(sets.rows, images, seed)
    dim = features(sources["real"].pixels(sets.rows["real"][:1])).shape[1]
    measure.check_size(len(chosen["synthetic"]), dim, "Each set that is compared")
    second = "real" if holdout is None else "holdout"
    names = {"synthetic": "synthetic", "reference": "real", "other": second}
    extraction = ExtractionConfig(batch_size=batch_size, directory=features_dir)
    compute = partial(features_of, extraction=extraction, progress=progress)
    vectors = {
        part: compute(sources[name], chosen[part], features, part) for part, name in names.items()
    }
    logits = {}
    if classifier is not None:
        for part in ("synthetic", "other"):
            images_of, note = sources[names[part]], f"{part}, classes"
            logits[part] = compute(images_of, chosen[part], classifier, note)
    labels = {part: sets.labels[name][chosen[part]] for part, name in names.items()}
    scores, floor = measure.both(vectors, logits)
    other = sources[second]
    return QualityReport(
        identity=sources["synthetic"].identity,
        synthetic=scores,
        floor=floor,
        by_class=_by_class(vectors, labels, sets.classes, measure),
        reference=_reference(sources),
        floor_from=f"another half of {other.title}" if holdout is None else other.title,
        extractor={**describe(features), "dim": dim},
        classifier=None if classifier is None else describe(classifier),
        settings={**asdict(measure), "holdout": None if holdout is None else other.fingerprint},
    )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How sets of features are compared."""

    k: int = 5
    """Neighbors of precision, recall, density and coverage."""
    force: bool = False
    """Take the Fréchet distance of fewer images than twice the features."""
    seed: int = 0
    """Of the subsets that the kernel distance and the inception score are averaged over."""

    def check_size(self, n: int, dim: int, name: str) -> None:
        """Refuses fewer images than twice the features, unless `force`, or than `k` with a
        ValueError."""
        if n <= max(self.k, 3):
            raise ValueError(
                f"{name} has {n} images, and more than `k`={self.k} and more than 3 are "
                "needed. Give more images, or a smaller `k`."
            )
        check_rank(n, dim, name=name, force=self.force)

    def scores(
        self, synthetic: Features, reference: Features, logits: Features | None = None
    ) -> QualityScores:
        """All scores of one set of features against another of the same size.

        The Fréchet distance is left out where there are fewer images than twice the features,
        unless `force`.
        """
        n, d = synthetic.shape
        score = std = distance = None
        if logits is not None and len(logits) >= _SPLITS:
            score, std = inception_score(logits, splits=_SPLITS, seed=self.seed)
        if self.force or n >= 2 * d:
            distance = frechet_distance(synthetic, reference, force=self.force)
        kernel, kernel_std = kernel_distance(synthetic, reference, seed=self.seed)
        return QualityScores(
            n=n,
            frechet_distance=distance,
            kernel_distance=kernel,
            kernel_distance_std=kernel_std,
            **manifold_scores(synthetic, reference, k=self.k)._asdict(),
            inception_score=score,
            inception_score_std=std,
        )

    def both(
        self, vectors: Mapping[str, Features], logits: Mapping[str, Features]
    ) -> tuple[QualityScores, QualityScores]:
        """The scores of synthetic and of other real images, both against the reference."""
        synthetic, other = (
            self.scores(vectors[name], vectors["reference"], logits.get(name))
            for name in ("synthetic", "other")
        )
        return synthetic, other


def _reference(sources: Mapping[str, ImageSource]) -> dict[str, JSON]:
    """Returns the report's facts about the reference images."""
    real, seen = (
        sources["real"],
        recorded(sources["synthetic"].manifest.get("trained_on"), "fingerprint"),
    )
    known = seen and real.fingerprint is not None
    trained_on = real.fingerprint in seen if known else None
    return {"name": real.title, **real.record, "trained_on": trained_on}


def _equal_parts(rows: Mapping[str, Indices], images: int | None, seed: int) -> dict[str, Indices]:
    """Takes as many random rows of synthetic, reference and other real images."""
    order = {
        name: readable[np.argsort(counter_rng(seed, i).random(len(readable)), kind="stable")]
        for i, (name, readable) in enumerate(rows.items())
    }
    if "holdout" not in order:
        half = len(order["real"]) // 2
        order["holdout"], order["real"] = order["real"][half:], order["real"][:half]
    n = min(len(part) for part in order.values())
    check_whole(0, images=images)
    check_between(1, n, ", as many as every set has", images=images)
    parts = {"synthetic": "synthetic", "reference": "real", "other": "holdout"}
    return {part: np.sort(order[name][: images or n]) for part, name in parts.items()}


def _by_class(
    vectors: dict[str, Features],
    labels: dict[str, Labels],
    classes: tuple[str, ...],
    measure: Measure,
) -> dict[str, tuple[QualityScores, QualityScores]]:
    """Both scores of each class of which all three sets have enough images."""
    scores = {}
    for c, name in enumerate(classes):
        of_class = {key: x[labels[key] == c] for key, x in vectors.items()}
        n = min(map(len, of_class.values()))
        if n > max(measure.k, 3):
            scores[name] = measure.both({key: x[:n] for key, x in of_class.items()}, {})
    return scores
