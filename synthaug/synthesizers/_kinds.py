"""Which synthesizer a directory is for. Only what wraps another one needs to know."""

from pathlib import Path
from typing import Any

from synthaug import synthesizers
from synthaug._checkpoints import read_json
from synthaug._errors import CheckpointError
from synthaug.synthesizers._base import AbstractSynthesizer

KINDS = ("Cascade", "ClassConditional", "ColdDiffusion", "DiffusionInversion", "LowDensity")
"""Those that have weights."""


def kind_of(path: str | Path) -> str:
    """Name of the synthesizer that a checkpoint is for."""
    folder = Path(path).expanduser()
    if (folder / "inversion.json").exists() and read_json(folder / "inversion.json")["classes"]:
        return "DiffusionInversion"
    if (folder / "synthaug.json").exists():
        return str(read_json(folder / "synthaug.json").get("synthesizer", "ClassConditional"))
    return "ClassConditional"


def load(path: str | Path, **arguments: Any) -> AbstractSynthesizer:
    """Whatever a checkpoint is for, by `from_pretrained`.

    Raises:
        CheckpointError: If it is for something else.
    """
    name = kind_of(path)
    if name not in KINDS:
        raise CheckpointError(f"{path} is a checkpoint for {name!r}, which we do not know.")
    synthesizer: AbstractSynthesizer = getattr(synthesizers, name).from_pretrained(
        path, **arguments
    )
    return synthesizer
