"""Merging, exporting, importing, forgetting, and showing what a cache holds."""

import ctypes
import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from synthaug import Plan, SynthCache
from synthaug._cache import info_text
from synthaug.caches import (
    check_sources,
    contact_sheet,
    export,
    forget,
    import_images,
    info,
    license_of,
    merge,
)
from synthaug.errors import CacheError, MismatchError
from synthaug.evaluation import digests
from synthaug.images import LabeledImages

SHAPE = (3, 8, 6)
CLASSES = ("cat", "dog", "ox")
RECIPE = {"synthesizer": "Noise", "settings": {"steps": 4}, "weights": {"unet": "ab12"}}
MANIFEST = {"recipe": RECIPE, "license": {"generator": "MIT", "source": "CC0"}}
COMPRESSED = "ignore:.*is a compressed copy"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8))


def real_images() -> LabeledImages:
    return LabeledImages(noise(12, 1), np.arange(12) % 3, CLASSES)


def plan_of(per_class: int = 4, seed: int = 0) -> Plan:
    real = real_images()
    return Plan.build(
        [per_class] * 3,
        classes=CLASSES,
        settings={"steps": 4},
        seed=seed,
        sources=[np.flatnonzero(real.labels == c) for c in range(3)],
        source_keys=digests(real, "real")[:12],
        parameters={"strength": [0.25, 0.5]},
    )


def filled(path: Path, plan: Plan, pixels: torch.Tensor, **manifest: Any) -> SynthCache:
    cache = SynthCache.create(path, plan, image_shape=SHAPE, manifest={**MANIFEST, **manifest})
    cache.write(range(len(plan)), pixels)
    return cache


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def pixels(plan: Plan) -> torch.Tensor:
    return noise(len(plan))


@pytest.fixture
def cache(tmp_path: Path, plan: Plan, pixels: torch.Tensor) -> SynthCache:
    return filled(tmp_path / "cache.h5", plan, pixels)


# Merging


def test_slices_of_one_plan_merge_into_the_cache_of_the_plan(
    tmp_path: Path, cache: SynthCache, plan: Plan, pixels: torch.Tensor
) -> None:
    cuts = [0, 5, 6, 12]
    parts = [filled(tmp_path / f"{a}.h5", plan[a:b], pixels[a:b]).path for a, b in pairwise(cuts)]
    merged = merge(parts, tmp_path / "merged.h5")
    assert merged.identity == cache.identity
    assert merged.path.read_bytes() == cache.path.read_bytes()


