"""`MixedDataset` and `MixedBatchSampler`; what is mixed with what, in `test_mixing`."""

import copy
import json
import logging
import pickle
import re
from collections import namedtuple
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from synthaug import AuditReport, MixedBatchSampler, MixedDataset, mixing
from synthaug._cache import serving as _serving
from synthaug._cache.serving import servable
from synthaug._images.source import ImageSource
from synthaug._plan import matching_quota
from synthaug.errors import CacheError, DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.mixing import SeededSampler
from tests.mixtures import (
    CLASSES,
    FIRST_ROW,
    NAMED,
    Listed,
    items_of,
    make_cache,
    real_images,
    report_on,
    value,
    values,
)


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path)


@pytest.fixture
def real() -> LabeledImages:
    return real_images()


# Replace


def test_replacing_keeps_length_labels_and_what_is_not_replaced(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    assert len(mixed) == len(real)
    assert mixed.targets == real.targets
    assert (mixed.classes, mixed.class_to_idx) == (real.classes, real.class_to_idx)
    seen = values(mixed)
    for i, v in enumerate(seen):
        assert mixed[i][1] == real[i][1]
        if v < FIRST_ROW:
            assert v == i
            assert not mixed.is_synthetic(i)
            assert mixed.provenance(i) == {"synthetic": False, "index": i}
        else:
            assert cache.labels[v - FIRST_ROW] == real.labels[i]
            assert mixed.is_synthetic(i)
            assert mixed.provenance(i)["row"] == v - FIRST_ROW == mixed.synthetic_rows([i])[0]
            assert mixed.provenance(i)["seed"] == cache.plan["seed"][v - FIRST_ROW]
    assert 0 < sum(v >= FIRST_ROW for v in seen) < 60


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_fraction_is_that_of_a_fair_coin_per_item(real, cache, fraction):
    mixed = MixedDataset(real, cache, audit=None, fraction=fraction)
    made = []
    for epoch in range(200):
        mixed.set_epoch(epoch)
        made.append(mixed.synthetic_rows() >= 0)
    share, n = np.mean(made), np.size(made)
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / n)
    # ... and so for every index, and independently from one epoch to the next
    per_index = np.mean(made, axis=0)
    assert np.abs(per_index - fraction).max() < 4.5 * np.sqrt(fraction * (1 - fraction) / 200)
    both = np.mean([a & b for a, b in pairwise(made)])
    assert both == pytest.approx(fraction**2, abs=0.02)


def test_every_servable_image_is_served_equally_often(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    counts = np.zeros(len(cache))
    for epoch in range(300):
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()
        counts += np.bincount(rows[rows >= 0], minlength=len(cache))
    for c in range(3):
        of_class = counts[cache.labels == c]
        assert of_class.std() < 0.1 * of_class.mean()


def test_in_one_epoch_no_image_occurs_again_before_all_of_its_class_have(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=1.0)
    rows = mixed.synthetic_rows()
    for c in range(3):
        counts = np.bincount(rows[real.labels == c], minlength=len(cache))[cache.labels == c]
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == (real.labels == c).sum()


def test_without_replacement_the_items_are_those_of_the_real_data_object_for_object(cache):
    items = [(Image.new("RGB", (5, 6), (i, i, i)), i % 3) for i in range(9)]
    mixed = MixedDataset(Listed(items), cache, audit=None, fraction=0.0, items=NAMED)
    assert all(mixed[i] is items[i] for i in range(9))
    batch = mixed.__getitems__([3, 1])
    assert batch[0] is items[3]
    assert batch[1] is items[1]
    appended = MixedDataset(Listed(items), cache, audit=None, mode="append", ratio=0.0, items=NAMED)
    assert len(appended) == 9
    assert all(appended[i] is items[i] for i in range(9))


# Append


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.3])
def test_appending_gives_every_real_image_once_and_the_ratio_in_class_proportions(
    real, cache, ratio
):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    assert len(mixed) == 60 + round(60 * ratio)
    for epoch in range(3):
        mixed.set_epoch(epoch)
        seen = values(mixed)
        assert seen[:60] == list(range(60))
        assert min(seen[60:]) >= FIRST_ROW
        rows = np.array(seen[60:]) - FIRST_ROW
        assert cache.labels[rows].tolist() == mixed.targets[60:]
        assert [label for _, label in mixed.__getitems__(range(len(mixed)))] == mixed.targets
    quota = matching_quota(real.labels, 3, ratio=ratio)
    assert np.bincount(mixed.targets[60:], minlength=3).tolist() == quota.tolist()


