"""Forgetting real images: what was made from them is erased, and what cannot be reached is named.

A forgotten image is known by its content key in what was made of it: in the key columns of a plan's
rows (a cache and its parts, and the records of an export), and in the keys of an inversion's
embeddings. The caches keep the keys as tombstones, with those of the images that they erased, so
merges, imports and resumed jobs leave them out as well.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthaug._cache.cards import refresh_croissant
from synthaug._cache.exported import (
    MANIFEST,
    RECORDS,
    shape_of_export,
    take_out,
    take_out_of_tar,
)
from synthaug._cache.files import parts_folder
from synthaug._cache.remote import copied_from, uploaded_to
from synthaug._cache.store import SynthCache
from synthaug._cache.tombstones import rows_from_sources, source_keys_of
from synthaug._pixels import digest
from synthaug._printable import printable_line
from synthaug._support.digests import check_seal
from synthaug._support.files import remove_orphans, sync_folder, unfinished_name
from synthaug._support.progress import bar
from synthaug._support.reading import check_regular, open_regular, without_secrets
from synthaug._support.stopping import kept_at_stop
from synthaug._types import Pixels, StrPath, Unsigned
from synthaug.errors import CacheError

_FEATURES = re.compile(r"[0-9a-f]{32}\.np[yz]")
_PAGES = (".html", ".json", ".ipynb", ".svg")
"""What may have pictures in it, as text."""
_PIXELS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".ppm"),
    *(".pdf", ".mp4", ".npy", ".npz", ".pt", ".pth", ".pkl", ".mat", ".parquet", ".arrow"),
    *(".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".partial"),
)
_LOGGED = "tfevents"
"""What the name of a file of TensorBoard has in it; training logs sheets of images there."""
_NAMED = 20
"""How many files are named in one line."""
_ALWAYS = (
    "Copies, backups and exports that were not named: name them too, or delete them. Objects in "
    "stores that were uploaded: upload again.",
    "Reports of audits, selections and evaluations (HTML, and the JSON that they are made of) and "
    "sheets (PNG) that show the images, and what was logged by trackers: delete them.",
    "Training jobs that run now: one that draws on the fly into a cache named here leaves them out "
    "from its next batch on; start any other anew.",
)


class Forgotten(dict[Path, int]):
    """Counts, by place, the images made from the sources that were found and are erased."""

    def __init__(self) -> None:
        super().__init__()
        self.beyond: list[str] = []
        """What is out of reach and may still hold something of the sources, and what to do."""


def forget(
    places: Iterable[StrPath], sources: Pixels | Iterable[int], *, progress: bool = False
) -> Forgotten:
    """Erases every synthetic image that was derived from certain real images.

        forget(["cifar.h5", "cifar-synthetic"], train.read([17, 23]))

    In a cache, and in the parts of a job that is still being drawn, the pixels are zeroed on the
    disk and the rows are withdrawn for good; from a folder that was exported their files, members
    and records are deleted; from any other folder, such as that of `improve`, they are erased in
    every cache and export that lies in it or below. They are found by the column `source_key`, and
    by every column whose name ends in `_key`, such as that of a partner which was interpolated
    with. Features that were kept are deleted whole: they do not say of which images they are.

    The caches keep tombstones: the keys of the sources that they have rows of, and of the erased
    images. Merges leave out
    whatever derives from a source that one of the caches has forgotten, jobs that are resumed too,
    and `import_images(forgotten=)` knows the erased images by their content.

    Args:
        places: Cache files; folders made by `export`; folders in which features are kept; other
            folders, such as those of inversions and of `improve`.
        sources: The real images, uint8 (n, C, H, W); or their content digests, as the plan has them
            in the column `source_key`.
        progress: Show a bar.

    Returns:
        For each place the number of images derived from the sources, erased now or before (of an
        export now), and of kept features the number of files. `beyond` lists what was not reached:
        weights, compressed copies, objects in a store, embeddings, imported caches, what else may
        show images in a folder (reports, pictures, arrays, archives, logs, links), and whatever was
        not named.

    Raises:
        TypeError: `sources` holds something else, such as floats.
        ValueError: `sources` is empty, or holds the key 0, which stands for "no source".
        CacheError: A place cannot be read or written, or a record of an export is damaged; places
            before it are done.
    """
    shape: tuple[int, ...] | None = None
    if isinstance(sources, torch.Tensor) and sources.ndim == 4:
        shape = tuple(sources.shape[1:])
        sources = [digest(image) for image in sources]
    given: list[Any] = list(sources)
    if not all(isinstance(key, Integral) and not isinstance(key, bool) for key in given):
        raise TypeError(
            "`sources` must be images, uint8 (n, C, H, W), or their content digests, which are "
            'whole numbers: `cache.plan["source_key"]`.'
        )
    wanted = _Sources(np.array([int(key) for key in given], np.uint64), shape)
    if not len(wanted.keys) or (wanted.keys == 0).any():
        raise ValueError("`sources` must name at least one real image; the key 0 is none.")
    opened = [Path(p).absolute() if os.path.isdir(p) else SynthCache(p) for p in places]
    found = Forgotten()
    with (
        kept_at_stop(lambda: f"{shown.n} of {len(opened)} places are done, the next one in part."),
        bar(len(opened), "forget", "place", progress=progress) as shown,
    ):
        for place in opened:
            if isinstance(place, Path):
                _forget_in_folder(place, wanted, found)
            else:
                _forget_in_cache(place, wanted, found)
            shown.update(1)
    found.beyond += _ALWAYS
    return found


@dataclass(frozen=True, slots=True)
class _Sources:
    """Real images to forget."""

    keys: Unsigned
    """Content keys of the real images."""
    shape: tuple[int, ...] | None
    """Shape in which the images were given; keys belong to it."""


def _forget_in_cache(cache: SynthCache, wanted: _Sources, found: Forgotten) -> None:
    found.beyond += _unknown(cache, wanted)
    rows = rows_from_sources(cache.plan, wanted.keys)
    found.beyond += _not_erased(cache, len(rows)) if len(rows) else []
    if len(rows) and (cache.url is not None or not cache.writable):
        return
    if not cache.keeps_tombstones:
        found.beyond.append(
            f"{cache.path} is of format version 1, which keeps no tombstones: later merges and "
            "imports do not know what it forgot. `merge` makes a file of version 2 of it."
        )
    _remove_unfinished(cache.path, found)
    found[cache.path] = _withdraw(cache, wanted.keys)
    # The whole first: whoever lays out a part later sees there what is withdrawn.
    _forget_in_parts(parts_folder(cache.path), wanted.keys, found)


def _unknown(cache: SynthCache, wanted: _Sources) -> Iterator[str]:
    """Names what may hold something of the sources and has no keys in the plan of a cache."""
    recipe = cache.manifest["recipe"]
    weights = recipe.get("weights")
    for name, value in weights.items() if isinstance(weights, Mapping) else ():
        drew = printable_line(f"{recipe.get('synthesizer')}, {name} {value}")
        yield (
            f"The weights that drew {cache.path} ({drew}), and checkpoints and samples of their "
            "training: if these images were among the training data, delete them and train anew."
        )
    if wanted.shape not in (None, cache.image_shape):
        yield (
            f"{cache.path} has images of shape {cache.image_shape}, and `sources` are "
            f"{wanted.shape}: it knows its sources by their pixels in its own shape. Forget again "
            "with the same images in that shape."
        )
    if recipe.get("synthesizer") == "imported":
        yield (
            f"{cache.path} was imported: what its images were made from is not known. Delete it if "
            "these images may be among that, and import again with `forgotten=` the caches from "
            "which they are erased: that compares pixels."
        )


def _not_erased(cache: SynthCache, rows: int) -> Iterator[str]:
    """Names the places in which images of so many rows stay."""
    again = "`synthaug.caches.upload(..., overwrite=True)`"
    older = "delete older versions if the store keeps them, and the copies on other machines"
    if cache.url is not None:
        yield (
            f"{without_secrets(cache.url)} is in a store, where nothing is erased; {rows:,} "
            "of its rows were made from these images. Forget in the file that was uploaded, or in "
            f"a copy of it, put it there again with {again}, "
            f"and delete the copies on every machine that opened it, here {cache.path}."
        )
        return
    if not cache.writable:
        yield (
            f"{cache.path} is a compressed copy, which cannot be written; {rows:,} of its "
            "rows were made from these images. Delete it, or make a plain cache of it with "
            "`merge`, forget there, and then delete it."
        )
    if (url := copied_from(cache.path)) is not None:
        yield (
            f"{cache.path} is a copy of {url}, an object in a store, where nothing is erased: it "
            f"still holds what was drawn of {rows:,} rows that were made from these images. Put "
            f"this file there with `synthaug.caches.upload({str(cache.path)!r}, {url!r}, "
            f"overwrite=True)`, {older}."
        )
    for url in uploaded_to(cache.path):
        yield (
            f"{cache.path} was uploaded to {printable_line(url)}, or was to be, and nothing is "
            f"erased there: unless it was uploaded again since, that object holds what was drawn "
            f"of {rows:,} rows that were made from these images. Put this file there with {again}, "
            f"{older}."
        )


def _forget_in_parts(folder: Path, keys: Unsigned, found: Forgotten) -> None:
    for path in [folder, *sorted(folder.glob("*.h5"))]:
        if path.is_symlink():
            found.beyond.append(
                f"{path} is a link, and links are not followed. Name what it leads to, if it holds "
                "images."
            )
        elif path != folder and not folder.is_symlink():
            try:
                count = _withdraw(SynthCache(path), keys)
            except CacheError:
                if path.exists():
                    raise
                continue  # put together with the others just now: the whole leaves the rows out
            if count:
                found[path] = count


def _withdraw(cache: SynthCache, keys: Unsigned) -> int:
    """Withdraws the rows that derive from the sources, and returns how many there are."""
    rows = rows_from_sources(cache.plan, keys)
    if len(rows):
        cache.withdraw(rows, forgotten=np.intersect1d(keys, source_keys_of(cache.plan[rows])))
    return len(rows)


def _forget_in_folder(folder: Path, wanted: _Sources, found: Forgotten) -> None:
    try:
        _remove_unfinished(folder, found)
        _Search(folder, wanted, found).run()
    except OSError as error:
        raise CacheError(
            f"Cannot forget in {folder}: {error}. Repair the cause and forget again, or delete the "
            "folder."
        ) from error


def _remove_unfinished(path: Path, found: Forgotten) -> None:
    """Removes what kills left of a cache or an export: it may hold the images."""
    for left in remove_orphans(path):
        found.beyond.append(
            f"{left} is unfinished and may hold the images: another process writes it, or it "
            "cannot be removed. Forget again when that process has ended, or delete it."
        )


class _Search:
    """Erases what lies in a folder and below it, and names what cannot be erased.

    Links are not followed: they may lead out of the folder, which may be a stranger's.
    """

    def __init__(self, folder: Path, wanted: _Sources, found: Forgotten) -> None:
        self._folder, self._wanted, self._found = folder, wanted, found
        self._keys = set(wanted.keys.tolist())
        self._parts: set[Path] = set()
        self._recorded: set[Path] = set()
        self._caches = self._exports = self._features = self._learned = 0
        self._pages: list[Path] = []
        self._loose: list[Path] = []
        self._links: list[Path] = []

    def run(self) -> None:
        for where, folders, names in os.walk(self._folder, onerror=_raised):
            place = Path(where)
            folders.sort()
            if place in self._parts:  # done with their whole
                folders.clear()
            else:
                self._look(place, folders, sorted(names))
        self._report()

    def _look(self, place: Path, folders: list[str], names: list[str]) -> None:
        """Does what is to be done in one folder; those below are looked at next."""
        for whole in {unfinished_name(name) for name in (*folders, *names)}:
            if whole is not None:
                _remove_unfinished(place / whole, self._found)
        folders[:] = [name for name in folders if (place / name).exists()]
        paths = [place / name for name in names if os.path.lexists(place / name)]
        self._links += [p for p in (*(place / f for f in folders), *paths) if p.is_symlink()]
        paths = [path for path in paths if not path.is_symlink()]
        with self._told(place):
            self._forget_export(place, paths)
        for path in paths:
            own = place == self._folder / "embeddings"  # of the inversion that was named
            with self._told(self._folder if own else path):
                if path.exists():
                    self._forget_file(path)

    @contextmanager
    def _told(self, place: Path) -> Iterator[None]:
        """Names what cannot be read below the folder; in the folder itself it is an error."""
        try:
            yield
        except (CacheError, OSError) as error:
            if place == self._folder:
                raise
            text = f"{error}".rstrip(".")
            self._found.beyond.append(
                f"{text}. If it holds something of the images, delete {place}."
            )

    def _forget_export(self, place: Path, paths: list[Path]) -> None:
        """Takes images out of an export, and deletes kept features, if the folder has such."""
        counts = []
        if (records := place / RECORDS) in paths:
            count, files = take_out(records, self._keys)
            self._recorded |= files
            counts.append(count)
        for path in [path for path in paths if path.suffix.lower() == ".tar"]:
            with self._told(place if place == self._folder else path):
                count, whole = take_out_of_tar(path, self._keys)
                self._recorded |= {path} if whole else set()
                counts.append(count)
        if counts:
            self._exports += place != self._folder
            with self._told(place / "croissant.json"):
                refresh_croissant(place)
        features = [path for path in paths if _is_kept(path)]
        for path in features:
            path.unlink()
        self._features += len(features)
        if counts or features:
            self._found[place] = sum(counts) + len(features)
            sync_folder(place)

    def _forget_file(self, path: Path) -> None:
        kind = path.suffix.lower()
        if kind == ".safetensors" and path.parent.name == "embeddings":
            self._learned += _learned(path, self._wanted.keys)
        elif kind in _PAGES:
            if _shows_images(path):
                self._pages.append(path)
        elif kind in _PIXELS or _LOGGED in path.name:
            if path not in self._recorded:
                self._loose.append(path)
        elif kind in (".h5", ".hdf5") or _is_hdf5(path):
            _forget_in_cache(SynthCache(path), self._wanted, self._found)
            self._parts.add(parts_folder(path))
            self._caches += 1

    def _report(self) -> None:
        folder, found = self._folder, self._found
        features = self._features * (folder not in found)
        held = [f"embeddings of {self._learned:,} of these images"] * bool(self._learned)
        held += [f"{self._caches:,} caches, which are done"] * bool(self._caches)
        held += [f"{self._exports:,} exports, which are done"] * bool(self._exports)
        held += [f"{features:,} kept features, which are deleted"] * bool(features)
        if held or folder not in found:
            found.beyond.append(
                f"{folder} holds {' and '.join(held) or 'no cache and no export'}. Weights, "
                "checkpoints and samples of training, and reports, cannot be made to forget: if "
                "these images were among the training data, delete the folder and start anew "
                "without them."
            )
        for paths, text in (
            (self._pages, "reports show images, of which some may be these. Delete them"),
            (
                self._loose,
                "pictures, arrays, archives or logs are no exports. Delete what shows them",
            ),
            (self._links, "links are not followed. Name what they lead to, if it holds images"),
        ):
            if paths:
                names = ", ".join(str(path.relative_to(folder)) for path in paths[:_NAMED])
                more = ", ..." * (len(paths) > _NAMED)
                found.beyond.append(f"{folder}: {len(paths):,} {text}: {names}{more}.")


def image_shapes(places: Iterable[StrPath]) -> set[tuple[int, int, int]]:
    """Shapes (C, H, W) of the images in caches and exports, and in those that lie in folders.

    Keys of real images belong to the shape, so whoever forgets in several needs them in each.

    Raises:
        CacheError: A place that is no folder is no cache either.
    """
    shapes = set()
    for place in places:
        if not os.path.isdir(place):
            shapes.add(SynthCache(place).image_shape)
            continue
        for where, _, names in os.walk(place):
            for path in [Path(where, name) for name in names]:
                with suppress(CacheError, OSError, ValueError):  # which `forget` names
                    if path.is_symlink():
                        continue
                    if path.name == MANIFEST:
                        shapes |= shape_of_export(path)
                    elif path.suffix.lower() in (".h5", ".hdf5") or _is_hdf5(path):
                        shapes.add(SynthCache(path).image_shape)
    return shapes


def _raised(error: OSError) -> None:
    raise error


def _is_kept(path: Path) -> bool:
    """Whether it is a file of kept features by its name and by the digest behind its content."""
    if not _FEATURES.fullmatch(path.name):
        return False
    try:
        check_seal(path)
    except (OSError, ValueError):
        return False
    return True


def _is_hdf5(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _shows_images(path: Path) -> bool:
    """Whether a page or the JSON that it is made of has pictures in it."""
    with open_regular(path) as file:
        end = b""
        while piece := file.read(2**20):
            if b"data:image/" in end + piece:
                return True
            end = piece[-16:]
    return False


def _learned(path: Path, keys: Unsigned) -> int:
    """How many of the images have an embedding in a file of an inversion."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(str(path), "np") as file:
            stored = file.get_tensor("keys")
        if stored.dtype != np.int64 or stored.ndim != 1:
            raise ValueError(f"its keys are {stored.dtype} {stored.shape}, expected int64 (n,)")
    except (SafetensorError, TypeError, ValueError) as error:
        raise CacheError(
            f"{path} is no file of embeddings ({error}), so which images it holds is not known. "
            "Restore it from a copy, or delete it."
        ) from error
    return int(np.isin(keys, stored.view(np.uint64)).sum())
