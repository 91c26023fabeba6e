"""Commands that are killed at any moment: files stay whole, and running again ends well.

A world is a folder with data, models, caches and a report. Each trial copies it, starts a command
in a process of its own, and kills it: at a random instant, or before one of the changes that it
makes to the file system. Then it looks at what that left, and does so again; at last the command
runs to its end. What it then leaves must be, bit for bit, what a run without a kill leaves, with
nothing beside it, and nothing that was done may be undone by a later run.
"""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthaug import SynthCache
from synthaug._demo import DemoSettings
from tests.audits import measure_no_audit, shorten
from tests.command_line import run

FORK = multiprocessing.get_context("fork")
CPU = ("--device", "cpu")
FLOAT = ("--precision", "float32", *CPU)
SMALL = ("--steps", "3", "--batch-size", "8", "--width", "8", "--checkpoint-seconds", "0", *FLOAT)
TUNE = (*SMALL[:4], *SMALL[6:])
DRAW = ("--num-inference-steps", "2", *FLOAT)
ONCE = ("--steps", "2", "--seeds", "1", *CPU)
REPORT = ("--out", "new")
SETS = ("folder:train", "folder:holdout", "folder:test")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", SETS[0], "trained", *SMALL),
    "train --condition tokens": ("train", SETS[0], "trained", "--condition", "tokens", *SMALL),
    "train --method cold": ("train", SETS[0], "trained", "--method", "cold", *SMALL),
    "train --method upsample": (
        *("train", SETS[0], "trained", "--method", "upsample", "--low-size", "4", *SMALL),
    ),
    "train --method hardness": (
        *("train", SETS[0], "trained", "--method", "hardness", "--base", "run", *TUNE),
        *("--num-synthetic", "8"),
    ),
    "train --method finetune": (
        *("train", SETS[0], "trained", "--method", "finetune", "--base", "run", *TUNE),
        *("--snapshots", "1,2"),
    ),
    "train --method distill": (
        *("train", SETS[0], "trained", "--method", "distill", "--base", "run", *TUNE),
        *("--evaluations", "2", "--teacher-steps", "2"),
    ),
    "train --lora-rank": (
        *("train", SETS[0], "trained", "--method", "finetune", "--base", "run", *TUNE),
        *("--lora-rank", "1"),
    ),
    "train --canaries": ("train", SETS[0], "trained", "--canaries", "1", *SMALL),
    "demo": ("demo", "--out", "shown"),
    "cascade": ("cascade", "joined", "small", "stage"),
    "generate": ("generate", "run", "new.h5", "--per-class", "40", "--batch-size", "8", *DRAW),
    "generate --encoding": (
        *("generate", "run", "new.h5", "--per-class", "40", "--batch-size", "8", *DRAW),
        *("--encoding", "webp"),
    ),
    "generate --shard": (
        *("generate", "run", "new.h5", "--per-class", "40", "--batch-size", "8", *DRAW),
        *("--shard", "1/2"),
    ),
    "invert": (
        *("invert", "tokens", SETS[1], "inverted", "--updates", "3", "--block-size", "8"),
        *("--checkpoint-seconds", "0", *FLOAT),
    ),
    "split": ("split", SETS[0], "parts"),
    "audit": ("audit", "c.h5", SETS[0], "--holdout", SETS[1], *REPORT),
    "select": (
        *("select", "c.h5", "--real", SETS[0], "--rules", "label,distinct", "--keep", "1"),
        *("--steps", "2", "--features", "pixels:2", *FLOAT, *REPORT),
    ),
    "improve": (
        *("improve", SETS[0], "improved", "--cache", "c.h5", "--validation", SETS[1]),
        *("--test", SETS[2], "--shares", "0.5", "--targets", "random", "--augmentations", "mixup"),
        *("--rounds", "1", "--screening-seeds", "2", "--final-seeds", "2", "--steps", "2", *CPU),
    ),
    "improve generator": (
        *("improve", SETS[0], "improved", "--validation", SETS[1], "--test", SETS[2]),
        *("--shares", "0.5", "--targets", "difficult,selected", "--augmentations", "affine"),
        *("--rounds", "2", "--screening-seeds", "2", "--final-seeds", "2", "--steps", "2"),
        *("--generator-steps", "3", "--width", "8", *FLOAT),
    ),
    "evaluate": ("evaluate", SETS[0], "c.h5", SETS[2], "--batch-size", "8", *ONCE, *REPORT),
    "evaluate canaries": ("evaluate", "canaries", SETS[2], "marked", *REPORT),
    "evaluate labels": (
        *("evaluate", "labels", "c.h5", SETS[0], "--percentile", "50", *ONCE, *REPORT),
    ),
    "evaluate membership": (
        *("evaluate", "membership", "run", SETS[0], SETS[1], "--random-split", "--levels", "2"),
        *(*FLOAT, *REPORT),
    ),
    "evaluate quality": (
        *("evaluate", "quality", "c.h5", SETS[0], "--features", "pixels:2", "--force"),
        *("--holdout", SETS[1], *REPORT),
    ),
    "evaluate density": (
        *("evaluate", "density", "c.h5", SETS[0], "--features", "pixels:2"),
        *("--holdout", SETS[1], *REPORT),
    ),
    "sweep": (
        *("sweep", "run", SETS[0], "--validation", SETS[1], "--guidance-scale", "1.0"),
        *("--guidance", "1.5", "--per-class", "3", "--features", "pixels:2", "--force"),
        *("--num-inference-steps", "2", *ONCE, *REPORT),
    ),
    "cache merge": ("cache", "merge", "new.h5", "c.h5"),
    "cache merge --encoding": ("cache", "merge", "new.h5", "c.h5", "--encoding", "jpeg:90"),
    "cache export": ("cache", "export", "c.h5", "new", "--format", "folder"),
    "cache export webdataset": ("cache", "export", "png.h5", "new", "--format", "webdataset"),
    "cache export huggingface": ("cache", "export", "png.h5", "new", "--format", "huggingface"),
    "cache export hdf5": ("cache", "export", "png.h5", "copy.h5", "--format", "hdf5"),
    "cache export --certificates": (
        *("cache", "export", "c.h5", "new", "--format", "folder"),
        *("--certificates", "chain.pem", "--private-key", "key.pem"),
    ),
    "cache import": ("cache", "import", SETS[0], "new.h5"),
    "cache import --encoding": ("cache", "import", SETS[0], "new.h5", "--encoding", "png"),
    "cache forget": ("cache", "forget", SETS[0], "variants.h5", "png.h5", "exported"),
}
"""Every command that writes, as it is called in a world."""
DEMO: Mapping[str, Any] = {
    "holdout_per_class": 5,
    "training_steps": 4,
    "width": 8,
    "updates": 1,
    "synthetic_per_class": 3,
    "num_inference_steps": 2,
    "classifier_steps": 4,
    "seeds": 2,
}
"""Settings of a demo that is over in seconds; the command has no options for them."""
CHEAP = ("split", "cache merge", "cache export", "cache import", "cache forget")
"""Commands that need no model."""
SAYS_SO = "exists already"
"""What a command says that has done its work already and may not do it again."""


