"""Commands that look after cache files."""

from pathlib import Path
from typing import Any, Literal

from synthaug._cli.arguments import contents, names, next_audit, next_line, verdicts
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import (
    FileOptions,
    ImageOptions,
    LicenseOptions,
    MaskOptions,
    SigningOptions,
    StorageOptions,
)
from synthaug._printable import amount

IMPORT = defaults("_cache.tools:import_images")
_MOST_CLASSES = 500  # on a sheet, which has a line for each


def info(cache: str, *, sheet: str | None = None) -> Result:
    """Show what a cache holds, and how it was made.

    synthaug cache info cifar10.h5 --sheet cifar10.png

    Args:
        cache: The HDF5 file.
        sheet: Also writes a picture of images of every class, or of the first 500.
    """
    from synthaug._support.files import picture_format, write_picture

    if sheet is not None:
        picture_format(sheet)
    from synthaug._cache import SynthCache, contact_sheet, info_text
    from synthaug._cache import info as facts

    opened = SynthCache(cache)
    text = info_text(opened)
    if sheet is not None:
        write_picture(sheet, contact_sheet(opened, most_classes=_MOST_CLASSES))
        shown = f", of the first {_MOST_CLASSES} classes" * (len(opened.classes) > _MOST_CLASSES)
        text += f"\nSamples: {sheet}{shown}"
    text += f"\n{next_audit(cache)}"
    return Result(record={**facts(opened), "sheet": sheet}, text=text)


def verify(cache: str) -> Result:
    """Check every image of a cache against its checksum.

    synthaug cache verify cifar10.h5

    Args:
        cache: The HDF5 file.
    """
    from synthaug._cache import SynthCache

    opened = SynthCache(cache)
    bad = opened.verify(progress=True).tolist()
    record = {"cache": cache, "rows": len(opened), "damaged": bad}
    if bad:
        rows = ", ".join(map(str, bad[:20]))
        text = (
            f"{amount(len(bad), 'damaged row')}: {rows}. Draw anew: run `synthaug generate` again."
        )
        return Result(record=record, text=text, code=4)
    return Result(record=record, text=f"Every row is intact.\n{next_audit(cache)}")


def merge(out: str, caches: list[str], storage: StorageOptions) -> Result:
    """Copy several caches of one recipe into one, each image checked.

    synthaug cache merge all.h5 first.h5 second.h5

    Args:
        out: The new cache.
        caches: The caches to copy.
        storage: How the new cache stores images.
    """
    from synthaug._audit.merging import merge as run
    from synthaug._audit.notes import notes_path, read_notes

    merged = run(caches, out, encoding=storage.encoding, progress=True)
    pairs = sum(len(accepted.pairs) for accepted in read_notes(notes_path(out)).accepted)
    told = f"Carried over: {amount(pairs, 'pair')} accepted as harmless. " if pairs else ""
    told += "Reports of the parts do not hold for the whole: audit it."
    return Result(record=contents(merged), text=f"{merged}\n{told}\n{next_audit(out)}")


