"""The report as a page for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from synthaug._support.html import checked_uri, histogram, notebook, page, thumbnails
from synthaug._types import JSON

if TYPE_CHECKING:
    from synthaug._audit.report import AuditReport

_TITLES = {
    "pass": "No copies found, at the power below",
    "fail": "Images too close to training images",
    "inconclusive": "Inconclusive: copies might have gone unseen",
}

STYLE = """
.verdict { border-left: 5px solid var(--open); padding: .2em 0 .2em 1em; }
.verdict.pass { border-color: var(--good); } .verdict.fail { border-color: var(--bad); }
.verdict p:first-of-type { font-size: 1.05rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 12px; }
.pair { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
.pair.flagged { border-color: var(--bad); }
.pair .four { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.pair figure { margin: 0; } .pair img { image-rendering: pixelated; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .8em; }
.pair img { width: 100%; height: auto; } .pair .withheld { aspect-ratio: 1; }
.pair .withheld { display: grid; place-content: center; background: var(--line); font-size: .8rem; }
.pair figcaption { line-height: 1.35; margin-top: .3em; overflow-wrap: anywhere; }
.pair p { font-size: .84rem; margin: .5em 0 0; font-variant-numeric: tabular-nums; }
.pair b { color: var(--bad); }
.limits { background: var(--card); border: 1px solid var(--line); padding: .4em 1.2em .8em; }
.limits ul { padding-left: 1.2em; } .limits li { max-width: 80ch; margin: .35em 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 18px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25em 1.4em; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def render(report: "AuditReport") -> str:
    """The whole page as text."""
    return page(f"Audit: {_TITLES[report.verdict]}", sections(report), style=STYLE)


def small(report: "AuditReport") -> str:
    """Verdict, reasons and the closest pairs, for notebooks."""
    parts: list[Markup | str] = list(report.reasons)
    both = ("image", "train_image")
    shown = [pair for pair in report.pairs if all(_picture(pair, key) for key in both)][:8]
    if shown:
        parts.append("The closest pairs: synthetic images, below them their training images.")
        parts += [
            thumbnails((pair[key], f"{name} {pair[row]}") for pair in shown)
            for key, name, row in (
                ("image", "synthetic", "row"),
                ("train_image", "training", "train_row"),
            )
        ]
    judged = int((report.tier >= 0).sum())
    heading = f"{report.verdict}: {len(report.flagged):,} of {judged:,} images flagged"
    return notebook(heading, *parts)


def sections(report: "AuditReport") -> Markup:
    """Verdict, pairs, charts and tables: without a page around them, for reports that hold more."""
    environment = Environment(
        loader=PackageLoader("synthaug._audit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "share": _share,
        "percent": _percent,
        "picture": _picture,
    }
    body = environment.get_template("report.html.jinja").render(
        report=report,
        title=_TITLES[report.verdict],
        judged=int((report.tier >= 0).sum()),
        charts=_charts(report),
        per_class=_per_class(report),
        facts=_facts(report.settings),
    )
    return Markup(body)


def _charts(report: "AuditReport") -> list[tuple[str, Markup]]:
    charts = []
    judged = report.tier >= 0
    for j, name in enumerate(report.statistics):
        series = {"synthetic": report.scores[judged, j], "hold-out": report.holdout_scores[:, j]}
        series = {key: values for key, values in series.items() if len(values)}
        if not series:
            continue
        caption = (
            "aligned: distance to the most similar training image under the best alignment, over "
            "the median distance to the others that were aligned."
            if name == "aligned"
            else f"{name}: distance to the nearest training image over the mean distance to the "
            "next ones."
        )
        charts.append((caption, histogram(series, x_label=f"score, {name}")))
    return charts


def _per_class(report: "AuditReport") -> list[dict[str, Any]]:
    """One line per class that has judged rows; nothing if classes are unknown."""
    lines = []
    for label in np.unique(report.labels[report.tier >= 0]).tolist():
        if label < 0:
            return []
        rows = (report.labels == label) & (report.tier >= 0)
        p = report.p_values[rows]
        lines.append(
            {
                "name": report.classes[label] if report.classes else str(label),
                "rows": int(rows.sum()),
                "exact": int((report.tier[rows] == 1).sum()),
                "calibrated": int((report.tier[rows] == 2).sum()),
                "competed": int((report.tier[rows] == 3).sum()),
                "median": float(np.median(report.scores[rows, 0])),
                "lowest_p": float(np.nanmin(p)) if np.isfinite(p).any() else None,
            }
        )
    return lines


def _facts(settings: Mapping[str, JSON], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as a flat list of names and values."""
    facts: list[tuple[str, str]] = []
    for name, value in settings.items():
        if name == "command":
            continue  # shown on its own
        if isinstance(value, dict):
            facts.extend(_facts(value, f"{prefix}{name}."))
        elif isinstance(value, list):
            numbered = {str(i): item for i, item in enumerate(value, 1)}
            facts.extend(_facts(numbered, f"{prefix}{name}."))
        elif value is not None:
            facts.append((f"{prefix}{name}", _number(value)))
    return facts


def _number(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _picture(pair: Mapping[str, JSON], key: str) -> str | None:
    """The image's address, if it is one of ours: a report from elsewhere might hold any text."""
    return checked_uri(pair.get(key)) or None
