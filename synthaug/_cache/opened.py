"""A cache file as one process has it open, and what the file says about itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from synthaug._cache.encoded_rows import open_reader
from synthaug._cache.format import ChosenRows, State, spans
from synthaug._cache.readers import Reader
from synthaug._cache.schema import CacheContents, inspect
from synthaug._cache.synthesizer import texts_of
from synthaug._plan import Plan
from synthaug._support.rows import row_numbers
from synthaug._types import Bytes, Flags, ImageShape, Labels, Unsigned
from synthaug.errors import MismatchError


class OpenedCache(Dataset[Any]):
    """One reader per process, and the facts that it reads: plan, manifest, labels, states.

    Copies in other processes (fork, spawn, pickle) read the same file, each on its own.

    Args:
        path: A cache file.

    Raises:
        CacheError: The file is missing, unreadable, no cache, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._labels: Labels | None = None
        self._reader: Reader | None = open_reader(inspect(path))
        self._digests = self._contents.plan_digest, self._contents.manifest_digest

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def _contents(self) -> CacheContents:
        return self._open().contents

    def _open(self) -> Reader:
        if self._reader is None:  # unpickled in another process
            contents = inspect(self.path)
            if (contents.plan_digest, contents.manifest_digest) != self._digests:
                raise MismatchError(
                    f"{self.path} is another cache than the one that was pickled. Open it again."
                )
            self._reader = open_reader(contents)
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_labels": None}

    @property
    def plan(self) -> Plan:
        """The plan that the cache was made for."""
        return self._contents.plan

    @property
    def plan_digest(self) -> str:
        """`plan.digest`."""
        return self._contents.plan_digest

    @property
    def manifest(self) -> dict[str, Any]:
        """How the images were made: recipe, weights, source data, classes, versions, license."""
        return self._contents.manifest

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        return self._contents.image_shape

    @property
    def encoding(self) -> str:
        """How the images are stored: "raw", "png", "webp" or "jpeg:95"."""
        return str(self._contents.encoding)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.plan.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class index of each name."""
        return {name: index for index, name in enumerate(self.classes)}

    @property
    def labels(self) -> Labels:
        """Class index of each row, int64 (N,), also of rows that are not done.

        They are read, and kept, when they are first asked for; `labels_of` reads some of them.
        """
        if self._labels is None:
            self._labels = self.plan["label"]
        return self._labels

    def labels_of(self, rows: ArrayLike | Sequence[int] | slice) -> Labels:
        """Class index of some rows, int64 (n,), also of rows that are not done. Of a cache of
        millions of rows it reads no others."""
        return self.plan.at("label", rows)

    @property
    def targets(self) -> Labels:
        """`labels`, under the name that torchvision uses."""
        return self.labels

    @property
    def state(self) -> Bytes:
        """State of each row now, uint8 (N,): 0 pending, 1 done, 2 withdrawn. A copy."""
        return self._open().column("state")

    def state_of(self, rows: ArrayLike | Sequence[int] | slice) -> Bytes:
        """State of some rows now, uint8 (n,); of few rows faster than `state`."""
        chosen = rows if isinstance(rows, slice) else row_numbers(rows, len(self), "rows")
        states: Bytes = self._open().column("state", chosen)
        return states

    def rows_in(self, state: State) -> ChosenRows:
        """The rows that are in a state now, which take a byte for each row of the cache."""
        return ChosenRows(self._mask(state))

    def counts(self) -> dict[State, int]:
        """How many rows are in each state now."""
        counts = np.zeros(len(State), np.int64)
        for span in spans(len(self)):
            counts += np.bincount(self.state_of(span), minlength=len(State))
        return {state: int(counts[state]) for state in State}

    def _mask(self, state: State) -> Flags:
        mask = np.empty(len(self), bool)
        for span in spans(len(self)):
            np.equal(self.state_of(span), state, out=mask[span])
        return mask

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """Recorded CRC-32C of each row, uint32 (N,); 0 for rows that were never written. A copy."""
        return self._open().column("checksum")

    @property
    def tombstones(self) -> Unsigned:
        """Content keys of the real images that were forgotten here, and of the images that were
        erased, uint64 (k,). Merges, imports and resumed jobs leave out what has or derives from
        them."""
        return self._open().tombstones()

    @property
    def keeps_tombstones(self) -> bool:
        """Whether the file has a place for them: not in format version 1."""
        return self._contents.tombstone_places > 0

    @property
    def writable(self) -> bool:
        """Whether its rows can be written: not in compressed copies."""
        return self._contents.plain

    @property
    def done(self) -> Flags:
        """Mask of the rows that can be read now, bool (N,)."""
        return self._mask(State.DONE)

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that an audit report must match: plan digest, weights digests, number of
        rows, and an encoding with losses.
        """
        weights = self.manifest["recipe"].get("weights", {})
        return {
            "plan_digest": self.plan_digest,
            "weights": weights,
            "rows": len(self),
            **self._losses(),
        }

    def _losses(self) -> dict[str, Any]:
        """The encoding with losses that the images went through, if they did."""
        return {name: self.manifest[name] for name in ("encoding",) if name in self.manifest}

    def provenance(self, index: int) -> dict[str, Any]:
        """Where image `index` comes from: its row of the plan, its class, and the recipe."""
        row = self.plan.row(index)
        return {
            **row,
            "class": self.classes[int(row["label"])],
            **texts_of(row, self.manifest["recipe"]),
            "state": State(int(self.state_of([index])[0])).name.lower(),
            "recipe": self.manifest["recipe"],
            "source_data": self.manifest["source"],
            "license": self.manifest["license"],
            **self._losses(),
            "synthetic": True,
        }
