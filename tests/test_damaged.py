"""A short form of the soaks, which `benchmarks/soak.py` runs with larger numbers."""

from pathlib import Path

import pytest

from tests import fuzzing, killing

SHORT = ("cache", "HDF5 images", "compressed cache", "image files", "exports")
"""Subjects without a network, each use of which takes milliseconds."""


@pytest.mark.parametrize("name", SHORT)
def test_a_damaged_file_is_used_rightly_or_refused_clearly(tmp_path: Path, name: str) -> None:
    subject = fuzzing.SUBJECTS[name](tmp_path)
    found = fuzzing.trials(subject, tmp_path, range(25))
    assert found.faults == []
    assert found.refused
    assert found.refused + found.used == 25


def test_a_wrong_result_a_crash_and_a_raw_error_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")

    def crash(place: Path) -> None:
        import os

        os.abort()

    def wrong(place: Path) -> None:
        raise AssertionError("a wrong pixel")

    def raw(place: Path) -> None:
        raise KeyError("x")

    for use, seen in ((crash, "exit code -6"), (wrong, "a wrong pixel"), (raw, "KeyError")):
        found = fuzzing.trials(fuzzing.Subject(path, use), tmp_path, range(2))
        assert len(found.faults) == 2
        assert all(seen in fault for fault in found.faults)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killing.world(tmp_path_factory.mktemp("world"), models=False)


@pytest.mark.parametrize("name", killing.CHEAP)
def test_a_killed_command_leaves_whole_files_and_ends_well_when_run_again(
    world: Path, tmp_path: Path, name: str
) -> None:
    found = killing.trials(world, tmp_path, name, range(2))
    assert found.faults == []
