"""What is mixed with what: shares, schedules, filters, draws, labels, items, and the log."""

import copy
import pickle
import re
from collections import OrderedDict, defaultdict
from functools import partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from synthaug import MixedBatchSampler, MixedDataset, Plan, audit, mixing
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import LabelCheck
from synthaug.images import LabeledImages
from synthaug.mixing import AtLeast, AtMost, Balance, Cosine, Fields, Highest, Linear, Lowest
from synthaug.synthesizers import soft_labels
from tests.mixtures import (
    CLASSES,
    FIRST_ROW,
    NAMED,
    Listed,
    fill,
    items_of,
    make_cache,
    real_images,
    report_on,
    value,
    values,
)

pytestmark = pytest.mark.usefixtures("short_audits")


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path)


@pytest.fixture
def real():
    return real_images()


def replaced(mixed: MixedDataset, epochs: range) -> np.ndarray:
    """Whether each item is synthetic in each epoch, bool (epochs, n)."""
    made = []
    for epoch in epochs:
        mixed.set_epoch(epoch)
        made.append(mixed.synthetic_rows() >= 0)
    return np.array(made)


# Shares


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_schedule_goes_from_its_start_to_its_end_and_stays_there(kind):
    schedule = kind(0.2, 0.6, epochs=8, after=3)
    values = [schedule(epoch) for epoch in range(20)]
    assert values[:4] == [0.2] * 4
    assert values[11:] == pytest.approx([0.6] * 9)
    assert (np.diff(values[3:12]) > 0).all()
    assert values[7] == pytest.approx(0.4)  # halfway both are in the middle
    down = [kind(0.6, 0.2, epochs=8, after=3)(epoch) for epoch in range(20)]
    assert down == pytest.approx([0.8 - x for x in values])


def test_schedules_by_hand_and_as_they_print():
    assert [Linear(0, 1, epochs=4)(e) for e in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [Cosine(1, 0, epochs=3)(e) for e in range(4)] == pytest.approx([1, 0.75, 0.25, 0])
    assert repr(Linear(0, 1, epochs=4)) == repr(Linear(0.0, 1.0, epochs=4))
    assert repr(Linear(0.0, 0.5, epochs=10)) == "Linear(start=0.0, end=0.5, epochs=10, after=0)"
    for wrong in ({"epochs": 0}, {"epochs": 1, "after": -1}, {"epochs": 1, "end": float("nan")}):
        with pytest.raises(ValueError, match=r"must be (at least|a number)"):
            Linear(**{"start": 0, "end": 1, **wrong})  # type: ignore[arg-type]


def test_a_fraction_may_differ_by_class_by_name_or_index(real, cache):
    fractions: list[Any] = [{"ant": 0.2, "cow": 0.9}, {0: 0.2, 2: 0.9}]
    for fraction in fractions:
        mixed = MixedDataset(real, cache, audit=None, fraction=fraction)
        made = replaced(mixed, range(200))
        for c, share in enumerate((0.2, 0.0, 0.9)):
            assert made[:, real.labels == c].mean() == pytest.approx(share, abs=0.03)
        assert "fraction ant 0.2, cow 0.9" in repr(mixed) or "fraction 0 0.2, 2 0.9" in repr(mixed)


def test_a_schedule_of_all_classes_is_asked_once_per_epoch(real, cache):
    asked: list[int] = []

    def half(epoch: int) -> float:
        asked.append(epoch)
        return 0.5

    mixed = MixedDataset(real, cache, audit=None, fraction=half)
    asked.clear()
    mixed.set_epoch(3)
    items_of(mixed)
    assert asked == [3]


def test_a_fraction_may_change_from_epoch_to_epoch_and_for_one_class_alone(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=lambda epoch: float(epoch % 2))
    assert replaced(mixed, range(4)).mean(axis=1).tolist() == [0, 1, 0, 1]
    ramp: Any = {"ant": Linear(0.0, 1.0, epochs=2), "bee": 0.0, "cow": 1.0}
    made = replaced(MixedDataset(real, cache, audit=None, fraction=ramp), range(4))
    by_class = [[made[e, real.labels == c].mean() for c in range(3)] for e in range(4)]
    assert by_class[0] == [0, 0, 1]
    assert 0 < by_class[1][0] < 1
    assert by_class[2] == by_class[3] == [1, 0, 1]


@pytest.mark.parametrize(
    "ratio", [{"ant": 0.5, "cow": 2.0}, {"ant": 0.33, "bee": 0.33, "cow": 0.45}]
)
def test_a_ratio_by_class_appends_within_one_image_of_it(real, cache, ratio):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    exact = [30 * ratio.get("ant", 0), 10 * ratio.get("bee", 0), 20 * ratio.get("cow", 0)]
    found = np.bincount(mixed.targets[60:], minlength=3)
    assert found.sum() == round(sum(exact))
    assert (np.abs(found - exact) < 1).all()
    assert [real.classes[label] for _, label in (mixed[i] for i in range(60, len(mixed)))] == [
        real.classes[c] for c in mixed.targets[60:]
    ]


def test_a_ratio_that_changes_changes_the_length_and_deals_on_where_it_stopped(real, cache):
    ratio = Linear(0.0, 0.4, epochs=4)
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    loader = DataLoader(mixed, batch_size=7, shuffle=True, collate_fn=len)
    dealt = []
    for epoch in range(9):
        mixed.set_epoch(epoch)
        assert len(mixed) == len(mixed.targets) == 60 + round(60 * ratio(epoch))
        assert sum(loader) == len(mixed)
        dealt += mixed.synthetic_rows()[60:].tolist()
    for c in range(3):
        own = [row for row in dealt if cache.labels[row] == c]
        size = int((cache.labels == c).sum())
        decks = [own[i : i + size] for i in range(0, len(own), size)]
        assert len(decks) > 1
        assert all(len(set(deck)) == len(deck) for deck in decks)
    jumped = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    jumped.set_epoch(8)
    assert jumped.synthetic_rows().tolist() == mixed.synthetic_rows().tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fraction": {"dog": 0.5}}, ValueError, "names the class 'dog'. The classes are ant, bee"),
        ({"fraction": {3: 0.5}}, ValueError, "names the class 3"),
        ({"fraction": {True: 0.5}}, ValueError, "names the class True"),
        ({"fraction": {"bee": 0.5, 1: 0.2}}, ValueError, "names the class 'bee' twice"),
        ({"fraction": {"bee": 1.5}}, ValueError, r"`fraction` must be in \[0, 1\], got 1.5"),
        ({"fraction": {"bee": "all"}}, TypeError, "is 'all' for class 'bee', expected a number"),
        ({"fraction": lambda epoch: 2.0}, ValueError, r"in \[0, 1\], got 2.0 in epoch 0"),
        ({"fraction": Balance()}, ValueError, 'use mode="append" and ratio=Balance'),
    ],
)
def test_wrong_shares_are_named(real, cache, options, error, message):
    with pytest.raises(error, match=message):
        MixedDataset(real, cache, audit=None, **options)


