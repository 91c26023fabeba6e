"""`OnTheFlyDataset`: which images it serves, when they are drawn, and where they must not be."""

import copy
import gc
import pickle
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from synthaug import MixedDataset, OnTheFlyDataset, Plan, SynthCache, generate
from synthaug._datasets import drawing as _drawing
from synthaug._datasets.pool import Pool
from synthaug.errors import DivergedError, MismatchError
from synthaug.images import LabeledImages
from tests.drawing import CLASSES, Noise, plan_of
from tests.images import to_pixels
from tests.tiny.cold import inpainter
from tests.variants import real_images

PLAN = plan_of((20, 0, 30))


class Flaky(Noise):
    """Draws until told not to."""

    failing = False

    def draw(self, rows: Plan) -> Tensor:
        images = super().draw(rows)
        return images * float("nan") if self.failing else images


def expected(rows: Any, plan: Plan = PLAN) -> Tensor:
    return to_pixels(Noise().draw(plan[np.asarray(rows)]))


def settle(live: OnTheFlyDataset) -> None:
    """Waits until the thread has nothing left to draw."""
    drawing = live._drawing
    while drawing._thread is not None:
        ahead = drawing._ahead
        drawing._thread.submit(int).result()  # comes after what the last batch began next
        if drawing._ahead is ahead:
            return


def pool(n: int, m: int, reuse: int, seed: int = 0) -> Pool:
    """A pool of m slots over 2 n rows of class "dog" and n of "emu"; "cat" has none."""
    labels = np.repeat([1, 2], [2 * n, n])
    rows = np.arange(3 * n) + 7
    return Pool(rows, labels, CLASSES, size=m, reuse=reuse, seed=seed)


# Which images


