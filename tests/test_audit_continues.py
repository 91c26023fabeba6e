"""An audit that is killed and repeated ends as one that was not, and does little twice."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug import audit, features
from synthaug._audit import matching
from synthaug._audit.kept import read_records, write_records
from synthaug._audit.matches import Near
from synthaug._audit.matching import Matcher
from tests.audits import shorten


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Many small parts, in chunks of two."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr("synthaug._audit.comparison.PLANTED", 1)
        for name, value in {"_COUNTED": 6, "_REGISTERED_AT_ONCE": 6 * 8**2, "_CHUNK": 12}.items():
            patch.setattr(matching, name, value)
        yield


Sets = tuple[Tensor, Tensor, Tensor]
"""Synthetic, training and held-out images."""


@pytest.fixture(scope="module")
def sets() -> Sets:
    rng = np.random.default_rng(0)

    def fields(n: int) -> Tensor:
        small = torch.from_numpy(rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8))
        return small.repeat_interleave(2, 2).repeat_interleave(2, 3)

    synthetic, train, holdout = fields(18), fields(30), fields(20)
    synthetic[:3] = train[:3].flip(-1)
    return synthetic, train, holdout


def told(sets: Any, folder: Path | None, **settings: Any) -> Any:
    """Everything that the report says, but the time."""
    synthetic, train, holdout = sets
    extraction = features.ExtractionConfig(directory=folder)
    settings = {"holdout": holdout, "extraction": extraction, "progress": False, **settings}
    with tempfile.TemporaryDirectory() as out:
        audit(synthetic, train, **settings).to_json(f"{out}/audit.json")
        report = json.loads(Path(f"{out}/audit.json").read_text())
    report["environment"].pop("created")
    return report


@pytest.fixture(scope="module")
def expected(sets: Sets) -> Any:
    return told(sets, None)


@pytest.fixture(scope="module")
def whole(sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of an audit that ended."""
    folder: Path = tmp_path_factory.mktemp("kept")
    told(sets, folder)
    return folder


@pytest.fixture
def kept(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "kept"))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were aligned, registered and fitted at a time."""
    counts: list[int] = []
    align = Matcher._align

    def counted(self: Matcher, samples: Any, *found: Any) -> Any:
        counts.append(len(samples))
        return align(self, samples, *found)

    monkeypatch.setattr(Matcher, "_align", counted)
    return counts


def stopping(after: int, stop: Callable[[], None]) -> Callable[..., None]:
    """Writes results, and stops after some of them."""
    write, left = write_records, iter(range(after))

    def stopped(path: Any, records: Any) -> None:
        write(path, records)
        if next(left, None) is None:
            stop()

    return stopped


def interrupt() -> None:
    raise KeyboardInterrupt


ALL = 18 + 20 + 19 + 18
"""Synthetic images, held-out ones and planted copies; the pairs shown look for held-out ones."""


@pytest.mark.parametrize("after", [0, 4, 9, 14])
def test_an_audit_that_was_interrupted_continues_to_the_same_report(
    tmp_path, sets, expected, judged, monkeypatch, after
):
    with monkeypatch.context() as patched:
        patched.setattr(matching, "write_records", stopping(after, interrupt))
        with pytest.raises(KeyboardInterrupt):
            told(sets, tmp_path)
    assert list(tmp_path.glob("*.npz"))
    assert told(sets, tmp_path) == expected
    assert sum(judged) == ALL  # nothing twice
    assert not list(tmp_path.glob(".*"))


def test_an_audit_that_was_killed_continues_to_the_same_report(tmp_path, sets, expected, judged):
    def killed() -> None:
        kill = stopping(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        pytest.MonkeyPatch().setattr(matching, "write_records", kill)
        told(sets, tmp_path)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert told(sets, tmp_path) == expected
    assert 0 < sum(judged) < ALL


def test_what_is_kept_is_all_that_another_audit_needs_and_no_search(kept, sets, judged):
    again = told(sets, kept, fdr=0.2)
    assert not judged
    assert again == told(sets, None, fdr=0.2)
    names = [name for path in kept.iterdir() for name in np.load(path)]
    assert any("0.scores" in name for name in names)
    assert len(list(kept.iterdir())) == 3 + 4 + 4 + 3 + 5  # parts, and five questions plainly


@pytest.mark.parametrize("damage", [b"", b"\0", None])
def test_a_damaged_part_is_computed_again_and_said(kept, sets, expected, judged, caplog, damage):
    path = max(kept.glob("*.npz"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage is None else damage)
    assert told(sets, kept) == expected
    assert caplog.text.count(f"{path} is damaged") == 1
    assert judged == [6]


OTHERS = ({"k": 3}, {"features": ["pixels:4"]}, *((which, how) for which in (1, 2) for how in "if"))


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_results_of_other_settings_and_images_are_not_mixed(kept, sets, other):
    images, settings = list(sets), {}
    if isinstance(other, dict):
        settings = other
    elif other[1] == "f":  # the same images, in another order
        images[other[0]] = images[other[0]].flip(0)
    else:
        images[other[0]] = images[other[0]].clone()
        images[other[0]][0] = sets[0][9].flip(-1)
    assert told(images, kept, **settings) == told(images, None, **settings)


def test_results_of_other_versions_are_not_read(kept, sets, judged, monkeypatch):
    monkeypatch.setattr("synthaug._audit.kept._code", lambda: "another")
    told(sets, kept)
    assert sum(judged) == ALL


def test_only_the_part_of_an_image_that_changed_is_compared_again(kept, sets, judged):
    synthetic = sets[0].clone()
    synthetic[7, 0, 0, 0] ^= 1
    told((synthetic, *sets[1:]), kept, max_pairs=0)
    assert judged == [6]


class Mine:
    """Sees the same in the images that come first, and something of its own in the others."""

    name = "mine"

    def __init__(self, size: int) -> None:
        self.usual, self.see = features.Pixel(4), features.Pixel(size)

    def __call__(self, pixels: Tensor) -> Any:
        found = self.usual(pixels)
        found[16:, :12] = np.tile(self.see(pixels[16:]), 12)[:, :12]
        return found


def test_results_of_foreign_extractors_are_kept_only_if_their_weights_are_known(tmp_path, sets):
    told(sets, tmp_path, features=Mine(1))
    assert not list(tmp_path.glob("*.npz"))
    assert told(sets, tmp_path, features=Mine(2)) == told(sets, None, features=Mine(2))
    known = Mine(2)
    known.weights = "a digest"  # type: ignore[attr-defined]
    told(sets, tmp_path, features=known)
    assert list(tmp_path.glob("*.npz"))


def test_a_part_that_another_audit_deletes_meanwhile_is_computed_in_silence(tmp_path, caplog):
    assert read_records(tmp_path / "gone.npz", Near) is None
    assert not caplog.records


def test_features_are_searched_once_too(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    given = [rng.standard_normal((n, 8)).astype(np.float32) for n in (18, 30, 20)]
    sets: Any = given[0], given[1], given[2]
    expected = told(sets, None)
    assert told(sets, tmp_path) == expected
    search: list[int] = []
    found = Matcher._search

    def searched(self: Matcher, asked: Any, limit: int | None = None) -> Any:
        search.append(len(asked))
        return found(self, asked, limit)

    monkeypatch.setattr(Matcher, "_search", searched)
    assert told(sets, tmp_path) == expected
    assert sum(search) == 0


def test_progress_says_what_an_earlier_run_has_done(kept, sets, monkeypatch, capsys):
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "lines")
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "0")
    told(sets, kept, progress=True)
    assert "from an earlier run 6" in capsys.readouterr().err