def test_a_schedule_that_leaves_its_range_later_is_named_with_the_epoch(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=lambda epoch: 0.4 * epoch)
    mixed.set_epoch(3)
    with pytest.raises(ValueError, match=r"got 1.2\d* in epoch 3"):
        mixed.synthetic_rows()


def test_only_classes_that_may_be_replaced_need_synthetic_images(real, tmp_path):
    cache = make_cache(tmp_path, quota=(4, 0, 4))
    MixedDataset(real, cache, audit=None, fraction={"ant": 0.5, "cow": Linear(0, 1, epochs=3)})
    few: list[Any] = [{"bee": 0.1}, {"bee": Linear(0, 1, epochs=3)}]
    for fraction in few:
        with pytest.raises(MismatchError, match="Class 'bee' has no synthetic image"):
            MixedDataset(real, cache, audit=None, fraction=fraction)


# Balance


def test_classes_are_filled_up_to_the_largest_or_to_a_number(tmp_path):
    cache = make_cache(tmp_path, quota=(2, 22, 12))
    real = real_images((30, 10, 20))
    for balance, counts in [
        (Balance(), [30, 30, 30]),
        (Balance(to=22), [30, 22, 22]),
        (Balance(to=5), [30, 10, 20]),
    ]:
        mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=balance)
        for epoch in (0, 1):
            mixed.set_epoch(epoch)
            labels = [label for _, label in (mixed[i] for i in range(len(mixed)))]
            assert np.bincount(labels).tolist() == counts
            rows = mixed.synthetic_rows()[60:]
            assert len(set(rows.tolist())) == len(rows)
        assert f"ratio {balance!r}" in repr(mixed)
    tail = real_images((30, 14, 0))  # a class of which there is no real image
    cache = make_cache(tmp_path, quota=(0, 16, 30))
    mixed = MixedDataset(tail, cache, audit=None, mode="append", ratio=Balance())
    assert np.bincount(mixed.targets).tolist() == [30, 30, 30]


