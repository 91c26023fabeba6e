"""The report as a page for people."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from synthaug._support.html import page, table
from synthaug.evaluation._quality.report import COLUMNS

if TYPE_CHECKING:
    from synthaug.evaluation._quality.report import QualityReport


def render(report: "QualityReport") -> str:
    """The whole page as text."""
    header, *rows = report.rows()
    parts = [
        Markup("<h1>Quality of synthetic images</h1>"),
        table(header, rows),
        Markup("<p>{}</p>").format(report.caption()),
        Markup(
            "<p>Compare numbers of equal n and equal features only. Distances are smaller for "
            "better images, but not below the floor: images below it are closer to the reference "
            "than real ones are, as copies would be. Precision and density say whether synthetic "
            "images look real, recall and coverage whether real ones are all represented.</p>"
        ),
    ]
    if report.by_class:
        names = [name for key, name in COLUMNS.items() if key != "inception_score"]
        lines = [
            [label, kind, f"{scores.n:,}", *scores.cells()[: len(names)]]
            for label, pair in report.by_class.items()
            for kind, scores in zip(("synthetic", "floor"), pair, strict=True)
        ]
        parts += [
            Markup("<h2>By class</h2>"),
            table(["class", "images", "n", *names], lines, text_columns=1),
        ]
    facts = {
        **{f"reference, {k}": v for k, v in report.reference.items()},
        **{f"features, {k}": v for k, v in report.extractor.items()},
        **{f"classifier, {k}": v for k, v in (report.classifier or {}).items()},
        **report.settings,
    }
    parts += [
        Markup("<h2>How it was done</h2>"),
        table(["setting", "value"], [[k, str(v)] for k, v in facts.items()], text_columns=1),
    ]
    return page("Quality of synthetic images", Markup("\n").join(parts))
