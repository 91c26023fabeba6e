from typing import Any

import numpy as np
import pytest

from synthaug import MixedDataset, Plan, SynthCache
from synthaug.errors import AuditError, MismatchError
from synthaug.evaluation import ClassifierConfig, LabelCheck, _label_check, check_labels
from synthaug.evaluation._label_check import withhold
from synthaug.images import LabeledImages
from tests.images import dark_and_light

CLASSES = ("dark", "light")


@pytest.fixture
def real() -> LabeledImages:
    return LabeledImages(*dark_and_light(16), CLASSES)


@pytest.fixture
def cache(tmp_path):
    """Ten images of each class; the first of each looks like the other class."""
    plan = Plan.build([10, 10], classes=CLASSES, settings={}, seed=0)
    found = SynthCache.create(
        tmp_path / "c.h5", plan, image_shape=(1, 8, 8), manifest={"recipe": {}}
    )
    pixels, labels = dark_and_light(40)
    rows = [np.flatnonzero(labels == c)[:10] for c in (0, 1)]
    rows[0][0], rows[1][0] = rows[1][0], rows[0][0]
    found.write(np.arange(20), pixels[np.concatenate(rows)])
    return found


class Report:
    """An audit that flagged one row."""

    verdict = "pass"

    def __init__(self, cache, flagged):
        self.identity = cache.identity
        self.passed = np.arange(len(cache)) != flagged


def test_images_of_another_class_are_withheld_counted_and_not_served(cache, real, tmp_path):
    check = check_labels(
        cache, real, threshold=0.5, config=ClassifierConfig(steps=30), seeds=(0,), progress=False
    )
    assert np.flatnonzero(check.withheld).tolist() == [0, 10]
    assert check.counts == {"dark": (1, 10), "light": (1, 10)}
    assert str(check).startswith("2 of 20 images withheld")
    check.to_json(tmp_path / "check.json")
    again = LabelCheck.from_json(tmp_path / "check.json")
    assert (again.passed == check.passed).all()
    assert again.counts == check.counts
    assert again.settings == check.settings
    joined = again.with_audit(Report(cache, 3))
    for verdicts, served, told in [
        (again, 18, "18 images, not audited, 2 withheld"),
        (joined, 17, "17 images, audit: pass, 3 withheld"),
    ]:
        mixed = MixedDataset(real, cache, audit=verdicts, fraction=1.0)
        assert mixed.served.mask.sum() == served
        assert str(mixed.served) == told
        assert not {0, 10} & set(mixed.synthetic_rows().tolist())


def test_a_percentile_withholds_the_same_share_of_every_class():
    scores = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.2, 0.8, 0.7, 0.6, 0.4], np.float32)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    for percentile, expected in [(10, []), (25, [1, 5]), (50, [1, 4, 5, 9]), (99, [1, 2, 4])]:
        found = np.flatnonzero(withhold(scores, labels, threshold=None, percentile=percentile))
        assert [row for row in found if row < 5 or percentile < 99] == expected
    assert np.flatnonzero(withhold(scores, labels, threshold=0.3, percentile=None)).tolist() == [
        1,
        5,
    ]


def test_rows_that_are_not_done_are_neither_judged_nor_served(cache, real, monkeypatch):
    cache.withdraw(np.array([4, 5]))
    seen = []

    def sure(train, pixels, **settings):
        seen.append(len(pixels))
        return np.full((len(pixels), 2), 0.5, np.float32)

    monkeypatch.setattr(_label_check, "class_probabilities", sure)
    check = check_labels(cache, real, threshold=0.4)
    assert seen == [18]
    assert np.flatnonzero(~check.passed).tolist() == [4, 5]
    assert check.counts == {"dark": (0, 8), "light": (0, 10)}


def test_checks_that_make_no_sense_are_refused(cache, real, tmp_path):
    rules: list[tuple[dict[str, Any], str]] = [
        ({}, "exactly one of `threshold` and `percentile`; got none"),
        ({"threshold": 0.5, "percentile": 5}, "got both"),
        ({"threshold": 1.0}, r"`threshold` must be in \(0, 1\), got 1"),
        ({"percentile": 0}, r"`percentile` must be in \(0, 100\), got 0"),
    ]
    for rule, message in rules:
        with pytest.raises(ValueError, match=message):
            check_labels(cache, real, **rule)
    other = LabeledImages(*dark_and_light(4), ("light", "gray"))
    with pytest.raises(MismatchError, match="only the real images have 'gray'"):
        check_labels(cache, other, threshold=0.5)
    check = check_labels(
        cache, real, percentile=5, config=ClassifierConfig(steps=1), seeds=(0,), progress=False
    )
    report = Report(cache, 0)
    report.identity = {"another": "cache"}
    with pytest.raises(MismatchError, match="another cache than the label check"):
        check.with_audit(report)
    (tmp_path / "x.json").write_text('{"format": "poem"}')
    for name, problem in (("x.json", "is not a label check"), ("absent.json", "does not exist")):
        with pytest.raises(AuditError, match=problem):
            LabelCheck.from_json(tmp_path / name)