def test_too_few_images_to_balance_are_refused_or_repeated_after_all_others(tmp_path, real):
    cache = make_cache(tmp_path, quota=(2, 7, 9))
    with pytest.raises(
        MismatchError, match=r"'bee' has 10 real images and needs 20 .* to have 30; 7 .*and 1 other"
    ):
        MixedDataset(real, cache, audit=None, mode="append", ratio=Balance())
    balance = Balance(repeat=True)
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=balance)
    rows = mixed.synthetic_rows()[60:]
    counts = np.bincount(rows, minlength=18)[cache.labels == 1]
    assert counts.sum() == 20
    assert counts.max() - counts.min() <= 1
    with pytest.raises(ValueError, match="`to` must be at least 1, got 0"):
        Balance(to=0)


# Filters


def served(mixed: MixedDataset) -> set[int]:
    made = set()
    for epoch in range(10):
        mixed.set_epoch(epoch)
        made |= set(mixed.synthetic_rows().tolist())
    return made - {-1}


def test_filters_leave_what_all_of_them_leave_one_after_the_other(real, cache):
    scores = np.random.default_rng(0).permutation(21) / 20
    mask = np.arange(21) % 7 != 0
    mix = partial(MixedDataset, real, cache, audit=None, fraction=1.0)
    for one, kept in (
        (AtLeast(scores, 0.3), scores >= 0.3),
        (AtMost(scores, 0.6), scores <= 0.6),
    ):
        assert served(mix(filters=[one])) == set(np.flatnonzero(kept).tolist())
        assert served(mix(filters=[one, mask])) == set(np.flatnonzero(kept & mask).tolist())
        assert served(mix(filters=[mask, one])) == set(np.flatnonzero(kept & mask).tolist())
    for best, sign in ((Highest(scores, 0.5), 1), (Lowest(scores, 0.5), -1)):
        found = served(mix(filters=[mask, best]))
        for c in range(3):
            own = np.flatnonzero(mask & (cache.labels == c))
            half = own[np.argsort(-sign * scores[own])][: -(-len(own) // 2)]
            assert {row for row in found if cache.labels[row] == c} == set(half.tolist())
    lines = repr(mix(filters=[AtLeast(scores, 0.3), mask])).splitlines()
    kept = scores >= 0.3
    assert f"    Filter: score at least 0.3: {kept.sum()} of 21 images left" in lines
    assert f"    Filter: mask: {(kept & mask).sum()} of {kept.sum()} images left" in lines


def test_filters_take_reports_and_refuse_those_about_another_cache(real, cache, tmp_path):
    report = SimpleNamespace(
        identity=cache.identity, row_scores=np.arange(21.0), score_name="sharpness"
    )
    kept = {2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20}
    mixed = MixedDataset(
        real,
        cache,
        audit=None,
        fraction=1.0,
        filters=[AtLeast(report, 2), ~np.isin(range(21), [7, 12])],
    )
    assert served(mixed) == kept
    assert "    Filter: sharpness at least 2: 19 of 21 images left" in repr(mixed)
    other = make_cache(tmp_path, quota=(7, 5, 10))
    with pytest.raises(MismatchError, match="judges another cache"):
        MixedDataset(real, other, audit=None, fraction=1.0, filters=[AtLeast(report, 2)])


def test_an_audit_filters_by_its_p_values_and_a_label_check_by_its_scores(real, cache):
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 3, 6, 5), np.uint8)
    train, holdout = (LabeledImages(torch.from_numpy(x), real.labels, CLASSES) for x in noise)
    report = audit(cache, train, holdout=holdout, progress=False)
    check = LabelCheck(
        identity=cache.identity,
        classes=CLASSES,
        labels=cache.labels,
        scores=np.linspace(1, 0.5, 21, dtype=np.float32),
        withheld=np.zeros(21, bool),
        settings={},
    )
    for one, scores in ((report, report.p_values), (check, check.scores)):
        threshold = float(np.median(scores))
        filters = [AtLeast(one, threshold)]
        mixed = MixedDataset(real, cache, audit=None, fraction={"bee": 1.0}, filters=filters)
        kept = np.flatnonzero((scores >= threshold) & (cache.labels == 1))
        assert served(mixed) == set(kept.tolist())


