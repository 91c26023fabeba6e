"""Taking images out of a cache: class folders, webdataset, Hugging Face, compressed HDF5.

Every PNG says in its XMP metadata that a trained algorithm made it (IPTC digital source type
`trainedAlgorithmicMedia`), so the label stays with the image wherever it goes.
"""

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import PngImagePlugin

from synthaug._cache.cards import Facts, card, croissant
from synthaug._cache.credentials import MADE_BY_MODEL, ContentCredentials
from synthaug._cache.exported import ANNOTATIONS, MANIFEST, MASK_FILE, MASK_SUFFIX, RECORDS, SHAPE
from synthaug._cache.files import Patient, new_file, new_folder, refuse_remote, refuse_taken
from synthaug._cache.format import State, blocks, data_sets_of, mark_sealed, new_hdf5
from synthaug._cache.masks import SourceMasks
from synthaug._cache.serving import servable
from synthaug._cache.store import SynthCache
from synthaug._cache.stored_rows import data_set_of
from synthaug._cache.synthesizer import texts_of
from synthaug._cache.tombstones import seals
from synthaug._pixels import to_pil
from synthaug._printable import shortened
from synthaug._support.names import one_for_all_systems, path_fault
from synthaug._support.progress import bar
from synthaug._support.rows import row_numbers
from synthaug._types import Array, Indices, StrPath
from synthaug.errors import CacheError

ExportFormat = Literal["folder", "webdataset", "huggingface", "hdf5"]

Advance = Callable[[int], object]
"""Moves a progress bar."""
PNGs = Iterator[tuple[int, bytes]]
"""Row numbers and PNG files."""

_PER_TAR = 10_000  # images
_HASHES = {"seed", "source_key", "partner_key"}
"""Columns that do not fit every reader's integers; written as hexadecimal text."""
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    f'Iptc4xmpExt:DigitalSourceType="{MADE_BY_MODEL}" xmp:CreatorTool="synthaug"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

_OWN_FILES = ("croissant.json", MANIFEST, RECORDS)
"""What an export writes beside the class folders."""

logger = logging.getLogger("synthaug")


def export(
    cache: SynthCache,
    out: StrPath,
    *,
    format: ExportFormat,
    rows: ArrayLike | None = None,
    audit: Any = None,
    credentials: ContentCredentials | None = None,
    masks: SourceMasks | None = None,
    progress: bool = False,
) -> Path:
    """Writes images of a cache in a form that others read.

        export(cache, "cifar-synthetic", format="folder", rows=report.passed)

    `out` appears only when it is complete.

    Args:
        cache: A cache; images are checked on the way.
        out: A folder, or for "hdf5" a file, that does not exist yet.
        format: "folder": one folder per class with PNG files, as torchvision's `ImageFolder` reads,
            `provenance.jsonl`, `manifest.json` and `croissant.json`. "webdataset": tar files of
            `.png`, `.cls` and `.json`. "huggingface": a data set directory with a card, for
            `datasets.load_dataset(out)`. "hdf5": a compressed copy of the whole cache, which
            `SynthCache` reads, slowly.
        rows: Row numbers to write, or a mask, bool (N,); by default all that are done.
        audit: An audit's report about the cache. Rows that it withheld are left out, and card and
            `croissant.json` say its verdict, and the fewest copies that it would have noticed.
        credentials: Signs every PNG; by default they carry metadata without a signature.
        masks: Masks and boxes of the real images that the rows were made from. Rows that keep the
            outlines of their source get those of it, others are left out. "folder" then has images
            in `images/CLASS`, masks of the same names in `masks/CLASS`, and boxes in
            `annotations.json` as COCO has them; "webdataset" has `.mask.png`, and `objects` in
            `.json`; the other forms take none. Without both it only leaves rows out.
        progress: Show a bar.

    Returns:
        `out`.

    Raises:
        ValueError: Nothing to write, a row that is not done, a class name that cannot be the
            name of a folder, credentials for a form without PNG files, or masks for one that takes
            none.
        DataError: The credentials sign nothing, or a mask does not fit its image.
        MismatchError: `audit` is about another cache, or `masks` about other sources.
        CacheError: `out` exists, cannot be written, or is a URL; an image is not the one that was
            written, or was withdrawn while it was exported.
    """
    writers: dict[str, Callable[[SynthCache, Path, PNGs, SourceMasks | None], None]] = {
        "folder": _folder,
        "webdataset": _webdataset,
        "huggingface": _huggingface,
    }
    if format not in (*writers, "hdf5"):
        known = ", ".join(repr(name) for name in [*writers, "hdf5"])
        raise ValueError(f"`format` must be one of {known}, got {format!r}.")
    refuse_remote(out)
    if audit is not None:
        passed = servable(cache, audit).mask
        if rows is not None:
            asked = np.zeros(len(cache), bool)
            asked[_chosen(cache, rows)] = True
            passed &= asked
        rows = passed
    _check_form(format, rows, credentials, masks)
    chosen = _chosen(cache, rows)
    target = Path(out).absolute()
    if masks is not None:
        refuse_taken(target)  # before every image is compared
        chosen = masks.fitting(cache, chosen, progress=progress)
        masks = masks if masks.has_masks or masks.has_boxes else None
    if not cache.manifest["license"].get("generator"):
        logger.warning(
            "%s does not record the license of its generator, so nobody knows how its images may "
            "be used. State it when images are made: `--generator-license`, or `license=`.",
            cache.path,
        )
    if format in ("folder", "huggingface"):
        _check_folder_names(tuple(cache.classes[i] for i in np.unique(cache.labels[chosen])))
    if credentials is not None:
        credentials.check()
    with bar(len(chosen), "export", "image", progress=progress) as shown:
        if format == "hdf5":
            _compressed(cache, target, shown.update)
        else:
            with new_folder(target) as folder, _served_to_the_end(cache, chosen):
                images = _pngs(cache, chosen, credentials, shown.update)
                writers[format](cache, folder, images, masks)
                (folder / MANIFEST).write_text(_manifest(cache), encoding="utf-8")
                facts = Facts(cache, chosen, audit, masks is not None)
                described = croissant(facts, folder)
                (folder / "croissant.json").write_text(described, encoding="utf-8")
                if format == "huggingface":
                    (folder / "README.md").write_text(card(facts), encoding="utf-8")
    return target


