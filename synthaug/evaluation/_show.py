"""An evaluation report as HTML and as a figure."""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from synthaug._support.html import Line, dot_chart, line_chart, page, table

if TYPE_CHECKING:
    from synthaug.evaluation._report import EvaluationReport, Run

_PER_CHART = 6  # more lines cannot be told apart


def html_page(report: "EvaluationReport") -> str:
    """The whole report as one HTML document."""
    return page("Evaluation", Markup("<h1>Evaluation</h1>\n") + html_sections(report))


def html_sections(report: "EvaluationReport") -> Markup:
    """Table, charts, accuracy by class, and settings: without a page around them."""
    percent = {arm: 100 * report.accuracies(arm) for arm in report.arm_names}
    parts = [
        html_table(report),
        dot_chart(percent, x_label="test accuracy in percent, one dot per seed"),
    ]
    if any(run.validation_curve for run in report.runs):
        parts.append(Markup("<h2>Validation accuracy while training</h2>"))
        parts += _charts(report, "validation_curve", "accuracy in percent", scale=100)
    parts.append(Markup("<h2>Training loss</h2>"))
    parts += _charts(report, "loss_curve", "cross entropy", scale=1)
    parts += [
        Markup("<h2>Accuracy by class</h2>"),
        _by_class(report),
        Markup("<h2>How it was done</h2>"),
        _facts({**report.settings, "baseline": report.baseline}),
        table(
            ["arm", "images", "seconds per run", "augmentation"],
            [
                [
                    name,
                    facts["images"],
                    f"{np.mean([run.seconds for run in report.of(name)]):,.1f}",
                    facts["augment"],
                ]
                for name, facts in report.arms.items()
            ],
            text_columns=1,
        ),
    ]
    return Markup("\n").join(parts)


def html_table(report: "EvaluationReport") -> Markup:
    """The table of arms, as `EvaluationReport.table` has it, with its caption."""
    header, *rows = report.rows()
    notes = Markup("").join(
        Markup("<p><small>{}</small></p>").format(text)
        for text in (report.caption(), *report.synthetic_notes())
    )
    return table(header, rows) + notes


def plot(report: "EvaluationReport", path: str | os.PathLike[str]) -> Path:
    """Writes a figure: accuracies with mean and spread to the left, curves to the right."""
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and opens windows

    arms = report.arm_names
    figure = Figure(figsize=(11, 1.6 + 0.5 * max(4, len(arms))), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = "validation_curve" if any(r.validation_curve for r in report.runs) else "loss_curve"
    for row, arm in enumerate(arms):
        values = 100 * report.accuracies(arm)
        std = report.std(arm)
        color = f"C{row % 10}"
        left.scatter(values, np.full(len(values), row), s=18, color=color, alpha=0.6, zorder=3)
        left.errorbar(
            values.mean(),
            row,
            xerr=None if std is None else 100 * std,
            fmt="|",
            markersize=16,
            color=color,
            capsize=3,
        )
        steps, mean, spread = _mean_curve(report.of(arm), curve)
        scale = 100 if curve == "validation_curve" else 1
        right.plot(steps, scale * mean, color=color, label=arm)
        right.fill_between(
            steps, scale * (mean - spread), scale * (mean + spread), color=color, alpha=0.15, lw=0
        )
    left.set_yticks(range(len(arms)), arms)
    left.set_ylim(len(arms) - 0.5, -0.5)
    left.set_xlabel("test accuracy in percent: seeds, mean ± standard deviation")
    left.grid(axis="x", alpha=0.3)
    right.set_xlabel("optimiser step")
    right.set_ylabel(
        "validation accuracy in percent" if curve == "validation_curve" else "training loss"
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    return target


def _charts(report: "EvaluationReport", curve: str, y_label: str, *, scale: float) -> list[Markup]:
    lines = []
    for arm in report.arm_names:
        steps, mean, spread = _mean_curve(report.of(arm), curve)
        if len(steps):
            mean, spread = scale * mean, scale * spread
            lines.append(Line(name=arm, x=steps, y=mean, low=mean - spread, high=mean + spread))
    rest = iter(lines)
    charts = []
    while group := list(islice(rest, _PER_CHART)):
        charts.append(line_chart(group, x_label="optimiser step", y_label=y_label))
    return charts


def _mean_curve(
    runs: Sequence["Run"], curve: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps, mean and sample standard deviation over seeds, at the steps that all runs have."""
    curves = [dict(getattr(run, curve)) for run in runs]
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    values = np.array([[c[step] for step in steps] for c in curves], np.float64)
    spread = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    return np.array(steps, np.float64), values.mean(axis=0), spread


def _by_class(report: "EvaluationReport") -> Markup:
    rows = []
    for c, name in enumerate(report.classes):
        cells: list[Any] = [name]
        for arm in report.arm_names:
            known = [
                accuracy
                for run in report.of(arm)
                if (accuracy := run.class_accuracies[c]) is not None
            ]
            cells.append(f"{100 * np.mean(known):.1f}" if known else "no test image")
        rows.append(cells)
    return table(["class", *report.arm_names], rows)


def _facts(facts: Mapping[str, Any]) -> Markup:
    rows = [[name, str(value)] for name, value in facts.items()]
    return table(["setting", "value"], rows, text_columns=1)