def test_a_report_that_passes_rows_is_a_filter(real, cache, tmp_path):
    passed = np.arange(21) % 2 == 0
    mix = partial(MixedDataset, real, audit=None, fraction=1.0)
    mixed = mix(cache, filters=[report_on(cache, passed)])
    assert served(mixed) == set(np.flatnonzero(passed).tolist())
    other = make_cache(tmp_path, quota=(7, 5, 10))
    with pytest.raises(MismatchError, match=r"`filters\[0\]` judges another cache"):
        mix(other, filters=[report_on(cache)])


def test_wrong_filters_are_named(real, cache):
    mix = partial(MixedDataset, real, cache, audit=None, fraction=1.0)
    cases: list[tuple[Any, type[Exception], str]] = [
        (np.ones(21, bool), TypeError, r"`filters` is a ndarray, expected a list"),
        ([np.arange(21)], TypeError, r"`filters\[0\]` is a ndarray of int64, expected a mask"),
        ([np.ones(20, bool)], ValueError, r"has shape \(20,\), the cache has 21 rows"),
        ([AtLeast(np.ones(20), 0)], ValueError, r"shape \(20,\), the cache has 21"),
        ([AtLeast(np.full(21, np.nan), 0)], ValueError, "21 rows .* have no score"),
        (
            [np.arange(21) < 7],
            MismatchError,
            "Class 'bee' .* the filters or weights leave none",
        ),
    ]
    for filters, error, message in cases:
        with pytest.raises(error, match=message):
            mix(filters=filters)


# Weights


@pytest.mark.parametrize(
    "options",
    [{"fraction": 1.0}, {"mode": "append", "ratio": 1.0}, {"mode": "append", "ratio": 0.3}],
)
def test_images_are_drawn_in_proportion_to_their_weights_and_to_the_nearest_whole(
    real, cache, options
):
    weights = np.random.default_rng(0).random(21)
    weights[[0, 9]] = 0
    mixed = MixedDataset(real, cache, audit=None, draw=mixing.Weighted(weights), **options)
    total = np.zeros(21)
    expected = np.zeros(21)
    for epoch in range(300):
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()
        counts = np.bincount(rows[rows >= 0], minlength=21)
        for c in range(3):
            own = cache.labels == c
            exact = counts[own].sum() * weights[own] / weights[own].sum()
            assert (np.abs(counts[own] - exact) < 1).all()
            expected[own] += exact
        total += counts
    assert np.abs(total - expected).max() < 0.06 * expected.max()
    assert "Drawn weighted by score" in repr(mixed)


def test_images_of_equal_weight_meet_each_other_in_some_epoch(real, cache):
    draw = mixing.Weighted(np.ones(21))
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio={"cow": 0.1}, draw=draw)
    pairs = set()
    for epoch in range(300):
        mixed.set_epoch(epoch)
        pairs.add(tuple(sorted(mixed.synthetic_rows()[60:].tolist())))
    assert pairs == set(combinations(range(12, 21), 2))


def test_weights_that_make_no_sense_are_named(real, cache):
    mix = partial(MixedDataset, real, cache, audit=None, fraction=1.0)
    for weights, message in (
        (np.full(21, -1.0), "at least 0 and finite, row 0 has -1"),
        (np.where(np.arange(21) == 4, np.inf, 1), "row 4 has inf"),
        (np.where(np.arange(21) < 7, 0.0, 1), "Class 'ant' .* weights leave none"),
    ):
        with pytest.raises((ValueError, MismatchError), match=message):
            mix(draw=mixing.Weighted(weights))
    with pytest.raises(TypeError, match="`draw` is a ndarray, expected"):
        mix(draw=np.ones(21))  # type: ignore[arg-type]


def test_whatever_decides_what_is_served_is_in_the_recipe(real, cache):
    weights = np.arange(21.0) + 1
    every: list[dict[str, Any]] = [
        {"fraction": 0.5},
        {"fraction": {"ant": 0.5}},
        {"fraction": {"bee": 0.5}},
        {"fraction": Linear(0, 1, epochs=3)},
        {"fraction": Cosine(0, 1, epochs=3)},
        {"fraction": lambda epoch: 0.5},
        {"fraction": lambda epoch: 0.25},
        {"fraction": 0.5, "filters": [np.arange(21) % 6 > 0]},
        {"fraction": 0.5, "draw": mixing.Weighted(weights)},
        {"fraction": 0.5, "draw": mixing.Weighted(weights**2)},
        {"fraction": 0.5, "items": mixing.ItemFormat(soft_labels=True)},
        {"fraction": 0.5, "items": mixing.ItemFormat(soft_labels=np.full((21, 3), 1 / 3))},
        {"mode": "append", "ratio": 0.5},
        {"mode": "append", "ratio": Balance(to=12)},
        {"mode": "append", "ratio": Balance(to=13)},
    ]
    recipes = [str(MixedDataset(real, cache, audit=None, **o).recipe()) for o in every]
    assert len(set(recipes)) == len(recipes)
    assert recipes == [str(MixedDataset(real, cache, audit=None, **o).recipe()) for o in every]


