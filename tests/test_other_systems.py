"""Systems that lack what Linux has: the same files and images, and plain words for the rest."""

import errno
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from synthaug import MixedDataset, Plan, SynthCache, generate, load_dataset
from synthaug._cache.files import new_file, new_folder
from synthaug._support import system
from synthaug._support.files import whole_file, write_text
from synthaug._support.locks import claimed
from synthaug.synthesizers import Constant
from tests import processes
from tests.command_line import run, succeed
from tests.tiny.class_conditional import NAMES, tiny

pytestmark = pytest.mark.usefixtures("short_audits")

WITHOUT = """
import os, sys, warnings
import numpy, torch  # which know the system by other means

warnings.simplefilter("ignore")
for name in [name for name in sys.modules if name.partition(".")[0] == "synthaug"]:
    del sys.modules[name]  # it is to be imported on such a system
sys.modules["fcntl"] = None
for name in (
    "pwrite", "preadv", "posix_fallocate", "register_at_fork", "O_CLOEXEC", "O_NOFOLLOW",
    "O_NONBLOCK", "uname",
):
    delattr(os, name)
"""
JOB = """
import numpy as np
import torch
from torch.utils.data import DataLoader

import synthaug
from synthaug._support import system
from synthaug._cli.app import main

assert system.fcntl is None and system.OURS == 0
real = synthaug.images.LabeledImages(
    torch.arange(12 * 16).view(12, 1, 4, 4).to(torch.uint8), np.arange(12) % 2, ("cat", "dog")
)
pixels = real.read(range(12))
synthesizer = synthaug.synthesizers.Constant(pixels, real.labels, classes=real.classes)
plan = synthesizer.plan(per_class=6, seed=0)
cache = synthaug.generate(synthesizer, plan, "cache.h5", progress=False)
synthaug.generate(synthesizer, plan, "cache.h5", progress=False)
assert cache.done.all() and not len(cache.verify())
cache.withdraw([3])
assert synthaug.SynthCache("cache.h5").counts()
synthaug.caches.merge(["cache.h5"], "merged.h5")
mixed = synthaug.MixedDataset(real, cache, audit=None, fraction=0.5)
loader = DataLoader(mixed, batch_size=4, collate_fn=list)
assert len(list(loader)) == 3
print(cache.read([0, 1]).sum().item())
main(["cache", "info", "cache.h5", "-q"])
"""


