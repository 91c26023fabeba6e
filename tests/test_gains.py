"""Gains over seeds and test images, the classes that lose, and augmentations by name."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import stats

from synthaug._cli.evaluation import RunOptions
from synthaug.evaluation import Correctness, Difference, EvaluationReport, MixUp, Run
from synthaug.evaluation._augment import AugmentName, apply_augment, named_augment
from tests.classifiers import FAST, evaluate, linear
from tests.command_line import fail, succeed
from tests.mixtures import make_cache


def result(hits: np.ndarray) -> Correctness:
    return Correctness.of(hits, np.zeros(len(hits), np.int64), 1)


def test_the_error_of_a_gain_has_a_part_of_seeds_and_one_of_images() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 40)) < 0.8, rng.random((3, 40)) < 0.6
    gain = Difference.of([(result(a), result(b)) for a, b in zip(ours, theirs, strict=True)])
    differences = ours.astype(float) - theirs
    by_seed, by_image = differences.mean(1), differences.mean(0)
    seeds, images = by_seed.var(ddof=1) / 3, by_image.var(ddof=1) / 40
    assert gain.mean == pytest.approx(differences.mean())
    assert gain.seed_error == pytest.approx(math.sqrt(seeds))
    assert gain.image_error == pytest.approx(math.sqrt(images))
    assert gain.standard_error == pytest.approx(math.sqrt(seeds + images))
    freedom = (seeds + images) ** 2 / (seeds**2 / 2 + images**2 / 39)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(seeds + images)
    assert (gain.low, gain.high) == pytest.approx((gain.mean - reach, gain.mean + reach))
    single = Difference.of([(result(ours[0]), result(theirs[0]))])
    assert single.standard_error is single.seed_error is single.low is None
    assert single.image_error == pytest.approx(differences[0].std(ddof=1) / math.sqrt(40))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 400 experiments with effects of seeds and of images some 380, or a few more, hold it."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        logits = rng.normal(0, 0.1, (5, 1, 1)) + rng.normal(0, 0.3, (1, 60, 1))
        rates = np.clip(0.6 + logits + np.array([0.0, 0.1]), 0, 1)
        rates[..., 1] += rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.1, (1, 60))
        hits = rng.random(rates.shape) < rates
        gain = Difference.of([(result(one[:, 1]), result(one[:, 0])) for one in hits])
        assert gain.low is not None
        assert gain.high is not None
        held += gain.low <= 0.087 <= gain.high  # 0.1, less what is cut off at 0 and 1
    assert 0.93 <= held / 400 <= 0.995


def run(arm: str, seed: int, hits: np.ndarray, labels: np.ndarray) -> Run:
    found = Correctness.of(hits, labels, 3)
    return Run(
        arm=arm,
        seed=seed,
        steps=1,
        selected_step=1,
        test_accuracy=found.accuracy,
        class_accuracies=found.class_accuracies,
        validation_accuracy=None,
        images_seen=1,
        unique_real=1,
        unique_synthetic=0,
        seconds=1.0,
        loss_curve=[(1, 1.0)],
        validation_curve=[],
        correct=found.correct,
    )


def test_classes_that_lose_are_named_with_their_errors() -> None:
    labels = np.arange(200) % 2  # the third class has no test image
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(4):
        base = rng.random(200) < 0.7
        better = base | (labels == 0) & (rng.random(200) < 0.8)
        worse = better & ((labels == 0) | (rng.random(200) < 0.5))
        runs += [run("real", seed, base, labels), run("mixed", seed, worse, labels)]
    report = EvaluationReport(
        runs=sorted(runs, key=lambda r: r.arm == "mixed"),
        classes=["cat", "dog", "emu"],
        settings={"test_images": 200},
        arms={name: {"images": 9, "augment": "None"} for name in ("real", "mixed")},
        baseline="real",
        test_labels=labels.tolist(),
    )
    assert report.difference("mixed", class_name="cat").mean > 0.2
    assert list(report.losing_classes("mixed")) == ["dog"]
    loss = report.difference("mixed", class_name="dog")
    of_dogs = [
        np.array([one.class_accuracies[1] for one in report.of(arm)], float)
        for arm in ("mixed", "real")
    ]
    drops = of_dogs[0] - of_dogs[1]
    assert loss.mean == pytest.approx(np.mean(drops))
    assert loss.seed_error == pytest.approx(np.std(drops, ddof=1) / 2)
    (note,) = report.gain_notes()
    assert note.startswith("mixed: the 95 % interval of its gain in accuracy is -")
    assert loss.standard_error is not None
    assert f"It loses in dog {100 * loss.mean:+.2f} ± {100 * loss.standard_error:.2f}." in note
    assert note in " ".join(report.table().split())
    assert f"({100 * loss.mean:+.2f} ± " in report.html_sections()
    with pytest.raises(ValueError, match="`class_name` 'cow' is unknown"):
        report.difference("mixed", class_name="cow")
    with pytest.raises(ValueError, match="Class 2 has no test image"):
        report.difference("mixed", class_name="emu")


# Augmentations by name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", get_args(AugmentName))
def test_every_named_augmentation_changes_images_and_keeps_their_shape(
    name: str, channels: int
) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (16, channels, 20, 18), dtype=torch.uint8)
    augment = named_augment(name, (channels, 20, 18), horizontal_flip=False)
    changed = apply_augment(augment, pixels)
    assert changed.shape == pixels.shape
    assert (changed != pixels).flatten(1).any(1).float().mean() > 0.7


def test_the_command_line_knows_the_same_names() -> None:
    assert get_args(RunOptions.__annotations__["augment"]) == get_args(AugmentName)


def test_mixup_is_the_weighted_mean_that_it_says() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    mixed, partner, kept = MixUp(alpha=0.5).mix(pixels)
    weight = kept[:, None, None, None].double()
    expected = weight * pixels.double() + (1 - weight) * pixels[partner].double()
    assert (mixed.double() - expected).abs().max() <= 0.501
    assert sorted(partner.tolist()) == list(range(50))
    assert 0 < kept.min() < 0.1
    assert 0.9 < kept.max() <= 1


def test_stronger_augmentations_are_arms_and_reach_the_classifier(tmp_path: Any) -> None:
    cache = make_cache(tmp_path, (2,) * 10, (1, 8, 8), tuple(map(str, range(10))))
    out = tmp_path / "out"
    shared = f"--steps 2 --seeds 2 --device cpu --out {out} --allow-overlap".split()
    line = ["evaluate", "digits:train", cache.path, "digits:test", *shared]
    text = succeed(*line, "--augment", "mixup", "--augmentations", "randaugment,cutmix")
    assert "real, cutmix: the 95 % interval" in " ".join(text.split())
    report = EvaluationReport.from_json(out.with_suffix(".json"))
    assert report.arm_names[-2:] == ["real, randaugment", "real, cutmix"]
    kinds = {name: str(facts["augment"]).partition("(")[0] for name, facts in report.arms.items()}
    assert kinds["real, augmented"] == "MixUp"
    assert kinds["real, randaugment"] == "Chain"
    message = fail(2, *line, "--augment", "cutmix", "--padding", "1")
    assert "`--padding` is for `--augment standard`, not 'cutmix'" in message
    refused = fail(2, *line, "--augmentations", "none")
    assert "`--augmentations` must be one of 'standard', 'affine'" in refused


def test_a_report_keeps_the_labels_that_class_gains_need(tmp_path: Any) -> None:
    real = make_cache(tmp_path)
    report = evaluate(
        {"a": real, "b": real}, test=real, seeds=2, model=linear, allow_overlap=True, **FAST
    )
    assert report.test_labels == [0] * 7 + [1] * 5 + [2] * 9
    back = EvaluationReport.from_json(report.to_json(tmp_path / "r.json"))
    assert back.difference("b", class_name="bee") == report.difference("b", class_name="bee")
