"""Forgetting: it reaches every place that it is told of, says what it does not, and lasts."""

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import tarfile
import time
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from synthaug import OnTheFlyDataset, Plan, SynthCache, load_dataset
from synthaug._cache import State
from synthaug._cache.writing import Writer
from synthaug._pixels import digest
from synthaug._support import system
from synthaug._support.digests import sealed_file
from synthaug._support.files import temporary_name
from synthaug.caches import SourceMasks, export, forget, import_images, merge, upload
from synthaug.errors import CacheError, DataError, MismatchError
from synthaug.images import LabeledImages
from tests.drawing import SHAPE, Killed, Shaped, fill

FORK = multiprocessing.get_context("fork")
CLASSES = ("cat", "dog")
KEYS = np.arange(101, 121, dtype=np.uint64)
COMPRESSED = "ignore:.*is a compressed copy"


def plan_of(per_class: int = 20, seed: int = 0) -> Plan:
    """Rows from 20 sources."""
    return Plan.build(
        [per_class] * 2,
        classes=CLASSES,
        settings={},
        seed=seed,
        sources=[np.arange(10), np.arange(10, 20)],
        source_keys=KEYS,
        parameters={"strength": [0.3, 1]},
    )


def made_from(cache: SynthCache, key: int) -> Any:
    return np.flatnonzero(cache.plan["source_key"] == key)


@pytest.fixture
def cache(tmp_path: Path) -> SynthCache:
    return fill(Shaped(), tmp_path / "c.h5", plan_of())


@pytest.mark.parametrize("shards", [("1/2",), ("1/2", "2/2")])
def test_it_reaches_the_parts_of_a_job_and_a_merge_of_them_by_hand(
    tmp_path: Path, shards: tuple[str, ...]
) -> None:
    path, plan = tmp_path / "b.h5", plan_of(100)
    with suppress(Killed):
        fill(Shaped(killed_at=190 if len(shards) > 1 else None), path, plan, shard=shards[0])
    parts = sorted((tmp_path / "b.h5.parts").glob("*.h5"))
    held = [len(made_from(SynthCache(part), 104)) for part in parts]
    assert sum(held)
    counts = forget([path], [104])
    assert counts == {path: 10, **{p: n for p, n in zip(parts, held, strict=True) if n}}
    assert not any(SynthCache(p).done[made_from(SynthCache(p), 104)].any() for p in parts)
    merged = merge(parts, tmp_path / "by hand.h5")
    assert merged.done.any()
    assert not merged.done[made_from(merged, 104)].any()
    whole = fill(Shaped(), path, plan)
    assert (whole.state[made_from(whole, 104)] == State.WITHDRAWN).all()
    assert (whole.state != State.PENDING).all()


def test_it_is_final_while_shards_are_drawn_and_put_together(tmp_path: Path) -> None:
    plan, rng = plan_of(100), np.random.default_rng()

    def draw(path: Path, shard: str) -> None:
        fill(Shaped(), path, plan, shard=shard, batch_size=16)

    for trial in range(4):
        path = tmp_path / f"{trial}.h5"
        SynthCache.create(path, plan, image_shape=SHAPE, manifest={"recipe": Shaped().recipe()})
        jobs = [FORK.Process(target=draw, args=(path, f"{i}/2")) for i in (1, 2)]
        for job in jobs:
            job.start()
        time.sleep(rng.uniform(0, 0.6))
        forget([path], [104, 115])
        for job in jobs:
            job.join()
        assert [job.exitcode for job in jobs] == [0, 0]
        whole = fill(Shaped(), path, plan)  # puts together what is left
        gone = np.concatenate([made_from(whole, 104), made_from(whole, 115)])
        assert (whole.state[gone] == State.WITHDRAWN).all()
        assert np.delete(whole.done, gone).all()
        assert len(whole.verify()) == 0


