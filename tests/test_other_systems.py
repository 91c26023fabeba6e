"""Systems that lack what Linux has: the same files and images, and plain words for the rest."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synthaug._cache.files import new_file, new_folder
from synthaug._support import system
from synthaug._support.files import whole_file, write_text
from synthaug._support.locks import claimed
from tests import processes

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