@pytest.mark.parametrize("ratio", [0.1, 0.4, 1.0])
def test_over_the_epochs_no_appended_image_occurs_again_before_all_of_its_class_have(
    real, cache, ratio
):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    dealt: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for epoch in range(12):
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()[60:]
        for c in range(3):
            dealt[c] += rows[cache.labels[rows] == c].tolist()
    for c, order in dealt.items():
        size = int((cache.labels == c).sum())
        assert len(order) >= 2 * size
        decks = [order[i : i + size] for i in range(0, len(order), size)]
        assert all(len(set(deck)) == len(deck) for deck in decks)
        assert decks[0] != decks[1]


# Purity


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"mode": "append", "ratio": 0.7}])
def test_an_item_is_a_function_of_seed_epoch_and_index(real, cache, options):
    def rows(seed: int, epoch: int) -> list[int]:
        mixed = MixedDataset(real, cache, audit=None, seed=seed, **options)
        mixed.set_epoch(epoch)
        return mixed.synthetic_rows().tolist()

    tables = {(s, e): rows(s, e) for s in (0, 1, 2**63) for e in (0, 1, 2)}
    assert len({tuple(t) for t in tables.values()}) == 9
    if "fraction" in options:  # not only which synthetic image, but also which real one it replaces
        assert len({tuple(row < 0 for row in t) for t in tables.values()}) == 9
    mixed = MixedDataset(real, cache, audit=None, seed=1, **options)
    for epoch in (2, 0, 1, 0):  # in any order, and again
        mixed.set_epoch(epoch)
        assert mixed.synthetic_rows().tolist() == tables[1, epoch]
        torch.rand(1)  # global generators have no part in it
        np.random.rand()  # noqa: NPY002


def test_whatever_decides_what_is_served_is_in_the_recipe(real, cache):
    def recipe(**changed: Any) -> str:
        options = {"audit": None, "fraction": 0.5, "seed": 0, **changed}
        return json.dumps(MixedDataset(real, cache, **options).recipe())

    passed = np.arange(21) != 3
    append: dict[str, Any] = {"mode": "append", "fraction": None}
    recipes = [
        recipe(),
        recipe(seed=1),
        recipe(fraction=0.6),
        recipe(audit=report_on(cache)),
        recipe(audit=report_on(cache, passed)),
        recipe(audit=report_on(cache, passed, "fail")),
        recipe(**append, ratio=0.5),
    ]
    assert len(set(recipes)) == len(recipes)
    assert recipe() == recipes[0]


def test_a_batch_is_its_items_and_indices_wrap_and_end_as_those_of_a_list(real, cache):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=0.5)
    indices = [3, 89, 3, -1, 61]
    assert [value(x) for x, _ in mixed.__getitems__(indices)] == [
        value(mixed[i][0]) for i in indices
    ]
    assert value(mixed[-1][0]) == value(mixed[89][0])
    for index in (90, -91):
        with pytest.raises(IndexError):
            mixed[index]
    with pytest.raises(IndexError):
        mixed.__getitems__([90])
    iterable: Any = mixed
    assert len(list(iterable)) == 90


