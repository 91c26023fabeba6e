"""Several test sets in one evaluation, corrupted test images, and calibration."""

from typing import Any

import numpy as np
import pytest
import torch

from synthaug import evaluate as evaluate_configured
from synthaug.errors import MismatchError
from synthaug.evaluation import ClassifierConfig, EvaluationReport, corruptions
from synthaug.evaluation._corruptions import CORRUPTIONS
from synthaug.evaluation._gains import calibration_error
from synthaug.images import LabeledImages
from tests.classifiers import FAST, WEAK, evaluate, linear


@pytest.fixture(scope="module")
def test(digits: LabeledImages) -> LabeledImages:
    return digits.subset(np.arange(200, 260))


def colored(n: int, size: int = 16) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return LabeledImages((smooth * 255).to(torch.uint8), [0] * n, ("a", "b"))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_get_worse_with_their_severity(kind: str) -> None:
    images = colored(6)
    made = corruptions(images, kinds=[kind])
    assert list(made) == [f"{kind} {severity}" for severity in range(1, 6)]
    clean = images.read(range(6)).double()
    errors = [(one.read(range(6)).double() - clean).square().mean().item() for one in made.values()]
    assert errors[0] > 0
    assert errors == sorted(errors)
    assert errors[-1] > 1.5 * errors[0]
    again = corruptions(images, kinds=[kind], severities=[3])[f"{kind} 3"]
    assert again.fingerprint == made[f"{kind} 3"].fingerprint
    assert again.labels.tolist() == images.labels.tolist()
    assert again.image_shape == images.image_shape


def test_strengths_are_those_that_they_say() -> None:
    images = colored(40)
    clean = images.read(range(40)).double()
    made = corruptions(images, kinds=["noise", "contrast"], severities=[2], seed=1)
    middle = (clean > 60) & (clean < 195)
    noise = (made["noise 2"].read(range(40)).double() - clean)[middle]
    assert noise.std().item() == pytest.approx(0.06 * 255, rel=0.05)
    flat = made["contrast 2"].read(range(40)).double()
    ratio = flat.flatten(1).std(1) / clean.flatten(1).std(1)
    assert ratio.numpy() == pytest.approx(np.full(40, 0.5), abs=0.02)
    for arguments, message in {
        ("kinds", ("fog",)): "`kinds` must be one of 'noise', 'blur'",
        ("severities", (0,)): "`severities` must be one of 1, 2, 3, 4, 5, got 0",
        ("severities", (1, 1)): "`severities` holds 1 more than once",
        ("kinds", ()): "`kinds` holds no kind",
    }.items():
        given: Any = dict([arguments])
        with pytest.raises(ValueError, match=message):
            corruptions(images, **given)


def test_gray_digits_can_be_corrupted_in_all_ways(test: LabeledImages) -> None:
    made = corruptions(test, severities=[1, 5])
    assert len(made) == 2 * len(CORRUPTIONS)
    assert all(one.image_shape == (1, 8, 8) for one in made.values())


def test_calibration_error_is_that_of_the_definition() -> None:
    hits = np.array([True, True, False, False, True])
    confidence = np.array([0.99, 0.97, 0.98, 0.50, 0.51], np.float32)
    # Two bins: three images of mean confidence 0.98, two thirds right; two of 0.505, half right.
    expected = 3 / 5 * (0.98 - 2 / 3) + 2 / 5 * (0.505 - 0.5)
    assert calibration_error(hits, confidence) == pytest.approx(expected)
    assert calibration_error(np.ones(3, bool), np.ones(3, np.float32)) == 0


def test_several_test_sets_are_results_by_name(
    train: LabeledImages, test: LabeledImages, tmp_path: Any
) -> None:
    other = test.subset(np.arange(25))
    tests = {"clean": test, "some": other, **corruptions(test, kinds=["noise"])}
    arms = {"a": train, "b": train}
    options = {"seeds": 2, "model": linear, **FAST, "output_dir": tmp_path / "kept"}
    report = evaluate(arms, test=tests, **options)
    assert report.results == ["some", *(f"noise {s}" for s in range(1, 6))]
    alone = evaluate(arms, test=test, **{**options, "output_dir": None})
    assert report.accuracies("a").tolist() == alone.accuracies("a").tolist()
    some = evaluate(arms, test=other, **{**options, "output_dir": None})
    assert report.accuracies("a", "some").tolist() == some.accuracies("a").tolist()
    errors = report.calibration_errors("a", "some")
    assert errors.tolist() == some.calibration_errors("a").tolist()
    assert (errors > 0).all()
    noisy = report.results[1:]
    means = np.mean([report.accuracies("a", name) for name in noisy], axis=0)
    assert report.accuracies("a", noisy) == pytest.approx(means)
    gain = report.difference("b", result=noisy)
    assert gain.mean == 0
    assert gain.image_error == 0
    assert report.difference("b", result=report.results).image_error is None
    assert "mean of 6 further sets %" in report.table()
    page = report.html_sections()
    assert "Accuracy and calibration" in page
    assert "noise 3" in page
    assert "noise 3 accuracy" in report.to_frame().columns
    seconds = [run.seconds for run in report.runs]
    assert [run.seconds for run in evaluate(arms, test=tests, **options).runs] == seconds
    fewer = evaluate(arms, test={"clean": test, "some": other}, **options)
    assert not set(seconds) & {run.seconds for run in fewer.runs}
    assert "some %" in fewer.table()
    back = EvaluationReport.from_json(report.to_json(tmp_path / "r.json"))
    assert back.runs == report.runs
    with pytest.raises(ValueError, match="`result` is an empty list"):
        report.mean("a", [])


def test_attacks_are_on_the_first_set_and_wrong_sets_are_refused(
    train: LabeledImages, test: LabeledImages
) -> None:
    tests = {"clean": test, "some": test.subset(np.arange(9))}
    options: dict[str, Any] = {"seeds": 1, "model": linear, **FAST}
    report = evaluate({"a": train}, test=tests, adversarial=WEAK, **options)
    assert report.results == ["robust", "some"]
    assert np.isnan(report.calibration_errors("a", "robust")).all()
    for message, wrong in {
        "`test` must map at least one name": {},
        "`test` has a set called 'robust'": {"clean": test, "robust": test},
    }.items():
        with pytest.raises(ValueError, match=message):
            evaluate({"a": train}, test=wrong, adversarial=WEAK, **options)
    seen = {"clean": test, "seen": train.subset(np.arange(9))}
    with pytest.raises(MismatchError, match="9 of 9 images of `test` 'seen' are in Arm 'a' too"):
        evaluate_configured({"a": train}, test=seen, config=ClassifierConfig(steps=1))
