"""Generate: whatever the batch size and whenever killed, the cache ends up the same."""

import os
import signal
import time
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug import Plan, SynthCache, generate
from synthaug.errors import CacheError, DivergedError, MismatchError
from synthaug.synthesizers import Constant
from tests import processes
from tests.drawing import CLASSES, SHAPE, Killed, Noise, Shaped, fill, plan_of
from tests.images import to_images, to_pixels


def pixels_of(cache: SynthCache) -> Tensor:
    return cache.read(np.arange(len(cache)))


@pytest.fixture(scope="module")
def expected() -> Tensor:
    plan = plan_of()
    return torch.cat([to_pixels(Noise().draw(plan[[i]])) for i in range(len(plan))])


# One result


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("kind", [Noise, Shaped])
def test_the_images_are_those_of_the_rows_whatever_the_batch_size(
    tmp_path, expected, kind, batch_size
):
    plan = plan_of()
    cache = fill(kind(), tmp_path / "a.h5", batch_size=batch_size)
    assert torch.equal(pixels_of(cache), expected)
    assert cache.done.all()
    assert cache.plan_digest == plan.digest
    assert cache.labels.tolist() == plan["label"].tolist()
    assert not len(cache.verify())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_constant_stores_the_given_images_of_each_class_in_turn(tmp_path, batch_size):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8))
    constant = Constant(pixels, [1, 0, 2, 1, 1], classes=CLASSES)
    plan = constant.plan(counts={"cat": 2, "dog": 4, "emu": 1})
    cache = generate(constant, plan, tmp_path / "a.h5", batch_size=batch_size, progress=False)
    assert torch.equal(pixels_of(cache), pixels[[1, 1, 0, 3, 4, 0, 2]])
    assert cache.image_shape == SHAPE


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("kind", [Noise, Shaped])
def test_a_killed_job_that_is_run_again_equals_one_that_was_not(
    tmp_path, expected, kind, batch_size
):
    for killed_at in range(10):
        path = tmp_path / f"{killed_at}.h5"
        with suppress(Killed):  # a synthesizer without a shape is asked for one row more
            fill(kind(killed_at=killed_at), path, batch_size=batch_size)
        if path.exists():
            cache = SynthCache(path)
            done = np.flatnonzero(cache.done)
            assert done.tolist() == list(range(len(done)))  # whole batches, in order
            assert len(done) > killed_at - batch_size - 1  # and no batch that was drawn is lost
            assert torch.equal(cache.read(done), expected[done])
        assert torch.equal(pixels_of(fill(kind(), path, batch_size=3)), expected)


