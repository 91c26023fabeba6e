"""Forgetting real images: what was made from them is erased, and what cannot be reached is named.

A forgotten image is known by its content key in what was made of it: in the key columns of a plan's
rows (a cache and its parts, and the records of an export), and in the keys of an inversion's
embeddings. The caches keep the keys as tombstones, with those of the images that they erased, so
merges, imports and resumed jobs leave them out as well.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthaug._cache.cards import refresh_croissant
from synthaug._cache.files import parts_folder
from synthaug._cache.remote import copied_from
from synthaug._cache.store import SynthCache
from synthaug._cache.tombstones import rows_from_sources, source_keys_of
from synthaug._pixels import digest
from synthaug._support.digests import check_seal
from synthaug._support.files import remove_orphans, sync_folder, whole_file, write_text
from synthaug._support.progress import bar
from synthaug._support.reading import (
    check_regular,
    open_regular,
    parse_json,
    read_text,
    without_secrets,
)
from synthaug._support.stopping import kept_at_stop
from synthaug._types import Pixels, StrPath, Unsigned
from synthaug.errors import CacheError

_NO_RECORD = (AttributeError, KeyError, TypeError, ValueError)
"""What a record that is none of ours raises where it is read."""
_FEATURES = re.compile(r"[0-9a-f]{32}\.np[yz]")
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")
_PAGES = (".html", ".json", ".ipynb")
"""What may have pictures in it, as text."""
_PIXELS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy", ".npz"),
    *(".parquet", ".arrow", ".zip", ".gz", ".tgz"),
)
_NAMED = 20
"""How many files are named in one line."""
MASK_FILE = "mask_file_name"
"""Where a record of an export names the mask of its image."""
MASK_SUFFIX = "mask.png"
"""What the name of a mask in a tar file ends with, after the row."""
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
        export now); for each folder of features the number of files. `beyond` lists what was not
        reached: weights, compressed copies, objects in a store, embeddings, imported caches, what
        else may show images in a folder (reports, pictures, arrays, archives, links), and whatever
        was not named.

    Raises:
        TypeError: `sources` holds something else, such as floats.
        ValueError: `sources` is empty, or holds the key 0, which stands for "no source".
        CacheError: A place cannot be read or written; places before it are done.
    """
    if isinstance(sources, torch.Tensor) and sources.ndim == 4:
        sources = [digest(image) for image in sources]
    given: list[Any] = list(sources)
    if not all(isinstance(key, Integral) and not isinstance(key, bool) for key in given):
        raise TypeError(
            "`sources` must be images, uint8 (n, C, H, W), or their content digests, which are "
            'whole numbers: `cache.plan["source_key"]`.'
        )
    keys = np.array([int(key) for key in given], np.uint64)
    if not len(keys) or (keys == 0).any():
        raise ValueError("`sources` must name at least one real image; the key 0 is none.")
    opened = [Path(p).absolute() if os.path.isdir(p) else SynthCache(p) for p in places]
    found = Forgotten()
    with (
        kept_at_stop(lambda: f"{shown.n} of {len(opened)} places are done, the next one in part."),
        bar(len(opened), "forget", "place", progress=progress) as shown,
    ):
        for place in opened:
            if isinstance(place, Path):
                _forget_in_folder(place, keys, found)
            else:
                _forget_in_cache(place, keys, found)
            shown.update(1)
    found.beyond += _ALWAYS
    return found