def export(
    cache: str,
    out: str,
    signing: SigningOptions,
    masks: MaskOptions,
    files: FileOptions,
    *,
    format: Literal["folder", "webdataset", "huggingface", "hdf5"],
    audit: str | None = None,
    selection: str | None = None,
) -> Result:
    """Write the images of a cache for other tools, marked as synthetic.

    synthaug cache export cifar10.h5 cifar10-synthetic --format folder --audit audit.json

    Args:
        cache: The HDF5 file.
        out: A folder, or for hdf5 a file, that does not exist yet.
        signing: For content credentials.
        masks: For segmentation, and for boxes.
        files: For the real images.
        format: folder has one folder of PNG files per class, webdataset tar files, huggingface a
            data set directory with a card, and hdf5 a compressed copy of the whole cache.
        audit: JSON report of the cache; images that it did not pass are left out, and the export
            says its verdict.
        selection: JSON that select wrote about the cache; what it did not keep is left out.
    """
    import numpy as np

    from synthaug._audit import AuditReport
    from synthaug._cache import SynthCache
    from synthaug._cache import export as run
    from synthaug._cache.serving import servable

    credentials = signing.credentials()
    opened = SynthCache(cache)
    kept = verdicts(opened, audit=audit, selection=selection)
    rows = None if kept is None else np.flatnonzero(servable(opened, kept).mask)
    report = None if audit is None else AuditReport.from_json(audit)
    sources = masks.sources(opened, files)
    run(
        opened,
        out,
        format=format,
        rows=rows,
        audit=report,
        credentials=credentials,
        masks=sources,
        progress=True,
    )
    images = int(opened.done.sum()) if rows is None else len(rows)
    record: dict[str, Any] = {"out": out, "format": format, "images": images}
    told = ""
    if sources is not None:
        agreement = sources.agreement(opened, rows)
        without = int(np.isnan(agreement).sum())
        moved = int((agreement < masks.min_edge_agreement).sum())
        record["images"] -= without + moved
        record["left_out"] = {"without_source": without, "edges_moved": moved}
        record["edge_agreement"] = np.nanquantile(agreement, (0.25, 0.5, 0.75)).round(4).tolist()
        told = (
            f"Left out of {amount(images, 'row')}: {without:,} without a source, {moved:,} whose "
            "edges moved.\n"
        )
    shown = f"{amount(record['images'], 'image')}: {out}\n{told}"
    return Result(record=record, text=shown + next_line("cite", cache))


def import_(
    source: str,
    out: str,
    conform: ImageOptions,
    files: FileOptions,
    storage: StorageOptions,
    licenses: LicenseOptions,
    *,
    name: str = IMPORT.name,
    forgotten: str | list[str] | None = None,
    call: Call,
) -> Result:
    """Make a cache of synthetic images that somebody else generated.

    synthaug cache import folder:their-images theirs.h5 --name "Stable Diffusion 2.1"

    Args:
        source: Labeled images, for example folder:PATH.
        out: The new cache; it can be audited and mixed like any other.
        conform: Size and channels to bring the images to.
        files: For data sets.
        storage: How the new cache stores images.
        licenses: For the record.
        name: Name of the generator, for the record.
        forgotten: Caches, with commas between them: images that were erased there are left out.
    """
    from synthaug._cache import import_images

    made = import_images(
        conform.load(source, files),
        out,
        name=name,
        license=licenses.record(),
        forgotten=names(forgotten or ()),
        encoding=storage.encoding,
        command=call.line,
        progress=True,
    )
    return Result(record=contents(made), text=f"{made}\n{next_audit(out)}")


def forget(source: str, places: list[str], files: FileOptions) -> Result:
    """Erase whatever was made from given real images, and say what cannot be reached.

    synthaug cache forget folder:withdrawn-consent cifar10.h5 variants.h5 cifar10-synthetic

    Args:
        source: The real images, for example folder:PATH. They are brought to each cache's shape.
        places: Caches to look through, and folders with all below them: exports, those of improve,
            kept features, checkpoints.
        files: For data sets.
    """
    from synthaug._cache import SynthCache, image_shapes
    from synthaug._cache import forget as run
    from synthaug._pixels import digest

    if not (shapes := image_shapes(places)):
        raise ValueError(
            f"No cache or export lies in {', '.join(places)}, and real images are known by their "
            "pixels in the shape of a cache. Name a cache, too, that was made from them."
        )
    keys: set[int] = set()
    for shape in sorted(shapes):
        real = files.shaped(source, shape)
        keys.update(map(digest, real.read(range(len(real)))))
    done = run(places, keys)
    called = {Path(place).absolute(): place for place in places}
    withdrawn, lines = {}, []
    for path, count in done.items():
        name = called.get(path, str(path))
        withdrawn[name] = count
        if path.is_dir():
            lines.append(f"{name}: {amount(count, 'file')} of images or features deleted.")
        else:
            rows = len(SynthCache(path))
            lines.append(
                f"{name}: {count:,} of {rows:,} rows were made from these images; withdrawn."
            )
    lines += ["Out of reach:", *(f"  {text}" for text in done.beyond)]
    caches = [called.get(path, str(path)) for path in done if not path.is_dir()]
    lines += [next_line("cache", "verify", cache) for cache in caches[:1]]
    return Result(record={"withdrawn": withdrawn, "beyond": done.beyond}, text="\n".join(lines))
