"""How hard synthetic images are, beside real ones: features, Gaussians, neighbors and a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
from markupsafe import Markup

from synthaug._images.source import ImageSource
from synthaug._pixels import to_pil
from synthaug._support.arguments import check_some
from synthaug._support.charts import histogram
from synthaug._support.html import Part, checked_uri, data_uri, heading, table, thumbnails
from synthaug._support.report import Report
from synthaug._types import JSON, Doubles, Flags, Indices, Labels
from synthaug.density import ClassGaussians, Estimator, Neighborhood, Structure
from synthaug.errors import AuditError
from synthaug.evaluation._comparison import Comparison, features_of
from synthaug.features import ExtractionConfig, Extractor, describe

_PICTURES = 24
_PICTURE_SIDE = 96
_MEASURES = {
    "hardness": "hardness: negative log-likelihood in nats",
    "average_distance": "AvgkNN: mean distance to the nearest training images",
    "outlier_factor": "LOF: local outlier factor",
}


@final
@dataclass(frozen=True, eq=False)
class HardnessScores:
    """Three measures of how rare each of n images is; NaN for rows without an image."""

    labels: Labels
    """Class of each, int64 (n,)."""
    hardness: Doubles
    """Negative log-likelihood under the Gaussian of its class, in nats, float64 (n,)."""
    average_distance: Doubles
    """AvgkNN, the mean distance to the nearest training images, float64 (n,)."""
    outlier_factor: Doubles
    """LOF, the density of those images' surroundings over that of its own, float64 (n,)."""

    def __post_init__(self) -> None:
        if len({column.shape for column in vars(self).values()}) != 1:
            raise ValueError("The columns of scores differ in length")

    @property
    def scored(self) -> Flags:
        """Mask of the rows that have an image, bool (n,)."""
        return np.isfinite(self.hardness)

    @property
    def measures(self) -> dict[str, Doubles]:
        """The three measures by their names."""
        return {name: vars(self)[name] for name in _MEASURES}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HardnessReport(Report):
    """How hard synthetic images are, beside real ones; made by `evaluation.score_hardness`.

        report.hardness                                    # one value per row of the cache
        report.to_html("density.html")
        report.to_json("density.json"), HardnessReport.from_json("density.json")

    Scores in the features of two extractors do not compare.
    """

    _FORMAT = "synthaug hardness"
    _NOUN = "a hardness report"
    _REMEDY = "Score the hardness again."
    _ERROR = AuditError
    _TITLE = "Hardness of synthetic images"
    score_name = "hardness"
    STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 10px; }
