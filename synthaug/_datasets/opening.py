"""Caches, reports and networks that a transform is given by path.

A transform that holds paths can be written down: albumentations describes pipelines as JSON, and
replays one by making all its transforms anew. So what a path leads to is opened once per process
and shared by all that hold it now.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

from synthaug._cache import SynthCache
from synthaug._support.arguments import check_type
from synthaug._types import StrPath

# Other modules are imported where they are needed: who gives an object needs none of them.


_opened: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


@runtime_checkable
class _Opened(Protocol):
    """Interface of objects that know the path they were opened from."""

    path: StrPath


def path_of(value: Any) -> str | None:
    """The path that `value` is, or that it was opened from; `None` if it does not know."""
    if isinstance(value, _Opened):
        value = value.path
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def open_cache(value: Any) -> Any:
    """A `SynthCache`, if given by path; anything else as it is."""
    return _open("cache", value, SynthCache)


def open_report(value: Any) -> Any:
    """An `AuditReport`, if given by path; anything else as it is."""

    def load(path: str) -> Any:
        from synthaug._audit import AuditReport

        return AuditReport.from_json(path)

    return _open("report", value, load)


def open_cold(value: Any) -> Any:
    """A `ColdDiffusion` on the CPU, if given by path; anything else as it is."""

    def load(path: str) -> Any:
        from synthaug.synthesizers import ColdDiffusion

        return ColdDiffusion.from_pretrained(path, device="cpu")

    return _open("cold", value, load)


def open_one_step(value: Any) -> Any:
    """One diffuse-and-denoise step of a `ClassConditional`; one given by path is on the CPU. A
    network that needs a class is a ValueError, anything else a TypeError."""
    from synthaug._datasets.restoration import OneStep
    from synthaug.synthesizers import ClassConditional

    def load(path: str) -> Any:
        return ClassConditional.from_pretrained(path, device="cpu")

    synthesizer = _open("synthesizer", value, load)
    remedy = 'a `ClassConditional`: `synthaug.ClassConditional.from_pretrained("PATH")`'
    check_type(ClassConditional, remedy, synthesizer=synthesizer)
    return OneStep(synthesizer)


def _open(kind: str, value: Any, load: Callable[[str], Any]) -> Any:
    if not isinstance(value, str | os.PathLike):
        return value
    path = Path(value).expanduser()
    file = path.stat() if path.exists() else None  # not a name on the hub
    key = (kind, str(path.absolute()), file and (file.st_ino, file.st_mtime_ns))
    opened = _opened.get(key)
    if opened is None:
        opened = _opened[key] = load(os.fspath(path) if file else os.fspath(value))
    return opened