REPLACE: dict[str, Any] = {"fraction": 0.5}
APPEND: dict[str, Any] = {"mode": "append", "ratio": 0.7}
WORKERS = [
    *product([None], [0], [False], [REPLACE, APPEND]),
    *product(["fork"], [3], [False, True], [REPLACE, APPEND]),
    ("forkserver", 2, False, REPLACE),
    ("spawn", 1, True, REPLACE),  # the only one of all tests, as it imports torch anew
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")
@pytest.mark.parametrize(("method", "num_workers", "persistent", "options"), WORKERS)
@pytest.mark.xdist_group("forkserver")
def test_workers_give_the_same_samples_and_follow_the_epoch(
    real, cache, method, num_workers, persistent, options
):
    mixed = MixedDataset(real, cache, audit=None, **options)
    mixed.transform = v2.ToImage()
    cache.read([0])  # a mapping that workers must not stumble over
    loader = DataLoader(
        mixed,
        batch_size=7,
        num_workers=num_workers,
        persistent_workers=persistent,
        multiprocessing_context=method,
    )
    expected, found = [], []
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        expected.append(torch.stack([mixed[i][0] for i in range(len(mixed))]))
        found.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert not torch.equal(found[0], found[1])


def test_a_cache_and_its_report_may_be_given_by_path(real, cache, tmp_path, monkeypatch):
    report: Any = type("Report", (), vars(report_on(cache, np.arange(21) % 2 == 0)))
    monkeypatch.setattr(AuditReport, "from_json", lambda path: report)
    (tmp_path / "audit.json").touch()
    paths: list[Any] = [cache.path, str(cache.path)]
    for path in paths:
        mixed = MixedDataset(real, path, audit=tmp_path / "audit.json", fraction=0.5)
        given = MixedDataset(real, cache, audit=report, fraction=0.5)
        assert values(mixed) == values(given) == values(pickle.loads(pickle.dumps(mixed)))
        assert len(pickle.dumps(mixed.synthetic)) < 1000  # the path, for workers to open
    with pytest.raises(CacheError, match=r"absent\.h5"):
        MixedDataset(real, tmp_path / "absent.h5", audit=None, fraction=0.5)


def test_copies_choose_alike_and_have_epochs_of_their_own(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    mixed.set_epoch(3)
    shallow, deep = copy.copy(mixed), copy.deepcopy(mixed)
    pickled = pickle.loads(pickle.dumps(mixed))
    for other in (shallow, deep, pickled):
        assert other.synthetic_rows().tolist() == mixed.synthetic_rows().tolist()
        assert other._epoch.is_shared()
    mixed.set_epoch(4)
    assert (shallow.epoch, deep.epoch, pickled.epoch) == (3, 3, 3)


# Types


Sample = namedtuple("Sample", ["image", "label", "name"])

ITEMS: dict[str, Any] = {
    "pair": lambda image, label: (image, label),
    "list": lambda image, label: [image, label],
    "triple": lambda image, label: (image, label, f"{label}.png"),
    "namedtuple": lambda image, label: Sample(image, label, "x"),
    "dict": lambda image, label: {"image": image, "label": label},
    "dict of transformers": lambda image, label: {
        "labels": label,
        "pixel_values": image,
        "more": 3,
    },
}
IMAGES: dict[str, Any] = {
    "PIL": lambda i: Image.new("RGB", (5, 6), (i, i, i)),
    "uint8": lambda i: torch.full((3, 6, 5), i, dtype=torch.uint8),
    "float": lambda i: torch.full((3, 6, 5), i / 255),
    "float16": lambda i: torch.full((3, 6, 5), i / 255, dtype=torch.float16),
    "tv_tensor": lambda i: tv_tensors.Image(torch.full((3, 6, 5), i / 255)),
    "numpy": lambda i: np.full((6, 5, 3), i, np.uint8),
    "float numpy": lambda i: np.full((6, 5, 3), i / 255),
}
LABELS: dict[str, Any] = {
    "int": int,
    "numpy": np.int32,
    "tensor": lambda label: torch.tensor(label, dtype=torch.int32),
}


def types(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: types(x) for key, x in item.items()}
    if isinstance(item, tuple | list):
        return type(item), [types(x) for x in item]
    return type(item), getattr(item, "dtype", None), getattr(item, "shape", None)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("item", ITEMS)
def test_synthetic_items_have_the_types_of_real_ones(tmp_path, item, image, label):
    cache = make_cache(tmp_path)
    items = [ITEMS[item](IMAGES[image](i), LABELS[label](i % 3)) for i in range(30)]
    mixed = MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)
    served = mixed.__getitems__(range(30))
    assert 5 < (mixed.synthetic_rows() >= 0).sum() < 25
    for ours, theirs in zip(served, items, strict=True):
        assert types(ours) == types(theirs)
    if image != "PIL":
        default_collate(served)
    keys = ("image", "label")
    if isinstance(items[0], dict):
        keys = ("pixel_values", "labels") if "more" in items[0] else keys
    where = keys if isinstance(items[0], dict) else (0, 1)
    for i, ours in enumerate(served):
        assert int(ours[where[1]]) == i % 3
        row = mixed.synthetic_rows()[i]
        shown = v2.functional.to_image(ours[where[0]])
        level = shown.double().mean() * (255 if shown.is_floating_point() else 1)
        assert float(level) == pytest.approx(i if row < 0 else FIRST_ROW + row, abs=0.1)


def test_further_fields_stay_those_of_the_real_item(cache):
    items = [(Image.new("RGB", (5, 6)), i % 3, f"{i}.png") for i in range(9)]
    mixed = MixedDataset(Listed(items), cache, audit=None, fraction=1.0, items=NAMED)
    assert [item[2] for item in mixed.__getitems__(range(9))] == [item[2] for item in items]
    assert mixed[4][0] is not items[4][0]
    with pytest.raises(TypeError, match=r"has the fields 3\. Appended images have no more"):
        MixedDataset(Listed(items), cache, audit=None, mode="append", ratio=1, items=NAMED)


def test_gray_images_are_mixed_too(tmp_path):
    cache = make_cache(tmp_path, shape=(1, 6, 5))
    items = [(Image.new("L", (5, 6), i), i % 3) for i in range(30)]
    mixed = MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)
    assert {image.mode for image, _ in items_of(mixed)} == {"L"}


