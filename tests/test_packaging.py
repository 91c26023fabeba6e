"""What CI is told agrees with what the project declares."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


LIBRARIES = ("dependencies", "text", "metrics", "lora", "c2pa", "remote")
"""What the tests of the lowest versions need; the other extras are tested as they come."""


def declared() -> dict[str, list[Requirement]]:
    """The requirements of the package, and those of each extra."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^([\w-]+) = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    named = {name: ast.literal_eval(listed) for name, listed in lists if ">=" in listed}
    return {name: [Requirement(one) for one in all_of] for name, all_of in named.items()}


def padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    lines = (ROOT / ".ci/lowest.txt").read_text().splitlines()
    stated = dict(line.split("==") for line in lines if not line.startswith("#"))
    lists = declared()
    assert {one.name for name in LIBRARIES for one in lists[name]} <= stated.keys()
    for one in (one for listed in lists.values() for one in listed if one.name in stated):
        (bound,) = (part.version for part in one.specifier if part.operator == ">=")
        assert padded(stated[one.name]) == padded(bound), one


def test_the_workflow_names_files_and_parts_that_there_are() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    jobs = workflow["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert {job["runs-on"] for job in jobs.values()} == {"ubuntu-latest", "${{ matrix.system }}"}
    for path in re.findall(r"\.ci/[\w.]+", str(workflow)):
        assert (ROOT / path).exists(), path
    everything = (ROOT / ".ci/run").read_text()
    for part in ("codespell", "ruff check .", "ruff format --check .", "pytest", "mypy"):
        assert part in commands
        assert part in everything