def test_masks_of_the_sources_are_exported_and_forgotten_with_the_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (4, 3, 8, 8), np.uint8))
    real = LabeledImages(pixels, [0, 0, 1, 1], CLASSES)
    masks = rng.integers(0, 3, (4, 8, 8))
    masks[3, 0, 0] = 300
    sources = [np.arange(2), np.arange(2, 4)]
    keys = np.array([digest(image) for image in pixels], np.uint64)
    plan = Plan.build(
        [2, 2], classes=CLASSES, settings={}, seed=0, sources=sources, source_keys=keys
    )
    cache = SynthCache.create(
        tmp_path / "c.h5", plan, image_shape=(3, 8, 8), manifest={"recipe": Shaped().recipe()}
    )
    drawn = real.read(plan["source"]) // 2 + 40  # other contrast, the same outlines
    moved = int(np.flatnonzero(plan["source"] == 1)[0])
    drawn[moved] = drawn[moved].roll(3, dims=1)
    cache.write(range(4), drawn)
    of_sources = SourceMasks(real, masks)
    folder = export(cache, tmp_path / "folder", format="folder", masks=of_sources)
    assert "1 of 4 rows are left out: 0 have no source" in caplog.text
    tars = export(cache, tmp_path / "tars", format="webdataset", masks=of_sources)

    def held() -> tuple[dict[int, Any], dict[int, Any], list[str]]:
        lines = (folder / "provenance.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        beside = {r["row"]: np.asarray(Image.open(folder / r["mask_file_name"])) for r in records}
        assert len(list(folder.rglob("*.png"))) == 2 * len(records)
        with tarfile.open(tars / "000000.tar") as archive:
            names = archive.getnames()
            packed = {
                int(name[:8]): np.asarray(Image.open(file))
                for name in names
                if name.endswith(".mask.png") and (file := archive.extractfile(name))
            }
        return beside, packed, names

    beside, packed, names = held()
    assert sorted(beside) == sorted(packed) == sorted({0, 1, 2, 3} - {moved})
    for row, mask in beside.items():
        assert (mask == masks[plan["source"][row]]).all()
        assert (mask == packed[row]).all()
    images = load_dataset(f"folder:{folder / 'images'}")
    assert len(images) == 3
    for out, pattern in ((folder, "images/**/*.png"), (tars, "[0-9]*[0-9].png")):
        described = json.loads((out / "croissant.json").read_text())["distribution"]
        assert described[-1]["includes"] == pattern
    assert sum(fnmatch(name, "[0-9]*[0-9].png") for name in names) == 3

    assert forget([folder, tars], [int(keys[3])]) == {folder: 1, tars: 1}
    beside, packed, names = held()
    gone = int(np.flatnonzero(plan["source"] == 3)[0])
    assert sorted(beside) == sorted(packed) == sorted({0, 1, 2, 3} - {moved, gone})
    assert not any(name.startswith(f"{gone:08d}") for name in names)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8))
    real = LabeledImages(pixels, [0, 1], CLASSES)
    keys = np.array([digest(image) for image in pixels], np.uint64)
    sources = [np.array([0]), np.array([1])]
    plan = Plan.build(
        [1, 1], classes=CLASSES, settings={}, seed=0, sources=sources, source_keys=keys
    )
    manifest = {"recipe": Shaped().recipe()}
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(3, 8, 8), manifest=manifest)
    cache.write([0, 1], pixels)
    zeros = np.zeros((2, 8, 8), np.int64)
    other = LabeledImages(255 - pixels, [0, 1], CLASSES)

    def refused(kind: Any, text: str, masks: Any, form: Any = "folder", of: Any = real) -> None:
        with pytest.raises(kind, match=text):
            export(cache, tmp_path / "out", format=form, masks=SourceMasks(of, masks))
        assert os.listdir(tmp_path) == ["c.h5"]

    refused(ValueError, "`masks` has 1 masks, and `real` has 2 images", zeros[:1])
    refused(ValueError, "takes no `masks` or boxes. Use 'folder' or", zeros, "huggingface")
    refused(ValueError, "takes no `masks`", zeros, "hdf5")
    refused(DataError, r"Mask 0 is int64 \(4, 8\), expected integers \(8, 8\)", zeros[:, :4])
    refused(DataError, "Mask 0 is float64", zeros.astype(float))
    refused(DataError, "Mask 0 has values from -1 to -1", zeros - 1)
    refused(MismatchError, "have other pixels", zeros, of=other)
    with monkeypatch.context() as patch:
        patch.setattr(SynthCache, "image_shape", (3, 16, 16))
        refused(MismatchError, r"have the shape \(3, 16, 16\), and those of `real` \(3, 8", zeros)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "at", lambda *_: np.array([-1, -1]))
        refused(DataError, "None of 2 rows of .* was made from a real image", zeros)
    cache.write([0, 1], pixels.roll(3, dims=2))
    refused(DataError, "None of 2 rows of .* by 0.8. Draw variants of less strength", zeros)


