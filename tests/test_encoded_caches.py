"""Caches that hold image files instead of pixels: the same promises."""

import errno
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from synthaug import Plan, SynthCache
from synthaug._cache import encoded_rows, encodings, growing, readers, schema
from synthaug._cache.encodings import Encoding, UndecodableError
from synthaug._cache.files import pwrite
from synthaug._generate import generate
from synthaug._support import system
from synthaug.caches import export, merge
from synthaug.errors import CacheError, MismatchError

from .command_line import run

SHAPE = (3, 16, 16)
ROWS = 24
MANIFEST = {"recipe": {"synthesizer": "Waves", "settings": {}, "weights": {"unet": "ab"}}}
ENCODED = ("png", "webp", "jpeg:90")


def waves(shape: tuple[int, int, int] = SHAPE, rows: int = ROWS) -> torch.Tensor:
    """Smooth images with some noise, each of its own color and size as a file."""
    ramps = torch.linspace(0, 3, shape[2]) * torch.arange(1, rows + 1).view(-1, 1, 1, 1) / 7
    levels = torch.arange(shape[0]).view(1, -1, 1, 1) + ramps
    noise = np.random.default_rng(0).integers(0, 16, (rows, *shape))
    return (levels.sin() * 110 + 112 + torch.from_numpy(noise)).to(torch.uint8)


PIXELS = waves()


class Waves:
    """Draws `waves`, whose row is the source."""

    image_shape = SHAPE

    def draw(self, rows: Plan) -> torch.Tensor:
        return PIXELS[rows["source"].copy()] / 127.5 - 1

    def recipe(self) -> Any:
        return MANIFEST["recipe"]


