"""Several processes at one cache: what was withdrawn stays so, and no row mixes two images."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache
from synthaug._cache import State
from synthaug._cache.tools import copy_rows
from synthaug._generate.draw import fill as fill_rows
from synthaug._support.locks import claimed, owner_of
from synthaug.caches import forget, import_images, merge
from synthaug.errors import CacheError
from synthaug.images import LabeledImages
from tests.drawing import SHAPE, Killed, Shaped, fill, plan_of

FORK = multiprocessing.get_context("fork")
ROWS = 9
SEEDS = int(os.environ.get("SYNTHAUG_RACES", "8"))
MANIFEST = {"recipe": Shaped().recipe()}


ENCODINGS = ("raw", "png", "webp", "jpeg:90")
"""The seeds have them in turn."""


def create(path: Path, plan: Plan | None = None, encoding: str = "raw") -> SynthCache:
    return SynthCache.create(
        path, plan or plan_of(), image_shape=SHAPE, manifest=MANIFEST, encoding=encoding
    )


def even(levels: Any) -> torch.Tensor:
    """Images of one gray level each."""
    return torch.as_tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)


# Every order of the steps that matter, by chance


class Interleaving:
    """Threads of which one runs at a time, from one system call to the next, as a seed decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._turns: dict[int, threading.Semaphore] = {}
        self._stopped = threading.Semaphore(0)
        self._killed: set[int] = set()
        for name in ("pwrite", "preadv"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        flock = fcntl.flock

        def patient(fd: int, operation: int) -> None:
            while True:
                self._step()
                with suppress(BlockingIOError):
                    return flock(fd, operation | fcntl.LOCK_NB)

        monkeypatch.setattr(fcntl, "flock", patient)
        # Threads that decode take no turns, and to start them takes longer than to decode.
        monkeypatch.setattr("synthaug._cache.encodings.usable_processors", lambda: 1)

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self._step()
            return call(*args)

        return wrapped

    def _step(self) -> None:
        """Lets another thread go on."""
        me = threading.get_ident()
        if me in self._turns and me not in self._killed:
            self._stopped.release()
            self._turns[me].acquire()
            if self._rng.random() < self.kills:
                self._killed.add(me)
                raise Killed

    def run(
        self, jobs: list[Callable[[], Any]], check: Callable[[], None], kills: float = 0
    ) -> None:
        """Runs all jobs to their end, or until they are killed, with a check after every step."""
        self.kills = kills
        errors: list[BaseException] = []

        def thread(job: Callable[[], Any], turn: threading.Semaphore) -> None:
            self._turns[threading.get_ident()] = turn
            turn.acquire()
            try:
                job()
            except Killed:
                pass
            except BaseException as error:
                errors.append(error)
            del self._turns[threading.get_ident()]
            self._stopped.release()

        turns = [threading.Semaphore(0) for _ in jobs]
        threads = [
            threading.Thread(target=thread, args=pair) for pair in zip(jobs, turns, strict=True)
        ]
        for started in threads:
            started.start()
        while any(started.is_alive() for started in threads):
            alive = [i for i, started in enumerate(threads) if started.is_alive()]
            turns[self._rng.choice(alive)].release()
            self._stopped.acquire(timeout=0.05)
            check()
        assert not errors, errors


class Raw:
    """What stands in the file, read without the cache."""

    def __init__(self, cache: SynthCache) -> None:
        self.path, self.regions = cache.path, cache._contents.regions
        self._files: list[list[bytes]] = []
        if not cache._contents.encoding.raw:
            drawn = ((Shaped().draw(cache.plan) + 1) * 127.5).round().to(torch.uint8)
            for images in (drawn, even(7 + np.arange(len(drawn)))):
                self._files.append(cache._contents.encoding.encoded(images.numpy()))

    def __getitem__(self, name: str) -> Any:
        region = self.regions[name]
        count, offset = int(np.prod(region.shape)), region.offset or 0
        return np.fromfile(self.path, region.dtype, count, offset=offset).reshape(region.shape)

    def check_erased(self, rows: Any) -> None:
        """Nothing of what the tests write into these rows is left in the file."""
        assert (self["state"][rows] == State.WITHDRAWN).all()
        if "images" in self.regions:
            assert not self["images"][rows].any()
        content = self.path.read_bytes()
        assert not any(files[row] in content for files in self._files for row in rows)


@pytest.mark.parametrize("kills", [0, 0.01])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_withdrawn_stays_so_in_every_order_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kills: float
) -> None:
    rng, plan, encoding = np.random.default_rng(seed), plan_of(), ENCODINGS[seed % 4]
    whole = create(tmp_path / "c.h5", plan, encoding)
    part = fill(Shaped(), tmp_path / "part.h5", plan[3:], encoding=encoding)
    raw, gone, forgotten = Raw(whole), rng.permutation(ROWS)[:3], threading.Event()
    whole.write([0, 1, 5], even([7, 8, 12]))

    def forget() -> None:
        SynthCache(whole.path).withdraw(gone)
        forgotten.set()

    def draw() -> None:
        fill_rows(Shaped(), SynthCache(whole.path), rng.permutation(ROWS), batch_size=2)

    jobs = [
        forget,
        draw,
        lambda: SynthCache(whole.path).invalidate(range(ROWS)),
        lambda: copy_rows(part, SynthCache(whole.path), 3),
    ]

    def check() -> None:
        if forgotten.is_set():
            raw.check_erased(gone)

    Interleaving(monkeypatch, seed).run(jobs, check, kills)
    assert forgotten.is_set() or kills
    monkeypatch.undo()
    SynthCache.open_for_writing(whole.path, plan, image_shape=SHAPE, manifest=MANIFEST)
    assert len(whole.verify()) == 0
    if forgotten.is_set():
        check()


