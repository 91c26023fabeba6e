"""Which synthesizer a checkpoint is for."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthaug._training.checkpoints import lasting_address, read_record
from synthaug.errors import CheckpointError
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._parameters import check_settings
from synthaug.synthesizers._registry import METHODS


def kind_of(path: str | Path) -> str:
    """Name of the synthesizer that a checkpoint is for."""
    folder = Path(path).expanduser()
    if read_record(folder, "inversion.json").get("classes"):
        return "DiffusionInversion"
    return str(read_record(folder).get("synthesizer", "ClassConditional"))


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
    """Whatever a checkpoint is for, by `from_pretrained`.

    Raises:
        CheckpointError: If it is for something else.
        ValueError: For a setting that the synthesizer does not have.
    """
    name = kind_of(path)
    if name not in METHODS:
        raise CheckpointError(f"{path} is a checkpoint for {name!r}, which we do not know.")
    method, kind = METHODS[name], METHODS[name].load()
    accepted = inspect.signature(kind.from_pretrained).parameters
    if not method.wraps:
        others = [name for name in arguments if name not in accepted]
        check_settings(others, method.settings, method.row_parameters)
    synthesizer: AbstractSynthesizer = kind.from_pretrained(path, **arguments)
    return synthesizer
