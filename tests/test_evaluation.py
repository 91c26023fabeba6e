import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from synthaug import MixedDataset, Plan, SynthCache
from synthaug._images.source import ImageSource
from synthaug._plan import balanced_quota
from synthaug.errors import DataError, DivergedError, MismatchError
from synthaug.evaluation import (
    CAS,
    AffineAugment,
    Arm,
    ClassifierConfig,
    EvaluationReport,
    Run,
    StandardAugment,
    class_probabilities,
    scaling_arms,
    standard_arms,
)
from synthaug.evaluation._augment import apply_augment, standard_augment
from synthaug.evaluation._evaluate import Job
from synthaug.evaluation._fit import FitSettings, batch_order, learning_rate_at
from synthaug.images import LabeledImages
from synthaug.mixing import ItemFormat
from tests.classifiers import configured, evaluate
from tests.command_line import succeed
from tests.trackers import Noted

FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "device": "cpu"}


@pytest.fixture
def train(digits: LabeledImages) -> LabeledImages:
    return digits.subset(np.arange(60))


@pytest.fixture
def validation(digits: LabeledImages) -> LabeledImages:
    return digits.subset(np.arange(100, 180))


@pytest.fixture
def test(digits: LabeledImages) -> LabeledImages:
    return digits.subset(np.arange(200, 290))


def linear(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))


class Watched(nn.Module):
    """A linear classifier that notes its initial weights and all images that it is shown."""

    made: list["Watched"]

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = linear(num_classes, image_shape)
        self.initial = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.trained_on: list[Tensor] = []
        self.tested_on: list[Tensor] = []
        Watched.made.append(self)

    def forward(self, images: Tensor) -> Tensor:
        (self.trained_on if self.training else self.tested_on).append(images.clone())
        logits: Tensor = self.net(images)
        return logits


@pytest.fixture
def watched() -> list[Watched]:
    Watched.made = []
    return Watched.made


def trained(networks: list[Watched]) -> list[Watched]:
    """Without those that were built only to be looked at."""
    return [network for network in networks if network.trained_on]


def results(report: EvaluationReport) -> list[Run]:
    return [replace(run, seconds=0.0) for run in report.runs]


# Augmentation


def test_every_shifted_image_is_one_of_the_windows_of_the_padded_image() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (3, 5, 6), dtype=torch.uint8)
    padded = np.full((3, 5 + 4, 6 + 4), 7, np.uint8)
    padded[:, 2:-2, 2:-2] = image.numpy()
    windows = {
        padded[:, y : y + 5, x : x + 6][:, :, ::order].tobytes()
        for y in range(5)
        for x in range(5)
        for order in (1, -1)
    }
    batch = image.expand(2000, -1, -1, -1)
    out = StandardAugment(padding=2, horizontal_flip=True, fill=7)(batch)
    assert {one.numpy().tobytes() for one in out} == windows  # no other one, and each of the 50


def test_without_padding_and_mirroring_images_stay_as_they_are(train: LabeledImages) -> None:
    pixels = train.read(np.arange(10))
    assert torch.equal(StandardAugment(padding=0)(pixels), pixels)


def test_half_of_the_images_are_mirrored() -> None:
    image = torch.arange(4, dtype=torch.uint8).expand(4000, 1, 1, 4)
    out = StandardAugment(padding=0, horizontal_flip=True)(image)
    share = (out[:, 0, 0, 0] == 3).float().mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_an_affine_map_of_no_extent_keeps_the_image(train: LabeledImages) -> None:
    pixels = train.read(np.arange(10))
    still = AffineAugment(max_shift=0, max_rotation=0, max_scale=0)
    assert torch.equal(still(pixels), pixels)


def test_affine_maps_move_the_center_of_mass_no_further_than_they_may() -> None:
    pixels = torch.zeros(3000, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 255
    out = AffineAugment(max_shift=1.5, max_rotation=0, max_scale=0)(pixels).double()[:, 0]
    at = torch.arange(9, dtype=torch.float64) - 4
    moved_x = (out.sum(1) * at).sum(1) / out.sum((1, 2))
    moved_y = (out.sum(2) * at).sum(1) / out.sum((1, 2))
    for moved in (moved_x, moved_y):
        assert moved.abs().max() < 1.51
        assert moved.std().item() == pytest.approx(1.5 / math.sqrt(3), rel=0.06)  # uniform
    assert abs(np.corrcoef(moved_x, moved_y)[0, 1]) < 4 / math.sqrt(3000)


def test_affine_maps_turn_about_the_center_and_no_further_than_they_may() -> None:
    pixels = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    pixels[:, :, 16, 28] = 255  # 12 pixels to the right of the center
    out = AffineAugment(max_shift=0, max_rotation=20, max_scale=0)(pixels).double()[:, 0]
    at = torch.arange(33, dtype=torch.float64) - 16
    x = (out.sum(1) * at).sum(1) / out.sum((1, 2))
    y = (out.sum(2) * at).sum(1) / out.sum((1, 2))
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full_like(x, 12), atol=0.5, rtol=0)
    angle = torch.atan2(y, x).rad2deg()
    assert 18 < angle.max() < 22
    assert -22 < angle.min() < -18


def test_half_of_affine_maps_are_mirrored_if_asked_for() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    still = AffineAugment(max_shift=0, max_rotation=0, max_scale=0, horizontal_flip=True)
    out = still(image.expand(2000, 1, 8, 8))
    mirrored = (out == image.flip(-1)).flatten(1).all(dim=1)
    assert ((out == image).flatten(1).all(dim=1) ^ mirrored).all()
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("horizontal_flip", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 32, 24), (3, 32, 32)])
def test_the_standard_augmentation_mirrors_if_asked_for_and_never_by_itself(
    shape: tuple[int, int, int], horizontal_flip: bool
) -> None:
    chosen = standard_augment(shape, horizontal_flip=horizontal_flip)
    assert isinstance(chosen, AffineAugment if shape[1] < 16 else StandardAugment)
    assert chosen.horizontal_flip is horizontal_flip
    if isinstance(chosen, StandardAugment):
        assert chosen.padding == min(shape[1:]) // 8


def test_mirroring_reaches_every_arm_with_the_standard_augmentation(
    train: LabeledImages, test: LabeledImages
) -> None:
    arms: dict[str, Any] = {"plain": Arm(train), "a": train, "b": Arm(train, augment="standard")}
    report = evaluate(arms, test=test, seeds=1, model=linear, horizontal_flip=True, **FAST)
    mirrors = {name: "horizontal_flip=True" in str(f["augment"]) for name, f in report.arms.items()}
    assert mirrors == {"plain": False, "a": True, "b": True}


