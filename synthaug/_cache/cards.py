"""The card of an exported data set, for the Hugging Face hub, and its Croissant file.

Croissant (mlcommons.org/croissant) is JSON-LD that describes a data set to programs: its files, its
records, its license, and with the vocabulary for responsible AI (RAI) how it was made and what it
is not good for.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from synthaug._cache.citations import cite
from synthaug._cache.exported import ANNOTATIONS
from synthaug._cache.licenses import noncommercial_parts
from synthaug._cache.store import SynthCache
from synthaug._printable import printable_line
from synthaug._support.files import write_text
from synthaug._support.reading import open_regular, parse_json, read_text
from synthaug._types import Indices
from synthaug.errors import CacheError

_FROM_SOURCES = (
    " Masks and boxes are those of the real images that these were made from; how well the edges "
    "of both agree was measured, image by image."
)
_PARTS = {"generator": "the generator", "source": "the real images that it learned from"}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


@runtime_checkable
class Judged(Protocol):
    """Answers what a card says of an audit."""

    @property
    def verdict(self) -> str:
        """Verdict of the audit: "pass", "fail" or "inconclusive"."""
        ...

    @property
    def smallest_effect(self) -> int | None:
        """Fewest copies that would have been noticed, if that is known."""
        ...


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts that card and Croissant file say in their own ways."""

    cache: SynthCache
    rows: Indices
    """Rows of the cache that are exported, int64, ascending."""
    audit: Judged | None
    masks: bool = False
    """Whether masks or boxes of the sources are beside the images."""

    @property
    def about(self) -> str:
        """A sentence about the images."""
        return (
            f"{len(self.rows):,} images, all of them made by a trained model: none is a "
            "photograph, and each says so in its XMP metadata (`trainedAlgorithmicMedia`)."
        )

    @property
    def copies(self) -> str:
        """A paragraph about copies of training images."""
        if self.audit is None:
            return (
                "Whether they copy images that the model learned from was not looked into when "
                "they were exported."
            )
        verdict = {
            "pass": "no sign of copies among the images that are here",
            "fail": "copies were found; the images that were too close to training images are left "
            "out here",
            "inconclusive": "it could not be decided; images that were suspicious are left out",
        }.get(self.audit.verdict, "unknown")
        smallest = self.audit.smallest_effect
        power = (
            f"The fewest copies that it would have noticed are {smallest:,}"
            if smallest is not None
            else "How few copies it would have noticed is not known"
        )
        return (
            f'An audit for copies of training images ended with "{self.audit.verdict}": {verdict}. '
            f"{power}. Fewer could be among the images."
        )

    @property
    def terms(self) -> str:
        """A paragraph about the licenses."""
        license = self.cache.manifest["license"]
        limited = [_PARTS[name] for name in noncommercial_parts(license)]
        if limited:
            return (
                f"The license of {' and that of '.join(limited)} is for non-commercial use, so "
                "these images are for non-commercial use too."
            )
        unknown = [_PARTS[name] for name in _PARTS if not license.get(name)]
        if unknown:
            return (
                f"The license of {' and that of '.join(unknown)} was not recorded. Find it out "
                "before you pass the images on."
            )
        return "Both licenses hold for what you do with the images; read them."

    @property
    def license(self) -> str:
        """The generator's license, unless that of the real images is for non-commercial use."""
        license = self.cache.manifest["license"]
        limited = noncommercial_parts(license)
        name = limited[0] if limited else "generator"
        return printable_line(str(license.get(name) or "unknown"))


def card(facts: Facts) -> str:
    """The data set card of the Hugging Face hub, in Markdown."""
    cache, rows = facts.cache, facts.rows
    license = cache.manifest["license"]
    # A JSON string is a YAML string, unless characters beyond 16 bits are escaped in it.
    name = json.dumps(facts.license, ensure_ascii=False)
    generator, source = (_words(license.get(key) or "unknown") for key in ("generator", "source"))
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
    size = next((name for limit, name in limits if len(rows) < limit), "1M<n<10M")
    counts = np.bincount(cache.labels_of(rows), minlength=len(cache.classes))
    table = "\n".join(
        f"| {_words(name)} | {count:,} |" for name, count in zip(cache.classes, counts, strict=True)
    )
    recipe = json.dumps(cache.manifest["recipe"], indent=2)
    tag = "\n- non-commercial" if noncommercial_parts(license) else ""
    return f"""---
license: other
license_name: {name}
task_categories:
- image-classification
annotations_creators:
- machine-generated
size_categories:
- {size}
tags:
- synthetic
- synthaug{tag}
configs:
- config_name: default
  drop_labels: false
  data_files:
  - split: train
    path: train/**
---

# Synthetic images

{facts.about}

{facts.copies}

| class | images |
|---|---|
{table}

License of the generator: {generator}. License of the real images it learned from: {source}.
{facts.terms}

Labels are the folders in sorted order. `provenance.jsonl` says of every image what it was made
from, `manifest.json` how all of them were made, and `croissant.json` describes the files to
programs. The recipe:

```json
{recipe}
```
"""


