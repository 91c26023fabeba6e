"""Charts of our HTML reports, as inline SVG that follows the viewer's light or dark setting.

Drawn by hand: Matplotlib's SVG of the same charts was three to five times as large (14 to 25 kB
instead of 3 to 7), took some hundred times as long, and its colors stay when the page turns dark.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

from synthaug._types import Doubles, StrPath

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 44
_NAME_WIDTH, _ROW_HEIGHT = 210, 34
_FONT_SIZE = 16  # of the pages' style sheet on narrow screens; 13 on others
_MAX_SERIES = 6


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


def histogram(
    series: Mapping[str, ArrayLike],
    *,
    x_label: str,
    y_label: str = "share of images",
    bins: int = 40,
) -> Markup:
    """Draws outlines of several histograms over common bins, each scaled to a total of 1.

    Args:
        series: Finite values by name, at least one value each, at most six series.
        x_label: Label of the values, with their unit.
        y_label: Label of the height.
        bins: Number of bins.
    """
    values = {name: v for name, (v,) in _arrays({k: [v] for k, v in series.items()}).items()}
    edges = np.linspace(*_limits(list(values.values())), bins + 1)
    fractions = [np.histogram(v, edges)[0] / len(v) for v in values.values()]
    chart = _Chart([edges], [np.zeros(1), *fractions], x_label, y_label)
    for i, fraction in enumerate(fractions, 1):
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(fraction, 2), [0]])
        chart.area(x, y, f'fill="var(--s{i})" fill-opacity=".14"')
        chart.curve(x, y, f'stroke="var(--s{i})" stroke-width="1.8"')
    return chart.markup(list(values))


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> Markup:
    """Draws lines over common axes, with a band where a line has `low` and `high`.

    Args:
        lines: At most six, each with at least one point.
        x_label: Label of x, with its unit.
        y_label: Label of y, with its unit.
    """
    parts = _arrays(
        {o.name: [v for v in (o.x, o.y, o.low, o.high) if v is not None] for o in lines}
    )
    if len(parts) != len(lines):
        raise ValueError("`lines` holds two lines of the same name.")
    for name, arrays in parts.items():
        if len(arrays) == 3 or len({len(a) for a in arrays}) != 1:
            raise ValueError(
                f"Line {name!r} needs x and y of equal length, and `low` and `high` together."
            )
    heights = [a for arrays in parts.values() for a in arrays[1:]]
    chart = _Chart([arrays[0] for arrays in parts.values()], heights, x_label, y_label)
    for i, (x, y, *band) in enumerate(parts.values(), 1):
        if band:
            outline = np.r_[x, x[::-1]], np.r_[band[0], band[1][::-1]]
            chart.area(*outline, f'fill="var(--s{i})" fill-opacity=".16"')
        chart.curve(x, y, f'stroke="var(--s{i})" stroke-width="2"')
        if len(x) <= 30:
            chart.dots(chart.x(x), chart.y(y), f'r="3" fill="var(--s{i})"')
    return chart.markup(list(parts))


def dot_chart(groups: Mapping[str, ArrayLike], *, x_label: str) -> Markup:
    """Draws a row per group: a dot per value, and a bar at their mean.

    Of two or more values a line reaches one sample standard deviation to either side.

    Args:
        groups: Finite values by name, at least one each.
        x_label: Label of the values, with their unit.
    """
    values = _arrays({name: [v] for name, v in groups.items()}, limit=None)
    height = _TOP + _ROW_HEIGHT * len(values) + _BOTTOM
    spreads = {
        name: v.mean() + v.std(ddof=1) * np.array([-1, 1])
        for name, (v,) in values.items()
        if len(v) > 1
    }
    everything = [*(v for (v,) in values.values()), *spreads.values()]
    low, high = _limits(everything)
    margin = 0.04 * (high - low)  # so that no dot touches a name or the edge
    everything.append(np.array([low - margin, high + margin]))
    chart = _Chart(everything, [], x_label, "", left=_NAME_WIDTH, height=height)
    for row, (name, (v,)) in enumerate(values.items()):
        y = _TOP + _ROW_HEIGHT * row + _ROW_HEIGHT // 2
        title = f"<title>{escape(name)}</title>"
        shown = _fitting(name, _NAME_WIDTH - 12)
        ink = 'text-anchor="end" style="fill:var(--ink)"'
        chart.text(_NAME_WIDTH - 12, y + 4, shown, ink, title=title)
        mean = chart.x(v.mean())
        if name in spreads:
            low, high = chart.x(spreads[name])
            chart.line(low, high, y, y, 'stroke="var(--s1)" stroke-width="6" stroke-opacity=".3"')
        chart.line(mean, mean, y - 9, y + 9, 'stroke="var(--s1)" stroke-width="2.5"')
        chart.dots(chart.x(v), np.full(len(v), y), 'r="3.2" fill="var(--s2)"')
    means = ", ".join(f"{name} {v.mean():.4g}" for name, (v,) in values.items())
    chart.label = f"Means of {x_label}: {means}"
    return chart.markup([])


def _fitting(name: str, width: float) -> str:
    """Returns a name, or its beginning and an ellipsis, that is at most so many pixels wide."""
    widths = [_FONT_SIZE * _em(letter) for letter in name]
    if sum(widths) <= width:
        return name
    room = width - _FONT_SIZE * _em("…")
    return name[: int(np.searchsorted(np.cumsum(widths), room, side="right"))] + "…"


def _em(letter: str) -> float:
    """About how wide a letter is in the widest of the fonts of our pages, in font sizes."""
    if east_asian_width(letter) in "WF" or letter in "…mwMW@%":
        return 1.0
    if letter in "fijlrtI ,.:;!|()'-":
        return 0.42
    return 0.8 if letter.isupper() else 0.65


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Chooses about `count` round numbers, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.75)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def save_figure(figure: Any, path: StrPath) -> Path:
    """Writes a figure of Matplotlib, as PNG, SVG or PDF by the name's ending.

    Args:
        figure: The figure.
        path: File to write; its folder is made if it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    return target


