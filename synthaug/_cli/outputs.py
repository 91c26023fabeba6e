"""Where commands write: looked at before anything is loaded, whose results might have no place."""

import os
from pathlib import Path

from synthaug._cli.call import Call
from synthaug._support.files import check_folder, check_outputs
from synthaug._support.reading import is_remote

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


def check_places(call: Call) -> None:
    """Refuses names of outputs that cannot be written.

    Raises:
        ValueError: Naming the place and the remedy.
    """
    arguments, command = call.arguments, call.command
    sheet, features = arguments.get("sheet"), arguments.get("features_dir")
    if "out" in arguments:
        _check_out(command, arguments["out"])
    if sheet is not None:
        check_outputs(sheet)
    if features is not None:
        check_folder(features)


def _check_out(command: str, out: str) -> None:
    check_outputs(*(f"{out}.{ending}" for ending in _REPORTS.get(command, ())))
    if command in _NEW and os.path.lexists(out):
        raise ValueError(f"{out} exists already, and nothing is overwritten. Choose another name.")
    if command in _FOLDERS or command in _KEEP_RUNS:
        check_folder(out)
    if command in _CACHES and not is_remote(out):
        check_outputs(out)
        if command == "generate":  # and a picture of samples beside it
            check_outputs(Path(out).with_suffix(".png"))