@pytest.mark.parametrize("form", ["folder", "huggingface", "webdataset"])
def test_exports_lose_images_and_records_of_what_is_forgotten(
    tmp_path: Path, cache: SynthCache, form: Any
) -> None:
    out = export(cache, tmp_path / "out", format=form)
    untouched = export(cache, tmp_path / "untouched", format=form)

    def croissant(path: Path) -> Any:
        return json.loads(path.read_text())["distribution"]

    def content(folder: Path) -> dict[str, bytes]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix == ".tar":
                with tarfile.open(path) as archive:
                    for member in archive:
                        file = archive.extractfile(member)
                        assert file is not None
                        found[member.name] = file.read()
            elif path.suffix == ".jsonl":
                found |= {line: b"" for line in path.read_text().splitlines()}
            elif path.name == "croissant.json":
                digests = {one["@id"]: one.get("sha256") for one in croissant(path)}
                assert all(
                    digests[one.name] == hashlib.sha256(one.read_bytes()).hexdigest()
                    for one in (*folder.glob("*.jsonl"), *folder.glob("*.tar"))
                )
            elif path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
        return found

    counts = forget([cache.path, out], [104, 113])
    gone = np.concatenate([made_from(cache, 104), made_from(cache, 113)])
    assert counts == {cache.path: 4, out: 4}
    before, after = content(untouched), content(out)
    lost = {name: data for name, data in before.items() if name not in after}
    assert {**after, **lost} == before
    assert len(lost) == 4 * (3 if form == "webdataset" else 2)
    rows = [json.loads(x)["row"] for x in lost if x.startswith("{")]
    rows += [int(Path(x).stem) for x in lost if not x.startswith("{")]
    assert set(rows) == set(gone.tolist())
    assert forget([out], [104, 113]) == {out: 0}


def everything_below(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


BAD_RECORDS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "it is not JSON"),
    "no text": (b"\xff", "it is not text in UTF-8"),
    "no object": ([1], "it is no JSON object"),
    "a name that is none": ({"file_name": None}, "`file_name` is None, expected a file in a class"),
    "no name": ({"file_name": ...}, "`file_name` is None"),
    "a name outside": ({"file_name": "../other.png"}, "`file_name` is '../other.png'"),
    "a name above": ({"file_name": "cat/../../00000000.png"}, "expected a file in a class folder"),
    "a name from the root": ({"file_name": "/00000000.png"}, "expected a file in a class folder"),
    "a mask outside": ({"mask_file_name": "../00000000.png"}, "`mask_file_name` is "),
    "another row's": ({"file_name": "cat/00000005.png"}, "folder, 00000000.png"),
    "a file of the export": ({"file_name": "manifest.json"}, "expected a file in a class folder"),
    "no row": ({"row": ...}, "`row` is None, expected the number of a row"),
    "a row that is true": ({"row": True}, "`row` is True"),
    "no source": ({"source_key": ...}, "it does not name its source"),
    "a source in words": ({"source_key": "none"}, "`source_key` is 'none', expected a content key"),
    "a key in pieces": ({"other_key": [104]}, "`other_key` is [104], expected a content key"),
}


@pytest.mark.parametrize("fault", BAD_RECORDS)
def test_a_damaged_or_hostile_record_is_named_with_a_remedy_and_deletes_nothing(
    tmp_path: Path, cache: SynthCache, fault: str
) -> None:
    change, text = BAD_RECORDS[fault]
    out = export(cache, tmp_path / "out", format="folder")
    (tmp_path / "other.png").write_text("mine")
    records = out / "provenance.jsonl"
    lines: list[Any] = records.read_bytes().splitlines()
    first = json.loads(lines[0])
    if isinstance(change, dict):
        change = {name: value for name, value in {**first, **change}.items() if value is not ...}
    lines[0] = change if isinstance(change, bytes) else str(change).encode()
    if isinstance(change, dict | list):
        lines[0] = json.dumps(change).encode()
    records.write_bytes(b"\n".join(lines) + b"\n")
    before = everything_below(tmp_path)
    with pytest.raises(CacheError) as caught:
        forget([out], [int(first["source_key"], 16), 104])
    message = str(caught.value)
    assert text in message
    assert str(records) in message
    assert message.endswith("restore it from a copy and forget again, or delete the export.")
    assert everything_below(tmp_path) == before
    below = "\n".join(forget([tmp_path], [104]).beyond)
    assert text in below
    assert f"delete {out}" in below


