"""Exports that lie on a disk: images are taken out of them by what their records say.

A folder may be a stranger's, so a record deletes nothing but what an export writes: a plain file in
a class folder, called by the row of the record. All records are read before one file is deleted.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from synthaug._support.files import whole_file, write_text
from synthaug._support.names import path_fault
from synthaug._support.reading import check_regular, parse_json, read_text
from synthaug._types import JSON
from synthaug.errors import CacheError

MANIFEST = "manifest.json"
"""The file of an export that says how all images were made."""
SHAPE = "image_shape"
"""Where the manifest of an export has (C, H, W) of its images."""
RECORDS = "provenance.jsonl"
"""The file in class folders that says what each image was made from."""
ANNOTATIONS = "annotations.json"
"""The file of an export that has the boxes in its images, as COCO has them."""
FILE = "file_name"
"""Where a record names its image."""
MASK_FILE = "mask_file_name"
"""Where a record names the mask of its image."""
MASK_SUFFIX = "mask.png"
"""What the name of a mask in a tar file ends with, after the row."""

_KEY = re.compile(r"[0-9a-f]{1,16}")
_MOST_PIXELS = 4096
"""The longest side that is believed: real images are brought to it."""
_RECORD_BYTES = 2**20
"""More than a record has."""


def shape_of_export(manifest: Path) -> set[tuple[int, int, int]]:
    """The shape (C, H, W) that a manifest names; none if it is of something else.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON.
    """
    told = parse_json(read_text(manifest))
    shape = told.get(SHAPE) if isinstance(told, dict) else None
    if not isinstance(shape, list) or [type(side) for side in shape] != [int] * 3:
        return set()
    channels, height, width = shape
    sensible = channels in (1, 3) and 0 < height <= _MOST_PIXELS and 0 < width <= _MOST_PIXELS
    return {(channels, height, width)} if sensible else set()


def take_out(records: Path, keys: set[int]) -> tuple[int, set[Path]]:
    """Deletes images of an export in class folders, and what its records say about them.

    Args:
        records: Its `provenance.jsonl`.
        keys: Content keys of the real images whose images are deleted.

    Returns:
        The number of images, and the files that the other records name.

    Raises:
        CacheError: A record is damaged, or names what no export writes; nothing was deleted.
        OSError: The file cannot be read, or an image cannot be deleted.
    """
    try:
        lines = read_text(records, 2**34).splitlines()
    except UnicodeDecodeError as error:
        raise _damaged(str(records), "it is not text in UTF-8") from error
    stay: list[str] = []
    stay_files, gone = set(), []
    for number, line in enumerate(lines, 1):
        where = f"Record {number} of {records}"
        record = _record(line, where)
        named = [_image(records.parent, record, key, where) for key in (FILE, MASK_FILE)]
        files = [file for file in named if file is not None]
        if not _keys_of(record, where) & keys:
            stay.append(line)
            stay_files.update(files)
            continue
        for file in files:
            _check_plain(records.parent, file, where)
        gone.append(files)
    boxes = _annotations(records.with_name(ANNOTATIONS)) if gone else None
    erased = {file for files in gone for file in files}
    for file in erased:
        file.unlink(missing_ok=True)
    if boxes is not None:
        names = {file.relative_to(records.parent).as_posix() for file in erased}
        write_text(records.with_name(ANNOTATIONS), _without(boxes, names))
    if gone:  # last: after a kill they still say what is to be deleted
        write_text(records, "".join(f"{line}\n" for line in stay))
    return len(gone), stay_files


def _annotations(path: Path) -> dict[str, Any] | None:
    """The boxes of an export; `None` if it has none."""
    if not path.exists():
        return None
    try:
        content = parse_json(read_text(path, 2**34))
        _without(content, set())
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(str(path), "it is no COCO file of images and boxes") from error
    return dict(content)


def _without(boxes: dict[str, Any], names: set[str]) -> str:
    """The text of a COCO file without some images, by their names, and without their boxes."""
    numbers = {one["id"] for one in boxes["images"] if one["file_name"] in names}
    images = [one for one in boxes["images"] if one["id"] not in numbers]
    rest = [one for one in boxes["annotations"] if one["image_id"] not in numbers]
    return json.dumps({**boxes, "images": images, "annotations": rest})


def take_out_of_tar(path: Path, keys: set[int]) -> tuple[int, bool]:
    """Writes a tar file of an export anew without some of its images.

    Returns:
        The number of images that were in it, and whether every file in it has a record. If not, it
        may hold other images: somebody else made it.

    Raises:
        CacheError: It is damaged or compressed, or a record in it is damaged.
    """
    check_regular(path)
    try:
        # As we write them, not compressed; closed before another file takes its place.
        with ExitStack() as replaced, tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            if any(not member.isreg() or member.issparse() for member in members):
                return 0, False  # a backup, say: no export writes it so
            stems, known = set(), set()
            for stem, record, where in _records_of_tar(path, archive):
                known.add(stem)
                if _keys_of(record, where) & keys:
                    stems.add(stem)
            if stems:
                temporary = replaced.enter_context(whole_file(path))
                with tarfile.open(temporary, "w") as rest:
                    for member in members:
                        if not _stems(member) & stems:
                            rest.addfile(member, archive.extractfile(member))
    except (tarfile.TarError, EOFError) as error:
        raise CacheError(
            f"{path} is no whole tar file, or a compressed one ({error}). Restore it from a copy "
            "and forget again, or delete it."
        ) from error
    return len(stems), all(_stems(member) & known for member in members)


def _records_of_tar(
    path: Path, archive: tarfile.TarFile
) -> Iterator[tuple[str, dict[str, JSON], str]]:
    """The stem of each record in a tar file, the record, and where it is."""
    for member in archive.getmembers():
        if member.name.endswith(".json"):
            where = f"The record {member.name} in {path}"
            if member.size > _RECORD_BYTES:
                raise _damaged(where, f"it has {member.size:,} bytes")
            file = archive.extractfile(member)
            text = b"" if file is None else file.read()
            yield member.name.removesuffix(".json"), _record(text, where), where


def _stems(member: tarfile.TarInfo) -> set[str]:
    """Returns both names that its record may have, without the ending."""
    whole = member.name.removesuffix(f".{MASK_SUFFIX}").removesuffix(".png")
    return {whole, member.name.rpartition(".")[0]}


def _record(text: str | bytes, where: str) -> dict[str, JSON]:
    try:
        record = parse_json(text.decode() if isinstance(text, bytes) else text)
    except ValueError as error:
        raise _damaged(where, "it is not JSON") from error
    if not isinstance(record, dict):
        raise _damaged(where, "it is no JSON object")
    if "source_key" not in record:
        raise _damaged(where, "it does not name its source (`source_key`)")
    return record


def _keys_of(record: dict[str, Any], where: str) -> set[int]:
    """Content keys of the real images that went into an image."""
    keys = set()
    for name, value in record.items():
        if not name.endswith("_key"):
            continue
        if isinstance(value, str) and _KEY.fullmatch(value):
            keys.add(int(value, 16))
        elif isinstance(value, int) and not isinstance(value, bool):
            keys.add(value % 2**64)  # a parameter, int64: the same 64 bits
        else:
            raise _damaged(where, f"`{name}` is {value!r:.40}, expected a content key")
    return keys


def _image(folder: Path, record: dict[str, Any], key: str, where: str) -> Path | None:
    """The file that a record names, below the folder; `None` if it names none of this kind."""
    if key not in record and key == MASK_FILE:
        return None
    name, row = record.get(key), record.get("row")
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise _damaged(where, f"`row` is {row!r:.40}, expected the number of a row")
    if (
        not isinstance(name, str)
        or path_fault(name)
        or len(parts := name.split("/")) not in (2, 3)
        or parts[-1] != f"{row:08d}.png"
    ):
        raise _damaged(
            where, f"`{key}` is {name!r:.80}, expected a file in a class folder, {row:08d}.png"
        )
    return folder.joinpath(*parts)


def _check_plain(folder: Path, file: Path, where: str) -> None:
    """Refuses to delete what is no plain file, or is reached through a link."""
    if file.resolve() != folder.resolve() / file.relative_to(folder):
        raise CacheError(
            f"{where} names {file}, which is a link, or lies behind one. Nothing was deleted: "
            "delete the image that it leads to and the link, and forget again."
        )
    if file.exists() and not file.is_file():
        raise _damaged(where, f"{file} is no file")


def _damaged(where: str, fault: str) -> CacheError:
    return CacheError(
        f"{where} is damaged: {fault}. Its images are still there: restore it from a copy and "
        "forget again, or delete the export."
    )