def test_merging_keeps_pending_and_withdrawn_rows(
    tmp_path: Path, plan: Plan, pixels: torch.Tensor
) -> None:
    first = filled(tmp_path / "a.h5", plan[:6], pixels[:6])
    second = SynthCache.create(tmp_path / "b.h5", plan[6:], image_shape=SHAPE, manifest=MANIFEST)
    first.withdraw([2])
    second.write([1], pixels[7:8])
    merged = merge([first.path, second.path], tmp_path / "m.h5")
    assert merged.state.tolist() == [1, 1, 2, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    assert len(merged.verify()) == 0
    second.write([0], pixels[6:7])
    again = merge([first.path, second.path], tmp_path / "m.h5")  # continues where it was
    assert again.state.tolist() == [1, 1, 2, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_caches_of_different_jobs_do_not_merge(
    tmp_path: Path, cache: SynthCache, pixels: torch.Tensor
) -> None:
    other = plan_of(seed=1)
    weights = {**RECIPE, "weights": {"unet": "cd34"}}
    different = filled(tmp_path / "w.h5", other, pixels, recipe=weights)
    with pytest.raises(MismatchError, match=r"'ab12' in cache\.h5, 'cd34' in w\.h5"):
        merge([cache.path, different.path], tmp_path / "m.h5")
    overlap = filled(tmp_path / "o.h5", cache.plan[7:9], pixels[7:9])
    with pytest.raises(MismatchError, match=r"row 7 of .*cache\.h5 and row 0 of .*o\.h5"):
        merge([cache.path, overlap.path], tmp_path / "m.h5")
    for paths in ([], [cache.path, cache.path], [tmp_path / "m.h5"]):
        with pytest.raises((ValueError, CacheError)):
            merge(paths, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_a_corrupt_image_is_not_merged(tmp_path: Path, cache: SynthCache) -> None:
    damage(cache.path, 3)
    with pytest.raises(CacheError, match=r"cache\.h5.*row 3"):
        merge([cache.path], tmp_path / "m.h5")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def damage(path: Path, row: int) -> None:
    with h5py.File(path) as file:
        offset = file["images"].id.get_offset() + row * int(np.prod(SHAPE))
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))


# Exporting


def test_class_folders_hold_the_same_pixels_and_say_how_they_were_made(
    tmp_path: Path, cache: SynthCache, plan: Plan, pixels: torch.Tensor
) -> None:
    out = export(cache, tmp_path / "out", format="folder")
    read = ImageFolder(str(out))
    assert read.classes == list(CLASSES)
    for (path, label), (image, _) in zip(read.samples, read, strict=True):
        row = int(Path(path).stem)
        assert label == plan["label"][row]
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels[row])
        with Image.open(path) as image:
            (description,) = ElementTree.fromstring(image.info["XML:com.adobe.xmp"]).iter(RDF)
        assert description.attrib[SOURCE_TYPE] == (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        )
    records = [json.loads(line) for line in lines(out / "provenance.jsonl")]
    assert [record["row"] for record in records] == list(range(len(plan)))
    assert records[5]["file_name"] == "dog/00000005.png"
    assert int(records[5]["seed"], 16) == plan["seed"][5]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"] == RECIPE
    assert manifest["identity"] == cache.identity


def test_only_the_rows_that_are_asked_for_are_exported(tmp_path: Path, cache: SynthCache) -> None:
    cache.withdraw([0])
    export(cache, tmp_path / "all", format="folder")
    assert len(list((tmp_path / "all").rglob("*.png"))) == 11
    export(cache, tmp_path / "some", format="folder", rows=[7, 3])
    assert sorted(p.stem for p in (tmp_path / "some").rglob("*.png")) == ["00000003", "00000007"]
    with pytest.raises(ValueError, match="no image to export"):
        export(cache, tmp_path / "none", format="folder", rows=[])
    for rows in ([0], [12], [-1], ~cache.done):
        with pytest.raises(ValueError, match="`rows`"):
            export(cache, tmp_path / "none", format="folder", rows=rows)
    assert not (tmp_path / "none").exists()


def test_webdataset_members_are_grouped_by_row_and_deterministic(
    tmp_path: Path, cache: SynthCache, plan: Plan, pixels: torch.Tensor
) -> None:
    for out in ("a", "b"):
        export(cache, tmp_path / out, format="webdataset")
    data = (tmp_path / "a" / "000000.tar").read_bytes()
    assert data == (tmp_path / "b" / "000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        content = {name: cast(Any, archive.extractfile(name)).read() for name in names}
    for row in range(len(plan)):
        key = f"{row:08d}"
        assert names[3 * row : 3 * row + 3] == [f"{key}.png", f"{key}.cls", f"{key}.json"]
        image = Image.open(io.BytesIO(content[f"{key}.png"]))
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels[row])
        assert int(content[f"{key}.cls"]) == plan["label"][row]
        assert json.loads(content[f"{key}.json"])["strength"] == plan["strength"][row]


def test_the_hugging_face_directory_has_a_card_and_labels(
    tmp_path: Path, cache: SynthCache
) -> None:
    out = export(cache, tmp_path / "out", format="huggingface")
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    lines_of_card = ("- synthetic", "- machine-generated", "- n<1K", "| ox | 4 |", 'name: "MIT"')
    for line in (*lines_of_card, "was not looked into when they were exported"):
        assert line in card
    assert "non-commercial" not in card
    records = [json.loads(line) for line in lines(out / "provenance.jsonl")]
    assert all((out / record["file_name"]).exists() for record in records)
    assert [record["label"] for record in records] == cache.labels.tolist()


