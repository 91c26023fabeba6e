"""The scores of synthetic and real images: a record that is its own file."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from synthaug._support.files import write_text
from synthaug._types import JSON, Labels
from synthaug.errors import AuditError

FORMAT = "synthaug hardness"

Doubles = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """Three measures of how rare each of n images is; NaN for rows without an image."""

    labels: Labels
    """Class of each, int64 (n,)."""
    hardness: Doubles
    """Negative log-likelihood under the Gaussian of its class, in nats, float64 (n,)."""
    average_distance: Doubles
    """AvgkNN, the mean distance to the nearest training images, float64 (n,)."""
    outlier_factor: Doubles
    """LOF, the density of those images' surroundings over that of its own, float64 (n,)."""

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Which rows have an image, bool (n,)."""
        return np.isfinite(self.hardness)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HardnessReport:
    """How hard synthetic images are, beside real ones; made by `evaluation.score_hardness`.

        report.hardness                                    # one value per row of the cache
        report.to_html("density.html")
        report.to_json("density.json"), HardnessReport.from_json("density.json")

    Scores in the features of two extractors do not compare.
    """

    identity: dict[str, JSON]
    """Of the cache that was scored."""
    classes: tuple[str, ...]
    """Names of the classes."""
    synthetic: Scores
    """Of every row of the cache."""
    train: Scores
    """Of the training images, each as if it had been left out."""
    holdout: Scores | None
    """Of real images that are not among them."""
    extractor: dict[str, JSON]
    """Name of the features, and the digest of their weights."""
    settings: dict[str, JSON]
    """How the scores came about; fingerprints of the real images."""
    pictures: dict[str, tuple[dict[str, JSON], ...]]
    """The "hardest" and the "easiest" synthetic images: `row`, and `image`, a `data:` address."""

    @property
    def hardness(self) -> Doubles:
        """Of every row of the cache, float64 (N,); NaN for rows that were not done."""
        return self.synthetic.hardness

    @property
    def sets(self) -> dict[str, Scores]:
        """Training, held-out and synthetic images, under the names that tables have for them."""
        found = {"training, left out": self.train, "held-out": self.holdout}
        return {k: v for k, v in {**found, "synthetic": self.synthetic}.items() if v is not None}

    def summary(self) -> dict[str, dict[str, float]]:
        """Quantiles of each of `sets`, and the share of it beyond those of the held-out images.

        Without held-out images, beyond those of the training images.
        """
        real = self.train if self.holdout is None else self.holdout
        limit90, limit99 = np.quantile(real.hardness[real.scored], [0.9, 0.99])
        found = {}
        for name, scores in self.sets.items():
            values = scores.hardness[scores.scored]
            found[name] = {
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
        return found

    def table(self) -> list[list[str]]:
        """The summary as lines of text cells, the first of which is the header."""
        rows = self.summary()
        lines = [["", *next(iter(rows.values()))]]
        for name, row in rows.items():
            cells = [f"{x:,}" if isinstance(x, int) else f"{x:.3g}" for x in row.values()]
            lines.append([name, *cells])
        return lines

    def __str__(self) -> str:
        cells = self.table()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
            for pairs in (list(zip(line, widths, strict=True)) for line in cells)
        )

    def _repr_html_(self) -> str:
        from synthaug.evaluation._hardness.page import small

        return small(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained page that opens from disk, offline."""
        from synthaug.evaluation._hardness.page import render

        write_text(path, render(self))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the whole report; numbers keep nine digits."""
        record = {
            "format": FORMAT,
            "identity": self.identity,
            "extractor": self.extractor,
            "settings": self.settings,
            "summary": self.summary(),
            "classes": list(self.classes),
            **{name: _listed(getattr(self, name)) for name in ("synthetic", "train", "holdout")},
            "pictures": {name: list(shown) for name, shown in self.pictures.items()},
        }
        write_text(path, json.dumps(record, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "HardnessReport":
        """Reads what `to_json` wrote.

        Raises:
            AuditError: If it is missing, damaged, or something else.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}")
            scores = {name: _parsed(record[name]) for name in ("synthetic", "train")}
            return cls(
                identity=dict(record["identity"]),
                classes=tuple(record["classes"]),
                holdout=None if record["holdout"] is None else _parsed(record["holdout"]),
                extractor=dict(record["extractor"]),
                settings=dict(record["settings"]),
                pictures={name: tuple(shown) for name, shown in record["pictures"].items()},
                **scores,
            )
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise AuditError(f"{os.fspath(path)} is not a hardness report ({error}).") from error


def _listed(scores: Scores | None) -> dict[str, JSON] | None:
    if scores is None:
        return None
    columns = {k: v for k, v in asdict(scores).items() if k != "labels"}
    return {
        "labels": scores.labels.tolist(),
        **{
            k: [float(f"{x:.9g}") if np.isfinite(x) else None for x in v]
            for k, v in columns.items()
        },
    }


def _parsed(record: dict[str, Any]) -> Scores:
    labels = np.array(record["labels"], np.int64)
    columns = [
        np.array([np.nan if x is None else x for x in record[name]], np.float64)
        for name in ("hardness", "average_distance", "outlier_factor")
    ]
    if any(column.shape != labels.shape for column in columns):
        raise ValueError("its columns differ in length")
    return Scores(labels, *columns)
