"""The report as a page for people."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from synthaug._support.html import checked_uri, histogram, notebook, page, table, thumbnails

if TYPE_CHECKING:
    from synthaug.evaluation._hardness.report import HardnessReport

_STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 10px; }
.pictures figure { margin: 0; } .pictures img { width: 100%; height: auto; }
"""

_MEASURES = {
    "hardness": "hardness: negative log-likelihood in nats",
    "average_distance": "AvgkNN: mean distance to the nearest training images",
    "outlier_factor": "LOF: local outlier factor",
}


def render(report: "HardnessReport") -> str:
    """The whole page as text."""
    header, *rows = report.table()
    real = "training" if report.holdout is None else "held-out"
    parts = [
        Markup("<h1>Hardness of synthetic images</h1>"),
        table(header, rows),
        _text(
            f"Features: {report.extractor['name']}. Large values are rare among real images. "
            f'The columns "> of real" have the share beyond that quantile of {real} images. '
            "Training images are scored as if each had been left out; a network that was trained "
            "on them still sees them better than others."
        ),
    ]
    for measure, label in _MEASURES.items():
        values = {name: getattr(s, measure)[s.scored] for name, s in report.sets.items()}
        top = max(float(np.quantile(v, 0.995)) for v in values.values())
        parts.append(histogram({k: v.clip(max=top) for k, v in values.items()}, x_label=label))
    parts.append(_text("The last bin of each chart holds all larger values too."))
    for name, shown in report.pictures.items():
        parts.append(Markup("<h2>The {} synthetic images</h2>").format(name))
        figures = [
            Markup(
                '<figure><img src="{}" alt=""><figcaption>{}, row {}: {:.4g}</figcaption></figure>'
            ).format(
                checked_uri(picture["image"]),
                report.classes[report.synthetic.labels[int(str(picture["row"]))]],
                picture["row"],
                report.hardness[int(str(picture["row"]))],
            )
            for picture in shown
        ]
        parts.append(Markup('<div class="pictures">{}</div>').format(Markup("").join(figures)))
    parts += [
        Markup("<h2>Median hardness by class</h2>"),
        table(["class", *report.sets], _by_class(report)),
        Markup("<h2>How it was done</h2>"),
        table(
            ["setting", "value"],
            [[k, str(v)] for k, v in {**report.extractor, **report.settings}.items()],
            text_columns=1,
        ),
    ]
    return page("Hardness of synthetic images", Markup("\n").join(parts), style=_STYLE)


def small(report: "HardnessReport") -> str:
    """The table and a few images, for notebooks."""
    header, *rows = report.table()
    parts: list[Markup | str] = [table(header, rows)]
    for name, shown in report.pictures.items():
        images = [(picture["image"], f"row {picture['row']}") for picture in shown[:8]]
        parts += [f"The {name} synthetic images:", thumbnails(images)]
    return notebook("Hardness of synthetic images", *parts)


def _by_class(report: "HardnessReport") -> list[list[str]]:
    lines = []
    for c, name in enumerate(report.classes):
        own = [s.hardness[s.scored & (s.labels == c)] for s in report.sets.values()]
        lines.append([name, *(f"{np.median(H):.4g}" if len(H) else "no image" for H in own)])
    return lines


def _text(text: str) -> Markup:
    return Markup("<p>{}</p>").format(text)
