"""`SeededSampler`, and stopping and going on within an epoch."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from synthaug import MixedBatchSampler, MixedDataset
from synthaug.mixing import Linear, SeededSampler
from tests.mixtures import Listed, make_cache, real_images, value

NO_WORKERS_TOO_MANY = "ignore:This DataLoader will create .* worker processes"


@pytest.fixture
def mixed(tmp_path):
    cache = make_cache(tmp_path)
    return MixedDataset(real_images(), cache, audit=None, fraction=0.5, transform=v2.ToImage())


@pytest.fixture
def appended(tmp_path):
    cache = make_cache(tmp_path)
    return MixedDataset(
        real_images(), cache, audit=None, mode="append", ratio=1.0, transform=v2.ToImage()
    )


def test_the_order_is_a_function_of_seed_and_epoch(mixed):
    orders: dict[tuple[int, int], list[int]] = {}
    for seed in (0, 1, 2**63):
        sampler = SeededSampler(mixed, seed=seed)
        for epoch in (2, 0, 1, 0):
            sampler.set_epoch(epoch)
            torch.rand(1)  # global generators have no part in it
            order = list(sampler)
            assert sorted(order) == list(range(60))
            assert orders.setdefault((seed, epoch), order) == order
    assert len(set(map(tuple, orders.values()))) == 9


def test_every_place_is_given_to_every_index_equally_often():
    sampler = SeededSampler(range(5))
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts[range(5), list(sampler)] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 4.5 * np.sqrt(0.16 / 2000)


def test_the_epoch_reaches_mixtures_inside_wrappers_and_comes_from_them(mixed):
    wraps: list[Any] = [mixed, Subset(mixed, range(9)), ConcatDataset([Listed([1]), mixed])]
    for epoch, data in enumerate(wraps, start=3):
        sampler = SeededSampler(data)
        sampler.set_epoch(epoch)
        assert mixed.epoch == sampler.epoch == epoch
        before = list(sampler)
        mixed.set_epoch(0)
        assert sampler.epoch == 0
        assert list(sampler) != before
    plain = SeededSampler(range(9))
    plain.set_epoch(4)
    assert plain.epoch == 4
    for sampler in (plain, SeededSampler(mixed)):
        with pytest.raises(ValueError, match="`epoch` must be at least 0, got -1"):
            sampler.set_epoch(-1)


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_equally_and_together_give_the_order(num_replicas, drop_last):
    whole = list(SeededSampler(range(20), seed=5))
    samplers = [
        SeededSampler(range(20), seed=5, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        for rank in range(num_replicas)
    ]
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert len({len(part) for part in parts}) == 1
    given = [i for step in zip(*parts, strict=True) for i in step]
    expected = (whole + whole)[: -(-20 // num_replicas) * num_replicas]
    assert given == (whole[: 20 // num_replicas * num_replicas] if drop_last else expected)
    with pytest.raises(ValueError, match=r"`rank` must be in \[0, 2\), got 2"):
        SeededSampler(range(20), num_replicas=2, rank=2)


def test_without_shuffling_the_order_is_that_of_the_data_set():
    assert list(SeededSampler(range(5), shuffle=False)) == [0, 1, 2, 3, 4]


def test_the_length_follows_a_data_set_that_grows(tmp_path):
    growing = MixedDataset(
        real_images(),
        make_cache(tmp_path),
        audit=None,
        mode="append",
        ratio=Linear(0, 1, epochs=2),
    )
    sampler = SeededSampler(growing)
    for epoch, length in enumerate((60, 90, 120)):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler)) == length
        assert sorted(sampler) == list(range(length))


@pytest.mark.parametrize("num_replicas", [2, 3, 7])
def test_every_rank_has_batches_of_exact_counts(appended, num_replicas):
    ranks = [
        MixedBatchSampler(appended, 8, 4, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    batches = [list(sampler) for sampler in ranks]
    assert len(set(map(len, batches))) == 1
    assert [len(part) for part in batches] == [len(sampler) for sampler in ranks]
    for part in batches:
        assert all(sum(i >= 60 for i in batch) == 4 for batch in part[:-1])
        assert all(len(batch) == 8 for batch in part[:-1])
    given = [i for part in batches for batch in part for i in batch]
    assert set(range(60)) <= set(given)
    assert len(given) - len(set(given)) <= 2 * num_replicas
    told: list[Any] = [
        DistributedSampler(appended, num_replicas, rank) for rank in range(num_replicas)
    ]
    assert [list(MixedBatchSampler(appended, 8, 4, sampler=one)) for one in told] == batches


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_have_their_share_of_synthetic_images(appended, parts):
    sampler = MixedBatchSampler(appended, 8, 4)
    made = np.zeros(parts)
    for epoch in range(40):
        sampler.set_epoch(epoch)
        batches = [batch for batch in sampler if len(batch) == 8]
        assert batches == list(sampler)[: len(batches)]  # a function of seed and epoch
        made += (np.array(batches) >= 60).reshape(len(batches), parts, -1).sum((0, 2))
    np.testing.assert_allclose(made / made.sum(), 1 / parts, atol=0.03)


# Stopping and going on


def make(kind: str, data: MixedDataset, **options: Any) -> Any:
    if kind == "items":
        return SeededSampler(data, **options)
    return MixedBatchSampler(data, 8, 4, **options)


@pytest.mark.parametrize("kind", ["items", "batches"])
@pytest.mark.parametrize("stop", [0, 1, 9, 14])
def test_a_state_goes_on_where_it_was_taken(appended, kind, stop):
    one = make(kind, appended)
    one.set_epoch(3)
    whole = list(one)
    first = iter(one)
    begun = list(islice(first, stop))
    state = one.state_dict()
    rest = list(first)
    assert begun + rest == whole
    appended.set_epoch(0)
    two = make(kind, appended)
    two.load_state_dict(state)
    assert appended.epoch == 3
    assert two.state_dict() == state  # not used up by being asked
    iter(two)  # nor by an iterator that nobody walks
    two.set_epoch(3)  # nor by what a training loop says anyway
    assert list(two) == rest
    assert list(two) == whole  # and once only
    two.load_state_dict(state)
    two.set_epoch(4)
    assert len(list(two)) == len(whole)


def test_the_state_of_a_finished_epoch_is_an_empty_pass_or_nothing_if_a_later_one_was_set(mixed):
    sampler = SeededSampler(mixed)
    sampler.set_epoch(2)
    assert len(list(sampler)) == 60
    finished = sampler.state_dict()
    sampler.set_epoch(3)
    assert sampler.state_dict()["position"] == 0
    sampler.load_state_dict(finished)
    assert (sampler.epoch, len(list(sampler))) == (3, 60)
    sampler.set_epoch(2)
    sampler.load_state_dict(finished)
    assert (len(list(sampler)), len(list(sampler))) == (0, 60)
    sampler.load_state_dict(finished)
    iter(sampler)  # a loader that knows that the epoch is over throws this one away
    assert len(list(sampler)) == 60


def test_a_state_of_another_order_is_refused(mixed):
    state = SeededSampler(mixed, seed=1).state_dict()
    with pytest.raises(ValueError, match="saved with seed=1, and this sampler has seed=0"):
        SeededSampler(mixed).load_state_dict(state)
    with pytest.raises(ValueError, match="num_replicas=1, and this sampler has num_replicas=2"):
        SeededSampler(mixed, seed=1, num_replicas=2, rank=0).load_state_dict(state)
    with pytest.raises(ValueError, match="saved for 60 items, and this sampler has 59"):
        SeededSampler(range(59), seed=1).load_state_dict(state)


def shown(batches: Any) -> list[list[int]]:
    return [[value(image) for image in images] for images, _ in batches]


@pytest.mark.filterwarnings(NO_WORKERS_TOO_MANY, "ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["items", "batches"])
def test_a_stateful_loader_goes_on_with_the_same_images_real_and_synthetic(
    tmp_path, kind, num_workers
):
    def loader() -> tuple[Any, StatefulDataLoader[Any]]:
        data = MixedDataset(
            real_images(),
            cache,
            audit=None,
            mode="append",
            ratio=1.0,
            transform=v2.ToImage(),
        )
        sampler = make(kind, data, seed=7)
        batching = (
            {"sampler": sampler, "batch_size": 8} if kind == "items" else {"batch_sampler": sampler}
        )
        workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        return sampler, StatefulDataLoader(data, **workers, **batching)

    cache = make_cache(tmp_path)
    sampler, one = loader()
    sampler.set_epoch(2)
    batches = iter(one)
    shown(islice(batches, 5))
    state = one.state_dict()
    rest = shown(batches)
    finished = one.state_dict()
    sampler.set_epoch(3)
    following = shown(one)
    assert any(v >= 100 for batch in rest for v in batch)

    sampler, two = loader()
    two.load_state_dict(state)
    assert shown(two) == rest
    sampler.set_epoch(3)
    assert shown(two) == following

    sampler, three = loader()  # a run that stopped between two epochs
    three.load_state_dict(finished)
    sampler.set_epoch(3)
    assert shown(three) == following


@pytest.mark.filterwarnings(NO_WORKERS_TOO_MANY)
def test_persistent_workers_see_the_epoch_of_the_sampler(mixed):
    sampler = SeededSampler(mixed)
    loader = DataLoader(
        mixed, sampler=sampler, batch_size=9, num_workers=2, persistent_workers=True
    )
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        expected = [value(mixed[i][0]) for i in sampler]
        assert [v for batch in shown(loader) for v in batch] == expected