# Transforms


class Counting:
    """Remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, x: Any) -> Any:
        self.calls.append(x)
        return x


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"mode": "append", "ratio": 0.7}])
def test_both_kinds_of_images_go_through_the_transform_of_the_real_data_once(real, cache, options):
    real.transform, real.target_transform = Counting(), Counting()
    mixed = MixedDataset(real, cache, audit=None, **options)
    labels = mixed.targets
    real.transform.calls.clear()
    real.target_transform.calls.clear()
    served = mixed.__getitems__(range(len(mixed)))
    assert len(real.transform.calls) == len(mixed)
    assert {image.mode for image in real.transform.calls} == {"RGB"}
    assert all(a is b for a, (b, _) in zip(real.transform.calls, served, strict=True))
    assert real.target_transform.calls == labels
    assert {type(label) for label in real.target_transform.calls} == {int}


def test_a_transform_may_be_assigned_later_and_the_real_data_stays_as_it_was(real, cache):
    real.transform = v2.ToImage()
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    assert mixed.transform is real.transform
    mixed.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert {image.dtype for image, _ in items_of(mixed)} == {torch.float32}
    assert real[0][0].dtype == torch.uint8
    mixed.target_transform = lambda label: label + 10
    assert {label for _, label in items_of(mixed)} == {10, 11, 12}
    mixed.transform = None
    assert isinstance(mixed[0][0], Image.Image)


def torchvision_like(base: type) -> Any:
    """As torchvision's classification data sets come: some call one transform, some the pair."""

    class Pets(datasets.VisionDataset):
        classes = CLASSES

        def __init__(self, transform=None, target_transform=None, transforms=None):
            super().__init__(".", transforms, transform, target_transform)
            self.targets = [i % 3 for i in range(30)]

        def __getitem__(self, index):
            image, label = Image.new("RGB", (5, 6), (index,) * 3), index % 3
            if base is tuple:
                return (image, label) if self.transforms is None else self.transforms(image, label)
            return self.transform(image), label

        def __len__(self):
            return 30

    return Pets


@pytest.mark.parametrize("base", [tuple, list])
def test_transforms_are_taken_over_from_data_sets_of_torchvisions_kind(cache, base):
    real = torchvision_like(base)(transform=v2.ToImage())
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    raw = mixed._items.raw[3][0]
    assert isinstance(raw, Image.Image)
    assert all(isinstance(image, tv_tensors.Image) for image, _ in items_of(mixed))
    assert isinstance(real[3][0], tv_tensors.Image)


def test_transforms_are_taken_over_through_wrappers(real, cache):
    real.transform = v2.ToImage()
    halves = [Subset(real, range(30)), Subset(real, range(30, 60))]
    for wrapped in (halves[1], ConcatDataset(halves), *random_split(real, [0.5, 0.5])):
        mixed = MixedDataset(wrapped, cache, audit=None, fraction=0.5)
        assert mixed.transform is real.transform
        assert all(isinstance(image, tv_tensors.Image) for image, _ in items_of(mixed))
        assert mixed.classes == CLASSES
        for i in np.flatnonzero(mixed.synthetic_rows() < 0).tolist():
            assert value(mixed[i][0]) == value(wrapped[i][0])
            assert mixed[i][1] == wrapped[i][1] == mixed.targets[i]


def test_transforms_that_cannot_be_taken_over_are_refused(real, cache):
    def mix(data: Any, **options: Any) -> MixedDataset:
        return MixedDataset(data, cache, audit=None, fraction=0.5, **options)

    joint = torchvision_like(tuple)(transforms=lambda image, label: (image, label))
    with pytest.raises(ValueError, match="joint `transforms` of image and label"):
        mix(joint)
    one, two = real.subset(range(30)), real.subset(range(30, 60))
    one.transform = two.transform = v2.ToImage()
    mix(ConcatDataset([one, two]))
    two.transform = v2.ToImage()
    with pytest.raises(ValueError, match="parts of the ConcatDataset have different transforms"):
        mix(ConcatDataset([one, two]))
    outer = Subset(one, range(9))
    outer.transform = v2.ToImage()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Both Subset and the data set inside it"):
        mix(outer)
    with pytest.raises(ValueError, match="`real` has a transform already, and `transform`"):
        mix(one, transform=v2.ToImage())