.pictures figure { margin: 0; } .pictures img { width: 100%; height: auto; }
"""
    _INDENT = None

    identity: dict[str, JSON]
    """Of the cache that was scored."""
    classes: tuple[str, ...]
    """Names of the classes."""
    synthetic: HardnessScores
    """Of every row of the cache."""
    train: HardnessScores
    """Of the training images, each as if it had been left out."""
    holdout: HardnessScores | None
    """Of real images that are not among them."""
    extractor: dict[str, JSON]
    """Name of the features, and the digest of their weights."""
    settings: dict[str, JSON]
    """How the scores came about; fingerprints of the real images."""
    pictures: dict[str, tuple[dict[str, JSON], ...]]
    """The "hardest" and the "easiest" synthetic images: `row`, and `image`, a `data:` address."""

    def __post_init__(self) -> None:
        for name, scores in self.sets.items():
            check_some("score", "Score some images.", **{name: scores.hardness[scores.scored]})

    @property
    def hardness(self) -> Doubles:
        """Returns the hardness of every row, float64 (N,); NaN for rows that were not done."""
        return self.synthetic.hardness

    @property
    def row_scores(self) -> Doubles:
        """The hardness of every row, which filters and weights go by."""
        return self.hardness

    @property
    def sets(self) -> dict[str, HardnessScores]:
        """Training, held-out and synthetic images, under the names that tables have for them."""
        holdout = {} if self.holdout is None else {"held-out": self.holdout}
        return {"training, left out": self.train, **holdout, "synthetic": self.synthetic}

    def summary(self) -> dict[str, dict[str, float]]:
        """Quantiles of each of `sets`, and the share of it beyond those of the held-out images.

        Without held-out images, beyond those of the training images.
        """
        real = self.train if self.holdout is None else self.holdout
        limit90, limit99 = np.quantile(real.hardness[real.scored], [0.9, 0.99])
        summary = {}
        for name, scores in self.sets.items():
            values = scores.hardness[scores.scored]
            summary[name] = {
                "images": len(values),
                "hardness 10 %": float(np.quantile(values, 0.1)),
                "50 %": float(np.median(values)),
                "90 %": float(np.quantile(values, 0.9)),
                "99 %": float(np.quantile(values, 0.99)),
                "> 90 % of real": float((values > limit90).mean()),
                "> 99 % of real": float((values > limit99).mean()),
                "AvgkNN 50 %": float(np.median(scores.average_distance[scores.scored])),
                "LOF 50 %": float(np.median(scores.outlier_factor[scores.scored])),
            }
        return summary

    def table(self) -> list[list[str]]:
        """The summary as lines of text cells, the first of which is the header."""
        rows = self.summary()
        lines = [["", *next(iter(rows.values()))]]
        for name, row in rows.items():
            cells = [f"{x:,}" if isinstance(x, int) else f"{x:.3g}" for x in row.values()]
            lines.append([name, *cells])
        return lines

    def _summary(self) -> list[Part]:
        return [self.table()]

    def _pictures(self) -> list[Part]:
        parts: list[Part] = []
        for name, shown in self.pictures.items():
            images = [(picture["image"], f"row {picture['row']}") for picture in shown[:8]]
            parts += [f"The {name} synthetic images:", thumbnails(images)]
        return parts

    def _columns(self) -> dict[str, Any]:
        """Returns a row per row of the cache; NaN for rows that were not done."""
        names = np.array(self.classes, object)[self.synthetic.labels]
        return {"class": names, **self.synthetic.measures}

    def _record(self) -> dict[str, Any]:
        """Returns all fields and the summary; numbers keep nine digits."""
        sets = {"synthetic": self.synthetic, "train": self.train, "holdout": self.holdout}
        rounded = {name: None if one is None else _rounded(one) for name, one in sets.items()}
        return {**super()._record(), **rounded, "summary": self.summary()}

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "HardnessReport":
        del record["summary"]
        return super()._from_record(record)

    def _sections(self) -> list[Part]:
        """Returns the table, histograms, and the hardest and the easiest images."""
        real = "training" if self.holdout is None else "held-out"
        parts: list[Part] = [
            *self._summary(),
            f"Features: {self.extractor['name']}. Large values are rare among real images. The "
            f'columns "> of real" have the share beyond that quantile of {real} images. Training '
            "images are scored as if each had been left out; a network that was trained on them "
            "still sees them better than others.",
        ]
        for measure, label in _MEASURES.items():
            values = {name: s.measures[measure][s.scored] for name, s in self.sets.items()}
            top = max(float(np.quantile(v, 0.995)) for v in values.values())
            parts.append(histogram({k: v.clip(max=top) for k, v in values.items()}, x_label=label))
        parts.append("The last bin of each chart holds all larger values too.")
        for name, shown in self.pictures.items():
            figures = Markup("").join(self._figure(picture) for picture in shown)
            pictures = Markup('<div class="pictures">{}</div>').format(figures)
            parts += [heading(f"The {name} synthetic images"), pictures]
        by_class = table(["class", *self.sets], self._by_class())
        return [*parts, heading("Median hardness by class"), by_class]

    def _made_with(self) -> dict[str, dict[str, JSON]]:
        return {"": {**self.extractor, **self.settings}}

    def _figure(self, picture: dict[str, JSON]) -> Markup:
        row = int(str(picture["row"]))
        name, image = self.classes[self.synthetic.labels[row]], checked_uri(picture["image"])
        said = f"{name}, row {row}: {self.hardness[row]:.4g}"
        shown = Markup('<img src="{}" alt="{}">').format(image, said) if image else ""
        return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(shown, said)

    def _by_class(self) -> list[list[str]]:
        rows = []
        for c, name in enumerate(self.classes):
            of_class = [s.hardness[s.scored & (s.labels == c)] for s in self.sets.values()]
            cells = [f"{np.median(v):.4g}" if len(v) else "no image" for v in of_class]
            rows.append([name, *cells])
        return rows


def _rounded(scores: HardnessScores) -> HardnessScores:
    """Nine digits of every number, so that files stay small."""
    columns = scores.measures.items()
    return replace(
        scores, **{name: np.array([float(f"{x:.9g}") for x in v]) for name, v in columns}
    )


def score_hardness(
    synthetic: Any,
    train: Any,
    *,
    features: Extractor,
    holdout: Any = None,
    structure: Structure = "full",
    estimator: Estimator = "ledoit_wolf",
    components: int | None = None,
    k: int = 5,
    batch_size: int = 512,
    features_dir: str | None = None,
    progress: bool = True,
) -> HardnessReport:
    """Scores synthetic images by how rare they are among real ones of their class.

        hardness = synthaug.evaluation.score_hardness(cache, train, holdout=test, features=encoder)
        hardness.to_html("density.html"), hardness.to_json("density.json")
        mixed = synthaug.MixedDataset(real, cache, audit=report, fraction=0.5,
                                      filters=[mixing.Highest(hardness, 0.2)])

    Hardness depends on the features: take those of a classifier or of a self-supervised network,
    and compare only scores of one extractor. Training images are scored as if each of them had been
    left out; a network that was trained on them still sees them better than others, so it is the
    held-out images that synthetic ones compare with.

    Args:
        synthetic: A `SynthCache`, of which the rows that are done are scored, or another labeled
            data set.
        train: Labeled real images, to which the Gaussians are fitted and among which neighbors
            are searched; at least four of every class by default.
        features: Extractor, as for `synthaug.audit`.
        holdout: Labeled real images that are not among `train`.
        structure: See `density.ClassGaussians.fit`.
        estimator: Estimator of the covariances, `ledoit_wolf`, `oas` or `empirical`.
        components: Number of principal components, or `None`. Neighbors are searched among the
            whole features.
        k: Neighbors of AvgkNN and of the outlier factor.
        batch_size: Images per call of the extractor.
        features_dir: Folder in which features of networks are kept for later calls.
        progress: Show bars.

    Raises:
        ValueError: For a set without images, or what `ClassGaussians.fit` refuses.
        MismatchError: If classes or image shapes differ.
    """
    sets = Comparison.open(synthetic=synthetic, train=train, holdout=holdout)
    sources, labels, rows = sets.sources, sets.labels, sets.rows
    extraction = ExtractionConfig(batch_size=batch_size, directory=features_dir)
    compute = partial(features_of, extraction=extraction, progress=progress)
    vectors = {n: compute(s, rows[n], features, n) for n, s in sources.items()}
    gaussians = ClassGaussians.fit(
        vectors["train"],
        labels["train"][rows["train"]],
        len(sets.classes),
        structure=structure,
        estimator=estimator,
        components=components,
    )
    neighborhood = Neighborhood(vectors["train"], k)
    scores = {}
    for name, x in vectors.items():
        y = labels[name][rows[name]]
        if name == "train":
            hardness, near = gaussians.leave_one_out(x, y), neighborhood.scores()
        else:
            hardness, near = gaussians.hardness(x, y), neighborhood.scores(x)
        columns = (_spread(values, rows[name], len(labels[name])) for values in (hardness, *near))
        scores[name] = HardnessScores(labels[name], *columns)
    settings: dict[str, JSON] = {
        "structure": structure,
        "estimator": estimator,
        "components": components,
        "k": k,
        **{name: source.fingerprint for name, source in sources.items() if name != "synthetic"},
    }
    return HardnessReport(
        identity=sources["synthetic"].identity,
        classes=sets.classes,
        synthetic=scores["synthetic"],
        train=scores["train"],
        holdout=scores.get("holdout"),
        extractor=describe(features),
        settings=settings,
        pictures=_pictures(sources["synthetic"], scores["synthetic"]),
    )


def _spread(values: Doubles, rows: Indices, count: int) -> Doubles:
    """Values at the places of their rows among all, float64 (count,); NaN elsewhere."""
    column = np.full(count, np.nan)
    column[rows] = values
    return column


def _pictures(
    source: ImageSource, scores: HardnessScores
) -> dict[str, tuple[dict[str, JSON], ...]]:
    """The hardest and the easiest images, as PNG in `data:` addresses."""
    order = np.argsort(scores.hardness, kind="stable")[: int(scores.scored.sum())]

    def shown(rows: Sequence[int]) -> tuple[dict[str, JSON], ...]:
        pictures: list[dict[str, JSON]] = []
        for row, pixels in zip(rows, source.pixels(rows), strict=True):
            image = to_pil(pixels)
            image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
            pictures.append({"row": int(row), "image": data_uri(image)})
        return tuple(pictures)

    hardest, easiest = order[::-1][:_PICTURES].tolist(), order[:_PICTURES].tolist()
    return {"hardest": shown(hardest), "easiest": shown(easiest)}