def croissant(facts: Facts, folder: Path) -> str:
    """The Croissant file of an export that lies in `folder`, as JSON."""
    cache = facts.cache
    recipe = cache.manifest["recipe"]
    records = folder / "provenance.jsonl"
    files = [_file_object(records, "application/jsonlines")] if records.exists() else []
    if (boxes := folder / ANNOTATIONS).exists():
        files.append(_file_object(boxes, "application/json"))
    tars = [_file_object(path, "application/x-tar") for path in sorted(folder.glob("*.tar"))]
    images: dict[str, Any] = {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "encodingFormat": "image/png",
        "includes": _includes(facts.masks, tars=bool(tars)),
    }
    if tars:
        images["containedIn"] = [{"@id": tar["@id"]} for tar in tars]
    return json.dumps(
        {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "name": f"synthetic-images-{cache.plan_digest[:12]}",
            "description": f"{facts.about} {facts.copies}",
            "conformsTo": [
                "http://mlcommons.org/croissant/1.0",
                "http://mlcommons.org/croissant/RAI/1.0",
            ],
            "license": facts.license,
            "usageInfo": facts.terms,
            "version": "1.0.0",
            "citeAs": cite(cache, bibtex=True),
            "creator": {"@type": "sc:Organization", "name": "made with synthaug"},
            "distribution": [*files, *tars, images],
            "recordSet": [_classes(cache), _records(files)],
            "rai:dataCollection": (
                "Drawn by a diffusion model "
                f"({printable_line(str(recipe.get('synthesizer', 'unknown')))}); manifest.json "
                "has its settings and the digests of its weights."
            ),
            "rai:dataCollectionType": "Synthetic data",
            "rai:dataAnnotationProtocol": (
                "Labels are the classes that the model was asked for. No person has checked them."
                + _FROM_SOURCES * facts.masks
            ),
            "rai:dataBiases": (
                "The images inherit what the generator has learned and left out of its training "
                "images, and what its sampling favors."
            ),
            "rai:dataUseCases": "Training image classifiers, beside real images.",
            "rai:dataLimitations": (
                "Not for measuring how well a classifier does on real images. " + facts.terms
            ),
            "rai:personalSensitiveInformation": facts.copies,
        },
        indent=2,
    )


def _includes(masks: bool, *, tars: bool) -> str:
    """The pattern of the images' names, which masks do not fit."""
    if tars:
        return "[0-9]*[0-9].png" if masks else "*.png"
    return "images/**/*.png" if masks else "**/*.png"


def refresh_croissant(folder: Path) -> None:
    """Writes the digests of files anew, after images were taken out of an export.

    Raises:
        CacheError: The description, or a file that it names, is none that an export wrote.
    """
    path = folder / "croissant.json"
    if path.is_symlink() or not path.exists():
        return
    try:
        described = parse_json(read_text(path, 2**26))
        for one in described["distribution"]:
            if one["@type"] == "cr:FileObject":
                file = folder / Path(one["@id"]).name
                if file.is_symlink():
                    raise ValueError("it describes a link")
                one.update(_file_object(file, one["encodingFormat"]))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CacheError(
            f"{path} is not as an export wrote it, so digests in it are those of files as they "
            "were before images were erased. Delete it."
        ) from error
    write_text(path, json.dumps(described, indent=2))


def _file_object(path: Path, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "contentUrl": path.name,
        "encodingFormat": kind,
        "sha256": digest.hexdigest(),
    }


def _field(record_set: str, name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": f"{record_set}/{name}",
        "dataType": kind,
        **more,
    }


def _classes(cache: SynthCache) -> dict[str, Any]:
    """The names of the classes, by their numbers."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/label"},
        "field": [
            _field("classes", "label", "sc:Integer"),
            _field("classes", "name", "sc:Text"),
        ],
        "data": [
            {"classes/label": label, "classes/name": printable_line(name)}
            for label, name in enumerate(cache.classes)
        ],
    }


def _records(files: list[dict[str, Any]]) -> dict[str, Any]:
    """The images: those of class folders with what they were made from, others by themselves."""
    if not files:
        content = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
        fields = [_field("records", "image", "sc:ImageObject", source=content)]
    else:
        fields = []
        for name, kind in (
            ("file_name", "sc:Text"),
            ("label", "sc:Integer"),
            ("row", "sc:Integer"),
        ):
            column = {"fileObject": {"@id": files[0]["@id"]}, "extract": {"column": name}}
            fields.append(_field("records", name, kind, source=column))
        fields[1]["references"] = {"field": {"@id": "classes/label"}}
    return {"@type": "cr:RecordSet", "@id": "records", "name": "records", "field": fields}


def _words(text: Any) -> str:
    """Text of a cache's file as one line of Markdown that says just that, with no markup in it."""
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", printable_line(str(text)))
