"""Weights of synthetic images: scaled labels, and rows that are served with a probability."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from synthaug import ClassifierConfig, MixedDataset, SynthCache, evaluate, mixing
from synthaug.errors import MismatchError
from synthaug.mixing import ItemFormat, WeightedDraws
from tests.mixtures import CLASSES, items_of, make_cache, real_images

WEIGHTS = np.linspace(0.1, 1, 21)
SCALED = partial(ItemFormat, soft_labels=True)


@pytest.fixture
def real() -> Any:
    return real_images()


@pytest.fixture
def cache(tmp_path) -> SynthCache:
    return make_cache(tmp_path)


def mixed_of(real: Any, cache: Any, **options: Any) -> MixedDataset:
    return MixedDataset(real, cache, **{"audit": None, "fraction": 0.5, **options})


def same(a: MixedDataset, b: MixedDataset) -> bool:
    pairs = zip(items_of(a), items_of(b), strict=True)
    return all(x[0] == y[0] and np.array_equal(x[1], y[1]) for x, y in pairs)


def test_the_loss_of_scaled_labels_is_the_weighted_loss(real, cache):
    mixed = mixed_of(real, cache, items=SCALED(weights=WEIGHTS))
    mixed.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    _, labels = next(iter(DataLoader(mixed, batch_size=60)))
    rows = mixed.synthetic_rows()
    weights = torch.tensor(np.where(rows < 0, 1, WEIGHTS[rows]), dtype=torch.float32)
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, torch.tensor(real.labels), reduction="none")
    torch.testing.assert_close(F.cross_entropy(logits, labels), (weights * each).mean())
    assert "Labels: class probabilities, times a weight" in repr(mixed)


@pytest.mark.parametrize("how", ["labels", "draws"])
def test_weight_0_is_a_cache_without_the_row(real, tmp_path, how):
    cache = make_cache(tmp_path)
    without = np.delete(np.arange(21), [2, 9, 13])
    weights = np.ones(21)
    weights[[2, 9, 13]] = 0
    few = make_cache(tmp_path, done=without)
    if how == "labels":
        weighted = mixed_of(real, cache, items=SCALED(weights=weights))
        plain = mixed_of(real, few, items=SCALED())
    else:
        weighted = mixed_of(real, cache, draw=WeightedDraws(weights))
        plain = mixed_of(real, few)
    for epoch in (0, 1, 5):
        weighted.set_epoch(epoch)
        plain.set_epoch(epoch)
        assert same(weighted, plain)


def test_weight_1_changes_nothing(real, cache):
    assert same(mixed_of(real, cache, draw=WeightedDraws(1)), mixed_of(real, cache))
    scaled = mixed_of(real, cache, items=SCALED(weights=1.0))
    assert same(scaled, mixed_of(real, cache, items=SCALED()))


def test_rows_are_served_as_often_as_their_weights_say(real, cache):
    mixed = mixed_of(real, cache, fraction=1.0, draw=WeightedDraws(WEIGHTS))
    served, drawn = np.zeros(21), np.zeros(21)
    plain = mixed_of(real, cache, fraction=1.0)
    for epoch in range(200):
        mixed.set_epoch(epoch)
        plain.set_epoch(epoch)
        rows = mixed.synthetic_rows()
        served += np.bincount(rows[rows >= 0], minlength=21)
        drawn += np.bincount(plain.synthetic_rows(), minlength=21)
    np.testing.assert_allclose(served / drawn, WEIGHTS, atol=0.07)
    mixed.set_epoch(3)
    again = mixed_of(real, cache, fraction=1.0, draw=WeightedDraws(WEIGHTS))
    again.set_epoch(3)
    assert (mixed.synthetic_rows() == again.synthetic_rows()).all()


def test_given_probabilities_are_scaled_too_and_recipes_differ(real, cache):
    soft = np.full((21, 3), 1 / 3)
    mixed = mixed_of(real, cache, fraction=1.0, items=ItemFormat(soft_labels=soft, weights=0.5))
    assert mixed[0][1].sum().item() == pytest.approx(0.5)
    plain = mixed_of(real, cache, fraction=1.0, items=ItemFormat(soft_labels=soft))
    assert mixed.recipe() != plain.recipe()


def test_caches_in_each_other_keep_their_own_weights(real, tmp_path):
    inner = mixed_of(real, make_cache(tmp_path), items=SCALED(weights=0.25))
    both = mixed_of(inner, make_cache(tmp_path), fraction=0.3, items=SCALED(weights=0.5))
    sums = {round(float(label.sum()), 4) for _, label in items_of(both)}
    assert sums == {0.25, 0.5, 1.0}
    assert both.targets == real.targets
    outer = mixed_of(inner, make_cache(tmp_path), fraction=0.3, items=SCALED())
    assert outer.has_weights


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"items": ItemFormat(weights=0.5)}, ValueError, r"class indices. Give `soft_labels="),
        ({"items": SCALED(weights=1.5)}, ValueError, r"in \[0, 1\], row 0 has 1.5"),
        ({"items": SCALED(weights=np.ones(3))}, ValueError, r"shape \(3,\), the cache has 21"),
        ({"items": SCALED(weights=0.0)}, MismatchError, "the filters or weights leave none"),
        ({"draw": WeightedDraws(-0.1)}, ValueError, r"in \[0, 1\], row 0 has -0.1"),
        (
            {"draw": WeightedDraws(0.5), "fraction": None, "mode": "append", "ratio": 1.0},
            ValueError,
            'Use mode="replace", or `mixing.Weighted`',
        ),
    ],
)
def test_weights_that_cannot_be_served_are_refused(real, cache, options, error, message):
    with pytest.raises(error, match=message):
        mixed_of(real, cache, **options)


def test_losses_that_would_misread_scaled_labels_are_refused():
    mixing.check_loss(nn.CrossEntropyLoss())
    mixing.check_loss(F.cross_entropy)
    with pytest.raises(ValueError, match=r"`label_smoothing` is 0.1.*WeightedDraws"):
        mixing.check_loss(nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.raises(TypeError, match=r"`loss` is a BCEWithLogitsLoss.*WeightedDraws"):
        mixing.check_loss(nn.BCEWithLogitsLoss())


def test_the_trainer_refuses_to_smooth_scaled_labels(real, cache):
    pytest.importorskip("transformers")
    from synthaug.huggingface import SetEpoch

    smooth = SimpleNamespace(label_smoothing_factor=0.1)
    scaled = DataLoader(mixed_of(real, cache, items=SCALED(weights=0.5)))
    with pytest.raises(ValueError, match=r"`label_smoothing` is 0\.1"):
        SetEpoch().on_train_begin(smooth, None, None, train_dataloader=scaled)
    SetEpoch().on_train_begin(smooth, None, None, train_dataloader=DataLoader(real))


def test_an_evaluation_trains_on_the_weighted_loss(real, tmp_path):
    test = real_images((9, 9, 9))
    pixels = torch.arange(200, 227, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 6, 5)
    test = type(test)(pixels, test.labels, CLASSES)
    cache = make_cache(tmp_path)
    config = ClassifierConfig(steps=3, batch_size=20, device="cpu")
    arms = {
        "half": mixed_of(real, cache, items=SCALED(weights=0.5)),
        "whole": mixed_of(real, cache, items=SCALED()),
    }
    report = evaluate(arms, test=test, seeds=1, config=config, progress=False, allow_overlap=True)
    losses = {run.arm: run.loss_curve for run in report.runs}
    assert losses["half"][0][1] < losses["whole"][0][1]
