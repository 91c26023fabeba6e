"""Files that are damaged or hostile: refused or found, never served, never a crash."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache
from synthaug._cache import opened as _opened
from synthaug._cache import readers as _readers
from synthaug._cache import schema as _schema
from synthaug._cache.format import text_digest
from synthaug.errors import CacheError, CachePendingError

SHAPE = (3, 8, 8)
ROWS = 12
VARIANTS = int(os.environ.get("SYNTHAUG_DAMAGE", "400"))
MANIFEST = {"recipe": {"synthesizer": "Noise", "settings": {}, "weights": {"unet": "ab"}}}
ENCODINGS = ["raw"]
if "SYNTHAUG_DAMAGE" in os.environ:
    ENCODINGS += ["png", "webp", "jpeg:90"]
PIXELS = np.random.default_rng(5).integers(0, 256, (ROWS, *SHAPE), np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> SynthCache:
    """Ten rows done, one pending, one withdrawn."""
    return made_in(tmp_path)


def made_in(folder: Path, encoding: str = "raw") -> SynthCache:
    plan = Plan.build(
        [6, 6], classes=("a", "b"), settings={}, seed=0, parameters={"strength": [0.5, 1.0]}
    )
    made = SynthCache.create(
        folder / "c.h5", plan, image_shape=SHAPE, manifest=MANIFEST, encoding=encoding
    )
    made.write(range(ROWS - 1), torch.from_numpy(PIXELS[:-1]))
    made.withdraw([4])
    return made


# Hostile files: valid HDF5 with something in it that a cache does not have

Attack = Callable[[h5py.File, Path], Any]
ATTACKS: dict[str, tuple[Attack, str]] = {}


def attack(refusal: str) -> Callable[[Attack], Attack]:
    """Registers a file that must be refused for a reason whose message holds `refusal`."""

    def register(function: Attack) -> Attack:
        ATTACKS[getattr(function, "__name__", "")] = function, refusal
        return function

    return register


def replace(file: h5py.File, name: str, *args: Any, **kwargs: Any) -> Any:
    del file[name]
    return file.create_dataset(name, *args, **kwargs)


def set_manifest(file: h5py.File, **changes: Any) -> None:
    manifest = {**json.loads(file.attrs["manifest"]), **changes}
    set_text(file, json.dumps(manifest))


def set_text(file: h5py.File, text: str, name: str = "manifest") -> None:
    data = text.encode()
    for key, value in ((name, data), ("manifest_digest", text_digest(text).encode())):
        del file.attrs[key]
        file.attrs.create(key, value, dtype=h5py.string_dtype("utf-8", len(value)))


def low_level(file: h5py.File, name: str, shape: tuple[int, ...], **plist: Any) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for key, value in plist.items():
        getattr(created, key)(*(value if isinstance(value, tuple) else (value,)))
    if name in file:
        del file[name]
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.STD_U8LE if name in ("images", "state") else h5py.h5t.STD_I64LE
    h5py.h5d.create(file.id, name.encode(), kind, space, created)


@attack("external storage")
def pixels_in_another_file(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(b"x" * PIXELS.nbytes)
    external = [(str(folder / "secret"), 0, PIXELS.nbytes)]
    replace(file, "images", PIXELS.shape, "u1", external=external)


@attack("an external link")
def external_link_to_pixels(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["images"] = PIXELS
    del file["images"]
    file["images"] = h5py.ExternalLink(str(folder / "other.h5"), "/images")


@attack("an external link")
def external_link_to_the_plan(file: h5py.File, folder: Path) -> None:
    del file["plan"]
    file["plan"] = h5py.ExternalLink(str(folder / "other.h5"), "/plan")


@attack("a soft link")
def soft_link_to_pixels(file: h5py.File, folder: Path) -> None:
    file.move("images", "plan/hidden")
    file["images"] = h5py.SoftLink("/plan/hidden")


@attack("a soft link")
def soft_link_in_the_plan(file: h5py.File, folder: Path) -> None:
    del file["plan/seed"]
    file["plan/seed"] = h5py.SoftLink("/plan/source_key")


@attack("a soft link")
def dangling_link(file: h5py.File, folder: Path) -> None:
    del file["labels"]
    file["labels"] = h5py.SoftLink("/nowhere")


@attack("virtual data set")
def virtual_pixels(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(PIXELS.shape, "u1")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "images", PIXELS.shape)
    del file["images"]
    file.create_virtual_dataset("images", layout)


@attack("not a dataset")
def group_in_a_circle(file: h5py.File, folder: Path) -> None:
    file["plan/again"] = file["/"]


@attack("more objects")
def unknown_data_set(file: h5py.File, folder: Path) -> None:
    file["payload"] = [1]


@attack("is not part of a cache")
def renamed_data_set(file: h5py.File, folder: Path) -> None:
    file.move("checksum", "payload")


@attack("more objects")
def unknown_group(file: h5py.File, folder: Path) -> None:
    file.create_group("extra")


@attack("more objects")
def many_objects(file: h5py.File, folder: Path) -> None:
    for i in range(3000):
        file.create_group(f"plan/g{i}")


@attack("too many attributes")
def many_attributes(file: h5py.File, folder: Path) -> None:
    for i in range(500):
        file.attrs[f"a{i}"] = i


@attack("'note' is not part")
def unknown_attribute(file: h5py.File, folder: Path) -> None:
    file.attrs["note"] = "hello"


@attack("'plan_digest' is missing")
def missing_attribute(file: h5py.File, folder: Path) -> None:
    del file.attrs["plan_digest"]


@attack("not a synthaug-cache")
def other_format(file: h5py.File, folder: Path) -> None:
    file.attrs["format"] = np.bytes_(b"synthaug-cachE")


@attack("format version 4")
def later_version(file: h5py.File, folder: Path) -> None:
    file.attrs["format_version"] = 4


@attack("lacks a format_version")
def version_of_another_type(file: h5py.File, folder: Path) -> None:
    file.attrs["format_version"] = [1, 1]


@attack("not a text of fixed length")
def manifest_of_variable_length(file: h5py.File, folder: Path) -> None:
    file.attrs["manifest"] = file.attrs["manifest"].decode()


@attack("not a text of fixed length")
def manifest_as_numbers(file: h5py.File, folder: Path) -> None:
    file.attrs["manifest"] = np.frombuffer(file.attrs["manifest"], np.uint8)


@attack("not JSON")
def manifest_that_is_no_json(file: h5py.File, folder: Path) -> None:
    set_text(file, "{")


@attack("not JSON")
def manifest_nested_deeply(file: h5py.File, folder: Path) -> None:
    set_text(file, "[" * 50_000 + "]" * 50_000)


@attack("the manifest is not the one")
def manifest_of_another_cache(file: h5py.File, folder: Path) -> None:
    text = file.attrs["manifest"].decode().replace('"ab"', '"cd"').encode()
    file.attrs.modify("manifest", np.array(text, h5py.string_dtype("utf-8", len(text))))


@attack("not names")
def classes_that_are_no_names(file: h5py.File, folder: Path) -> None:
    set_manifest(file, classes=[1, 2])


@attack("Label 1 is not one of")
def too_few_classes(file: h5py.File, folder: Path) -> None:
    set_manifest(file, classes=["a"])


@attack("'value_range'")
def other_value_range(file: h5py.File, folder: Path) -> None:
    set_manifest(file, value_range=[0, 1])


@attack("no valid 'recipe'")
def recipe_that_is_no_dict(file: h5py.File, folder: Path) -> None:
    set_manifest(file, recipe="x")


@attack("no valid 'license'")
def license_that_is_no_dict(file: h5py.File, folder: Path) -> None:
    set_manifest(file, license=[1])


@attack("no 'source'")
def manifest_without_a_source(file: h5py.File, folder: Path) -> None:
    manifest = json.loads(file.attrs["manifest"])
    del manifest["source"]
    set_text(file, json.dumps(manifest))


@attack("expected uint8")
def float_pixels(file: h5py.File, folder: Path) -> None:
    replace(file, "images", data=PIXELS.astype("<f4"))


@attack("expected uint8")
def signed_pixels(file: h5py.File, folder: Path) -> None:
    replace(file, "images", data=PIXELS.astype("i1"))


@attack("has the shape")
def pixels_of_rank_three(file: h5py.File, folder: Path) -> None:
    replace(file, "images", data=PIXELS[:, 0])


@attack("has the shape")
def two_channels(file: h5py.File, folder: Path) -> None:
    replace(file, "images", data=PIXELS[:, :2])


@attack("unexpected type")
def pixels_of_variable_length(file: h5py.File, folder: Path) -> None:
    data = np.array([image.ravel() for image in PIXELS] + [None], object)[:-1]
    replace(file, "images", data=data, dtype=h5py.vlen_dtype(np.uint8))


@attack("unexpected type")
def pixels_that_are_references(file: h5py.File, folder: Path) -> None:
    replace(file, "images", PIXELS.shape, h5py.ref_dtype)[0, 0, 0, 0] = file["labels"].ref


@attack("expected int64")
def short_labels(file: h5py.File, folder: Path) -> None:
    replace(file, "labels", data=np.zeros(ROWS, "<i4"))


@attack("unexpected type")
def big_endian_labels(file: h5py.File, folder: Path) -> None:
    replace(file, "labels", data=np.zeros(ROWS, ">i8"))


@attack("expected int64")
def labels_of_another_length(file: h5py.File, folder: Path) -> None:
    replace(file, "labels", data=np.zeros(ROWS - 1, "<i8"))


@attack("is empty")
def labels_without_a_shape(file: h5py.File, folder: Path) -> None:
    replace(file, "labels", data=h5py.Empty("<i8"))


@attack("is empty")
def one_label(file: h5py.File, folder: Path) -> None:
    replace(file, "labels", data=np.int64(1))


@attack("unexpected type")
def states_as_enumeration(file: h5py.File, folder: Path) -> None:
    kind = h5py.enum_dtype({"x": 0, "y": 1}, basetype="u1")
    replace(file, "state", data=np.ones(ROWS, "u1"), dtype=kind)


@attack("expected uint8")
def states_as_booleans(file: h5py.File, folder: Path) -> None:
    replace(file, "state", data=np.ones(ROWS, bool))


@attack("is empty")
def no_rows(file: h5py.File, folder: Path) -> None:
    for name in ("images", "labels", "state", "checksum"):
        data = file[name][:0]
        replace(file, name, data=data)


@attack("has the shape")
def shape_far_larger_than_the_file(file: h5py.File, folder: Path) -> None:
    replace(file, "images", (2**40, *SHAPE), "u1", chunks=(1, *SHAPE), compression="gzip")


@attack("not plausible")
def plan_far_larger_than_the_file(file: h5py.File, folder: Path) -> None:
    rows = 2**22
    for name in ("labels", *(f"plan/{c}" for c in file["plan"])):
        replace(file, name, (rows,), file[name].dtype, chunks=(2**16,), compression="gzip")
    replace(file, "images", (rows, *SHAPE), "u1", chunks=(1, *SHAPE))
    replace(file, "state", (rows,), "u1", chunks=(2**16,))
    replace(file, "checksum", (rows,), "<u4", chunks=(2**16,))
    replace(file, "tombstones", (2 * rows,), "<u8", chunks=(2**16,))


@attack("no place")
def pixels_without_a_place(file: h5py.File, folder: Path) -> None:
    low_level(file, "images", PIXELS.shape, set_layout=h5py.h5d.CONTIGUOUS)


@attack("neither contiguous nor chunked")
def compact_labels(file: h5py.File, folder: Path) -> None:
    low_level(file, "labels", (ROWS,), set_layout=h5py.h5d.COMPACT)


@attack("chunks of 100,663,296 bytes")
def chunks_that_fill_memory(file: h5py.File, folder: Path) -> None:
    rows = 2**19
    replace(file, "images", (rows, *SHAPE), "u1", chunks=(rows, *SHAPE), compression="gzip")


@attack("filter")
def filter_that_is_not_ours(file: h5py.File, folder: Path) -> None:
    replace(file, "images", data=PIXELS, chunks=(1, *SHAPE), scaleoffset=0)


@attack("filter")
def filter_that_nobody_has(file: h5py.File, folder: Path) -> None:
    low_level(
        file,
        "images",
        PIXELS.shape,
        set_chunk=((1, *SHAPE),),
        set_filter=(32004, h5py.h5z.FLAG_OPTIONAL, ()),
    )


@attack("overlaps")
def two_names_for_the_same_bytes(file: h5py.File, folder: Path) -> None:
    del file["plan/variant"]
    file["plan/variant"] = file["plan/source"]


@attack("not a dataset")
def type_in_place_of_pixels(file: h5py.File, folder: Path) -> None:
    del file["images"]
    file["images"] = np.dtype("u1")


@attack("not a dataset")
def group_in_place_of_pixels(file: h5py.File, folder: Path) -> None:
    del file["images"]
    file.create_group("images")


@attack("not a group")
def data_set_in_place_of_the_plan(file: h5py.File, folder: Path) -> None:
    replace(file, "plan", data=[1])


@attack("no 'images'")
def missing_pixels(file: h5py.File, folder: Path) -> None:
    del file["images"]


@attack("no 'plan/seed'")
def missing_column(file: h5py.File, folder: Path) -> None:
    del file["plan/seed"]


@attack("expected uint64")
def few_tombstones(file: h5py.File, folder: Path) -> None:
    replace(file, "tombstones", data=np.zeros(ROWS, "<u8"))


@attack("no 'tombstones'")
def missing_tombstones(file: h5py.File, folder: Path) -> None:
    del file["tombstones"]


@attack("more objects")
def tombstones_of_a_later_version(file: h5py.File, folder: Path) -> None:
    file.attrs["format_version"] = 1


@attack("has dtype")
def column_of_text(file: h5py.File, folder: Path) -> None:
    file["plan/extra"] = np.full(ROWS, b"x")


@attack("has dtype")
def column_of_records(file: h5py.File, folder: Path) -> None:
    file["plan/extra"] = np.zeros(ROWS, [("a", "<i8"), ("b", "<f8")])


@attack("not finite")
def column_that_is_not_finite(file: h5py.File, folder: Path) -> None:
    file["plan/strength"][0] = np.inf


@attack("cannot be a column")
def second_label_column(file: h5py.File, folder: Path) -> None:
    file["plan/label"] = np.zeros(ROWS, "<i8")


@attack("cannot be a column")
def column_with_a_control_character(file: h5py.File, folder: Path) -> None:
    file["plan/a\x1b[31m"] = np.zeros(ROWS, "<i8")


@attack("the plan is not the one")
def further_column(file: h5py.File, folder: Path) -> None:
    file["plan/extra"] = np.zeros(ROWS, "<f8")


@attack("Label 2")
def labels_beyond_the_classes(file: h5py.File, folder: Path) -> None:
    file["labels"][0] = 2


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_is_refused_before_a_pixel_is_read(
    cache: SynthCache, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_opened, "open_reader", lambda contents: pytest.fail("rows were opened"))
    build, refusal = ATTACKS[name]
    with h5py.File(cache.path, "r+") as file:
        build(file, tmp_path)
    with pytest.raises((CacheError, CacheError), match=r"c\.h5") as caught:
        SynthCache(cache.path)
    assert refusal in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_sparse_file_that_declares_more_than_memory_is_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "sparse.h5", 2**25
    data_sets = "images", "labels", "state", "checksum", "tombstones"
    plan = Plan.build([1], classes=("a",), settings={}, seed=0)
    good = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(1, 1, 1), manifest=MANIFEST)
    with h5py.File(good.path) as source, h5py.File(path, "w") as file:
        for key, value in source.attrs.items():
            file.attrs[key] = value
        for name in (*data_sets, *(f"plan/{c}" for c in plan.columns)):
            if name != "plan/label":
                shape = (rows * source[name].shape[0], *source[name].shape[1:])
                created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                file.require_group("plan")
                space = h5py.h5s.create_simple(shape)
                kind = source[name].id.get_type()
                h5py.h5d.create(file.id, name.encode(), kind, space, created)
    assert path.stat().st_blocks * 512 < 2**20
    with pytest.raises(CacheError, match="not plausible"):
        SynthCache(path)


def test_a_manifest_beyond_the_limit_is_refused_unread(
    cache: SynthCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_schema, "MAX_MANIFEST", 100)
    with pytest.raises(CacheError, match="'manifest' is not a text"):
        SynthCache(cache.path)


def test_the_attacks_are_many_and_the_file_that_they_start_from_is_good(cache: SynthCache) -> None:
    assert len(ATTACKS) >= 25
    with h5py.File(cache.path, "r+"):
        pass
    assert SynthCache(cache.path).done.sum() == ROWS - 2


def test_file_locks_of_others_and_read_only_media_do_not_matter(cache: SynthCache) -> None:
    cache.path.chmod(0o444)
    for locking in (True, False):
        with h5py.File(cache.path, "r", locking=locking):
            assert np.array_equal(SynthCache(cache.path).read([0])[0], PIXELS[0])


# Damaged files


def damages(data: bytes, images: int, rng: np.random.Generator) -> bytes:
    """One random accident to the bytes of a file."""
    damaged = bytearray(data)
    size = len(data)
    kind = rng.choice(["bit", "metadata bit", "truncate", "page", "swap", "random", "shift"])
    if kind == "bit":
        at = int(rng.integers(size))
        damaged[at] ^= 1 << int(rng.integers(8))
    elif kind == "metadata bit":  # where the data sets are not
        at = int(rng.integers(images))
        damaged[at] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        del damaged[int(rng.integers(size)) :]
    elif kind == "page":
        at = int(rng.integers(size // 4096)) * 4096
        damaged[at : at + 4096] = bytes(len(damaged[at : at + 4096]))
    elif kind == "swap":
        a, b = (images + 192 * int(r) for r in rng.permutation(ROWS)[:2])
        damaged[a : a + 192], damaged[b : b + 192] = data[b : b + 192], data[a : a + 192]
    elif kind == "random":
        at = int(rng.integers(size))
        some = rng.integers(0, 256, int(rng.integers(1, 64)), np.uint8).tobytes()
        damaged[at : at + len(some)] = some
    else:
        del damaged[int(rng.integers(size))]
    return bytes(damaged)


def judge(path: Path, good: SynthCache, state: np.ndarray, pixels: np.ndarray) -> None:
    """What must hold for any bytes at `path`."""
    refused = ""
    try:
        cache = SynthCache(path)
        bad = cache.verify()
    except CacheError as error:
        refused = str(error)
    if refused:
        assert path.name in refused
        return
    assert cache.plan.digest == good.plan_digest
    assert cache.manifest == good.manifest
    done = cache.done
    whole = np.setdiff1d(np.flatnonzero(done), bad)
    assert (state[whole] == 1).all()
    assert np.array_equal(cache.read(whole).numpy(), pixels[whole])
    for row in bad.tolist():
        with pytest.raises(CacheError, match=rf"{path.name}.*row {row} "):
            cache.read([row])
    for row in np.setdiff1d(np.flatnonzero(~done), bad).tolist():
        with pytest.raises(CachePendingError, match=rf"{path.name}.*row {row} "):
            cache.read([row])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_damage_crashes_or_is_served(tmp_path: Path, encoding: str) -> None:
    cache = made_in(tmp_path, encoding)
    good, state, pixels = cache.path.read_bytes(), cache.state, PIXELS.copy()
    pixels[cache.done] = cache.read(np.flatnonzero(cache.done)).numpy()  # JPEG loses some
    with h5py.File(cache.path) as file:
        images = file["images" if encoding == "raw" else "encoded"].id.get_offset()
    seed = int(np.random.default_rng().integers(2**32))

    def run() -> None:
        rng = np.random.default_rng(seed)
        path = tmp_path / "damaged.h5"
        for _ in range(VARIANTS):
            path.write_bytes(damages(good, images, rng))
            judge(path, cache, state, pixels)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == 0, f"seed {seed}"  # a crash of the library would be a signal


@pytest.mark.parametrize("name", ["images", "labels", "state", "checksum", "plan/seed"])
@pytest.mark.parametrize("worker", [False, True])
def test_a_file_that_is_cut_short_under_a_reader_is_an_error_and_no_crash(
    cache: SynthCache, name: str, worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(cache.path) as file:
        end = file[name].id.get_offset() + 1  # so that this page is there, and no later one
    if worker:
        monkeypatch.setattr(_readers, "_RESIDENT", 0)
        monkeypatch.setattr(_readers, "get_worker_info", lambda: "a worker")
    pixels = torch.from_numpy(PIXELS[-1:])
    calls: dict[str, Callable[[], object]] = {
        "verify": cache.verify,
        "write": lambda: cache.write([ROWS - 1], pixels),
        "withdraw": lambda: cache.withdraw([0]),
        "invalidate": lambda: cache.invalidate([0]),
    }
    reads: dict[str, Callable[[], object]] = {
        "state": lambda: cache.state,
        "done": lambda: cache.done,
        "checksums": lambda: cache.checksums,
        "state_of": lambda: cache.state_of([0, ROWS - 1]),
        "read": lambda: cache.read([0, 1, ROWS - 2]),
        "repr": lambda: repr(cache),
    }
    cache.read([0, 1])

    def run() -> None:
        os.truncate(cache.path, end)
        for call in calls.values():
            with pytest.raises(CacheError, match=r"c\.h5 has .* bytes: it was cut short"):
                call()
        assert cache.path.stat().st_size == end
        for call in reads.values():  # some of them may not need what is missing
            with contextlib.suppress(CacheError):
                call()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == 0  # a bus error would be a signal


def test_verify_reads_no_pending_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, some = 5000, [7, 8, 4000]
    plan = Plan.build([rows], classes=("a",), settings={}, seed=0)
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=SHAPE, manifest=MANIFEST)
    cache.write(some, torch.from_numpy(PIXELS[:3]))
    cache.withdraw([9])
    amount, preadv = [0], os.preadv

    def counting(fd: int, buffers: Any, offset: int) -> int:
        amount[0] += (got := preadv(fd, buffers, offset))
        return got

    monkeypatch.setattr(os, "preadv", counting)
    assert len(cache.verify()) == 0
    tombstones = 8 * (2 * rows + 1)  # all places and the seal
    assert amount[0] == rows + 4 * (4 + PIXELS[0].nbytes) + tombstones  # states; checksums, pixels
