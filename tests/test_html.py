import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from synthaug._support.charts import Line, dot_chart, histogram, line_chart, ticks
from synthaug._support.html import (
    CONTENT_SECURITY_POLICY,
    MOST_ROWS,
    blocks,
    data_uri,
    heading,
    page,
    table,
)
from tests.reports import check_accessible

NASTY = '<script>alert("x")</script>'


def drawing(chart: Markup) -> ET.Element:
    """The SVG of a chart, parsed: fails if it is not well-formed."""
    return ET.fromstring(str(chart)[str(chart).index("<svg") :])


def paths(chart: Markup) -> list[str]:
    return [p.attrib["d"] for p in drawing(chart).iter("path")]


def points(path: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, p.split())) for p in path.strip("MZ").split("L")]


def test_a_page_forbids_everything_but_its_own_images_and_styles() -> None:
    text = page("title", Markup("<p>body</p>"))
    assert f'content="{CONTENT_SECURITY_POLICY}"' in text
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_title_cannot_break_out_of_its_element() -> None:
    assert NASTY not in page(NASTY, Markup("<p>body</p>"))


def test_an_image_survives_its_data_address_without_loss() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    head, encoded = data_uri(Image.fromarray(pixels)).split(",")
    assert head == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    "chart",
    [
        histogram({NASTY: [1, 2, 3], "b": [2, 2]}, x_label=NASTY, y_label=NASTY),
        line_chart(
            [Line(NASTY, [0, 1], [0, 1]), Line("b", [0], [2])], x_label=NASTY, y_label=NASTY
        ),
        dot_chart({NASTY: [1.0, 2.0], "b": [1.0]}, x_label=NASTY),
    ],
    ids=["histogram", "line_chart", "dot_chart"],
)
def test_charts_are_well_formed_and_escape_every_name(chart: Markup) -> None:
    assert NASTY not in chart
    assert 'alert("x")' in "".join(drawing(chart).itertext())


def test_the_heights_of_a_histogram_are_shares_of_each_series() -> None:
    chart = histogram({"a": [0, 0, 0, 1], "b": [0] * 50 + [1] * 50}, x_label="x", bins=2)
    a, b = (points(p) for p in paths(chart)[1::2])  # every series: an area, then an outline
    base = a[0][1]
    height = {name: base - min(y for _, y in p) for name, p in (("a", a), ("b", b))}
    assert height["b"] / height["a"] == pytest.approx(0.5 / 0.75, rel=0.01)


def test_a_line_goes_through_its_points_in_proportion() -> None:
    (path,) = paths(line_chart([Line("a", [0, 1, 4], [0, 10, 40])], x_label="x", y_label="y"))
    (x0, y0), (x1, y1), (x2, y2) = points(path)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.25, abs=0.01)
    assert y2 < y0, "larger values are drawn higher"


def test_a_band_surrounds_its_line() -> None:
    line = Line("a", [0, 1, 2], [1, 2, 3], low=[0, 1, 2], high=[2, 3, 4])
    band, path = paths(line_chart([line], x_label="x", y_label="y"))
    outline, middle = points(band), points(path)
    for i, (x, y) in enumerate(middle):
        below, above = outline[i], outline[-1 - i]
        assert below[0] == above[0] == x
        assert above[1] < y < below[1]


def test_the_spread_of_a_group_lies_around_its_mean_and_inside_the_frame() -> None:
    chart = drawing(dot_chart({"a": [0.0, 1.0], "b": [0.5]}, x_label="x"))
    frame, *lines = chart.iter("line")
    spread = next(line for line in lines if line.get("stroke-width") == "6")
    low, high = float(spread.attrib["x1"]), float(spread.attrib["x2"])
    dots = [float(dot.attrib["cx"]) for dot in chart.iter("circle")]
    left, right = min(dots), max(dots)
    assert low + high == pytest.approx(left + right, abs=0.2)
    assert (high - low) / (right - left) == pytest.approx(2**0.5, rel=0.01)
    assert float(frame.attrib["x1"]) + 4 <= low < high <= float(frame.attrib["x2"]) - 4


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (0.001, 0.0042), (1e6, 1.5e6), (5, 5.1)]
)
def test_ticks_are_round_evenly_spaced_and_inside(low: float, high: float) -> None:
    places = ticks(low, high)
    steps = np.diff(places)
    assert 3 <= len(places) <= 12
    assert low - 1e-9 <= places[0]
    assert places[-1] <= high + 1e-9
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_cannot_be_drawn_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="'mine' holds a value that is not finite"):
        histogram({"mine": [1, value]}, x_label="x")
    with pytest.raises(ValueError, match="'mine' holds a value that is not finite"):
        line_chart([Line("mine", [0, 1], [1, value])], x_label="x", y_label="y")


