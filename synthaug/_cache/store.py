"""`SynthCache`: a cache file as a map-style data set, which also takes new rows."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

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
from synthaug._cache.corrupt_rows import Substitutes, corrupt, redrawn
from synthaug._cache.encoded_rows import Encoded
from synthaug._cache.encodings import Encoding
from synthaug._cache.files import refuse_remote
from synthaug._cache.format import State, blocks, checksums, erased_checksum
from synthaug._cache.opened import OpenedCache
from synthaug._cache.readers import Reader, descriptor
from synthaug._cache.remote import fetched
from synthaug._cache.synthesizer import Synthesizer, as_recorded
from synthaug._cache.tombstones import rows_from_sources
from synthaug._cache.verify import verify
from synthaug._cache.writing import Fsync, OnWithdrawn, Writer
from synthaug._images.calls import called
from synthaug._plan import Plan, canonical_json
from synthaug._support.arguments import check_whole
from synthaug._support.differences import described
from synthaug._support.files import remove_orphans
from synthaug._support.reading import is_remote, without_secrets
from synthaug._support.rows import row_numbers
from synthaug._types import Bytes, Indices, Pixels, StrPath
from synthaug.errors import CacheError, CachePendingError, MismatchError

OutputType = Literal["pil", "pt", "np"]
OnCorrupt = Literal["raise", "regenerate", "skip"]

_THUMBNAILS = 24


class SynthCache(OpenedCache):
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
        output_type: Type of the image in `cache[i]`: "pil" a PIL image of mode L or RGB, "pt" a
            uint8 tensor (C, H, W), "np" a uint8 array (H, W, C).
        check_rows: Compare a row with its checksum on first serve. `False` leaves that to `verify`.
        on_corrupt: Treatment of a row whose bytes are wrong. "raise" an error; "regenerate" draws
            it anew with `synthesizer` and stores it; "skip" serves the next intact image of the
            same class in its place, warns, and counts it in `skipped`.
        synthesizer: The one that made the cache, for `on_corrupt="regenerate"`.

    Raises:
        CacheError: The file is missing, unreadable or no cache; its plan, manifest or states are
            damaged; or it has a structure that could do harm. A store does not answer, or its
            object has changed since it was copied.
        MismatchError: `synthesizer` has another recipe than the cache.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        local_dir: StrPath | None = None,
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
        super().__init__(
            Path(path).absolute() if self.url is None else fetched(self.url, local_dir)
        )
        self.transform = transform
        self.target_transform = target_transform
        self.output_type = output_type
        self.check_rows = check_rows
        self.on_corrupt = on_corrupt
        self.synthesizer = synthesizer
        self._substitutes = Substitutes()
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
        path: StrPath,
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
        path: StrPath,
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

    def _gather(self, rows: Indices) -> Bytes:
        reader = self._open()
        pixels = reader.gather(rows)
        # Counting bytes is several times faster than comparing and reducing so few elements.
        if reader.served.take(rows).tobytes().count(1) != len(rows):
            pixels = self._first_serve(reader, rows % len(self), pixels)
        # States come last: a row that was withdrawn meanwhile was marked before it was zeroed.
        if reader.column("state", rows).tobytes().count(State.DONE) != len(rows):
            raise self._not_done(rows)
        return pixels

    def _first_serve(self, reader: Reader, rows: Indices, pixels: Bytes) -> Bytes:
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
            raise corrupt(reader, bad)
        if self.synthesizer is not None:
            images = redrawn(self, self.synthesizer, bad)
            self.write(bad, _pixels.to_pixels(images), on_withdrawn="skip")
            warnings.warn(
                f"{self.path}: redrew {listed(bad)}, whose bytes were corrupt.", stacklevel=2
            )
            return rows
        self._substitutes.find(self, reader, bad)
        return self._substitutes.put(rows)

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
            images = _pixels.channels_last(pixels)
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
        return self._substitutes.skipped

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
            CacheError: The file cannot be read to its end, or its tombstones are damaged.
        """
        check_whole(1, workers=workers)
        with descriptor(self._contents, os.O_RDONLY) as fd:
            _ = self.tombstones
            return verify(self._open(), fd, workers=workers, progress=progress)

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
            on_withdrawn: Treatment of rows that were withdrawn, which nothing brings back: "raise",
                and write none; or "skip" them.

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
        self._writer.commit(numbers, images, files, fsync=fsync, on_withdrawn=on_withdrawn)

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
        self._writer.commit(
            self._to_write(rows + start), images.numpy(), files, fsync="batch", on_withdrawn="skip"
        )

    def invalidate(self, rows: ArrayLike | Sequence[int]) -> None:
        """Makes done rows pending again, so that they are drawn anew; others stay as they are."""
        self._writer.invalidate(np.sort(self._to_write(rows)))

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
        self._writer.withdraw(np.sort(self._to_write(rows)), np.asarray(forgotten, np.uint64))

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

    @property
    def _writer(self) -> Writer:
        return Writer(self._open())

    def _to_write(self, rows: ArrayLike | Sequence[int]) -> Indices:
        if self.url is not None:
            raise CacheError(
                f"{self.path} is a copy of {without_secrets(self.url)}, and nobody else would see "
                "the change. Write the original, and put it there again with "
                "`synthaug.caches.upload(..., overwrite=True)`."
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

    # Display

    def __repr__(self) -> str:
        return _show.text(self.path, self.image_shape, len(self.classes), self.counts())

    def _repr_html_(self) -> str:
        """For notebooks: the text, and up to 24 images spread over the cache."""
        rows = _show.evenly(self.rows_in(State.DONE), _THUMBNAILS)
        labels = self.plan.at("label", rows).tolist()
        captions = [f"{row}: {self.classes[c]}" for row, c in zip(rows, labels, strict=True)]
        return _show.page(repr(self), self.read(rows), captions)