def test_a_torchvision_transform_draws_anew_for_every_image() -> None:
    image = torch.arange(4, dtype=torch.uint8).expand(200, 1, 1, 4)
    out = apply_augment(v2.RandomHorizontalFlip(0.5), image)
    assert set(out[:, 0, 0, 0].tolist()) == {0, 3}


def test_an_augmentation_must_keep_dtype_and_shape(
    train: LabeledImages, test: LabeledImages
) -> None:
    with pytest.raises(ValueError, match=r"`augment` made torch.float32 \(16, 1, 8, 8\)"):
        evaluate({"a": train}, test=test, augment=v2.ToDtype(torch.float32), **FAST)
    with pytest.raises(ValueError, match=r"\(16, 1, 4, 4\)"):
        evaluate({"a": train}, test=test, augment=v2.CenterCrop(4), **FAST)


# One step is a pure function of (seed, step)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (3, 10), (7, 7), (1, 4)])
def test_batches_cut_one_permutation_after_another(size: int, batch_size: int) -> None:
    steps = 21
    stream = [
        (epoch, int(index))
        for step in range(steps)
        for epoch, indices in batch_order(size, batch_size, seed=5, step=step)
        for index in indices
    ]
    assert len(stream) == steps * batch_size
    assert [epoch for epoch, _ in stream] == [i // size for i in range(len(stream))]
    epochs = len(stream) // size
    orders = [[i for e, i in stream if e == epoch] for epoch in range(epochs)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 5:
        assert len(set(map(tuple, orders))) == epochs


def test_the_items_of_a_step_do_not_depend_on_the_steps_before() -> None:
    def items(seed: int, step: int) -> list[tuple[int, list[int]]]:
        return [(e, i.tolist()) for e, i in batch_order(100, 8, seed=seed, step=step)]

    forward = [items(1, step) for step in range(40)]
    backward = [items(1, step) for step in reversed(range(40))]
    assert forward == backward[::-1]
    assert len({str(x) for x in forward}) == 40
    assert forward != [items(2, step) for step in range(40)]


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    settings = FitSettings.of(
        ClassifierConfig(steps=110, learning_rate=2.0, warmup_steps=10), "float32"
    )
    rates = [learning_rate_at(step, settings) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * (1 + 1e-3) / 2)  # half way down
    assert rates[110] == pytest.approx(2.0e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# Fairness


def test_arms_share_initial_weights_and_steps_and_differ_in_images_only(
    digits: LabeledImages, test: LabeledImages, watched: list[Watched]
) -> None:
    arms = {"small": digits.subset(np.arange(20)), "large": digits.subset(np.arange(150))}
    report = evaluate(arms, test=test, seeds=2, model=Watched, **FAST)
    small0, large0, small1, large1 = trained(watched)
    assert all(len(network.trained_on) == 4 for network in watched if network.trained_on)
    assert all(len(x) == 8 for network in watched for x in network.trained_on)
    for first, second, equal in [
        (small0, large0, True),
        (small1, large1, True),
        (small0, small1, False),
    ]:
        same = torch.equal(first.initial["1.weight"], second.initial["1.weight"])
        assert same is equal
    assert not torch.equal(small0.trained_on[0], large0.trained_on[0])
    assert {(run.steps, run.images_seen) for run in report.runs} == {(4, 32)}


def test_two_arms_of_equal_data_give_equal_runs_and_another_seed_another_order(
    train: LabeledImages, test: LabeledImages, watched: list[Watched]
) -> None:
    indexed = Indexed(train)
    report = evaluate({"a": train, "b": indexed}, test=test, seeds=2, model=Watched, **FAST)
    a0, b0, a1, _ = trained(watched)
    assert torch.equal(torch.cat(a0.trained_on), torch.cat(b0.trained_on))
    assert not torch.equal(torch.cat(a0.trained_on), torch.cat(a1.trained_on))
    assert report.accuracies("a").tolist() == report.accuracies("b").tolist()


def test_equal_arguments_give_the_same_report_to_the_last_bit(
    train: LabeledImages, test: LabeledImages, validation: LabeledImages
) -> None:
    def run() -> list[Run]:
        torch.rand(3)  # the caller's random state must not matter
        return results(evaluate({"a": train}, test=test, validation=validation, seeds=2, **FAST))

    first, second = run(), run()
    assert first == second
    assert first[0].loss_curve != first[1].loss_curve


def test_the_callers_random_state_is_left_alone(
    train: LabeledImages, test: LabeledImages, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    evaluate({"a": train}, test=test, seeds=1, output_dir=tmp_path, **FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_networks_own_randomness_is_the_same_whatever_the_augmentation_draws(
    train: LabeledImages, test: LabeledImages
) -> None:
    masks: list[Tensor] = []

    class Dropping(nn.Module):
        def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
            super().__init__()
            self.net = linear(num_classes, image_shape)

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                masks.append(nn.functional.dropout(torch.ones(16)))
            logits: Tensor = self.net(images)
            return logits

    arms: dict[str, Any] = {"none": Arm(train), "shifted": train}
    evaluate(arms, test=test, seeds=1, model=Dropping, **FAST)
    assert len(masks) == 8
    assert torch.equal(torch.stack(masks[:4]), torch.stack(masks[4:]))
    assert len({str(mask.tolist()) for mask in masks}) == 4


def test_digits_are_learned(digits: LabeledImages) -> None:
    mixed_up = np.random.default_rng(0).permutation(500)  # one person's digits follow each other
    few = digits.subset(mixed_up[:200])
    report = evaluate(
        {"real": few},
        test=digits.subset(mixed_up[200:]),
        seeds=1,
        **{**FAST, "steps": 60, "batch_size": 32},
    )
    assert report.mean("real") > 0.8
    losses = [loss for _, loss in report.runs[0].loss_curve]
    assert losses[-1] < losses[0] / 2


def test_weight_decay_is_by_default_as_strong_in_short_trainings_as_in_long_ones(
    train: LabeledImages, test: LabeledImages
) -> None:
    def decay(steps: int, learning_rate: float) -> Any:
        arguments = {**FAST, "steps": steps, "learning_rate": learning_rate}
        report = evaluate({"a": train}, test=test, seeds=1, model=linear, **arguments)
        return report.settings["weight_decay"]

    assert decay(40, 0.5) == pytest.approx(0.5 / 20)
    assert decay(80, 0.5) == pytest.approx(0.5 / 40)
    assert decay(40, 1.0) == pytest.approx(0.5 / 40)
    assert decay(4, 0.05) == 0.05  # no more than this was ever tried


# Model selection and the test set


def test_the_weights_with_the_best_validation_accuracy_are_the_ones_tested(
    train: LabeledImages,
    validation: LabeledImages,
    test: LabeledImages,
    watched: list[Watched],
) -> None:
    report = evaluate(
        {"a": train},
        test=test,
        validation=validation,
        seeds=1,
        model=Watched,
        learning_rate=0.3,
        augment=None,
        eval_every=1,
        **{**FAST, "steps": 40},
    )
    (run,) = report.runs
    curve = dict(run.validation_curve)
    assert sorted(curve) == list(range(1, 41))
    best = max(curve.values())
    assert curve[40] < best  # else this test would show nothing
    assert run.selected_step == max(step for step in curve if curve[step] == best)
    assert run.validation_accuracy == best

    (network,) = trained(watched)
    network.eval()

    def accuracy(data: LabeledImages) -> float:
        images = data.read(np.arange(len(data))).float() / 127.5 - 1
        with torch.no_grad():
            return float((network(images).argmax(1).numpy() == data.labels).mean())

    assert accuracy(validation) == pytest.approx(best)
    assert accuracy(test) == pytest.approx(run.test_accuracy)


def test_among_equally_good_steps_the_last_one_is_taken(
    train: LabeledImages, validation: LabeledImages, test: LabeledImages
) -> None:
    report = evaluate(
        {"a": train}, test=test, validation=validation, seeds=1, model=linear,
        learning_rate=1e-12, eval_every=1, **FAST,
    )  # fmt: skip
    assert len({accuracy for _, accuracy in report.runs[0].validation_curve}) == 1
    assert report.runs[0].selected_step == 4


def test_without_a_validation_set_the_last_weights_are_tested(
    train: LabeledImages, test: LabeledImages
) -> None:
    (run,) = evaluate({"a": train}, test=test, seeds=1, **FAST).runs
    assert (run.selected_step, run.validation_accuracy, run.validation_curve) == (4, None, [])


def test_no_network_sees_the_test_images_before_its_training_and_choice_are_over(
    train: LabeledImages,
    validation: LabeledImages,
    test: LabeledImages,
    watched: list[Watched],
) -> None:
    evaluate(
        {"a": train, "b": train}, test=test, validation=validation, model=Watched, seeds=2,
        eval_every=2, **FAST,
    )  # fmt: skip
    expected = test.read(np.arange(len(test))).float() / 127.5 - 1
    keys = {image.numpy().tobytes() for image in expected}
    assert len(trained(watched)) == 4
    for network in trained(watched):
        *_, first_choice, second_choice, last = network.tested_on
        assert torch.equal(last, expected)
        assert len(first_choice) == len(second_choice) == len(validation)
        seen_before = torch.cat([*network.tested_on[:-1], *network.trained_on])
        assert not keys & {image.numpy().tobytes() for image in seen_before}


def test_accuracy_by_class_adds_up_to_the_accuracy(
    train: LabeledImages, test: LabeledImages
) -> None:
    without_nine = test.subset(np.flatnonzero(test.labels != 9))
    (run,) = evaluate({"a": train}, test=without_nine, seeds=1, **FAST).runs
    assert run.class_accuracies[9] is None
    counts = np.bincount(without_nine.labels, minlength=10)[:9]
    by_class = np.array(run.class_accuracies[:9], np.float64)
    assert (by_class * counts).sum() / counts.sum() == pytest.approx(run.test_accuracy)


# Data sets of many kinds


class Indexed(Dataset[Any]):
    """A data set of which nothing is known but its items."""

    def __init__(self, images: LabeledImages) -> None:
        self.images = images
        self.classes = images.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index]


class Mixture(Dataset[Any]):
    """Like `MixedDataset`: item i of epoch e is synthetic if i + e is odd."""

    def __init__(self, real: LabeledImages, synthetic: LabeledImages) -> None:
        self.real, self.synthetic = real, synthetic
        self.classes = real.classes
        self.epoch = -1
        self.asked: list[tuple[int, list[int]]] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def synthetic_rows(self, indices: Any) -> Any:
        shifted = np.asarray(indices) + self.epoch
        return np.where(shifted % 2 == 1, shifted % len(self.synthetic), -1)

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = int(self.synthetic_rows(index))
        return self.real[index] if row < 0 else self.synthetic[row]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        self.asked.append((self.epoch, list(indices)))
        return [self[i] for i in indices]


def test_a_mixture_is_asked_through_its_own_indexing_epoch_by_epoch(
    digits: LabeledImages, test: LabeledImages, watched: list[Watched]
) -> None:
    mixture = Mixture(digits.subset(np.arange(12)), digits.subset(np.arange(20, 50)))
    arms = {"mixed": Arm(mixture)}
    report = evaluate(arms, test=test, seeds=1, model=Watched, **FAST)
    asked = mixture.asked[-5:]  # 4 steps of 8, cut at the ends of epochs of 12 items
    assert [epoch for epoch, _ in asked] == [0, 0, 1, 1, 2]
    for epoch in (0, 1):
        assert sorted(i for e, part in asked if e == epoch for i in part) == list(range(12))
    expected = []
    for epoch, indices in asked:
        mixture.set_epoch(epoch)
        expected += [np.asarray(mixture[i][0], np.float32) / 127.5 - 1 for i in indices]
    np.testing.assert_allclose(
        torch.cat(trained(watched)[0].trained_on)[:, 0], np.stack(expected), atol=1e-6
    )
    real: set[int] = set()
    synthetic: set[int] = set()
    for epoch, indices in asked:
        mixture.set_epoch(epoch)
        for i in indices:
            row = int(mixture.synthetic_rows(i))
            (real if row < 0 else synthetic).add(i if row < 0 else row)
    (run,) = report.runs
    assert (run.unique_real, run.unique_synthetic) == (len(real), len(synthetic))


@pytest.fixture
def cache(digits: LabeledImages, tmp_path: Path) -> SynthCache:
    quota = balanced_quota(10, per_class=3)
    plan = Plan.build(quota, classes=digits.classes, settings={}, seed=0)
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(1, 8, 8), manifest={})
    rows = [int(np.flatnonzero(digits.labels == c)[k + 40]) for c in range(10) for k in range(3)]
    cache.write(np.arange(30), digits.read(rows))
    return cache


def test_a_mixed_data_set_shows_the_same_images_with_and_without_a_transform(
    train: LabeledImages, test: LabeledImages, cache: SynthCache, watched: list[Watched]
) -> None:
    def mixed(**changed: Any) -> MixedDataset:
        return MixedDataset(train, cache, audit=None, mode="append", ratio=0.5, **changed)

    same = mixed(transform=v2.Identity())  # so it goes through PIL, item by item
    halves = Subset(mixed(), list(range(90)))
    arms = {"a": Arm(mixed()), "b": Arm(same), "c": Arm(halves)}
    report = evaluate(arms, test=test, seeds=1, model=Watched, **{**FAST, "steps": 30})
    shown = [torch.cat(network.trained_on) for network in trained(watched)]
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])  # epochs reach the mixture inside
    counts = {run.arm: (run.unique_real, run.unique_synthetic) for run in report.runs}
    assert set(counts.values()) == {(60, 30)}
    first, second = shown[0][:90], shown[0][90:180]  # both epochs whole, so the order is all
    assert sorted(x.sum().item() for x in first) != sorted(x.sum().item() for x in second)


def test_a_mixture_is_given_back_in_the_epoch_that_it_was_in(
    train: LabeledImages, test: LabeledImages, cache: SynthCache, tmp_path: Path
) -> None:
    mixed = MixedDataset(train, cache, audit=None, fraction=0.5)
    mixed.set_epoch(7)

    def diverging(*shape: Any) -> nn.Module:
        network = linear(*shape)
        for weight in network.parameters():
            weight.data.fill_(torch.nan)
        return network

    arms = {"mixed": Subset(mixed, list(range(50)))}
    evaluate(arms, test=test, seeds=1, output_dir=tmp_path, **{**FAST, "steps": 20})
    assert mixed.epoch == 7
    with pytest.raises(DivergedError):
        evaluate(arms, test=test, seeds=1, model=diverging, **FAST)
    assert mixed.epoch == 7


def test_an_arm_with_soft_labels_is_trained_on_them(
    train: LabeledImages, test: LabeledImages, cache: SynthCache
) -> None:
    def mixed(**changed: Any) -> MixedDataset:
        return MixedDataset(train, cache, audit=None, fraction=1.0, **changed)

    one_hot, uniform = np.eye(10)[cache.labels], np.full((30, 10), 0.1)
    backwards = test.subset(range(len(test)))  # so that classes must be matched by name
    backwards.classes, backwards.labels = test.classes[::-1], 9 - test.labels
    arms = {
        "hard": Arm(mixed()),
        "one-hot": Arm(mixed(items=ItemFormat(soft_labels=one_hot))),
        "uniform": Arm(mixed(items=ItemFormat(soft_labels=uniform))),
    }
    options: dict[str, Any] = {**FAST, "steps": 40, "seeds": 1, "model": linear}
    hard, soft, flat = (
        dict(run.loss_curve) for run in evaluate(arms, test=backwards, **options).runs
    )
    assert soft == pytest.approx(hard, abs=1e-5)
    assert min(hard.values()) < math.log(10) - 0.5
    assert min(flat.values()) >= math.log(10) - 1e-6  # the entropy of these labels


def test_a_mixture_whose_length_changes_is_refused(
    train: LabeledImages, test: LabeledImages, cache: SynthCache
) -> None:
    growing = MixedDataset(train, cache, audit=None, mode="append", ratio=lambda e: 0.1 * e)
    with pytest.raises(ValueError, match="'growing' has another length in every epoch"):
        evaluate({"growing": growing}, test=test, seeds=1, **FAST)


def test_an_output_directory_that_is_a_file_is_named_before_any_training(
    train: LabeledImages, test: LabeledImages, tmp_path: Path, watched: list[Watched]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        evaluate({"a": train}, test=test, model=Watched, output_dir=tmp_path / "file", **FAST)
    assert not watched


def test_the_four_arms_count_the_real_and_synthetic_images_that_they_saw(
    digits: LabeledImages, test: LabeledImages, cache: SynthCache
) -> None:
    real = digits.subset(np.arange(40))
    passed = Subset(cache, list(range(25)))
    arms = standard_arms(real, mixed=ConcatDataset([real, cache]), synthetic=passed)
    assert list(arms) == [
        "real",
        "real, augmented",
        "real + synthetic",
        CAS,
    ]
    assert ImageSource.open(passed).is_plain
    report = evaluate(arms, test=test, seeds=1, **{**FAST, "steps": 30})
    seen = {run.arm: (run.unique_real, run.unique_synthetic) for run in report.runs}
    assert seen == {
        "real": (40, 0),
        "real, augmented": (40, 0),
        "real + synthetic": (40, 30),
        CAS: (0, 25),
    }
    assert report.arms["real"]["augment"] == "None"
    assert "Augment(" in str(report.arms[CAS]["augment"])
    assert report.mean(CAS) > 0.3  # labels and images of the cache belong together


def test_amounts_are_nested_and_as_many_of_every_class(
    train: LabeledImages, cache: SynthCache
) -> None:
    before: set[int] = set()
    arms = scaling_arms(train, cache, audit=None, ratios=[0, 0.25, 0.5])
    assert arms.pop("real") is train
    for ratio, arm in zip((0.25, 0.5), arms.values(), strict=True):
        assert isinstance(arm, ConcatDataset)
        own: Any = arm.datasets[0]
        part: Any = arm.datasets[1]
        assert own is train
        assert len(part) == round(ratio * len(train))
        counts = np.bincount([part[i][1] for i in range(len(part))], minlength=10)
        assert counts.max() - counts.min() <= 1
        rows = set(part.synthetic_rows(np.arange(len(part))).tolist())
        assert before < rows
        before = rows


def test_amounts_are_trained_for_equal_steps_on_images_that_the_audit_passed(
    train: LabeledImages, cache: SynthCache, test: LabeledImages
) -> None:
    passed = np.ones(len(cache), bool)
    passed[::4] = False
    audit = SimpleNamespace(identity=cache.identity, passed=passed, verdict="pass")
    arms = scaling_arms(train, cache, audit=audit, ratios=[0, 0.25])
    part = arms["real + 0.25 x synthetic"].datasets[1]  # type: ignore[attr-defined]
    assert passed[part.synthetic_rows(np.arange(len(part)))].all()
    report = evaluate(arms, test=test, seeds=1, model=linear, **{**FAST, "steps": 20})
    real, more = report.runs
    assert real.steps == more.steps
    assert real.unique_synthetic == 0 < more.unique_synthetic
    assert "audit: pass" in report.table()


@pytest.mark.parametrize("ratios", ["0,0.02", "[0, 0.02]"])
def test_amounts_from_the_command_line(ratios: str, cache: SynthCache, tmp_path: Path) -> None:
    path, out = tmp_path / "c.h5", tmp_path / "out"
    options = f"--ratios|{ratios}|--steps|2|--seeds|1|--device|cpu|--out|{out}".split("|")
    succeed("evaluate", "digits:train", path, "digits:test", *options, "--allow-overlap")
    report = EvaluationReport.from_json(out.with_suffix(".json"))
    assert report.arm_names == ["real", "real + 0.02 x synthetic"]
    assert report.baseline == "real"


def test_amounts_that_make_no_sense_are_refused_and_large_ones_are_warned_of(
    train: LabeledImages, cache: SynthCache
) -> None:
    for ratios in ([], [-1.0], [1.0, 1.0], [math.inf]):
        with pytest.raises(ValueError, match="`ratios` must be"):
            scaling_arms(train, cache, audit=None, ratios=ratios)
    with (
        pytest.warns(UserWarning, match="3 and losses beyond"),
        pytest.raises(DataError, match="each class needs 24 synthetic images"),
    ):
        scaling_arms(train, cache, audit=None, ratios=[4])


def test_images_are_counted_anew_in_every_run(
    train: LabeledImages, test: LabeledImages, cache: SynthCache
) -> None:
    mixed = MixedDataset(train, cache, audit=None, fraction=0.5)
    report = evaluate({"real": train, "mixed": mixed}, test=test, seeds=2, **{**FAST, "steps": 1})
    real, mixed_runs = report.of("real"), report.of("mixed")
    assert [run.unique_real for run in real] == [8, 8]
    assert all(run.unique_real + run.unique_synthetic <= 8 for run in mixed_runs)
    assert all(run.unique_synthetic > 0 for run in mixed_runs)


def test_labels_are_compared_by_the_name_of_their_class(
    train: LabeledImages, test: LabeledImages
) -> None:
    order = np.random.default_rng(0).permutation(10)
    names = [train.classes[c] for c in order]
    renamed = LabeledImages(
        train.read(np.arange(len(train))), np.argsort(order)[train.labels], names
    )
    plain = evaluate({"a": train}, test=test, seeds=1, **FAST)
    assert results(evaluate({"a": renamed}, test=test, seeds=1, **FAST)) == results(plain)
    other = LabeledImages(
        train.read(np.arange(len(train))), train.labels, [*train.classes[:9], "ten"]
    )
    with pytest.raises(MismatchError, match=r"Arm 'b' has other classes.*Missing: 9; .*: ten\."):
        evaluate({"a": train, "b": other}, test=test, **FAST)


def test_data_sets_without_class_names_are_counted_by_label(
    train: LabeledImages, test: LabeledImages
) -> None:
    def bare(images: LabeledImages) -> TensorDataset:
        labels = torch.from_numpy(np.asarray(images.labels))
        return TensorDataset(images.read(np.arange(len(images))), labels)

    named = evaluate({"a": train}, test=test, seeds=1, **FAST)
    unnamed = evaluate({"a": bare(train)}, test=bare(test), seeds=1, **FAST)
    assert results(named) == results(unnamed)
    assert unnamed.classes == list("0123456789")


def test_a_transform_of_the_data_set_is_part_of_what_is_trained_on(
    train: LabeledImages, test: LabeledImages, watched: list[Watched]
) -> None:
    inverted = train.subset(np.arange(len(train)))
    inverted.transform = lambda image: v2.functional.invert(image)
    assert ImageSource.open(train).is_plain
    assert not ImageSource.open(inverted).is_plain
    arms = {"a": Arm(train), "b": Arm(inverted)}
    evaluate(arms, test=test, seeds=1, model=Watched, **FAST)
    a, b = trained(watched)
    torch.testing.assert_close(torch.cat(a.trained_on), -torch.cat(b.trained_on))


def test_images_shared_with_the_test_or_validation_set_are_refused_with_their_number(
    digits: LabeledImages, test: LabeledImages, validation: LabeledImages
) -> None:
    leaking = digits.subset(np.r_[0:50, 205:208])
    with pytest.raises(
        MismatchError, match=r"3 of 90 images of `test` are in Arm 'b' too.*number 5\."
    ):
        evaluate({"a": digits.subset(np.arange(50)), "b": leaking}, test=test, **FAST)
    leaking_too = digits.subset(np.arange(92, 108))
    with pytest.raises(MismatchError, match="8 of 80 images of `validation` are in Arm 'a'"):
        evaluate({"a": leaking_too}, test=test, validation=validation, **FAST)
    with pytest.raises(MismatchError, match="80 of 80 images of `test` are in `validation`"):
        evaluate({"a": leaking}, test=validation, validation=validation, **FAST)
    report = evaluate({"b": leaking}, test=test, seeds=1, allow_overlap=True, **FAST)
    assert report.settings["overlap"] == {"test": {"Arm 'b'": 3}}


def test_images_of_any_size_can_be_trained_on_if_the_transform_makes_them_one(
    train: LabeledImages, test: LabeledImages
) -> None:
    class Photos(Dataset[Any]):
        """Images of different sizes, one of them with a palette."""

        def __init__(self, transform: Any) -> None:
            self.classes = train.classes
            self.transform = transform

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = train[index]
            image = image.resize((8 + index, 9)).convert("P" if index == 3 else "L")
            return self.transform(image), label

    to_one_shape = v2.Compose([v2.Lambda(lambda x: x.convert("L")), v2.Resize((8, 8))])
    report = evaluate({"a": Photos(to_one_shape)}, test=test, seeds=1, **FAST)
    assert report.runs[0].unique_real == 20


def test_shared_images_are_found_behind_transforms_and_in_both_parts_of_a_mixture(
    digits: LabeledImages, test: LabeledImages
) -> None:
    hidden = digits.subset(np.arange(195, 205))
    hidden.transform = v2.RandomRotation(30)
    with pytest.raises(MismatchError, match="5 of 90 images"):
        evaluate({"a": hidden}, test=test, **FAST)
    mixture = Mixture(digits.subset(np.arange(12)), digits.subset(np.arange(199, 203)))
    with pytest.raises(MismatchError, match="3 of 90 images"):
        evaluate({"a": mixture}, test=test, **FAST)


def test_shared_images_are_found_in_mixtures_inside_wrappers(
    train: LabeledImages, digits: LabeledImages, cache: SynthCache
) -> None:
    mixed = MixedDataset(train, cache, audit=None, mode="append", ratio=0.1)
    seen = LabeledImages(cache.read([7, 29]), cache.labels[[7, 29]], cache.classes)
    assert not (mixed.synthetic_rows() == 29).any()  # it will be served in another epoch
    wrapped: list[Dataset[Any]] = [
        Subset(mixed, range(62)),
        ConcatDataset([train, Subset(mixed, [61])]),
    ]
    for arm in wrapped:
        with pytest.raises(MismatchError, match="2 of 2 images of `test` are in Arm 'a'"):
            evaluate({"a": arm}, test=seen, **FAST)
    apart = Subset(mixed, range(20))
    with pytest.raises(
        MismatchError, match="1 of 2 images of `test`"
    ):  # only real image 19 is shown
        evaluate({"a": apart}, test=train.subset([19, 20]), **FAST)


# Wrong input is found before any training


def test_wrong_arguments_are_named_before_any_training(
    train: LabeledImages, test: LabeledImages, watched: list[Watched]
) -> None:
    def refused(message: str, **changed: Any) -> None:
        arguments = {"arms": {"a": train}, "test": test, "model": Watched, **FAST, **changed}
        arms = arguments.pop("arms")
        with pytest.raises((ValueError, TypeError, MismatchError, DataError), match=message):
            evaluate(arms, **arguments)

    refused("`arms` must map", arms={})
    refused("`arms` must map", arms=[train])
    refused("Names of arms", arms={"": train})
    refused(r"Arm 'e' is empty\.", arms={"e": train.subset(np.zeros(60, bool))})
    refused("Arm 'g' is a generator", arms={"g": (x for x in range(3))})
    refused("`baseline` 'b' is not an arm. Arms: a", baseline="b")
    refused("`seeds` must be at least 1", seeds=0)
    refused(r"`seeds` must be different.*\[1, 1\]", seeds=[1, 1])
    refused("`steps` must be at least 1", steps=0)
    refused("`batch_size` must be at least 1", batch_size=0)
    refused("`eval_every` must be at least 1", eval_every=0)
    refused("`learning_rate` must be positive", learning_rate=0.0)
    refused("`learning_rate` must be a number, got nan", learning_rate=math.nan)
    refused("`weight_decay` must not be negative", weight_decay=-1.0)
    refused("`warmup_steps` must be from 0 to `steps`=4, got 5", warmup_steps=5)
    refused("`precision` must be", precision="float16")
    refused("`augment` must be 'standard'", augment="strong")
    refused("`horizontal_flip` belongs to augment=", augment=None, horizontal_flip=True)
    refused("`model` 'cnn' is unknown", model="cnn")
    refused("`device` is 'gpu', which torch cannot use here", device="gpu")
    large = LabeledImages(torch.zeros(10, 1, 9, 9, dtype=torch.uint8), range(10), train.classes)
    refused(r"Arm 'l' has images of shape \(1, 9, 9\), `test` has \(1, 8, 8\)", arms={"l": large})
    refused("Item 0 of Arm 't'", arms={"t": TensorDataset(torch.zeros(5, 8, 8))})
    mixed_sizes: Dataset[Any] = ConcatDataset([train, large])
    refused(r"Arm 'm': .*\(1, 8, 8\) and \(1, 9, 9\)", arms={"m": mixed_sizes})
    bad = TensorDataset(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.full((5,), 10))
    refused("Arm 't' holds label 10, but there are 10 classes", arms={"t": bad})
    assert not trained(watched)


def test_settings_of_an_augmentation_are_checked() -> None:
    with pytest.raises(ValueError, match="`padding` must not be negative"):
        StandardAugment(padding=-1)
    with pytest.raises(ValueError, match="`fill` must be a level"):
        StandardAugment(padding=1, fill=256)
    with pytest.raises(ValueError, match="`max_scale` must be"):
        AffineAugment(max_scale=1.0)


def test_a_loss_that_is_not_finite_names_arm_seed_step_and_remedy(
    train: LabeledImages, test: LabeledImages, tmp_path: Path
) -> None:
    class Bursting(nn.Module):
        """Its loss is NaN from step 13 on, if it is trained on black images."""

        def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
            super().__init__()
            self.net = linear(num_classes, image_shape)
            self.steps = 0

        def forward(self, images: Tensor) -> Tensor:
            self.steps += self.training
            burst = self.steps >= 13 and bool((images == -1).all())
            logits: Tensor = self.net(images) * (math.nan if burst else 1.0)
            return logits

    black = LabeledImages(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), range(10), train.classes)
    arms = {"good": train, "bad": black}
    with pytest.raises(
        DivergedError,
        match=r"Arm 'bad', seed 7: the loss became nan at step 13 of 15\. Lower `learning_rate`",
    ):
        evaluate(
            arms, test=test, seeds=[7], model=Bursting, output_dir=tmp_path, **{**FAST, "steps": 15}
        )
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["good"]


def test_the_bar_counts_every_step_of_every_run_once(
    train: LabeledImages,
    test: LabeledImages,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "bar")
    arguments = {**FAST, "steps": 25, "progress": True}
    evaluate({"a": train, "b": train}, test=test, seeds=2, model=linear, **arguments)
    shown = capsys.readouterr().err
    assert "100/100" in shown
    assert "b, seed 1" in shown
    arguments["progress"] = False
    evaluate({"a": train}, test=test, seeds=1, model=linear, **arguments)
    assert capsys.readouterr().err == ""


# Resume


def test_finished_runs_are_not_repeated_until_data_or_settings_change(
    digits: LabeledImages,
    train: LabeledImages,
    test: LabeledImages,
    tmp_path: Path,
    watched: list[Watched],
) -> None:
    def run(first: LabeledImages = train, **changed: Any) -> tuple[EvaluationReport, int]:
        watched.clear()
        arguments = {**FAST, "model": Watched, "seeds": 2, **changed}
        arms = {"a": first, "b": Mixture(train, train)}
        report = evaluate(arms, output_dir=tmp_path, **{"test": test, **arguments})
        return report, len(trained(watched))

    report, made = run()
    assert made == 4
    again, made = run()
    assert made == 0
    assert again == report  # the seconds too: nothing was done again

    next(tmp_path.glob("b-seed1-*")).unlink()
    third, made = run()
    assert made == 1
    assert results(third) == results(report)

    assert run(seeds=3)[1] == 2
    assert run(learning_rate=0.01)[1] == 4
    assert run(augment=StandardAugment(padding=3))[1] == 4
    assert run(augment=lambda pixels: pixels.flip(2))[1] == 4
    assert run(augment=lambda pixels: pixels.flip(3))[1] == 4  # of the same name
    assert run(test=test.subset(np.arange(80)))[1] == 4
    chosen = test.subset(np.arange(80, 90))
    assert run(test=test.subset(np.arange(80)), validation=chosen)[1] == 4
    chosen = chosen.subset(np.arange(9))
    assert run(test=test.subset(np.arange(80)), validation=chosen)[1] == 4
    assert run(first=train.subset(np.arange(1, 60)))[1] == 2
    relabeled = LabeledImages(train.read(np.arange(60)), np.roll(train.labels, 1), train.classes)
    assert run(first=relabeled)[1] == 2
    images, labels = digits.read(np.arange(300, 700)), digits.labels[300:700].copy()
    assert run(first=LabeledImages(images, labels, train.classes))[1] == 2
    labels[-1] = (labels[-1] + 1) % 10
    assert run(first=LabeledImages(images, labels, train.classes))[1] == 2
    for bias in (True, False):  # functions of the same name
        files = len(list(tmp_path.iterdir()))
        run(model=lambda n, _, b=bias: nn.Sequential(nn.Flatten(), nn.Linear(64, n, bias=b)))
        assert len(list(tmp_path.iterdir())) == files + 4
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.iterdir()))


