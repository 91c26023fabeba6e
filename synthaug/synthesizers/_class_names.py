"""Holds the names of the classes that labels of a loaded network mean, and its texts of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from synthaug._printable import shortened
from synthaug._training import checkpoints
from synthaug._training.parts import embed_prompts
from synthaug.denoisers import OWN_PIPELINE, Denoiser
from synthaug.denoisers._networks import Prompted, part_beside_tokens
from synthaug.errors import CheckpointError
from synthaug.synthesizers._families import embed, family_of
from synthaug.synthesizers._labels import keep_classes, rows_of_classes

SETTINGS = "synthaug.json"
EMBEDDINGS = "class_embeddings.safetensors"


def settle_classes(
    path: Path,
    index: Mapping[str, Any],
    network: Any,
    names: tuple[str, ...],
    saved: tuple[str, ...],
    null_class: bool,
) -> None:
    """Makes label c of a network that looks labels up mean `names[c]`; no names leave it alone."""
    if saved and names != saved:
        raise ValueError(
            f"{path} was trained on the classes {', '.join(saved)}, in this order. Leave `classes` "
            "out."
        )
    if not names:
        return
    if Denoiser(network).kind == "UNet2DModel":
        rows_of_classes(path, None, names, int(network.config.num_class_embeds) - null_class)
        return
    count = int(network.config.num_embeds_ada_norm)
    rows = rows_of_classes(path, index.get("id2label"), names, count)
    if rows != list(range(count)):
        keep_classes(network, rows)


def check_names(
    path: Path, own: Mapping[str, Any], given: Sequence[str] | None, names: tuple[str, ...]
) -> None:
    """Refuses missing names and names given twice with a ValueError, those of the checkpoint itself
    with a CheckpointError."""
    if given is None and "classes" not in own:  # a model of ours may have been trained without any
        raise ValueError(
            f"{path} does not name its classes. Pass `classes`, in the order of its labels (or as "
            "prompts)."
        )
    if len(set(names)) != len(names):
        fault = f"holds a name twice: {', '.join(names)}."
        if list(names) == own.get("classes"):
            raise CheckpointError(
                f"The list of classes in {path / SETTINGS} {fault} Copy it again."
            )
        raise ValueError(f"`classes` {fault}")


def embeddings_of(
    path: Path,
    own: Mapping[str, Any],
    index: Mapping[str, Any],
    names: tuple[str, ...],
    denoiser: Denoiser,
    prompting: tuple[str, str],
) -> tuple[Tensor | Prompted | None, tuple[str, ...] | None]:
    """Reads the conditions that a network attends to, or computes them from the prompts of the
    classes.

    Returns:
        Embeddings, and the prompts that they are of; `None` for what there is not.
    """
    if (path / EMBEDDINGS).exists() or "adapts" in own:  # where there is no text encoder
        return _saved_embeddings(path, own, names, denoiser)
    if index.get("text_encoder"):
        template, negative = prompting
        prompts = (*(template.format(name.replace("_", " ")) for name in names), negative)
        if denoiser.takes_prompts:
            return _embedded(path, index, prompts, denoiser), prompts
        return embed_prompts(path, index, prompts), prompts
    if denoiser.attends:
        raise CheckpointError(
            f"The network in {path} attends to token sequences, but there is neither a text "
            f"encoder nor a {EMBEDDINGS} beside it."
        )
    return None, None


def _embedded(
    path: Path, index: Mapping[str, Any], prompts: tuple[str, ...], denoiser: Denoiser
) -> Prompted:
    """The prompts, the last of them the negative one, as the checkpoint's own pipeline embeds them;
    a CheckpointError if we do not know the pipeline."""
    family = family_of(index)
    if family is None:
        raise CheckpointError(
            f"{path} is a {shortened(index.get('_class_name'))}, and we do not know how it embeds "
            f"prompts. {OWN_PIPELINE}"
        )
    return embed(path, family, prompts[:-1], prompts[-1], denoiser.device)


def _saved_embeddings(
    path: Path, own: Mapping[str, Any], names: tuple[str, ...], denoiser: Denoiser
) -> tuple[Tensor | Prompted, tuple[str, ...] | None]:
    saved = tuple(own.get("classes", ()))
    if names != saved:
        raise ValueError(
            f"{path} holds embeddings of the classes {', '.join(saved)}, and no text encoder for "
            "others. Leave `classes` out, or load the checkpoint that they were computed from."
        )
    prompts = own.get("prompts")
    with checkpoints.reading(path / EMBEDDINGS, "Save the checkpoint again."):
        table = Prompted.from_tensors(checkpoints.load_tensors(path / EMBEDDINGS))
        others = table.others if isinstance(table, Prompted) else {}
        if denoiser.takes_prompts and (part := part_beside_tokens(denoiser.kind)) not in others:
            raise LookupError(f"it lacks the tensor prompt.{part}, which a {denoiser.kind} takes")
        for name, tensor in others.items():
            if len(tensor) != len(table):
                raise ValueError(f"prompt.{name} is of {len(tensor)} prompts, not {len(table)}")
    return table, None if prompts is None else tuple(prompts)
