"""The cache as a data set: what is written is what is read, everywhere and in every form."""

import errno
import json
import os
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import google_crc32c
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from synthaug import Plan, SynthCache
from synthaug._cache import readers as _readers
from synthaug._cache.writing import Writer
from synthaug.errors import CacheError, CachePendingError, MismatchError
from tests.images import to_images

SHAPE = (3, 8, 6)
RECIPE = {"synthesizer": "Noise", "settings": {"steps": 4}, "weights": {"unet": "ab12"}}
MANIFEST = {
    "recipe": RECIPE,
    "source": {"fingerprint": "f00d", "root": "/data"},
    "license": {"generator": "MIT", "source": "CC0"},
}


def plan_of(per_class: int = 10, **changes: Any) -> Plan:
    settings = {"steps": 4, "scale": 1.5}
    return Plan.build(
        [per_class, per_class + 1, 0, per_class + 2],
        classes=("cat", "dog", "empty", "été <b>"),
        parameters={"strength": [0.25, 0.5], "level": [1, 2, 3]},
        **{"settings": settings, "seed": 0, **changes},
    )


def pixels_of(rows: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (rows, *shape), np.uint8))


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def pixels(plan: Plan) -> torch.Tensor:
    return pixels_of(len(plan))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.h5"


@pytest.fixture
def empty(path: Path, plan: Plan) -> SynthCache:
    return SynthCache.create(path, plan, image_shape=SHAPE, manifest=MANIFEST)


@pytest.fixture
def cache(empty: SynthCache, pixels: torch.Tensor) -> SynthCache:
    empty.write(np.arange(len(pixels)), pixels)
    return empty


# Reading


def test_what_was_written_in_any_order_is_read_in_any_order(
    empty: SynthCache, pixels: torch.Tensor
) -> None:
    order = np.random.default_rng(0).permutation(len(pixels))
    for part in np.array_split(order, 7):
        empty.write(part, pixels[part])
    indices = np.random.default_rng(1).integers(-len(pixels), len(pixels), 200)
    for form in (indices, indices.tolist(), torch.from_numpy(indices), indices.astype(np.int32)):
        read = empty.read(form)
        assert read.dtype == torch.uint8
        assert torch.equal(read, pixels[torch.from_numpy(indices)])


def test_the_file_is_plain_hdf5_that_any_tool_reads(
    cache: SynthCache, plan: Plan, pixels: torch.Tensor
) -> None:
    with h5py.File(cache.path) as file:
        assert np.array_equal(file["images"], pixels.numpy())
        assert np.array_equal(file["labels"], plan["label"])
        assert np.array_equal(file["state"], np.ones(len(plan)))
        crc = [google_crc32c.value(image.numpy().tobytes()) for image in pixels]
        assert np.array_equal(file["checksum"], crc)
        for name in set(plan.columns) - {"label"}:
            assert file[f"plan/{name}"].dtype == plan[name].dtype
            assert np.array_equal(file[f"plan/{name}"], plan[name])
        assert set(file) == {"images", "labels", "state", "checksum", "plan", "tombstones"}
        assert set(file["plan"]) == set(plan.columns) - {"label"}
        assert file.attrs["format"].decode() == "synthaug-cache"
        assert file.attrs["format_version"] == 2
        assert file.attrs["plan_digest"].decode() == plan.digest
        manifest = json.loads(file.attrs["manifest"])
    assert manifest["recipe"] == RECIPE
    assert manifest["license"] == {"generator": "MIT", "source": "CC0"}
    assert manifest["synthetic"] is True
    assert manifest["value_range"] == [0, 255]
    assert manifest["classes"] == list(plan.classes)
    assert manifest["versions"]["h5py"] == h5py.__version__


def test_the_bytes_at_a_data_sets_offset_are_the_pixels(
    cache: SynthCache, pixels: torch.Tensor
) -> None:
    with h5py.File(cache.path) as file:
        offset = file["images"].id.get_offset()
        assert file["images"].id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
    assert cache.path.read_bytes()[offset : offset + pixels.nelement()] == pixels.numpy().tobytes()


