"""Where commands write: looked at before anything is loaded, whose results might have no place."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthaug._cli.call import Call
from synthaug._support.files import check_folder, check_outputs
from synthaug._support.reading import check_local, is_remote

_PAGE = ("html", "json")
_REPORTS: dict[str, tuple[str, ...]] = {
    "audit": _PAGE,
    "select": _PAGE,
    "evaluate": _PAGE,
    "evaluate canaries": _PAGE,
    "evaluate density": _PAGE,
    "evaluate labels": ("json",),
    "evaluate membership": _PAGE,
    "evaluate quality": _PAGE,
    "sweep": (*_PAGE, "png"),
}
"""Endings of the files that a command writes as OUT."""
_KEEP_RUNS = ("evaluate", "sweep")
"""Commands that also keep runs in the folder OUT."""
_FOLDERS = ("demo", "improve", "split", "train", "invert", "cascade", "cache export")
_NEW = ("split", "cache export")
"""Commands whose OUT must not be there."""
_CACHES = ("generate", "cache merge", "cache import")


_PICTURED = (*_FOLDERS, "generate", "sweep")
"""Commands that write pictures, which would be read as images."""
_PLACES = ("out", "sheet", "features_dir")
"""Names of the arguments that name outputs."""


def as_meant(command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with `~` expanded in names of outputs, which shells leave in `--out=~/a`.

    The OUT of a report loses the ending of one of its files: `--out a.html` is `--out a`.
    """
    meant = {
        name: os.path.expanduser(value) if name in _PLACES and value else value
        for name, value in arguments.items()
    }
    out = meant.get("out") or ""
    suffix = Path(out).suffix
    if command in _REPORTS and suffix.removeprefix(".") in _REPORTS[command]:
        meant["out"] = out[: -len(suffix)]  # and not as a path, which would make s3:/ of s3://
    return meant


def check_places(call: Call) -> None:
    """Refuses names of outputs that cannot be written, or that would harm what is read.

    Raises:
        ValueError: Naming the place and the remedy.
    """
    arguments, command = call.arguments, call.command
    sheet, features = arguments.get("sheet"), arguments.get("features_dir")
    if "out" in arguments and not is_remote(arguments["out"]):
        files = _files(command, arguments["out"])
        _check_apart(command, arguments["out"], files, _inputs(arguments))
        check_outputs(*files)
        _check_folder(command, arguments["out"])
    elif command not in _CACHES:
        check_local(arguments.get("out", ""))
    if sheet is not None:
        check_outputs(sheet)
    if features is not None:
        check_folder(features)


def _files(command: str, out: str) -> list[str]:
    """The files that a command writes as OUT."""
    takes_files = command in _REPORTS or command in _CACHES
    if not out or (takes_files and (Path(out).name in ("", "..") or out.endswith(os.sep))):
        raise ValueError(f"`out` is {out!r}, expected a name to write to, such as results/first.")
    if not takes_files:
        return []
    if command in _REPORTS:
        return [f"{out}.{ending}" for ending in _REPORTS[command]]
    if command != "generate":
        return [out]
    picture = str(Path(out).with_suffix(".png"))  # of samples
    if picture == out:
        raise ValueError(f"{out} is the name of the picture of samples. Let a cache end in .h5.")
    return [out, picture]


def _inputs(arguments: Mapping[str, Any]) -> list[str]:
    """The names of files and of data sets, such as folder:PATH, that a command may read."""
    given = [value for name, value in arguments.items() if name not in _PLACES]
    listed = [one for value in given for one in (value if isinstance(value, list) else [value])]
    return [one for one in listed if isinstance(one, str) and one and not is_remote(one)]


def _check_apart(command: str, out: str, files: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuses outputs that replace what is read, or lie among images as if they were some."""
    real = os.path.realpath
    for one in inputs:
        kind, _, path = one.rpartition(":")
        path = real(os.path.expanduser(path))
        if os.path.isfile(path) and path in map(real, files):
            raise ValueError(f"{one} would be replaced by what is written. Choose another `out`.")
        if kind == "folder" and command in _PICTURED and Path(real(out)).is_relative_to(path):
            raise ValueError(
                f"{out} lies in {one}, where what is written would be taken for images of it. "
                "Choose another place."
            )


def _check_folder(command: str, out: str) -> None:
    if command in _NEW and os.path.lexists(out):
        raise ValueError(f"{out} exists already, and nothing is overwritten. Choose another name.")
    if command in _FOLDERS or command in _KEEP_RUNS:
        check_folder(out)