@pytest.mark.parametrize("linked", ["file", "class", "outside"])
def test_an_image_that_is_a_link_or_lies_behind_one_is_named_and_deletes_nothing(
    tmp_path: Path, cache: SynthCache, linked: str
) -> None:
    out = export(cache, tmp_path / "out", format="folder")
    row = int(made_from(cache, 104)[0])
    image = out / CLASSES[cache.plan["label"][row]] / f"{row:08d}.png"
    if linked == "class":
        image.parent.rename(tmp_path / "elsewhere")
        image.parent.symlink_to(tmp_path / "elsewhere")
    else:
        target = out / "mine.png" if linked == "file" else tmp_path / "mine.png"
        image.rename(target)
        image.symlink_to(target)
    before = everything_below(tmp_path)
    with pytest.raises(
        CacheError, match=r"names .*, which is a link, or lies behind one\. Nothing"
    ):
        forget([out], [104])
    assert everything_below(tmp_path) == before
    assert forget([out], [10**6]) == {out: 0}  # links of other images are in nobody's way


def test_a_tar_file_is_an_export_as_far_as_it_has_records(
    tmp_path: Path, cache: SynthCache
) -> None:
    out = export(cache, tmp_path / "out", format="webdataset")
    shutil.copy(out / "000000.tar", mixed := tmp_path / "mixed.TAR")
    (below := tmp_path / "below").mkdir()
    with tarfile.open(mixed, "a") as archive:
        archive.add(__file__, "backup.png")
    with tarfile.open(tmp_path / "linked.tar", "w") as archive:
        (member := tarfile.TarInfo("0.png")).type = tarfile.SYMTYPE
        archive.addfile(member)
    with tarfile.open(below / "record.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("00000000.json"))
    (below / "text.tar").write_text("no archive")
    text = "\n".join((found := forget([tmp_path], [104])).beyond)
    assert found == {out: 2, tmp_path: 2, cache.path: 2}
    assert "The record 00000000.json in " in text
    assert "text.tar is no whole tar file, or a compressed one" in text
    assert "what shows them: linked.tar, mixed.TAR, below/record.tar, below/text.tar." in text


def test_a_description_that_is_not_of_the_export_is_named_and_the_images_are_erased(
    tmp_path: Path, cache: SynthCache
) -> None:
    out = export(cache, tmp_path / "out", format="folder")
    described = (out / "croissant.json").read_text()
    os.mkfifo(out / "pipe")
    (out / "link").symlink_to(cache.path)
    wrong = [f'[{{"@type": "cr:FileObject", "@id": {value}}}]' for value in ('"pipe"', '"link"')]
    for number, text in enumerate(["{", "[]", '{"distribution": 5}', *wrong]):
        (out / "croissant.json").write_text(text if number < 3 else f'{{"distribution": {text}}}')
        found = forget([out], [104])
        assert found == {out: 2 if number == 0 else 0}
        assert f"{out / 'croissant.json'} is not as an export wrote it" in "\n".join(found.beyond)
    (out / "croissant.json").write_text(described)
    assert "not as an export" not in "\n".join(forget([out], [105]).beyond)


def test_parts_that_are_links_are_named_and_their_caches_stay(
    tmp_path: Path, cache: SynthCache
) -> None:
    precious = shutil.copy(cache.path, tmp_path / "precious.h5")
    parts = tmp_path / "c.h5.parts"
    parts.mkdir()
    (parts / "0.h5").symlink_to(precious)
    found = forget([cache.path], [104])
    assert found == {cache.path: 2}
    assert f"{parts / '0.h5'} is a link, and links are not followed" in "\n".join(found.beyond)
    parts.rename(tmp_path / "elsewhere")
    parts.symlink_to(tmp_path / "elsewhere")
    assert f"{parts} is a link" in "\n".join(forget([cache.path], [104]).beyond)
    assert SynthCache(precious).done.all()


def test_images_in_another_shape_than_the_cache_are_not_passed_over(cache: SynthCache) -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    found = forget([cache.path], images)
    assert f"{cache.path} has images of shape (3, 4, 5), and `sources` are (3, 8, 8)" in str(
        found.beyond
    )


@pytest.mark.filterwarnings(COMPRESSED)
def test_what_it_cannot_reach_is_named(
    tmp_path: Path, cache: SynthCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    small = export(cache, tmp_path / "small.h5", format="hdf5")
    inversion, run = tmp_path / "inversion", tmp_path / "run"
    (inversion / "embeddings").mkdir(parents=True)
    run.mkdir()
    tensors = {"keys": torch.tensor([104, 999]), "labels": torch.tensor([0, 1])}
    save_file(tensors, str(inversion / "embeddings" / "00000.safetensors"))
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "copies"))
    upload(cache.path, url := "memory://bucket/c.h5")
    found = forget([url, cache.path, small, inversion, run], [104])
    MemoryFileSystem.store.clear()
    assert found == {cache.path: 2}
    text = "\n".join(found.beyond)
    assert f"{url} is in a store, where nothing is erased; 2 of its rows" in text
    assert f"delete the copies on every machine that opened it, here {tmp_path / 'copies'}" in text
    assert "small.h5 is a compressed copy, which cannot be written; 2 of its rows" in text
    assert "inversion holds embeddings of 1 of these images. Weights, checkpoints and samp" in text
    assert "run holds no cache and no export. Weights, checkpoints" in text
    assert f"The weights that drew {cache.path} (Noise, net ab12)" in text
    for word in ("backups and exports", "Reports of audits", "Training jobs that run now"):
        assert word in text


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_caches_in_a_work_folder_and_what_kills_left_are_reached(
    tmp_path: Path, encoding: str
) -> None:
    work = tmp_path / "improved"
    inner = fill(Shaped(), work / "recipe-1" / "round-1.h5", plan_of(), encoding=encoding)
    outer = fill(Shaped(), tmp_path / "outer.h5", plan_of())
    (work / "linked.h5").symlink_to(outer.path)
    (work / "other.hdf5").write_text("none of ours")
    remains = [temporary_name(inner.path), temporary_name(work)]
    foreign = inner.path.with_name(".round-1.h5.12345678.partial")
    held = temporary_name(inner.path)
    for path in (*remains, foreign, held):
        path.write_bytes(inner.path.read_bytes())
    with held.open("rb") as writing:
        system.lock(writing.fileno())
        found = forget([work], [104])
    assert found == {inner.path: 2}
    assert foreign.exists()
    for path in (foreign, held):
        assert any("Delete what shows them" in t and path.name in t for t in found.beyond)
    assert f"{held} is unfinished and may hold the images" in "\n".join(found.beyond)
    assert (inner.state[made_from(inner, 104)] == State.WITHDRAWN).all()
    assert outer.done.all()
    assert not any(path.exists() for path in remains)
    text = "\n".join(found.beyond)
    assert f"{work} holds 1 caches, which are done. Weights, checkpoints and samples" in text
    assert f"delete {work / 'other.hdf5'}" in text


