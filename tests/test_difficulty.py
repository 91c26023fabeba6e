"""Difficulty of real images: folds, measures, weights and where they are used."""

import stat
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import ClassifierConfig, generate
from synthaug._images.labeled import LabeledImages
from synthaug.errors import DataError
from synthaug.selection import Difficulty, _folds, difficulty
from synthaug.selection._difficulty import _measured
from synthaug.selection._folds import Judges, fold_numbers, near_duplicates
from tests.tiny.class_conditional import Real, tiny

CONFIG = ClassifierConfig(steps=24, batch_size=16, device="cpu")
WRONG = 3


def bright_and_dark(per_class: int = 12) -> LabeledImages:
    """Bright and dark images, one of which has the other label."""
    rng = np.random.default_rng(0)
    labels = np.arange(2 * per_class) % 2
    levels = np.where(labels == 1, 170, 60)
    levels[WRONG] = 60
    pixels = (levels[:, None, None, None] + rng.integers(-40, 40, (len(labels), 1, 8, 8))).clip(
        0, 255
    )
    return LabeledImages(torch.from_numpy(pixels.astype(np.uint8)), labels, ("dark", "bright"))


@pytest.fixture(scope="module")
def scored() -> Difficulty:
    return difficulty(bright_and_dark(), runs=2, config=CONFIG, looks=6, progress=False)


def test_a_wrong_label_is_the_hardest_image_of_its_class_by_every_measure(scored):
    bright = np.flatnonzero(scored.labels == 1)
    for measure in ("loss", "learning_time"):
        assert bright[scored.measure(measure)[bright].argmax()] == WRONG
    assert scored.agreement[WRONG] == 0
    assert scored.learning_time[WRONG] > 1
    assert np.delete(scored.agreement, WRONG).mean() > 0.9
    assert str(scored).splitlines()[0].split()[0] == "class"


