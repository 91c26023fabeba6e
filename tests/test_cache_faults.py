"""The cache under attack: kills, full disks, failing system calls, two writers, hostile files."""

import errno
import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable
from itertools import product
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache
from synthaug._cache import State
from synthaug._cache.files import new_file
from synthaug._support.files import remove_orphans, temporary_name, whole_file, write_text
from synthaug.caches import export, merge
from synthaug.errors import CacheError

SHAPE = (3, 16, 16)
ROWS = 96
BATCH = 8
KILLS = int(os.environ.get("SYNTHAUG_KILLS", "8"))
MANIFEST = {"recipe": {"synthesizer": "Noise", "settings": {}}}
WRITERS = [(1, "raw"), (2, "png")]
if "SYNTHAUG_KILLS" in os.environ:
    WRITERS = [*product((1, 2), ("raw", "png", "webp", "jpeg:90"))]
FORK = multiprocessing.get_context("fork")  # children need no import, so kills land in the writing


def plan_of(rows: int = ROWS) -> Plan:
    return Plan.build([rows // 2, rows - rows // 2], classes=("a", "b"), settings={}, seed=0)


def pixels_of(rows: int = ROWS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (rows, *SHAPE), np.uint8))


def create(path: Path, rows: int = ROWS, encoding: str = "raw") -> SynthCache:
    plan = plan_of(rows)
    return SynthCache.create(path, plan, image_shape=SHAPE, manifest=MANIFEST, encoding=encoding)


def fill(
    path: Path,
    pixels: torch.Tensor,
    acknowledged: Any,
    share: slice = slice(None),
    fsync: Any = "never",
    encoding: str = "raw",
) -> None:
    """What a generating process does: opens the file, and writes the rows that are not done."""
    cache = SynthCache.open_for_writing(
        path, plan_of(len(pixels)), image_shape=SHAPE, manifest=MANIFEST, encoding=encoding
    )
    mine = np.arange(len(pixels))[share]
    left = np.random.default_rng(len(mine)).permutation(mine[~cache.done[mine]])
    for start in range(0, len(left), BATCH):
        rows = left[start : start + BATCH]
        cache.write(rows, pixels[rows], fsync=fsync)
        for row in rows:
            acknowledged[row] = 1


def content(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:  # files of images stand in the order in which they were written
        stored = {name: file[name][()].tobytes() for name in ("labels", "state")}
    return {**stored, "images": SynthCache(path).read(range(ROWS)).numpy().tobytes()}


@pytest.mark.parametrize(("writers", "encoding"), WRITERS)
def test_a_kill_at_any_instant_costs_no_done_row_and_resuming_equals_no_kill(
    tmp_path: Path, writers: int, encoding: str
) -> None:
    path, reference = tmp_path / "killed.h5", tmp_path / "reference.h5"
    pixels = pixels_of()
    create(reference, encoding=encoding).write(range(ROWS), pixels)
    expected = SynthCache(reference).read(range(ROWS))  # JPEG loses some
    rng = np.random.default_rng()
    acknowledged = RawArray("b", ROWS)
    shares = [slice(i, None, writers) for i in range(writers)]

    def start() -> list[Any]:
        children = [
            FORK.Process(
                target=fill,
                args=(path, pixels, acknowledged, share),
                kwargs={"encoding": encoding},
            )
            for share in shares
        ]
        for child in children:
            child.start()
        return children

    create(path, encoding=encoding)
    began = time.perf_counter()
    for child in start():
        child.join()
    whole = time.perf_counter() - began
    killed = finished = 0
    while killed < KILLS:
        path.unlink(missing_ok=True)
        acknowledged[:] = [0] * ROWS
        create(path, encoding=encoding)
        while not SynthCache(path).done.all():
            children = start()
            time.sleep(rng.uniform(0, whole))
            for child in children:
                child.kill()
            for child in children:
                child.join()
            killed += sum(child.exitcode == -signal.SIGKILL for child in children)
            cache = SynthCache(path)
            done = cache.done
            assert len(cache.verify()) == 0
            assert torch.equal(cache.read(np.flatnonzero(done)), expected[torch.from_numpy(done)])
            assert done[np.array(acknowledged) == 1].all()
        finished += 1
        assert content(path) == content(reference)
    assert finished > 0


def test_a_kill_while_creating_leaves_a_whole_cache_or_none(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    began = time.perf_counter()
    create(path)
    whole = time.perf_counter() - began
    rng = np.random.default_rng()
    for _ in range(KILLS):
        path.unlink(missing_ok=True)
        child = FORK.Process(target=create, args=(path,))
        child.start()
        time.sleep(rng.uniform(0, 1.5 * whole))
        child.kill()
        child.join()
        if path.exists():
            assert len(SynthCache(path)) == ROWS
    path.unlink(missing_ok=True)
    create(path)
    assert os.listdir(tmp_path) == ["c.h5"]  # what the kills left behind is gone
    os.link(path, temporary_name(path))  # killed just after it had its name
    foreign = {".c.h5.12345678.partial", ".c.h5.0123456789abcdef.partial", "..partial"}
    for name in foreign:
        (tmp_path / name).write_text("somebody else's, of a similar name")
    with pytest.raises(CacheError, match="exists already"):
        create(path)
    assert set(os.listdir(tmp_path)) == {"c.h5", *foreign}


def test_a_partial_file_in_use_is_not_taken_for_an_orphan(tmp_path: Path) -> None:
    with new_file(tmp_path / "c.h5") as fd:
        os.write(fd, b"half")
        create(tmp_path / "d.h5")
        with pytest.raises(ZeroDivisionError), new_file(tmp_path / "c.h5"):
            raise ZeroDivisionError
        assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "c.h5").read_bytes() == b"half"


def test_what_a_kill_left_of_a_report_is_gone_once_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def killed() -> None:
        with whole_file(path) as temporary:
            Path(temporary).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=killed)
    child.start()
    child.join()
    assert len(os.listdir(tmp_path)) == 1
    with whole_file(path) as temporary:  # another process that writes the same file is left alone
        Path(temporary).write_text("first")
        write_text(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["report.json"]


def test_of_two_that_create_the_same_file_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with pytest.raises(CacheError, match="exists already"), new_file(path):
        create(path)
    assert len(SynthCache(path)) == ROWS
    assert os.listdir(tmp_path) == ["c.h5"]


def test_a_disk_too_small_is_met_before_the_job_and_named_with_its_numbers(tmp_path: Path) -> None:
    def limited(result: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            create(tmp_path / "c.h5")
        except CacheError as error:
            result.send(str(error))

    receive, send = FORK.Pipe(duplex=False)
    child = FORK.Process(target=limited, args=(send,))
    child.start()
    child.join()
    assert child.exitcode == 0  # not a signal
    message = receive.recv()
    needed = int(message.split(" needs ")[1].split(" bytes")[0].replace(",", ""))
    assert needed == os.stat(create(tmp_path / "whole.h5").path).st_size
    assert "bytes are free" in message
    assert os.listdir(tmp_path) == ["whole.h5"]


class Faults:
    """Makes the n-th of some system calls fail, and counts them."""

    NAMES = ("open", "pwrite", "fsync", "link", "posix_fallocate", "unlink", "mkdir", "rename")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, code: int) -> None:
        self.calls, self.n, self.code = 0, n, code
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.n:
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_failing_system_call_is_one_clear_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path, pixels = tmp_path / "c.h5", pixels_of(12)

    def job() -> None:
        cache = SynthCache.open_for_writing(path, plan_of(12), image_shape=SHAPE, manifest=MANIFEST)
        for rows in ([0, 1, 5, 11], [2, 3, 4, 6, 7, 8, 9, 10]):
            left = [row for row in rows if cache.state[row] == State.PENDING]
            cache.write(left, pixels[left])
        cache.withdraw(withdrawn)

    withdrawn, kept = [1, 2, 9], [0, 3, 4, 5, 6, 7, 8, 10, 11]
    n = 0
    while True:
        n += 1
        path.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            faults = Faults(patch, n, code)
            message = None
            try:
                job()
            except CacheError as error:
                message = str(error)
        if faults.calls < n:
            break  # every call has failed once
        if message is not None:  # else it was a call that does not matter
            assert str(path) in message
            assert os.strerror(code) in message
        if path.exists():
            cache = SynthCache(path)
            done = np.flatnonzero(cache.done)
            assert set(cache.verify()) <= set(withdrawn)  # an erasure that was cut short
            assert torch.equal(cache.read(done), pixels[done])
        job()
        cache = SynthCache(path)
        assert len(cache.verify()) == 0
        assert torch.equal(cache.read(kept), pixels[kept])
        assert os.listdir(tmp_path) == ["c.h5"]
    assert n > 30


@pytest.mark.parametrize("form", ["folder", "webdataset", "hdf5"])
def test_any_failing_system_call_of_an_export_leaves_all_of_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    cache, out = create(tmp_path / "c.h5", 2), tmp_path / "out"
    cache.write(range(2), pixels_of(2))
    n = calls = 0
    while calls >= n:  # until every call has failed once
        n += 1
        with monkeypatch.context() as patch:
            faults = Faults(patch, n, errno.EIO)
            message = None
            try:
                export(cache, out, format=form)
            except CacheError as error:
                message = str(error)
            calls = faults.calls
        if message is not None:  # else it was a call that does not matter
            assert str(tmp_path) in message
            assert os.strerror(errno.EIO) in message
        if not out.exists():
            export(cache, out, format=form)
        assert len(list(out.glob("*/*.png"))) == (2 if form == "folder" else 0)
        remove_orphans(out)  # as the next export would, if removing was what failed
        assert sorted(os.listdir(tmp_path)) == ["c.h5", "out"]
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert n > 3


def test_what_a_kill_left_of_an_export_is_removed_by_the_next(tmp_path: Path) -> None:
    cache, out = create(tmp_path / "c.h5", 200), tmp_path / "out"
    cache.write(range(200), pixels_of(200))
    begun, write = FORK.Event(), Path.write_bytes

    def stuck() -> None:
        def first(path: Path, data: bytes) -> None:
            write(path, data)
            begun.set()
            time.sleep(1e6)

        with mock.patch.object(Path, "write_bytes", first):
            export(cache, out, format="folder")

    child = FORK.Process(target=stuck)
    child.start()
    begun.wait()
    child.kill()
    child.join()
    assert list(tmp_path.glob(".out.*/*/*.png"))
    assert not out.exists()
    export(cache, out, format="folder")
    assert sorted(os.listdir(tmp_path)) == ["c.h5", "out"]


def test_short_and_interrupted_writes_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    cache, pixels = create(tmp_path / "c.h5", 4), pixels_of(4)
    cache.write(range(4), pixels)
    assert torch.equal(cache.read(range(4)), pixels)


def test_signals_that_interrupt_writes_do_not_matter(tmp_path: Path) -> None:
    pixels, caught = pixels_of(), []

    def again(*_: Any) -> None:
        # Ever later: a call that is always interrupted before it is done would never be done.
        caught.append(1)
        signal.setitimer(signal.ITIMER_REAL, 0.0005 * 1.2 ** len(caught))

    before = signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        cache = create(tmp_path / "c.h5")
        cache.write(range(ROWS), pixels)
        while len(caught) < 20:
            cache.write(range(ROWS), pixels)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(cache.read(range(ROWS)), pixels)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, 524])