# Other ways to iterate


def test_wrapped_in_a_subset_it_is_the_same(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    part = Subset(mixed, [5, 50, 7])
    assert [value(image) for image, _ in part.__getitems__([0, 1, 2])] == [
        value(mixed[i][0]) for i in (5, 50, 7)
    ]


def test_ranks_of_a_distributed_sampler_see_the_epoch_together(real, cache):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=0.5)
    indices: list[int] = []
    for rank in range(3):
        indices += DistributedSampler(mixed, num_replicas=3, rank=rank, seed=5)
    assert sorted(indices) == list(range(90))
    found = [value(image) for image, _ in mixed.__getitems__(indices)]
    assert sorted(found) == sorted(values(mixed))


def test_pixels_can_be_read_without_the_transform(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    mixed.transform = v2.ToDtype(torch.float32)
    expected = torch.tensor([i if r < 0 else 100 + r for i, r in enumerate(mixed.synthetic_rows())])
    assert torch.equal(ImageSource.open(mixed).pixels()[:, 0, 0, 0].long(), expected)
    assert torch.equal(mixed.read([-1, 4])[:, 2, 5, 4].long(), expected[[-1, 4]])
    for indices in (np.flatnonzero(expected < 100), np.flatnonzero(expected >= 100)):
        assert torch.equal(mixed.read(indices)[:, 0, 0, 0].long(), expected[indices])


# The audit


def test_rows_that_did_not_pass_are_never_served(real, cache):
    passed = np.arange(len(cache)) % 2 == 0
    mixed = MixedDataset(real, cache, audit=report_on(cache, passed, "fail"), fraction=1.0)
    seen = set()
    for epoch in range(20):
        mixed.set_epoch(epoch)
        seen |= set(mixed.synthetic_rows().tolist())
    assert seen == set(np.flatnonzero(passed).tolist())
    assert "    Synthetic: 11 images, audit: fail, 10 withheld" in repr(mixed).splitlines()


def test_rows_that_are_pending_or_withdrawn_are_never_served(real, tmp_path):
    cache = make_cache(tmp_path, done=[0, 1, 2, 8, 9, 15, 16])
    cache.withdraw([1, 16])
    for audit in (None, report_on(cache)):  # a report from before they were withdrawn
        mixed = MixedDataset(real, cache, audit=audit, fraction=1.0)
        assert set(mixed.synthetic_rows().tolist()) == {0, 2, 8, 9, 15}
        assert len(values(mixed)) == 60


def test_a_report_about_another_cache_is_refused_naming_both(real, cache, tmp_path):
    other = make_cache(tmp_path, quota=(7, 5, 10))
    with pytest.raises(MismatchError, match=r"another cache") as error:
        MixedDataset(real, cache, audit=report_on(other), fraction=0.5)
    assert "rows: 21 in the cache, 22 in the report" in str(error.value)
    assert cache.plan_digest in str(error.value)
    assert other.plan_digest in str(error.value)
    with pytest.raises(MismatchError, match="20 verdicts for 21 rows"):
        MixedDataset(real, cache, audit=report_on(cache, np.ones(20, bool)), fraction=0.5)


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (None, "21 images, not audited. Copies of training images may be among them"),
        ("fail", "19 images, audit: fail, 2 withheld. Copies of training images were found"),
        ("inconclusive", "19 images, audit: inconclusive, 2 withheld. Copies .* gone unseen"),
        ("pass", None),
    ],
)
def test_what_an_audit_did_not_clear_is_said_aloud_once(
    real, cache, caplog, monkeypatch, verdict, text
):
    monkeypatch.setattr(_serving, "_warned", set())
    report = None if verdict is None else report_on(cache, np.arange(21) > 1, verdict)
    for seed in range(2):
        MixedDataset(real, cache, audit=report, fraction=0.5, seed=seed)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == (text is not None)
    if text is not None:
        assert re.search(text, warnings[0])


