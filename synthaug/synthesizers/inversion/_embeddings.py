"""Learned embeddings: one token sequence per real image, at several stages of learning.

On disk they are safetensors files, one per block of images, with the tensors `keys` (content digest
of every image), `labels`, and `updates-N` for the embeddings after N updates each. Row i of the
files in their order belongs to image i of the real data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._support.digests import tensor_digest
from synthaug._support.files import whole_file
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.checkpoints import load_tensors, reading, write_tensors
from synthaug._types import Labels
from synthaug.errors import CheckpointError

_PREFIX = "updates-"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingTable:
    """One embedding per real image and snapshot.

    Raises:
        ValueError: For parts of different lengths, or no snapshot.
    """

    classes: tuple[str, ...]
    labels: Labels
    """Class of every image, int64 (n,)."""
    keys: NDArray[np.uint64]
    """Content digest of every image, uint64 (n,)."""
    snapshots: Mapping[int, Tensor] = field(repr=False)
    """Updates that every embedding has received -> embeddings, float32 (n, k, d)."""

    def __post_init__(self) -> None:
        if not self.snapshots:
            raise ValueError("`snapshots` is empty.")
        ordered = {int(u): self.snapshots[u] for u in sorted(self.snapshots)}
        object.__setattr__(self, "snapshots", ordered)
        lengths = {len(self.labels), len(self.keys), *map(len, ordered.values())}
        if len(lengths) > 1:
            raise ValueError(f"The parts of the table have different lengths: {sorted(lengths)}.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(k, d): number and width of the tokens."""
        k, d = next(iter(self.snapshots.values())).shape[1:]
        return k, d

    @property
    def last(self) -> int:
        """Updates of the latest snapshot."""
        return max(self.snapshots)

    @cached_property
    def rms(self) -> dict[int, float]:
        """Root mean square of all elements, of every snapshot."""
        return {u: float(e.double().square().mean().sqrt()) for u, e in self.snapshots.items()}

    def mean(self, snapshot: int, rows: Any = slice(None)) -> Tensor:
        """Mean embedding of some images, float32 (k, d); of all by default."""
        return self.snapshots[snapshot][rows].double().mean(0).float()

    def of_class(self, label: int) -> NDArray[np.int64]:
        """The images of a class, ascending."""
        return np.flatnonzero(self.labels == label)

    def subset(self, rows: Any) -> "EmbeddingTable":
        """The embeddings of `real.subset(rows)`: an embedding depends on its own image only."""
        at = np.arange(len(self))[np.asarray(rows)]
        return EmbeddingTable(
            classes=self.classes,
            labels=self.labels[at],
            keys=self.keys[at],
            snapshots={u: e[torch.from_numpy(at)] for u, e in self.snapshots.items()},
        )

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits over all that images depend on."""
        tensors = {f"{_PREFIX}{u}": e for u, e in self.snapshots.items()}
        return tensor_digest({**tensors, "labels": torch.from_numpy(self.labels)})

    def save(self, folder: Path, block: int = 0) -> None:
        """Writes the table as one block, into an existing folder."""
        tensors = {f"{_PREFIX}{u}": e for u, e in self.snapshots.items()}
        tensors["keys"] = torch.from_numpy(self.keys.view(np.int64))
        tensors["labels"] = torch.from_numpy(self.labels)
        with whole_file(folder / f"{block:05d}.safetensors") as temporary:
            write_tensors(temporary, tensors)

    @classmethod
    @lasting_tensors()
    def load(cls, folder: Path, classes: Sequence[str]) -> "EmbeddingTable":
        """Reads all blocks.

        Raises:
            CheckpointError: If there is none, or one is damaged or does not fit the others.
        """
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no embeddings. Learn them again.")
        with reading(folder, "Learn them anew."):
            parts = [load_tensors(path) for path in paths]
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            return cls(
                classes=tuple(classes),
                labels=whole.pop("labels").numpy(),
                keys=whole.pop("keys").numpy().view(np.uint64),
                snapshots={int(name.removeprefix(_PREFIX)): e for name, e in whole.items()},
            )


def interpolate(a: Tensor, b: Tensor, share: Tensor, *, spherical: bool) -> Tensor:
    """From `a` (share 0) to `b` (share 1), token sequences float32 (n, k, d).

    Linear: (1 - s) a + s b, which shortens nearly orthogonal vectors to sqrt(s^2 + (1 - s)^2) of
    their length. Spherical: along the arc between the two as vectors of k d elements, which keeps
    the length; where the arc is not defined (parallel or opposite vectors) it is linear.

    Args:
        share: s, float32 (n,).
    """
    s = share.to(a).view(-1, 1, 1)
    linear = torch.lerp(a, b, s)
    if not spherical:
        return linear
    u, v = (x.double().flatten(1) for x in (a, b))
    lengths = (u.norm(dim=1) * v.norm(dim=1)).clamp(min=1e-30)
    angle = ((u * v).sum(1) / lengths).clamp(-1, 1).acos().view(-1, 1, 1)
    sine = angle.sin()
    arc = (((1 - s) * angle).sin() * a + (s * angle).sin() * b) / sine.clamp(min=1e-30)
    return torch.where(sine > 1e-6, arc.float(), linear)
