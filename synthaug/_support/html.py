"""Building blocks of our HTML reports: a page, and text, tables and images inside it.

Everything is one file without scripts, and a content security policy forbids loading anything, so
a report opens from disk, offline, and can be mailed. Colors follow the viewer's light or dark
setting. All text handed to these functions is escaped.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from synthaug._printable import printable

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")

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
tbody th { font-weight: 400; color: var(--ink); font-size: inherit; }
th { max-width: 30ch; } td.text { max-width: 60ch; } th, .text, li { overflow-wrap: break-word; }
:focus-visible { outline: 2px solid var(--s1); outline-offset: 2px; }
td.text, th.text { text-align: left; }
td:not(:first-child):not(.text) { white-space: nowrap; }
figure { margin: .8em 0; }
svg { display: block; width: 100%; max-width: 640px; height: auto; }
svg text { fill: var(--muted); font-size: 13px; }
@media (max-width: 520px) { svg text:not(.long) { font-size: 16px; } }
img { image-rendering: pixelated; display: block; background: var(--line); max-width: 100%;
  height: auto; }
code { font: .88em/1.4 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; font-size: .86rem; padding: 0;
  margin: 0 0 .3em; list-style: none; }
.legend li { min-width: 0; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: .5em;
  vertical-align: middle; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.s1 { background: var(--s1); } .s2 { background: var(--s2); } .s3 { background: var(--s3); }
.s4 { background: var(--s4); } .s5 { background: var(--s5); } .s6 { background: var(--s6); }
@media print { main { max-width: none; padding: 0; } .wide { overflow: visible; }
  h2 { break-after: avoid; } figure, svg, img, tr { break-inside: avoid; } }
"""


def page(title: str, body: Markup, *, style: str = "", script: str = "") -> str:
    """A whole HTML document.

    Args:
        title: Escaped.
        body: Markup that goes into `<main>`.
        style: More CSS, put in as it is: never text from outside.
        script: JavaScript, put in as it is: never text from outside. No other script runs, and this
            one can load nothing.
    """
    policy = CONTENT_SECURITY_POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body = body + Markup(f"\n<script>{script}</script>")
    return printable(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
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
    """Returns the HTML of an object in a notebook: a line in bold, then text, tables and
    thumbnails.

    Without styles of its own, since it lands in the middle of somebody else's page. Text is
    escaped.
    """
    text = str(Markup("<div><p><b>{}</b></p>{}</div>").format(heading, blocks(*parts)))
    return printable(text)


MOST_ROWS = 1000
"""Rows of a table on a page; with more, pages take long to open. Files have all of them."""


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]], *, text_columns: int = 0) -> Markup:
    """A table of numbers; so many columns at its right end are text.

    The first column names the rows, also to screen readers. Keys can scroll a table that is wider
    than the screen. Rows after the first thousand are counted only.
    """

    def line(cells: Sequence[Any], first: str, tag: str) -> Markup:
        left = len(cells) - text_columns
        marked = []
        for i, cell in enumerate(cells):
            opening = first if i == 0 else tag
            if not str(cell):
                opening = "td"  # an empty head names nothing
            opening += " class=text" if i >= left else ""
            marked.append(Markup(f"<{opening}>{escape(cell)}</{opening.split()[0]}>"))
        return Markup("<tr>{}</tr>").format(Markup("").join(marked))

    body = Markup("\n").join(line(row, "th scope=row", "td") for row in rows[:MOST_ROWS])
    left_out = len(rows) - MOST_ROWS
    more = f"<p><small>{left_out:,} more rows are in the JSON file.</small></p>" * (left_out > 0)
    return Markup(
        '<div class="wide" role="group" tabindex="0" aria-label="Table: {}"><table>\n'
        "<thead>{}</thead>\n<tbody>\n{}\n</tbody>\n</table></div>{}"
    ).format(
        ", ".join(str(cell) for cell in header if cell),
        line(header, "th scope=col", "th scope=col"),
        body,
        Markup(more),
    )