@pytest.mark.xdist_group("forkserver")
def test_a_whole_job_runs_without_the_calls_that_windows_lacks(tmp_path):
    done = processes.run(WITHOUT + JOB, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing guards" in done.stderr  # said, and not passed over
    assert (tmp_path / "merged.h5").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Locks as Windows has them, on this system, and files that cannot be renamed while open."""
    held: dict[int, int] = {}  # inode => descriptor

    def locking(fd: int, mode: int, length: int) -> None:
        assert length == 1
        assert os.lseek(fd, 0, os.SEEK_CUR) == 1 << 40  # behind all that others read
        inode = os.fstat(fd).st_ino
        if mode == 0:
            del held[inode]
        elif held.setdefault(inode, fd) != fd:
            raise OSError(errno.EACCES, "Permission denied")

    stub = SimpleNamespace(locking=locking, LK_UNLCK=0, LK_LOCK=1, LK_NBLCK=2)
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", stub)
    monkeypatch.setattr(system, "WINDOWS", True)
    replace, link = os.replace, os.link

    def closed(source: Any) -> None:
        open_files = {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
        assert os.path.realpath(source) not in open_files

    def checked_replace(source: Any, target: Any) -> None:
        closed(source)
        replace(source, target)

    def checked_link(source: Any, target: Any) -> None:
        closed(source)
        link(source, target)

    monkeypatch.setattr(os, "replace", checked_replace)
    monkeypatch.setattr(os, "link", checked_link)
    return held


def test_a_second_job_is_told_of_the_first_by_locks_of_windows(windows, tmp_path):
    path = tmp_path / "cache.h5"
    with claimed(path) as mine:
        assert mine
        with claimed(path) as other:
            assert not other
    with claimed(path) as again:
        assert again


def test_files_are_closed_before_they_get_their_name(windows, tmp_path):
    path = write_text(tmp_path / "report.json", "old")
    write_text(path, "new")
    with pytest.raises(FileNotFoundError), whole_file(path) as temporary:
        Path(temporary).rename(tmp_path / "broken" / "elsewhere")
    assert path.read_text() == "new"
    with new_file(tmp_path / "cache.h5") as fd:
        os.write(fd, b"rows")
    assert (tmp_path / "cache.h5").read_bytes() == b"rows"
    with new_folder(tmp_path / "export") as folder:
        (folder / "a.png").write_bytes(b"")
    assert {p.name for p in tmp_path.iterdir()} == {"report.json", "cache.h5", "export"}


def test_no_process_is_ended_by_asking_whether_it_runs(monkeypatch):
    from synthaug._support import locks

    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("Windows ends the process"))
    monkeypatch.setattr(locks, "Path", lambda _: Path("nowhere"))
    assert locks._start_of(1) == 0


# One call missing, all others there


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images in folders, some held out, one to be forgotten, and a network that draws."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("holdout", 4), ("forgotten", 1)):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{split}-{i}.png")
    shutil.copytree(root / "forgotten", root / "train", dirs_exist_ok=True)
    tiny().save_pretrained(root / "run")
    return root


def mixed_of(world: Path, path: Path | str) -> tuple[MixedDataset, Constant, Plan]:
    """Real images mixed with a new cache, and what fills it."""
    real = load_dataset(f"folder:{world / 'train'}", progress=False)
    constant = Constant(real.read(range(len(real))), real.targets, classes=real.classes)
    plan = constant.plan(per_class=4, seed=0)
    cache = generate(constant, plan, path, progress=False, encoding="png")
    return MixedDataset(real, cache, audit=None, fraction=0.5), constant, plan


def whole_job(world: Path, folder: Path, missing: Any = lambda _: None) -> dict[str, Any]:
    """Fills, mixes, audits, merges, exports and forgets; what must not depend on the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the cache notes how it was made
        patch.setenv("SYNTHAUG_REMOTE_DIR", "copies")
        patch.setattr(MemoryFileSystem, "store", {})
        missing(patch)
        kept = _whole_job(world)
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")
    return {**kept, "files": sorted(names)}


def _whole_job(world: Path) -> dict[str, bytes]:
    train, holdout = (f"folder:{world / name}" for name in ("train", "holdout"))
    mixed, constant, plan = mixed_of(world, "constant.h5")
    cache = SynthCache("constant.h5")
    assert not len(cache.verify())
    cache.write([1], cache.read([1]))
    assert len(list(DataLoader(mixed, batch_size=8, collate_fn=list))) == 4

    drawn, merged, report = Path("drawn.h5"), Path("merged.h5"), Path("audit")
    line = ["generate", world / "run", drawn, "--ratio", 0.5, "--source", train]
    line += ["--strength", 0.5, "--num-inference-steps", 2, "--device", "cpu"]
    succeed(*line)
    held = SynthCache(drawn)  # and mapped, while the commands go on
    images = held.read(range(len(held)))
    report.with_suffix(".html").write_text("an older one")
    outcome = run("audit", drawn, train, "--holdout", holdout, "--out", report)
    assert outcome.code in (0, 1, 3), outcome.err
    succeed("cache", "verify", drawn)
    succeed("cache", "merge", merged, drawn)
    for kind in ("folder", "webdataset"):
        succeed("cache", "export", drawn, kind, "--format", kind)
    url = "memory://bucket/remote.h5"
    assert generate(constant, plan, url, progress=False).read([0]).equal(cache.read([0]))
    kept = {path.name: path.read_bytes() for path in (cache.path, drawn, merged)}
    text = succeed(
        "cache", "forget", f"folder:{world / 'forgotten'}", merged, "folder", "webdataset"
    )
    assert "withdrawn" in text
    assert not SynthCache(merged).done.all()
    assert SynthCache(drawn).read(range(len(held))).equal(images)
    assert not list(Path().glob("**/*.partial"))
    return kept


@pytest.fixture(scope="module")
def with_all_calls(world: Path, short_audits: None, tmp_path_factory: Any) -> Any:
    return whole_job(world, tmp_path_factory.mktemp("all"))


def without(*names: str) -> Callable[[pytest.MonkeyPatch], None]:
    def remove(patch: pytest.MonkeyPatch) -> None:
        for name in names:
            patch.delattr(os, name)

    return remove


def without_fcntl(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "fcntl", None)
    patch.setattr(system, "fcntl", None)


def without_close_on_exec(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "O_CLOEXEC")
    patch.setattr(system, "OURS", 0)


def without_open_folders(patch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_file(path, flags, *rest, **more)

    patch.setattr(os, "open", refuse)
    patch.setattr(shutil, "_use_fd_functions", False)


def without_sync_of_folders(patch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(fd)

    patch.setattr(os, "fsync", refuse)


def without_replacing_what_is_open(patch: pytest.MonkeyPatch) -> None:
    """Files that are open or mapped are neither renamed nor removed, nor does another take their
    place."""
    patch.setattr(system, "WINDOWS", True)
    maps = Path("/proc/self/maps")

    def guarded(change: Callable[..., Any], count: int) -> Callable[..., Any]:
        def refuse(*paths: Any, **more: Any) -> Any:
            ours = {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
            ours |= {line.partition("/")[2] for line in maps.read_text().splitlines()}
            for path in map(os.path.realpath, paths[:count]):
                if os.path.isfile(path) and ours & {path, path[1:]}:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return change(*paths, **more)

        return refuse

    for name, count in (("replace", 2), ("rename", 2), ("link", 1), ("unlink", 1), ("remove", 1)):
        patch.setattr(os, name, guarded(getattr(os, name), count))
    patch.setattr(shutil, "_use_fd_functions", False)


def without_fork(patch: pytest.MonkeyPatch) -> None:
    """Only "spawn" is left to start processes."""
    spawn = multiprocessing.get_context("spawn")
    patch.delattr(os, "fork")
    patch.setattr(multiprocessing.context, "_concrete_contexts", {"spawn": spawn})
    patch.setattr(multiprocessing.context._default_context, "_actual_context", spawn)


MISSING = {
    "fcntl": without_fcntl,
    "pwrite": without("pwrite"),
    "preadv": without("preadv", "pread"),
    "posix_fallocate": without("posix_fallocate"),
    "O_CLOEXEC": without_close_on_exec,
    "opening folders": without_open_folders,
    "fsync of folders": without_sync_of_folders,
    "replacing what is open": without_replacing_what_is_open,
    "fork": without_fork,
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_job_ends_with_the_same_files_where_one_call_is_missing(
    missing: str,
    world: Path,
    with_all_calls: Any,
    tmp_path: Path,
) -> None:
    found = whole_job(world, tmp_path, MISSING[missing])
    assert found["files"] == with_all_calls["files"]
    for name, content in found.items():
        assert content == with_all_calls[name], name


def test_workers_started_by_spawn_mix_the_same_images(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_fork(monkeypatch)
    mixed, *_ = mixed_of(world, tmp_path / "cache.h5")
    loaders = [DataLoader(mixed, batch_size=8, collate_fn=list, num_workers=n) for n in (0, 1)]
    alone, worker = (
        [(image.tobytes(), label) for batch in loader for image, label in batch]
        for loader in loaders
    )
    assert worker == alone