@dataclass
class Kills:
    """What came of the trials of a command."""

    trials: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


def world(folder: Path, *, models: bool = True) -> Path:
    """Makes the files that commands start from."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("holdout", 8), ("test", 8)):
        for label, name in enumerate(("cat", "dog", "emu")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (8, 8), np.uint8)
                image[2 * label : 2 * label + 3] += 120
                Image.fromarray(image).save(folder / split / name / f"{i}.png")
    start = [
        ("cache", "import", SETS[0], "c.h5"),
        ("cache", "import", SETS[0], "variants.h5"),
        ("cache", "import", SETS[0], "png.h5", "--encoding", "png"),
        ("cache", "export", "variants.h5", "exported", "--format", "folder"),
    ]
    if models:
        if importlib.util.find_spec("c2pa"):  # an extra
            from tests.certificates import write_certificates

            write_certificates(folder)
        import_all()
        start += [
            ("train", SETS[0], "run", *SMALL),
            ("train", SETS[0], "tokens", "--condition", "tokens", *SMALL),
            ("train", SETS[0], "marked", "--canaries", "1", *SMALL),
            ("train", SETS[0], "small", "--image-size", "4", *SMALL),
            ("train", SETS[0], "stage", "--method", "upsample", "--low-size", "4", *SMALL),
            ("generate", "run", "drawn.h5", "--per-class", "6", *DRAW),
        ]
    for words in start:
        code, shown = _ended(folder, _started(folder, words))
        assert code == 0, shown
    if models:
        (folder / "drawn.h5").replace(folder / "c.h5")
    return folder


def import_all() -> None:
    """What commands import when they need it: in processes that are forked off it is there, so
    kills fall on their work."""
    import accelerate  # noqa: F401
    import diffusers.training_utils  # noqa: F401
    import transformers  # noqa: F401

    import synthaug

    for name in synthaug.__all__:
        if name != "albumentations":  # an extra
            getattr(synthaug, name)


def trials(base: Path, folder: Path, name: str, seeds: range, *, most: int = 3) -> Kills:
    """Kills a command up to `most` times per seed, then lets it end, and compares."""
    words, kills = COMMANDS[name], Kills()
    expected = _uninterrupted(base, folder, words)
    for seed in seeds:
        rng, place = np.random.default_rng(seed), folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base, place)
        kills.trials += 1
        faults: list[str] = []
        saved: dict[str, int] = {}
        for _ in range(int(rng.integers(1, most + 1))):
            change = int(rng.integers(1, expected.changes + 1)) if rng.random() < 0.5 else 0
            child = _started(place, words, kill_at=change)
            child.join(60 + 10 * expected.seconds if change else rng.uniform(0, expected.seconds))
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.join()
            kills.kills += child.exitcode == -signal.SIGKILL
            faults += broken(place)
            saved, before = progress(place), saved
            faults += [
                f"{x}: {n} in place of {before[x]}"
                for x, n in saved.items()
                if n < before.get(x, 0)
            ]
        code, shown = _ended(place, _started(place, words))
        left = fingerprint(place)
        different = sorted(
            x for x in {*left, *expected.left} if left.get(x) != expected.left.get(x)
        )
        if different or (code != expected.code and SAYS_SO not in shown):
            faults.append(
                f"exit code {code} in place of {expected.code}, other files: {different[:5]}: "
                f"{shown[-300:]}"
            )
        kills.faults += [f"{name}, seed {seed}: {fault}" for fault in faults]
    return kills


@dataclass(frozen=True)
class Uninterrupted:
    """A run without a kill."""

    left: dict[str, str]
    """A digest of every file."""
    code: int
    seconds: float
    changes: int
    """How many changes it made to the file system."""


@cache
def _uninterrupted(base: Path, folder: Path, words: tuple[str, ...]) -> Uninterrupted:
    place, changes = folder / "place", RawValue("q", 0)  # reports and checkpoints name it
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    began = time.monotonic()
    code, shown = _ended(place, _started(place, words, changes=changes))
    seconds = time.monotonic() - began
    assert code in (0, 1, 3), shown
    return Uninterrupted(fingerprint(place), code, seconds, changes.value)


def _started(place: Path, words: tuple[str, ...], **how: Any) -> Any:
    child = FORK.Process(target=_command, args=(place, words), kwargs=how)
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


def _command(place: Path, words: tuple[str, ...], *, kill_at: int = 0, changes: Any = None) -> None:
    os.setsid()  # whatever it starts is killed with it
    os.chdir(place)
    if words[0] in ("demo", "improve"):  # what they audit is not what is asked here
        patch = pytest.MonkeyPatch()
        shorten(patch)
        measure_no_audit(patch)
        patch.setattr("synthaug._demo.DemoSettings", partial(DemoSettings, **DEMO))
    code = 99
    _count_changes(RawValue("q", 0) if changes is None else changes, kill_at)
    try:
        outcome = run(*words)
        code, text = outcome.code, outcome.out + outcome.err
    except BaseException:
        text = traceback.format_exc()
    (place.parent / f"{place.name}.shown").write_text(text)
    os._exit(code)


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")


def _count_changes(changes: Any, kill_at: int) -> None:
    """Counts the changes to the file system that Python makes from now on in this process, and
    kills all that it started before the one of number `kill_at`."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if written or event in _CHANGES:
            changes.value += 1
            if changes.value == kill_at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(look)


