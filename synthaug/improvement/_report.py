"""The report of a search: a verdict, a table of the trials, the curve, and lines to paste."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from markupsafe import Markup

from synthaug._support.charts import Line, line_chart
from synthaug._support.html import Part, heading, preformatted
from synthaug._support.report import Report
from synthaug._types import JSON
from synthaug.evaluation import EvaluationReport
from synthaug.improvement._gains import Gain


@final
@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe at one share of synthetic images, and how far it came."""

    recipe: str
    share: float
    """Share of synthetic images in training."""
    seeds: int
    """Classifiers that it trained before it was dropped or chosen; 0 if it was not tried."""
    accuracy: float | None
    """Mean accuracy on the validation images, in [0, 1]."""
    gain: Gain | None
    """Over the rival, on the validation images, not corrected for the number tried."""

    @classmethod
    def untried(cls, recipe: str, share: float) -> "Candidate":
        """One for which there was no time."""
        return cls(recipe=recipe, share=share, seeds=0, accuracy=None, gain=None)

    def cells(self) -> list[str]:
        """A row of the table."""
        return [
            f"{self.recipe}, share {self.share:g}",
            str(self.seeds),
            "" if self.accuracy is None else f"{100 * self.accuracy:.2f}",
            "not tried" if self.gain is None else str(self.gain),
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Round:
    """More images of the winner."""

    images: int
    """Drawn so far."""
    served: int
    """Of these, passed by the audit."""
    accuracy: float
    """Mean accuracy on the validation images."""
    gain: Gain
    """Over the rival, on the validation images."""
    kept: bool
    """Whether the round was worth more than its error; the first one is kept in any case."""
    cache: str
    """Path of all images so far."""
    audit: str
    """Verdict of their audit."""
    audit_report: str
    """Path of its report, which says what may be served."""
    selection: str = ""
    """Path of the selection, which says what else is left out; "" for none."""


@final
@dataclass(frozen=True, kw_only=True)
class ImproveReport(Report):
    """Report of `improve`.

    print(report)
    report.verdict      # "use", "none" or "cannot tell"
    report.lines()      # to paste into a training loop
    """

    _FORMAT = "synthaug-improve"
    _NOUN = "the report of a search"
    _REMEDY = "Run `improve` again: what is done is kept in its folder."
    _TITLE = "Do synthetic images help?"

    verdict: Literal["use", "none", "cannot tell", "planned"]
    """The answer; "planned" if nothing was trained yet."""
    reasons: list[str]
    """Why, in sentences."""
    sets: dict[str, int]
    """Images for training, validation and test."""
    candidates: list[Candidate]
    """Recipes and shares, the best one first."""
    settings: dict[str, JSON]
    """How it was done."""
    rivals: dict[str, float] = field(default_factory=dict)
    """Mean accuracies, on the validation images, of the arms without synthetic images."""
    rival: str | None = None
    """The strongest of them."""
    chosen: str | None = None
    """The best recipe."""
    share: float | None = None
    """Its share of synthetic images."""
    tried: int = 0
    """Recipes, shares and rounds that were tried, for which the bound is corrected."""
    gain: Gain | None = None
    """Of the best recipe on the validation images, corrected for the number tried."""
    test_gain: Gain | None = None
    """The same on the test images; `None` if they were not looked at."""
    rounds: list[Round] = field(default_factory=list)
    """What more images brought."""
    evaluation: EvaluationReport | None = None
    """All runs on the test images."""
    seconds: float = 0.0
    """Time that the search took, or its last part if it was resumed."""

    def lines(self) -> str:
        """Python that serves the images in a training loop; "" if there is nothing to use."""
        if self.verdict != "use":
            return ""
        best = [one for one in self.rounds if one.kept][-1]
        read = f"synthaug.selection.ImageSelection.from_json({best.selection!r})"
        filters = f", filters=[{read}]" if best.selection else ""
        return (
            f"cache = synthaug.SynthCache({best.cache!r})\n"
            f"mixed = synthaug.MixedDataset(train, cache, audit={best.audit_report!r}, "
            f"fraction={self.share:g}{filters})\n"
            "loader = DataLoader(mixed, batch_size=128, shuffle=True)"
        )

    def table(self) -> list[list[str]]:
        """Returns the table of the trials, header first."""
        header = ["recipe", "seeds", "accuracy %", f"gain over {self.rival or 'the rival'}"]
        rivals = [[name, "", f"{100 * mean:.2f}", ""] for name, mean in self.rivals.items()]
        return [header, *rivals, *(one.cells() for one in self.candidates)]

    def curve(self) -> list[list[str]]:
        """Returns the results of every round, header first."""
        header = ["images drawn", "served", "audit", "accuracy %", "gain", "kept"]
        return [
            header,
            *(
                [
                    f"{one.images:,}",
                    f"{one.served:,}",
                    one.audit,
                    f"{100 * one.accuracy:.2f}",
                    str(one.gain),
                    "yes" if one.kept else "no",
                ]
                for one in self.rounds
            ),
        ]

    def _title_line(self) -> str:
        answers = {
            "use": "Use synthetic images.",
            "none": "Use no synthetic images.",
            "cannot tell": "This cannot be told with these images.",
            "planned": "Planned; nothing was trained yet.",
        }
        return answers[self.verdict]

    def _summary(self) -> list[Part]:
        sets = ", ".join(f"{count:,} for {name}" for name, count in self.sets.items())
        parts: list[Part] = [self._title_line(), " ".join(self.reasons), f"Images: {sets}."]
        parts.append(self.table())
        if self.rounds:
            parts.append(self.curve())
        return parts

    def _text(self) -> str:
        text = super()._text()
        return f"{text}\n\n{self.lines()}" if self.lines() else text

    def _columns(self) -> dict[str, Any]:
        """Returns a row per recipe and share."""
        rows = self.candidates
        return {
            "recipe": [one.recipe for one in rows],
            "share": [one.share for one in rows],
            "seeds": [one.seeds for one in rows],
            "accuracy": [one.accuracy for one in rows],
            "gain": [one.gain and one.gain.mean for one in rows],
            "standard_error": [one.gain and one.gain.standard_error for one in rows],
        }

    def _sections(self) -> list[Part]:
        summary = self._summary()
        parts: list[Part] = [Markup("<p><b>{}</b></p>").format(summary[0]), *summary[1:3]]
        if self.lines():
            parts += [heading("To paste into a training loop"), preformatted(self.lines())]
        parts += [heading("What was tried"), self.table()]
        if self.rounds:
            parts += [heading("More images"), self.curve(), *self._chart()]
        if self.evaluation is not None:
            parts += [heading("On the test images"), self.evaluation.html_sections()]
        return parts

    def _chart(self) -> Sequence[Markup]:
        """Returns accuracy over images drawn, beside the rival's."""
        x = [one.images for one in self.rounds]
        if len(set(x)) < 2:
            return []
        y = np.array([100 * one.accuracy for one in self.rounds])
        error = np.array([100 * (one.gain.standard_error or 0) for one in self.rounds])
        rival = y - np.array([100 * one.gain.mean for one in self.rounds])
        name = f"{self.chosen}, share {self.share:g}"
        lines = [
            Line(name=name, x=x, y=y, low=y - error, high=y + error),
            Line(name=self.rival or "rival", x=x, y=rival),
        ]
        chart = line_chart(lines, x_label="synthetic images drawn", y_label="accuracy in percent")
        note = "On the validation images; the band is the standard error of the gain."
        return [chart, Markup("<p><small>{}</small></p>").format(note)]