def test_images_between_two_classes_are_not_served_under_one_label(cache, caplog):
    labels = np.asarray(cache.labels)
    partner = np.full(len(labels), -1)
    partner[:4] = labels[:4]  # partners of the same class
    partner[4:7] = (labels[4:7] + 1) % 3
    names = ("labels", "classes", "done", "image_shape", "identity", "read")
    plan = replace(cache.plan, columns={**cache.plan.columns, "partner_label": partner})
    mixed = SimpleNamespace(**{name: getattr(cache, name) for name in names}, plan=plan)
    expected = np.asarray(cache.done).copy()
    expected[4:7] = False
    assert (servable(mixed, None).mask == expected).all()
    assert "3 images are mixed from two classes" in caplog.text


def test_something_that_is_no_report_or_no_cache_is_refused(real, cache):
    with pytest.raises(TypeError, match=r"`audit` is a str, expected a report .*from_json"):
        servable(cache, "audit.json")
    with pytest.raises(TypeError, match=r"`synthetic` is a LabeledImages, expected a cache"):
        servable(real, None)
    with pytest.raises(TypeError, match="audit"):
        MixedDataset(real, cache, fraction=0.5)  # type: ignore[call-arg]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs `fraction` and no `ratio`"),
        ({"ratio": 1.0}, "needs `fraction` and no `ratio`; got fraction=None, ratio=1.0"),
        ({"mode": "append", "fraction": 0.5}, "needs `ratio` and no `fraction`"),
        ({"mode": "append", "ratio": 1.0, "fraction": 0.5}, "needs `ratio` and no `fraction`"),
        ({"fraction": 1.5}, r"`fraction` must be in \[0, 1\], got 1.5"),
        ({"fraction": -0.1}, r"`fraction` must be in \[0, 1\]"),
        ({"fraction": float("nan")}, "got nan"),
        ({"mode": "append", "ratio": float("inf")}, "`ratio` must be at least 0, got inf"),
        ({"mode": "mix", "fraction": 0.5}, "`mode` must be one of 'replace', 'append', got 'mix'"),
        ({"fraction": 0.5, "seed": None}, "`seed` is None, expected a whole number"),
    ],
)
def test_wrong_arguments_are_refused(real, cache, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MixedDataset(real, cache, audit=None, **options)


def test_a_class_without_servable_images_is_named_at_construction(real, tmp_path):
    cache = make_cache(tmp_path, quota=(4, 0, 4))
    for options in ({"fraction": 0.1}, {"mode": "append", "ratio": 0.5}):
        with pytest.raises(
            MismatchError, match=r"Class 'bee' has no synthetic image .* of 0 rows, 0"
        ):
            MixedDataset(real, cache, audit=None, **options)
    MixedDataset(real, cache, audit=None, fraction=0.0)  # none is needed
    MixedDataset(real.subset(real.labels != 1), cache, audit=None, fraction=0.5)
    none = report_on(cache, [True] * 4 + [False] * 4)
    with pytest.raises(
        MismatchError, match=r"Class 'cow' .* of 4 rows, 4 are done and the report withholds all"
    ):
        MixedDataset(real.subset(real.labels != 1), cache, audit=none, fraction=0.5)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("ant", "bee", "dog"), "only the real images have 'cow'. Real: ant, bee, cow. Syn"),
        (("ant", "bee", "cow", "dog"), r"only the synthetic images have 'dog'.* `classes=`"),
    ],
)
def test_class_lists_are_compared_by_name(real, tmp_path, classes, message):
    cache = make_cache(tmp_path, quota=(3,) * len(classes), classes=classes)
    with pytest.raises(MismatchError, match=message):
        MixedDataset(Subset(real, range(60)), cache, audit=None, fraction=0.5)


def test_unknown_classes_and_labels_beyond_them_are_refused(cache):
    items = [(Image.new("RGB", (5, 6)), i) for i in range(4)]
    with pytest.raises(DataError, match=r"not know its class .* Pass `items=mixing.*; .* ant, b"):
        MixedDataset(Listed(items), cache, audit=None, fraction=0.5)
    with pytest.raises(DataError, match="`real`: image 3 has label 3, but there are 3 classes"):
        MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)
    with pytest.raises(DataError, match="holds no image"):
        MixedDataset(Listed([]), cache, audit=None, fraction=0.5, items=NAMED)


def test_labels_that_are_not_in_the_order_of_the_items_are_refused(real, cache):
    reversed_ = Listed([real[i] for i in range(60)])
    reversed_.targets = [*real.targets[1:], (real.targets[-1] + 1) % 3]
    relabeled = Listed([(x, y if i in (0, 59) else 2 - y) for i, (x, y) in enumerate(real)])
    relabeled.targets = real.targets
    for other in (reversed_, relabeled):
        with pytest.raises(DataError, match="not those of its items"):
            MixedDataset(other, cache, audit=None, fraction=0.5, items=NAMED)


