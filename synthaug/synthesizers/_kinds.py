"""Finds the synthesizer that a checkpoint is for."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthaug._training.checkpoints import lasting_address, read_record
from synthaug._training.hub import INDEX, download_records
from synthaug._training.parts import read_index
from synthaug.errors import CheckpointError
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._families import OUR_PIPELINES
from synthaug.synthesizers._parameters import check_settings
from synthaug.synthesizers._registry import METHODS

PIPELINE = "FromPipeline"
"""What draws with a checkpoint that we have no loop of our own for."""


def kind_of(path: str | Path) -> str:
    """Name of the synthesizer that a checkpoint is for."""
    folder = _records(path)
    if read_record(folder, "inversion.json").get("classes"):
        return "DiffusionInversion"
    usual = "ClassConditional" if foreign_pipeline(path) is None else PIPELINE
    return str(read_record(folder).get("synthesizer", usual))


def foreign_pipeline(path: str | Path) -> str | None:
    """The name of the pipeline that a checkpoint is for, if we have no loop of our own for it."""
    folder = _records(path)
    if not (folder / INDEX).is_file():
        return None
    name = read_index(folder).get("_class_name")
    return None if name is None or name in OUR_PIPELINES else str(name)


def _records(path: str | Path) -> Path:
    """The folder with what says which kind of checkpoint it is; weights may be missing."""
    if isinstance(path, str) and path.startswith("hub:"):
        return download_records(path.removeprefix("hub:"))
    return Path(path).expanduser()


def origin_of(path: str | Path, classes: Sequence[str]) -> dict[str, Any]:
    """How to `load` a checkpoint again from anywhere; with prompts if it names no classes itself.

    Args:
        path: A directory, or "hub:OWNER/NAME".
        classes: Names to use as prompts.
    """
    folder, here = Path(path).expanduser(), lasting_address(path)
    if read_record(folder).get("classes") or read_record(folder, "inversion.json").get("classes"):
        return {"path": here}
    return {"path": here, "classes": list(map(str, classes))}


def load(path: str | Path, **arguments: Any) -> AbstractSynthesizer:
    """Whatever a checkpoint is for, by `from_pretrained`. One for something else is a
    CheckpointError, a setting that the synthesizer does not have a ValueError."""
    name = kind_of(path)
    if name == PIPELINE:
        from synthaug.synthesizers.pipeline import FromPipeline

        return FromPipeline.from_pretrained(path, **arguments)
    if name not in METHODS:
        raise CheckpointError(
            f"{path} is a checkpoint for {name!r}, which this version of synthaug does "
            "not know. Upgrade synthaug, or give another checkpoint."
        )
    method, kind = METHODS[name], METHODS[name].load()
    accepted = inspect.signature(kind.from_pretrained).parameters
    if not method.wraps:
        others = [name for name in arguments if name not in accepted]
        check_settings(others, method.settings, method.row_parameters)
    synthesizer: AbstractSynthesizer = kind.from_pretrained(path, **arguments)
    return synthesizer