def test_the_plan_is_rebuilt_exactly(cache: SynthCache, plan: Plan) -> None:
    assert cache.plan.digest == plan.digest == cache.plan_digest
    assert cache.plan.classes == plan.classes
    assert cache.plan.settings == plan.settings
    assert cache.plan.row(7) == plan.row(7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output_type", ["pil", "pt", "np"])
def test_every_output_type_holds_the_same_pixels(
    tmp_path: Path, plan: Plan, channels: int, output_type: Any
) -> None:
    pixels = pixels_of(len(plan), (channels, 8, 6))
    SynthCache.create(
        tmp_path / "c.h5", plan, image_shape=(channels, 8, 6), manifest=MANIFEST
    ).write(range(len(plan)), pixels)
    image, label = SynthCache(tmp_path / "c.h5", output_type=output_type)[11]
    assert type(label) is int
    assert label == plan["label"][11]
    if output_type == "pil":
        assert isinstance(image, Image.Image)
        assert image.mode == ("L" if channels == 1 else "RGB")
        image = np.asarray(image).reshape(8, 6, channels)
    elif output_type == "pt":
        assert image.dtype == torch.uint8
        image = image.numpy().transpose(1, 2, 0)
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels[11].numpy().transpose(1, 2, 0))


def test_a_batch_of_items_equals_the_items(cache: SynthCache) -> None:
    cache.output_type = "pt"
    cache.transform = lambda image: image.float().mean()
    cache.target_transform = lambda label: -label
    indices = [5, 0, 31, 5]
    assert cache.__getitems__(indices) == [cache[i] for i in indices]


def test_what_a_caller_does_to_an_image_stays_with_the_caller(
    cache: SynthCache, pixels: torch.Tensor
) -> None:
    cache.output_type = "pt"
    cache[3][0].zero_()
    cache.read([3]).zero_()
    assert torch.equal(cache.read([3])[0], pixels[3])


def test_attributes_are_those_of_a_torchvision_data_set(cache: SynthCache, plan: Plan) -> None:
    assert len(cache) == len(plan)
    assert cache.classes == ("cat", "dog", "empty", "été <b>")
    assert cache.class_to_idx == {"cat": 0, "dog": 1, "empty": 2, "été <b>": 3}
    assert cache.labels.dtype == np.int64
    assert np.array_equal(cache.targets, plan["label"])
    assert cache.image_shape == SHAPE
    assert cache.identity == {
        "plan_digest": plan.digest,
        "weights": {"unet": "ab12"},
        "rows": len(plan),
    }


def test_provenance_names_row_recipe_and_source(cache: SynthCache, plan: Plan) -> None:
    provenance = cache.provenance(12)
    assert {name: provenance[name] for name in plan.columns} == plan.row(12)
    assert provenance["class"] == "dog"
    assert provenance["state"] == "done"
    assert provenance["recipe"] == RECIPE
    assert provenance["source_data"]["fingerprint"] == "f00d"
    assert provenance["synthetic"] is True


def test_an_index_out_of_range_is_an_index_error(cache: SynthCache) -> None:
    for index in (len(cache), -len(cache) - 1):
        with pytest.raises(IndexError):
            cache[index]
        with pytest.raises(IndexError):
            cache.read([0, index])


# States


def test_rows_not_done_are_never_served(empty: SynthCache, pixels: torch.Tensor) -> None:
    empty.write([4, 9], pixels[[4, 9]])
    assert np.flatnonzero(empty.done).tolist() == [4, 9]
    assert empty.state.dtype == np.uint8
    for rows in ([3], [4, 5], [9, 4, 9, 0]):
        with pytest.raises(CachePendingError, match=r"not generated yet"):
            empty.read(rows)
    with pytest.raises(CachePendingError, match=r"row 3 .*cache\.done"):
        empty[3]
    with pytest.raises(CachePendingError, match="row 32 was not generated"):
        empty.read([-1, 4])