def test_a_mixture_that_chooses_otherwise_makes_a_stored_run_stale(
    train: LabeledImages,
    test: LabeledImages,
    cache: SynthCache,
    tmp_path: Path,
    watched: list[Watched],
) -> None:
    def mix(**changed: Any) -> MixedDataset:
        return MixedDataset(train, cache, **{"audit": None, "fraction": 0.5, "seed": 0, **changed})

    def made(dataset: Dataset[Any]) -> int:
        watched.clear()
        evaluate({"a": dataset}, test=test, seeds=1, model=Watched, output_dir=tmp_path, **FAST)
        return len(trained(watched))

    def report(passed: Any, verdict: str) -> Any:
        return SimpleNamespace(identity=cache.identity, passed=passed, verdict=verdict)

    all_passed, one_failed = np.ones(30, bool), np.arange(30) != 29
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"fraction": 0.51},
        {"mode": "append", "fraction": None, "ratio": 0.5},
        {"audit": report(all_passed, "pass")},
        {"audit": report(all_passed, "inconclusive")},
        {"audit": report(one_failed, "inconclusive")},
    ]
    # Items that are real in epoch 0 whatever the change: what they show then tells nothing apart.
    real = np.all([mix(**changed).synthetic_rows()[:60] < 0 for changed in changes], axis=0)
    same = np.flatnonzero(real).tolist()
    assert len(same) > 5
    wraps: list[Callable[[MixedDataset], Dataset[Any]]] = [
        lambda mixed: mixed,
        lambda mixed: Subset(mixed, same),
        lambda mixed: ConcatDataset([train, Subset(mixed, same)]),
    ]
    for wrap in wraps:
        assert [made(wrap(mix(**changed))) for changed in changes] == [1] * len(changes)
        assert [made(wrap(mix(**changed))) for changed in changes] == [0] * len(changes)


