"""What was measured: synthetic images against real ones, and other real images against the same."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from synthaug._support.files import write_text
from synthaug._types import JSON
from synthaug.errors import DataError

FORMAT = "synthaug-quality"

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
class Scores:
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
        value, std = getattr(self, name), getattr(self, f"{name}_std", None)
        if value is None:
            return "-"
        return f"{value:.4g}" + ("" if std is None else f" ± {std:.2g}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class QualityReport:
    """Quality of synthetic images; made by `synthaug.evaluation.score_quality`.

        print(report)
        report.synthetic.frechet_distance, report.floor.frechet_distance
        report.to_html("quality.html")
        report.to_json("quality.json"), QualityReport.from_json("quality.json")

    Only numbers of equal n and equal features compare.
    """

    identity: dict[str, JSON]
    """Of the cache that was scored."""
    synthetic: Scores
    """Synthetic images against the reference images."""
    floor: Scores
    """As many other real images against the same reference images: what a perfect generator would
    get."""
    by_class: dict[str, tuple[Scores, Scores]]
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
    """Neighbours, seed, whether a low-rank distance was forced."""

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

    def __str__(self) -> str:
        return text_table(self.rows()) + "\n\n" + self.caption()

    def _repr_html_(self) -> str:
        from synthaug._support.html import notebook, table

        header, *rows = self.rows()
        return notebook("Quality of synthetic images", table(header, rows), self.caption())

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes one self-contained page that opens from disk, offline."""
        from synthaug.evaluation._quality.page import render

        return write_text(path, render(self))

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes the whole report."""
        record = {"format": FORMAT, **asdict(self)}
        return write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "QualityReport":
        """Reads what `to_json` wrote.

        Raises:
            DataError: If it is missing, damaged, or something else.
        """
        try:
            record: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if record.pop("format") != FORMAT:
                raise ValueError("it has another format")
            for name in ("synthetic", "floor"):
                record[name] = Scores(**record[name])
            classes: Mapping[str, Any] = record.pop("by_class")
            pairs = {c: (Scores(**a), Scores(**b)) for c, (a, b) in classes.items()}
            return cls(by_class=pairs, **record)
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{os.fspath(path)} is not a quality report ({error}).") from error


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
