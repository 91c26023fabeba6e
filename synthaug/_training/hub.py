"""Models of the hub: only the files that will be used are fetched."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from synthaug._support.reading import parse_json, read_text
from synthaug.errors import CheckpointError

INDEX = "model_index.json"
RECORDS = (INDEX, "synthaug.json", "inversion.json")
"""What says which kind of checkpoint a directory is."""
MORE_ENCODERS = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3")
"""Parts that embed prompts beside the first ones, in models with several text encoders."""
OUR_PARTS = (
    "unet",
    "transformer",
    "vae",
    "vqvae",
    "text_encoder",
    "tokenizer",
    "scheduler",
    "low_res_scheduler",
)
"""Parts that we load ourselves: of Stable Diffusion neither the safety checker nor what else a
pipeline has beside them."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[a-zA-Z]\w*))?"
    r"(?:-\d{5}-of-\d{5})?\.safetensors"
)
_READ = (".json", ".txt", ".model", ".jinja")
"""Endings of files that are no weights: configs and tokenizers."""
_SAFE = ["*.json", "*.safetensors", "*.txt", "*.model"]


def variants(files: Iterable[str]) -> set[str | None]:
    """The variants that weight files are of, by their names; `None` stands for the plain ones."""
    matches = (_WEIGHTS.fullmatch(PurePosixPath(name).name) for name in files)
    return {match["variant"] for match in matches if match}


def needed_files(
    files: Sequence[str],
    index: Mapping[str, Any],
    *,
    variant: str | None = None,
    parts: Collection[str] | None = None,
) -> list[str]:
    """The files of a repository that a checkpoint is loaded from.

    Weights of other variants, in other formats, and whole models that lie beside the parts are left
    out. Of a part that has no weights of the variant, the plain ones are taken.

    Args:
        files: Paths of all files.
        index: Contents of `model_index.json`.
        variant: The variant of the weights, such as fp16.
        parts: The parts that are loaded; by default all that the index names.
    """
    if "synthaug.json" in files or not index:  # one of ours, of which each file is needed
        return [name for name in files if any(PurePosixPath(name).match(kind) for kind in _SAFE)]
    needed = [name for name in files if name in RECORDS]
    for part, value in index.items():
        named = isinstance(value, list) and any(value)
        if part.startswith("_") or not named or (parts is not None and part not in parts):
            continue
        inside = [name for name in files if name.startswith(f"{part}/")]
        # The networks of the oldest models lie beside the index.
        inside = inside or [name for name in files if "/" not in name]
        there = variants(inside)
        chosen = variant if variant in there else None
        for name in inside:
            weights = _WEIGHTS.fullmatch(PurePosixPath(name).name)
            if name.endswith(_READ) if weights is None else weights["variant"] == chosen:
                needed.append(name)
    return sorted({*needed})


def download(
    name: str, *, variant: str | None = None, parts: Collection[str] | None = None
) -> Path:
    """The folder of a model of the hub, with what `needed_files` names.

    Raises:
        CheckpointError: If there is none, or it cannot be reached and was not loaded before.
    """
    from huggingface_hub import HfApi

    index, patterns = download_records(name) / INDEX, _SAFE
    try:
        files = HfApi().list_repo_files(name)
    except OSError:  # without a network, what was loaded before is there
        files = []
    if files and index.exists():
        content = parse_json(read_text(index))
        patterns = needed_files(files, content, variant=variant, parts=parts)
    return _snapshot(name, patterns)


def download_records(name: str) -> Path:
    """The folder of a model of the hub, with its `RECORDS` alone; fails as `download` does."""
    return _snapshot(name, RECORDS)


def _snapshot(name: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} could not be loaded from the hub ({type(error).__name__}: {error}). Check the "
            "name, or download the checkpoint and give its path."
        ) from error
