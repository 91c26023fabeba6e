"""`SynthCache`: a cache file as a map-style data set, and the only writer of its rows."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from synthaug import _pixels
from synthaug._cache import format as _format
from synthaug._cache import show as _show
from synthaug._cache.compare import (
    encoding_differences,
    listed,
    manifest_differences,
    plan_differences,
    recipe_differences,
    shape_differences,
)
from synthaug._cache.encoded_rows import Encoded, open_reader
from synthaug._cache.encodings import Encoding
from synthaug._cache.format import (
    ChosenRows,
    State,
    blocks,
    checksums,
    erased_checksum,
    spans,
)
from synthaug._cache.readers import Reader, read_runs, write_runs
from synthaug._cache.remote import fetched, is_remote, refuse_remote
from synthaug._cache.schema import CacheContents, inspect
from synthaug._cache.synthesizer import Synthesizer, as_recorded, texts_of
from synthaug._cache.tombstones import content_keys, rows_from_sources
from synthaug._cache.verify import verify
from synthaug._images.calls import called
from synthaug._plan import Plan, canonical_json
from synthaug._support import system
from synthaug._support.arguments import check_whole
from synthaug._support.differences import described
from synthaug._support.files import remove_orphans, sync_file
from synthaug._support.rows import row_numbers
from synthaug._types import Indices, Labels, Pixels
from synthaug.errors import CacheError, CachePendingError, MismatchError

OutputType = Literal["pil", "pt", "np"]
Fsync = Literal["never", "batch"]
OnCorrupt = Literal["raise", "regenerate", "skip"]
OnWithdrawn = Literal["raise", "skip"]

_THUMBNAILS = 24


class SynthCache(Dataset[Any]):
    """The synthetic images of one plan, in one file.

        cache = SynthCache("cifar.h5")
        image, label = cache[0]                     # a PIL image and an int, as torchvision's
        pixels = cache.read([3, 1, 2])              # uint8 (3, C, H, W) in one gather
        loader = DataLoader(Subset(cache, np.flatnonzero(cache.done)), batch_size=128)

    Row `i` of the cache is row `i` of its plan. Row order, labels and plan never change; rows
    become done as they are written, and may be withdrawn. An image is checked against its checksum
    when this process first serves it.

    Copies in other processes (fork, spawn, pickle) read the same file, each on its own.

    Args:
        path: A cache file, or the URL of one in an object store ("s3://bucket/cifar.h5" or another
            that fsspec opens), which is copied to this machine once and cannot be written.
        local_dir: Folder for copies of URLs. By default the environment variable
            SYNTHAUG_REMOTE_DIR, or `~/.cache/synthaug/remote`.
        transform: Applied to the image.
        target_transform: Applied to the label.
        output_type: What `cache[i]` returns as image: "pil" a PIL image of mode L or RGB, "pt" a
            uint8 tensor (C, H, W), "np" a uint8 array (H, W, C).
        check_rows: Compare a row with its checksum on first serve. `False` leaves that to `verify`.
        on_corrupt: What to do with a row whose bytes are wrong. "raise" an error; "regenerate"
            draws it anew with `synthesizer` and stores it; "skip" serves the next intact image of
            the same class in its place, warns, and counts it in `skipped`.
        synthesizer: The one that made the cache, for `on_corrupt="regenerate"`.

    Raises:
        CacheError: The file is missing, unreadable or no cache; its plan, manifest or states are
            damaged; or it has a structure that could do harm. A store does not answer, or its
            object has changed since it was copied.
        MismatchError: `synthesizer` has another recipe than the cache.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        local_dir: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        output_type: OutputType = "pil",
        check_rows: bool = True,
        on_corrupt: OnCorrupt = "raise",
        synthesizer: Synthesizer | None = None,
    ) -> None:
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f"`output_type` must be 'pil', 'pt' or 'np', got {output_type!r}.")
        if on_corrupt not in ("raise", "regenerate", "skip"):
            raise ValueError(
                f"`on_corrupt` must be 'raise', 'regenerate' or 'skip', got {on_corrupt!r}."
            )
        if (on_corrupt == "regenerate") != (synthesizer is not None):
            raise ValueError("`on_corrupt='regenerate'` and `synthesizer` go together.")
        if on_corrupt != "raise" and not check_rows:
            raise ValueError(f"`on_corrupt={on_corrupt!r}` needs `check_rows=True`.")
        self.url = str(path) if is_remote(path) else None
        if self.url is not None and on_corrupt == "regenerate":
            raise ValueError(
                "`on_corrupt='regenerate'` would change a copy only. Copy the file to this machine "
                "and open it by its path."
            )
        self.path = Path(path).absolute() if self.url is None else fetched(self.url, local_dir)
        self.transform = transform
        self.target_transform = target_transform
        self.output_type = output_type
        self.check_rows = check_rows
        self.on_corrupt = on_corrupt
        self.synthesizer = synthesizer
        self._substitutes: dict[int, int] = {}
        self._labels: Labels | None = None
        self._reader: Reader | None = open_reader(inspect(self.path))
        self._digests = self._contents.plan_digest, self._contents.manifest_digest
        if synthesizer is not None:
            self.synthesizer = as_recorded(synthesizer, self.manifest["recipe"])
            self._check_recipe(self.synthesizer)
        if not self._contents.plain:
            warnings.warn(
                f"{path} is a compressed copy: it is read through HDF5 row by row, which is many "
                "times slower, and cannot be written. `synthaug cache merge` makes a plain cache "
                "of it.",
                stacklevel=2,
            )

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        plan: Plan,
        *,
        image_shape: Sequence[int],
        manifest: Mapping[str, Any],
        encoding: str | None = None,
    ) -> "SynthCache":
        """Lays out a new cache with every row of `plan` pending, and opens it.

        The whole file is reserved on the disk, and appears at `path` only when it is complete. Of
        encoded images the bytes are not known before; space for them is reserved in steps.

        Args:
            path: A file that does not exist yet.
            plan: One row per image.
            image_shape: (C, H, W); C is 1 or 3.
            manifest: JSON. "recipe" is the synthesizer's recipe with its "weights", "source"
                describes the real data, "license" holds those of "generator" and "source". Classes,
                settings, value range and library versions are added.
            encoding: "raw" pixels, lossless "png" or "webp", or "jpeg:95" with another quality if
                you like, which loses some detail. By default raw up to 128 pixels, "webp" above.

        Raises:
            ValueError: An argument cannot be stored.
            CacheError: `path` exists, or the disk cannot hold the file.
        """
        refuse_remote(path)
        shape = tuple(int(side) for side in image_shape)
        _format.check_shape(shape)
        _format.create(
            Path(path).absolute(),
            plan,
            image_shape=shape,
            manifest=manifest,
            encoding=Encoding.chosen(encoding, shape),
        )
        return cls(path)

    @classmethod
    def open_for_writing(
        cls,
        path: str | os.PathLike[str],
        plan: Plan,
        *,
        image_shape: Sequence[int],
        manifest: Mapping[str, Any],
        encoding: str | None = None,
    ) -> "SynthCache":
        """Opens a cache to continue it, or creates it; arguments as `create`.

        Raises:
            MismatchError: The file belongs to another plan, recipe, source data, image shape or
                encoding. Lists the first differences with both values. Library versions may differ.
            CacheError: Under the same conditions as `create` and `SynthCache`.
        """
        refuse_remote(path)
        target = Path(path).absolute()
        if not target.exists():
            return cls.create(
                path, plan, image_shape=image_shape, manifest=manifest, encoding=encoding
            )
        remove_orphans(target)
        cache = cls(path)
        wanted = Encoding.chosen(encoding or cache.encoding, cache.image_shape)
        given = _format.complete_manifest(plan, manifest, wanted)
        differences = {
            **encoding_differences(cache.encoding, str(wanted)),
            **manifest_differences(cache.manifest, given),
            **plan_differences(cache.plan, plan),
            **shape_differences(cache.image_shape, image_shape),
        }
        if differences:
            raise MismatchError(
                f"{path} was made for something else:\n"
                f"{described(differences, 'in the file', 'given')}\n"
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
                Or a mask, bool (N,).

        Returns:
            uint8 (len(indices), C, H, W), a copy that you may change.

        Raises:
            IndexError: A row number is out of range.
            CachePendingError: A row has not been generated yet, or was withdrawn.
            CacheError: A row's bytes are not those that were written.
        """
        return torch.from_numpy(self._gather(row_numbers(indices, len(self))))

    def read_sequentially(self) -> None:
        """From now on, and in this process, rows are read and not mapped. Row after row this is as
        fast, and takes no memory; in any order it is slower."""
        self._open().sequential = True

    def _gather(self, rows: Indices) -> NDArray[np.uint8]:
        reader = self._open()
        pixels = reader.gather(rows)
        # Counting bytes is several times faster than comparing and reducing so few elements.
        if reader.served.take(rows).tobytes().count(1) != len(rows):
            pixels = self._first_serve(reader, rows % len(self), pixels)
        # States come last: a row that was withdrawn meanwhile was marked before it was zeroed.
        if reader.column("state", rows).tobytes().count(State.DONE) != len(rows):
            raise self._not_done(rows)
        return pixels

    def _first_serve(
        self, reader: Reader, rows: Indices, pixels: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Checks the rows among `rows` that this process has not served yet."""
        if (reader.column("state", rows) != State.DONE).any():
            raise self._not_done(rows)
        new = reader.served[rows] == 0
        if self.check_rows or not reader.contents.raw:
            differs = np.zeros(len(rows), bool)
            differs[new] = checksums(pixels[new]) != reader.column("checksum", rows[new])
            reader.served[rows[new & ~differs]] = 1
            # A row that differs may have been written just while it was read: look again.
            suspects = np.unique(rows[differs])
            if len(suspects):
                bad = suspects[~reader.intact(suspects)]
                if len(bad):
                    rows = self._repaired(reader, rows, bad)
                pixels = reader.gather(rows)
        else:
            pixels = reader.gather(rows)  # again, now that the rows are known to be done
        reader.served[rows] = 1
        return pixels

    def _repaired(self, reader: Reader, rows: Indices, bad: Indices) -> Indices:
        """The rows to serve for `rows`, of which `bad` are corrupt, as `on_corrupt` says."""
        if self.on_corrupt == "raise":
            raise self._corrupt(bad)
        if self.on_corrupt == "regenerate":
            self._regenerate(bad)
            return rows
        self._find_substitutes(reader, bad)
        return np.array([self._substitutes.get(row, row) for row in rows.tolist()], np.int64)

    def _corrupt(self, bad: Indices) -> CacheError:
        fault = self._open().faults.get(int(bad[0]))
        return CacheError(
            f"{self.path}: the pixels of {listed(bad)} are not those that were written"
            + (f" ({fault}). " if fault else ". ")
            + "Restore the file from a copy, or generate again, which redraws just these rows."
        )

    def _not_done(self, rows: Indices) -> CachePendingError:
        rows = np.unique(rows % len(self))
        state = self.state_of(rows)
        rows, withdrawn = rows[state != State.DONE], rows[state == State.WITHDRAWN]
        which, what = (withdrawn, "withdrawn") if len(withdrawn) else (rows, "not generated yet")
        return CachePendingError(
            f"{self.path}: {listed(which)} {'was' if len(which) == 1 else 'were'} {what}. Use "
            "only rows where `cache.done` is true"
            + (", or generate again to fill the cache." if what != "withdrawn" else ".")
        )

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Several items with one read: what a `DataLoader` calls for a batch."""
        rows = row_numbers(indices, len(self))
        pixels = self._gather(rows)
        images: Any
        if self.output_type == "np":
            images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # NCHW => NHWC
        else:
            images = torch.from_numpy(pixels).unbind(0)
            if self.output_type == "pil":
                images = map(_pixels.to_pil, images)
        if self.transform is not None:
            images = map(called(self.transform), images)
        labels = self._open().labels(rows).tolist()
        if self.target_transform is not None:
            labels = map(self.target_transform, labels)
        return list(zip(images, labels, strict=True))

    # Rows whose bytes are wrong

    @property
    def skipped(self) -> Indices:
        """Rows that this process found corrupt and skipped, int64, ascending."""
        return np.array(sorted(self._substitutes), np.int64)

    def _find_substitutes(self, reader: Reader, bad: Indices) -> None:
        for row in bad.tolist():
            if row in self._substitutes:
                continue
            for candidate in self._others_of_class(row):
                if reader.intact(np.array([candidate])).all():
                    break
            else:
                raise self._corrupt(np.array([row]))
            reader.served[candidate] = 1
            self._substitutes[row] = candidate
            warnings.warn(
                f"{self.path}: row {row} is corrupt and was skipped; row {candidate} of the same "
                f"class takes its place. {len(self._substitutes)} skipped so far.",
                stacklevel=2,
            )

    def _others_of_class(self, row: int) -> Iterator[int]:
        """Done rows of the class of `row`, first those behind it, then those before."""
        label = self.plan.at("label", [row])[0]
        after, before = (slice(row + 1, len(self)), slice(0, row))
        for side in (after, before):
            for span in spans(side.stop - side.start):
                piece = slice(side.start + span.start, side.start + span.stop)
                same = self.plan.at("label", piece) == label
                same &= self.state_of(piece) == State.DONE
                yield from (np.flatnonzero(same) + piece.start).tolist()

    def _regenerate(self, bad: Indices) -> None:
        assert self.synthesizer is not None
        images = self.synthesizer.draw(self.plan[bad])
        if tuple(images.shape) != (len(bad), *self.image_shape) or not images.isfinite().all():
            raise CacheError(
                f"{self.path}: {listed(bad)} could not be drawn anew: `draw` returned "
                f"{tuple(images.shape)}, finite: {bool(images.isfinite().all())}."
            )
        self.write(bad, _pixels.to_pixels(images), on_withdrawn="skip")
        warnings.warn(f"{self.path}: redrew {listed(bad)}, whose bytes were corrupt.", stacklevel=2)

    def _check_recipe(self, synthesizer: Synthesizer) -> None:
        given, stored = synthesizer.recipe(), self.manifest["recipe"]
        if canonical_json(given) != canonical_json(stored):
            differences = described(recipe_differences(stored, given), "in the file", "given")
            raise MismatchError(f"{self.path} was made by another synthesizer:\n{differences}")

    def verify(self, *, workers: int = 2, progress: bool = False) -> Indices:
        """Reads every row that was ever written, and returns those whose bytes are wrong.

        These are done rows that do not match their checksum, and withdrawn rows that were not
        erased to the last byte.

        Args:
            workers: Threads that read ahead.
            progress: Show a bar.

        Returns:
            Row numbers, int64, ascending.

        Raises:
            CacheError: The file cannot be read to its end.
        """
        check_whole(1, workers=workers)
        with self._descriptor(os.O_RDONLY) as fd:
            return verify(self._open(), fd, workers=workers, progress=progress)

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
        """How the images were made: recipe, weights, source data, classes, versions, license."""
        return self._contents.manifest

    @property
    def image_shape(self) -> tuple[int, int, int]:
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
    def state(self) -> NDArray[np.uint8]:
        """State of each row now, uint8 (N,): 0 pending, 1 done, 2 withdrawn. A copy."""
        return self._open().column("state")

    def state_of(self, rows: ArrayLike | Sequence[int] | slice) -> NDArray[np.uint8]:
        """State of some rows now, uint8 (n,); of few rows faster than `state`."""
        chosen = rows if isinstance(rows, slice) else row_numbers(rows, len(self), "rows")
        states: NDArray[np.uint8] = self._open().column("state", chosen)
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

    def _mask(self, state: State) -> NDArray[np.bool_]:
        mask = np.empty(len(self), bool)
        for span in spans(len(self)):
            np.equal(self.state_of(span), state, out=mask[span])
        return mask

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """Recorded CRC-32C of each row, uint32 (N,); 0 for rows that were never written. A copy."""
        return self._open().column("checksum")

    @property
    def tombstones(self) -> NDArray[np.uint64]:
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
    def done(self) -> NDArray[np.bool_]:
        """Says which rows can be read now, bool (N,)."""
        return self._mask(State.DONE)

    @property
    def identity(self) -> dict[str, Any]:
        """Returns what an audit report must match: plan digest, weights digests, number of rows,
        and an encoding with losses."""
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

    # Writing

    def write(
        self,
        rows: ArrayLike | Sequence[int],
        pixels: Pixels,
        *,
        fsync: Fsync = "batch",
        on_withdrawn: OnWithdrawn = "raise",
    ) -> None:
        """Writes images in place, and marks their rows as done.

        Image first, checksum next, state last: a kill at any instant leaves each row either done
        and intact, or pending. Processes that write or withdraw at once take turns, by a lock on
        the file. A row that is done already becomes pending, and then done with the new image.

        Args:
            rows: Row numbers, each at most once, or a mask, bool (N,).
            pixels: uint8 (len(rows), C, H, W).
            fsync: "batch" orders the steps on the disk too, so that a row is also intact after a
                power failure. "never" leaves that to the system, and the checksums to find out.
            on_withdrawn: What to do about rows that were withdrawn, which nothing brings back:
                "raise", and write none; or "skip" them.

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
        images, encoding = pixels.detach().cpu().numpy(), self._contents.encoding
        files = None if encoding.raw else encoding.encoded(images)
        if encoding.lossy and files is not None:
            images = encoding.decoded(files, self.image_shape)
        self._commit(numbers, images, files, fsync, on_withdrawn)

    def copy_rows(self, other: "SynthCache", rows: Indices, start: int) -> None:
        """Copies rows of another cache, from our row `start` on, as they are stored there.

        Files are not decoded and encoded again if both caches have one encoding, which with losses
        would change the images. Rows that were withdrawn here are left out.

        Args:
            other: A cache of the same image shape.
            rows: Row numbers that are done there, int64, ascending.
            start: Where its row 0 goes.

        Raises:
            CachePendingError: A row is not done there, or was withdrawn meanwhile.
            CacheError: Under the same conditions as `read` and `write`.
        """
        images = other.read(rows)
        reader = other._open()
        if other.encoding != self.encoding or not isinstance(reader, Encoded):
            self.write(rows + start, images, on_withdrawn="skip")
            return
        files = reader.files(rows)
        if (other.state_of(rows) != State.DONE).any():
            raise other._not_done(rows)
        self._commit(self._to_write(rows + start), images.numpy(), files, "batch", "skip")

    def _commit(
        self,
        numbers: Indices,
        images: NDArray[np.uint8],
        files: list[bytes] | None,
        fsync: Fsync,
        on_withdrawn: OnWithdrawn,
    ) -> None:
        """Writes images, or their files if the cache has such, in order, and marks them as done."""
        order = np.argsort(numbers)
        numbers, images = numbers[order], images[order]
        stored = images if files is None else np.array(files, object)[order]
        with self._writing() as fd:
            state = self._get(fd, "state", numbers)
            gone = state == State.WITHDRAWN
            if gone.any():
                if on_withdrawn == "raise":
                    raise ValueError(
                        f"{self.path}: {listed(numbers[gone])} cannot be written: withdrawn."
                    )
                numbers, images, state = numbers[~gone], images[~gone], state[~gone]
                stored = stored[~gone]
            again = numbers[state == State.DONE]
            self._open().served[again] = 0
            self._put(fd, "state", again, State.PENDING, fsync=fsync)
            self._store(fd, numbers, stored, fsync)
            self._put(fd, "checksum", numbers, checksums(images), fsync=fsync)
            self._put(fd, "state", numbers, State.DONE, fsync=fsync)

    def _store(self, fd: int, rows: Indices, stored: NDArray[Any], fsync: Fsync) -> None:
        reader = self._open()
        if isinstance(reader, Encoded):
            reader.appending.store(fd, rows, stored.tolist(), sync=fsync == "batch")
        else:
            self._put(fd, "images", rows, stored)

    def _erase(self, fd: int, rows: Indices) -> None:
        reader = self._open()
        if isinstance(reader, Encoded):
            reader.appending.erase(fd, rows)
        else:
            zeros = np.zeros((len(rows), *self.image_shape), np.uint8)
            self._put(fd, "images", rows, zeros, fsync="batch")

    def invalidate(self, rows: ArrayLike | Sequence[int]) -> None:
        """Makes done rows pending again, so that they are drawn anew; others stay as they are."""
        numbers = np.sort(self._to_write(rows))
        with self._writing() as fd:
            numbers = numbers[self._get(fd, "state", numbers) == State.DONE]
            self._open().served[numbers] = 0
            self._put(fd, "state", numbers, State.PENDING, fsync="batch")

    def withdraw(self, rows: ArrayLike | Sequence[int], *, forgotten: ArrayLike = ()) -> None:
        """Takes rows back for good: never served again, pixels zeroed, not drawn by a resumed job.

        This is final: whatever writes to the file takes turns with us, and leaves withdrawn rows
        alone. State first, then a tombstone for each image that is there, then pixels, and last, as
        proof of the erasure, the checksum of zeros. After a kill in between no reader gets the
        image, `verify` names the row, and calling this again, or opening the cache for writing,
        completes the erasure.

        Args:
            rows: Row numbers, each at most once, or a mask, bool (N,).
            forgotten: Content keys of what shall never come back, uint64 (k,): of the real images
                that the rows derive from, or of images. They become `tombstones`, before all else.

        Raises:
            CacheError: The system refused to write.
        """
        numbers = np.sort(self._to_write(rows))
        self._open().served[numbers] = 0
        with self._writing() as fd:
            self._bury(fd, np.asarray(forgotten, np.uint64))
            self._put(fd, "state", numbers, State.WITHDRAWN, fsync="batch")
            for block in blocks(numbers, self.image_shape):
                images = self._open().stored(fd, block)
                intact = checksums(images) == self._get(fd, "checksum", block)
                there = intact & images.any(axis=(1, 2, 3))  # neither pending nor erased already
                self._bury(fd, content_keys(images[there]))
                self._erase(fd, block)
            self._put(fd, "checksum", numbers, erased_checksum(self.image_shape), fsync="batch")

    def _bury(self, fd: int, keys: NDArray[np.uint64]) -> None:
        """Adds to the tombstones those keys that are not there yet."""
        if not self.keeps_tombstones or not len(keys):
            return
        stored = self.tombstones
        new = np.setdiff1d(keys, np.append(stored, np.uint64(0)))
        room = self._contents.tombstone_places - len(stored)
        if len(new) > room:
            warnings.warn(
                f"{self.path} has room for {room:,} of {len(new):,} tombstones: name the others "
                "again when you merge or import.",
                stacklevel=3,
            )
        places = np.arange(len(stored), len(stored) + min(room, len(new)))
        self._put(fd, "tombstones", places, new[:room], fsync="batch")

    def _finish_withdrawals(self) -> None:
        """Completes what a kill cut short, and withdraws what derives from forgotten images."""
        if not self.writable:
            return
        withdrawn, erased = self.rows_in(State.WITHDRAWN), erased_checksum(self.image_shape)
        unfinished = [
            rows[self._open().column("checksum", rows) != erased]
            for rows in blocks(withdrawn, self.image_shape)
        ]
        rows = np.concatenate([np.empty(0, np.int64), *unfinished])
        if len(keys := self.tombstones):
            derived = rows_from_sources(self.plan, keys)
            rows = np.union1d(rows, derived[self.state_of(derived) != State.WITHDRAWN])
        if len(rows):
            self.withdraw(rows)

    def _to_write(self, rows: ArrayLike | Sequence[int]) -> Indices:
        if self.url is not None:
            raise CacheError(
                f"{self.path} is a copy of {self.url}, and nobody else would see the change. Write "
                "the original, and put it there again with `synthaug.caches.upload`."
            )
        if not self.writable:
            raise CacheError(
                f"{self.path} is a compressed copy, which cannot be written. "
                "`synthaug cache merge` makes a plain cache of it."
            )
        numbers = row_numbers(rows, len(self), "rows")
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
        """Writes `values` at ascending `rows` of one data set: one call per run of neighbors."""
        region = self._contents.regions[name]
        if not len(rows):  # nothing to order on the disk either
            return
        if isinstance(values, int):
            values = np.full(len(rows), values, region.dtype)
        write_runs(fd, region, rows, values)
        if fsync == "batch":
            sync_file(fd)

    def _get(self, fd: int, name: str, rows: Indices) -> NDArray[Any]:
        return read_runs(fd, self._contents.regions[name], rows)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """The open file, while nobody else writes to it: writers of all processes take turns."""
        with self._descriptor(os.O_RDWR) as fd:
            with suppress(OSError):  # a file system without locks: there, nothing guards
                system.lock(fd)
            try:
                yield fd
            finally:
                with suppress(OSError):
                    system.unlock(fd)  # also for what was forked meanwhile

    @contextmanager
    def _descriptor(self, flags: int) -> Iterator[int]:
        """The open file, for one call. System errors inside become a `CacheError`."""
        doing = "read" if flags == os.O_RDONLY else "write"
        try:
            fd = os.open(self.path, flags | system.OURS)
            try:
                self._contents.check_same(fd)
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise CacheError(
                f"Cannot {doing} {self.path}: {error.strerror}. Every row is either done and "
                "intact or still pending: repair the cause, then run again to continue."
            ) from error

    # One reader per process

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

    # Display

    def __repr__(self) -> str:
        return _show.text(self.path, self.image_shape, len(self.classes), self.counts())

    def _repr_html_(self) -> str:
        """For notebooks: the text, and up to 24 images spread over the cache."""
        rows = _show.evenly(self.rows_in(State.DONE), _THUMBNAILS)
        labels = self.plan.at("label", rows).tolist()
        captions = [f"{row}: {self.classes[c]}" for row, c in zip(rows, labels, strict=True)]
        return _show.page(repr(self), self.read(rows), captions)