class Report:
    """An audit that withheld the first row."""

    verdict = "pass"
    smallest_effect = 3

    def __init__(self, cache: SynthCache) -> None:
        self.identity = cache.identity
        self.passed = np.arange(len(cache)) > 0


@pytest.mark.filterwarnings("ignore:::mlcroissant")
@pytest.mark.parametrize("form", ["folder", "webdataset", "huggingface"])
def test_a_croissant_file_is_valid_and_says_verdict_and_terms(
    tmp_path: Path, plan: Plan, pixels: torch.Tensor, form: Any
) -> None:
    license = {"generator": license_of("hub:facebook/dit-xl-2-256"), "source": "CC0"}
    cache = SynthCache.create(
        tmp_path / "nc.h5", plan, image_shape=SHAPE, manifest={**MANIFEST, "license": license}
    )
    cache.write(range(len(plan)), pixels)
    out = export(cache, tmp_path / "out", format=form, audit=Report(cache))
    described = json.loads((out / "croissant.json").read_text())
    assert described["license"] == "cc-by-nc-4.0"
    assert "The fewest copies that it would have noticed are 3." in described["description"]
    assert "for non-commercial use too" in described["usageInfo"]
    assert described["description"].startswith("11 images")
    if form == "huggingface":
        card = (out / "README.md").read_text()
        assert "\n- non-commercial\n" in card
        assert 'ended with "pass"' in card
    croissant = pytest.importorskip("mlcroissant", reason="the extra `frameworks`")
    data = croissant.Dataset(jsonld=out / "croissant.json")
    assert not data.metadata.ctx.issues.errors
    records = list(data.records("records"))
    assert len(records) == 11
    if form != "webdataset":
        assert {record["records/row"] for record in records} == set(range(1, 12))


@pytest.mark.filterwarnings(COMPRESSED)
def test_a_compressed_copy_is_the_same_cache_and_merge_unpacks_it(
    tmp_path: Path, cache: SynthCache, pixels: torch.Tensor
) -> None:
    cache.withdraw([2])
    path = export(cache, tmp_path / "packed.h5", format="hdf5")
    with h5py.File(path) as file:
        assert file["images"].compression == "gzip"
        assert file["images"].chunks == (1, *SHAPE)
    packed = SynthCache(path, output_type="pt")
    assert packed.identity == cache.identity
    assert packed.manifest == cache.manifest
    assert packed.state.tolist() == cache.state.tolist()
    indices = [7, 0, -1, 7, 3]
    assert torch.equal(packed.read(indices), pixels[indices])
    assert len(packed.verify()) == 0
    rows = [0, 1, 3, 4]
    loader = DataLoader(
        Subset(packed, rows), num_workers=1, multiprocessing_context="fork", batch_size=4
    )
    assert torch.equal(next(iter(loader))[0], pixels[rows])
    with pytest.raises(CacheError, match="cannot be written"):
        packed.write([0], pixels[:1])
    unpacked = merge([path], tmp_path / "unpacked.h5")
    assert unpacked.path.read_bytes() == cache.path.read_bytes()


def test_a_compressed_copy_says_once_that_it_is_slow(tmp_path: Path, cache: SynthCache) -> None:
    path = export(cache, tmp_path / "packed.h5", format="hdf5")
    with pytest.warns(UserWarning, match="compressed copy") as caught:
        packed = SynthCache(path)
    assert len(caught) == 1
    packed.read([1, 2])
    pickle.loads(pickle.dumps(packed)).read([1])


@pytest.mark.filterwarnings(COMPRESSED)
def test_damage_to_a_compressed_copy_is_noticed(
    tmp_path: Path, cache: SynthCache, pixels: torch.Tensor
) -> None:
    path = export(cache, tmp_path / "packed.h5", format="hdf5")
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(4)
    data = bytearray(path.read_bytes())
    for at in range(chunk.byte_offset, chunk.byte_offset + chunk.size, 7):
        changed = bytearray(data)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        packed = SynthCache(path)
        harmless = at < chunk.byte_offset + 2  # zlib's header may still be understood
        assert packed.verify().tolist() in ([[4], []] if harmless else [[4]])
        if not harmless:
            with pytest.raises(CacheError, match="row 4"):
                packed.read([3, 4])
        assert torch.equal(packed.read([3, 5]), pixels[[3, 5]])


