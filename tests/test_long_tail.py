"""Classes that get rarer one after the other, and accuracies by class."""

import numpy as np
import pytest
import torch

from synthaug.errors import DataError
from synthaug.evaluation import long_tail
from synthaug.images import LabeledImages
from tests.classifiers import FAST, evaluate, linear


def balanced(per_class: int, classes: int = 10) -> LabeledImages:
    labels = np.arange(per_class * classes) % classes
    pixels = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    pixels[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    return LabeledImages(pixels, labels, tuple("abcdefghij"[:classes]))


def test_the_sizes_are_those_of_cifar10_lt() -> None:
    real = balanced(5000)
    tail = long_tail(real, imbalance=100)
    counts = np.bincount(real.labels[tail.indices])
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert len(tail) == 12_406
    assert list(tail.indices) == sorted(tail.indices)


def test_which_images_are_kept_is_a_function_of_the_seed_and_nested() -> None:
    real = balanced(50)
    kept = [
        set(long_tail(real, imbalance=m, seed=s).indices) for m, s in [(10, 0), (50, 0), (10, 1)]
    ]
    assert kept[1] < kept[0]
    assert kept[2] != kept[0]
    assert len(long_tail(real, imbalance=1)) == 500
    with pytest.raises(DataError, match="Class 'j' would have no image: the smallest class"):
        long_tail(real, imbalance=51)
    with pytest.raises(ValueError, match="`imbalance` must be at least 1"):
        long_tail(real, imbalance=0.5)


def test_accuracies_by_class_have_a_row_per_seed() -> None:
    real, few = balanced(8, 3), balanced(6, 3)
    test = few.subset(few.labels < 2)
    report = evaluate({"a": real}, test=test, seeds=2, model=linear, allow_overlap=True, **FAST)
    by_class = report.class_accuracies("a")
    assert by_class.shape == (2, 3)
    assert np.isnan(by_class[:, 2]).all()
    assert np.nanmean(by_class, axis=1) == pytest.approx(report.accuracies("a"))