def test_charts_without_data_are_refused() -> None:
    with pytest.raises(ValueError, match="no series"):
        histogram({}, x_label="x")
    with pytest.raises(ValueError, match="'mine' is empty"):
        dot_chart({"mine": []}, x_label="x")
    with pytest.raises(ValueError, match="at most 6"):
        histogram({str(i): [1] for i in range(7)}, x_label="x")
    with pytest.raises(ValueError, match="equal length"):
        line_chart([Line("mine", [0, 1], [1])], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="same name"):
        line_chart([Line("a", [0], [1]), Line("a", [0], [1])], x_label="x", y_label="y")


def test_equal_values_still_make_a_chart() -> None:
    drawing(histogram({"a": [2, 2, 2]}, x_label="x"))
    drawing(line_chart([Line("a", [1], [1])], x_label="x", y_label="y"))
    drawing(dot_chart({"a": [3.0]}, x_label="x"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("guidance 2, 250 steps", "guidance 2, 250 steps"),
        ("WWWWWWWWWWWWWWWWWWWWWWWWW", "WWWWWWWWWWW…"),
        ("an arm whose name is far too long to be shown", "an arm whose name…"),
    ],
)
def test_a_long_name_is_cut_at_its_end_where_a_pointer_shows_all_of_it(
    name: str, shown: str
) -> None:
    (text,) = [
        one
        for one in drawing(dot_chart({name: [1.0]}, x_label="x")).iter()
        if one.find("title") is not None
    ]
    title = text.find("title")
    assert title is not None
    assert (title.text, title.tail) == (name, shown)
    assert float(text.attrib["x"]) >= sum(16 * (1.0 if c == "W" else 0.5) for c in shown[:-1])


# For keys, screen readers, and large reports


def test_tables_and_charts_say_what_they_are_without_a_screen():
    chart = dot_chart({"real": [1, 2], "mixed": [3]}, x_label="accuracy in percent")
    assert 'aria-label="Means of accuracy in percent: real 1.5, mixed 3"' in chart
    curve = line_chart(
        [Line(name=name, x=[0, 1], y=[0, 1]) for name in "ab"], x_label="step", y_label="loss"
    )
    assert 'aria-label="Chart of loss against step: a, b"' in curve
    body = blocks(
        Markup("<h1>Part</h1>"), heading("Part"), [["arm", "n"], ["<real>", "3"]], chart, curve
    )
    text = page("Title", body)
    check_accessible(text)
    assert "<th scope=row>&lt;real&gt;</th><td>3</td>" in text


def test_a_long_table_shows_a_thousand_rows_and_counts_the_others():
    text = table(["class", "n"], [[f"class {i}", i] for i in range(MOST_ROWS + 234)])
    assert text.count("<tr>") == 1 + MOST_ROWS
    assert "234 more rows are in the JSON file." in text
    assert "more rows" not in table(["class"], [[i] for i in range(MOST_ROWS)])


def test_a_cell_without_text_is_no_head_of_a_row_or_column():
    text = table(["", "n"], [["", 1], ["a", ""]])
    assert "<tr><td></td><th scope=col>n</th></tr>" in text
    assert "<tr><td></td><td>1</td></tr>" in text
    assert "<th scope=row>a</th><td></td>" in text


def test_long_names_break_and_pictures_shrink_in_place_of_leaving_the_page():
    text = page("Title", blocks("text"))
    for rule in (
        "th { max-width: 30ch; }",
        "th, .text, li { overflow-wrap: break-word; }",
        ".legend li { min-width: 0; }",
        "@media (max-width: 520px) { svg text:not(.long) { font-size: 16px; } }",
    ):
        assert rule in text
    assert re.search(r"\nimg \{[^}]*max-width: 100%", text)


def test_a_label_that_larger_letters_would_push_out_of_its_chart_keeps_its_own():
    line = Line("a", [0, 1], [0, 1])
    assert 'class="long"' in line_chart([line], x_label="x", y_label="distance " * 4)
    assert 'class="long"' not in line_chart([line], x_label="x", y_label="share of images")


def test_a_printed_page_shows_whole_tables_and_the_colors_of_its_legends():
    text = page("Title", blocks("text"))
    printed = text[text.index("@media print") :]
    assert ".wide { overflow: visible; }" in printed
    assert re.search(r"\.legend i \{[^}]*print-color-adjust: exact", text)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_stand_out_from_their_background_in_light_and_dark():
    text = page("Title", blocks("text"))
    schemes = re.findall(r":root \{ (.*?) \}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        color = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name, needed in {
            **dict.fromkeys(("ink", "muted", "good", "bad", "open"), 4.5),
            **dict.fromkeys((f"s{i}" for i in range(1, 7)), 3.0),  # lines and dots
        }.items():
            for ground in ("page", "card"):
                high, low = sorted((luminance(color[name]), luminance(color[ground])))[::-1]
                assert (high + 0.05) / (low + 0.05) >= needed, (name, ground)
