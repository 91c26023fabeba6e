"""What an evaluation found: one record per run, and what the runs say together."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from synthaug._support.files import write_text
from synthaug._types import JSON
from synthaug.errors import DataError
from synthaug.evaluation._show import html_page, html_sections, html_table, plot

FORMAT = "synthaug-evaluation"
FORMAT_VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """One classifier: an arm and a seed."""

    arm: str
    """Name of the arm."""
    seed: int
    """Decides the initial weights, the order of the images and the augmentation."""
    steps: int
    """Optimiser steps."""
    selected_step: int
    """Step whose weights were tested: the best one on the validation set, else the last one."""
    test_accuracy: float
    """Share of the test images classified correctly, in [0, 1]."""
    class_accuracies: list[float | None]
    """The same for each class; `None` for a class without test images."""
    validation_accuracy: float | None
    """Accuracy on the validation set at `selected_step`; `None` without one."""
    images_seen: int
    """Images in all batches together: steps times batch size."""
    unique_real: int
    """Different real images among them."""
    unique_synthetic: int
    """Different synthetic images among them."""
    seconds: float
    """Time for training and testing."""
    loss_curve: list[tuple[int, float]]
    """(step, mean training loss since the point before)."""
    validation_curve: list[tuple[int, float]]
    """(step, validation accuracy)."""


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the baseline, seed by seed."""

    mean: float
    """Mean over the seeds of accuracy minus the baseline's accuracy at the same seed."""
    standard_error: float | None
    """Sample standard deviation of those differences / sqrt(n); `None` for a single seed."""
    n: int
    """Seeds that both arms have."""


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Test accuracies of classifiers trained on different arms for equal optimiser steps.

        print(report.table())
        report.accuracies("real")               # float64 (seeds,)
        report.difference("real + synthetic")   # paired with the baseline, seed by seed
        report.to_json(path); report.to_html(path); report.plot(path)

    Accuracies are shares in [0, 1]; tables have them in percent.
    """

    runs: list[Run]
    """All runs, arm by arm."""
    classes: list[str]
    """Class names."""
    settings: dict[str, JSON]
    """What all arms shared: model, optimiser, steps, number of test images, versions."""
    arms: dict[str, dict[str, JSON]]
    """For each arm its number of `images`, how they were augmented (`augment`), and what an audit
    said about its synthetic ones (`synthetic`)."""
    baseline: str
    """The arm that the others are compared with."""

    @property
    def arm_names(self) -> list[str]:
        """Names of the arms, in the order in which they were given."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of one arm.

        Raises:
            ValueError: If there is no such arm.
        """
        runs = [run for run in self.runs if run.arm == arm]
        if not runs:
            raise ValueError(f"`arm` {arm!r} is unknown. Arms: {', '.join(self.arm_names)}.")
        return runs

    def accuracies(self, arm: str) -> NDArray[np.float64]:
        """Test accuracies of an arm, one per seed, float64 (seeds,) in [0, 1]."""
        return np.array([run.test_accuracy for run in self.of(arm)], np.float64)

    def mean(self, arm: str) -> float:
        """Mean test accuracy over the seeds."""
        return float(self.accuracies(arm).mean())

    def std(self, arm: str) -> float | None:
        """Sample standard deviation of the test accuracy over the seeds, with n - 1 below the line.

        `None` for a single seed, which has no spread.
        """
        values = self.accuracies(arm)
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def difference(self, arm: str, baseline: str | None = None) -> Difference:
        """The arm's gain over the baseline, paired by seed.

        Runs of one seed share initial weights and random draws, so the pairs are compared and not
        the means: what a seed does to both arms cancels.

        Raises:
            ValueError: If the two arms have no seed in common.
        """
        ours = {run.seed: run.test_accuracy for run in self.of(arm)}
        theirs = {run.seed: run.test_accuracy for run in self.of(baseline or self.baseline)}
        gains = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
        if not len(gains):
            raise ValueError(f"{arm!r} and {baseline or self.baseline!r} have no seed in common.")
        error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
        return Difference(mean=float(gains.mean()), standard_error=error, n=len(gains))

    def rows(self) -> list[list[str]]:
        """The table as text, header first: a row per arm, accuracies in percent."""
        gain = f"gain over {self.baseline}"
        header = ["arm", "n", "accuracy %", gain, "real seen", "synthetic seen"]
        return [header, *(self._row(arm) for arm in self.arm_names)]

    def table(self) -> str:
        """A text table, in percent: mean ± standard deviation, and gain ± its standard error."""
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        notes = [textwrap.fill(text, 79) for text in (self.caption(), *self.synthetic_notes())]
        return "\n".join([*lines, "", *notes])

    def synthetic_notes(self) -> list[str]:
        """One line on every pool of synthetic images: how many, and what an audit said."""
        arms: dict[str, list[str]] = {}
        for name, facts in self.arms.items():
            if facts.get("synthetic"):
                arms.setdefault(str(facts["synthetic"]), []).append(repr(name))
        return [f"Synthetic images of {', '.join(who)}: {text}." for text, who in arms.items()]

    def caption(self) -> str:
        """A few sentences on how to read the table."""
        steps = ", ".join(str(n) for n in sorted({run.steps for run in self.runs}))
        return (
            f"Accuracy on {self.settings.get('test_images', 'the')} test images after {steps} "
            "optimiser steps: mean ± sample standard deviation over n seeds. Gain: mean ± standard "
            "error of the differences seed by seed. Seen: different images in all batches, mean "
            "over seeds."
        )

    def _row(self, arm: str) -> list[str]:
        runs = self.of(arm)
        std = self.std(arm)
        accuracy = f"{100 * self.mean(arm):.2f}" + (
            f" ± {100 * std:.2f}" if std is not None else ""
        )
        gain = ""
        if arm != self.baseline:
            found = self.difference(arm)
            gain = f"{100 * found.mean:+.2f}"
            if found.standard_error is not None:
                gain += f" ± {100 * found.standard_error:.2f}"
        return [
            arm,
            str(len(runs)),
            accuracy,
            gain,
            f"{np.mean([run.unique_real for run in runs]):,.0f}",
            f"{np.mean([run.unique_synthetic for run in runs]):,.0f}",
        ]

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return str(html_table(self))

    def html_sections(self) -> Markup:
        """Table, charts, accuracy by class and settings, to go into a larger page."""
        return html_sections(self)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report, atomically, as one HTML file that loads nothing from elsewhere."""
        return write_text(path, html_page(self))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Writes a figure, as PNG, SVG or PDF by the name's ending: accuracies and curves."""
        return plot(self, path)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report, atomically, as JSON that `from_json` reads."""
        return write_json(
            path,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "baseline": self.baseline,
                "classes": self.classes,
                "settings": self.settings,
                "arms": self.arms,
                "runs": [asdict(run) for run in self.runs],
            },
        )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "EvaluationReport":
        """Reads a report that `to_json` wrote.

        Raises:
            DataError: If the file is not such a report.
        """
        data = read_json(path)
        if data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path} is not an evaluation report of version {FORMAT_VERSION}: its format is "
                f"{data.get('format')!r}, version {data.get('format_version')!r}."
            )
        try:
            return cls(
                runs=[run_from_json(run) for run in data["runs"]],
                classes=data["classes"],
                settings=data["settings"],
                arms=data["arms"],
                baseline=data["baseline"],
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is a damaged evaluation report: {error!r}.") from error


def run_from_json(data: Mapping[str, Any]) -> Run:
    """A run out of the dict that `dataclasses.asdict` made of it."""
    curves = {
        name: [(int(step), float(value)) for step, value in data[name]]
        for name in ("loss_curve", "validation_curve")
    }
    return Run(**{**data, **curves})


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> Path:
    """Writes JSON so that the file is either the old one or the whole new one."""
    return write_text(path, json.dumps(data, indent=1, allow_nan=False))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: If the file is missing or holds something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}, expected a JSON object.")
    return data
