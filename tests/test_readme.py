import ast
import re
import shlex
from pathlib import Path

import pytest

import synthaug
from synthaug._cli.app import understand

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [
        line.rpartition("&&")[2].strip()
        for page in PAGES
        if page.name != "command_line.md"  # whose lines have tests of their own
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in dict.fromkeys(lines) if line.startswith("synthaug ")]


def test_continuous_integration_runs_the_readmes_own_test_command():
    (command,) = (b.strip() for b in blocks(PAGES[0], "sh") if "pytest" in b)
    assert f"{command.replace('pip install', 'pip install -q')}\n" in (ROOT / ".ci/run").read_text()


def test_the_readme_is_short_and_pages_say_who_they_are_for():
    assert len(PAGES[0].read_text().splitlines()) <= 180
    for page in sorted((ROOT / "docs").rglob("*.md")):
        title, first, *_ = page.read_text().split("\n\n")
        assert title.startswith("# "), page
        assert first.startswith("For "), page


@pytest.mark.parametrize("command", commands())
def test_every_command_shown_is_one_that_the_command_line_takes(command):
    understand(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("code", [b for page in PAGES for b in blocks(page, "python")])
def test_every_name_of_ours_in_the_code_shown_exists(code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "synthaug"
        ):
            assert node.attr in synthaug.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