def _forget_in_cache(cache: SynthCache, keys: Unsigned, found: Forgotten) -> None:
    recipe = cache.manifest["recipe"]
    for name, value in recipe.get("weights", {}).items():
        found.beyond.append(
            f"The weights that drew {cache.path} ({recipe.get('synthesizer')}, {name} {value}), "
            "and checkpoints and samples of their training: if these images were among the "
            "training data, delete them and train anew."
        )
    if recipe.get("synthesizer") == "imported":
        found.beyond.append(
            f"{cache.path} was imported: what its images were made from is not known. Delete it if "
            "these images may be among that, and import again with `forgotten=` the caches from "
            "which they are erased: that compares pixels."
        )
    rows = rows_from_sources(cache.plan, keys)
    if cache.url is not None and len(rows):
        found.beyond.append(
            f"{without_secrets(cache.url)} is in a store, where nothing is erased; {len(rows):,} "
            "of its rows were made from these images. Forget in the file that was uploaded, or in "
            "a copy of it, put it there again with `synthaug.caches.upload(..., overwrite=True)`, "
            f"and delete the copies on every machine that opened it, here {cache.path}."
        )
        return
    if not cache.writable and len(rows):
        found.beyond.append(
            f"{cache.path} is a compressed copy, which cannot be written; {len(rows):,} of its "
            "rows were made from these images. Delete it, or make a plain cache of it with "
            "`merge`, forget there, and then delete it."
        )
        return
    if not cache.keeps_tombstones:
        found.beyond.append(
            f"{cache.path} is of format version 1, which keeps no tombstones: later merges and "
            "imports do not know what it forgot. `merge` makes a file of version 2 of it."
        )
    url = copied_from(cache.path)
    if url is not None and len(rows):
        found.beyond.append(
            f"{cache.path} is a copy of {url}, an object in a store, where nothing is erased: it "
            f"still holds what was drawn of {len(rows):,} rows that were made from these images, "
            "and other machines may have copies of it. Put this file there with "
            f"`synthaug.caches.upload({str(cache.path)!r}, {url!r}, overwrite=True)`, delete older "
            "versions if the store keeps them, and delete the copies on other machines."
        )
    remove_orphans(cache.path)  # what a kill left of it may hold the images
    found[cache.path] = _withdraw(cache, keys)
    # The whole first: whoever lays out a part later sees there what is withdrawn.
    for path in sorted(parts_folder(cache.path).glob("*.h5")):
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


def _forget_in_folder(folder: Path, keys: Unsigned, found: Forgotten) -> None:
    try:
        remove_orphans(folder)  # what a kill left of an export may hold the images
        _Search(folder, keys, found).run()
    except (OSError, tarfile.TarError, *_NO_RECORD) as error:
        raise CacheError(
            f"Cannot forget in {folder}: {error}. Repair the cause and forget again, or delete the "
            "folder."
        ) from error


class _Search:
    """Erases what lies in a folder and below it, and names what cannot be erased.

    Links are not followed: they may lead out of the folder, which may be a stranger's.
    """

    def __init__(self, folder: Path, keys: Unsigned, found: Forgotten) -> None:
        self._folder, self._keys, self._found = folder, keys, found
        self._wanted = set(keys.tolist())
        self._exports: list[Path] = []
        self._recorded: set[str] = set()
        self._caches = self._learned = 0
        self._pages: list[Path] = []
        self._loose: list[Path] = []
        self._links: list[Path] = []

    def run(self) -> None:
        for where, folders, names in os.walk(self._folder, onerror=_raised):
            place = Path(where)
            folders.sort()
            self._look(place, folders, sorted(names))
        self._report()

    def _look(self, place: Path, folders: list[str], names: list[str]) -> None:
        """Does what is to be done in one folder; those below are looked at next."""
        whole = place.with_name(place.name.removesuffix(".parts")) if place.name else place
        if place != self._folder and parts_folder(whole) == place and _is_plain(whole):
            folders.clear()  # parts go with their whole
            return
        for name in [*folders, *names]:
            if partial := _PARTIAL.fullmatch(name):
                remove_orphans(place / partial[1])
        folders[:] = [name for name in folders if (place / name).exists()]
        paths = [place / name for name in names if os.path.lexists(place / name)]
        self._links += [
            path for path in (*(place / f for f in folders), *paths) if path.is_symlink()
        ]
        with self._told(place):
            self._forget_export(place, [path for path in paths if not path.is_symlink()])
        for path in paths:
            own = path.parent == self._folder / "embeddings"  # of the inversion that was named
            with self._told(self._folder if own else path):
                if path.exists() and not path.is_symlink():
                    self._forget_file(path)

    @contextmanager
    def _told(self, place: Path) -> Iterator[None]:
        """Names what cannot be read below the folder; in the folder itself it is an error."""
        try:
            yield
        except (CacheError, OSError, tarfile.TarError, *_NO_RECORD) as error:
            if place == self._folder:
                raise
            text = f"{error}".rstrip(".")
            self._found.beyond.append(
                f"{text}. If it holds something of the images, delete {place}."
            )

    def _forget_export(self, place: Path, paths: list[Path]) -> None:
        """Takes images out of an export, or deletes kept features, if the folder is such."""
        counts = []
        if (records := place / "provenance.jsonl") in paths:
            counts.append(_from_records(records, self._wanted, self._recorded))
        for path in paths:
            if path.suffix == ".tar":
                with self._told(place if place == self._folder else path):
                    counts.append(_from_tar(path, self._wanted))
        if counts:
            refresh_croissant(place)
        features = [path for path in paths if _is_kept(path)]
        if features and place == self._folder:
            for path in features:
                path.unlink()
            counts.append(len(features))
        if counts:
            self._exports.append(place)
            self._found[place] = sum(counts)
            sync_folder(place)

    def _forget_file(self, path: Path) -> None:
        if path.suffix == ".safetensors" and path.parent.name == "embeddings":
            self._learned += _learned(path, self._keys)
        elif path.suffix in _PAGES:
            if _shows_images(path):
                self._pages.append(path)
        elif path.suffix.lower() in _PIXELS:
            if os.fspath(path) not in self._recorded:
                self._loose.append(path)
        elif path.suffix in (".h5", ".hdf5") or _is_hdf5(path):
            _forget_in_cache(SynthCache(path), self._keys, self._found)
            self._caches += 1

    def _report(self) -> None:
        folder, found = self._folder, self._found
        below = sum(place != folder for place in self._exports)
        held = [f"embeddings of {self._learned:,} of these images"] * bool(self._learned)
        held += [f"{self._caches:,} caches, which are done"] * bool(self._caches)
        held += [f"{below:,} exports, which are done"] * bool(below)
        if held or folder not in self._exports:
            found.beyond.append(
                f"{folder} holds {' and '.join(held) or 'no export'}. Weights, checkpoints and "
                "samples of training, and reports, cannot be made to forget: if these images were "
                "among the training data, delete the folder and start anew without them."
            )
        for paths, text in (
            (self._pages, "reports show images, of which some may be these. Delete them"),
            (self._loose, "pictures, arrays or archives are of no export. Delete what shows them"),
            (self._links, "links are not followed. Name what they lead to, if it holds images"),
        ):
            if paths:
                names = ", ".join(str(path.relative_to(folder)) for path in paths[:_NAMED])
                more = ", ..." * (len(paths) > _NAMED)
                found.beyond.append(f"{folder}: {len(paths):,} {text}: {names}{more}.")


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


