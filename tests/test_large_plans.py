"""Plans that do not fit in memory: the same plan, of which only what is asked for is there.

What counts as large, and how many rows are looked at at once, is made small here.
"""

import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import synthaug
from synthaug import AuditReport, MixedDataset, Plan, SynthCache
from synthaug._audit import spread as _spread
from synthaug._cache import format as _format
from synthaug._cache import readers as _readers
from synthaug._cache import stored_rows as _stored
from synthaug._cache import tools as _tools
from synthaug._plan import rows as _rows
from synthaug.caches import export, forget, info, merge
from synthaug.errors import CacheError, MismatchError
from synthaug.images import LabeledImages

CLASSES = ("cat", "dog", "emu")
SHAPE = (1, 2, 2)
COMPRESSED = "ignore:.*is a compressed copy"
KEYS = np.array([11, 22, 11, 44, 55, 66, 77], np.uint64)  # two of the images are equal
SOURCES: dict[str, Any] = {"sources": [[0, 1, 2], [5], [3, 4, 6]], "source_keys": KEYS}
ASKED: list[dict[str, Any]] = [
    {},
    {"parameters": {"strength": [0.25, 0.5], "steps": [1, 2, 3]}},
    {**SOURCES, "parameters": {"crossed": True}},
]
INDICES: list[Any] = [
    slice(3, 900),
    slice(None, None, 7),
    slice(None, None, -1),
    slice(-5, None),
    slice(0, 0),
    [5, 1, 1, -1, 803],
    np.arange(1000) % 3 == 1,
    np.array([], np.int64),
    torch.tensor([9, 8]),
]