def test_class_names_cannot_lead_out_of_the_folder(tmp_path: Path, pixels: torch.Tensor) -> None:
    for name in ("../evil", "/evil", "..", "", "a\\b"):
        plan = Plan.build([1], classes=(name,), settings={}, seed=0)
        cache = filled(tmp_path / "c.h5", plan, pixels[:1])
        for form in ("folder", "huggingface"):
            with pytest.raises(ValueError, match="cannot be the name of a folder"):
                export(cache, tmp_path / "out", format=cast(Any, form))
        cache.path.unlink()
    assert os.listdir(tmp_path) == []


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, cache: SynthCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(cache.path, 9)
    for form in ("folder", "webdataset", "huggingface", "hdf5"):
        with pytest.raises(CacheError, match="row 9"):
            export(SynthCache(cache.path), tmp_path / "out", format=cast(Any, form))
        assert os.listdir(tmp_path) == ["cache.h5"]
    (tmp_path / "out").mkdir()
    for form in ("folder", "hdf5"):
        with pytest.raises(CacheError, match="exists already"):
            export(cache, tmp_path / "out", format=cast(Any, form), rows=None)
    with pytest.raises(ValueError, match="'folder', 'webdataset', 'huggingface', 'hdf5'"):
        export(cache, tmp_path / "x", format=cast(Any, "zip"))
    with pytest.raises(ValueError, match="copies every row"):
        export(cache, tmp_path / "x", format="hdf5", rows=[1])