@pytest.mark.parametrize("reuse", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [3, 9, 14, 30])
def test_every_image_stays_for_its_epochs_and_all_of_them_come(m, reuse):
    slots = pool(10, m, reuse)
    epochs = [set(slots.rows(epoch).tolist()) for epoch in range(10 * reuse * 30 // m + 1)]
    assert {len(epoch) for epoch in epochs} == {m}  # none twice at once
    assert set.union(*epochs) == set(range(7, 37))
    changes = [len(new - old) for old, new in pairwise(epochs)]
    assert max(changes) <= slots.max_exchanged
    if m == 3:  # 10 rows per slot, so that none returns at once
        assert sum(changes[:reuse]) == m  # each slot once in `reuse` epochs
        for row in range(7, 37):
            present = [row in epoch for epoch in epochs[reuse:]]
            runs = np.diff(np.flatnonzero(np.diff([False, *present, False]))).tolist()[::2]
            assert set(runs[1:-1]) <= {reuse}


def test_the_pool_has_the_class_proportions_of_the_plan_and_labels_that_stay():
    slots = pool(10, 9, 2)
    assert np.bincount(slots.labels).tolist() == [0, 6, 3]
    for epoch in range(5):
        rows = slots.rows(epoch)
        assert ((rows - 7 < 20) == (slots.labels == 1)).all()


def test_what_an_index_gives_depends_on_seed_and_epoch_and_not_on_what_was_asked_before():
    live = OnTheFlyDataset(Noise(), PLAN, size=12, reuse=2, background=False)
    tables = []
    for epoch in (4, 0, 1, 4):
        live.set_epoch(epoch)
        tables.append(live.rows().tolist())
    assert tables[0] == tables[3]
    assert len(set(map(tuple, tables))) == 3
    other = OnTheFlyDataset(Noise(), PLAN, size=12, reuse=2, background=False, seed=1)
    assert other.rows().tolist() != tables[1]
    everything = OnTheFlyDataset(Noise(), PLAN)
    orders = []
    for epoch in range(2):
        everything.set_epoch(epoch)
        orders.append(everything.rows().tolist())
        assert sorted(orders[-1]) == list(range(50))  # nothing is exchanged
    assert orders[0] != orders[1]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_an_image_is_that_of_its_row_however_it_is_drawn(batch_size, background):
    live = OnTheFlyDataset(
        Noise(), PLAN, size=12, reuse=2, batch_size=batch_size, background=background
    )
    for epoch in range(4):
        live.set_epoch(epoch)
        rows = live.rows()
        for indices in ([3, 3, 0], [11], list(range(12)), [-1]):
            assert torch.equal(live.read(indices), expected(rows[indices]))
        items = [live[i] for i in range(12)]
        assert [label for _, label in items] == PLAN["label"][rows].tolist()
        assert live.provenance(5)["seed"] == PLAN["seed"][rows[5]]
    assert live.read([]).shape == (0, 3, 4, 5)


# When they are drawn


def test_an_image_is_drawn_once_while_it_stays_and_memory_is_bounded():
    held: list[int] = []

    class Watched(Noise):
        def draw(self, rows: Plan) -> Tensor:
            held.append(len(live._drawing._images))
            return super().draw(rows)

    live = OnTheFlyDataset(Watched(), PLAN, size=10, reuse=2, batch_size=3)
    rng, seen, arrivals = np.random.default_rng(0), set[int](), 0
    for epoch in range(6):
        live.set_epoch(epoch)
        now = set(live.rows().tolist())
        arrivals += len(now - seen)
        seen = now
        for index in rng.permutation(10):
            live.read([index])
        settle(live)
    ahead = live.num_drawn - arrivals  # for the epoch that did not come
    assert 0 < ahead <= live._pool.max_exchanged
    assert max(held) < live.max_images
    assert len(live._drawing._images) == 10 + ahead
    for image in live._drawing._images.values():
        assert image.untyped_storage().nbytes() == 60  # not that of a whole batch


def test_the_thread_draws_ahead_what_the_next_epoch_needs():
    live = OnTheFlyDataset(Noise(), PLAN, size=12, reuse=3, batch_size=2)
    live.read([0])
    settle(live)
    drawn = live.num_drawn
    assert drawn == len(live.rows()) + len(set(live._pool.rows(1)) - set(live._pool.rows(0)))
    live.set_epoch(1)
    live.rows()
    assert all(row in live._drawing._images for row in live.rows().tolist())


def test_without_background_only_what_is_asked_for_is_drawn():
    live = OnTheFlyDataset(Noise(), PLAN, size=12, background=False)
    live.read([1, 4, 1])
    live.read([4])
    assert live.num_drawn == 2
    assert live.max_images == 12


def test_where_the_loop_is_does_not_matter_to_the_draws():
    states: list[Any] = []

    class Nosy(Noise):
        def draw(self, rows: Plan) -> Tensor:
            states.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
            states.append(threading.current_thread() is threading.main_thread())
            return super().draw(rows)

    live = OnTheFlyDataset(Nosy(), PLAN, background=False)
    with torch.autocast("cpu", torch.bfloat16):
        live.read([0])
    assert states == [(False, False), False]


def test_a_network_draws_what_it_would_draw_into_a_cache_while_another_one_is_trained(tmp_path):
    real = real_images(8, 8)
    cold = replace(inpainter(), classes=real.classes).with_sources(real)
    plan = cold.plan(ratio=3, severity=[0.2, 0.4], seed=0)
    cache = generate(cold, plan, tmp_path / "a.h5", progress=False)
    live = OnTheFlyDataset(cold, plan, size=6, reuse=2, batch_size=2, output_type="pt")
    classifier = torch.nn.Linear(192, 2)
    optimizer = torch.optim.SGD(classifier.parameters(), 0.1)
    for epoch in range(3):
        live.set_epoch(epoch)
        for images, labels in DataLoader(live, batch_size=3):
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16):
                logits = classifier(images.flatten(1) / 255)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        difference = live.read(range(6)).int() - cache.read(live.rows()).int()
        assert difference.abs().max() <= 1


def test_an_error_of_the_thread_is_raised_where_images_are_asked_for_next():
    flaky = Flaky()
    live = OnTheFlyDataset(flaky, PLAN, size=12, batch_size=4)
    live.read(range(12))  # this epoch is complete, and the next is being drawn
    settle(live)
    flaky.failing = True
    live.set_epoch(1)
    live.read(range(12))
    settle(live)
    with pytest.raises(DivergedError, match="images that are not finite"):
        live.read([0])
    flaky.failing = False
    for epoch in (1, 2):
        live.set_epoch(epoch)
        assert torch.equal(live.read(range(12)), expected(live.rows()))
    flaky.failing = True
    live.set_epoch(9)
    settle(live)
    with pytest.raises(DivergedError):
        live.read([0])


def test_the_thread_ends_with_close_and_with_the_data_set():
    def thread_of(live: OnTheFlyDataset) -> threading.Thread:
        before = set(threading.enumerate())
        live.read([0])
        (thread,) = set(threading.enumerate()) - before
        return thread

    live = OnTheFlyDataset(Noise(), PLAN, size=12, batch_size=1)
    thread = thread_of(live)
    live.close()
    assert not thread.is_alive()
    assert not live._drawing._images
    thread = thread_of(live)  # it can be used again
    assert torch.equal(live.read([3]), expected(live.rows([3])))
    del live
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.xdist_group("new process")
def test_a_program_ends_while_the_thread_is_at_work(new_process):
    ended, _ = new_process
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_a_batch_beyond_memory_is_halved(caplog):
    class Small(Noise):
        def draw(self, rows: Plan) -> Tensor:
            if len(rows) > 5:
                raise torch.OutOfMemoryError
            return super().draw(rows)

    live = OnTheFlyDataset(Small(), PLAN, size=24, batch_size=24, background=False)
    assert torch.equal(live.read(range(24)), expected(live.rows()))
    assert "going on with batches of 3" in caplog.text


# With a cache


def test_with_a_cache_nothing_that_was_drawn_is_lost_or_drawn_again(tmp_path):
    path = tmp_path / "drawn.h5"
    first = OnTheFlyDataset(Noise(), PLAN, size=12, background=False, cache=path)
    images = first.read(range(12))
    assert sorted(np.flatnonzero(SynthCache(path).done)) == sorted(first.rows())
    second = OnTheFlyDataset(Noise(), PLAN, size=12, background=False, cache=SynthCache(path))
    assert torch.equal(second.read(range(12)), images)
    assert second.num_drawn == 0
    rest = Noise()
    cache = generate(rest, PLAN, path, progress=False)
    assert len(rest.drawn) == len(PLAN) - 12
    assert torch.equal(cache.read(range(50)), expected(range(50)))


def test_withdrawn_rows_are_not_drawn_again(tmp_path):
    cache = generate(Noise(), PLAN, tmp_path / "a.h5", progress=False)
    cache.withdraw([3, 30, 31])
    live = OnTheFlyDataset(Noise(), PLAN, cache=cache, background=False)
    assert sorted(live.rows()) == [i for i in range(50) if i not in (3, 30, 31)]
    live.read(range(47))
    assert live.num_drawn == 0


def test_a_damaged_row_of_the_cache_is_drawn_anew(tmp_path):
    path = tmp_path / "a.h5"
    generate(Noise(), PLAN, path, progress=False)
    image = expected([8]).numpy().tobytes()
    data = path.read_bytes()
    path.write_bytes(data.replace(image, bytes(len(image))))
    live = OnTheFlyDataset(Noise(), PLAN, cache=path, background=False)
    with pytest.warns(UserWarning, match="redrew row 8"):
        assert torch.equal(live.read(range(50)), expected(live.rows()))


def test_a_row_that_another_worker_stored_meanwhile_is_not_written_again(tmp_path, monkeypatch):
    class Slow(Noise):
        def draw(self, rows: Plan) -> Tensor:
            if len(rows) > 1:  # while we draw, another worker draws the first of these rows
                other.read([index])
            return super().draw(rows)

    path = tmp_path / "a.h5"
    live = OnTheFlyDataset(Slow(), PLAN, background=False, cache=path)
    other = OnTheFlyDataset(Noise(), PLAN, background=False, cache=path)
    written: list[int] = []
    write = SynthCache.write

    def noted(cache: SynthCache, rows: Any, pixels: Tensor, **how: Any) -> None:
        written.extend(rows)
        write(cache, rows, pixels, **how)

    monkeypatch.setattr(SynthCache, "write", noted)
    index = 4
    assert torch.equal(live.read([4, 5, 6]), expected(live.rows([4, 5, 6])))
    assert sorted(written) == sorted(live.rows([4, 5, 6]))  # each of them once


def test_a_cache_of_another_plan_or_recipe_is_refused(tmp_path):
    generate(Noise(), plan_of((1, 1, 1)), tmp_path / "a.h5", progress=False)
    with pytest.raises(MismatchError, match="holds images of another plan"):
        OnTheFlyDataset(Noise(), PLAN, cache=tmp_path / "a.h5")
    other = plan_of(settings={"steps": 2})
    generate(Noise(steps=2), other, tmp_path / "b.h5", progress=False)
    with pytest.raises(MismatchError, match="another synthesizer"):
        OnTheFlyDataset(Noise(), PLAN, cache=tmp_path / "b.h5")


# In other processes


class Elsewhere(Noise):
    """As if its network were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.model = {"parts": [torch.nn.Linear(1, 1, device="meta")]}


def to_numpy(image: Any) -> Any:
    return np.array(image)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_forked_worker_refuses_to_draw_on_a_gpu_and_says_what_to_do():
    live = OnTheFlyDataset(Elsewhere(), PLAN, transform=to_numpy)
    assert len(list(DataLoader(live, batch_size=10))) == 5  # where it trains, it may
    live.set_epoch(1)
    live.read(range(50))
    served = DataLoader(live, batch_size=10, num_workers=1, multiprocessing_context="fork")
    assert len(list(served)) == 5  # drawn before the fork
    fresh = OnTheFlyDataset(Elsewhere(), PLAN, transform=to_numpy)
    loader = DataLoader(fresh, batch_size=10, num_workers=1, multiprocessing_context="fork")
    message = r"Elsewhere draws on meta, which the workers .* `num_workers=0`; .*MixSynthetic"
    with pytest.raises(RuntimeError, match=message):
        list(loader)


def test_a_network_that_hides_is_found_by_what_torch_says(monkeypatch):
    class Hidden(Noise):
        def draw(self, rows: Plan) -> Tensor:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with")

    live = OnTheFlyDataset(Hidden(), PLAN, background=False)
    with pytest.raises(RuntimeError, match="Cannot re-initialize"):
        live.read([0])
    monkeypatch.setattr(_drawing, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="Hidden draws on cuda, which the workers"):
        live.read([0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_on_a_cpu_workers_draw_the_same_images_and_follow_the_epoch():
    live = OnTheFlyDataset(Noise(), PLAN, size=12, transform=to_numpy, background=False)
    live.read([0])  # so that the workers are copies of a process with a thread
    loader = DataLoader(
        live,
        batch_size=4,
        timeout=100,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for epoch in range(3):
        live.set_epoch(epoch)
        served = torch.cat([images for images, _ in loader]).permute(0, 3, 1, 2)
        assert torch.equal(served, expected(live.rows()))
    assert live.num_drawn == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_serve_the_same_and_draw_for_themselves(duplicate):
    live = OnTheFlyDataset(Noise(), PLAN, size=12)
    live.set_epoch(3)
    images = live.read(range(12))
    twin = duplicate(live)
    assert torch.equal(twin.read(range(12)), images)
    assert twin.num_drawn >= 12
    twin.set_epoch(4)
    assert live.epoch == 3


# As a data set


def test_it_takes_the_place_of_a_cache_in_a_mixed_data_set():
    pixels = torch.zeros((40, 3, 4, 5), dtype=torch.uint8)
    real = LabeledImages(pixels, np.repeat([0, 2], 20), CLASSES)
    live = OnTheFlyDataset(Noise(), PLAN, size=20, reuse=2)
    mixed = MixedDataset(real, live, audit=None, fraction=0.5)
    served = set()
    for epoch in range(4):
        mixed.set_epoch(epoch)  # and that of `live`
        assert live.epoch == epoch
        rows = mixed.synthetic_rows()
        assert 0 < (rows >= 0).sum() < 40
        assert (live.labels[rows[rows >= 0]] == real.labels[rows >= 0]).all()
        images = mixed.read(range(40))
        assert torch.equal(images[rows >= 0], expected(live.rows(rows[rows >= 0])))
        assert not images[rows < 0].any()
        served |= set(live.rows(rows[rows >= 0]).tolist())
    assert len(served) > 20  # more than the pool holds at once


def test_items_have_the_type_and_the_transforms_that_were_chosen():
    def item(**options: Any) -> Any:
        return OnTheFlyDataset(Noise(), PLAN, background=False, **options)[2]

    pixels = OnTheFlyDataset(Noise(), PLAN, background=False).read([2])[0]
    assert item()[0].size == (5, 4)
    assert torch.equal(item(output_type="pt")[0], pixels)
    assert np.array_equal(item(output_type="np")[0], pixels.permute(1, 2, 0).numpy())
    changed = item(output_type="pt", transform=torch.sum, target_transform=str)
    assert changed == (pixels.sum(), str(item()[1]))
    live = OnTheFlyDataset(Noise(), PLAN, background=False)
    assert len([label for _, label in live]) == 50  # type: ignore[attr-defined]
    assert live.targets == live.labels.tolist()
    assert live.class_to_idx["emu"] == 2


def test_what_makes_no_sense_is_refused():
    for options, message in [
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"reuse": 1.5}, "`reuse` must be a whole number, got 1.5"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"size": 51}, r"`size` is 51, but the plan has 50 rows .* Plan more rows"),
        ({"size": 1}, "which leaves no image of class 'cat'"),
        ({"output_type": "jpg"}, "`output_type` must be one of 'pil', 'pt', 'np', got 'jpg'"),
    ]:
        with pytest.raises(ValueError, match=message):
            OnTheFlyDataset(Noise(), PLAN, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`seed` is None, expected a whole number"):
        OnTheFlyDataset(Noise(), PLAN, seed=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plan was made with other settings"):
        OnTheFlyDataset(Noise(steps=3), PLAN)
    with pytest.raises(ValueError, match="`epoch` must be at least 0"):
        OnTheFlyDataset(Noise(), PLAN).set_epoch(-1)
    with pytest.raises(IndexError):
        OnTheFlyDataset(Noise(), PLAN)[50]


def test_it_prints_what_it_is(tmp_path):
    live = OnTheFlyDataset(Noise(), PLAN, size=12, reuse=3, cache=tmp_path / "a.h5")
    text = repr(live)
    assert "Number of datapoints: 12" in text
    assert "50 rows; an image stays 3 epochs" in text
    assert f"at most {live.max_images} images" in text
    assert str(tmp_path / "a.h5") in text
