"""Classes that get rarer one after the other, and accuracies by class."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from synthaug._images.source import ImageSource
from synthaug.errors import DataError
from synthaug.evaluation import Arm, EvaluationReport, balanced_arms, long_tail
from synthaug.evaluation._fit import _LossByClass, balanced_order
from synthaug.evaluation._gains import area_under_curve
from synthaug.evaluation._inputs import ArmImages, Batches
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
    assert report.group_accuracies("a") == pytest.approx(np.nanmean(by_class, axis=1))
    assert report.groups == {"all": [0, 1]}
    assert "Many" not in report.caption()


# Baselines that count rare classes more


def batches(images: LabeledImages) -> Batches:
    return Batches(ImageSource.open(images), images.classes, torch.device("cpu"))


def test_balanced_batches_have_all_classes_equally_often_and_every_image_of_one() -> None:
    by_class = [np.array([3, 5]), np.array([0, 1, 2, 4, 6, 7]), np.array([8])]

    def rows(steps: range, size: int, seed: int = 0) -> list[int]:
        parts = [balanced_order(by_class, size, seed=seed, step=step) for step in steps]
        return [int(i) for part in parts for _, some in part for i in some]

    drawn = rows(range(9), 4)
    assert np.bincount(drawn).tolist() == [2, 2, 2, 6, 2, 6, 2, 2, 12]
    for start in range(0, 36, 3):
        assert sorted(next(c for c in range(3) if i in by_class[c]) for i in drawn[start:][:3]) == [
            0,
            1,
            2,
        ]
    assert rows(range(4), 9) == rows(range(36), 1) == drawn
    assert rows(range(9), 4, seed=1) != drawn


def test_classes_are_drawn_equally_often_where_labels_are_vectors() -> None:
    class Soft(Dataset[Any]):
        classes = ("a", "b", "c")

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            c = [0, 0, 0, 1, 2, 2][index]
            return torch.zeros(1, 4, 4, dtype=torch.uint8), torch.eye(3)[c] * 0.8 + 0.2 / 3

    images = Batches(ImageSource.open(Soft()), Soft.classes, torch.device("cpu"))
    by_class = ArmImages(images, balanced=True).rows_by_class
    assert [rows.tolist() for rows in by_class] == [[0, 1, 2], [3], [4, 5]]


def test_weights_and_offsets_are_those_of_the_papers_and_of_the_own_rows_alone() -> None:
    real = balanced(6, 3).subset([0, 1, 2, 3, 4, 6, 9, 12])  # 5, 2 and 1 of each class
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    each = F.cross_entropy(logits, labels, reduction="none")

    def loss(labels: Tensor, **way: Any) -> Tensor:
        images = ArmImages(batches(real), batches(balanced(2, 3)), 0.4, **way)
        losses = _LossByClass.of(images, 5, 5, torch.device("cpu"))  # the last two rows are added
        mean = losses.mean(logits, labels)
        assert mean.item() == pytest.approx(losses.by_row(logits, labels).mean().item())
        return mean

    assert torch.equal(loss(labels), F.cross_entropy(logits, labels))
    counts = np.array([5, 2, 1])
    weights = 0.1 / (1 - 0.9**counts)
    weights *= 8 / (counts * weights).sum()
    expected = (each * torch.tensor([*weights, 1, 1])).mean().item()
    assert loss(labels, effective_number=0.9).item() == pytest.approx(expected)
    soft = F.one_hot(labels, 3).float()
    assert loss(soft, effective_number=0.9).item() == pytest.approx(expected)
    assert torch.equal(loss(labels, effective_number=0.0), each.mean())
    near = loss(labels, effective_number=1 - 1e-12).item()  # weights inverse to the counts
    inverse = 8 / 3 / counts
    assert near == pytest.approx((each * torch.tensor([*inverse, 1, 1])).mean().item(), rel=1e-3)
    shifted = logits.clone()
    shifted[:3] += 1.5 * torch.from_numpy(np.log(counts / 8)).float()
    expected = F.cross_entropy(shifted, labels).item()
    assert loss(labels, logit_adjustment=1.5).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (
            {"balanced": True, "logit_adjustment": 1.0},
            "`balanced` and `logit_adjustment` of",
        ),
        ({"effective_number": 1.0}, r"`effective_number` must be in \[0, 1\)"),
        ({"logit_adjustment": 0.0}, "`logit_adjustment` must be positive"),
    ],
)
def test_arms_that_count_rare_classes_twice_or_wrongly_are_refused(way, message) -> None:
    with pytest.raises(ValueError, match=message):
        Arm(balanced(2), **way)
    with pytest.raises(ValueError, match="`names` must be one of 'balanced', 'effective-number'"):
        balanced_arms(balanced(2), ["focal"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`names` holds 'balanced' more than once"):
        balanced_arms(balanced(2), ["balanced", "balanced"])
    no: Any = "no"
    with pytest.raises(TypeError, match="`balanced` is a str, expected True or False"):
        Arm(balanced(2), balanced=no)


# Groups of classes


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    tail = long_tail(balanced(40, 3), imbalance=10)  # 40, 12 and 4 images
    arms = {"real": tail, **balanced_arms(tail)}
    options = {"seeds": 2, "model": linear, "allow_overlap": True, "class_sizes": (5, 12), **FAST}
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (30, 1, 4, 4), np.uint8))
    labels = np.repeat([0, 1, 2], (15, 10, 5))
    return evaluate(arms, test=LabeledImages(pixels, labels, ("a", "b", "c")), **options)


def test_groups_of_classes_are_in_table_frame_and_file(report, tmp_path) -> None:
    assert report.train_counts == [40, 12, 4]
    assert report.groups == {"all": [0, 1, 2], "many": [0], "medium": [1], "few": [2]}
    by_class = report.class_accuracies("real, balanced")
    assert report.group_accuracies("real, balanced").tolist() == by_class.mean(1).tolist()
    assert report.group_accuracies("real, balanced", "few").tolist() == by_class[:, 2].tolist()
    worst = report.worst_class("real, balanced")
    assert by_class.mean(0)[worst] == by_class.mean(0).min()
    header, _, row, *_ = report.rows()
    assert header[4:9] == ["balanced %", "many %", "medium %", "few %", "worst class %"]
    assert row[8].startswith(f"{100 * report.group_accuracies(row[0], 'worst').mean():.2f} ±")
    assert "classes with more than 12, 5 to 12, and fewer than 5 training" in report.caption()
    frame = report.to_frame()
    assert frame["few accuracy"].tolist() == frame["accuracy, c"].tolist()
    path = report.to_json(tmp_path / "report.json")
    saved = json.loads(path.read_text())["by_class_size"]["real, balanced"]
    assert saved["balanced"] == pytest.approx(by_class.mean())
    assert list(saved) == ["balanced", "many", "medium", "few", "worst class"]
    assert EvaluationReport.from_json(path) == report
    assert "rare classes drawn as often as others" in report.html_sections()
    with pytest.raises(ValueError, match=r"`group` 'tail' is not a fixed group.*'all', 'many'"):
        report.group_accuracies("real", "tail")


def test_a_gain_in_balanced_accuracy_counts_every_class_alike(report) -> None:
    gain = report.difference("real, logit-adjustment", group="all")
    theirs = report.class_accuracies("real")
    ours = report.class_accuracies("real, logit-adjustment")
    assert gain.mean == pytest.approx((ours - theirs).mean())
    hits = [
        np.array([[int(x) for x in run.correct] for run in report.of(arm)]).mean(0)
        for arm in ("real, logit-adjustment", "real")
    ]
    weights = 30 / 3 / np.repeat([15, 10, 5], (15, 10, 5))
    images = (weights * (hits[0] - hits[1])).std(ddof=1) / 30**0.5
    assert gain.image_error == pytest.approx(images)
    few = report.difference("real, balanced", group="few")
    assert few == report.difference("real, balanced", class_name="c")
    with pytest.raises(ValueError, match="`class_name` and `group` exclude each other"):
        report.difference("real, balanced", class_name="c", group="few")
    with pytest.raises(ValueError, match="`group` 'worst' is not a fixed group of classes"):
        report.difference("real, balanced", group="worst")


def test_sizes_of_classes_come_in_order(report) -> None:
    with pytest.raises(ValueError, match=r"`class_sizes` must be at least 9, got 3\. First"):
        evaluate({"a": balanced(4)}, test=balanced(4), class_sizes=(9, 3))
    with pytest.raises(ValueError, match=r"`class_sizes` must be two whole numbers, got \(9,\)"):
        evaluate({"a": balanced(4)}, test=balanced(4), class_sizes=(9,))


# Two classes


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 80), rng.integers(0, 9, 80).astype(np.float32)  # with ties
    pairs = scores[labels == 1][:, None] - scores[labels == 0]
    assert area_under_curve(scores, labels) == pytest.approx(((np.sign(pairs) + 1) / 2).mean())
    assert area_under_curve(scores, np.zeros(80, np.int64)) is None
    assert area_under_curve(np.full(80, np.nan, np.float32), labels) is None


def test_two_classes_have_an_area_under_the_curve(tmp_path) -> None:
    def bright(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        network = linear(num_classes, image_shape)
        with torch.no_grad():
            next(network.parameters())[1] = 9.0
        return network

    pixels = torch.arange(0, 240, 20).to(torch.uint8)[:, None, None, None].expand(12, 1, 4, 4)
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1])
    images = LabeledImages(pixels.contiguous(), labels, ("dark", "bright"))
    still = {"learning_rate": 1e-9, "augment": None, "allow_overlap": True}
    report = evaluate({"a": images}, test=images, seeds=1, model=bright, **still, **FAST)
    places = np.arange(12)
    expected = (places[labels == 1][:, None] > places[labels == 0]).mean()
    assert report.aucs("a") == pytest.approx([expected])
    assert report.rows()[0][5:6] == ["AUC %"]
    assert report.rows()[1][5] == f"{100 * expected:.2f}"
    assert EvaluationReport.from_json(report.to_json(tmp_path / "two.json")) == report
