"""What all reports have in common: a file that brings them back, a page, text and a data frame."""

import json
import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from synthaug._support.report import Report, decode, encode, text_table
from synthaug._types import JSON, Labels
from synthaug.errors import AuditError, DataError
from tests.reports import NASTY, REPORTS, check_accessible

WITH_ROWS = ("AuditReport", "HardnessReport", "LabelCheck", "MembershipReport")
ERRORS = dict.fromkeys(WITH_ROWS, AuditError)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {kind: make() for kind, make in REPORTS.items()}


def assert_equal(a: Any, b: Any, name: str = "report") -> None:
    assert type(a) is type(b), name
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    elif is_dataclass(a):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name), f"{name}.{field.name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other, name)
    else:
        assert a == b, name


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_comes_back_from_its_file_as_it_was(kind, made, tmp_path):
    report = made[kind]
    path = report.to_json(tmp_path / "new" / "report.json")
    again = type(report).from_json(path)
    assert_equal(again, report)
    assert again.to_json(tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("kind", REPORTS)
def test_a_file_that_is_no_such_report_is_refused_with_its_name_and_a_remedy(kind, made, tmp_path):
    report = made[kind]
    path = report.to_json(tmp_path / "report.json")
    record = json.loads(path.read_text())
    foreign = REPORTS["QualityReport" if kind != "QualityReport" else "SweepReport"]()
    for problem, text in {
        "cannot be read as JSON": "{",
        "NaN is not a JSON number": path.read_text().replace("null", "NaN").replace("0.5", "NaN"),
        "holds a list, expected an object": "[]",
        "its format is None, expected 'synthaug": "{}",
        f"its format is '{foreign._FORMAT}', expected": encode({"format": foreign._FORMAT}),
        "it has format version 7, this version of synthaug reads 1": encode(
            {**record, "format_version": 7}
        ),
        "it is damaged: it has 'no_such_field', which is no part of it": encode(
            {**record, "no_such_field": 1}
        ),
        r"its format is 'aaa.* \.\.\.\)": encode({"format": "a" * 10_000}),
        "it is damaged: it lacks '": encode(
            {k: v for k, v in record.items() if k.startswith("format")}
        ),
    }.items():
        path.write_text(text)
        problem = rf"report\.json is not .*{problem}"
        with pytest.raises(ERRORS.get(kind, DataError), match=problem) as refused:
            type(report).from_json(path)
        assert len(str(refused.value)) < 1000
    with pytest.raises(ERRORS.get(kind, DataError), match=r"does not exist\. [A-Z].*again"):
        type(report).from_json(tmp_path / "none.json")


@pytest.mark.parametrize("kind", REPORTS)
def test_a_page_is_whole_loads_nothing_and_takes_names_as_text(kind, made, tmp_path):
    report = made[kind]
    text = report.to_html(tmp_path / "new" / "report.html").read_text()
    check_accessible(text)
    assert text.count("<h1>") == 1
    assert report.title in text
    assert str(report.html_sections()) in text
    assert "<script" not in text.replace(f"<script>{report.SCRIPT}</script>", "")
    assert not re.findall(r'(?:src|href)="(?!data:|")', text)


@pytest.mark.parametrize(
    ("kind", "columns", "first"),
    [
        ("AuditReport", 17, {"tier": 1, "label": 0, "rmse": 0.0}),
        ("EvaluationReport", 14, {"arm": NASTY, "test_accuracy": 0.875, "accuracy, a": None}),
        ("HardnessReport", 4, {"class": NASTY, "hardness": 1.0}),
        ("LabelCheck", 4, {"class": NASTY, "score": 0.125, "withheld": True, "passed": False}),
        ("MembershipReport", 6, {"set": "train", "row": 0, "class": NASTY}),
        ("QualityReport", 12, {"class": "all", "images": "synthetic", "n": 8}),
        ("SweepReport", 16, {"stage": "coarse", "guidance_scale": 1.5, "cas": 0.75}),
    ],
)
def test_a_data_frame_has_a_row_per_image_run_or_setting(kind, columns, first, made):
    frame = made[kind].to_frame()
    rows = {"AuditReport": 8, "EvaluationReport": 1, "HardnessReport": 3, "LabelCheck": 3}
    rows["MembershipReport"] = 40
    assert frame.shape == (rows.get(kind, 2), columns)
    assert {name: frame[name][0] for name in first} == first


def test_without_pandas_an_error_says_how_to_install_it(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas. Run `pip install pandas`"):
        made["LabelCheck"].to_frame()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, 1.0),
        (float, "1"),
        (float, True),
        (float, 1e400),
        (bool, 1),
        (str, None),
        (list[int], {}),
        (list[int], [1, "2"]),
        (tuple[int, float], [1]),
        (dict[str, int], {"a": "b"}),
        (Literal["a", "b"], "c"),
        (int | None, "1"),
        (NDArray[np.float64], [1.0, "2"]),
        (NDArray[np.float64], [1e400]),
        (NDArray[np.float64], 3),
        (NDArray[np.bool_], [0]),
        (Labels, [0.5]),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_place(kind, value):
    with pytest.raises(ValueError, match=r"place\.of|arguments?"):
        decode(kind, value, "place.of")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, 3, 3),
        (int | None, None, None),
        (tuple[int, float], [1, 2.5], (1, 2.5)),
        (tuple[str, ...], ["a"], ("a",)),
        (list[tuple[int, int]], [[1, 2]], [(1, 2)]),
        (dict[str, JSON], {"a": [True]}, {"a": [True]}),
        (Labels, [1, 2], np.array([1, 2], np.int64)),
        (NDArray[np.float32], [0.5, None], np.array([0.5, np.nan], np.float32)),
        (NDArray[np.bool_], [], np.array([], bool)),
    ],
)
def test_a_value_that_fits_comes_back_as_its_hint_says(kind, value, expected):
    assert_equal(decode(kind, value), expected)


def test_numbers_of_a_text_table_stand_below_each_other():
    rows = [["", "n"], ["first", "10"], ["b", "7"]]
    assert text_table(rows, rule=True).splitlines() == [
        "        n",
        "---------",
        "first  10",
        "b       7",
    ]


def test_a_report_must_say_how_it_is_shown():
    with pytest.raises(TypeError, match="abstract"):
        Report()  # type: ignore[abstract]