@pytest.mark.parametrize("shard", [None, "1/1"])
def test_an_interrupted_job_says_how_many_images_are_drawn(tmp_path, monkeypatch, shard):
    path, draw, batches = tmp_path / "a.h5", Shaped.draw, iter(range(100))

    def interrupted(self: Shaped, rows: Any) -> Any:
        if next(batches) == 2:
            raise KeyboardInterrupt
        return draw(self, rows)

    monkeypatch.setattr(Shaped, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        fill(Shaped(), path, batch_size=2, shard=shard)
    assert str(stop.value) == f"4 of {len(plan_of())} images are drawn: {path}."


def test_only_rows_that_are_not_done_are_drawn_again(tmp_path):
    seeds = plan_of()["seed"].tolist()
    with pytest.raises(Killed):
        fill(Shaped(killed_at=5), tmp_path / "a.h5", batch_size=2)
    second = Shaped()
    fill(second, tmp_path / "a.h5", batch_size=64)
    assert second.drawn == seeds[4:]


@pytest.mark.parametrize("kind", [Noise, Shaped])
def test_a_finished_job_draws_nothing_again(tmp_path, expected, kind):
    path = tmp_path / "a.h5"
    fill(kind(), path)
    bytes_before = path.read_bytes()
    again = kind()
    assert torch.equal(pixels_of(fill(again, path)), expected)
    assert again.drawn == []
    assert path.read_bytes() == bytes_before


_SLOW_JOB = """
import sys, time
from tests.drawing import Noise, plan_of
from synthaug._generate import generate
class Slow(Noise):
    def draw(self, rows):
        images = super().draw(rows)
        print(rows["seed"][0], flush=True)
        time.sleep(0.02 if len(self.drawn) < 250 else 1e6)  # never done before it is killed
        return images
generate(Slow(), plan_of((200, 0, 100)), sys.argv[1], batch_size=2, progress=False)
"""


@pytest.mark.xdist_group("forkserver")
def test_a_job_killed_by_the_system_continues_where_it_was(tmp_path):
    plan, path = plan_of((200, 0, 100)), tmp_path / "a.h5"
    job = processes.start(_SLOW_JOB, path)
    while job.output.read_text().count("\n") < 20:
        assert job.process.is_alive(), job.errors.read_text()
        time.sleep(0.01)
    job.process.kill()
    assert job.wait().returncode == -signal.SIGKILL
    done = SynthCache(path).done
    assert 20 <= done.sum() < 300
    again = Noise()
    cache = fill(again, path, plan)
    assert again.drawn == plan["seed"][~done].tolist()
    assert torch.equal(pixels_of(cache), pixels_of(fill(Noise(), tmp_path / "b.h5", plan)))


def test_damaged_rows_are_drawn_anew(tmp_path, expected, caplog):
    path = tmp_path / "a.h5"
    fill(Shaped(), path)
    with h5py.File(path) as file:
        offset = file["images"].id.get_offset()
    with open(path, "r+b") as raw:
        for row in (2, 7):
            raw.seek(offset + row * 60 + 31)
            (byte,) = raw.read(1)
            raw.seek(-1, os.SEEK_CUR)
            raw.write(bytes([byte ^ 4]))
    again = Shaped()
    assert torch.equal(pixels_of(fill(again, path)), expected)
    assert again.drawn == plan_of()["seed"][[2, 7]].tolist()
    assert "2 rows are damaged and will be drawn anew" in caplog.text


def test_withdrawn_rows_stay_withdrawn(tmp_path):
    path = tmp_path / "a.h5"
    fill(Shaped(), path).withdraw([1, 4])
    again = Shaped()
    cache = fill(again, path)
    assert again.drawn == []
    assert np.flatnonzero(~cache.done).tolist() == [1, 4]


# What is refused


def test_a_cache_of_another_plan_or_recipe_is_refused_and_left_untouched(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(Killed):
        fill(Shaped(killed_at=3), path, batch_size=1)
    before = path.read_bytes()

    class Other(Shaped):
        def recipe(self) -> dict[str, Any]:
            return {**super().recipe(), "weights": {"net": "cd34"}}

    class Larger(Shaped):
        image_shape = (3, 4, 6)

    jobs = [
        (Shaped(), plan_of(seed=1), "plan column seed"),
        (Shaped(), plan_of((4, 0, 6)), "plan rows: 9 in the file, 10 given"),
        (Shaped(), plan_of(classes=("cat", "dog", "eel")), "classes"),
        (Shaped(steps=4), plan_of(settings={"steps": 4}), "settings.steps"),
        (Other(), plan_of(), "recipe.weights.net: 'ab12' in the file, 'cd34' given"),
        (Larger(), plan_of(), "image_shape"),
    ]
    for synthesizer, plan, message in jobs:
        with pytest.raises(MismatchError, match=message):
            fill(synthesizer, path, plan)
        assert synthesizer.drawn == []
        assert path.read_bytes() == before


def test_a_plan_made_with_other_settings_is_refused_before_anything_is_drawn(tmp_path):
    synthesizer = Noise(steps=25, eta=0.0)
    for settings, message in (
        ({"steps": 50, "eta": 0.0}, "other settings: steps was 50 and is now 25"),
        ({"steps": 25}, "eta was not set and is now 0"),
        ({"steps": 25, "eta": 0, "more": "x"}, 'more was "x" and is now not set'),
    ):
        with pytest.raises(ValueError, match=message):
            fill(synthesizer, tmp_path / "a.h5", plan_of(settings=settings))
    assert synthesizer.drawn == []
    assert not list(tmp_path.iterdir())
    fill(synthesizer, tmp_path / "a.h5", plan_of(settings={"eta": 0, "steps": 25.0}))


def test_a_plan_about_other_classes_is_refused_before_anything_is_drawn(tmp_path):
    class Named(Noise):
        classes = ("cat", "dog", "eel")

    synthesizer = Named()
    with pytest.raises(
        ValueError, match=r"about the classes cat, dog, emu; .* knows cat, dog, eel"
    ):
        fill(synthesizer, tmp_path / "a.h5")
    assert synthesizer.drawn == []
    constant = Constant(torch.zeros(3, *SHAPE, dtype=torch.uint8), [0, 1, 2])
    with pytest.raises(ValueError, match="about the classes"):
        constant.draw(plan_of())


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        fill(Noise(), tmp_path / "a.h5", batch_size=0)
    with pytest.raises(TypeError, match="`synthesizer` is a Plan, expected one with `draw"):
        fill(plan_of(), tmp_path / "a.h5")
    with pytest.raises(TypeError, match="`plan` is a list, expected a Plan"):
        generate(Noise(), [], tmp_path / "a.h5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`plan` has no rows"):
        fill(Noise(), tmp_path / "a.h5", plan_of()[:0])
    (tmp_path / "text.h5").write_text("not a cache")
    for kind in (Noise, Shaped):
        with pytest.raises(CacheError):
            fill(kind(), tmp_path / "text.h5")
    assert (tmp_path / "text.h5").read_text() == "not a cache"


def bad_images(what: str, rows: Plan) -> Any:
    images = Noise().draw(rows)
    return {
        "uint8": lambda: to_pixels(images),
        "numpy": lambda: images.numpy(),
        "list": lambda: list(images),
        "one image": lambda: images[0],
        "a row less": lambda: images[:-1],
        "a row more": lambda: torch.cat([images, images[:1]]),
        "another size": lambda: images[..., :-1],
        "0 to 255": lambda: to_images(to_pixels(images)) * 127.5 + 127.5,
        "complex": lambda: images.to(torch.complex64),
    }[what]()


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("uint8", r"Bad.draw must return a float tensor \(n, C, H, W\), got torch.uint8"),
        ("complex", r"must return a float tensor .* got torch.complex64"),
        ("numpy", r"must return a float tensor .* got float32"),
        ("list", r"must return a float tensor .* got list"),
        ("one image", r"must return a float tensor"),
        ("a row less", r"returned shape \(1, 3, 4, 5\), expected \(2, 3, 4, 5\)"),
        ("a row more", r"returned shape \(3, 3, 4, 5\), expected \(2, 3, 4, 5\)"),
        ("another size", r"returned shape \(2, 3, 4, 4\), expected \(2, 3, 4, 5\)"),
        ("0 to 255", r"returned values up to 2\d\d; images are in \[-1, 1\]"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_and_earlier_rows_are_kept(
    tmp_path, expected, what, message, when
):
    class Bad(Shaped):
        def draw(self, rows: Plan) -> Any:
            good = len(self.drawn) < when
            images = super().draw(rows)
            return images if good else bad_images(what, rows)

    with pytest.raises(ValueError, match=message):
        fill(Bad(), tmp_path / "a.h5", batch_size=2)
    cache = SynthCache(tmp_path / "a.h5")
    assert np.flatnonzero(cache.done).tolist() == list(range(when))
    assert torch.equal(pixels_of(fill(Shaped(), tmp_path / "a.h5")), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_stops_the_job_and_earlier_rows_are_kept(
    tmp_path, expected, value
):
    seed = plan_of()["seed"][5]

    class Diverging(Shaped):
        def draw(self, rows: Plan) -> Tensor:
            images = super().draw(rows)
            images[torch.from_numpy(rows["seed"] == seed), 1, 2, 3] = value
            return images

    with pytest.raises(DivergedError, match=rf"1 of 2 images .* not finite; .*'seed': {seed}"):
        fill(Diverging(), tmp_path / "a.h5", batch_size=2)
    cache = SynthCache(tmp_path / "a.h5")
    assert np.flatnonzero(cache.done).tolist() == [0, 1, 2, 3]
    assert torch.equal(pixels_of(fill(Shaped(), tmp_path / "a.h5")), expected)


def test_images_a_little_beyond_the_range_and_of_any_float_type_are_stored(tmp_path):
    class Overshooting(Shaped):
        def draw(self, rows: Plan) -> Tensor:
            return torch.full((len(rows), *SHAPE), 1.25, dtype=torch.bfloat16, requires_grad=True)

    cache = fill(Overshooting(), tmp_path / "a.h5")
    assert (pixels_of(cache) == 255).all()


# The record, and a full disk


def test_the_cache_records_recipe_source_and_license(tmp_path):
    class Source:
        fingerprint = "f00d"

        def __len__(self) -> int:
            return 12

    license = {"generator": "Apache-2.0", "source": "CC0"}
    cache = fill(Noise(), tmp_path / "a.h5", source=Source(), license=license)
    assert cache.manifest["recipe"] == Noise().recipe()
    assert cache.manifest["source"] == {"fingerprint": "f00d", "images": 12}
    assert cache.manifest["license"] == license
    assert cache.identity == {
        "plan_digest": plan_of().digest,
        "weights": {"net": "ab12"},
        "rows": 9,
    }


_FULL_DISK = """
import resource, signal, sys
from tests.drawing import Shaped, fill, plan_of
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
synthesizer = Shaped()
try:
    fill(synthesizer, Path(sys.argv[1]), plan_of((1000, 0, 0)))
except Exception as error:
    print(type(error).__name__, len(synthesizer.drawn), error)
"""


@pytest.mark.xdist_group("forkserver")
def test_a_disk_that_cannot_hold_the_cache_is_met_before_anything_is_drawn(tmp_path):
    job = processes.run(_FULL_DISK, tmp_path / "a.h5")
    assert job.stdout.startswith("CacheError 0 "), job.stdout + job.stderr
    assert "a.h5" in job.stdout
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_unless_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "bar")
    fill(Noise(), tmp_path / "a.h5", progress=True)
    assert "9/9" in capsys.readouterr().err
    fill(Noise(), tmp_path / "a.h5", progress=True)
    fill(Noise(), tmp_path / "b.h5", progress=False)
    assert capsys.readouterr().err == ""
