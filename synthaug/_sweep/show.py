"""A sweep's report as HTML and as a figure."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from synthaug._support.html import Line, line_chart, page, table

if TYPE_CHECKING:
    from synthaug._sweep.report import SweepReport

_MOST_LINES = 6


def best_by_cost(report: "SweepReport") -> dict[str, tuple[list[float], list[float]]]:
    """For each scheduler the evaluations per image, ascending, and the best distance up to each."""
    found: dict[str, dict[float, float]] = {}
    for row in report.coarse:
        best = found.setdefault(str(row.setting.get("scheduler", "all")), {})
        best[row.evaluations] = min(row.frechet_distance, best.get(row.evaluations, np.inf))
    costs = {name: sorted(best) for name, best in found.items()}
    return {
        name: (x, np.minimum.accumulate([found[name][cost] for cost in x]).tolist())
        for name, x in costs.items()
    }


def by_guidance(report: "SweepReport") -> dict[str, tuple[list[float], list[float]]]:
    """What the second stage measured, against guidance."""
    rows = sorted(report.fine, key=lambda row: float(row.setting["guidance_scale"]))
    x = [float(row.setting["guidance_scale"]) for row in rows]
    found = {"Fréchet distance": (x, [row.frechet_distance for row in rows])}
    if all(row.scores.inception_score is not None for row in rows):
        found["inception score"] = (x, [float(row.scores.inception_score or 0) for row in rows])
    if all(row.cas for row in rows):
        found["CAS in percent"] = (x, [100 * float(np.mean(row.cas or [0])) for row in rows])
    return found


def render(report: "SweepReport") -> str:
    """The whole page as text."""
    parts = [
        Markup("<h1>Sampling parameters</h1>"),
        Markup("<p><b>{}</b></p>").format(report.verdict()),
        Markup("<h2>First stage: all parameters</h2>"),
    ]
    header, *rows = report.rows("coarse")
    parts += [table(header, rows), Markup("<p>{}</p>").format(report.caption("coarse"))]
    lines = [Line(name=k, x=x, y=y) for k, (x, y) in best_by_cost(report).items()][:_MOST_LINES]
    parts.append(
        line_chart(
            lines,
            x_label="network evaluations per image",
            y_label="Fréchet distance, best up to there",
        )
    )
    if report.fine:
        header, *rows = report.rows("fine")
        parts += [
            Markup("<h2>Second stage: guidance</h2>"),
            table(header, rows),
            Markup("<p>{}</p>").format(report.caption("fine")),
        ]
        parts += [
            line_chart([Line(name=name, x=x, y=y)], x_label="guidance_scale", y_label=name)
            for name, (x, y) in by_guidance(report).items()
        ]
    facts = {
        **{f"validation, {k}": v for k, v in report.validation.items()},
        **{f"features, {k}": v for k, v in report.extractor.items()},
        **{f"classifier, {k}": v for k, v in report.classifier.items()},
    }
    parts += [
        Markup("<h2>How it was done</h2>"),
        table(["setting", "value"], [[k, str(v)] for k, v in facts.items()], text_columns=1),
    ]
    return page("Sampling parameters", Markup("\n").join(parts))


def plot(report: "SweepReport", path: str | os.PathLike[str]) -> Path:
    """Writes a figure: quality against cost to the left, then what guidance does."""
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and opens windows

    second = by_guidance(report) if report.fine else {}
    figure = Figure(figsize=(4.2 * (1 + len(second)), 3.4), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(1, 1 + len(second))))
    for name, (x, y) in best_by_cost(report).items():
        axes[0].plot(x, y, marker="o", label=name)
    axes[0].set_xlabel("network evaluations per image")
    axes[0].set_ylabel("Fréchet distance, best up to there")
    axes[0].legend(fontsize=8)
    for axis, (name, (x, y)) in zip(axes[1:], second.items(), strict=True):
        axis.plot(x, y, marker="o")
        axis.set_xlabel("guidance_scale")
        axis.set_ylabel(name)
    for axis in axes:
        axis.grid(alpha=0.3)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    return target