@pytest.mark.parametrize("kills", [0, 0.01])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_forget_withdraw_write_and_merge_leave_nothing_of_a_source_in_every_order_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kills: float
) -> None:
    keys = np.arange(1, ROWS + 1, dtype=np.uint64)
    sources = [np.arange(4), [], np.arange(4, ROWS)]
    plans = [plan_of(sources=sources, source_keys=keys, seed=seed) for seed in range(2)]
    encoding = ENCODINGS[seed % 4]
    whole = create(tmp_path / "c.h5", plan := plans[0], encoding)
    other = fill(Shaped(), tmp_path / "other.h5", plans[1], encoding=encoding)
    whole.write([0, 1, 5], even([7, 8, 12]))
    raw, gone, forgotten = Raw(whole), np.flatnonzero(plan["source"] == 2), threading.Event()
    merged: list[tuple[bool, SynthCache]] = []

    def forget_it() -> None:
        forget([whole.path, other.path], keys[2:3])
        forgotten.set()

    def put_together() -> None:
        before = forgotten.is_set()
        merged.append((before, merge([other.path, whole.path], tmp_path / "m.h5")))

    jobs = [
        forget_it,
        lambda: SynthCache(whole.path).withdraw([4]),
        lambda: fill_rows(Shaped(), SynthCache(whole.path), np.arange(ROWS), batch_size=2),
        put_together,
    ]

    def check() -> None:
        if forgotten.is_set():
            raw.check_erased(gone)

    Interleaving(monkeypatch, seed).run(jobs, check, kills)
    assert (forgotten.is_set() and merged) or kills
    monkeypatch.undo()
    for before, made in merged:
        assert len(made.verify()) == 0
        assert not (before and made.done[made.plan["source"] == 2].any())
    if forgotten.is_set():
        check()
        again = merge([other.path, whole.path], tmp_path / "again.h5")
        assert not again.done[again.plan["source"] == 2].any()
        assert len(again.verify()) == 0


@pytest.mark.parametrize("kills", [0, 0.02])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_row_is_half_of_one_image_and_half_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kills: float
) -> None:
    cache = create(tmp_path / "c.h5", encoding=ENCODINGS[seed % 4])
    raw, reader = Raw(cache), cache._open()

    def writer(level: int) -> None:
        for rows in np.array_split(np.random.default_rng(level).permutation(ROWS), 4):
            SynthCache(cache.path).write(rows, even([level] * len(rows)))

    def check() -> None:
        done = np.flatnonzero(raw["state"] == State.DONE)
        if "images" in raw.regions:  # a file of two halves would not match its checksum
            assert all(len(np.unique(image)) == 1 for image in raw["images"][done])
        assert reader.intact(done).all()

    Interleaving(monkeypatch, seed).run([lambda: writer(7), lambda: writer(8)], check, kills)
    monkeypatch.undo()
    assert len(cache.verify()) == 0
    assert cache.done.all() or kills
    assert all(len(np.unique(image)) == 1 for image in cache.read(np.flatnonzero(cache.done)))


