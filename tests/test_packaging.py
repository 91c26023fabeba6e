"""What CI is told agrees with what the project declares."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def declared() -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    return [Requirement(one) for one in ast.literal_eval(listed[1])]  # as Python writes lists


def padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    stated = dict(
        line.split("==") for line in (ROOT / ".ci/lowest.txt").read_text().splitlines()[1:]
    )
    bounds = {
        one.name: next(part.version for part in one.specifier if part.operator == ">=")
        for one in declared()
    }
    assert stated.keys() == bounds.keys()
    for name, version in stated.items():
        assert padded(version) == padded(bounds[name]), name


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
