"""The report of a sweep: a table, the chosen setting, a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from markupsafe import Markup

from synthaug._support.arguments import check_some
from synthaug._support.charts import Line, line_chart, save_figure
from synthaug._support.html import Part, heading
from synthaug._support.report import Report, percent
from synthaug._types import JSON, StrPath
from synthaug.evaluation._quality import QualityScores
from synthaug.sweeps._settings import Setting

_MOST_LINES = 6
_COST, _BEST = "network evaluations per image", "Fréchet distance, best up to there"

Curves = dict[str, tuple[list[float], list[float]]]
"""x and y of lines, by name."""


@final
@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One setting and what its images are worth."""

    setting: Setting
    images: int
    """Images that were drawn."""
    evaluations: float
    """Network evaluations per image."""
    scores: QualityScores
    """Of `scores.n` of them."""
    cas: list[float] | None = None
    """Accuracies on the validation split of classifiers trained on the images, one per seed;
    second stage only."""

    @property
    def frechet_distance(self) -> float:
        """The Fréchet distance, by which the first stage chooses."""
        assert self.scores.frechet_distance is not None
        return self.scores.frechet_distance

    def coarse_cells(self, names: Sequence[str]) -> list[str]:
        """Returns the setting under the given names, and what the first stage measured, as text."""
        values = (self.setting.get(name, "") for name in names)
        return [
            *(f"{v:g}" if isinstance(v, float) else str(v) for v in values),
            f"{self.evaluations:g}",
            f"{self.frechet_distance:.4g}",
            f"{self.scores.precision:.3f}",
            f"{self.scores.recall:.3f}",
        ]

    def fine_cells(self) -> list[str]:
        """Returns the guidance, and what the second stage measured, as text."""
        score = self.scores.inception_score
        return [
            f"{self.setting['guidance_scale']:g}",
            f"{self.frechet_distance:.4g}",
            "-" if score is None else f"{score:.4g}",
            percent(self.cas),
        ]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport(Report):
    """Both stages of a sweep; made by `synthaug.sweeps.sweep`.

        print(report)
        report.chosen          # {"scheduler": "ddpm", "num_inference_steps": 50, ...}
        report.to_html("sweep.html"); report.to_json("sweep.json"); report.plot("sweep.png")

    Everything was chosen on the validation split.
    """

    _FORMAT = "synthaug-sweep"
    _NOUN = "the report of a sweep"
    _REMEDY = "Run the sweep again: settings that are done are not drawn anew."
    _TITLE = "Sampling parameters"

    coarse: list[SweepRow]
    """First stage, in the order of the grid."""
    fine: list[SweepRow]
    """Second stage: guidance alone, the rest as in the best setting of the first."""
    floors: dict[str, QualityScores]
    """For "coarse" and "fine": real training images, as many, against the same images."""
    real_accuracy: list[float]
    """Accuracies of the same classifier trained on the real images, one per seed."""
    chosen: Setting
    """The setting to use."""
    select: str
    """What the second stage chose by: "cas" or "frechet"."""
    validation: dict[str, JSON]
    """The split that everything was chosen on: `name`, `fingerprint`, `images`; and whether it was
    compared with the test split (`compared_with_test`)."""
    extractor: dict[str, JSON]
    """Name of the features of the Fréchet distance, digest of their weights, their number `dim`."""
    classifier: dict[str, JSON]
    """Name of the classifier of the inception score and its weights, and how those of the accuracy
    were trained."""
    settings: dict[str, JSON] = field(default_factory=dict)
    """How the sweep was asked for, if it was from the command line (`command`)."""

    def __post_init__(self) -> None:
        check_some("setting", "Sweep over at least one.", coarse=self.coarse)

    def rows(self, stage: str) -> list[list[str]]:
        """The table of one stage as text, header first; in the first the best comes first."""
        if stage == "fine":
            header = ["guidance_scale", "Fréchet distance", "inception score", "CAS %"]
            return [header, *(row.fine_cells() for row in self.fine)]
        rows = sorted(self.coarse, key=lambda row: row.frechet_distance)
        names = list(dict.fromkeys(name for row in rows for name in row.setting))
        header = [*names, "evaluations", "Fréchet distance", "precision", "recall"]
        return [header, *(row.coarse_cells(names) for row in rows)]

    def caption(self, stage: str) -> str:
        """A few sentences on how to read a table."""
        floor = self.floors[stage]
        images = (self.fine if stage == "fine" else self.coarse)[0].images
        text = (
            f"{images:,} images per setting. Fréchet distance of {floor.n:,} of them to as many "
            f"validation images, in the {self.extractor['dim']} features of "
            f"{self.extractor['name']}; {floor.n:,} real images that these features never saw get "
            f"{floor.frechet_distance:.4g}."
        )
        if stage == "fine":
            text += (
                f" Inception score by {self.classifier['name']}. CAS: accuracy on the validation "
                f"images of {self.classifier['model']} trained on the synthetic images alone for "
                f"{self.classifier['steps']} steps; on the real ones "
                f"{percent(self.real_accuracy)}."
            )
        return text

    def verdict(self) -> str:
        """Returns a sentence about the choice and its basis."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.chosen.items())
        compared = (
            "which shares no image with the test split"
            if self.validation["compared_with_test"]
            else "which must not be the split that results are reported on"
        )
        by = {"cas": "CAS", "frechet": "the Fréchet distance"}[self.select]
        split = f"the validation split ({self.validation['name']})"
        return f"Chosen by {by} on {split}, {compared}: {chosen}."

    def _stages(self) -> dict[str, list[SweepRow]]:
        """Returns the rows of the stages that were run."""
        return {"coarse": self.coarse} | ({"fine": self.fine} if self.fine else {})

    def _summary(self) -> list[Part]:
        parts: list[Part] = []
        for stage in self._stages():
            parts += [self.rows(stage), self.caption(stage)]
        return [*parts, self.verdict()]

    def _columns(self) -> dict[str, Any]:
        """Returns a row per setting of either stage; `cas` is the mean over the seeds."""
        rows = [
            {
                "stage": stage,
                **row.setting,
                "images": row.images,
                "evaluations": row.evaluations,
                **asdict(row.scores),
                "cas": float(np.mean(row.cas)) if row.cas else None,
            }
            for stage, stage_rows in self._stages().items()
            for row in stage_rows
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def _sections(self) -> list[Part]:
        """Returns the choice, and a table and charts of both stages."""
        best = self._best_by_cost()
        lines = [Line(name=name, x=x, y=y) for name, (x, y) in best.items()]
        parts: list[Part] = [
            Markup("<p><b>{}</b></p>").format(self.verdict()),
            heading("First stage: all parameters"),
            self.rows("coarse"),
            self.caption("coarse"),
            line_chart(lines[:_MOST_LINES], x_label=_COST, y_label=_BEST),
        ]
        if self.fine:
            parts += [heading("Second stage: guidance"), self.rows("fine"), self.caption("fine")]
            parts += [
                line_chart([Line(name=name, x=x, y=y)], x_label="guidance_scale", y_label=name)
                for name, (x, y) in self._by_guidance().items()
            ]
        return parts

    def _made_with(self) -> dict[str, dict[str, JSON]]:
        return {
            "validation": self.validation,
            "features": self.extractor,
            "classifier": self.classifier,
        }

    def _best_by_cost(self) -> Curves:
        """For each scheduler the evaluations per image, ascending, and the best distance so far."""
        best_by_scheduler: dict[str, dict[float, float]] = {}
        for row in self.coarse:
            best = best_by_scheduler.setdefault(str(row.setting.get("scheduler", "all")), {})
            best[row.evaluations] = min(row.frechet_distance, best.get(row.evaluations, np.inf))
        curves = {}
        for scheduler, best in best_by_scheduler.items():
            costs = sorted(best)
            curves[scheduler] = costs, np.minimum.accumulate([best[c] for c in costs]).tolist()
        return curves

    def _by_guidance(self) -> Curves:
        """Returns the curves of the second stage, against guidance."""
        rows = sorted(self.fine, key=lambda row: float(row.setting["guidance_scale"]))
        x = [float(row.setting["guidance_scale"]) for row in rows]
        curves = {"Fréchet distance": (x, [row.frechet_distance for row in rows])}
        if all(row.scores.inception_score is not None for row in rows):
            curves["inception score"] = (x, [row.scores.inception_score or 0 for row in rows])
        if all(row.cas for row in rows):
            curves["CAS in percent"] = (x, [100 * float(np.mean(row.cas or [0])) for row in rows])
        return curves

    def plot(self, path: StrPath) -> Path:
        """Writes a figure, as PNG, SVG or PDF by the name's ending: quality against cost, guidance.

        Args:
            path: File to write; its folder is made if it is missing.
        """
        from matplotlib.figure import Figure  # pyplot would keep figures and open windows

        second = self._by_guidance() if self.fine else {}
        figure = Figure(figsize=(4.2 * (1 + len(second)), 3.4), layout="constrained")
        axes = np.atleast_1d(np.asarray(figure.subplots(1, 1 + len(second))))
        for name, (x, y) in self._best_by_cost().items():
            axes[0].plot(x, y, marker="o", label=name)
        axes[0].set(xlabel=_COST, ylabel=_BEST)
        axes[0].legend(fontsize=8)
        for axis, (name, (x, y)) in zip(axes[1:], second.items(), strict=True):
            axis.plot(x, y, marker="o")
            axis.set(xlabel="guidance_scale", ylabel=name)
        for axis in axes:
            axis.grid(alpha=0.3)
        return save_figure(figure, path)