def test_a_row_forgotten_while_it_is_drawn_is_left_out_and_the_job_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"

    class Forgetting(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            if not self.drawn:
                SynthCache(path).withdraw([1, 6])
            return super().draw(rows)

    synthesizer = Forgetting()
    cache = fill(synthesizer, path, batch_size=3)
    assert np.flatnonzero(~cache.done).tolist() == [1, 6]
    assert not Raw(cache)["images"][[1, 6]].any()
    assert len(synthesizer.drawn) == ROWS - 1  # row 6 was not even drawn
    assert len(cache.verify()) == 0


def test_forgetting_in_another_process_is_final_whenever_it_comes(tmp_path: Path) -> None:
    plan, rng = plan_of((80, 0, 80)), np.random.default_rng()
    gone = np.arange(0, 160, 3)

    def draw(path: Path) -> None:
        fill(Shaped(), path, plan, batch_size=8)

    def forget(path: Path, started: Any) -> None:
        started.wait()
        SynthCache(path).withdraw(gone)

    for trial in range(4):
        path, started = tmp_path / f"{trial}.h5", FORK.Event()
        raw = Raw(create(path, plan))
        jobs = [
            FORK.Process(target=draw, args=(path,)),
            FORK.Process(target=forget, args=(path, started)),
        ]
        for job in jobs:
            job.start()
        time.sleep(rng.uniform(0, 0.3))
        started.set()
        jobs[1].join()
        while True:
            ended = not jobs[0].is_alive()
            assert (raw["state"][gone] == State.WITHDRAWN).all()
            assert not raw["images"][gone].any()
            if ended:
                break
        jobs[0].join()
        assert [job.exitcode for job in jobs] == [0, 0]
        assert len(SynthCache(path).verify()) == 0
        assert (SynthCache(path).state != State.PENDING).all()


# One job at a time


@pytest.mark.parametrize("seed", range(min(SEEDS, 500)))
def test_the_same_job_twice_is_done_once_and_the_second_is_refused_or_finds_it_done(
    tmp_path: Path, seed: int
) -> None:
    path, rng, encoding = tmp_path / "c.h5", np.random.default_rng(seed), ENCODINGS[seed % 4]
    whole = fill(Shaped(), tmp_path / "whole.h5", encoding=encoding)
    start = FORK.Barrier(2)

    def job(delay: float) -> None:
        synthesizer = Shaped()
        start.wait()
        time.sleep(delay)
        try:
            fill(synthesizer, path, encoding=encoding, batch_size=2)
        except CacheError as error:
            os._exit(3 if "is being filled by" in str(error) else 4)
        os._exit(0 if synthesizer.drawn else 5)

    jobs = [FORK.Process(target=job, args=(rng.uniform(0, 0.03),)) for _ in range(2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert {one.exitcode for one in jobs} in ({0, 3}, {0, 5})
    cache = SynthCache(path)
    assert cache.done.all()
    assert len(cache.verify()) == 0
    assert torch.equal(cache.read(range(ROWS)), whole.read(range(ROWS)))


def test_a_second_job_is_refused_and_told_whose_the_first_is(tmp_path: Path) -> None:
    path, begun, end = tmp_path / "c.h5", threading.Event(), threading.Event()

    class Slow(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            begun.set()
            end.wait(60)
            return super().draw(rows)

    whose = rf"process {os.getpid()} on {socket.gethostname()}, since 20\d\d-.* UTC"
    images = LabeledImages(torch.zeros(2, *SHAPE, dtype=torch.uint8), np.array([0, 1]), ("a", "b"))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(fill, Slow(), path)
        begun.wait(60)
        synthesizer = Shaped()
        for refused in (
            lambda: fill(synthesizer, path),
            lambda: fill(synthesizer, path, shard="1/2"),
            lambda: import_images(images, path),
            lambda: merge([tmp_path / "d.h5"], path),
        ):
            create(tmp_path / "d.h5") if not (tmp_path / "d.h5").exists() else None
            with pytest.raises(CacheError, match=rf"c.h5 is being filled by {whose}.*--wait"):
                refused()
        assert not synthesizer.drawn
        assert len(SynthCache(path)) == ROWS  # readers need no leave
        waiting = threads.submit(fill, synthesizer, path, wait=True)
        time.sleep(0.3)
        assert not waiting.done()
        end.set()
        assert first.result().done.all()
        assert waiting.result().done.all()
    assert not synthesizer.drawn
    assert sorted(os.listdir(tmp_path)) == ["c.h5", "d.h5"]


def test_shards_share_the_claim_and_keep_a_whole_job_out(tmp_path: Path) -> None:
    path, drawing, end = tmp_path / "a.h5", threading.Barrier(3), threading.Event()
    plan = plan_of((150, 0, 150))

    class Meeting(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            if not self.drawn:
                drawing.wait(60)
                end.wait(60)
            return super().draw(rows)

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(fill, Meeting(), path, plan, shard=f"{i}/2") for i in (1, 2)]
        drawing.wait(60)
        with pytest.raises(CacheError, match=r"a.h5 is being filled by process"):
            fill(Shaped(), path, plan)
        end.set()
        assert any(job.result().done.all() for job in jobs)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_of_many_that_claim_and_give_back_never_two_have_it(tmp_path: Path) -> None:
    inside, most = [0], []

    def one(_: int) -> None:
        for _ in range(30):
            with claimed(tmp_path / "x", patience=60) as mine:
                assert mine
                inside[0] += 1
                most.append(inside[0])
                time.sleep(0)
                inside[0] -= 1

    import synthaug._support.locks as locks

    locks_look, locks._LOOK = locks._LOOK, 0.0001
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(one, range(4)))
    finally:
        locks._LOOK = locks_look
    assert most == [1] * 120
    assert os.listdir(tmp_path) == []


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    begun = FORK.Event()

    def hold() -> None:
        with claimed(tmp_path / "x"):
            begun.set()
            time.sleep(1e6)

    child = FORK.Process(target=hold)
    child.start()
    begun.wait()
    with claimed(tmp_path / "x") as mine:
        assert not mine
    assert owner_of(tmp_path / "x").startswith(f"process {child.pid} on ")
    child.kill()
    child.join()
    assert os.listdir(tmp_path) == ["x.lock"]
    with claimed(tmp_path / "x") as mine:
        assert mine
    assert os.listdir(tmp_path) == []


def no_locks(*args: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_without_locks_it_goes_by_the_note_and_says_that_nothing_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    note = tmp_path / "x.lock"
    with claimed(tmp_path / "x") as mine:
        assert mine
        assert "x.lock cannot be locked" in caplog.text
        assert "nothing guards" in caplog.text
        kept = json.loads(note.read_text())
        with claimed(tmp_path / "x") as second:
            assert not second  # the note names a process that runs
        with claimed(tmp_path / "x", shared=True) as second:
            assert second
    note.unlink(missing_ok=True)
    for change, free in (
        ({}, False),
        ({"started": 5}, True),  # another process with the number of the one that ended
        ({"process": 2**22 + 1}, True),
        ({"host": "node7"}, False),  # who knows
    ):
        note.write_text(json.dumps({**kept, **change}))
        with claimed(tmp_path / "x") as mine:
            assert mine == free
    note.write_text(json.dumps({**kept, "host": "node7"}))
    assert "on node7, since" in owner_of(tmp_path / "x")
    assert f"delete {note}" in owner_of(tmp_path / "x")
    note.write_text("")
    with claimed(tmp_path / "x") as mine:
        assert mine


def test_a_note_of_another_host_whose_lock_is_free_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with claimed(tmp_path / "x"):
        kept = json.loads((tmp_path / "x.lock").read_text())
    (tmp_path / "x.lock").write_text(json.dumps({**kept, "host": "node7"}))
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "x") as mine:
        assert mine
    assert f"names process {os.getpid()} on node7, and is free here" in caplog.text


def test_a_cache_in_a_folder_that_cannot_be_written_needs_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = fill(Shaped(), tmp_path / "c.h5").path
    opened = os.open

    def refuse(name: Any, flags: int, *args: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(name, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    assert fill(Shaped(), path).done.all()
    assert "nothing guards" in caplog.text