def test_whatever_lies_in_a_folder_loses_the_images_or_is_named(
    tmp_path: Path, cache: SynthCache
) -> None:
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    outer = shutil.copy(cache.path, tmp_path / "outer.h5")
    gone = cache.read(made_from(cache, 104))
    exports = [
        export(cache, work / "deep" / form, format=form)
        for form in ("folder", "huggingface", "webdataset")
    ]
    both = shutil.copytree(exports[0], work / "both")
    tar = shutil.copy(exports[2] / "000000.tar", both / "0.tar")
    wholes = [both / "c.h5", work / "renamed", work / "lost.h5.parts" / "0.h5"]
    for path in wholes:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(cache.path, path)
    imported = import_images(load_dataset(f"folder:{exports[0]}"), work / "imported.h5")
    pages = [work / "deep" / name for name in ("audit.html", "audit.json", "difficulty.json")]
    for page in pages:
        page.write_text(f"{'x' * (2**20 - 4)}data:image/png;base64,...")
    loose = [
        both / "cat" / "sheet.png",
        work / "sheet.PNG",
        work / "deep" / f"{'0' * 32}.npy",
        work / "backup.tar.gz",
    ]
    for path in loose:
        path.write_bytes(gone.numpy().tobytes())
    links = [work / "linked.h5", work / "linked"]
    links[0].symlink_to(outer)
    links[1].symlink_to(tmp_path)
    foreign, remains = work / "deep" / "foreign.tar", temporary_name(work / "deep" / "out")
    with tarfile.open(foreign, "w") as archive:
        archive.addfile(tarfile.TarInfo("0.json"))
    remains.mkdir()
    (remains / "0.png").write_bytes(gone.numpy().tobytes())
    os.mkfifo(work / "deep" / "pipe")

    found = forget([work], [104])
    text = "\n".join(found.beyond)
    assert found == {
        **{path: 2 for path in (*exports, *wholes)},
        both: 4,
        imported.path: 0,
    }
    assert not remains.exists()
    for path in (*pages, *loose, *links):
        assert str(path.relative_to(work)) in text
    assert f"{imported.path} was imported: what its images were made from is not known" in text
    assert f"delete {foreign}" in text
    pixels = [image.numpy().tobytes() for image in gone]
    named = {imported.path, *loose}
    for path in [path for path in work.rglob("*") if path.is_file() and not path.is_symlink()]:
        if path not in named:
            assert not any(image in path.read_bytes() for image in pixels), path
    assert len(list(both.rglob("0*.png"))) == SynthCache(wholes[0]).done.sum() == 38
    with tarfile.open(tar) as archive:
        assert len(archive.getnames()) == 3 * 38
    assert SynthCache(outer).done.all()
    assert forget([work / "lost.h5.parts"], [104]) == {wholes[2]: 2}