def test_other_sizes_and_channels_are_refused(real, tmp_path):
    small, gray = make_cache(tmp_path, shape=(3, 4, 4)), make_cache(tmp_path, shape=(1, 6, 5))
    with pytest.raises(MismatchError, match=r"images are 4x4 .* is 6x5.*any_size=True\)`"):
        MixedDataset(real, small, audit=None, fraction=0.5)
    for any_size in (False, True):
        with pytest.raises(MismatchError, match=r"have 1 channel, .* 3: a PIL .*convert\('L'\)"):
            MixedDataset(
                real, gray, audit=None, fraction=0.5, items=mixing.ItemFormat(any_size=any_size)
            )
    resize = v2.Compose([v2.Resize((8, 8)), v2.ToImage()])
    mixed = MixedDataset(
        real,
        small,
        audit=None,
        fraction=0.5,
        items=mixing.ItemFormat(any_size=True),
        transform=resize,
    )
    assert {tuple(image.shape) for image, _ in items_of(mixed)} == {(3, 8, 8)}
    with pytest.raises(MismatchError, match=r"shape \(3, 6, 5\), and synthetic ones \(3, 4, 4\)"):
        mixed.read(range(60))


def test_items_that_are_not_labeled_images_are_refused(cache):
    normalized = TensorDataset(torch.randn(4, 3, 6, 5), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"Item 0 of `real` cannot be mixed.*take `Normalize` off"):
        MixedDataset(normalized, cache, audit=None, fraction=0.5, items=NAMED)
    bright = TensorDataset(torch.full((1, 3, 6, 5), 200.0), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"from 200 to 200, expected \[0, 1\]. Divide by 255"):
        MixedDataset(bright, cache, audit=None, fraction=0.5, items=NAMED)
    cases: list[tuple[list[Any], str]] = [
        ([torch.zeros(3, 6, 5)], "An item of the data set is Tensor"),
        ([{"picture": 1, "label": 0}], r"no image: .* say where they are: `items=.*\.Fields\("),
        ([("x.png", 0)], "builtins.str, expected a PIL image"),
    ]
    for items, message in cases:
        with pytest.raises(TypeError, match=message):
            MixedDataset(Listed(items), cache, audit=None, fraction=0.5, items=NAMED)
    others: list[Any] = [iter([1]), {"train": [1]}, DataLoader(Listed([1]))]
    for other in others:
        with pytest.raises(TypeError, match=f"`real` is a {type(other).__name__}, .* map-style"):
            MixedDataset(other, cache, audit=None, fraction=0.5, items=NAMED)
    with pytest.raises(TypeError, match=r"`real` is the text 'digits', .*load_dataset"):
        MixedDataset("digits", cache, audit=None, fraction=0.5)


def test_a_table_without_the_field_that_was_named_is_refused(cache):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"img": [0], "fine": [0]})
    with pytest.raises(TypeError, match=r"do not fit an item of the data set: \['img', 'fine'\]"):
        MixedDataset(
            table,
            cache,
            audit=None,
            fraction=0.5,
            items=mixing.ItemFormat(fields=mixing.Fields("img", "label")),
        )


def test_a_negative_epoch_is_refused(real, cache):
    with pytest.raises(ValueError, match="`epoch` must be at least 0, got -1"):
        MixedDataset(real, cache, audit=None, fraction=0.5).set_epoch(-1)


# Display


def test_it_prints_as_torchvisions_data_sets_do(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5, transform=v2.ToImage())
    lines = repr(mixed).splitlines()
    assert lines[:2] == ["Dataset MixedDataset", "    Number of datapoints: 60"]
    assert lines[-1] == "    Transform: ToImage()"
    made = int((mixed.synthetic_rows() >= 0).sum())
    assert f"    Epoch 0: {60 - made} real, {made} synthetic" in lines


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_notebook_shows_at_most_24_images_and_escapes_names(tmp_path, fraction):
    names = ("<script>", "b", "c")
    cache = make_cache(tmp_path, classes=names)
    real = LabeledImages(torch.zeros(60, 3, 6, 5, dtype=torch.uint8), np.arange(60) % 3, names)
    mixed = MixedDataset(real, cache, audit=None, fraction=fraction, transform=v2.ToImage())
    html = mixed._repr_html_()
    assert html.count("<img") == (24 if fraction == 0.5 else 12)
    assert "<script>" not in html


