"""What was measured: synthetic images against real ones, and other real images against the same."""

from dataclasses import asdict, dataclass
from typing import Any, final

from markupsafe import Markup

from synthaug._support.html import Part, blocks, facts, heading, table
from synthaug._support.report import Report
from synthaug._types import JSON

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

    def _summary(self) -> list[Part]:
        return [self.rows(), self.caption()]

    def _columns(self) -> dict[str, Any]:
        """Returns a row for synthetic images and one for the floor, of all classes and of each."""
        pairs = {"all": (self.synthetic, self.floor), **self.by_class}
        columns: dict[str, Any] = {
            "class": [name for name in pairs for _ in range(2)],
            "images": ["synthetic", "floor"] * len(pairs),
        }
        scores = [asdict(scores) for pair in pairs.values() for scores in pair]
        return columns | {name: [row[name] for row in scores] for name in scores[0]}

    def html_sections(self) -> Markup:
        """Returns the tables, how to read them, and settings."""
        parts = [
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
        settings = {
            "reference": self.reference,
            "features": self.extractor,
            "classifier": self.classifier,
            "": self.settings,
        }
        return blocks(*parts, heading("How it was done"), facts(settings))
