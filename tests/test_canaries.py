"""Canaries: a coin decides which marks are trained on, so what comes back has a known null."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import synthaug
from synthaug import ClassConditional, TrainingConfig
from synthaug._audit.canaries import borders, mark
from synthaug._audit.canary_report import key_threshold, resemblance
from synthaug._images.source import ImageSource
from synthaug._pixels import digest
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.memorization import CanaryConfig, CanaryPlan, CanaryReport, came_back, plant
from tests.command_line import check_answer, fail, succeed

pytestmark = pytest.mark.usefixtures("few_steps")

FEW = CanaryConfig(pairs=4, doses=(1, 4))


@pytest.fixture(scope="module")
def digits():
    return synthaug.load_dataset("digits").subset(np.arange(0, 1797, 9))


@pytest.fixture(scope="module")
def planted(digits):
    return plant(digits, FEW)


def test_one_of_each_pair_is_trained_on_as_often_as_its_dose_and_the_other_never(digits, planted):
    plan, pixels = planted.plan, planted.read(range(len(planted)))
    seen = [digest(image) for image in pixels]
    originals = digits.read(range(len(digits)))
    assert len(planted) == len(digits) - 16 + 4 * 1 + 4 * 4
    assert sorted(c.pair for c in plan.chosen(True)) == list(range(8))
    assert sorted(c.pair for c in plan.chosen(False)) == list(range(8))
    for canary in plan.canaries:
        (marked,) = mark(originals[[canary.row]], [canary.key])
        assert seen.count(digest(marked)) == (canary.dose if canary.trained else 0)
        assert seen.count(canary.image) == 0  # nor the originals
        assert digest(originals[canary.row]) == canary.image
        assert canary.label == digits.labels[canary.row]
        rows = [row for row, other in enumerate(seen) if other == digest(marked)]
        assert set(planted.labels[rows]) <= {canary.label}
    by_pair = {c.pair: (c.dose, c.label) for c in plan.canaries}
    assert all((c.dose, c.label) == by_pair[c.pair] for c in plan.canaries)
    kept = {digest(image) for image in originals} - {c.image for c in plan.canaries}
    assert kept <= set(seen)


def test_canaries_are_a_function_of_images_and_settings(digits, planted):
    again, other = plant(digits, FEW), plant(digits, CanaryConfig(pairs=4, doses=(1, 4), seed=1))
    assert (again.fingerprint, again.plan) == (planted.fingerprint, planted.plan)
    assert other.plan.digest != planted.plan.digest
    assert planted.fingerprint not in (digits.fingerprint, other.fingerprint)
    trained = [c.trained for c in other.plan.canaries]
    assert 0 < sum(trained[::2]) < len(trained[::2])  # the coin falls on both sides


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 44), (3, 33, 17)])
def test_a_border_holds_its_key_and_nothing_else_changes(shape):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, *shape), np.uint8))
    cells = borders(pixels).shape[1]
    keys = rng.integers(0, 256, (2, cells)).tolist()
    marked = mark(pixels, keys)
    np.testing.assert_allclose(borders(marked), keys)
    side = max(1, min(shape[1:]) // 16)
    inside = (slice(None), slice(None), slice(side, -2 * side), slice(side, -2 * side))
    assert (marked[inside] == pixels[inside]).all()
    found = resemblance(marked.flip(-1), _normal(keys))
    assert (found.argmax(1) == [0, 1]).all()  # mirrored too
    np.testing.assert_allclose(found.diagonal(), 1)


def _normal(keys):
    values = np.array(keys, float)
    values -= values.mean(1, keepdims=True)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_borders_that_do_not_know_a_key_stay_below_the_threshold():
    rng = np.random.default_rng(0)
    keys = _normal(rng.integers(0, 256, (100, 28)))
    pixels = torch.from_numpy(rng.integers(0, 256, (500, 1, 8, 8), np.uint8))
    highest = resemblance(pixels, keys).max()
    assert 0.6 < highest < key_threshold(28, 100_000) < 0.9
    assert (resemblance(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), keys) == 0).all()


def drawn(plan, canaries, rest=20):
    """Images of a model that draws these canaries, among others with random borders."""
    rng = np.random.default_rng(5)
    pixels = torch.from_numpy(rng.integers(0, 256, (len(canaries) + rest, 1, 8, 8), np.uint8))
    pixels[: len(canaries)] = mark(pixels[: len(canaries)], [c.key for c in canaries])
    return LabeledImages(pixels, np.zeros(len(pixels), int), ["0"])


def test_keys_that_were_learned_are_found_and_counted_by_dose(digits, tmp_path):
    plan = plant(digits, CanaryConfig(pairs=8, doses=(1, 4))).plan
    often = [c for c in plan.chosen(True) if c.dose == 4]
    report = came_back(drawn(plan, [*often, often[0]]), plan)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert [(x.dose, x.trained_back, x.control_back) for x in report.by_dose] == [
        (1, 0, 0),
        (4, 8, 0),
    ]
    assert report.by_dose[1].closer == 8
    assert report.by_dose[0].trained_interval[1] == pytest.approx(1 - 0.025 ** (1 / 8))
    assert report.p_value == pytest.approx(2 / 2**8)
    assert report.carriers.tolist() == list(range(9))
    assert report.reasons[0].startswith("8 of 16 keys that were trained on came back in 29 ")
    assert "The least repeated image that came back was repeated 4 times." in report.reasons
    assert "Nothing records which model drew the images." in report.reasons
    again = CanaryReport.from_json(report.to_json(tmp_path / "r.json"))
    assert str(again) == str(report)
    page = report.to_html(tmp_path / "r.html").read_text()
    assert "a pass does not mean" in page
    assert report.to_frame()["returned"].sum() == 8


def test_keys_that_come_back_whoever_was_trained_on_are_no_evidence(digits):
    plan = plant(digits, CanaryConfig(pairs=8, doses=(1, 4))).plan
    report = came_back(drawn(plan, list(plan.canaries)), plan)
    assert [(x.trained_back, x.control_back) for x in report.by_dose] == [(8, 8), (8, 8)]
    assert (report.verdict, report.p_value) == ("pass", 1.0)


def test_coins_alone_give_a_p_value_that_is_not_too_small(digits):
    p_values = []
    for seed in range(30):
        plan = plant(digits, CanaryConfig(pairs=8, doses=(2,), seed=seed)).plan
        lucky = [c for c in plan.canaries if c.row % 3 == 0]  # learned, but not by the coin
        p_values.append(came_back(drawn(plan, lucky), plan).p_value)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.2
    assert min(p_values) > 0.002


def test_a_plan_is_written_and_a_changed_one_refused(planted, tmp_path):
    planted.plan.save(tmp_path)
    assert CanaryPlan.load(tmp_path) == planted.plan
    record = json.loads((tmp_path / "canaries.json").read_text())
    for changed in ({**record, "format": "x"}, {**record, "canaries": record["canaries"][:-1]}, 3):
        (tmp_path / "canaries.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"canaries\.json is .*synthaug train --canaries"):
            CanaryPlan.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        CanaryPlan.load(tmp_path / "nowhere")


def test_what_cannot_be_marked_is_refused(digits, planted):
    with pytest.raises(DataError, match="need 700 images, and at most half"):
        plant(digits, CanaryConfig(pairs=50))
    small = LabeledImages(torch.zeros(9, 1, 6, 6, dtype=torch.uint8), np.zeros(9, int), ["a"])
    with pytest.raises(ValueError, match="too small for the random keys"):
        plant(small, FEW)
    images = LabeledImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 1, 0, 1], ["a", "b"])
    with pytest.raises(DataError, match=r"leave no image of class '[ab]'"):
        plant(images, CanaryConfig(pairs=1, doses=(1,)))
    with pytest.raises(ValueError, match="`doses` must be at least 1, got 0"):
        CanaryConfig(doses=(0,))
    with pytest.raises(MismatchError, match="shape"):
        came_back(synthaug.images.LabeledImages(
            torch.zeros(2, 1, 9, 9, dtype=torch.uint8), [0, 0], ["0"]), planted.plan)  # fmt: skip


def test_a_model_names_its_canaries_and_so_do_its_images(planted, digits, tmp_path):
    config = TrainingConfig(steps=1, batch_size=4, device="cpu")
    model, _ = ClassConditional.fit(
        planted, tmp_path / "run", channels=8, config=config, progress=False
    )
    settings: Any = model.recipe()["settings"]
    assert settings["canaries"] == [planted.plan.digest]
    loaded = ClassConditional.from_pretrained(tmp_path / "run", device="cpu")
    assert loaded.recipe() == model.recipe()
    record = {"labeled": ImageSource.open(digits).record}
    plain = replace(model, model=replace(model.model, trained_on=record))
    assert "canaries" not in str(plain.recipe()["settings"])
    model, plain = (one.with_settings(num_inference_steps=1) for one in (model, plain))
    plan, generate = model.plan(per_class=1), synthaug.generate
    cache = generate(model, plan, str(tmp_path / "a.h5"), progress=False)
    assert came_back(cache, planted.plan).verdict == "pass"
    cache = generate(plain, plain.plan(per_class=1), str(tmp_path / "b.h5"), progress=False)
    with pytest.raises(MismatchError, match="not trained with these canaries"):
        came_back(cache, planted.plan)


def test_the_shell_trains_with_canaries_and_finds_them(digits, tmp_path):
    for row in np.flatnonzero(digits.labels < 2)[:24].tolist():
        image, label = digits[row]
        (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / str(label) / f"{row}.png")
    data = f"folder:{tmp_path / 'data'}"
    small = ("--steps", 1, "--batch-size", 4, "--width", 8, "--device", "cpu")
    marked = ("--canaries", 1, "--canary-doses", "1,2")
    succeed("train", data, tmp_path / "run", *small, *marked)
    draw = ("--per-class", 1, "--num-inference-steps", 1, "--device", "cpu")
    succeed("generate", tmp_path / "run", tmp_path / "c.h5", *draw)
    check_answer(
        "evaluate canaries", tmp_path / "c.h5", tmp_path / "run", "--out", tmp_path / "found"
    )
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["settings"]["command"].startswith("synthaug evaluate canaries ")
    message = fail(2, "train", data, tmp_path / "x", *small, *marked, "--method", "cold")
    assert "`--canaries` has no meaning with --method cold" in message