def _check_form(
    form: ExportFormat,
    rows: ArrayLike | None,
    credentials: ContentCredentials | None,
    masks: SourceMasks | None,
) -> None:
    """Refuses arguments that a form of export has no place for."""
    if form == "hdf5" and rows is not None:
        raise ValueError("`format='hdf5'` copies every row. To leave some out, use another format.")
    if form == "hdf5" and credentials is not None:
        raise ValueError(
            "`credentials` sign PNG files, and `format='hdf5'` writes none. Use another format."
        )
    if masks is not None and form == "hdf5":
        raise ValueError("`format='hdf5'` takes no `masks`. Use 'folder' or 'webdataset'.")
    if masks is not None and (masks.has_masks or masks.has_boxes) and form == "huggingface":
        raise ValueError(
            "`format='huggingface'` takes no `masks` or boxes. Use 'folder' or 'webdataset'."
        )


@contextmanager
def _served_to_the_end(cache: SynthCache, rows: Indices) -> Iterator[None]:
    """Refuses to finish what holds an image that was withdrawn after it had been read."""
    yield
    gone = rows[cache.state_of(rows) != State.DONE]
    if len(gone):
        raise CacheError(
            f"{cache.path}: {len(gone):,} rows were withdrawn while they were exported, the first "
            f"is row {gone[0]}. Nothing was written: export again, without them."
        )


def _chosen(cache: SynthCache, rows: ArrayLike | None) -> Indices:
    done = cache.done
    chosen = np.flatnonzero(done) if rows is None else row_numbers(rows, len(cache), "rows")
    if not chosen.size:
        raise ValueError(f"{cache.path} has no image to export. Generate some first.")
    outside = chosen[(chosen < 0) | (chosen >= len(cache))]
    if len(outside):
        raise ValueError(f"`rows` names row {outside[0]}, the cache has {len(cache):,}.")
    if not done[chosen].all():
        raise ValueError(f"`rows` names row {chosen[~done[chosen]][0]}, which is not done.")
    return np.unique(chosen)


def _check_folder_names(classes: tuple[str, ...]) -> None:
    """Refuses class names that are no names of folders, or not on every system.

    They come from the file, so one like "../x" would write outside of the folder. And exports
    travel: to systems that reserve some names, and to some for which "Cat" and "cat" are one.

    Raises:
        ValueError: Naming the class, and a form that has no class folders.
    """
    remedy = "Export as 'webdataset' or 'hdf5'."
    taken = {one_for_all_systems(name): f"{name}, a file of the export" for name in _OWN_FILES}
    for name in classes:
        inner = path_fault(f"images/{name}/00000000.png")
        if fault := "it has a slash" if "/" in name else inner:
            raise ValueError(
                f"Class {shortened(name)!r} cannot be the name of a folder on every system: "
                f"{fault}. {remedy}"
            )
        folded = one_for_all_systems(name)
        if folded in taken:
            raise ValueError(
                f"Class {name!r} and {taken[folded]} would be one folder on systems that do not "
                f"tell upper from lower case. {remedy}"
            )
        taken[folded] = f"class {name!r}"