# Soft labels


@pytest.fixture
def between(tmp_path):
    """A cache whose first row of each class has a cow for partner; so row 12 has one of its own."""
    plan = Plan.build(
        (7, 5, 9),
        classes=CLASSES,
        settings={},
        seed=0,
        parameters={"partner_label": [2, *[-1] * 8], "interpolation": [0.25, *[0.0] * 8]},
    )
    return fill(tmp_path, plan, (3, 6, 5))


def test_soft_labels_come_from_the_plan_and_serve_what_lies_between_classes(real, between):
    hard = MixedDataset(real, between, audit=None, fraction=1.0)
    assert not {0, 7} & served(hard)
    soft = MixedDataset(
        real, between, audit=None, fraction=0.5, items=mixing.ItemFormat(soft_labels=True)
    )
    expected = np.eye(3, dtype=np.float32)[between.labels]
    expected[0], expected[7] = [0.75, 0, 0.25], [0, 0.75, 0.25]
    np.testing.assert_array_equal(expected, soft_labels(between.plan))
    seen = set()
    for epoch in range(10):
        soft.set_epoch(epoch)
        rows = soft.synthetic_rows().tolist()
        seen |= set(rows)
        items = soft.__getitems__(range(60))
        for i, ((_, label), row) in enumerate(zip(items, rows, strict=True)):
            assert label.dtype == torch.float32
            assert torch.equal(label, soft[i][1])
            wanted = np.eye(3)[real.labels[i]] if row < 0 else expected[row]
            np.testing.assert_array_equal(label, wanted)
    assert {-1, 0, 7, 12} < seen
    assert soft.targets == real.targets
    assert "    Labels: class probabilities" in repr(soft).splitlines()


def test_soft_labels_go_through_cutmix_and_the_loss_as_their_mixtures(real, between):
    given = np.random.default_rng(0).dirichlet([1, 1, 1], 21)
    mixed = MixedDataset(
        real, between, audit=None, fraction=0.5, items=mixing.ItemFormat(soft_labels=given)
    )
    mixed.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images, labels = next(iter(DataLoader(mixed, batch_size=60)))
    rows = mixed.synthetic_rows()
    expected = np.where((rows < 0)[:, None], np.eye(3)[real.labels], given[rows])
    np.testing.assert_allclose(labels, expected, atol=1e-6)
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(logits, labels)
    np.testing.assert_allclose(
        loss, -(expected * logits.log_softmax(1).numpy()).sum(1).mean(), 1e-5
    )
    for transform in (v2.CutMix(num_classes=3), v2.MixUp(num_classes=3)):
        _, mixtures = transform(images, labels)
        assert mixtures.shape == (60, 3)
        torch.testing.assert_close(mixtures.sum(1), torch.ones(60))
        share = (mixtures - labels.roll(1, 0)) / (labels - labels.roll(1, 0))
        share = share[share.isfinite()]
        assert share.std() < 1e-3  # every label is the same mixture of its own and its neighbor's


@pytest.mark.parametrize("kind", ["tensor", "float64", "array"])
def test_real_labels_that_are_vectors_keep_their_type(cache, kind):
    vectors = torch.nn.functional.one_hot(torch.arange(30) % 3, 3) * 0.9 + 0.1 / 3
    as_kind = {
        "tensor": lambda v: v.float(),
        "float64": lambda v: v.double(),
        "array": lambda v: v.numpy(),
    }[kind]
    items = [(Image.new("RGB", (5, 6)), as_kind(v)) for v in vectors]
    mixed = MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)
    assert mixed.targets == [i % 3 for i in range(30)]
    for i, (_, label) in enumerate(mixed.__getitems__(range(30))):
        assert type(label) is type(items[i][1])
        assert label.dtype == items[i][1].dtype
        made = mixed.is_synthetic(i)
        np.testing.assert_allclose(label, np.eye(3)[i % 3] if made else vectors[i], atol=1e-7)