def test_an_interrupted_evaluation_says_how_many_classifiers_are_done(
    train: LabeledImages, test: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    evaluate({"a": train}, test=test, seeds=1, output_dir=tmp_path, **FAST)
    monkeypatch.setattr(Job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^1 of 2 classifiers are trained and tested"):
        evaluate({"a": train}, test=test, seeds=2, output_dir=tmp_path, **FAST)


def test_a_damaged_run_file_is_named(
    train: LabeledImages, test: LabeledImages, tmp_path: Path
) -> None:
    evaluate({"a": train}, test=test, seeds=1, output_dir=tmp_path, **FAST)
    (path,) = tmp_path.iterdir()
    for text in ("{", "[]", '{"arm": "a"}'):
        path.write_text(text)
        with pytest.raises(DataError, match=str(path)):
            evaluate({"a": train}, test=test, seeds=1, output_dir=tmp_path, **FAST)


# Classifiers that name images


def test_probabilities_are_those_of_classifiers_trained_as_an_evaluation_trains_them(
    digits: LabeledImages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "bar")
    mixed_up = np.random.default_rng(0).permutation(500)
    few, others = digits.subset(mixed_up[:150]), digits.subset(mixed_up[150:300])
    arguments: dict[str, Any] = {"seeds": [3, 4], "steps": 40, "device": "cpu"}
    found = class_probabilities(few, others.read(range(150)), **configured(**arguments))
    assert "80/80" in capsys.readouterr().err
    assert found.shape == (150, 10)
    assert found.sum(axis=1) == pytest.approx(np.ones(150), abs=1e-5)
    ensemble = float((found.argmax(axis=1) == others.labels).mean())
    single = evaluate({"a": few}, test=others, progress=False, **arguments).mean("a")
    assert single - 0.02 < ensemble < single + 0.15
    assert single > 0.6
    arguments |= {"progress": False, "steps": 3}
    one, again = (class_probabilities(few, few.read([0]), **configured(**arguments)) for _ in "ab")
    assert np.array_equal(one, again)
    assert capsys.readouterr().err == ""


# The report


def test_what_the_audit_said_of_synthetic_images_stands_below_the_table(
    train: LabeledImages, test: LabeledImages, cache: SynthCache
) -> None:
    passed = SimpleNamespace(identity=cache.identity, passed=np.arange(30) > 1, verdict="fail")
    judged = MixedDataset(train, cache, audit=passed, fraction=0.5)
    unjudged = MixedDataset(train, cache, audit=None, fraction=0.5)
    arms = {
        "real": train,
        "judged": judged,
        "part": Subset(judged, range(9)),
        "unjudged": ConcatDataset([train, unjudged]),
        "cache": cache,
    }
    report = evaluate(arms, test=test, seeds=1, model=linear, **FAST)
    notes = [
        "Synthetic images of 'judged', 'part': 28 images, audit: fail, 2 withheld.",
        "Synthetic images of 'unjudged': 30 images, not audited.",
        "Synthetic images of 'cache': 30 images, no audit report.",
    ]
    assert report.synthetic_notes() == notes
    assert report.table().splitlines()[-3:] == notes
    html = report.html_sections()
    assert all(escape(note) in html for note in notes)


def made_up(arm: str, seed: int, accuracy: float) -> Run:
    return Run(
        arm=arm,
        seed=seed,
        steps=10,
        selected_step=10,
        test_accuracy=accuracy,
        class_accuracies=[accuracy, None],
        validation_accuracy=None,
        images_seen=80,
        unique_real=20,
        unique_synthetic=1234 if arm == "mixed" else 0,
        seconds=1.5,
        loss_curve=[(5, 1.0), (10, 0.5 + seed / 10)],
        validation_curve=[],
    )


@pytest.fixture
def report() -> EvaluationReport:
    values = {"real": [0.80, 0.84, 0.79], "mixed": [0.85, 0.87, 0.86]}
    return EvaluationReport(
        runs=[made_up(arm, seed, v) for arm, vs in values.items() for seed, v in enumerate(vs)],
        classes=["cat", "dog"],
        settings={"steps": 10, "test_images": 50},
        arms={name: {"images": 20, "augment": "None"} for name in values},
        baseline="real",
    )


def test_spread_is_the_sample_standard_deviation_and_gain_is_paired(
    report: EvaluationReport,
) -> None:
    real, mixed = np.array([0.80, 0.84, 0.79]), np.array([0.85, 0.87, 0.86])
    assert report.accuracies("real").tolist() == real.tolist()
    assert report.mean("real") == pytest.approx(0.81)
    assert report.std("real") == pytest.approx(math.sqrt((0.01**2 + 0.03**2 + 0.02**2) / 2))
    assert report.std("mixed") == pytest.approx(np.std(mixed, ddof=1))
    gain = report.difference("mixed")
    assert gain.mean == pytest.approx(0.05)
    assert gain.standard_error == pytest.approx(math.sqrt((0 + 0.02**2 + 0.02**2) / 2 / 3))
    assert gain.n == 3
    assert report.difference("real", "mixed").mean == pytest.approx(-0.05)


def test_a_tracker_gets_the_curves_and_accuracies_of_all_runs_step_by_step(
    report: EvaluationReport, tmp_path: Path
) -> None:
    tracker = Noted()
    replace(report, runs=report.runs[2:4]).to_tracker(tracker, tmp_path)
    steps = [step for step, _ in tracker.lines]
    assert steps == sorted({*steps})
    last = tracker.lines[-1][1]
    assert last["real/seed 2/test accuracy"] == 0.79
    assert last["mixed/seed 0/test accuracy"] == 0.85
    assert {"real/seed 2/loss", "mixed/seed 0/loss"} <= {
        name for _, values in tracker.lines for name in values
    }
    assert tracker.settings == {"steps": 10, "test_images": 50}
    assert tracker.finished == 1


def test_pairs_are_matched_by_seed_and_not_by_place(report: EvaluationReport) -> None:
    shuffled = replace(report, runs=[report.runs[i] for i in (2, 0, 1, 4, 5, 3)])
    assert asdict(shuffled.difference("mixed")) == pytest.approx(asdict(report.difference("mixed")))
    fewer = replace(report, runs=report.runs[1:])
    assert fewer.difference("mixed").n == 2
    with pytest.raises(ValueError, match="no seed in common"):
        replace(report, runs=[report.runs[0], report.runs[4]]).difference("mixed")


def test_a_single_seed_has_no_spread(report: EvaluationReport) -> None:
    single = replace(report, runs=[report.runs[0], report.runs[3]])
    assert single.std("real") is None
    assert single.difference("mixed").standard_error is None
    assert "±" not in single.table().split("\n\n")[0]


def test_the_table_reads_like_this(report: EvaluationReport) -> None:
    assert report.table().split("\n\n")[0] == "\n".join(
        [
            "arm    n    accuracy %  gain over real    balanced %  real seen  synthetic seen",
            "-------------------------------------------------------------------------------",
            "real   3  81.00 ± 2.65                  81.00 ± 2.65         20               0",
            "mixed  3  86.00 ± 1.00    +5.00 ± 1.15  86.00 ± 1.00         20           1,234",
        ]
    )
    assert str(report) == report.table()
    assert "50 test images after 10 optimizer steps" in report.table().replace("\n", " ")


def test_an_unknown_arm_is_named(report: EvaluationReport) -> None:
    with pytest.raises(ValueError, match=r"'other' is unknown\. Arms: real, mixed"):
        report.accuracies("other")


def test_a_report_comes_back_from_json_as_it_was(
    report: EvaluationReport, train: LabeledImages, test: LabeledImages, tmp_path: Path
) -> None:
    real = evaluate({"a": train}, test=test, validation=None, seeds=2, **FAST)
    for one in (report, real):
        path = one.to_json(tmp_path / "sub" / "report.json")
        assert EvaluationReport.from_json(path) == one
        assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": "synthaug-evaluation", "format_version": 2}']
)
def test_what_is_not_a_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"report\.json"):
        EvaluationReport.from_json(path)
    with pytest.raises(DataError, match="Evaluate again"):
        EvaluationReport.from_json(tmp_path / "missing.json")