def _png(image: Any) -> bytes:
    """One image, uint8 (C, H, W), as a PNG that says how it was made."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("XML:com.adobe.xmp", _XMP)
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", pnginfo=metadata)
    return buffer.getvalue()


def _pngs(
    cache: SynthCache, rows: Indices, credentials: ContentCredentials | None, advance: Advance
) -> PNGs:
    for block in blocks(rows, cache.image_shape):
        for row, image in zip(block.tolist(), cache.read(block), strict=True):
            png = _png(image)
            if credentials is not None:
                made_from = {"row": row, "plan": cache.plan_digest}
                png = credentials.sign(png, f"{row:08d}.png", made_from)
            yield row, png
            advance(1)


def _record(cache: SynthCache, row: int) -> dict[str, Any]:
    """Returns the origin of one image; the recipe, equal for all, is in `manifest.json`."""
    values: dict[str, Any] = {**cache.plan.row(row), "row": row}
    texts = texts_of(values, cache.manifest["recipe"])
    for name in _HASHES & values.keys():
        values[name] = f"{values[name]:016x}"
    return {**values, **texts}


def _manifest(cache: SynthCache) -> str:
    more = {"identity": cache.identity, SHAPE: list(cache.image_shape)}
    return json.dumps({**cache.manifest, **more}, indent=2)


def _folder(cache: SynthCache, folder: Path, images: PNGs, masks: SourceMasks | None) -> None:
    _class_folders(cache, folder, folder if masks is None else folder / "images", images, masks)
    if masks is not None and masks.has_boxes:
        _coco(cache, folder, masks)


def _coco(cache: SynthCache, folder: Path, masks: SourceMasks) -> None:
    """The boxes of exported images as one COCO file."""
    images, annotations = [], list[dict[str, Any]]()
    _, height, width = cache.image_shape
    with (folder / RECORDS).open(encoding="utf-8") as records:
        for record in map(json.loads, records):
            row, name = record["row"], record["file_name"]
            images.append({"id": row, "file_name": name, "width": width, "height": height})
            for box in masks.annotations(cache, row):
                annotations.append({"id": len(annotations) + 1, "image_id": row, **box})
    content = {"images": images, "annotations": annotations, "categories": masks.categories()}
    (folder / ANNOTATIONS).write_text(json.dumps(content), encoding="utf-8")


def _class_folders(
    cache: SynthCache, folder: Path, below: Path, images: PNGs, masks: SourceMasks | None
) -> None:
    """PNG files in class folders `below`, and `provenance.jsonl` in `folder`."""
    with (folder / RECORDS).open("w", encoding="utf-8") as records:
        for row, png in images:
            record = _record(cache, row)
            name = f"{cache.classes[record['label']]}/{row:08d}.png"
            files = {"file_name": (below / name, png)}
            if masks is not None and masks.has_masks:
                files[MASK_FILE] = (folder / "masks" / name, masks.png(cache, row))
            for path, data in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            names = {key: path.relative_to(folder).as_posix() for key, (path, _) in files.items()}
            print(json.dumps({**names, **record}), file=records)


def _webdataset(cache: SynthCache, folder: Path, images: PNGs, masks: SourceMasks | None) -> None:
    number = 0
    while some := list(islice(images, 1)):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as archive:
            for row, png in chain(some, islice(images, _PER_TAR - 1)):
                record = _record(cache, row)
                mask = []
                if masks is not None and masks.has_masks:
                    mask = [(MASK_SUFFIX, masks.png(cache, row))]
                if masks is not None and masks.has_boxes:
                    record["objects"] = [
                        {"category": masks.category(one["category_id"]), **one}
                        for one in masks.annotations(cache, row)
                    ]
                for suffix, data in (
                    ("png", png),
                    ("cls", str(record["label"]).encode()),
                    ("json", json.dumps(record).encode()),
                    *mask,
                ):
                    member = tarfile.TarInfo(f"{row:08d}.{suffix}")  # time 0: equal files
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        number += 1


def _huggingface(cache: SynthCache, folder: Path, images: PNGs, masks: SourceMasks | None) -> None:
    _class_folders(cache, folder, folder / "train", images, masks)


def _compressed(cache: SynthCache, target: Path, advance: Advance) -> None:
    """The same cache, with one compressed chunk per image."""
    plan, state = cache.plan, cache.state
    values = {"state": state, "checksum": cache.checksums}
    tombstones = cache.tombstones
    text = json.dumps(cache.manifest, sort_keys=True)
    with new_file(target) as fd:
        stream = Patient(fd)
        done = np.flatnonzero(state == State.DONE)
        with _served_to_the_end(cache, done), new_hdf5(stream, text, plan.digest) as file:
            for name, (dtype, shape) in data_sets_of(plan, cache.image_shape).items():
                chunk = (1, *shape[1:]) if name == "images" else (min(shape[0], 2**16),)
                file.create_dataset(
                    name, shape, dtype, chunks=chunk, compression="gzip", shuffle=True
                )
                if name in values:
                    file[name][...] = values[name]

            def store(name: str, start: int, piece: Array) -> None:
                file[data_set_of(name)][start : start + len(piece)] = piece

            plan.visited(store)
            file["tombstones"][: len(tombstones)] = tombstones
            sealed = seals(tombstones, places := len(file["tombstones"]))
            file["tombstones"][places - len(sealed) :] = sealed
            mark_sealed(file)
            images = file["images"]
            for block in blocks(done, cache.image_shape):
                stream.check()
                for row, image in zip(block.tolist(), cache.read(block).numpy(), strict=True):
                    images[row] = image
                    advance(1)
        stream.check()