def test_real_labels_of_several_classes_at_once_are_refused(real, cache):
    items = [(image, torch.eye(3)[label]) for image, label in real]
    items[7] = (items[7][0], torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(DataError, match=r"label of item 7 of `real` is \[1\. 0\. 1\.\], and class"):
        MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)


def test_wrong_soft_labels_are_named(real, cache):
    mix = partial(MixedDataset, real, cache, audit=None, fraction=0.5)
    with pytest.raises(ValueError, match=r"shape \(21, 2\), expected .* \(21, 3\)"):
        mix(items=mixing.ItemFormat(soft_labels=np.ones((21, 2))))
    with pytest.raises(ValueError, match="of row 0 are not probabilities"):
        mix(items=mixing.ItemFormat(soft_labels=np.ones((21, 3))))
    real.target_transform = str
    with pytest.raises(ValueError, match=r"Soft labels and a `target_transform` exclude"):
        mix(items=mixing.ItemFormat(soft_labels=True))
    four = Listed([(Image.new("RGB", (5, 6)), torch.eye(4)[0])])
    with pytest.raises(ValueError, match="has 4 class probabilities, but there are 3 classes"):
        MixedDataset(four, cache, audit=None, fraction=0.5, items=NAMED)


# Items


def test_fields_say_where_items_have_their_image_and_their_label(cache):
    pictures = [Image.new("RGB", (5, 6), (i, i, i)) for i in range(30)]
    cases = [
        (Fields("img", "fine"), lambda i: {"img": pictures[i], "fine": i % 3, "label": "x"}),
        (Fields(1, 2), lambda i: (f"{i}.png", pictures[i], i % 3)),
        (Fields(2, 0), lambda i: [i % 3, None, pictures[i]]),
    ]
    for fields, item in cases:
        items = [item(i) for i in range(30)]
        mixed = MixedDataset(
            Listed(items),
            cache,
            audit=None,
            fraction=0.5,
            items=mixing.ItemFormat(fields=fields, classes=CLASSES),
        )
        made = mixed.synthetic_rows()
        for i, ours in enumerate(mixed.__getitems__(range(30))):
            image, label = fields.get(ours)
            assert (value(image), label) == (i if made[i] < 0 else FIRST_ROW + made[i], i % 3)
            assert fields.put(ours, *fields.get(items[i])) == items[i]  # all else stayed
            alone = mixed[i]
            assert value(fields.get(alone)[0]) == value(image)
            assert fields.put(alone, *fields.get(items[i])) == items[i]
        expected = np.where(made < 0, np.arange(30), FIRST_ROW + made)
        assert mixed.read(range(30))[:, 0, 0, 0].tolist() == expected.tolist()
    with pytest.raises(ValueError, match="Positions are counted from 0, got -1 in Fields"):
        Fields(0, -1)
    wrong = Fields("image", "fine")
    with pytest.raises(
        TypeError, match=r"Fields\(image='image', label='fine'\) do not fit .*'img'"
    ):
        MixedDataset(
            Listed([cases[0][1](0)]),
            cache,
            audit=None,
            fraction=1,
            items=mixing.ItemFormat(fields=wrong, classes=CLASSES),
        )


def test_an_item_with_another_image_keeps_its_type():
    for item in (OrderedDict(image=0, label=1, more=2), defaultdict(int, image=0, label=1)):
        changed = Fields("image", "label").put(item, 5, 6)
        assert type(changed) is type(item)
        assert changed == {**item, "image": 5, "label": 6}
        assert item["image"] == 0


class Nested:
    """The example of `Fields`."""

    def get(self, item: Any) -> tuple[Any, Any]:
        return item["inputs"]["pixels"], item["y"]

    def put(self, item: Any, image: Any, label: Any) -> Any:
        return {**item, "inputs": {**item["inputs"], "pixels": image}, "y": label}


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"mode": "append", "ratio": 0.5}])
def test_an_adapter_of_ones_own_serves_items_of_any_structure(cache, options):
    items = [
        {"inputs": {"pixels": torch.full((3, 6, 5), i, dtype=torch.uint8), "id": i}, "y": i % 3}
        for i in range(30)
    ]
    mixed = MixedDataset(
        Listed(items),
        cache,
        audit=None,
        items=mixing.ItemFormat(fields=Nested(), classes=CLASSES),
        **options,
    )
    mixed.transform = v2.ToDtype(torch.float32)
    batch = default_collate(mixed.__getitems__(range(len(mixed))))
    rows = mixed.synthetic_rows()
    expected = np.where(rows < 0, np.arange(len(mixed)), FIRST_ROW + rows)
    assert batch["inputs"]["pixels"][:, 0, 0, 0].tolist() == expected.tolist()
    assert batch["y"].tolist() == mixed.targets
    if mixed.mode == "replace":
        assert batch["inputs"]["id"].tolist() == list(range(30))