def test_a_file_system_without_hard_links_locks_fallocate_or_fsync_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    cache = create(tmp_path / "c.h5", 12)
    info = os.stat(cache.path)
    assert info.st_blocks * 512 >= info.st_size
    cache.write(range(12), pixels_of(12))
    assert torch.equal(SynthCache(cache.path).read(range(12)), pixels_of(12))
    with pytest.raises(CacheError, match="exists already"):
        create(tmp_path / "c.h5", 12)
    export(cache, tmp_path / "out", format="folder")
    merge([cache.path], tmp_path / "d.h5", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["c.h5", "d.h5", "out"]


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", of_files)
    cache = create(tmp_path / "c.h5", 12)
    cache.write(range(12), pixels_of(12))
    assert export(cache, tmp_path / "out", format="folder").is_dir()


def test_ctrl_c_while_writing_leaves_a_valid_file(tmp_path: Path) -> None:
    path, pixels = tmp_path / "c.h5", pixels_of()
    create(path)
    acknowledged = RawArray("b", ROWS)

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            fill(path, pixels, acknowledged, fsync="batch")
        except KeyboardInterrupt:
            os._exit(7)

    child = FORK.Process(target=interrupted)
    child.start()
    while not any(acknowledged):
        time.sleep(0.001)
    os.kill(child.pid or 0, signal.SIGINT)
    child.join()
    assert child.exitcode in (0, 7)
    cache = SynthCache(path)
    assert cache.done.any()
    assert len(cache.verify()) == 0
    fill(path, pixels, acknowledged)
    assert torch.equal(cache.read(range(ROWS)), pixels)


def test_readers_that_poll_while_writers_fill_see_only_whole_images(tmp_path: Path) -> None:
    path, pixels = tmp_path / "c.h5", pixels_of()
    create(path)
    acknowledged = RawArray("b", ROWS)

    def poll() -> None:
        cache, count = SynthCache(path), 0
        while count < ROWS:
            done = np.flatnonzero(cache.done)
            assert len(done) >= count
            count = len(done)
            assert torch.equal(cache.read(done), pixels[done])

    def write(share: slice) -> None:
        fill(path, pixels, acknowledged, share)

    jobs = [FORK.Process(target=poll) for _ in range(4)]
    jobs += [FORK.Process(target=write, args=(slice(i, None, 2),)) for i in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 6