class _Chart:
    """Maps values to places on a drawing, and collects its shapes; the frame comes first."""

    def __init__(
        self,
        x: Sequence[Doubles],
        y: Sequence[Doubles],
        x_label: str,
        y_label: str,
        *,
        left: int = _LEFT,
        height: int = _HEIGHT,
    ) -> None:
        self.left, self.height, self.bottom = left, height, height - _BOTTOM
        self.label = f"Chart of {y_label} against {x_label}" if y_label else f"Chart of {x_label}"
        self.shapes: list[str] = []
        right, middle = _WIDTH - _RIGHT, 'text-anchor="middle"'
        self.x_limits = _limits(x)
        self.line(left, right, self.bottom, self.bottom, 'stroke="var(--muted)"')
        for tick in ticks(*self.x_limits, 7 if y else 5):
            at = self.x(tick)
            self.line(at, at, self.bottom, self.bottom + 5, 'stroke="var(--muted)"')
            self.text(at, self.bottom + 18, f"{tick:g}", middle)
        self.text((left + right) / 2, height - 6, x_label, middle)
        if not y:
            return
        self.y_limits = _limits(y)
        for tick in ticks(*self.y_limits, 5):
            at = self.y(tick)
            self.line(left, right, at, at, 'stroke="var(--line)"')
            self.text(left - 7, at + 4, f"{tick:g}", 'text-anchor="end"')
        center = (_TOP + self.bottom) / 2
        turned = f'{middle} transform="rotate(-90 13 {center})"'
        if sum(map(_em, y_label)) * _FONT_SIZE > height:
            turned += ' class="long"'
        self.text(13, center, y_label, turned)

    def x(self, values: Any) -> Any:
        """Maps a number, or an array of them, to places from left to right."""
        return np.interp(values, self.x_limits, (self.left, _WIDTH - _RIGHT))

    def y(self, values: Any) -> Any:
        """Maps a number, or an array of them, to places from the bottom up."""
        return np.interp(values, self.y_limits, (self.bottom, _TOP))

    def area(self, x: Doubles, y: Doubles, style: str) -> None:
        """Fills what an outline encloses."""
        self.shapes.append(f'<path d="{self._path(x, y)}Z" {style}/>')

    def curve(self, x: Doubles, y: Doubles, style: str) -> None:
        """Joins points."""
        self.shapes.append(f'<path d="{self._path(x, y)}" fill="none" {style}/>')

    def dots(self, x: Doubles, y: Doubles, style: str) -> None:
        """Draws a dot at each place."""
        places = zip(x.tolist(), y.tolist(), strict=True)
        self.shapes += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {style}/>' for a, b in places]

    def line(self, x1: float, x2: float, y1: float, y2: float, style: str) -> None:
        """Joins two places."""
        self.shapes.append(
            f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" {style}/>'
        )

    def text(self, x: float, y: float, text: str, style: str, *, title: str = "") -> None:
        """Writes text, which is escaped; `title` is markup that a pointer shows."""
        self.shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{title}{escape(text)}</text>')

    def markup(self, names: Sequence[str]) -> Markup:
        """Returns the drawing, below a legend if there are two names or more."""
        legend = "".join(
            f'<li><i class="s{i}" aria-hidden="true"></i>{escape(name)}</li>'
            for i, name in enumerate(names, 1)
        )
        return Markup(
            (f'<ul class="legend">{legend}</ul>' if len(names) > 1 else "")
            + f'<svg viewBox="0 0 {_WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self._described(names))}">{"".join(self.shapes)}</svg>'
        )

    def _described(self, names: Sequence[str]) -> str:
        """The chart in words, for screen readers."""
        return f"{self.label}: {', '.join(names)}" if names else self.label

    def _path(self, x: Doubles, y: Doubles) -> str:
        points = zip(self.x(x).tolist(), self.y(y).tolist(), strict=True)
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _limits(values: Sequence[Doubles]) -> tuple[float, float]:
    """Returns the smallest and the largest value, kept apart."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _arrays(
    series: Mapping[str, Sequence[ArrayLike]], *, limit: int | None = _MAX_SERIES
) -> dict[str, list[Doubles]]:
    """Checks values that are to be drawn, and makes arrays of one dimension of them."""
    if not series:
        raise ValueError("The chart has no series.")
    if limit is not None and len(series) > limit:
        raise ValueError(
            f"The chart has {len(series)} series, and at most {limit} can be told apart. "
            "Show fewer."
        )
    checked = {k: [np.asarray(v, np.float64).ravel() for v in parts] for k, parts in series.items()}
    for name, arrays in checked.items():
        if not all(len(a) for a in arrays):
            raise ValueError(f"Series {name!r} is empty.")
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError(f"Series {name!r} holds a value that is not finite.")
    return checked
