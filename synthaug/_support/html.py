"""Building blocks of our HTML reports: a page, images inside it, and charts as inline SVG.

Everything is one file without scripts, and a content security policy forbids loading anything, so
a report opens from disk, offline, and can be mailed. Colours follow the viewer's light or dark
setting. All text handed to these functions is escaped.
"""

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike
from PIL import Image

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 44
_MAX_SERIES = 6

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #ffffff; --ink: #1b1b1a;
  --muted: #63625e; --line: #dddcd7; --good: #1a7f4b; --bad: #c1352b; --open: #a26200;
  --s1: #2a6fc9; --s2: #d1622b; --s3: #17876d; --s4: #9a4fb3; --s5: #8a7412; --s6: #63625e; }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --card: #20201f; --ink: #efeeea;
  --muted: #a9a8a2; --line: #3b3a37; --good: #53c78b; --bad: #f2786d; --open: #e0a445;
  --s1: #6fa8f0; --s2: #ef9160; --s3: #4fc3a5; --s4: #c58adb; --s5: #cdb64e; --s6: #a9a8a2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .4em; }
h2 { font-size: 1.12rem; margin: 2.2em 0 .6em; padding-top: .9em;
  border-top: 1px solid var(--line); }
p { margin: .5em 0; max-width: 76ch; }
.muted, figcaption, small { color: var(--muted); }
small, figcaption { font-size: .84rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0; }
.wide { overflow-x: auto; }
th, td { padding: .28em .9em .28em 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); font-size: .86rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; }
figure { margin: .8em 0; }
svg { display: block; width: 100%; max-width: 640px; height: auto; }
svg text { fill: var(--muted); font-size: 13px; }
img { image-rendering: pixelated; display: block; background: var(--line); }
code { font: .88em/1.4 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; font-size: .86rem; padding: 0;
  margin: 0 0 .3em; list-style: none; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: .5em;
  vertical-align: middle; }
