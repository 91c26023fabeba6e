"""`SynthCache`: a cache file as a map-style data set, and the only writer of its rows."""

import base64
import html
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from synthaug import _pixels
from synthaug._cache import _format
from synthaug._cache._files import pread, pwrite, remove_orphans
from synthaug._cache._format import State, checksums, erased_checksum
from synthaug._cache._schema import Contents, Region, inspect
from synthaug._errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    CachePendingError,
)
from synthaug._plan import Plan
from synthaug._types import Indices, Labels, Pixels

OutputType = Literal["pil", "pt", "np"]
Fsync = Literal["never", "batch"]

_THUMBNAILS = 24
_VERIFY_BYTES = 16 * 2**20


class SynthCache(Dataset[Any]):
    """The synthetic images of one plan, in one file.

        cache = SynthCache("cifar.h5")
        image, label = cache[0]                     # a PIL image and an int, as torchvision's
        pixels = cache.read([3, 1, 2])              # uint8 (3, C, H, W) in one gather
        loader = DataLoader(Subset(cache, np.flatnonzero(cache.done)), batch_size=128)

    Row `i` of the cache is row `i` of its plan. Row order, labels and plan never change; rows
    become done as they are written, and may be withdrawn. An image is checked against its checksum
    when this process first serves it.

    Copies in other processes (fork, spawn, pickle) read the same file through mappings of their
    own.

    Args:
        path: A cache file.
        transform: Applied to the image.
        target_transform: Applied to the label.
        output_type: What `cache[i]` returns as image: "pil" a PIL image of mode L or RGB, "pt" a
            uint8 tensor (C, H, W), "np" a uint8 array (H, W, C).
        check_rows: Compare a row with its checksum on first serve. `False` leaves that to `verify`.

    Raises:
        CacheFormatError: The file is not a cache, or has a structure that could do harm.
        CacheCorruptError: The plan, the manifest or the states are damaged.
        CacheError: The file is missing or unreadable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        output_type: OutputType = "pil",
        check_rows: bool = True,
    ) -> None:
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f"`output_type` must be 'pil', 'pt' or 'np', got {output_type!r}.")
        self.path = Path(path).absolute()
        self.transform = transform
        self.target_transform = target_transform
        self.output_type = output_type
        self.check_rows = check_rows
        self._mapped: _Mapped | None = _Mapped(inspect(self.path))
        self._digests = self._contents.plan_digest, self._contents.manifest_digest

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        plan: Plan,
        *,
        image_shape: Sequence[int],
        manifest: Mapping[str, Any],
    ) -> "SynthCache":
        """Lays out a new cache with every row of `plan` pending, and opens it.

        The whole file is reserved on the disk, and appears at `path` only when it is complete.

        Args:
            path: A file that does not exist yet.
            plan: One row per image.
            image_shape: (C, H, W); C is 1 or 3.
            manifest: JSON. "recipe" is the synthesizer's recipe with its "weights", "source"
                describes the real data, "licence" holds those of "generator" and "source". Classes,
                settings, value range and library versions are added.

        Raises:
            ValueError: An argument cannot be stored.
            CacheError: `path` exists, its folder does not, or the disk cannot hold the file.
        """
        shape = tuple(int(side) for side in image_shape)
        _format.create(Path(path).absolute(), plan, image_shape=shape, manifest=manifest)
        return cls(path)

    @classmethod
    def open_for_writing(
        cls,
        path: str | os.PathLike[str],
        plan: Plan,
        *,
        image_shape: Sequence[int],
        manifest: Mapping[str, Any],
    ) -> "SynthCache":
        """Opens a cache to continue it, or creates it; arguments as `create`.

        Raises:
            CacheMismatchError: The file belongs to another plan, recipe, source data or image
                shape. Lists every difference with both values. Library versions may differ.
            CacheError: As `create` and `SynthCache`.
        """
        target = Path(path).absolute()
        if not target.exists():
            return cls.create(path, plan, image_shape=image_shape, manifest=manifest)
        remove_orphans(target)
        cache = cls(path)
        given = _format.complete_manifest(plan, manifest)
        differences = {
            **_differences("", _binding(cache.manifest), _binding(given)),
            **_plan_differences(cache.plan, plan),
            **_differences(
                "", {"image_shape": cache.image_shape}, {"image_shape": tuple(image_shape)}
            ),
        }
        if differences or cache.plan_digest != plan.digest:
            lines = [f"  {k}: {a} in the file, {b} given" for k, (a, b) in differences.items()]
            raise CacheMismatchError(
                f"{path} was made for something else:\n" + "\n".join(lines) + "\n"
                "Write to another file, or delete this one to start over."
            )
        cache._finish_withdrawals()
        return cache

    # Reading

    def __len__(self) -> int:
        return len(self.plan)

    def read(self, indices: ArrayLike | torch.Tensor | Sequence[int]) -> Pixels:
        """Gathers rows in one indexing call.

        Args:
            indices: Row numbers, in any order, possibly repeated; negative ones count from the end.

        Returns:
            uint8 (len(indices), C, H, W), a copy that you may change.

        Raises:
            IndexError: A row number is out of range.
            CachePendingError: A row has not been generated yet, or was withdrawn.
            CacheCorruptError: A row's bytes are not those that were written.
        """
        return torch.from_numpy(self._gather(_row_numbers(indices)))

    def _gather(self, rows: Indices) -> NDArray[np.uint8]:
        mapped = self._open()
        # Counting bytes is several times faster than comparing and reducing so few elements.
        if mapped.served.take(rows).tobytes().count(1) != len(rows):
            self._first_serve(mapped, rows)
        pixels = mapped.images.take(rows, axis=0)
        # States come last: a row that was withdrawn meanwhile was marked before it was zeroed.
        if mapped.state.take(rows).tobytes().count(State.DONE) != len(rows):
            raise self._not_done(rows)
        return pixels

    def _first_serve(self, mapped: "_Mapped", rows: Indices) -> None:
        """Checks rows that this process has not served yet."""
        rows = np.unique(rows % len(self))
        rows = rows[mapped.served[rows] == 0]
        if (mapped.state[rows] != State.DONE).any():
            raise self._not_done(rows)
        if self.check_rows:
            bad = rows[checksums(mapped.images[rows]) != mapped.checksum[rows]]
            if len(bad):
                raise CacheCorruptError(
                    f"{self.path}: the pixels of {_listed(bad)} are not those that were written. "
                    "Restore the file from a copy; or call `cache.invalidate(cache.verify())`, and "
                    "generate again to redraw just these rows."
                )
        mapped.served[rows] = 1

    def _not_done(self, rows: Indices) -> CachePendingError:
        state = self.state
        rows = np.unique(rows[state[rows] != State.DONE] % len(self))
        withdrawn = rows[state[rows] == State.WITHDRAWN]
        which, what = (withdrawn, "withdrawn") if len(withdrawn) else (rows, "not generated yet")
        return CachePendingError(
            f"{self.path}: {_listed(which)} {'was' if len(which) == 1 else 'were'} {what}. Use "
            "only rows where `cache.done` is true"
            + (", or generate again to fill the cache." if what != "withdrawn" else ".")
        )

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Several items with one read: what a `DataLoader` calls for a batch."""
        rows = _row_numbers(indices)
        pixels = self._gather(rows)
        images: Any
        if self.output_type == "np":
            images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # NCHW => NHWC
        else:
            images = torch.from_numpy(pixels).unbind(0)
            if self.output_type == "pil":
                images = map(_pixels.to_pil, images)
        if self.transform is not None:
            images = map(self.transform, images)
        labels = self.labels[rows].tolist()
        if self.target_transform is not None:
            labels = map(self.target_transform, labels)
        return list(zip(images, labels, strict=True))

    # What the file says about itself

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
        """How the images were made: recipe, weights, source data, classes, versions, licence."""
        return self._contents.manifest

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._contents.image_shape

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
        """Class index of each row, int64 (N,), also of rows that are not done."""
        return self.plan["label"]

    @property
    def targets(self) -> Labels:
        """`labels`, under the name that torchvision uses."""
        return self.labels

    @property
    def state(self) -> NDArray[np.uint8]:
        """State of each row now, uint8 (N,): 0 pending, 1 done, 2 withdrawn. A copy."""
        return np.array(self._open().state)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which rows can be read now, bool (N,)."""
        return self._open().state == State.DONE

    @property
    def identity(self) -> dict[str, Any]:
        """What an audit report must match: plan digest, weights digests, number of rows."""
        weights = self.manifest["recipe"].get("weights", {})
        return {"plan_digest": self.plan_digest, "weights": weights, "rows": len(self)}

    def provenance(self, index: int) -> dict[str, Any]:
        """Where image `index` comes from: its row of the plan, its class, and the recipe."""
        row = self.plan.row(index)
        return {
            **row,
            "class": self.classes[int(row["label"])],
            "state": State(int(self._open().state[index])).name.lower(),
            "recipe": self.manifest["recipe"],
            "source_data": self.manifest["source"],
            "licence": self.manifest["licence"],
            "synthetic": True,
        }

    def verify(self) -> Indices:
        """Reads every row, and returns those whose bytes are wrong, int64, ascending.

        These are done rows that do not match their checksum, and withdrawn rows that were not
        erased to the last byte.

        Raises:
            CacheError: The file cannot be read to its end.
        """
        mapped = self._open()
        region = self._contents.regions["images"]
        erased = erased_checksum(self.image_shape)
        state, recorded = self.state, np.array(mapped.checksum)
        expected = np.where(state == State.WITHDRAWN, np.uint32(erased), recorded)
        step = max(1, _VERIFY_BYTES // region.row_bytes)
        bad = []
        with self._descriptor(os.O_RDONLY) as fd:
            for start in range(0, len(self), step):
                rows = np.arange(start, min(start + step, len(self)))
                # Not through the mapping: there, an unreadable medium would be a signal.
                offset = region.offset + start * region.row_bytes
                data = pread(fd, len(rows) * region.row_bytes, offset)
                images = np.frombuffer(data, np.uint8).reshape(len(rows), -1)
                wrong = checksums(images) != expected[rows]
                wrong |= (state[rows] == State.WITHDRAWN) & (recorded[rows] != erased)
                bad.append(rows[wrong & (state[rows] != State.PENDING)])
        found = np.concatenate(bad)
        return found[self.state[found] == state[found]]  # others changed while we were reading

    # Writing

    def write(
        self, rows: ArrayLike | Sequence[int], pixels: Pixels, *, fsync: Fsync = "batch"
    ) -> None:
        """Writes images in place, and marks their rows as done.

        Image first, checksum next, state last: a kill at any instant leaves each row either done
        and intact, or pending. Several processes on one host may write different rows at once. A
        row that is done already becomes pending, and then done with the new image.

        Args:
            rows: Row numbers, each at most once.
            pixels: uint8 (len(rows), C, H, W).
            fsync: "batch" orders the steps on the disk too, so that a row is also intact after a
                power failure. "never" leaves that to the system, and the checksums to find out.

        Raises:
            ValueError: Wrong shape, dtype or row numbers, or a row was withdrawn.
            CacheError: The system refused to write. Rows not yet complete stay pending.
        """
        numbers = self._to_write(rows)
        expected = (len(numbers), *self.image_shape)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != expected:
            raise ValueError(
                f"`pixels` is {pixels.dtype} {tuple(pixels.shape)}, expected torch.uint8 "
                f"{expected}."
            )
        if fsync not in ("never", "batch"):
            raise ValueError(f"`fsync` must be 'never' or 'batch', got {fsync!r}.")
        mapped = self._open()
        withdrawn = numbers[mapped.state[numbers] == State.WITHDRAWN]
        if len(withdrawn):
            raise ValueError(f"{self.path}: {_listed(withdrawn)} cannot be written: withdrawn.")
        order = np.argsort(numbers)
        numbers, images = numbers[order], pixels.detach().cpu().numpy()[order]
        with self._descriptor(os.O_RDWR) as fd:
            again = numbers[mapped.state[numbers] == State.DONE]
            mapped.served[again] = 0
            self._put(fd, "state", again, State.PENDING, fsync=fsync)
            self._put(fd, "images", numbers, images)
            self._put(fd, "checksum", numbers, checksums(images), fsync=fsync)
            self._put(fd, "state", numbers, State.DONE, fsync=fsync)

    def invalidate(self, rows: ArrayLike | Sequence[int]) -> None:
        """Makes done rows pending again, so that they are drawn anew; others stay as they are."""
        numbers = np.sort(self._to_write(rows))
        mapped = self._open()
        numbers = numbers[mapped.state[numbers] == State.DONE]
        mapped.served[numbers] = 0
        with self._descriptor(os.O_RDWR) as fd:
            self._put(fd, "state", numbers, State.PENDING, fsync="batch")

    def withdraw(self, rows: ArrayLike | Sequence[int]) -> None:
        """Takes rows back for good: never served again, pixels zeroed, not drawn by a resumed job.

        State first, then pixels, and last, as proof of the erasure, the checksum of zeros. After a
        kill in between no reader gets the image, `verify` names the row, and calling this again, or
        opening the cache for writing, completes the erasure.

        Raises:
            CacheError: The system refused to write.
        """
        numbers = np.sort(self._to_write(rows))
        self._open().served[numbers] = 0
        zeros = np.zeros((len(numbers), *self.image_shape), np.uint8)  # untouched, so no memory yet
        with self._descriptor(os.O_RDWR) as fd:
            self._put(fd, "state", numbers, State.WITHDRAWN, fsync="batch")
            self._put(fd, "images", numbers, zeros, fsync="batch")
            self._put(fd, "checksum", numbers, erased_checksum(self.image_shape), fsync="batch")

    def _finish_withdrawals(self) -> None:
        mapped = self._open()
        erased = mapped.checksum == erased_checksum(self.image_shape)
        unfinished = np.flatnonzero((mapped.state == State.WITHDRAWN) & ~erased)
        if len(unfinished):
            self.withdraw(unfinished)

    def _to_write(self, rows: ArrayLike | Sequence[int]) -> Indices:
        numbers = _row_numbers(rows)
        outside = numbers[(numbers < 0) | (numbers >= len(self))]
        if len(outside):
            raise ValueError(f"Row {outside[0]} does not exist; the cache has {len(self):,} rows.")
        if len(np.unique(numbers)) != len(numbers):
            raise ValueError("`rows` names a row more than once.")
        return numbers

    def _put(
        self,
        fd: int,
        name: str,
        rows: Indices,
        values: NDArray[Any] | int,
        *,
        fsync: Fsync = "never",
    ) -> None:
        """Writes `values` at ascending `rows` of one data set: one call per run of neighbours."""
        region = self._contents.regions[name]
        if not len(rows):
            return
        if isinstance(values, int):
            values = np.full(len(rows), values, region.dtype)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for start, stop in pairwise([0, *ends.tolist(), len(rows)]):
            block = np.ascontiguousarray(values[start:stop], region.dtype).view(np.uint8)
            pwrite(fd, block.data, region.offset + int(rows[start]) * region.row_bytes)
        if fsync == "batch":
            os.fsync(fd)

    @contextmanager
    def _descriptor(self, flags: int) -> Iterator[int]:
        """The open file, for one call. System errors inside become a `CacheError`."""
        doing = "read" if flags == os.O_RDONLY else "write"
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC)
            try:
                info = os.fstat(fd)
                if (info.st_dev, info.st_ino) != self._contents.file_id:
                    raise CacheMismatchError(f"{self.path} was replaced since. Open it again.")
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise CacheError(
                f"Cannot {doing} {self.path}: {error.strerror}. Every row is either done and "
                "intact or still pending: repair the cause, then run again to continue."
            ) from error

    # One mapping per process

    @property
    def _contents(self) -> Contents:
        return self._open().contents

    def _open(self) -> "_Mapped":
        # A forked process goes on with its parent's mapping: unlike an HDF5 handle it has no state
        # that two processes could disturb. An unpickled copy opens the file anew.
        if self._mapped is None:
            mapped = _Mapped(inspect(self.path))
            if (mapped.contents.plan_digest, mapped.contents.manifest_digest) != self._digests:
                raise CacheMismatchError(
                    f"{self.path} is another cache than the one that was pickled. Open it again."
                )
            self._mapped = mapped
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    # Display

    def _counts(self) -> str:
        counts = np.bincount(self._open().state, minlength=len(State))
        return ", ".join(f"{counts[s]:,} {s.name.lower()}" for s in (1, 0, 2) for s in [State(s)])

    def __repr__(self) -> str:
        c, h, w = self.image_shape
        lines = [
            "Dataset SynthCache",
            f"    Number of datapoints: {len(self)}",
            f"    Rows: {self._counts()}",
            f"    Classes: {len(self.classes)}",
            f"    Images: {c} x {h} x {w}, synthetic",
            f"    Location: {self.path}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: the text, and up to 24 images spread over the cache."""
        done = np.flatnonzero(self.done)
        rows = done[np.linspace(0, len(done) - 1, min(_THUMBNAILS, len(done))).astype(np.int64)]
        figures = []
        for row, image in zip(rows.tolist(), self.read(rows), strict=True):
            buffer = io.BytesIO()
            _pixels.to_pil(image).save(buffer, format="PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            title = html.escape(f"{row}: {self.classes[int(self.labels[row])]}", quote=True)
            figures.append(
                f'<img src="data:image/png;base64,{data}" title="{title}" alt="{title}" '
                'style="width:64px;margin:1px;image-rendering:pixelated">'
            )
        return f"<pre>{html.escape(repr(self))}</pre><div>{''.join(figures)}</div>"


class _Mapped:
    """A file's rows as arrays; nothing is read before it is indexed."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        with contents.path.open("rb") as file:
            info = os.fstat(file.fileno())
            if (info.st_dev, info.st_ino) != contents.file_id:
                raise CacheMismatchError(f"{contents.path} was replaced just now. Open it again.")
            self.images, self.state, self.checksum = (
                _map(file, contents.regions[name]) for name in ("images", "state", "checksum")
            )
        self.served = np.zeros(len(self.state), np.uint8)
        """1 for rows whose pixels this process has checked."""


def _map(file: BinaryIO, region: Region) -> NDArray[Any]:
    # A plain array: `memmap` itself costs time on every index.
    return np.asarray(np.memmap(file, region.dtype, "r", region.offset, region.shape))


def _binding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of a manifest decides the images; the rest may change between two runs of a job."""
    source = manifest["source"]
    if isinstance(source, Mapping) and "fingerprint" in source:  # a folder may be moved
        source = {"fingerprint": source["fingerprint"]}
    return {**{k: manifest[k] for k in ("recipe", "classes", "settings")}, "source": source}


def _plan_differences(stored: Plan, given: Plan) -> dict[str, tuple[str, str]]:
    """Where two plans differ, by column."""
    if len(stored) != len(given):
        return {"plan rows": (f"{len(stored):,}", f"{len(given):,}")}
    found = {}
    for name in sorted({*stored.columns, *given.columns}):
        if name not in stored.columns or name not in given.columns:
            has = name in stored.columns
            found[f"plan column {name}"] = ("present", "absent") if has else ("absent", "present")
            continue
        rows = np.flatnonzero(stored[name] != given[name])
        if len(rows):
            where = f"plan column {name}, {_listed(rows)}"
            found[where] = (f"{stored[name][rows[0]]}", f"{given[name][rows[0]]}")
    return found


def _differences(prefix: str, stored: Any, given: Any) -> dict[str, tuple[str, str]]:
    """The leaves in which two JSON values differ, by their path."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        found: dict[str, tuple[str, str]] = {}
        for key in sorted({**stored, **given}):
            path = f"{prefix}.{key}" if prefix else key
            found |= _differences(path, stored.get(key, _ABSENT), given.get(key, _ABSENT))
        return found
    return {} if stored == given else {prefix: (_shown(stored), _shown(given))}


_ABSENT = object()


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _row_numbers(indices: Any) -> Indices:
    """Row numbers as int64 (n,)."""
    rows = np.asarray(indices)
    if rows.ndim != 1:
        raise TypeError(f"Row numbers must be a sequence, got shape {rows.shape}.")
    if rows.dtype.kind not in "iu":
        if len(rows):
            hint = " Use `np.flatnonzero(mask)`." if rows.dtype.kind == "b" else ""
            raise TypeError(f"Row numbers must be integers, got {rows.dtype}.{hint}")
        return np.empty(0, np.int64)
    return rows.astype(np.int64, copy=False)


def _listed(rows: Indices) -> str:
    """Names a few rows: "row 3", "rows 3, 5 and 12 more"."""
    first = ", ".join(map(str, rows[:5].tolist()))
    more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) != 1 else ''} {first}{more}"
