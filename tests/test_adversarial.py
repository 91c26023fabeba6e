"""Arms trained and tested under attack, and fixed shares of synthetic images in every batch."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from synthaug import MixedDataset
from synthaug._images.source import ImageSource
from synthaug.errors import MismatchError
from synthaug.evaluation import AdversarialConfig, Arm, CutMix, EvaluationReport
from synthaug.evaluation._adversarial import MovingAverage, ascend
from synthaug.evaluation._fit import FitSettings, fit, robust, seed_initial_weights
from synthaug.evaluation._inputs import ArmImages, Batches
from synthaug.images import LabeledImages
from tests.classifiers import FAST, WEAK, evaluate, linear
from tests.command_line import fail, succeed
from tests.mixtures import make_cache, real_images


@pytest.fixture(scope="module")
def test(digits: LabeledImages) -> LabeledImages:
    return digits.subset(np.arange(200, 290))


def normalized(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A linear classifier of batch-normalized pixels, with dropout."""
    features = int(np.prod(image_shape))
    layers = [nn.Flatten(), nn.BatchNorm1d(features), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def batches(images: LabeledImages) -> Batches:
    return Batches(ImageSource.open(images), images.classes, torch.device("cpu"))


def settings(adversarial: AdversarialConfig | None, **changed: Any) -> FitSettings:
    usual: dict[str, Any] = {
        "steps": 3,
        "batch_size": 8,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "eval_every": 1,
        "precision": "float32",
    }
    return FitSettings(**{**usual, **changed}, adversarial=adversarial)


# The attack


def test_a_linear_classifier_withstands_what_the_closed_form_says_it_withstands(
    digits: LabeledImages,
) -> None:
    """The worst that a box and the range of pixels allow is known for every pixel on its own."""
    two = digits.subset(digits.labels < 2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pixels = two.read(range(len(two))).flatten(1).float() / 255
    labels = torch.from_numpy(two.labels)
    means = torch.stack([pixels[labels == c].mean(0) for c in (0, 1)])
    with torch.no_grad():  # nearest mean of two classes; the other classes never win
        linear_map: Any = network[1]
        linear_map.weight.zero_()
        linear_map.weight[:2] = means
        linear_map.bias[:] = -1e6
        linear_map.bias[:2] = means.sum(1) - means.square().sum(1)
    for epsilon in (0.02, 0.15, 0.3):
        low, high = (pixels - epsilon).clamp(0, 1), (pixels + epsilon).clamp(0, 1)
        side = 1 - 2 * labels[:, None]  # of class 0 over 1
        pull = side * (linear_map.weight[0] - linear_map.weight[1])
        worst = torch.where(pull > 0, low, high)
        margin = side * torch.diff(network(2 * worst - 1)[:, :2], dim=1) * -1
        config = AdversarialConfig(epsilon=epsilon, test_steps=5, restarts=1)
        found = robust(network, batches(two), settings(config), seed=0, testing=True)
        assert found.tolist() == (margin[:, 0] > 0).tolist()
    assert 0.1 < found.mean() < 0.9


def test_an_attack_stays_in_its_box_and_among_pixels_and_raises_the_loss() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 10
    network = linear(10, (1, 4, 4))

    def loss(x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(x), labels)

    found = ascend(loss, images, images, 0.1, 0.03, 6)
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= found.min() < 0.01
    assert 0.99 < found.max() <= 1
    assert loss(found) > loss(images) + 0.1
    assert network[1].weight.grad is None  # type: ignore[index]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attacking_training_images_leaves_the_network_as_it_was(mode: Any) -> None:
    torch.manual_seed(0)
    network = normalized(3, (1, 4, 4))
    with torch.no_grad():
        network(torch.randn(8, 1, 4, 4))  # so that the two modes differ
    before = copy.deepcopy(network.state_dict())
    modes = set()

    def loss(x: Tensor) -> Tensor:
        modes.add(network.training)
        return network(x).square().sum()

    config = replace(WEAK, attack_mode=mode)
    config.training_images(network, torch.rand(5, 1, 4, 4), loss)
    assert modes == {mode == "train"}
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_image_is_attacked_the_same_alone_or_in_company(train: LabeledImages) -> None:
    seed_initial_weights(0)
    network = normalized(10, (1, 8, 8)).eval()
    wanted = settings(replace(WEAK, epsilon=0.05, restarts=2))
    company = robust(network, batches(train), wanted, seed=0, testing=True)
    flags = [robust(network, batches(train), wanted, seed=s, testing=True) for s in (0, 1)]
    assert company.tolist() == flags[0].tolist()
    head = robust(network, batches(train.subset(np.arange(7))), wanted, seed=0, testing=True)
    assert head.tolist() == company[:7].tolist()


# Training


def test_training_sees_attacked_images_only_and_tests_clean_ones_too(
    train: LabeledImages, test: LabeledImages
) -> None:
    networks: list[Any] = []

    class Watched(nn.Module):
        def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
            super().__init__()
            self.net = linear(num_classes, image_shape)
            self.seen: list[Any] = []
            networks.append(self)

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                self.seen.append(images.detach().clone())
            logits: Tensor = self.net(images)
            return logits

    attack = replace(WEAK, ema_decay=0.0)
    evaluate({"a": Arm(train)}, test=test, model=Watched, seeds=1, adversarial=attack, **FAST)
    (seen,) = [torch.cat(network.seen) for network in networks if network.seen]
    assert len(seen) == 32
    clean = train.read(range(60)).float() / 127.5 - 1
    distance = (seen[:, None] - clean[None]).abs().amax((2, 3, 4)).amin(1)
    assert (distance > 0.1).all()  # 0.1 of [0, 1] is 0.2 of [-1, 1]
    assert (distance <= 0.2 + 1e-5).all()


def test_robust_images_are_correct_ones_too_image_by_image_and_class_by_class(
    digits: LabeledImages,
) -> None:
    train, test = digits.subset(np.arange(300)), digits.subset(np.arange(500, 700))
    attack = AdversarialConfig(epsilon=0.1, steps=3, test_steps=5, restarts=1)
    options = {**FAST, "steps": 100, "batch_size": 64, "model": linear, "seeds": 1}
    assert evaluate({"a": train}, test=test, **options).results == []
    hard = evaluate({"a": Arm(train)}, test=test, adversarial=attack, **options)
    assert hard.results == ["robust"]
    assert hard.mean("a") > 0.7
    assert 0.3 < hard.mean("a", "robust") < hard.mean("a") - 0.1
    (run,) = hard.runs
    flags = [
        np.frombuffer(run.tested(name).correct.encode(), np.uint8) for name in (None, "robust")
    ]
    clean, withstood = (flag == ord("1") for flag in flags)
    assert clean.mean() == run.test_accuracy
    assert withstood.mean() == run.others["robust"].accuracy
    assert not (withstood & ~clean).any()
    counts = np.bincount(test.labels)
    by_class = np.array(run.others["robust"].class_accuracies, np.float64)
    assert (by_class * counts).sum() / 200 == pytest.approx(withstood.mean())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_tested_weights_are_those_of_the_best_robust_validation_accuracy(
    train: LabeledImages, test: LabeledImages, decay: float
) -> None:
    wanted = settings(replace(WEAK, ema_decay=decay), steps=8)
    network = linear(10, (1, 8, 8))
    validation = batches(test)
    curves = fit(network, batches(train), wanted, seed=0, run="", validation=validation)
    accuracies = dict(curves.validation)
    assert len(set(accuracies.values())) > 1
    best = max(accuracies.values())
    assert accuracies[curves.selected_step] == best
    assert robust(network, validation, wanted, seed=0, testing=False).mean() == best


def test_the_moving_average_is_that_of_the_closed_form() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = MovingAverage(network, 0.25)
    weights, expected = [3.0, -1.0, 4.0, 2.0, 5.0], 0.0
    weight: Any = network[0].weight
    statistics: Any = network[1]
    for step, value in enumerate(weights):
        weight.data.fill_(value)
        statistics.running_mean.fill_(10 * value)
        statistics.num_batches_tracked.fill_(step)
        average.update(network)
        kept = min(0.25, step / (step + 9))
        expected = kept * expected + (1 - kept) * value
        state = average.network.state_dict()
        assert state["0.weight"].item() == pytest.approx(expected)
        assert state["1.running_mean"].item() == pytest.approx(10 * expected)
        assert state["1.num_batches_tracked"] == step
    assert expected != weights[-1]


# Shares


def test_every_batch_has_exactly_the_share_and_the_real_order_stays() -> None:
    real, dark = real_images((8, 8, 8)), real_images((4, 4, 4))
    bright = LabeledImages(dark.read(range(12)) + 100, dark.labels, dark.classes)
    images = ArmImages(batches(real), batches(bright), 0.3)
    assert [count for _, count in images.divided(10)] == [7, 3]
    assert [count for _, count in images.divided(5)] == [3, 2]  # halves up

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(90, 3)
            self.seen: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
            logits: Tensor = self.net(x.flatten(1))
            return logits

    def shown(arm: Any, batch_size: int, augment: Any = None) -> list[list[int]]:
        network = Shown()
        wanted = settings(None, steps=8, batch_size=batch_size)
        fit(network, arm, wanted, seed=0, run="", augment=augment)
        return network.seen

    seen = shown(images, 10)
    assert [sum(value >= 100 for value in batch) for batch in seen] == [3] * 8
    first_pass = [value for batch in seen[:4] for value in batch[7:]]
    assert Counter(first_pass) == Counter(range(100, 112))  # each once before any again
    assert [batch[:7] for batch in seen] == shown(batches(real), 7)

    def brighter(pixels: Tensor) -> Tensor:
        return pixels + 50

    kept = replace(images, augment_added=False)
    assert shown(kept, 10, brighter) == [[v + 50 for v in b[:7]] + b[7:] for b in seen]
    assert shown(images, 10, brighter) == [[v + 50 for v in b] for b in seen]


def test_cutmix_mixes_among_the_augmented_images_alone() -> None:
    real = real_images((8, 8, 8))
    white = LabeledImages(torch.full((6, 3, 6, 5), 255, dtype=torch.uint8), [0] * 6, real.classes)
    images = ArmImages(batches(real), batches(white), 0.5, augment_added=False)
    seen: list[Tensor] = []

    def network(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        layers = linear(num_classes, image_shape)
        layers[0].register_forward_hook(lambda *x: seen.append(x[1][0].clone()))  # type: ignore[index]
        return layers

    made = network(3, (3, 6, 5))
    fit(made, images, settings(None, steps=2), seed=0, run="", augment=CutMix())
    assert len(seen) == 2
    for batch in seen:
        assert (batch[4:] == 1).all()
        assert (batch[:4] < 0).all()


def test_an_arm_with_a_share_is_reported_resumed_and_counted(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    real, test = real_images((8, 8, 8)), LabeledImages(*few_images(3), ("ant", "bee", "cow"))
    served = MixedDataset(real, cache, audit=None, fraction=1.0)
    arms = {
        "real": Arm(real),
        "share": Arm(real, synthetic=cache, share=0.25),
        "plain": Arm(
            real, synthetic=served, share=0.5, augment="standard", augment_synthetic=False
        ),
    }
    kept = tmp_path / "kept"

    def made(arms: Any, **changed: Any) -> EvaluationReport:
        options = {**FAST, "seeds": 1, "model": linear, "output_dir": kept, **changed}
        return evaluate(arms, test=test, **options)

    report = made(arms)
    assert [run.images_seen for run in report.runs] == [32, 32, 32]
    assert [run.unique_synthetic for run in report.runs] == [
        0,
        8,
        13,
    ]  # of five bees eight are drawn
    assert [run.unique_real for run in report.runs] == [24, 24, 16]
    notes = [
        "Synthetic images of 'share': 21 images, no audit report; 0.25 of each batch.",
        "Synthetic images of 'plain': 21 images, not audited; 0.5 of each batch, not augmented.",
    ]
    assert report.synthetic_notes() == notes
    seconds = [run.seconds for run in report.runs]
    assert [run.seconds for run in made(arms).runs] == seconds
    arms["share"] = replace(arms["share"], share=0.5)
    changed = [run.seconds != before for run, before in zip(made(arms).runs, seconds, strict=True)]
    assert changed == [False, True, False]


def few_images(classes: int) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8, generator=generator)
    return pixels, [i % classes for i in range(9)]


def test_class_probabilities_and_indices_may_share_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = real_images((8, 8, 8))
    vectors = batches(real)

    def probabilities(epoch: int, indices: Any) -> tuple[Tensor, Tensor]:
        pixels, labels = Batches.batch(vectors, epoch, indices)
        return pixels, torch.eye(3)[labels]

    monkeypatch.setattr(vectors, "batch", probabilities)
    states = []
    for added in (batches(real), vectors):
        seed_initial_weights(0)
        network = linear(3, (3, 6, 5))
        fit(network, ArmImages(batches(real), added, 0.5), settings(None), seed=0, run="")
        states.append(network.state_dict()["1.weight"])
    assert torch.allclose(states[0], states[1], atol=1e-6)


# The report


def test_robust_accuracy_is_in_table_page_frame_and_file(
    train: LabeledImages, test: LabeledImages, tmp_path: Path
) -> None:
    arms = {"a": train, "b": train}
    options = {"test": test, "seeds": 2, "model": linear, "adversarial": WEAK, **FAST}
    report = evaluate(arms, output_dir=tmp_path / "kept", **options)
    header, _, *lines = report.table().splitlines()
    assert header.split()[2:8] == ["accuracy", "%", "gain", "over", "a", "robust"]
    assert len(lines[1].split("±")) == 6
    gain = report.difference("b", result="robust")
    assert gain.mean == report.mean("b", "robust") - report.mean("a", "robust") == 0
    text = " ".join(report.table().split())
    assert "images attacked in 2 steps of projected gradient, by up to 0.1 per pixel" in text
    assert "with the network in eval mode" in text
    assert "an attack of 2 steps with 1 random starts" in text
    page = report.html_sections()
    assert "Robust accuracy by class" in page
    assert "robust accuracy in percent" in page
    frame = report.to_frame()
    robust_accuracies = [run.others["robust"].accuracy for run in report.runs]
    assert frame["robust accuracy"].tolist() == robust_accuracies
    assert {"robust accuracy, 0", "accuracy, 0"} <= set(frame.columns)
    back = EvaluationReport.from_json(report.to_json(tmp_path / "r.json"))
    assert back.runs == report.runs
    again = evaluate(arms, output_dir=tmp_path / "kept", **options)
    assert again.runs == report.runs  # seconds too: nothing was trained
    stronger = {**options, "adversarial": replace(WEAK, test_steps=3)}
    seconds = {run.seconds for run in report.runs}
    other = evaluate(arms, output_dir=tmp_path / "kept", **stronger)
    assert not seconds & {run.seconds for run in other.runs}
    with pytest.raises(ValueError, match=r"`result` 'blur' is unknown.*'robust'"):
        report.mean("a", "blur")


def test_the_command_line_trains_under_attack(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, (2,) * 10, (1, 8, 8), tuple(map(str, range(10))))
    out = tmp_path / "out"
    options = "--adversarial 0.1 --attack-steps 1 --test-steps 1 --restarts 1 --ema-decay 0"
    shared = f"--steps 2 --seeds 1 --device cpu --out {out} --allow-overlap".split()
    line = ["evaluate", "digits:train", cache.path, "digits:test", *shared]
    rare = "--share 0.5 --balance balanced,logit-adjustment --class-sizes 3,90"
    printed = succeed(*line, *options.split(), *rare.split(), "--json")
    assert '"robust"' in printed
    report = EvaluationReport.from_json(out.with_suffix(".json"))
    assert report.results == ["robust"]
    attack: Any = report.settings["adversarial"]
    assert attack["epsilon"] == 0.1
    assert [attack[name] for name in ("steps", "test_steps", "restarts", "ema_decay")] == [
        1,
        1,
        1,
        0,
    ]
    facts = {name: report.arms[name].get("rare classes") for name in report.arm_names[4:]}
    assert facts == {
        f"{images}, {way}": fact
        for images in ("real", "real + synthetic")
        for way, fact in (
            ("balanced", "drawn as often as others"),
            ("logit-adjustment", "1 times the logarithm of class shares in the loss"),
        )
    }
    assert report.class_sizes == (3, 90)
    assert report.groups.keys() == {"all", "many", "medium"}
    assert any("0.5 of each batch" in note for note in report.synthetic_notes())
    assert "`--share` sets the mixed arm" in fail(2, *line, "--share", "0.5", "--ratios", "0,0.01")
    assert "`--adversarial` must be in (0, 1]" in fail(2, *line, "--adversarial", "2")


# Wrong input is found before any training


def test_wrong_attacks_and_shares_are_refused(train: LabeledImages, test: LabeledImages) -> None:
    for message, changed in {
        r"`epsilon` must be in \(0, 1\], got 8": {"epsilon": 8},
        "`step_size` must be positive": {"step_size": 0.0},
        "`steps` must be at least 1": {"steps": 0},
        "`test_steps` must be at least 1": {"test_steps": 0},
        "`restarts` must be at least 1": {"restarts": 0},
        "`attack_mode` must be one of 'eval', 'train'": {"attack_mode": "test"},
        r"`ema_decay` must be in \[0, 1\)": {"ema_decay": 1.0},
    }.items():
        values: Any = changed
        with pytest.raises(ValueError, match=message):
            replace(WEAK, **values)
    with pytest.raises(TypeError, match="`adversarial` is a float, expected an AdversarialConfig"):
        evaluate({"a": train}, test=test, adversarial=0.1, **FAST)
    for arguments in ({"share": 0.5}, {"synthetic": train}):
        with pytest.raises(ValueError, match="`synthetic` and `share` of an arm go together"):
            Arm(train, **arguments)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\)"):
            Arm(train, synthetic=train, share=share)
    few = Arm(train, synthetic=train, share=0.01)
    with pytest.raises(ValueError, match="leaves no synthetic or no real image in a batch of 8"):
        evaluate({"a": few}, test=test, **FAST)
    bad = TensorDataset(torch.zeros(5, 1, 9, 9, dtype=torch.uint8), torch.zeros(5).long())
    with pytest.raises(
        MismatchError, match=r"`synthetic` of arm 'a' has images of shape \(1, 9, 9\)"
    ):
        evaluate({"a": Arm(train, synthetic=bad, share=0.5)}, test=test, **FAST)
    with pytest.raises(MismatchError, match="are in `synthetic` of arm 'a' too"):
        evaluate({"a": Arm(train, synthetic=test, share=0.5)}, test=test, **FAST)