def plan_of(**changes: Any) -> Plan:
    given: dict[str, Any] = {"classes": CLASSES, "settings": {"v": 1}, "seed": 0}
    return Plan.build([300, 200, 500], **{**given, **changes})


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of more than 100 rows are large from here on."""
    monkeypatch.setattr(_rows, "KEPT", 4000)
    monkeypatch.setattr(_rows, "PIECE", 64)
    monkeypatch.setattr(_stored, "_NEAR", 64)
    monkeypatch.setattr(_format, "SPAN", 128)
    monkeypatch.setattr(_tools, "_SORTED", 100)


def refuse(self: Any, name: str) -> Any:
    raise AssertionError(f"the column {name} was made as a whole")


@pytest.fixture
def none_whole(monkeypatch: pytest.MonkeyPatch, large: None) -> None:
    """To make a whole column is an error from here on."""
    monkeypatch.setattr(_rows.AbstractRows, "column", refuse)


def in_memory(make: Callable[[], Plan]) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "KEPT", 2**30)
        patch.setattr(_rows, "PIECE", 2**16)
        return make()


def same(one: Plan, other: Plan) -> None:
    assert list(one.columns) == list(other.columns)
    for name in one.columns:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])
        assert not one[name].flags.writeable
    assert one.digest == other.digest
    assert (one.quota == other.quota).all()
    assert (one.classes, one.settings, one.base_seed) == (
        other.classes,
        other.settings,
        other.base_seed,
    )


def laid_out(path: Path, plan: Plan) -> SynthCache:
    return SynthCache.create(path, plan, image_shape=SHAPE, manifest={"recipe": {}})


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8))


@pytest.mark.parametrize("asked", ASKED, ids=["noise", "parameters", "sources"])
def test_a_plan_that_is_computed_is_the_plan_in_memory(large: None, asked: Any) -> None:
    plan, kept = plan_of(**asked), in_memory(lambda: plan_of(**asked))
    assert isinstance(plan.columns, _rows.Columns)
    assert isinstance(kept.columns, dict)
    same(plan, kept)
    same(plan.with_settings({"v": 2}), in_memory(lambda: kept.with_settings({"v": 2})))
    assert [plan.row(i) for i in (0, 299, 300, 999)] == [kept.row(i) for i in (0, 299, 300, 999)]
    assert plan._repr_html_() == kept._repr_html_()
    same(plan_of(**asked, rows=slice(290, 700)), in_memory(lambda: kept[290:700]))
    same(pickle.loads(pickle.dumps(plan)), kept)


@pytest.mark.parametrize("index", INDICES, ids=[str(i) for i in range(len(INDICES))])
def test_any_index_gives_the_rows_that_it_gives_in_memory(
    large: None, tmp_path: Path, index: Any
) -> None:
    kept = in_memory(lambda: plan_of(**SOURCES))
    stored = laid_out(tmp_path / "a.h5", plan_of(**SOURCES)).plan
    joined = Plan.joined([kept[:300], stored[300:]])
    expected = in_memory(lambda: kept[index])
    numbers = np.arange(1000)[index]
    for plan in (plan_of(**SOURCES), stored, joined):
        part = plan[index]
        assert part.digest == expected.digest
        for chosen in (index, np.sort(numbers)):
            rows = np.arange(1000)[chosen]
            np.testing.assert_array_equal(plan.at("seed", chosen), kept["seed"][rows])
        if len(part) > 3:
            assert part[::-1][1:4].digest == in_memory(lambda: expected[::-1][1:4]).digest


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ([1000], IndexError),
        ([-1001], IndexError),
        (np.ones(7, bool), ValueError),
        ([[1]], TypeError),
        ([0.5], TypeError),
        (..., TypeError),
    ],
)
def test_what_names_no_rows_is_an_error(large: None, index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_of()[index]
    with pytest.raises(TypeError, match="see `row`"):
        plan_of()[0]


@pytest.mark.filterwarnings(COMPRESSED)
def test_a_cache_of_a_large_plan_is_the_same_file_and_keeps_its_plan_there(
    large: None, tmp_path: Path
) -> None:
    cache = laid_out(tmp_path / "a.h5", plan_of(**ASKED[1]))
    kept = in_memory(lambda: plan_of(**ASKED[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "KEPT", 2**30)
        other = laid_out(tmp_path / "b.h5", kept)
        assert isinstance(other.plan.columns, dict)
        found = info(other)
    assert cache.path.read_bytes() == other.path.read_bytes()
    cache.write([3], images(1))
    packed = SynthCache(export(cache, tmp_path / "c.h5", format="hdf5"))
    for one in (cache, packed, pickle.loads(pickle.dumps(cache))):
        assert isinstance(one.plan.columns, _rows.Columns)
        assert one.plan.digest == one.plan_digest == kept.digest
        for name in kept.columns:
            np.testing.assert_array_equal(one.plan[name], kept[name])
        assert one.plan.row(700) == kept.row(700)
        assert one[3][1] == kept["label"][3]
    facts = ("plan_columns", "identity")
    assert {name: info(cache)[name] for name in facts} == {name: found[name] for name in facts}
    again = SynthCache.open_for_writing(
        cache.path, plan_of(**ASKED[1]), image_shape=SHAPE, manifest={"recipe": {}}
    )
    assert again.done.sum() == 1
    changed = {**ASKED[1], "seed": 1}
    with pytest.raises(MismatchError, match="plan column seed, rows 0, 1, 2, 3, 4 and 995 more"):
        SynthCache.open_for_writing(
            cache.path, plan_of(**changed), image_shape=SHAPE, manifest={"recipe": {}}
        )


def test_a_plan_in_a_file_that_was_replaced_or_cut_short_is_an_error(
    large: None, tmp_path: Path
) -> None:
    cache = laid_out(tmp_path / "a.h5", plan_of())
    plan, labels = cache.plan, cache.labels
    assert cache.labels is labels
    cache.path.rename(tmp_path / "b.h5")
    laid_out(cache.path, plan_of(seed=1))
    fresh = pickle.loads(pickle.dumps(plan))
    with pytest.raises(MismatchError, match="was replaced"):
        fresh.row(0)
    assert plan.row(0) == in_memory(plan_of).row(0)  # opened before: still the old file
    with open(tmp_path / "b.h5", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(CacheError, match="Cannot read"):
        plan[900:901]
    with pytest.raises(CacheError, match="Cannot read"):
        plan["seed"]
    with pytest.raises(CacheError, match="Cannot read"):
        cache.labels_of([5, 999, 1])
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], [300, 200, 500]))  # no fault


def test_no_step_of_a_job_makes_a_whole_column(
    none_whole: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, path = images(3), tmp_path / "a.h5"
    synthesizer = synthaug.synthesizers.Constant(pixels, [0, 1, 2], classes=CLASSES)
    plan = plan_of(settings={}, **SOURCES)
    synthaug.generate(synthesizer, plan, path, shard="1/2", progress=False)
    cache = synthaug.generate(synthesizer, plan, path, shard="2/2", progress=False)
    assert cache.done.all()
    assert not len(cache.verify())
    halves = [plan[:400], plan[400:]]
    parts = [
        synthaug.generate(synthesizer, half, tmp_path / f"{i}.h5", progress=False).path
        for i, half in enumerate(halves)
    ]
    merged = merge(parts, tmp_path / "merged.h5")
    assert merged.path.read_bytes() == path.read_bytes()
    shutil.copy(parts[0], tmp_path / "copy.h5")
    with pytest.raises(MismatchError, match=r"0\.h5 are the same image, and 399 more"):
        merge([tmp_path / "copy.h5", *parts], tmp_path / "twice.h5")
    real = LabeledImages(images(30), np.arange(30) % 3, CLASSES)
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    assert len(mixed.__getitems__(list(range(30)))) == 30
    assert list(forget([path], [22]).values()) == [100]
    assert repr(cache).count("900 done") == 1
    export(cache, tmp_path / "packed.h5", format="hdf5")


def test_an_audit_of_a_large_cache_reads_and_keeps_the_judged_rows_alone(
    none_whole: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spread, "_DENSE", 100)
    cache = laid_out(tmp_path / "a.h5", plan_of())
    done = np.arange(5, 1000, 40)
    cache.write(done, images(len(done)))
    cache.withdraw([6])
    report = synthaug.audit(cache, images(60)[20:], progress=False)
    report.to_json(tmp_path / "a.json")
    for one in (report, AuditReport.from_json(tmp_path / "a.json")):
        assert len(one) == 1000
        np.testing.assert_array_equal(one.judged, done)
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(one.scores[:, 0])), done)
        np.testing.assert_array_equal(one.labels[done], cache.labels_of(done))
        assert (np.delete(one.labels, done) == -1).all()
        assert {*done[20:]} <= {*one.flagged} < {*done}  # equal to images 20 to 24
        assert {pair["row"]: pair["class"] for pair in one.pairs}[925] == "emu"
    report.withdraw_from(cache)
    assert cache.counts()[_format.State.WITHDRAWN] == 1 + len(report.withheld)


class Unread(np.ndarray):
    """A mapped array of which nothing may be read."""

    def take(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a page was mapped, which counts as memory")


def test_a_merge_maps_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, array = plan_of(), _readers.Mapped._array
    parts = [laid_out(tmp_path / f"{i}.h5", plan[i::2]) for i in range(2)]
    for part in parts:
        part.write(range(0, 500, 7), images(72))
    monkeypatch.setattr(_readers.Mapped, "_array", lambda *args: array(*args).view(Unread))
    merged = merge([part.path for part in parts], tmp_path / "merged.h5")
    assert merged.counts()[_format.State.DONE] == 144
    with pytest.raises(AssertionError, match="mapped"):
        SynthCache(merged.path).read([7, 0])
    assert (merged.read([507, 7, 0]) == images(72)[[1, 1, 0]]).all()  # in any order


def test_to_open_and_to_verify_takes_a_byte_or_two_per_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "KEPT", 2**20)
    rows = 400_000
    plan = Plan(
        {
            "label": np.zeros(rows),
            "source": np.full(rows, -1),
            "source_key": np.zeros(rows),
            "variant": np.arange(rows),
            "seed": np.arange(rows),
        },
        ("a",),
        {},
    )
    path = laid_out(tmp_path / "a.h5", plan).path
    SynthCache(path)  # imports
    tracemalloc.start()
    try:
        cache = SynthCache(path)
        cache.write([5, 399_999], images(2))
        cache.verify()
        assert len(cache.plan[::1000]) == 400
        assert tracemalloc.get_traced_memory()[1] < 8 * rows  # of one column, in 16 MB of plan
    finally:
        tracemalloc.stop()


def test_rows_chosen_by_a_mask_are_its_row_numbers(large: None) -> None:
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random(1000) < share
        rows, numbers = _format.ChosenRows(mask), np.flatnonzero(mask)
        assert len(rows) == len(numbers)
        for start, stop in rng.integers(0, 1100, (50, 2)):
            np.testing.assert_array_equal(rows[start:stop], numbers[start:stop])
        assert [list(piece) for piece in _format.blocks(rows, SHAPE)] == [
            list(piece) for piece in _format.blocks(numbers, SHAPE)
        ]


@pytest.mark.parametrize(
    ("name", "limit", "error", "message"),
    [
        ("MAX_ROWS", 999, ValueError, "1,000 rows, a cache holds 1 to 999. Make several caches"),
        ("MAX_MANIFEST", 50, ValueError, "bytes of JSON; a cache holds 50"),
        ("free", 60_000, CacheError, "there are fewer.*; 60,000 bytes are free.*Nothing was writ"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_laid_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
    error: type[Exception],
    message: str,
) -> None:
    plan = plan_of()
    if name == "free":
        usage = type("Usage", (), {"free": limit})
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    else:
        monkeypatch.setattr(_format, name, limit)
    with pytest.raises(error, match=message):
        laid_out(tmp_path / "new" / "a.h5", plan)
    assert not list(tmp_path.iterdir())