def test_the_measures_of_known_probabilities():
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    curves = np.array(
        [[right, wrong], [wrong, wrong], [right, right], [right, wrong], [right, wrong]], np.float32
    )
    found = _measured(curves, np.array([0, 0]))
    np.testing.assert_allclose(found["learning_time"], [3 / 5, 6 / 5])
    assert found["forgetting"].tolist() == [1, 1]
    assert found["agreement"].tolist() == [1, 0]
    np.testing.assert_allclose(found["el2n"], [0.1 * 2**0.5, 0.8 * 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(found["loss"][0], -(4 * np.log(0.9) + np.log(0.2)) / 5, rtol=1e-6)


def known(**changes: Any) -> Difficulty:
    """Four images of class a, then two of class b."""
    loss = np.array([3.0, 1.0, 2.0, 4.0, 5.0, 5.0])
    fields: dict[str, Any] = {
        "identity": {},
        "classes": ("a", "b"),
        "labels": np.array([0, 0, 0, 0, 1, 1]),
        "keys": np.arange(6, dtype=np.uint64),
        **dict.fromkeys(("loss", "learning_time", "el2n", "forgetting", "agreement"), loss),
        "settings": {},
        "picture": "",
    }
    return Difficulty(**{**fields, **changes})


def test_weights_follow_ranks_within_classes():
    hard = known()
    np.testing.assert_allclose(hard.ranks(), [0.625, 0.125, 0.375, 0.875, 0.5, 0.5])
    np.testing.assert_allclose(hard.weights("hard"), hard.ranks())
    np.testing.assert_allclose(hard.weights("easy"), 1 - hard.ranks())
    np.testing.assert_allclose(hard.weights(), [0.75, 0.25, 0.75, 0.25, 1, 1])
    assert hard.weights((0.5, 1.0)).tolist() == [1, 0, 0, 1, 1, 1]
    assert hard.strata(2).tolist() == [0, 0, 0, 1, 1, 1]
    assert hard.strata(3).tolist() == [1, 0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match=r"holds no image of class 'b'"):
        hard.weights((0.6, 1.0))
    with pytest.raises(ValueError, match="`kind` must be one of 'easy', 'medium', 'hard'"):
        hard.weights("hardest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`by` must be one of"):
        hard.weights("hard", by="depth")  # type: ignore[arg-type]


def test_no_image_is_judged_by_a_classifier_that_learned_from_it_or_from_a_near_duplicate(
    monkeypatch,
):
    real = bright_and_dark()
    pixels = real.read(range(len(real)))
    pixels[5] = pixels[1] + 1  # a near-duplicate
    real = LabeledImages(pixels, real.labels, real.classes)
    learned: list[set[int]] = []

    def curves(train: Any, judged: Any, **options: Any) -> Any:
        learned.append(set(train.indices) if options.get("looks") else set())
        return np.full((1, len(judged), 2), 0.5, np.float32)

    monkeypatch.setattr(_folds, "learning_curves", curves)
    judges = Judges(runs=3, folds=3, config=CONFIG, progress=False)
    from synthaug._images.source import ImageSource

    parents = np.array([*range(len(real)), -1])
    more = torch.cat([pixels, pixels[:1]])
    counts = np.zeros(len(more), int)
    for judged, _ in judges.curves(ImageSource.open(real, "`real`"), more, parents, 1):
        counts[judged] += 1
        assert not learned[-1] & set(judged.tolist())
        assert (1 in learned[-1]) == (5 in learned[-1])
        assert np.bincount(real.labels[sorted(learned[-1])]).tolist() in ([8, 8], [7, 9], [8, 9])
    assert counts.tolist() == [3] * len(real) + [9]  # one without a parent is judged by all


def test_near_duplicates_share_a_number_and_folds_divide_every_class():
    pixels = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    pixels[4], pixels[5] = pixels[0], pixels[4]
    assert near_duplicates(pixels).tolist() == [0, 1, 2, 3, 0, 0]
    labels = np.arange(40) % 2
    fold = fold_numbers(labels, np.arange(40), 4, np.random.default_rng(0))
    assert np.bincount(fold * 2 + labels).tolist() == [5] * 8


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((6, 2), {}, r"Class 'bright' has 2 images, too few for 2 folds.*at least 4.*`folds=1`"),
        ((6, 1), {"folds": 1}, r"has 1 images"),
        ((6, 6), {"runs": 0}, "`runs` must be at least 1"),
        ((6, 6), {"looks": 1}, "`looks` must be at least 2"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_training(
    counts, options, message, monkeypatch
):
    monkeypatch.setattr(_folds, "learning_curves", None)
    labels = np.repeat([0, 1], counts)
    pixels = torch.randint(0, 256, (len(labels), 1, 8, 8)).to(torch.uint8)
    real = LabeledImages(pixels, labels, ("dark", "bright"))
    with pytest.raises((DataError, ValueError), match=message):
        difficulty(real, config=CONFIG, progress=False, **options)


def test_a_class_of_copies_cannot_be_divided():
    real = bright_and_dark()
    pixels = real.read(range(len(real)))
    pixels[real.labels == 0] = 7
    copies = LabeledImages(pixels, real.labels, real.classes)
    with pytest.raises(DataError, match="All images of class 'dark' are near-duplicates"):
        difficulty(copies, config=CONFIG, progress=False)


def test_the_report_is_read_back_and_its_files_are_for_their_owner(scored, tmp_path):
    path = scored.to_json(tmp_path / "difficulty.json")
    again = Difficulty.from_json(path)
    for name in ("loss", "forgetting", "labels", "keys"):
        np.testing.assert_array_equal(vars(again)[name], vars(scored)[name])
    page = scored.to_html(tmp_path / "difficulty.html")
    assert "data:image/png" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) & 0o077 == 0
    frame = scored.to_frame()
    assert list(frame["class"][:2]) == ["dark", "bright"]
    assert len(frame) == 24


# Plans


def test_sources_are_used_as_often_as_their_weights_say():
    synthesizer = tiny().with_sources(Real(labels=(0, 0, 0, 1, 2, 3, 3, 3)))
    weights = [3, 1, 0, 5, 5, 1, 1, 1]
    plan = synthesizer.plan(per_class=8, source_weights=weights, strength=0.5)
    used = np.bincount(plan["source"], minlength=8)
    assert used.tolist() == [6, 2, 0, 8, 8, 3, 3, 2]
    assert len(set(plan["seed"].tolist())) == len(plan)
    plain = synthesizer.plan(per_class=8)
    assert synthesizer.plan(per_class=8, source_weights=np.ones(8)).digest == plain.digest


def test_weights_that_fit_no_sources_are_refused():
    synthesizer = tiny().with_sources(Real())
    with pytest.raises(ValueError, match=r"shape \(2,\), expected .* for each of 8 real images"):
        synthesizer.plan(per_class=1, source_weights=[1, 2])
    with pytest.raises(ValueError, match="All `source_weights` of class 'cat' are 0"):
        synthesizer.plan(per_class=1, source_weights=[1, 1, 0, 1] * 2)
    with pytest.raises(ValueError, match="rows start from noise"):
        tiny().plan(per_class=1, source_weights=[1.0] * 8)


def test_a_cache_has_the_difficulty_of_its_sources(tmp_path):
    real = Real()
    synthesizer = tiny(num_inference_steps=2).with_sources(real)
    cache = generate(
        synthesizer, synthesizer.plan(per_class=3, strength=0.5), tmp_path / "a.h5", progress=False
    )
    from synthaug._images.source import ImageSource

    keys = ImageSource.open(real, "`real`").keys()[::-1]
    fields: dict[str, Any] = {
        n: np.arange(8.0) for n in ("loss", "learning_time", "el2n", "forgetting", "agreement")
    }
    hard = replace(known(), labels=np.arange(8) % 2, keys=keys, **fields)
    assert (hard.of_sources(cache) == 7 - cache.plan["source"]).all()
    other = replace(hard, keys=keys + np.uint64(1))
    assert np.isnan(other.of_sources(cache)).all()
    with pytest.raises(ValueError, match="Got 2 `values` for 8 real images"):
        hard.of_sources(cache, np.ones(2))