@pytest.mark.parametrize("form", ["folder", "webdataset", "huggingface", "hdf5"])
def test_a_full_disk_ends_an_export_with_one_clear_error_and_no_crash(
    tmp_path: Path, cache: SynthCache, form: Any
) -> None:
    def limited(result: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(CacheError, match="out: File too large"):
            export(cache, tmp_path / "out", format=form)
        result.send(os.listdir(tmp_path))
        ctypes.CDLL(None).exit(0)  # as a process ends: HDF5 cleans up, and would crash here

    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=limited, args=(send,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert receive.recv() == ["cache.h5"]


def test_an_unknown_license_is_mentioned(
    tmp_path: Path, plan: Plan, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "synthaug")
    cache = filled(tmp_path / "c.h5", plan, pixels, license={"generator": None, "source": None})
    export(cache, tmp_path / "out", format="folder")
    assert "license" in caplog.text


# Importing


def test_foreign_images_become_a_cache_that_knows_their_content(tmp_path: Path) -> None:
    images = LabeledImages(noise(9, 4), [2, 0, 1, 2, 2, 0, 1, 1, 0], CLASSES)
    cache = import_images(images, tmp_path / "c.h5", name="EDM", license={"generator": "MIT"})
    assert cache.done.all()
    assert cache.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(cache.read(range(9)), images.read([1, 5, 8, 2, 6, 7, 0, 3, 4]))
    assert cache.classes == CLASSES
    assert cache.manifest["recipe"]["name"] == "EDM"
    assert cache.manifest["license"] == {"generator": "MIT", "source": None}
    assert import_images(images, tmp_path / "c.h5", name="EDM", license={}).done.all()
    other = LabeledImages(noise(9, 5), images.labels, CLASSES)
    assert import_images(other, tmp_path / "d.h5").identity != cache.identity
    with pytest.raises(MismatchError, match="imported"):
        import_images(other, tmp_path / "c.h5", name="EDM")


def test_a_folder_that_was_exported_can_be_imported(
    tmp_path: Path, cache: SynthCache, pixels: torch.Tensor
) -> None:
    out = export(cache, tmp_path / "out", format="folder")
    again = import_images(f"folder:{out}", tmp_path / "again.h5")
    assert torch.equal(again.read(range(len(pixels))), pixels)
    assert again.labels.tolist() == cache.labels.tolist()


# Forgetting


def test_forgetting_a_real_image_erases_every_image_derived_from_it(
    cache: SynthCache, plan: Plan, pixels: torch.Tensor
) -> None:
    real = real_images()
    rows = np.flatnonzero(np.isin(plan["source"], [4, 6]))
    assert len(rows) == 2
    counts = forget([cache.path], real.read([4, 6]))
    assert counts == {cache.path: 2}
    assert np.flatnonzero(cache.state == 2).tolist() == rows.tolist()
    content = cache.path.read_bytes()
    for row in range(len(plan)):
        assert (pixels[row].numpy().tobytes() in content) == (row not in rows)
    assert forget([cache.path], plan["source_key"][rows]) == counts  # by key, and again


def test_forgetting_reaches_partners_and_rows_that_are_still_pending(
    tmp_path: Path, plan: Plan
) -> None:
    real = real_images()
    partner = np.full(len(plan), digests(real, "real")[8], np.uint64)
    partner[1:] = 5
    columns = {**plan.columns, "partner_key": partner.view(np.int64)}
    with_partner = Plan(columns, plan.classes, plan.settings)
    cache = SynthCache.create(tmp_path / "c.h5", with_partner, image_shape=SHAPE, manifest=MANIFEST)
    rows = {0, *np.flatnonzero(plan["source"] == 8).tolist()}
    assert forget([cache.path], real.read([8])) == {cache.path: len(rows)}
    assert set(np.flatnonzero(cache.state == 2).tolist()) == rows


@pytest.mark.parametrize("sources", [[], [0]])
def test_forgetting_nothing_or_the_key_of_no_image_is_refused(
    cache: SynthCache, sources: Sequence[int]
) -> None:
    with pytest.raises(ValueError, match="`sources`"):
        forget([cache.path], sources)


# Sources


def test_the_data_set_of_the_sources_is_recognized_and_any_other_is_not(cache: SynthCache) -> None:
    real = real_images()
    check_sources(cache, real)
    images, labels = real.read(range(12)), real.labels
    for change, message in (
        (LabeledImages(images, labels, ("dog", "cat", "ox")), "classes"),
        (LabeledImages(images.flip(0), labels, CLASSES), "12 stand at other positions"),
        (LabeledImages(images[:10], labels[:10], CLASSES), "2 of its source images lie beyond"),
        (LabeledImages(images // 2, labels, CLASSES), "12 have other pixels"),
    ):
        with pytest.raises(MismatchError, match=message):
            check_sources(cache, change)


# Showing


def test_info_counts_rows_per_class_and_state(
    cache: SynthCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.withdraw([0])
    cache.invalidate([4, 5])
    facts = info(cache)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["states"] == {"done": 9, "pending": 2, "withdrawn": 1}
    assert facts["classes"]["dog"] == {"done": 2, "pending": 2, "withdrawn": 0}
    assert facts["plan_columns"]["strength"] == {"min": 0.25, "max": 0.5}
    assert facts["bytes"] == cache.path.stat().st_size
    text = info_text(cache)
    for line in ("9 done, 2 pending, 1 withdrawn", "Weights unet: ab12", "generator: MIT"):
        assert line in text
    assert "more classes" not in text
    monkeypatch.setattr("synthaug._cache.facts._MOST_LINES", 2)
    assert info_text(cache).endswith("    1 more classes: see --json")


def test_a_contact_sheet_shows_every_class_and_only_done_rows(
    cache: SynthCache, pixels: torch.Tensor
) -> None:
    cache.withdraw([0, 1, 2])
    sheet = np.asarray(contact_sheet(cache, columns=2, scale=1))
    assert sheet.shape == (3 * (8 + 2) + 2, 2 * (6 + 2) + 2, 3)
    assert np.array_equal(sheet[2:10, 2:8].transpose(2, 0, 1), pixels[3])
    assert (sheet[2:10, 10:16] == 255).all()  # the class has one image left
    assert np.array_equal(sheet[12:20, 2:8].transpose(2, 0, 1), pixels[4])
    cache.withdraw(range(12))
    with pytest.raises(ValueError, match="no image"):
        contact_sheet(cache)
