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
from synthaug._support.files import remove_orphans, sync_folder, whole_file, write_text
from synthaug._support.progress import bar
from synthaug._support.reading import check_regular, parse_json, read_text, without_secrets
from synthaug._support.stopping import kept_at_stop
from synthaug._types import Pixels, StrPath, Unsigned
from synthaug.errors import CacheError

_NO_RECORD = (AttributeError, KeyError, TypeError, ValueError)
"""What a record that is none of ours raises where it is read."""
_FEATURES = re.compile(r"[0-9a-f]{32}\.np[yz]")
MASK_FILE = "mask_file_name"
"""Where a record of an export names the mask of its image."""
MASK_SUFFIX = "mask.png"
"""What the name of a mask in a tar file ends with, after the row."""
_ALWAYS = (
    "Copies, backups and exports that were not named: name them too, or delete them.",
    "Reports of audits and selections (HTML) and sheets (PNG) that show the images: delete them.",
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
    every cache that lies in it. They are found by the column `source_key`, and by every column
    whose name ends in `_key`, such as that of a partner which was interpolated with. Features that
    were kept are deleted whole: they do not say of which images they are.

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
        reached: weights, compressed copies, objects in a store, embeddings, and whatever was not
        named.

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
    wanted = set(keys.tolist())
    try:
        remove_orphans(folder)  # what a kill left of an export may hold the images
        features = [path for path in folder.iterdir() if _FEATURES.fullmatch(path.name)]
        tars = sorted(folder.glob("*.tar"))
        if (folder / "provenance.jsonl").exists():
            found[folder] = _from_records(folder, wanted)
            refresh_croissant(folder)
        elif tars:
            found[folder] = sum(_from_tar(path, wanted) for path in tars)
            refresh_croissant(folder)
        elif features:
            for path in features:
                path.unlink()
            found[folder] = len(features)
        else:
            _forget_below(folder, keys, found)
        sync_folder(folder)
    except (OSError, tarfile.TarError, *_NO_RECORD) as error:
        raise CacheError(
            f"Cannot forget in {folder}: {error}. Repair the cause and forget again, or delete the "
            "folder."
        ) from error


def _forget_below(folder: Path, keys: Unsigned, found: Forgotten) -> None:
    """Erases from the caches in a folder of other files, and names what cannot be erased."""
    caches = 0
    for path in sorted((*folder.rglob("*.h5"), *folder.rglob("*.hdf5"))):
        # Links may lead out of the folder, which may be a stranger's. Parts go with their whole.
        if path.is_symlink() or path.name[0] == "." or path.parent.suffix == ".parts":
            continue
        try:
            cache = SynthCache(path)
        except CacheError as error:
            found.beyond.append(f"{error} If it holds something of the images, delete {path}.")
            continue
        _forget_in_cache(cache, keys, found)
        caches += 1
    learned = sum(_learned(path, keys) for path in folder.glob("embeddings/*.safetensors"))
    held = [f"embeddings of {learned:,} of these images"] * bool(learned)
    held += [f"{caches:,} caches, which are done"] * bool(caches)
    found.beyond.append(
        f"{folder} holds {' and '.join(held) or 'no export'}. Weights, checkpoints and samples of "
        "training, and reports, cannot be made to forget: if these images were among the training "
        "data, delete the folder and start anew without them."
    )


def derived(record: Mapping[str, Any], keys: set[int]) -> bool:
    """Whether an image was made from one of the sources, by what an export says about it."""
    values = [value for name, value in record.items() if name.endswith("_key")]
    return any(
        (int(value, 16) if isinstance(value, str) else value % 2**64) in keys for value in values
    )


def _from_records(folder: Path, keys: set[int]) -> int:
    """Deletes images of an export in class folders, and then what its records say about them."""
    path, root = folder / "provenance.jsonl", folder.resolve()
    kept, count = [], 0
    for line in read_text(path, 2**34).splitlines():
        record = parse_json(line)
        if not derived(record, keys):
            kept.append(line)
            continue
        names = [record[key] for key in ("file_name", MASK_FILE) if key in record]
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