def test_an_open_reader_sees_rows_become_done_and_withdrawn(
    empty: SynthCache, pixels: torch.Tensor
) -> None:
    reader = SynthCache(empty.path)
    assert not reader.done.any()
    empty.write([1, 2], pixels[1:3])
    assert torch.equal(reader.read([2, 1]), pixels[[2, 1]])
    empty.withdraw([2])
    assert reader.state[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(CachePendingError, match="row 2 was withdrawn"):
        reader.read([1, 2])


def test_a_withdrawn_row_leaves_no_trace_in_the_file_and_cannot_be_written(
    cache: SynthCache, pixels: torch.Tensor
) -> None:
    cache.withdraw([7, 3])
    assert pixels[7].numpy().tobytes() not in cache.path.read_bytes()
    assert pixels[8].numpy().tobytes() in cache.path.read_bytes()
    with h5py.File(cache.path) as file:
        assert not file["images"][7].any()
    assert len(cache.verify()) == 0
    with pytest.raises(ValueError, match="row 7 cannot be written: withdrawn rows"):
        cache.write([7], pixels[7:8])


def test_an_erasure_that_was_cut_short_is_found_and_completed(
    cache: SynthCache, plan: Plan, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(self: Writer, fd: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "images":
            raise KeyboardInterrupt
        put(self, fd, name, *args, **kwargs)

    put = Writer._put
    monkeypatch.setattr(Writer, "_put", cut_short)
    with pytest.raises(KeyboardInterrupt):
        cache.withdraw([7])
    monkeypatch.undo()
    with pytest.raises(CachePendingError):
        cache.read([7])
    assert cache.verify().tolist() == [7]
    SynthCache.open_for_writing(cache.path, plan, image_shape=SHAPE, manifest=MANIFEST)
    assert pixels[7].numpy().tobytes() not in cache.path.read_bytes()
    assert len(cache.verify()) == 0


def test_a_row_can_be_invalidated_and_written_again(
    cache: SynthCache, pixels: torch.Tensor
) -> None:
    cache.read([5])
    cache.invalidate([5])
    with pytest.raises(CachePendingError):
        cache.read([5])
    cache.write([5, 6], pixels[[0, 1]])
    assert torch.equal(cache.read([6, 5]), pixels[[1, 0]])
    assert len(cache.verify()) == 0


# Checksums


def overwrite(path: Path, name: str, row: int, change: Callable[[bytearray], object]) -> None:
    """Changes the bytes of one row behind the cache's back."""
    with h5py.File(path) as file:
        data = file[name]
        size = data.dtype.itemsize * int(np.prod(data.shape[1:]))
        offset = data.id.get_offset() + row * size
    with path.open("r+b") as file:
        file.seek(offset)
        row_bytes = bytearray(file.read(size))
        change(row_bytes)
        file.seek(offset)
        file.write(row_bytes)


@pytest.mark.parametrize("name", ["images", "checksum"])
def test_every_single_bit_flip_of_a_row_is_noticed_and_named(cache: SynthCache, name: str) -> None:
    size = int(np.prod(SHAPE)) if name == "images" else 4
    for bit in np.random.default_rng(0).permutation(size * 8)[:150]:

        def flip(row: bytearray, bit: int = int(bit)) -> None:
            row[bit // 8] ^= 1 << bit % 8

        overwrite(cache.path, name, 17, flip)
        fresh = SynthCache(cache.path)
        assert fresh.verify().tolist() == [17]
        with pytest.raises(CacheError, match=r"cache\.h5.*row 17 .*Restore"):
            fresh.read([16, 17])
        assert fresh.read([16]) is not None
        overwrite(cache.path, name, 17, flip)
    assert len(cache.verify()) == 0


def test_a_flipped_bit_in_labels_or_plan_is_noticed_at_opening(
    cache: SynthCache, plan: Plan
) -> None:
    def flip(row: bytearray) -> None:
        row[0] ^= 1

    for name in ["labels", *(f"plan/{c}" for c in plan.columns if c != "label")]:
        overwrite(cache.path, name, 3, flip)
        with pytest.raises(CacheError, match=r"cache\.h5: the plan"):
            SynthCache(cache.path)
        overwrite(cache.path, name, 3, flip)
    SynthCache(cache.path)


def test_a_row_is_checked_once_per_process_unless_it_is_written_again(
    cache: SynthCache, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    crc = google_crc32c.value

    def count(data: bytes) -> int:
        calls.append(data)
        return crc(data)

    monkeypatch.setattr(google_crc32c, "value", count)
    reader = SynthCache(cache.path)
    reader.read([1, 2, -1])
    reader.read([2, 1, 1])
    assert len(calls) == 3
    SynthCache(cache.path, check_rows=False).read([1, 2])
    assert len(calls) == 3
    reader.write([1], pixels[:1])
    reader.read([1, 2])
    assert len(calls) == 3 + 2  # when written, and when read again


def flip_first_bit(row: bytearray) -> None:
    row[0] ^= 1


def test_a_corrupt_row_may_be_skipped_with_a_count(cache: SynthCache, pixels: torch.Tensor) -> None:
    for row in (9, 20):  # the last row of the first class, and the last but one of the second
        overwrite(cache.path, "images", row, flip_first_bit)
    reader = SynthCache(cache.path, on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"row 9 is corrupt .* row 0 of the same class"):
        assert torch.equal(reader.read([8, 9, -24]), pixels[[8, 0, 0]])
    with pytest.warns(UserWarning, match=r"row 20 .*2 skipped so far"):
        image, label = reader[20]
    assert label == 1
    assert torch.equal(reader.read([20, 9]), pixels[[10, 0]])  # no second warning
    assert reader.skipped.tolist() == [9, 20]
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels[10])


def test_a_class_without_an_intact_image_is_an_error_even_if_skipping(cache: SynthCache) -> None:
    for row in range(10):
        overwrite(cache.path, "images", row, flip_first_bit)
    with pytest.raises(CacheError, match="row 4 "):
        SynthCache(cache.path, on_corrupt="skip").read([4])


class Redraws:
    """A synthesizer whose images are what the test wrote."""

    def __init__(self, recipe: Any = RECIPE) -> None:
        self._recipe = recipe
        self.drawn: list[int] = []

    def draw(self, rows: Plan) -> torch.Tensor:
        numbers = [np.flatnonzero(plan_of()["seed"] == s)[0] for s in rows["seed"]]
        self.drawn += [int(n) for n in numbers]
        return to_images(pixels_of(len(plan_of()))[numbers])

    def recipe(self) -> Any:
        return self._recipe


def test_a_corrupt_row_may_be_drawn_anew(cache: SynthCache, pixels: torch.Tensor) -> None:
    overwrite(cache.path, "images", 9, flip_first_bit)
    synthesizer = Redraws()
    reader = SynthCache(cache.path, on_corrupt="regenerate", synthesizer=synthesizer)
    with pytest.warns(UserWarning, match="redrew row 9, whose bytes were corrupt"):
        assert torch.equal(reader.read([8, 9]), pixels[[8, 9]])
    assert synthesizer.drawn == [9]
    assert torch.equal(SynthCache(cache.path).read([9]), pixels[[9]])


def test_only_the_synthesizer_that_made_a_cache_may_redraw_its_rows(cache: SynthCache) -> None:
    with pytest.raises(MismatchError, match=r"recipe\.settings\.steps: 4 in the file, 5 given"):
        SynthCache(
            cache.path,
            on_corrupt="regenerate",
            synthesizer=Redraws({**RECIPE, "settings": {"steps": 5}}),
        )
    for arguments in (
        {"on_corrupt": "regenerate"},
        {"synthesizer": Redraws()},
        {"on_corrupt": "ignore"},
        {"on_corrupt": "skip", "check_rows": False},
        {"output_type": "jpeg"},
    ):
        with pytest.raises(ValueError, match=r"`(on_corrupt|output_type)"):
            SynthCache(cache.path, **cast(Any, arguments))


def test_verifying_gives_the_same_rows_however_many_threads_read(cache: SynthCache) -> None:
    for row in (0, 13, 32):
        overwrite(cache.path, "images", row, flip_first_bit)
    for workers in (1, 3):
        assert cache.verify(workers=workers).tolist() == [0, 13, 32]
    with pytest.raises(ValueError, match="`workers`"):
        cache.verify(workers=0)


def test_rewriting_a_done_row_makes_it_pending_first(
    cache: SynthCache, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(self: Writer, fd: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "checksum":
            raise KeyboardInterrupt
        put(self, fd, name, *args, **kwargs)

    put = Writer._put
    monkeypatch.setattr(Writer, "_put", cut_short)
    with pytest.raises(KeyboardInterrupt):
        cache.write([7, 8], pixels[:2])
    assert cache.state[6:10].tolist() == [1, 0, 0, 1]
    assert len(cache.verify()) == 0


def test_states_that_do_not_exist_are_refused(cache: SynthCache) -> None:
    overwrite(cache.path, "state", 2, lambda row: row.__setitem__(0, 3))
    with pytest.raises(CacheError, match="state 3"):
        SynthCache(cache.path)


# Creating and resuming


def test_equal_arguments_make_equal_files(tmp_path: Path, plan: Plan, pixels: torch.Tensor) -> None:
    for name in ("a.h5", "b.h5"):
        cache = SynthCache.create(tmp_path / name, plan, image_shape=SHAPE, manifest=MANIFEST)
        cache.write(range(len(plan)), pixels)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_creating_reserves_the_whole_file_and_leaves_nothing_else(empty: SynthCache) -> None:
    info = os.stat(empty.path)
    assert info.st_blocks * 512 >= info.st_size
    assert os.listdir(empty.path.parent) == ["cache.h5"]
    empty.write([len(empty) - 1], pixels_of(1))
    assert os.stat(empty.path).st_size == info.st_size


def test_an_existing_path_is_never_overwritten(path: Path, plan: Plan) -> None:
    path.write_text("precious")
    with pytest.raises(CacheError, match="exists already"):
        SynthCache.create(path, plan, image_shape=SHAPE, manifest=MANIFEST)
    assert path.read_text() == "precious"


def test_arguments_that_cannot_be_stored_are_refused_before_anything_is_written(
    tmp_path: Path, plan: Plan
) -> None:
    def create(
        plan: Plan = plan,
        shape: Sequence[int] = SHAPE,
        manifest: Any = MANIFEST,
        name: str = "c.h5",
    ) -> None:
        SynthCache.create(tmp_path / name, plan, image_shape=shape, manifest=manifest)

    for shape in ((4, 8, 8), (3, 0, 8), (3, 8), (3, 8, 2**20)):
        with pytest.raises(ValueError, match="image_shape"):
            create(shape=shape)
    with pytest.raises(ValueError, match="rows"):
        create(plan=plan[:0])
    with pytest.raises(ValueError, match="JSON"):
        create(manifest={"recipe": {"x": float("nan")}})
    with pytest.raises(ValueError, match="JSON"):
        create(manifest={"recipe": {"x": object()}})
    with pytest.raises(ValueError, match="classes"):
        create(manifest={"recipe": {}, "classes": ["other"]})
    columns = {**plan.columns, "a/b": np.zeros(len(plan))}
    with pytest.raises(ValueError, match="a/b"):
        create(plan=Plan(columns, plan.classes, plan.settings))
    assert os.listdir(tmp_path) == []


def test_a_manifest_of_any_size_survives(tmp_path: Path, plan: Plan) -> None:
    manifest = {**MANIFEST, "notes": "x" * 300_000}
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=SHAPE, manifest=manifest)
    assert cache.manifest["notes"] == "x" * 300_000


def test_writing_refuses_wrong_rows_shapes_and_types(
    empty: SynthCache, pixels: torch.Tensor
) -> None:
    for rows, message in [([0, 0], "more than once"), ([33], "33"), ([-1], "-1")]:
        with pytest.raises(ValueError, match=message):
            empty.write(rows, pixels[: len(rows)])
    for wrong in (pixels[:1], pixels[:2].float(), pixels[:2, :, :, 1:]):
        with pytest.raises(ValueError, match="`pixels`"):
            empty.write([0, 1], wrong)
    with pytest.raises(ValueError, match="fsync"):
        empty.write([0], pixels[:1], fsync=cast(Any, "always"))
    assert not empty.done.any()


def test_resuming_opens_the_same_job_and_names_what_another_differs_in(
    cache: SynthCache, plan: Plan
) -> None:
    def resume(plan: Plan = plan, shape: Sequence[int] = SHAPE, **changes: Any) -> SynthCache:
        return SynthCache.open_for_writing(
            cache.path, plan, image_shape=shape, manifest={**MANIFEST, **changes}
        )

    assert resume().done.all()
    assert resume(source={"fingerprint": "f00d", "root": "/moved"}).done.all()
    assert resume(versions={"torch": "0.1"}).done.all()
    with pytest.raises(MismatchError) as caught:
        resume(
            recipe={**RECIPE, "weights": {"unet": "cd34"}, "settings": {}},
            source={"fingerprint": "beef"},
            shape=(3, 8, 8),
        )
    for line in (
        "recipe.settings.steps: 4 in the file, absent given",
        "recipe.weights.unet: 'ab12' in the file, 'cd34' given",
        "source.fingerprint: 'f00d' in the file, 'beef' given",
        "image_shape: (3, 8, 6) in the file, (3, 8, 8) given",
    ):
        assert line in str(caught.value)
    more = {"settings": {"steps": 4, **{f"setting {i}": i for i in range(40)}}}
    with pytest.raises(MismatchError, match="  and 34 more\n") as caught:
        resume(recipe={**RECIPE, **more})
    assert str(caught.value).count("absent in the file") == 6
    with pytest.raises(MismatchError, match="plan rows: 33 in the file, 36 given"):
        resume(plan=plan_of(11))
    with pytest.raises(MismatchError, match="plan column seed, rows 0, 1"):
        resume(plan=plan_of(seed=1))
    with pytest.raises(MismatchError, match=r"settings\.steps: 4 in the file, 5 given"):
        resume(plan=plan_of(settings={"steps": 5}))
    other = Plan.build(
        [10, 11, 0, 12],
        classes=plan_of().classes,
        parameters={"strength": [0.25, 0.75], "level": [1, 2, 3]},
        settings={"steps": 4, "scale": 1.5},
        seed=0,
    )
    with pytest.raises(MismatchError, match="plan column strength, rows 1, ") as caught:
        resume(plan=other)
    assert "plan column seed" not in str(caught.value)  # it follows from the rest of the row


def test_opening_for_writing_creates_what_is_not_there(path: Path, plan: Plan) -> None:
    cache = SynthCache.open_for_writing(path, plan, image_shape=SHAPE, manifest=MANIFEST)
    assert not cache.done.any()


# Files that are no caches


def test_files_that_are_no_caches_give_one_clear_error(tmp_path: Path, cache: SynthCache) -> None:
    content = cache.path.read_bytes()
    text = tmp_path / "notes.h5"
    text.write_text("not HDF5")
    nothing = tmp_path / "empty.h5"
    nothing.touch()
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = [1, 2]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for bad in (text, nothing, other, fifo, tmp_path):
        with pytest.raises(CacheError, match=bad.name):
            SynthCache(bad)
    with pytest.raises(CacheError, match=r"missing\.h5"):
        SynthCache(tmp_path / "missing.h5")
    for size in (1, 512, len(content) // 2, len(content) - 1):
        text.write_bytes(content[:size])
        with pytest.raises(CacheError, match=r"notes\.h5"):
            SynthCache(text)


# Processes


def test_a_pickled_cache_reads_the_same_file(cache: SynthCache, pixels: torch.Tensor) -> None:
    cache.read([1])
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 2000
    assert torch.equal(copy.read([3, 1]), pixels[[3, 1]])
    assert copy.plan.digest == cache.plan.digest


def test_a_file_that_took_the_place_of_another_is_noticed(
    cache: SynthCache, tmp_path: Path, pixels: torch.Tensor
) -> None:
    pickled = pickle.dumps(cache)
    other = SynthCache.create(
        tmp_path / "other.h5", plan_of(seed=9), image_shape=SHAPE, manifest=MANIFEST
    )
    os.replace(other.path, cache.path)
    with pytest.raises(MismatchError):
        pickle.loads(pickled).read([0])
    with pytest.raises(MismatchError):
        cache.write([0], pixels[:1])
    assert torch.equal(cache.read([0]), pixels[:1])  # what was opened stays readable


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(
    ("method", "workers"),
    [(None, 0), ("fork", 1), ("fork", 4), ("forkserver", 2)],  # for spawn see test_datasets
)
@pytest.mark.xdist_group("forkserver")
def test_loaders_read_the_right_bytes_whatever_the_processes(
    cache: SynthCache, pixels: torch.Tensor, method: str | None, workers: int
) -> None:
    cache.output_type = "pt"
    cache.read([0, 1])  # warm: what the parent opened must not leak into a worker
    order = np.random.default_rng(0).integers(0, len(pixels), 200).tolist()
    loader = DataLoader(
        Subset(cache, order),
        batch_size=16,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=workers > 0,
    )
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert torch.equal(images, pixels[order])
        assert torch.equal(labels, torch.from_numpy(cache.labels[order]))


class Watched(Dataset[Any]):
    """Serves a cache, and how much memory the process holds since it began to.

    That is its own memory, and the pages of the cache that it maps. Those of libraries, which are
    read when their code first runs, are many with some releases of torch, and none of ours.
    """

    def __init__(self, cache: SynthCache) -> None:
        self.cache = cache
        self.before: int | None = None

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if self.before is None:
            self.before = self.held()
        read = self.cache.read(indices)
        return [(self.held() - self.before, read[0, 0, 0, 0])] * len(indices)

    def held(self) -> int:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        areas = Path("/proc/self/smaps").read_text().split("\nVmFlags:")
        mapped = [area for area in areas if f"{self.cache.path}\n" in area]
        assert mapped
        pages = (int(area.partition("\nRss:")[2].split()[0]) for area in mapped)
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE") + 1024 * sum(pages)

    def __len__(self) -> int:
        return len(self.cache)


def test_workers_read_a_large_cache_without_holding_it_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_readers, "_RESIDENT", 2**20)
    shape, rows = (3, 64, 64), 4000
    plan = Plan.build([rows], classes=("a",), settings={}, seed=0)
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=shape, manifest=MANIFEST)
    block = pixels_of(rows // 10, shape)
    for start in range(0, rows, len(block)):
        cache.write(range(start, start + len(block)), block, fsync="never")
    loader = DataLoader(
        Watched(cache), 64, shuffle=True, num_workers=1, multiprocessing_context="fork"
    )
    held = torch.cat([memory for memory, _ in loader])
    assert int(held.max()) < rows * 64 * 64 * 3 / 10


@pytest.mark.parametrize("failing", [False, True])
def test_rows_read_in_a_worker_are_those_of_the_mapping(
    cache: SynthCache, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    monkeypatch.setattr(_readers, "_RESIDENT", 0)
    monkeypatch.setattr(_readers, "get_worker_info", lambda: "a worker")
    rows = [5, -1, 0, 5]
    if not failing:
        assert len(cache.read([])) == 0
        assert torch.equal(cache.read(rows), pixels[rows])
        return

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(CacheError, match=r"cache\.h5: Input/output error"):
        cache.read(rows)


def test_two_copies_write_disjoint_rows_of_one_file(
    empty: SynthCache, pixels: torch.Tensor
) -> None:
    other = SynthCache(empty.path)
    for start, stop in pairwise(range(0, len(pixels) + 1, 3)):
        writer = empty if start % 2 else other
        writer.write(range(start, stop), pixels[start:stop])
    assert empty.done.all()
    assert torch.equal(other.read(range(len(pixels))), pixels)


# Display


def test_the_text_form_counts_rows_by_state(cache: SynthCache, plan: Plan) -> None:
    cache.withdraw([0])
    cache.invalidate([1, 2])
    assert repr(cache).splitlines() == [
        "Dataset SynthCache",
        "    Number of datapoints: 33",
        "    Rows: 30 done, 2 pending, 1 withdrawn",
        "    Classes: 4",
        "    Images: 3 x 8 x 6, synthetic",
        f"    Location: {cache.path}",
    ]


def test_the_html_form_shows_a_few_images_and_is_inert(
    cache: SynthCache, empty: SynthCache
) -> None:
    page = cache._repr_html_()
    assert page.count("<img") == 24
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_the_html_form_of_an_empty_cache_shows_no_image(empty: SynthCache) -> None:
    assert "<img" not in empty._repr_html_()


def test_paths_may_be_relative_and_survive_a_change_of_folder(
    tmp_path: Path, plan: Plan, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = SynthCache.create("c.h5", plan, image_shape=SHAPE, manifest=MANIFEST)
    monkeypatch.chdir("/")
    cache.write([0], pixels[:1])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).read([0]), pixels[:1])
    assert Path(cache.path) == tmp_path / "c.h5"
