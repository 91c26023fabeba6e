"""Tests that docstrings are sentences, not fragments that lean on something before them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAGMENT = re.compile(r"(What|Which|Of|As|Those|Likewise)\b")
ENTRY = re.compile(r"^ +[\w*`]+(?:, [\w*`]+)*: ((?:Of|As|Those|Likewise)\b.*)$", re.MULTILINE)
"""An argument or an error in a docstring that is explained by a fragment."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source: str) -> list[str]:
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def faults(docstring: str) -> list[str]:
    first = docstring.split("\n\n")[0]
    wrong = [first] if FRAGMENT.match(first) or first.rstrip()[-1] not in ".:?" else []
    return [*wrong, *ENTRY.findall(docstring)]


@pytest.mark.parametrize("folder", ["synthaug", "benchmarks", "examples"])
def test_first_lines_and_entries_are_no_fragments(folder):
    found = {
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in docstrings(path.read_text())
        for fault in faults(text)
    }
    assert not found, "\n".join(sorted(found))


def test_fragments_are_found():
    text = "What a row is.\n\nArgs:\n    seed: Of the plan.\n    rows: Rows of the plan.\n"
    assert faults(text) == ["What a row is.", "Of the plan."]
