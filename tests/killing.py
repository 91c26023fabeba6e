"""Commands that are killed at random instants: files stay whole, and running again ends well.

A world is a folder with data, a model, caches and a report. Each trial copies it, starts a command
in a process of its own, kills it after a random time, looks at what it left, and does so again; at
last the command runs to its end. What it then leaves must be, bit for bit, what a run without a
kill leaves.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthaug import SynthCache
from tests.command_line import run

FORK = multiprocessing.get_context("fork")
CPU = ("--device", "cpu")
SMALL = ("--steps", "3", "--batch-size", "8", "--width", "8", "--precision", "float32", *CPU)
DRAW = ("--num-inference-steps", "2", "--precision", "float32", *CPU)
ONCE = ("--steps", "2", "--seeds", "1", *CPU)
SETS = ("folder:train", "folder:holdout", "folder:test")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", SETS[0], "trained", *SMALL),
    "generate": ("generate", "run", "new.h5", "--per-class", "40", "--batch-size", "8", *DRAW),
    "invert": ("invert", "tokens", SETS[0], "inverted", "--updates", "2", *DRAW[2:]),
    "audit": ("audit", "c.h5", SETS[0], "--holdout", SETS[1], "--out", "new"),
    "evaluate": ("evaluate", SETS[0], "c.h5", SETS[2], "--batch-size", "8", *ONCE, "--out", "new"),
    "evaluate labels": (
        *("evaluate", "labels", "c.h5", SETS[0], "--percentile", "50", *ONCE, "--out", "new"),
    ),
    "evaluate quality": (
        *("evaluate", "quality", "c.h5", SETS[0], "--features", "pixels:2", "--force"),
        *("--holdout", SETS[1], "--out", "new"),
    ),
    "evaluate density": (
        *("evaluate", "density", "c.h5", SETS[0], "--features", "pixels:2"),
        *("--holdout", SETS[1], "--out", "new"),
    ),
    "sweep": (
        *("sweep", "run", SETS[0], "--validation", SETS[1], "--guidance-scale", "1.0"),
        *("--guidance", "1.5", "--per-class", "3", "--features", "pixels:2", "--force"),
        *("--num-inference-steps", "2", *ONCE, "--out", "new"),
    ),
    "cache merge": ("cache", "merge", "new.h5", "c.h5"),
    "cache export": ("cache", "export", "c.h5", "new", "--format", "folder"),
    "cache import": ("cache", "import", SETS[0], "new.h5"),
    "cache forget": ("cache", "forget", SETS[0], "variants.h5", "exported"),
}
"""Every command that writes, as it is called in a world."""
CHEAP = ("cache merge", "cache export", "cache import", "cache forget")
"""Commands that need no model."""


@dataclass
class Kills:
    """What came of the trials of a command."""

    trials: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


def world(folder: Path, *, models: bool = True) -> Path:
    """Makes the files that commands start from."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("holdout", 8), ("test", 6)):
        for label, name in enumerate(("cat", "dog", "emu")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (8, 8), np.uint8)
                image[2 * label : 2 * label + 3] += 120
                Image.fromarray(image).save(folder / split / name / f"{i}.png")
    start = [
        ("cache", "import", SETS[0], "c.h5"),
        ("cache", "import", SETS[0], "variants.h5"),
        ("cache", "export", "variants.h5", "exported", "--format", "folder"),
    ]
    if models:
        start += [
            ("train", SETS[0], "run", *SMALL),
            ("train", SETS[0], "tokens", "--condition", "tokens", *SMALL),
            ("generate", "run", "drawn.h5", "--per-class", "6", *DRAW),
        ]
    for words in start:
        code, shown = _ended(folder, _started(folder, words))
        assert code == 0, shown
    if models:
        (folder / "drawn.h5").replace(folder / "c.h5")
    return folder


def trials(base: Path, folder: Path, name: str, seeds: range, *, most: int = 3) -> Kills:
    """Kills a command up to `most` times per seed, then lets it end, and compares."""
    words, found = COMMANDS[name], Kills()
    expected, code, seconds = _uninterrupted(base, folder, words)
    for seed in seeds:
        rng, place = np.random.default_rng(seed), folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base, place)
        found.trials += 1
        for _ in range(int(rng.integers(1, most + 1))):
            child = _started(place, words)
            child.join(float(rng.uniform(0, seconds)))
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.join()
            found.kills += child.exitcode == -signal.SIGKILL
            found.faults += [f"{name}, seed {seed}: {fault}" for fault in broken(place)]
        ended, shown = _ended(place, _started(place, words))
        left = fingerprint(place)
        differing = sorted(k for k in {*left, *expected} if left.get(k) != expected.get(k))
        if differing or (ended != code and "exists already" not in shown):
            text = f"exit code {ended} in place of {code}, other files: {differing[:5]}"
            found.faults.append(f"{name}, seed {seed}: {text}: {shown[-300:]}")
    return found


def _uninterrupted(
    base: Path, folder: Path, words: tuple[str, ...]
) -> tuple[dict[str, str], int, float]:
    place = folder / "whole"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    began = time.monotonic()
    code, shown = _ended(place, _started(place, words))
    assert code in (0, 1, 3), shown
    return fingerprint(place), code, time.monotonic() - began


def _started(place: Path, words: tuple[str, ...]) -> Any:
    child = FORK.Process(target=_command, args=(place, words))
    child.start()
    return child


def _ended(place: Path, child: Any) -> tuple[int, str]:
    """Its exit code, and what it printed."""
    child.join(600)
    if child.exitcode is None:
        child.kill()
        child.join()
        return -1, "no end after 600 s"
    shown = place.parent / f"{place.name}.shown"
    return child.exitcode, shown.read_text() if shown.exists() else ""


def _command(place: Path, words: tuple[str, ...]) -> None:
    os.setsid()  # whatever it starts is killed with it
    os.chdir(place)
    code = 99
    try:
        outcome = run(*words)
        code, text = outcome.code, outcome.out + outcome.err
    except BaseException:
        text = traceback.format_exc()
    (place.parent / f"{place.name}.shown").write_text(text)
    os._exit(code)


def broken(place: Path) -> list[str]:
    """What is there under its own name and cannot be used."""
    faults = []
    for path in _kept(place):
        try:
            if path.suffix == ".h5":
                if len(bad := SynthCache(path).verify()):
                    faults.append(f"{path.name} has the damaged rows {bad}")
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    return faults


def fingerprint(place: Path) -> dict[str, str]:
    """A digest of every file, without what says how long it took."""
    return {str(path.relative_to(place)): _digest(path) for path in _kept(place)}


def _kept(place: Path) -> list[Path]:
    """All files but hidden ones, which are the rests of kills, and what is in such folders."""
    files = (path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock")
    inside = ((path, path.relative_to(place).parts) for path in files)
    return sorted(path for path, parts in inside if not any(part[0] == "." for part in parts))


def _digest(path: Path) -> str:
    if path.suffix in (".html", ".jsonl"):  # with times
        return "there"
    if path.suffix == ".h5":
        cache = SynthCache(path)
        done = np.flatnonzero(cache.done)
        data = cache.state.tobytes() + cache.read(done).numpy().tobytes() if len(done) else b""
        return hashlib.sha256(cache.plan_digest.encode() + data).hexdigest()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "second" not in k and k != "digests"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