.s1 { background: var(--s1); } .s2 { background: var(--s2); } .s3 { background: var(--s3); }
.s4 { background: var(--s4); } .s5 { background: var(--s5); } .s6 { background: var(--s6); }
"""


def page(title: str, body: Markup, *, style: str = "") -> str:
    """A whole HTML document.

    Args:
        title: Escaped.
        body: Markup that goes into `<main>`.
        style: More CSS, put in as it is: never text from outside.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def data_uri(image: Image.Image) -> str:
    """A PIL image as a PNG inside a `data:` address, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def checked_uri(value: object) -> str:
    """An image's address if it is one that `data_uri` makes, else "".

    A report that was read from a file might hold any text in its place.
    """
    return value if isinstance(value, str) and _PNG.fullmatch(value) else ""


def thumbnails(pictures: Iterable[tuple[object, str]], *, width: int = 64) -> Markup:
    """Small images side by side, for notebooks: addresses with captions that a pointer shows.

    Addresses that are none of ours are left out.
    """
    images = [
        Markup(
            '<img src="{}" title="{}" alt="{}" style="display:inline-block;width:{}px;margin:1px;'
            'image-rendering:pixelated">'
        ).format(address, caption, caption, width)
        for value, caption in pictures
        if (address := checked_uri(value))
    ]
    return Markup("<div>{}</div>").format(Markup("").join(images))


Part = Markup | str | list[list[str]]
"""Markup as it is, text that becomes a paragraph, or a table of text cells, header first."""


def blocks(*parts: Part) -> Markup:
    """Joins parts, one below the other; text is escaped."""
    shown = []
    for part in parts:
        if isinstance(part, list):
            part = table(part[0], part[1:])
        elif not isinstance(part, Markup):
            part = Markup("<p>{}</p>").format(part)
        shown.append(part)
    return Markup("\n").join(shown)


def heading(text: str) -> Markup:
    """Begins a section of a page."""
    return Markup("<h2>{}</h2>").format(text)


def preformatted(text: str) -> Markup:
    """Shows text with its own line breaks; it is escaped."""
    return Markup("<pre>{}</pre>").format(text)


def facts(groups: Mapping[str, Mapping[str, Any] | None]) -> Markup:
    """Tabulates settings and their values; those of a group with a name as "group, setting"."""
    rows = [
        [f"{group}, {name}" if group else name, str(value)]
        for group, values in groups.items()
        for name, value in (values or {}).items()
    ]
    return table(["setting", "value"], rows, text_columns=1)


def notebook(heading: str, *parts: Part) -> str:
    """What a notebook shows of an object: a line in bold, then text, tables and thumbnails.

    Without styles of its own, since it lands in the middle of somebody else's page. Text is
    escaped.
    """
    return str(Markup("<div><p><b>{}</b></p>{}</div>").format(heading, blocks(*parts)))


def histogram(
    series: Mapping[str, ArrayLike],
    *,
    x_label: str,
    y_label: str = "share of images",
    bins: int = 40,
    marks: Mapping[str, float] | None = None,
) -> Markup:
    """Outlines of several histograms over common bins, each scaled to a total of 1.

    Args:
        series: Finite values by name, at least one value each, at most six series.
        x_label: What the values are, with their unit.
        y_label: What the height is.
        bins: Number of bins.
        marks: Values to mark with a vertical line, by name.
    """
    values = {name: np.asarray(v, np.float64).ravel() for name, v in series.items()}
    _check({name: [v] for name, v in values.items()})
    low = min(float(v.min()) for v in values.values())
    high = max(float(v.max()) for v in values.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = {name: np.histogram(v, edges)[0] / len(v) for name, v in values.items()}
    axes = _Axes(low, high, 0, max(float(s.max()) for s in shares.values()), x_label, y_label)
    shapes = []
    for i, share in enumerate(shares.values(), start=1):
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(share, 2), [0]])
        path = axes.path(x, y)
        shapes.append(f'<path d="{path}Z" fill="var(--s{i})" fill-opacity=".14"/>')
        shapes.append(f'<path d="{path}" fill="none" stroke="var(--s{i})" stroke-width="1.8"/>')
    for name, value in (marks or {}).items():
        x0 = axes.x(float(np.clip(value, low, high)))
        shapes.append(
            f'<line x1="{x0:.1f}" x2="{x0:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
            'stroke="var(--ink)" stroke-dasharray="3 3"/>'
            f'<text x="{x0 + 4:.1f}" y="{_TOP + 11}">{escape(name)}</text>'
        )
    return _figure(list(values), axes, shapes)


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: ArrayLike
    """Finite, ascending."""
    y: ArrayLike
    """Finite, as long as `x`."""
    low: ArrayLike | None = None
    """Lower edge of a band around the line."""
    high: ArrayLike | None = None
    """Upper edge of the band."""


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    step: bool = False,
) -> Markup:
    """Lines over common axes, with a band where a line has `low` and `high`.

    Args:
        lines: At most six, each with at least one point.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        y_range: Lowest and highest y shown; by default all of it, bands included.
        step: Keeps a value until the next point instead of joining the points.
    """
    parts = {
        line.name: [
            np.asarray(v, np.float64).ravel()
            for v in (line.x, line.y, line.low, line.high)
            if v is not None
        ]
        for line in lines
    }
    if len(parts) != len(lines):
        raise ValueError("`lines` holds two lines of the same name.")
    _check(parts)
    for name, arrays in parts.items():
        if len(arrays) == 3 or len({len(a) for a in arrays}) != 1:
            raise ValueError(
                f"Line {name!r} needs x and y of equal length, and `low` and `high` together."
            )
    heights = np.concatenate([a for arrays in parts.values() for a in arrays[1:]])
    widths = np.concatenate([arrays[0] for arrays in parts.values()])
    bottom, top = y_range or (float(heights.min()), float(heights.max()))
    axes = _Axes(float(widths.min()), float(widths.max()), bottom, top, x_label, y_label)
    shapes = []
    for i, arrays in enumerate(parts.values(), start=1):
        if step:
            arrays = [np.repeat(arrays[0], 2)[1:], *(np.repeat(a, 2)[:-1] for a in arrays[1:])]
        x, y = arrays[:2]
        if len(arrays) == 4:
            outline = axes.path(np.r_[x, x[::-1]], np.r_[arrays[2], arrays[3][::-1]])
            shapes.append(f'<path d="{outline}Z" fill="var(--s{i})" fill-opacity=".16"/>')
        shapes.append(
            f'<path d="{axes.path(x, y)}" fill="none" stroke="var(--s{i})" stroke-width="2"/>'
        )
        if len(x) <= 30 and not step:
            shapes.extend(
                f'<circle cx="{axes.x(a):.1f}" cy="{axes.y(b):.1f}" r="3" fill="var(--s{i})"/>'
                for a, b in zip(x.tolist(), y.tolist(), strict=True)
            )
    return _figure(list(parts), axes, shapes)


def dot_chart(groups: Mapping[str, ArrayLike], *, x_label: str) -> Markup:
    """One row per group: a dot per value, a bar at their mean and, of two or more, a line one
    sample standard deviation to either side.

    Args:
        groups: Finite values by name, at least one each.
        x_label: What the values are, with their unit.
    """
    values = {name: np.asarray(v, np.float64).ravel() for name, v in groups.items()}
    _check({name: [v] for name, v in values.items()}, limit=None)
    everything = np.concatenate(list(values.values()))
    left = 190
    height = _TOP + 34 * len(values) + _BOTTOM
    axes = _Axes(float(everything.min()), float(everything.max()), 0, 1, x_label, "", left, height)
    shapes = []
    for row, (name, v) in enumerate(values.items()):
        y = _TOP + 34 * row + 17
        shown = name if len(name) <= 25 else name[:24] + "…"
        shapes.append(
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" style="fill:var(--ink)">'
            f"<title>{escape(name)}</title>{escape(shown)}</text>"
        )
        mean = float(v.mean())
        if len(v) > 1:
            spread = float(v.std(ddof=1))
            shapes.append(
                f'<line x1="{axes.x(mean - spread):.1f}" x2="{axes.x(mean + spread):.1f}" '
                f'y1="{y}" y2="{y}" stroke="var(--s1)" stroke-width="6" stroke-opacity=".3"/>'
            )
        shapes.append(
            f'<line x1="{axes.x(mean):.1f}" x2="{axes.x(mean):.1f}" y1="{y - 9}" y2="{y + 9}" '
            'stroke="var(--s1)" stroke-width="2.5"/>'
        )
        shapes.extend(
            f'<circle cx="{axes.x(x):.1f}" cy="{y}" r="3.2" fill="var(--s2)"/>' for x in v.tolist()
        )
    return _figure([], axes, shapes)


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]], *, text_columns: int = 0) -> Markup:
    """A table of numbers; so many columns at its right end are text."""

    def line(cells: Sequence[Any], tag: str) -> Markup:
        left = len(cells) - text_columns
        return Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup(f"<{tag}{' class=text' if i >= left else ''}>{escape(cell)}</{tag}>")
                for i, cell in enumerate(cells)
            )
        )

    body = Markup("\n").join(line(row, "td") for row in rows)
    return Markup('<div class="wide"><table>\n{}\n{}\n</table></div>').format(
        line(header, "th"), body
    )


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    rough = span / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.75)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


class _Axes:
    """Maps values to places on the drawing, and draws the frame."""

    def __init__(
        self,
        x_low: float,
        x_high: float,
        y_low: float,
        y_high: float,
        x_label: str,
        y_label: str,
        left: int = _LEFT,
        height: int = _HEIGHT,
    ) -> None:
        self.x_low, self.x_high = _widened(x_low, x_high)
        self.y_low, self.y_high = _widened(y_low, y_high)
        self.x_label, self.y_label = x_label, y_label
        self.left, self.height = left, height

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (_WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        share = min(max(share, -0.02), 1.02)  # a value outside a given range stays at its edge
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)

    def path(self, x: ArrayLike, y: ArrayLike) -> str:
        points = zip(np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True)
        return "M" + "L".join(f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in points)

    def frame(self) -> str:
        bottom = self.height - _BOTTOM
        parts = [
            f'<line x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" '
            'stroke="var(--muted)"/>'
        ]
        for tick in ticks(self.x_low, self.x_high, 5 if self.left > _LEFT else 7):
            parts.append(
                f'<line x1="{self.x(tick):.1f}" x2="{self.x(tick):.1f}" y1="{bottom}" '
                f'y2="{bottom + 5}" stroke="var(--muted)"/>'
                f'<text x="{self.x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">'
                f"{tick:g}</text>"
            )
        middle = (self.left + _WIDTH - _RIGHT) / 2
        parts.append(
            f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        if self.y_label:
            for tick in ticks(self.y_low, self.y_high, 5):
                parts.append(
                    f'<line x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{self.y(tick):.1f}" '
                    f'y2="{self.y(tick):.1f}" stroke="var(--line)"/>'
                    f'<text x="{self.left - 7}" y="{self.y(tick) + 4:.1f}" text-anchor="end">'
                    f"{tick:g}</text>"
                )
            centre = (_TOP + bottom) / 2
            parts.append(
                f'<text x="13" y="{centre}" text-anchor="middle" '
                f'transform="rotate(-90 13 {centre})">{escape(self.y_label)}</text>'
            )
        return "".join(parts)


def _widened(low: float, high: float) -> tuple[float, float]:
    if low == high:
        return low - 0.5, high + 0.5
    return low, high


def _check(series: Mapping[str, Sequence[np.ndarray]], *, limit: int | None = _MAX_SERIES) -> None:
    if not series:
        raise ValueError("The chart has no series.")
    if limit is not None and len(series) > limit:
        raise ValueError(f"The chart has {len(series)} series, at most {limit} can be told apart.")
    for name, arrays in series.items():
        if not all(len(a) for a in arrays):
            raise ValueError(f"Series {name!r} is empty.")
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError(f"Series {name!r} holds a value that is not finite.")


def _figure(names: Sequence[str], axes: _Axes, shapes: Sequence[str]) -> Markup:
    legend = "".join(f'<li><i class="s{i}"></i>{escape(n)}</li>' for i, n in enumerate(names, 1))
    label = f"{axes.y_label or 'values'} against {axes.x_label}"
    return Markup(
        (f'<ul class="legend">{legend}</ul>' if len(names) > 1 else "")
        + f'<svg viewBox="0 0 {_WIDTH} {axes.height}" role="img" aria-label="{escape(label)}">'
        + axes.frame()
        + "".join(shapes)
        + "</svg>"
    )