def progress(place: Path) -> dict[str, int]:
    """What is done by now: rows of caches, steps of trainings, updates of embeddings."""
    done = {}
    for path in place.rglob("*.h5"):
        if path.name[0] != ".":
            done[path.name] = int(SynthCache(path).done.sum())
    for name in ("checkpoint", "checkpoint-previous"):
        for path in place.glob(f"*/{name}/state.json"):
            step = int(json.loads(path.read_text())["step"])
            done[path.parts[-3]] = max(step, done.get(path.parts[-3], 0))
    for path in place.glob("*/embeddings/*.safetensors"):
        done[path.name] = 1
    return done


def broken(place: Path) -> list[str]:
    """What is there under its own name and cannot be used."""
    faults = []
    for path in _kept(place):
        if any(part[0] == "." for part in path.relative_to(place).parts):
            continue  # begun by what was killed
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
    """All files but locks, which a kill leaves behind and which are in nobody's way."""
    return sorted(p for p in place.rglob("*") if p.is_file() and p.suffix != ".lock")


def _digest(path: Path) -> str:
    if path.suffix == ".html" or path.name == "cost.json":  # times
        return "there"
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps(_timeless(lines), sort_keys=True)
    if path.suffix == ".h5":
        cache = SynthCache(path)
        done = np.flatnonzero(cache.done)
        data = cache.state.tobytes() + cache.read(done).numpy().tobytes() if len(done) else b""
        return hashlib.sha256(cache.plan_digest.encode() + data).hexdigest()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)
    data = path.read_bytes()
    if path.suffix == ".png" and b"caBX" in data:  # a signature has a time and a random number
        with Image.open(path) as image:
            data = image.tobytes()
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("digests", "created", "updates_per_second")
        return {k: _timeless(v) for k, v in value.items() if "second" not in k and k not in timed}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