def test_a_report_that_lacks_a_part_is_refused(report: EvaluationReport, tmp_path: Path) -> None:
    path = report.to_json(tmp_path / "report.json")
    data = json.loads(path.read_text())
    del data["runs"][0]["seed"]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="damaged"):
        EvaluationReport.from_json(path)


def test_html_holds_the_numbers_and_takes_names_as_text(
    report: EvaluationReport, tmp_path: Path
) -> None:
    evil = "<script>alert(1)</script>"
    renamed = replace(
        report,
        runs=[replace(r, arm=evil) if r.arm == "mixed" else r for r in report.runs],
        arms={"real": report.arms["real"], evil: report.arms["mixed"]},
    )
    html = renamed.to_html(tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert "86.00 ± 1.00" in html
    assert "+5.00 ± 1.15" in html
    assert "no test image" in html  # of class "dog"
    assert "seconds per run" in html
    assert html.count("<svg") == 2
    assert "81.00 ± 2.65" in report._repr_html_()


def test_more_arms_than_a_chart_can_tell_apart_get_several_charts(
    report: EvaluationReport,
) -> None:
    runs = [made_up(f"arm {i}", 0, 0.5 + i / 100) for i in range(8)]
    arms = {run.arm: report.arms["real"] for run in runs}
    many = replace(report, runs=runs, arms=arms, baseline="arm 0")
    assert many.html_sections().count("<svg") == 3


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot_is_written_as_its_name_says(
    report: EvaluationReport, tmp_path: Path, name: str
) -> None:
    path = report.plot(tmp_path / "plots" / name)
    start = {"plot.png": b"\x89PNG", "plot.svg": b"<?xml"}[name]
    assert path.read_bytes().startswith(start)


def test_bfloat16_trains_too_and_is_written_down(train: LabeledImages, test: LabeledImages) -> None:
    report = evaluate({"a": train}, test=test, seeds=1, precision="bfloat16", **FAST)
    exact = evaluate({"a": train}, test=test, seeds=1, **FAST)
    assert report.settings["precision"] == "bfloat16"
    losses = [run.loss_curve[0][1] for run in (report.runs[0], exact.runs[0])]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