def test_pairs_of_arrays_are_data_sets(cache):
    levels = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(5, 2)
    labels = np.arange(30) % 3
    arrays = levels.repeat(3, 3), labels
    tensors = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2), torch.from_numpy(labels)
    for pair in (arrays, tensors, TensorDataset(*tensors)):
        mixed = MixedDataset(pair, cache, audit=None, fraction=0.5, items=NAMED)
        rows = mixed.synthetic_rows()
        assert mixed.targets == labels.tolist()
        expected = np.where(rows < 0, np.arange(30), FIRST_ROW + rows)
        assert [value(image) for image, _ in mixed.__getitems__(range(30))] == expected.tolist()
        assert type(mixed[0][0]) is (np.ndarray if pair is arrays else torch.Tensor)
    with pytest.raises(ValueError, match="has 30 images and 29 labels"):
        MixedDataset((arrays[0], labels[1:]), cache, audit=None, fraction=0.5, items=NAMED)
    with pytest.raises(TypeError, match="tuple of ndarray, list, expected a data set, or a pair"):
        MixedDataset((arrays[0], []), cache, audit=None, fraction=0.5, items=NAMED)


def test_a_folder_of_images_is_mixed_as_torchvision_reads_it(cache, tmp_path):
    for i in range(12):
        folder = tmp_path / "train" / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 6), (i, i, i)).save(folder / f"{i:02}.png")
    folder = ImageFolder(tmp_path / "train", transform=v2.ToImage())
    mixed = MixedDataset(folder, cache, audit=None, fraction=0.5)
    rows = mixed.synthetic_rows()
    assert (mixed.targets, mixed.class_to_idx) == (folder.targets, folder.class_to_idx)
    expected = [value(folder[i][0]) if row < 0 else FIRST_ROW + row for i, row in enumerate(rows)]
    assert values(mixed) == expected
    mixed.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert {image.dtype for image, _ in mixed} == {torch.float32}  # type: ignore[attr-defined]


def test_a_table_of_the_datasets_library_is_mixed_without_reading_its_images(cache):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (5, 6), (i, i, i)) for i in range(30)]
    columns = {"image": pictures, "fine": [i % 3 for i in range(30)], "id": list(range(30))}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fine": datasets.ClassLabel(names=list(CLASSES)),
            "id": datasets.Value("int64"),
        }
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    mix = partial(
        MixedDataset,
        audit=None,
        fraction=0.5,
        items=mixing.ItemFormat(fields=Fields("image", "fine")),
    )
    halves = [Subset(table, range(15)), Subset(table, range(15, 30))]
    reals: list[Any] = [table, table.with_format("torch"), ConcatDataset(halves)]
    for real in reals:
        mixed = mix(real, cache)
        rows = mixed.synthetic_rows()
        expected = np.where(rows < 0, np.arange(30), FIRST_ROW + rows)
        items = mixed.__getitems__(range(30))
        assert [value(item["image"]) for item in items] == expected.tolist()
        assert [int(item["fine"]) for item in items] == [i % 3 for i in range(30)]
        assert [int(item["id"]) for item in items] == list(range(30))
        assert (mixed.classes, mixed.targets) == (CLASSES, [i % 3 for i in range(30)])
        kind = (
            torch.Tensor
            if real is not table and not isinstance(real, ConcatDataset)
            else Image.Image
        )
        assert all(isinstance(item["image"], kind) for item in items)
    with pytest.raises(
        ValueError, match=r"transform of whole batches .* `real.with_format\(None\)"
    ):
        mix(table.with_transform(lambda batch: batch), cache)


