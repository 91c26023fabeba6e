"""Maps class names to rows of a network's table of labels."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthaug._printable import printable_line, shortened
from synthaug.errors import CheckpointError


def rows_of_classes(
    path: Path, id2label: Mapping[str, str] | None, names: Sequence[str], count: int
) -> list[int]:
    """The row of each class in the table of a checkpoint that was not trained by us.

    By name where the checkpoint names its classes (`id2label`), as "goldfinch" is one of
    "goldfinch, Carduelis carduelis"; else by position, which needs a name for every class.

    Args:
        path: The checkpoint, for error messages.
        id2label: Names of the rows in `model_index.json`.
        names: Class names.
        count: Classes that the network knows, the null class not counted.

    Raises:
        ValueError: For a name that the checkpoint does not know, or knows twice; for more or fewer
            names than classes.
        CheckpointError: If `id2label` is not a table of `count` names.
    """
    if id2label is None:
        if len(names) != count:
            raise ValueError(
                f"The network in {path} knows {count:,} classes, but `classes` has {len(names):,} "
                "names, and the checkpoint does not say which is which. Name all of them in the "
                "order of its labels. If the last one is the null class of classifier-free "
                "guidance, leave out its name and pass `null_class=True` (`--null-class`)."
            )
        return list(range(count))
    labels = _label_names(path, id2label, count)
    wanted = [_plain(name) for name in names]
    if len(names) == count and all(map(_is_one_of, wanted, labels)):
        return list(range(count))  # which also tells classes of one name apart
    rows = []
    for name, plain in zip(names, wanted, strict=True):
        there = [row for row, label in enumerate(labels) if _is_one_of(plain, label)]
        if len(there) == 1:
            rows += there
            continue
        place = f"`id2label` in {path / 'model_index.json'}"
        if there:
            entries = " and ".join(f"{row}: {', '.join(labels[row])}" for row in there)
            fault = f"is the name of several classes ({entries}). Take another of their names from"
        else:
            known = {word: None for label in labels for word in label}
            near = get_close_matches(plain, known, n=3)
            hint = f" Close names are {', '.join(near)}." if near else ""
            fault = f"is no class of the checkpoint.{hint} All names are in"
        raise ValueError(f"{printable_line(name)!r} in `classes` {fault} {place}.")
    return rows


def _label_names(path: Path, table: Any, count: int) -> list[tuple[str, ...]]:
    """The names of every class, in plain spelling."""
    try:
        by_row = {int(row): str(label) for row, label in table.items()}
        labels = [by_row[row] for row in range(count)]
    except (AttributeError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"`id2label` in {path / 'model_index.json'} does not name the {count:,} classes of the "
            f"network ({shortened(error)}). Copy the checkpoint again."
        ) from error
    return [tuple(_plain(word) for word in label.split(",")) for label in labels]


def _is_one_of(name: str, label: tuple[str, ...]) -> bool:
    return name in label or name == ", ".join(label)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def label_embeddings(network: nn.Module) -> list[Any]:
    """The tables of labels of a DiT, which has one in every block."""
    from diffusers.models.embeddings import LabelEmbedding

    return [module for module in network.modules() if isinstance(module, LabelEmbedding)]


def keep_classes(network: Any, rows: Sequence[int]) -> None:
    """Leaves a DiT the classes of these rows of its tables, in this order, and its null class.

    Args:
        network: `DiTTransformer2DModel`; changed in place.
        rows: Rows of the classes to keep.
    """
    null = int(network.config.num_embeds_ada_norm)
    for part in label_embeddings(network):
        weights = part.embedding_table.weight.detach()
        chosen = torch.tensor([*rows, null], dtype=torch.int64, device=weights.device)
        part.embedding_table = nn.Embedding.from_pretrained(weights[chosen])
        part.num_classes = len(rows)
    network.register_to_config(num_embeds_ada_norm=len(rows))
