"""The report as a page for people."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup

from synthaug._audit.scope import scope_sentence
from synthaug._audit.tiers import ALIKE, CALIBRATED, COMPETED, EXACT, NAMED
from synthaug._support.charts import histogram
from synthaug._support.html import checked_uri
from synthaug._types import JSON

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
.charts { display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25em 1.4em; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 520px) { dl { display: block; } dd { margin: 0 0 .5em; } }
.accept, .review { display: none; } .reviewing .accept { display: block; font-size: .84rem; }
.reviewing .review { display: block; background: var(--card); border: 1px solid var(--line); }
.review { padding: .4em 1.2em .8em; margin-top: 12px; } .review label { display: block; }
.review input:not([type]) { width: 100%; max-width: 60ch; font: inherit; }
.review button { font: inherit; margin: .6em .6em 0 0; }
@media print { .pair { break-inside: avoid; }
  .reviewing .accept, .reviewing .review { display: none; } }
"""

SCRIPT = files("synthaug._audit").joinpath("review.js").read_text(encoding="utf-8")
"""Writes the pairs that a reviewer marks to a file."""

_COUNTED = {
    "exact": EXACT,
    "calibrated": CALIBRATED,
    "competed": COMPETED,
    "named": NAMED,
    "alike": ALIKE,
}
"""Tiers of which the table of classes has the counts."""

_LISTED = 500
"""Withheld images whose files the page names at most, and classes that it tabulates."""

_DIGEST = re.compile(r"[0-9a-f]{32}")


def sections(report: Any) -> Markup:
    """Fills the template for an `AuditReport`: verdict, pairs, charts and tables, without a page
    around them."""
    text = _template().render(
        report=report,
        facts=_facts(report.settings),
        judged=len(report.judged),
        charts=_charts(report),
        per_class=_by_class(report),
        scope=scope_sentence("distances"),
        withheld_files=_withheld_files(report),
        listed=_LISTED,
    )
    return Markup(text)


def _withheld_files(report: Any) -> list[Mapping[str, JSON]]:
    """The files of the rows that are withheld still, after what reviewers gave free."""
    withheld = set(report.withheld.tolist())
    return [names for names in report.withheld_files if names["row"] in withheld]


@cache
def _template() -> Any:
    """The template, read and compiled once: that takes far longer than to fill it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

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
        "acceptable": _acceptable,
    }
    return environment.get_template("report.html.jinja")


def _charts(report: Any) -> list[tuple[str, Markup]]:
    """For each statistic its name, and the scores of synthetic and held-out images."""
    charts = []
    for j, name in enumerate(report.statistics):
        columns = {
            "synthetic": report.of_judged("scores")[:, j],
            "hold-out": report.holdout_scores[:, j],
        }
        series = {key: values for key, values in columns.items() if len(values)}
        if series:
            charts.append((name, histogram(series, x_label=f"score, {name}")))
    return charts


def _by_class(report: Any) -> list[dict[str, Any]]:
    """A line per class that has judged rows; nothing if classes are unknown."""
    lines: list[dict[str, Any]] = []
    labels, tier, scores, p_values = map(report.of_judged, ("labels", "tier", "scores", "p_values"))
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        if label < 0:
            return []
        p = p_values[rows]
        lines.append(
            {
                "name": report.classes[label] if report.classes else str(label),
                "rows": len(rows),
                **{name: int((tier[rows] == t).sum()) for name, t in _COUNTED.items()},
                "median": float(np.median(scores[rows, 0])),
                "lowest_p": float(np.nanmin(p)) if np.isfinite(p).any() else None,
            }
        )
    if len(lines) > _LISTED:  # then the page shows the first ones only
        lines.sort(key=lambda line: -sum(line[name] for name in _COUNTED))
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


def _acceptable(pair: Mapping[str, JSON]) -> str:
    """Returns the pair's entry for the file of accepted pairs; "" if it cannot be accepted."""
    digests = [pair.get(name) for name in ("digest", "train_digest")]
    if not pair.get("tier") or not all(_DIGEST.fullmatch(str(digest)) for digest in digests):
        return ""
    image, train_image = digests
    record = {"row": pair["row"], "train_row": pair["train_row"]}
    return json.dumps(record | {"image": image, "train_image": train_image})
