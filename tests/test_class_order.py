"""Real data that count their classes in another order than the cache: matched by name."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

from synthaug import MixedDataset, OnTheFlyDataset, Plan, mixing
from synthaug._images.source import ImageSource
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import _label_check, scaling_arms, score_hardness
from synthaug.features import Pixel
from synthaug.images import LabeledImages
from tests.classifiers import evaluate
from tests.drawing import Noise, plan_of
from tests.images import dark_and_light
from tests.mixtures import (
    CLASSES,
    NAMED,
    Listed,
    fill,
    items_of,
    make_cache,
    real_images,
    report_on,
)

OTHER = ("cow", "ant", "bee")
TO_REAL = np.array([2, 0, 1])  # of each class of `OTHER` its place in `CLASSES`
SOFT = np.eye(3)[TO_REAL[np.repeat([0, 1, 2], (9, 7, 5))]]


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path, quota=(9, 7, 5), classes=OTHER)


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 0.5},
        {"fraction": {"ant": 1.0}},
        {"fraction": {0: 1.0}},
        {"fraction": 0.5, "filters": [mixing.Highest(np.arange(21.0), 0.5)]},
        {"fraction": 0.5, "draw": mixing.Weighted(np.arange(21.0))},
        {"fraction": 0.5, "draw": mixing.Stratified(np.arange(21.0), 2)},
        {"mode": "append", "ratio": {"cow": 0.4, "bee": 0.1}},
        {"mode": "append", "ratio": mixing.Balance(repeat=True)},
        {"fraction": 0.5, "items": mixing.ItemFormat(soft_labels=True)},
        {"fraction": 0.5, "items": mixing.ItemFormat(soft_labels=SOFT)},
    ],
)
def test_a_synthetic_image_has_the_label_of_its_class_as_the_real_data_count_it(cache, options):
    mixed = MixedDataset(real_images(), cache, audit=None, **options)
    assert mixed.classes == CLASSES
    seen = set()
    for epoch in range(3):
        mixed.set_epoch(epoch)
        rows, labels = mixed.synthetic_rows(), mixed.labels
        made = rows >= 0
        assert (labels[made] == TO_REAL[cache.labels[rows[made]]]).all()
        served = [np.asarray(label) for _, label in items_of(mixed)]
        assert [int(x.argmax() if x.ndim else x) for x in served] == labels.tolist()
        seen |= {CLASSES[c] for c in labels[made]}
    assert seen == ({"ant"} if isinstance(options.get("fraction"), dict) else
                    {"bee", "cow"} if mixed.mode == "append" else set(CLASSES))  # fmt: skip


def test_the_partner_of_an_image_between_classes_is_matched_too(tmp_path):
    columns: Any = {"partner_label": [0, -1, -1], "interpolation": [0.25, 0.0, 0.0]}
    plan = Plan.build((3, 3, 3), classes=OTHER, settings={}, seed=0, parameters=columns)
    cache = fill(tmp_path, plan, (3, 6, 5))
    mixed = MixedDataset(
        real_images(), cache, audit=None, fraction=1.0, items=mixing.ItemFormat(soft_labels=True)
    )
    rows = mixed.synthetic_rows().tolist()
    labels = [label for _, label in items_of(mixed)]
    assert labels[rows.index(3)].tolist() == [0.75, 0.0, 0.25]  # an ant, and a cow in part
    assert labels[rows.index(4)].tolist() == [1.0, 0.0, 0.0]


def test_soft_labels_in_the_order_of_the_cache_are_refused(cache):
    teacher = np.eye(3)[cache.labels] * 0.7 + 0.1
    with pytest.raises(ValueError, match=r"order of the classes of the cache \(cow, ant, bee\)"):
        MixedDataset(
            real_images(),
            cache,
            audit=None,
            fraction=0.5,
            items=mixing.ItemFormat(soft_labels=teacher),
        )


def test_a_class_without_images_is_named_as_the_real_data_name_it(cache):
    report = report_on(cache, cache.labels != 0)
    with pytest.raises(
        MismatchError, match=r"Class 'cow' has no synthetic image .* of 9 rows, 9 are"
    ):
        MixedDataset(real_images(), cache, audit=report, fraction=0.5)


def test_names_given_beside_those_of_the_data_may_translate_but_not_reorder_them(cache):
    real = real_images()
    with pytest.raises(DataError, match=r"`real` counts its classes as ant, bee, cow\. Leave `cla"):
        MixedDataset(real, cache, audit=None, fraction=0.5, items=mixing.ItemFormat(classes=OTHER))
    latin = LabeledImages(real.read(range(60)), real.labels, ("formica", "apis", "bos"))
    mixed = MixedDataset(latin, cache, audit=None, fraction=1.0, items=NAMED)
    rows = mixed.synthetic_rows()
    assert (real.labels == TO_REAL[cache.labels[rows]]).all()
    with pytest.raises(MismatchError, match="Two classes of the real images are called 'ant'"):
        MixedDataset(
            latin,
            cache,
            audit=None,
            fraction=1.0,
            items=mixing.ItemFormat(classes=(*CLASSES[:2], "cow", "ant")),
        )


def test_class_to_idx_says_what_labels_mean_and_must_not_contradict_the_names(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        real_images()[0][0].save(tmp_path / name / "0.png")
    folder = ImageFolder(tmp_path)
    assert ImageSource.open(Subset(folder, [0])).classes == CLASSES
    folder.class_to_idx = {name: i for i, name in enumerate(OTHER)}
    with pytest.raises(DataError, match="'ant' is class 0 in one and 1 in the other"):
        _ = ImageSource.open(folder).classes
    cache = make_cache(tmp_path, shape=(3, 6, 5))
    mixed = MixedDataset(folder, cache, audit=None, fraction=0.5, items=NAMED)  # says what is
    assert mixed.classes == CLASSES
    del folder.classes
    assert ImageSource.open(folder).classes == OTHER


def test_images_drawn_on_the_fly_are_matched_by_name():
    live = OnTheFlyDataset(Noise(), plan_of((8, 8, 8), classes=OTHER))
    real = Listed([(torch.zeros(live.image_shape, dtype=torch.uint8), i % 3) for i in range(30)])
    mixed = MixedDataset(real, live, audit=None, fraction=1.0, items=NAMED)
    rows = mixed.synthetic_rows()
    assert [live.provenance(row)["class"] for row in rows] == [CLASSES[i % 3] for i in range(30)]


def test_an_evaluation_and_amounts_take_either_order(cache):
    real = real_images()
    arms: Any = scaling_arms(real, cache, audit=None, ratios=[0.2])
    part = arms["real + 0.2 x synthetic"].datasets[1]
    names = [cache.classes[cache.labels[row]] for row in part.synthetic_rows(range(len(part)))]
    assert [CLASSES[label] for _, label in part] == names == [CLASSES[c] for c in part.labels]
    arms["mixed"] = MixedDataset(real, cache, audit=None, fraction=1.0)
    test = LabeledImages(cache.read(range(21)), cache.labels, OTHER)
    report = evaluate(
        arms, test=test, steps=1, seeds=1, device="cpu", allow_overlap=True, progress=False
    )
    assert report.classes == list(OTHER)
    with pytest.raises(MismatchError, match=r"cow, ant, bee\. Their labels must mean the same"):
        _ = ImageSource.open(ConcatDataset([real, cache])).classes  # nothing translates its items


def test_labels_are_checked_and_hardness_is_scored_by_name(monkeypatch):
    labeled = LabeledImages(*dark_and_light(24), ("dark", "light"))
    turned = LabeledImages(labeled.read(range(24)), 1 - labeled.labels, ("light", "dark"))
    cache: Any = SimpleNamespace(
        identity={},
        classes=("light", "dark"),
        labels=turned.labels,
        done=np.ones(24, bool),
        read=turned.read,
    )
    given = np.full((24, 2), 0.3) + 0.4 * np.eye(2)[labeled.labels]
    monkeypatch.setattr(_label_check, "class_probabilities", lambda *_, **__: given)
    check = _label_check.check_labels(cache, labeled, threshold=0.5)
    np.testing.assert_allclose(check.scores, 0.7)
    assert check.classes == ("light", "dark")
    options: Any = {"features": Pixel(), "k": 3, "progress": False}
    other, same = (score_hardness(turned, real, **options) for real in (labeled, turned))
    np.testing.assert_allclose(other.hardness, same.hardness)