# Batches of exact counts


@pytest.mark.parametrize(("batch_size", "synthetic"), [(8, 4), (7, 3), (10, 1), (64, 32), (9, 0)])
def test_every_batch_has_its_exact_counts(real, cache, batch_size, synthetic):
    ratio = synthetic / (batch_size - synthetic)
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=ratio)
    sampler = MixedBatchSampler(mixed, batch_size, synthetic)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for batch in batches[:-1]:
        assert len(batch) == batch_size
        assert sum(i >= 60 for i in batch) == synthetic
    last_real = sum(i < 60 for i in batches[-1])
    assert abs(sum(i >= 60 for i in batches[-1]) - last_real * ratio) <= 0.5
    assert sorted(i for batch in batches for i in batch if i < 60) == list(range(60))
    fakes = [i for batch in batches for i in batch if i >= 60]
    assert len(set(fakes)) == len(fakes)


@pytest.mark.parametrize("num_real", range(1, 30))
def test_the_ratio_that_is_asked_for_suffices_for_any_number_of_images(real, cache, num_real):
    for per_batch, synthetic in [(1, 1), (2, 1), (6, 1), (3, 2), (4, 6)]:
        part = real.subset(range(num_real))
        mixed = MixedDataset(part, cache, audit=None, mode="append", ratio=synthetic / per_batch)
        sampler = MixedBatchSampler(mixed, per_batch + synthetic, synthetic)
        assert sum(map(len, sampler)) == len(mixed)


def test_batches_are_shuffled_by_epoch_and_reach_the_loader(real, cache):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=1.0)
    mixed.transform = v2.ToImage()
    sampler = MixedBatchSampler(mixed, batch_size=8, synthetic_per_batch=4)
    loader = DataLoader(mixed, batch_sampler=sampler)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert mixed.epoch == 1
    assert first != list(sampler)
    assert list(MixedBatchSampler(mixed, 8, 4, seed=1)) != list(sampler)
    for images, labels in loader:
        assert sum(value(image) >= FIRST_ROW for image in images) == 4
        assert len(labels) == 8


def test_a_shorter_last_batch_can_be_dropped(real, cache):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=1.0)
    sampler = MixedBatchSampler(mixed, 16, 8, drop_last=True)
    assert [len(batch) for batch in sampler] == [16] * 7


@pytest.mark.parametrize("numbers", [(8.0, 4), (0, 0), (8, 0.5), (8, 8)], ids=str)
def test_counts_that_are_no_counts_are_refused(real, cache, numbers):
    mixed = MixedDataset(real, cache, audit=None, mode="append", ratio=1.0)
    with pytest.raises(ValueError, match=r"must be (a whole number|at least 1)"):
        MixedBatchSampler(mixed, *numbers)


def test_a_sampler_that_cannot_be_exact_is_refused(real, cache):
    replace = MixedDataset(real, cache, audit=None, fraction=0.5)
    append = MixedDataset(real, cache, audit=None, mode="append", ratio=0.5)
    with pytest.raises(ValueError, match=r'mode="append" and ratio=4/4'):
        MixedBatchSampler(replace, 8, 4)
    with pytest.raises(ValueError, match=r"30 synthetic images to 60 real ones, these .* need 60"):
        MixedBatchSampler(append, 8, 4)
    for synthetic in (-1, 8):
        with pytest.raises(ValueError, match=r"must be a whole number in \[0, 8\)"):
            MixedBatchSampler(append, 8, synthetic)


def test_a_copy_has_epochs_of_its_own_and_epochs_are_whole(real, cache):
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    mixed.set_epoch(2)
    copied = copy.copy(mixed)
    copied.set_epoch(3)
    assert (mixed.epoch, copied.epoch) == (2, 3)
    assert mixed.synthetic_rows().tolist() != copied.synthetic_rows().tolist()
    outer = MixedDataset(mixed, make_cache(cache.path.parent), audit=None, fraction=0.0)
    outer.set_epoch(5)
    assert mixed.epoch == 5  # what a mixture takes over is no copy
    for one in (mixed, SeededSampler(mixed)):
        with pytest.raises(ValueError, match=r"`epoch` must be a whole number, got 1\.5"):
            one.set_epoch(1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"`epoch` is a NoneType, expected the number of an"):
            one.set_epoch(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`num_replicas` must be a whole number, got 1\.5"):
        SeededSampler(mixed, num_replicas=1.5)  # type: ignore[arg-type]