@pytest.mark.filterwarnings(COMPRESSED)
@pytest.mark.parametrize("form", ["folder", "hdf5"])
def test_an_export_holds_nothing_that_is_forgotten_while_it_is_written(
    tmp_path: Path, cache: SynthCache, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    read = SynthCache.read

    def forgetting(self: SynthCache, rows: Any) -> Any:
        images = read(self, rows)
        forget([cache.path], [104])
        return images

    monkeypatch.setattr(SynthCache, "read", forgetting)
    out = tmp_path / "out"
    with pytest.raises(CacheError, match=r"2 rows were withdrawn while .* the first is row 3"):
        export(cache, out, format=form)
    assert os.listdir(tmp_path) == ["c.h5"]
    monkeypatch.undo()
    export(cache, out, format=form)


def test_features_that_were_kept_are_deleted(tmp_path: Path, cache: SynthCache) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for name in ("0123456789abcdef0123456789abcdef.npy", "ffff456789abcdef0123456789abcdef.npz"):
        with sealed_file(folder / name) as path:
            Path(path).write_bytes(b"features, or how close images are")
    others = {"mine.npy", f"{'5' * 32}.npy"}  # the second by the digest of what is in it, say
    for name in others:
        (folder / name).write_text("kept")
    shutil.copytree(folder, below := tmp_path / "run" / "features")
    found = forget([cache.path, folder, tmp_path / "run"], [104])
    assert found == {cache.path: 2, folder: 2, below: 2}
    for place in (folder, below):
        assert set(os.listdir(place)) == others
    assert all(sum(name in text for text in found.beyond) == 2 for name in others)
    assert "run holds 2 kept features, which are deleted. Weights" in "\n".join(found.beyond)


def test_an_export_that_is_a_link_is_named_and_stays_one(tmp_path: Path, cache: SynthCache) -> None:
    out = export(cache, tmp_path / "out", format="webdataset")
    folder = tmp_path / "links"
    folder.mkdir()
    tar = next(out.rglob("*.tar"))
    before = tar.read_bytes()
    (folder / "linked.tar").symlink_to(tar)
    for _ in range(2):
        assert any("linked.tar" in text for text in forget([cache.path, folder], [104]).beyond)
    assert (folder / "linked.tar").is_symlink()
    assert tar.read_bytes() == before


# Tombstones


def test_a_source_that_one_cache_has_forgotten_is_left_out_of_a_merge(
    tmp_path: Path, cache: SynthCache
) -> None:
    other = fill(Shaped(), tmp_path / "d.h5", plan_of(seed=1))
    forget([cache.path], [104])
    merged = merge([cache.path, other.path], tmp_path / "m.h5")
    gone = made_from(merged, 104)
    assert len(gone) == 4
    assert (merged.state[gone] == State.WITHDRAWN).all()
    assert merged.done.sum() == len(merged) - 4
    assert 104 in merged.tombstones
    assert set(cache.tombstones) <= set(merged.tombstones)


def test_an_image_that_was_erased_does_not_come_back_as_an_import(
    tmp_path: Path, cache: SynthCache, caplog: pytest.LogCaptureFixture
) -> None:
    out = export(cache, tmp_path / "out", format="folder")
    erased = cache.read(made_from(cache, 104))
    cache.withdraw([5])
    forget([cache.path], [104])
    images = load_dataset(f"folder:{out}")
    free = import_images(images, tmp_path / "free.h5")
    assert free.done.all()
    with caplog.at_level(logging.WARNING):
        back = import_images(images, tmp_path / "back.h5", forgotten=[cache.path])
    assert "left out. An image that was forgotten" in caplog.text
    assert np.flatnonzero(back.state == State.WITHDRAWN).tolist() == sorted(
        [5, *made_from(cache, 104)]
    )
    assert erased[0].numpy().tobytes() not in back.path.read_bytes()
    again = import_images(images, tmp_path / "back.h5")  # which has tombstones of its own
    assert np.array_equal(again.state, back.state)


def test_forgetting_that_was_killed_is_completed_by_the_next_job(
    cache: SynthCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Writer._put

    def cut_short(self: Writer, fd: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "state":
            raise KeyboardInterrupt
        put(self, fd, name, *args, **kwargs)

    monkeypatch.setattr(Writer, "_put", cut_short)
    with pytest.raises(KeyboardInterrupt):
        forget([cache.path], [104])
    monkeypatch.undo()
    assert cache.done.all()
    synthesizer = Shaped()
    assert fill(synthesizer, cache.path, plan_of()).state[made_from(cache, 104)].tolist() == [2, 2]
    assert not synthesizer.drawn
    assert len(cache.tombstones) == 3  # the source, and two images


def test_tombstones_are_kept_once_and_name_only_images_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with suppress(Killed):
        fill(Shaped(killed_at=5), path, plan_of(), batch_size=1)
    for _ in range(3):
        forget([path], [101, 110])  # rows 0, 9, 10 and 19, of which the first was drawn
    cache = SynthCache(path)
    assert len(cache.tombstones) == 3
    assert {101, 110} <= set(cache.tombstones.tolist())
    cache.withdraw(range(len(cache)))
    assert len(cache.tombstones) == 2 + 5
    whole = path.read_bytes()
    for places in (slice(1, 2), slice(0, 7), slice(79, 80), slice(74, 75)):
        with h5py.File(path, "r+") as file:
            file["tombstones"][places] ^= np.uint64(1)
        with pytest.raises(CacheError, match=r"tombstones of .*c\.h5 are damaged"):
            merge([path], tmp_path / "m.h5")
        path.write_bytes(whole)
    assert not (tmp_path / "m.h5").exists()  # it would serve what was forgotten
    with h5py.File(path, "r+") as file:
        file["tombstones"][0] = 0
    with pytest.raises(CacheError, match=r"tombstones of .*c\.h5 are damaged"):
        SynthCache(path).withdraw([], forgotten=[5])
    with h5py.File(path, "r+") as file:  # a gap as a power failure leaves it, before complements
        file["tombstones"][40:] = 0
        file["tombstones"][79] = 2**64 - 1
        behind = file["tombstones"][1:7]
    gap = SynthCache(path)
    assert gap.tombstones.tolist() == behind.tolist()
    gap.withdraw([], forgotten=[5])
    assert SynthCache(path).tombstones.tolist() == [*behind, 5]
    path.write_bytes(whole)
    cache.withdraw([], forgotten=np.arange(1, 70))
    whole = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["tombstones"][3] = 0
    assert len(SynthCache(path).tombstones) == 2 + 5 + 69 - 1
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match="has room for 4 of 58 tombstones"):
        cache.withdraw([], forgotten=np.arange(70, 130))
    assert len(SynthCache(path).tombstones) == 80


@pytest.mark.filterwarnings(COMPRESSED)
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_list_of_which_nothing_is_left_is_not_taken_for_an_empty_one(
    tmp_path: Path, encoding: str
) -> None:
    cache = fill(Shaped(), tmp_path / "c.h5", plan_of(), encoding=encoding)
    assert not len(cache.tombstones)
    for key in (None, 104):
        if key is not None:
            forget([cache.path], [key])
        small = export(cache, tmp_path / f"{key}.h5", format="hdf5")
        for path in (cache.path, small):
            shutil.copy(path, lost := tmp_path / "lost.h5")
            with h5py.File(lost, "r+") as file:
                file["tombstones"][...] = 0
            for use in (
                lambda: SynthCache(lost).verify(),
                lambda: merge([lost], tmp_path / "m.h5"),
                lambda: import_images([(cache[0][0], 0)], tmp_path / "i.h5", forgotten=[lost]),
                lambda: export(SynthCache(lost), tmp_path / "e.h5", format="hdf5"),
            ):
                with pytest.raises(CacheError, match=r"tombstones of .*lost\.h5 are damaged"):
                    use()
    with h5py.File(cache.path, "r+") as file:  # as in files that were made before
        file["tombstones"][...] = 0
        del file["tombstones"].attrs["sealed"]
    assert not len(SynthCache(cache.path).verify())
    SynthCache(cache.path).withdraw([], forgotten=[5])
    assert SynthCache(cache.path).tombstones.tolist() == [5]


@pytest.mark.parametrize("places", [1, 2, 5])
def test_a_kill_between_two_writes_of_tombstones_leaves_no_damage(
    tmp_path: Path, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = Plan.build([places], classes=("cat",), settings={}, seed=0), tmp_path / "c.h5"
    cache = SynthCache.create(path, plan, image_shape=SHAPE, manifest={"recipe": {}})
    put, empty = Writer._put, path.read_bytes()
    monkeypatch.setattr("synthaug._cache.writing.sync_file", lambda fd: None)
    for first, second, last in itertools.product(range(places + 1), range(1, places + 1), range(3)):
        path.write_bytes(empty)
        cache.withdraw([], forgotten=np.arange(1, first + 1))
        left = iter(range(last))

        def cut_short(self: Writer, *args: Any, left: Any = left, **kwargs: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            put(self, *args, **kwargs)

        new = np.arange(first + 1, min(first + second, places) + 1)
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_put", cut_short)
            with suppress(KeyboardInterrupt):
                cache.withdraw([], forgotten=new)
        assert set(range(1, first + 1)) <= set(cache.tombstones.tolist())
        cache.withdraw([], forgotten=new)
        assert cache.tombstones.tolist() == [*range(1, first + 1), *new]


def as_version_1(cache: SynthCache, path: Path) -> Path:
    """A file as they were before there were tombstones."""
    shutil.copy(cache.path, path)
    with h5py.File(path, "r+") as file:
        del file["tombstones"]
        file.attrs.modify("format_version", np.int64(1))
    return path


def test_files_of_version_1_are_read_written_and_renewed_by_a_merge(
    tmp_path: Path, cache: SynthCache
) -> None:
    old = SynthCache(as_version_1(cache, tmp_path / "old.h5"))
    assert torch.equal(old.read(range(40)), cache.read(range(40)))
    assert len(old.verify()) == 0
    assert not len(old.tombstones)
    found = forget([old.path], [104])
    assert found == {old.path: 2}
    assert "old.h5 is of format version 1, which keeps no tombstones" in "\n".join(found.beyond)
    assert (old.state[made_from(old, 104)] == State.WITHDRAWN).all()
    assert fill(Shaped(), old.path, plan_of()).done.sum() == 38
    new = merge([old.path], tmp_path / "new.h5")
    assert new.keeps_tombstones
    assert np.array_equal(new.state, old.state)
    with h5py.File(old.path, "r+") as file:
        file["tombstones"] = np.zeros(80, np.uint64)
    with pytest.raises(CacheError, match="more objects"):
        SynthCache(old.path)


@pytest.mark.filterwarnings(COMPRESSED)
def test_tombstones_go_with_a_compressed_copy(tmp_path: Path, cache: SynthCache) -> None:
    forget([cache.path], [104])
    small = SynthCache(export(cache, tmp_path / "small.h5", format="hdf5"))
    assert np.array_equal(small.tombstones, cache.tombstones)
    plain = merge([small.path], tmp_path / "plain.h5")
    assert set(plain.tombstones) == set(cache.tombstones)


# Pools


@pytest.mark.parametrize("background", [False, True])
def test_a_pool_drops_what_is_forgotten_with_the_next_batch(
    tmp_path: Path, background: bool
) -> None:
    path, plan = tmp_path / "live.h5", plan_of()
    live = OnTheFlyDataset(
        Shaped(), plan, size=24, batch_size=4, cache=path, background=background, output_type="pt"
    )
    first = live.rows().copy()
    live.read(range(12))
    key = int(plan["source_key"][first[3]])
    forget([path], [key])
    gone = np.flatnonzero(plan["source_key"] == key)
    pixels, rows = live.read(range(24)), live.rows()
    assert not np.isin(rows, gone).any()
    stayed = ~np.isin(first, gone)
    assert np.array_equal(rows[stayed], first[stayed])
    assert np.array_equal(plan["label"][rows], live.labels)
    expected = {row: Shaped().draw(plan[[row]]) for row in rows.tolist()}
    for row, image in zip(rows.tolist(), pixels, strict=True):
        assert torch.equal(image, ((expected[row][0] + 1) * 127.5).round().to(torch.uint8))
    for epoch in (1, 2):
        live.set_epoch(epoch)
        assert not np.isin(live.rows(), gone).any()
        live.read(range(24))
    live.close()
    assert (SynthCache(path).state[gone] == State.WITHDRAWN).all()


def test_a_row_that_is_forgotten_while_the_pool_draws_it_is_not_served(tmp_path: Path) -> None:
    path, plan = tmp_path / "live.h5", plan_of()

    class Forgetting(Shaped):
        done = False

        def draw(self, rows: Plan) -> torch.Tensor:
            if not self.done:
                type(self).done = True
                forget([path], rows["source_key"][:1])
                self.key = int(rows["source_key"][0])
            return super().draw(rows)

    synthesizer = Forgetting()
    live = OnTheFlyDataset(synthesizer, plan, batch_size=4, cache=path, background=False)
    assert len(live.read(range(40))) == 40
    assert synthesizer.key not in plan["source_key"][live.rows()]
    live.close()