# The log


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_log_says_what_stood_at_which_position_of_which_epoch(
    real, cache, tmp_path, num_workers
):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5, transform=v2.ToImage())
    path = tmp_path / "served.csv"
    mixed.log_served(path)
    loader = DataLoader(
        mixed,
        batch_size=7,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    expected = []
    for epoch in (0, 1, 5):
        mixed.set_epoch(epoch)
        given = torch.cat([images[:, 0, 0, 0] for images, _ in loader]).tolist()
        expected += [(0, epoch, position, v) for position, v in enumerate(given)]
    log = mixing.read_log(path)
    row = log["row"]
    shown = np.where(row < 0, log["index"], FIRST_ROW + row)
    found = np.stack([log["run"], log["epoch"], log["position"], shown], axis=1)
    assert [tuple(line) for line in found.tolist()] == expected
    assert set(log["worker"].tolist()) == ({-1} if num_workers == 0 else {0, 1})
    mixed.log_served(path)  # another run goes on in the same file
    mixed[-1]
    mixed.log_served(None)
    mixed[3]
    log = mixing.read_log(path)
    assert len(log) == 181
    assert [log[name][-1] for name in ("run", "epoch", "position", "index")] == [1, 5, 0, 59]


def test_a_file_that_is_no_log_is_named(real, cache, tmp_path):
    path = tmp_path / "x.csv"
    header = "run,epoch,worker,batch,index,row\n"
    for text in ("", "a,b\n1,2\n", f"{header}1,2\n", f"{header}{'1,' * 6}1\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=re.escape(f"{path} is not a log of served images")):
            mixing.read_log(path)
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    with pytest.raises(ValueError, match="is a folder, expected the name of a file"):
        mixed.log_served(tmp_path)
    path.write_text("a,b\nc,d\n")
    with pytest.raises(DataError, match=r"x.csv is not a log .* Name another file"):
        mixed.log_served(path)
    assert path.read_text() == "a,b\nc,d\n"
    mixed.log_served(path := tmp_path / "empty.csv")
    assert len(mixing.read_log(path)) == 0


# Copies


def test_a_mixture_with_everything_pickles_and_copies(real, between):
    mixed = MixedDataset(
        real,
        between,
        audit=None,
        fraction={"ant": Linear(0.2, 1, epochs=3), "cow": 0.5},
        filters=[AtLeast(np.arange(21.0), 0)],
        draw=mixing.Weighted(np.arange(21.0) + 1),
        items=mixing.ItemFormat(soft_labels=True),
    )
    mixed.set_epoch(2)
    for other in (copy.deepcopy(mixed), pickle.loads(pickle.dumps(mixed))):
        assert other.synthetic_rows().tolist() == mixed.synthetic_rows().tolist()
        assert values(other) == values(mixed)
        assert other.recipe() == mixed.recipe()


def test_batches_of_exact_counts_may_follow_a_schedule(real, cache):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=1.0)
    sampler = MixedBatchSampler(mixed, 8, Linear(0, 4, epochs=4))
    for epoch in range(6):
        sampler.set_epoch(epoch)
        made = [sum(i >= 60 for i in batch) for batch in sampler]
        assert set(made[:-1]) == {min(epoch, 4)}
        assert len(made) == len(sampler)
    sampler = MixedBatchSampler(mixed, 8, lambda epoch: 8 * epoch)
    sampler.set_epoch(1)
    with pytest.raises(ValueError, match=r"in \[0, 8\), below the batch size; got 8 in epoch 1"):
        list(sampler)


@pytest.mark.parametrize("transform", [None, v2.ToImage()])
def test_a_mixture_may_be_mixed_with_another_cache_and_follows_the_epoch(
    real, cache, tmp_path, transform
):
    inner = MixedDataset(real, cache, audit=None, fraction=0.5, seed=1, transform=transform)
    other = make_cache(tmp_path, quota=(3, 3, 3))
    both = MixedDataset(Subset(inner, range(60)), other, audit=None, fraction=0.5)
    seen = set()
    for epoch in range(2):
        both.set_epoch(epoch)
        twin = MixedDataset(real, cache, audit=None, fraction=0.5, seed=1)
        twin.set_epoch(epoch)
        rows = both.synthetic_rows()
        wanted = np.where(rows >= 0, FIRST_ROW + rows, values(twin))
        assert values(both) == wanted.tolist()
        made = (rows >= 0) | (twin.synthetic_rows() >= 0)
        direct = MixedDataset(inner, other, audit=None, fraction=0.5)
        direct.set_epoch(epoch)
        assert [direct.is_synthetic(i) for i in range(60)] == made.tolist()
        seen.add(tuple(wanted))
    assert len(seen) == 2
    grows = MixedDataset(real, cache, audit=None, mode="append", ratio=Linear(0, 1, epochs=2))
    with pytest.raises(ValueError, match=r"`ratio` changes.* Mix in the other order"):
        MixedDataset(grows, other, audit=None, fraction=0.5)
