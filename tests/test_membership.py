"""Membership tests: exact where a random split made the sets, and honest about where it did not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

import synthaug
from synthaug._audit.discrimination import (
    Discrimination,
    Division,
    OperatingPoint,
    auc,
    auc_interval,
    operating_point,
    proportion_interval,
    strata_of,
)
from synthaug._audit.members import ease
from synthaug.memorization import MembershipReport
from synthaug.synthesizers import AbstractSynthesizer, Constant, LossGrid
from tests.exact_denoisers import ExactDenoiser
from tests.tiny import cascades, class_conditional, cold, inversions, low_density


class Restorer(AbstractSynthesizer):
    """Restores images by a function of their pixels: loss float64 (n,) from uint8 (n, C, H, W)."""

    def __init__(self, loss: Callable[[Any], NDArray[np.float64]], **record: Any) -> None:
        self.loss, self.record = loss, record or None

    def draw(self, rows: Any) -> Any:
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        return {"synthesizer": "Restorer", "settings": {}}

    @property
    def trained_on(self) -> Any:
        return self.record

    def restoration_losses(self, pixels: Any, labels: Any, grid: LossGrid) -> NDArray[np.float64]:
        return np.exp(self.loss(pixels))[:, None] * np.ones(len(grid.times))


def hashed(pixels: Any) -> NDArray[np.float64]:
    """A loss that has nothing to do with what an image shows."""
    weights = np.random.default_rng(0).random(pixels[0].numel())
    return np.sin(1e3 * (pixels.flatten(1).numpy() @ weights))


@pytest.fixture(scope="module")
def digits() -> Any:
    return synthaug.load_dataset("digits").subset(np.arange(0, 1797, 9))


@pytest.fixture(scope="module")
def few() -> Any:
    return synthaug.load_dataset("digits").subset(np.arange(0, 1797, 17))


def halves(dataset: Any, seed: int = 0, share: float = 0.5) -> tuple[Any, Any]:
    order = np.random.default_rng(seed).permutation(len(dataset))
    first = round(share * len(dataset))
    return dataset.subset(order[:first]), dataset.subset(order[first:])


def knowing(train: Any, gain: float, known: int | None = None) -> Restorer:
    """Restores the first training images better than others, by so many logarithms of the loss."""
    keys = {row.numpy().tobytes() for row in train.read(range(len(train)))[:known]}

    def loss(pixels: Any) -> NDArray[np.float64]:
        knows = np.array([row.numpy().tobytes() in keys for row in pixels])
        return hashed(pixels) - gain * knows

    return Restorer(loss)


def test_a_model_that_knows_its_training_images_is_caught(digits):
    train, holdout = halves(digits)
    report = synthaug.membership(knowing(train, 1.5), train, holdout, random_split=True)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert report.told.auc > 0.75
    assert report.told.interval[0] < report.told.auc < report.told.interval[1]
    assert report.p_value == pytest.approx(2 / 10_001)
    assert report.low_false_positives is not None
    areas = [one.auc for one in report.by_class if min(one.train, one.holdout) >= 5]
    assert len(areas) >= 8
    assert np.mean([area for area in areas if area is not None]) > 0.75
    assert None not in areas
    assert sum(one.recognized or 0 for one in report.by_class) == (
        report.low_false_positives.true_positives
    )


def test_a_model_that_knows_a_few_images_by_heart_is_caught_by_those_restored_best(digits):
    train, holdout = halves(digits)
    report = synthaug.membership(knowing(train, 9.0, known=8), train, holdout, random_split=True)
    closest: Any = report.closest
    assert (report.verdict, closest["count"]) == ("fail", closest["depth"])
    assert closest["p_value"] < 0.005 < report.told.p_value  # which hardly sees it


def test_the_exact_denoiser_of_twenty_images_is_caught_by_its_loss():
    points = synthaug.load_dataset("digits").read(range(40))
    exact, grid = ExactDenoiser(points[:20] / 127.5 - 1), LossGrid()

    def loss(pixels: Any) -> NDArray[np.float64]:
        x0 = pixels.double() / 127.5 - 1
        noise = torch.randn(x0[:1].shape, generator=torch.Generator().manual_seed(0)).double()
        a = exact.alphas_cumprod[int(grid.times[8] * 1000)]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        error = exact(x_t, torch.tensor(int(grid.times[8] * 1000)), None) - noise
        return error.square().flatten(1).mean(1).log().numpy()

    report = synthaug.membership(Restorer(loss), points[:20], points[20:], random_split=True)
    assert (report.verdict, report.told.auc) == ("fail", 1.0)
    pairs = min(len(set(report.group[part].tolist())) for part in (range(20), range(20, 40)))
    assert report.told.interval[0] == pytest.approx(proportion_interval(pairs, pairs)[0])


def test_honest_splits_give_uniform_p_values():
    rng = np.random.default_rng(0)
    # Groups of one to three images whose scores are alike, divided group by group.
    sizes = rng.integers(1, 4, 60)
    group, labels = np.repeat(np.arange(60), sizes), np.repeat(np.arange(60) % 2, sizes)
    scores = np.repeat(rng.normal(size=60), sizes) + 0.1 * rng.normal(size=sizes.sum())
    p_values = []
    for seed in range(40):
        member = np.repeat(rng.random(60) < 0.5, sizes)
        division = Division.of(member, group, labels)
        p_values.append(Discrimination.of(scores, division, seed=seed).p_value)
    assert 0.3 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) <= 0.1) < 0.3


def test_groups_that_change_places_have_as_many_images_of_the_same_classes():
    group = np.array([0, 0, 1, 1, 2, 3, 3, 4])
    labels = np.array([5, 6, 6, 5, 5, 5, 5, 5])
    assert strata_of(group, labels).tolist() == [0, 0, 0, 0, 1, 2, 2, 1]


def test_copies_of_one_image_do_not_count_as_evidence_each(digits):
    # One image, forty times in training: its loss is low by chance, and it is one group.
    copies = digits.read([0]).repeat(40, 1, 1, 1)
    train, holdout = digits.read(range(1, 61)), digits.read(range(61, 121))
    model = Restorer(lambda x: hashed(x) - 9.0 * (x == copies[0]).flatten(1).all(1).numpy())
    report = synthaug.membership(model, torch.cat([copies, train]), holdout, random_split=True)
    assert report.told.auc > 0.6
    assert (len(set(report.group[:40].tolist())), report.p_value > 0.1) == (1, True)


def test_a_hold_out_of_other_images_is_seen_without_the_model(few):
    train, holdout = halves(few)
    inverted = synthaug.images.LabeledImages(
        255 - holdout.read(range(len(holdout))), holdout.labels, holdout.classes
    )
    model = Restorer(lambda pixels: pixels.double().flatten(1).mean(1).numpy() / 50)
    report = synthaug.membership(model, train, inverted, random_split=True)
    assert (report.verdict, report.exit_code) == ("not interpretable", 3)
    assert "differ without any model" in report.reasons[0]
    assert report.reference.auc > 0.95
    assert report.p_value < 0.01  # the model seems to know its images, and does not
    honest = synthaug.membership(Restorer(hashed), train, holdout, random_split=True)
    assert (honest.verdict, honest.reference.p_value > 0.01) == ("pass", True)
    assert f"above {honest.told.interval[1]:.3f} would have been noticed" in honest.reasons[0]


@pytest.mark.parametrize(("random_split", "said"), [(None, "may differ"), (False, "came from")])
def test_only_a_random_split_is_interpretable(few, random_split, said):
    train, holdout = halves(few)
    report = synthaug.membership(knowing(train, 2.0), train, holdout, random_split=random_split)
    assert report.verdict == "not interpretable"
    assert said in report.reasons[0]
    assert "random_split=True" in report.reasons[0]
    assert report.p_value < 0.01


def test_a_record_of_other_training_images_is_named(few):
    train, holdout = halves(few)
    for record, named in ((train, False), (holdout, True)):
        model = Restorer(hashed, labeled={"fingerprint": record.fingerprint, "images": 1})
        report = synthaug.membership(model, train, holdout, random_split=True)
        assert any("names other training images" in reason for reason in report.reasons) == named
    subset = Subset(train, range(len(train)))  # has no fingerprint: nothing is known
    assert "names other" not in str(synthaug.membership(model, subset, holdout))


def test_a_report_is_whole(digits, tmp_path):
    train, holdout = halves(digits, share=0.75)
    report = synthaug.membership(knowing(train, 2.0), train, holdout, random_split=True)
    assert report.low_false_positives is None  # with 64 held-out images
    page = report.to_html(tmp_path / "m.html").read_text()
    assert "With 50 held-out images nothing can be said about 1 % false positives" in page
    for text in ("reference", "a pass does not mean", "synthaug train --canaries", "By class"):
        assert text in page
    again = MembershipReport.from_json(report.to_json(tmp_path / "m.json"))
    assert str(again) == str(report)
    damaged = dataclasses.replace(report, rows=report.rows[1:]).to_json(tmp_path / "d.json")
    with pytest.raises(synthaug.errors.AuditError, match="do not fit each other"):
        MembershipReport.from_json(damaged)
    frame = report.to_frame()
    assert frame["set"].tolist() == ["train"] * 150 + ["holdout"] * 50
    assert frame["class"][0] == str(train.labels[0])


MODELS: dict[str, Callable[..., Any]] = {
    "class": class_conditional.tiny,
    "cold": cold.tiny,
    "inversion": inversions.generator,
    "steered": low_density.steered,
    "cascade": cascades.tiny_cascade,
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_synthesizer_with_a_network_says_its_losses_image_by_image(kind):
    model: Any = MODELS[kind]()
    shape = model.image_shape
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8))
    labels, grid = np.array([0, 1, 0, 1, 0, -1]) % max(1, len(model.classes)), LossGrid(levels=2)
    losses = model.restoration_losses(pixels, labels, grid)
    networks = 1 + len(model.stages) if kind == "cascade" else 1
    assert (losses.shape, losses.dtype) == ((6, 4 * networks), np.float64)
    assert (losses > 0).all()
    alone = model.restoration_losses(pixels[4:5], labels[4:5], grid)
    np.testing.assert_allclose(alone, losses[4:5], rtol=1e-4)
    again = model.restoration_losses(pixels, labels, LossGrid(levels=2, seed=1))
    assert (again != losses).any() == (kind != "cold")  # another noise; blur has none


def test_what_cannot_be_tested_is_refused(few, tmp_path):
    train, holdout = halves(few)
    constant = Constant(few.read(range(len(few))), few.labels, classes=few.classes)
    cases: Any = (
        (constant, holdout, TypeError, "Constant has no denoising network"),
        (str(tmp_path), holdout, TypeError, "`synthesizer` is a str, expected a synthesizer"),
        (Restorer(hashed), holdout.subset(range(9)), ValueError, "holds 9 images, at least 20"),
        (class_conditional.tiny(), holdout, synthaug.errors.MismatchError, "shape|class"),
        (Restorer(lambda x: hashed(x) * np.nan), holdout, synthaug.errors.DivergedError, "finite"),
    )
    for model, holdouts, error, text in cases:
        with pytest.raises(error, match=text):
            synthaug.membership(model, train, holdouts)


def test_areas_intervals_and_thresholds_are_those_of_their_definitions():
    rng = np.random.default_rng(1)
    scores, member = rng.normal(size=300), np.arange(300) < 150
    scores[member] += 0.5
    pairs = scores[member][:, None] - scores[~member][None]
    assert auc(scores, member) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    hits = 0
    for _ in range(60):
        drawn = rng.normal(size=300) + 0.5 * member
        low, high = auc_interval(drawn, member, np.arange(300))
        hits += low < 0.6382 < high  # the area between two such normal distributions
    assert hits >= 53
    twice = np.arange(300) // 2 * 2  # pairs: half as much evidence, if they are alike
    paired = np.repeat(scores[::2], 2)
    wide, narrow = (np.ptp(auc_interval(paired, member, g)) for g in (twice, np.arange(300)))
    assert wide == pytest.approx(narrow * 2**0.5, rel=0.1)
    point = operating_point(scores, member)
    assert isinstance(point, OperatingPoint)
    assert point.false_positives == 1
    threshold = np.sort(scores[~member])[-2]
    assert point.true_positives == (scores[member] > threshold).sum()
    assert operating_point(scores[101:], member[101:], rate=0.001) is None


def test_scores_do_not_depend_on_the_order_of_the_images():
    losses = np.random.default_rng(0).lognormal(size=(50, 3))
    labels = np.arange(50) % 3
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(ease(losses, labels)[order], ease(losses[order], labels[order]))
