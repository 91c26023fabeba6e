"""Tests that pages show the numbers of the result files, and no others."""

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results_page() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import results_page

        return results_page


def test_tables_are_those_of_the_result_files(results_page):
    for page in results_page.pages():
        text = page.read_text()
        assert results_page.filled(text) == text, f"run benchmarks/results_page.py: {page}"


def test_every_table_is_on_a_page(results_page):
    text = "".join(page.read_text() for page in results_page.pages())
    shown = {place[2] for place in results_page.PLACE.finditer(text)}
    assert shown == set(results_page.BLOCKS)
    assert text.count("<!-- results: ") == text.count("<!-- end of results -->")
