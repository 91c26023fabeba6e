"""Behavior is what it was when `tests/frozen/` was recorded; see `tests/frozen.py`."""

from pathlib import Path

import pytest

from tests.frozen import AREAS, World, differences, found_now, read

pytestmark = pytest.mark.xdist_group("frozen")  # areas share the models that they are about


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(Path(tmp_path_factory.mktemp("world")).resolve())


@pytest.mark.parametrize("area", AREAS)
def test_an_area_is_as_it_was_recorded(area: str, world: World) -> None:
    kept, _ = read(area)
    found = differences(kept, found_now(area, world))
    assert not found, "\n".join(found)