def _is_plain(path: Path) -> bool:
    """Whether it is a file that lies there itself: no link, pipe or device."""
    return path.is_file() and not path.is_symlink()


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


def derived(record: Mapping[str, Any], keys: set[int]) -> bool:
    """Whether an image was made from one of the sources, by what an export says about it."""
    values = [value for name, value in record.items() if name.endswith("_key")]
    return any(
        (int(value, 16) if isinstance(value, str) else value % 2**64) in keys for value in values
    )


def _from_records(path: Path, keys: set[int], kept_files: set[str]) -> int:
    """Deletes images of an export in class folders, and then what its records say about them;
    adds the files of the other records."""
    folder, root = path.parent, path.parent.resolve()
    kept, count = [], 0
    for line in read_text(path, 2**34).splitlines():
        record = parse_json(line)
        names = [record[key] for key in ("file_name", MASK_FILE) if key in record]
        if not derived(record, keys):
            kept.append(line)
            kept_files.update(os.path.join(folder, name) for name in names)
            continue
        for name in names:
            file = (folder / name).resolve()
            if not file.is_relative_to(root):  # the folder may be a stranger's
                raise ValueError(f"a record names {name!r}, outside of the folder")
            file.unlink(missing_ok=True)
        count += 1
    if count:
        write_text(path, "".join(f"{line}\n" for line in kept))
    return count


def _from_tar(path: Path, keys: set[int]) -> int:
    """Writes a tar file of an export anew without some of its images."""
    check_regular(path)
    with tarfile.open(path, "r:") as archive:  # as we write them, not compressed
        stems = {
            name.removesuffix(".json")
            for name, data in _members(archive)
            if name.endswith(".json") and derived(parse_json(data.decode()), keys)
        }
        if not stems:
            return 0
        with whole_file(path) as temporary, tarfile.open(temporary, "w") as rest:
            for member in archive.getmembers():
                stem = member.name.removesuffix(f".{MASK_SUFFIX}").removesuffix(".png")
                if stem not in stems and member.name.rpartition(".")[0] not in stems:
                    rest.addfile(member, archive.extractfile(member))
    return len(stems)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive.getmembers():
        file = archive.extractfile(member)
        if file is not None:
            yield member.name, file.read()


def _learned(path: Path, keys: Unsigned) -> int:
    """How many of the images have an embedding in a file of an inversion."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(str(path), "pt") as file:
            stored = file.get_tensor("keys").numpy().view(np.uint64)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return int(np.isin(keys, stored).sum())