def plan_of(start: int = 0, stop: int = ROWS) -> Plan:
    return Plan.build(
        [ROWS // 2, ROWS // 2],
        classes=("a", "b"),
        settings={},
        seed=0,
        sources=[list(range(ROWS // 2)), list(range(ROWS // 2, ROWS))],
        source_keys=np.arange(1, ROWS + 1, dtype=np.uint64),
    )[start:stop]


def create(path: Path, encoding: str | None, start: int = 0, stop: int = ROWS) -> SynthCache:
    return SynthCache.create(
        path, plan_of(start, stop), image_shape=SHAPE, manifest=MANIFEST, encoding=encoding
    )


def filled(path: Path, encoding: str | None, start: int = 0, stop: int = ROWS) -> SynthCache:
    cache = create(path, encoding, start, stop)
    for first in range(0, stop - start, 6):
        rows = np.arange(first, min(first + 6, stop - start))
        cache.write(rows, PIXELS[start + rows], fsync="never")
    return cache


@pytest.mark.parametrize("encoding", ENCODED)
def test_it_reads_as_a_raw_cache_does_and_any_tool_reads_its_files(
    tmp_path: Path, encoding: str
) -> None:
    raw = filled(tmp_path / "raw.h5", "raw")
    cache = create(tmp_path / "c.h5", encoding)
    early = SynthCache(cache.path)  # before the file became longer
    cache = filled(tmp_path / "d.h5", encoding)
    early_bytes = os.path.getsize(early.path)
    for first in range(0, ROWS, 6):
        SynthCache(early.path).write(range(first, first + 6), PIXELS[first : first + 6])
    assert os.path.getsize(early.path) > early_bytes
    assert early.path.read_bytes() == cache.path.read_bytes()
    order = [3, -1, 3, 20]
    assert torch.equal(early.read(order), cache.read(order))
    assert cache.encoding == encoding
    assert not len(cache.verify())
    with h5py.File(cache.path) as file:
        assert file.attrs["format_version"] == 3
        start, length = file["index"][5]
        read = Image.open(io.BytesIO(file["encoded"][start : start + length]))
    assert (np.asarray(read) == np.asarray(cache[5][0])).all()
    if encoding.startswith("jpeg"):
        assert 0 < (cache.read([5]).float() - PIXELS[5]).abs().mean() < 8
        assert cache.identity == {**raw.identity, "encoding": encoding}
        assert cache.provenance(5)["encoding"] == encoding
    else:
        assert torch.equal(cache.read(range(ROWS)), PIXELS)
        assert (cache.checksums == raw.checksums).all()
        assert (cache.identity, cache.manifest) == (raw.identity, raw.manifest)


def test_gray_images_and_the_usual_encoding() -> None:
    gray = waves((1, 9, 7), 3).numpy()
    for name in ("png", "webp"):
        encoding = Encoding.parse(name)
        with warnings.catch_warnings():  # a decoder that warns must not look like damage
            warnings.simplefilter("error")
            assert (encoding.decoded(encoding.encoded(gray), (1, 9, 7)) == gray).all()
    assert str(Encoding.chosen(None, (3, 128, 128))) == "raw"
    assert str(Encoding.chosen(None, (1, 8, 129))) == "webp"
    assert str(Encoding.chosen(None, (3, 8, 2**14))) == "raw"  # more than WebP can hold
    for text in ("jpeg", "jpeg:0", "jpeg:101", "avif", ""):
        with pytest.raises(ValueError, match="`encoding` must be"):
            Encoding.parse(text)
    with pytest.raises(ValueError, match="Use 'png'"):
        Encoding.chosen("webp", (3, 8, 2**14))


@pytest.mark.parametrize("bits", [8, 16])
def test_of_two_headers_the_second_claims_nothing(bits: int) -> None:
    encoding = Encoding.parse("png")
    (file,) = encoding.encoded(PIXELS[:1, :1].numpy())
    claim = b"IHDR" + struct.pack(">IIBBBBB", 16 if bits == 16 else 9000, 16, bits, 0, 0, 0, 0)
    second = struct.pack(">I", 13) + claim + struct.pack(">I", zlib.crc32(claim))
    with pytest.raises(UndecodableError, match="a second header says"):
        encoding.decoded([file[:33] + second + file[33:]], (1, 16, 16))


def test_a_cache_opens_while_a_writer_makes_it_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create(tmp_path / "c.h5", "png")
    step, inspected = 0, schema._root_attributes

    def growing_meanwhile(file: h5py.File) -> Any:
        nonlocal step
        if step < ROWS:
            rows = np.arange(step, step + 8)
            before = writer.path.stat().st_size
            writer.write(rows, PIXELS[rows], fsync="never")
            assert writer.path.stat().st_size > before
            step += 8
        return inspected(file)

    monkeypatch.setattr(schema, "_root_attributes", growing_meanwhile)
    monkeypatch.setattr(schema, "_WRITING", 0)
    opened = SynthCache(writer.path)
    done = np.flatnonzero(opened.done)  # HDF5 before 2.0 succeeds at once, later ones at the end
    assert len(done) == step
    assert torch.equal(opened.read(done), PIXELS[done])


class Killed(BaseException):
    """Ends a job in the middle of a write, as a kill would."""


def test_a_kill_in_the_middle_of_any_write_costs_no_done_row_and_resuming_equals_no_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, first = 0, 12  # two batches, and the file becomes longer

    def write(fd: int, data: Any, offset: int) -> None:
        nonlocal left
        left -= 1
        view = memoryview(data).cast("B")
        if left == 0 and view.nbytes > 48:  # shorter ones and headers are one sector
            pwrite(fd, view[: view.nbytes // 2], offset)
        if left == 0:
            raise Killed
        pwrite(fd, data, offset)

    def grown(fd: int, data: Any, offset: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        pwrite(fd, data, offset)

    for module in (encoded_rows, readers):
        monkeypatch.setattr(module, "pwrite", write)
    monkeypatch.setattr(growing, "pwrite", grown)
    reference = filled(tmp_path / "whole.h5", "png", stop=first).path.read_bytes()
    kills = 0
    while True:
        kills += 1
        path = tmp_path / "killed.h5"
        path.unlink(missing_ok=True)
        left = kills
        try:
            filled(path, "png", stop=first)
            break
        except Killed:
            pass
        left = 0
        cache = SynthCache(path)
        done = np.flatnonzero(cache.done)
        assert torch.equal(cache.read(done), PIXELS[done])
        assert not len(cache.verify())
        pending = np.flatnonzero(~cache.done)
        for batch in np.split(pending, np.flatnonzero(np.diff(pending // 6)) + 1):
            cache.write(batch, PIXELS[batch], fsync="never")
        assert path.read_bytes() == reference
    assert kills > 20


def test_two_writers_take_turns_and_give_no_byte_away_twice(tmp_path: Path) -> None:
    path = create(tmp_path / "c.h5", "webp").path

    def write(rows: range) -> None:
        cache = SynthCache(path)
        for row in rows:
            cache.write([row], PIXELS[row : row + 1], fsync="never")

    writers = [threading.Thread(target=write, args=(range(i, ROWS, 2),)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert torch.equal(SynthCache(path).read(range(ROWS)), PIXELS)


def set_index(path: Path, row: int, entry: Any) -> None:
    with h5py.File(path, "r+") as file:
        file["index"][row] = entry


def overwrite(path: Path, row: int, data: bytes, at: int = 0) -> None:
    with h5py.File(path, "r+") as file:
        start = int(file["index"][row, 0]) + at
        file["encoded"][start : start + len(data)] = np.frombuffer(data, np.uint8)


def bomb(path: Path, row: int) -> None:
    overwrite(path, row, (60_000).to_bytes(4, "big") * 2, at=16)  # width and height of a PNG


DAMAGE: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "outside": (lambda path, row: set_index(path, row, (2**40, 300)), "which the file does not"),
    "overflow": (lambda path, row: set_index(path, row, (2**64 - 1, 9)), "which the file does not"),
    "too long": (lambda path, row: set_index(path, row, (0, 2**40)), "too many for one image"),
    "of another row": (lambda path, row: set_index(path, row, (0, 90)), "not those that were"),
    "no image": (lambda path, row: overwrite(path, row, bytes(8)), "no PNG file as we write them"),
    "no pixels": (lambda path, row: overwrite(path, row, bytes(30), at=41), "it does not decode"),
    "a bomb": (bomb, "60,000 x 60,000 pixels"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_one_error_and_is_drawn_anew_without_harm_to_others(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "c.h5", "png").path
    build, fault = DAMAGE[damage]
    build(path, 7)
    header, decode, channels = encodings._FORMATS["png"]
    decoded = []

    def noticed(data: Any, shape: Any) -> Any:
        decoded.append(bytes(data))
        return decode(data, shape)

    monkeypatch.setitem(encodings._FORMATS, "png", (header, noticed, channels))
    with pytest.raises(CacheError, match=rf"row 7 .*{fault}"):
        SynthCache(path).read(range(ROWS))
    assert not any(b"\xea\x60\x00\x00\xea\x60" in data for data in decoded)
    assert SynthCache(path).verify().tolist() == [7]
    cache = generate(Waves(), plan_of(), path, batch_size=6, progress=False)
    assert torch.equal(cache.read(range(ROWS)), PIXELS)
    assert not len(cache.verify())


STRUCTURES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "encoding": (lambda file: file.attrs.modify("encoding", np.bytes_(b"xyz")), "'xyz' is not"),
    "raw": (lambda file: file.attrs.modify("encoding", np.bytes_(b"raw")), "does not fit the"),
    "shape": (lambda file: file.attrs.modify("image_shape", [3, 0, 9]), "not \\(N, C, H, W\\)"),
    "index": (lambda file: file.move("index", "images"), "'images' is not part"),
    "end": (lambda file: file.create_dataset("plan/x", data=np.zeros(ROWS, "<i8")), "at the end"),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_hostile_structure_is_refused(tmp_path: Path, structure: str) -> None:
    path = create(tmp_path / "c.h5", "png").path
    build, refusal = STRUCTURES[structure]
    with h5py.File(path, "r+") as file:
        build(file)
    with pytest.raises(CacheError, match=refusal):
        SynthCache(path)


def test_what_is_withdrawn_is_gone_from_the_file_wherever_its_index_points(
    tmp_path: Path,
) -> None:
    cache = filled(tmp_path / "c.h5", "png")
    reader = cache._open()
    assert isinstance(reader, encoded_rows.Encoded)
    files = reader.files(np.arange(ROWS))

    def gone() -> list[int]:
        stored = cache.path.read_bytes()
        return [row for row in range(ROWS) if files[row] not in stored]

    cache.write([3], PIXELS[9:10])  # a file of another length: the one before is erased
    set_index(cache.path, 5, (0, 90))
    SynthCache(cache.path).withdraw([4, 5])
    assert gone() == [3, 4, 5]
    set_index(cache.path, 6, (2**40, 90))
    SynthCache(cache.path).write([6], PIXELS[:1])  # what cannot be found is erased as well
    assert gone() == [3, 4, 5, 6]
    set_index(cache.path, 7, (0, 0))
    SynthCache(cache.path).withdraw([7])
    assert gone() == [3, 4, 5, 6, 7]
    with h5py.File(cache.path) as file:
        entry = file["index"][10]
    set_index(cache.path, 8, entry)  # but only row 10 has its image there
    SynthCache(cache.path).withdraw([10])
    assert gone() == [3, 4, 5, 6, 7, 8, 10]
    assert cache.verify().tolist() == [8]
    SynthCache(cache.path).write([8], PIXELS[8:9])
    assert gone() == [3, 4, 5, 6, 7, 10]
    assert not len(cache.verify())
    rest = np.delete(np.arange(ROWS), gone())
    assert torch.equal(SynthCache(cache.path).read(rest), PIXELS[rest])
    overwrite(cache.path, 4, b"rest")
    assert cache.verify().tolist() == [4]


def test_merges_between_encodings_are_asked_for_and_lose_nothing_twice(tmp_path: Path) -> None:
    raw = filled(tmp_path / "raw.h5", "raw", stop=12)
    png = filled(tmp_path / "png.h5", "png", start=12)
    lossy = filled(tmp_path / "jpeg.h5", "jpeg:90", start=12)
    with pytest.raises(MismatchError, match=r"stores its images as raw, .*as png"):
        merge([raw.path, png.path], tmp_path / "out.h5")
    whole = merge([raw.path, png.path], tmp_path / "out.h5", encoding="png")
    assert whole.path.read_bytes() == filled(tmp_path / "one.h5", "png").path.read_bytes()
    with pytest.raises(MismatchError, match="lossy encoding"):
        merge([raw.path, lossy.path], tmp_path / "no.h5", encoding="raw")
    with pytest.raises(ValueError, match="lost detail as jpeg:90"):
        merge([lossy.path], tmp_path / "no.h5", encoding="jpeg:80")
    same = merge([raw.path, lossy.path], tmp_path / "same.h5", encoding="jpeg:90")
    assert (same.checksums[12:] == lossy.checksums).all()
    run("cache", "merge", tmp_path / "loose.h5", lossy.path, "--encoding", "raw")
    loose = SynthCache(tmp_path / "loose.h5")
    assert (loose.encoding, loose.identity) == ("raw", lossy.identity)
    assert (loose.checksums == lossy.checksums).all()


def test_jobs_in_shards_loaders_and_exports_know_encoded_caches(tmp_path: Path) -> None:
    one = generate(
        Waves(), plan_of(), tmp_path / "one.h5", encoding="jpeg:90", batch_size=6, progress=False
    )
    with pytest.raises(MismatchError, match="encoding: 'jpeg:90' in the file, 'png' given"):
        generate(Waves(), plan_of(), one.path, encoding="png", progress=False)
    for shard in ("1/2", "2/2"):
        sharded = generate(
            Waves(),
            plan_of(),
            tmp_path / "two.h5",
            encoding="jpeg:90",
            shard=shard,
            progress=False,
        )
    assert sharded.path.read_bytes() == one.path.read_bytes()
    loader = DataLoader(
        SynthCache(one.path, output_type="pt"),
        batch_size=ROWS,
        num_workers=1,
        multiprocessing_context="fork",
    )
    ((images, _),) = loader
    assert torch.equal(images, one.read(range(ROWS)))
    copy = export(one, tmp_path / "copy.h5", format="hdf5")
    again = merge([copy], tmp_path / "again.h5")
    assert (again.encoding, again.identity) == ("raw", one.identity)
    assert torch.equal(again.read(range(ROWS)), images)


def test_a_disk_that_becomes_full_costs_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = system.allocate

    def full(fd: int, size: int, *, start: int = 0) -> bool:
        if start:
            raise OSError(errno.ENOSPC, "No space left on device")
        return allocate(fd, size)

    cache = create(tmp_path / "c.h5", "png")
    cache.write([0], PIXELS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(system, "allocate", full)
        with pytest.raises(CacheError, match="Rows that are done stay; run again to continue"):
            cache.write(range(1, ROWS), PIXELS[1:])
    assert cache.done.tolist() == [True] + [False] * (ROWS - 1)
    cache.write(range(1, ROWS), PIXELS[1:])
    assert torch.equal(cache.read(range(ROWS)), PIXELS)
