"""Hardness of a cache beside real images, its report, and drawing by it."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import MixedDataset, Plan, SynthCache, density
from synthaug._datasets.draws import dealt
from synthaug.errors import AuditError, MismatchError
from synthaug.evaluation import HardnessReport, score_hardness
from synthaug.features import Pixel, extract
from synthaug.images import LabeledImages
from synthaug.mixing import Highest, Stratified
from tests.command_line import fail, succeed
from tests.images import to_pil

CLASSES = ("dark", "light")
PIXELS = Pixel(4)


def images(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Dark and light images of noise, in turn."""
    labels = np.arange(n) % 2
    noise = torch.randint(0, 80, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return (noise + torch.from_numpy(labels * 170).view(-1, 1, 1, 1)).to(torch.uint8), labels


def real(n: int, seed: int) -> LabeledImages:
    return LabeledImages(*images(n, seed), CLASSES)


def cache_of(path: Any, pixels: torch.Tensor, labels: np.ndarray, seed: int = 0) -> SynthCache:
    """A cache of these images, sorted by class, with a last row of each class pending."""
    counts = [int((labels == c).sum()) + 1 for c in (0, 1)]
    plan = Plan.build(counts, classes=CLASSES, settings={}, seed=seed)
    cache = SynthCache.create(path, plan, image_shape=(1, 8, 8), manifest={"recipe": {}})
    for c in (0, 1):
        cache.write(np.flatnonzero(cache.labels == c)[:-1], pixels[labels == c])
    return cache


@pytest.fixture
def cache(tmp_path):
    return cache_of(tmp_path / "c.h5", *images(40, 7))


def score(cache, train=None, **options):
    train = real(60, 0) if train is None else train
    return score_hardness(cache, train, features=PIXELS, progress=False, **options)


# Scores


def test_a_report_holds_what_the_mathematics_says_of_every_set(cache):
    train, holdout = real(60, 0), real(50, 1)
    report = score(cache, train, holdout=holdout, components=3, estimator="oas", k=4)
    x, y = extract(PIXELS, train.read(np.arange(60))), train.labels
    gaussians = density.ClassGaussians.fit(x, y, components=3, estimator="oas")
    neighborhood = density.Neighborhood(x, 4)
    done = np.flatnonzero(cache.done)
    drawn = extract(PIXELS, cache.read(done))
    np.testing.assert_array_equal(report.train.hardness, gaussians.leave_one_out(x, y))
    np.testing.assert_array_equal(report.train.outlier_factor, neighborhood.scores()[1])
    np.testing.assert_allclose(
        report.hardness[done], gaussians.hardness(drawn, cache.labels[done]), rtol=1e-9
    )
    distance, factor = neighborhood.scores(drawn)
    np.testing.assert_array_equal(report.synthetic.average_distance[done], distance)
    np.testing.assert_array_equal(report.synthetic.outlier_factor[done], factor)
    assert np.flatnonzero(np.isnan(report.hardness)).tolist() == [20, 41]
    assert report.holdout is not None
    assert len(report.holdout.hardness) == 50
    assert report.extractor == {"name": "pixels 4x4", "weights": None}


def test_images_in_parts_are_scored_alike(cache, monkeypatch):
    whole = score(cache).hardness
    monkeypatch.setattr("synthaug.evaluation._comparison._CHUNK", 7)
    np.testing.assert_allclose(score(cache).hardness, whole, rtol=1e-6)


def test_contrast_beyond_that_of_real_images_is_hard_and_shown_first(tmp_path):
    pixels, labels = images(40, 7)
    pixels[3] = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    cache = cache_of(tmp_path / "c.h5", pixels, labels)
    report = score(cache, holdout=real(60, 1))
    row = 21 + 1  # the second light image
    assert np.nanargmax(report.hardness) == row
    assert report.pictures["hardest"][0]["row"] == row
    assert np.nanargmax(report.synthetic.average_distance) == row
    shares = report.summary()["synthetic"]
    assert 1 / 40 <= shares["> 99 % of real"] < 0.5


def test_summaries_count_the_share_beyond_held_out_quantiles(cache):
    holdout = real(200, 3)
    report = score(cache, holdout=holdout)
    assert report.holdout is not None
    limit = np.quantile(report.holdout.hardness, 0.9)
    expected = float(np.mean(report.hardness[cache.done] > limit))
    assert report.summary()["synthetic"]["> 90 % of real"] == expected
    assert report.summary()["held-out"]["> 90 % of real"] == 0.1
    assert list(score(cache).summary()) == ["training, left out", "synthetic"]
    header, *lines = str(report).splitlines()
    assert "hardness 10 %" in header
    assert [line[:8] for line in lines] == ["training", "held-out", "syntheti"]


def test_a_report_survives_its_file(cache, tmp_path):
    for holdout in (None, real(50, 1)):
        report = score(cache, holdout=holdout)
        report.to_json(tmp_path / "r.json")
        again = HardnessReport.from_json(tmp_path / "r.json")
        np.testing.assert_allclose(again.hardness, report.hardness, rtol=1e-8)
        assert again.identity == cache.identity
        assert (again.holdout is None) == (holdout is None)
        assert again.settings == report.settings
        again.to_html(tmp_path / "again.html")
        report.to_html(tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert (tmp_path / "again.html").read_text() == text
        assert text.count("<figure>") == 48
    record = json.loads((tmp_path / "r.json").read_text())
    for broken in ("{", "{}", json.dumps({**record, "format": "x"}), json.dumps([1])):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(AuditError, match="not a hardness report"):
            HardnessReport.from_json(tmp_path / "broken.json")
    record["synthetic"]["hardness"].pop()
    (tmp_path / "broken.json").write_text(json.dumps(record))
    with pytest.raises(AuditError, match="differ in length"):
        HardnessReport.from_json(tmp_path / "broken.json")


def test_a_page_escapes_text_and_shows_no_foreign_pictures(tmp_path):
    pixels, labels = images(40, 7)
    names = ("<b>dark</b>", "light")
    train = LabeledImages(*images(60, 0), names)
    report = score_hardness(
        LabeledImages(pixels, labels, names), train, features=PIXELS, progress=False
    )
    report.pictures["hardest"][0]["image"] = "https://example.org/spy.png"
    report.to_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<b>dark" not in text
    assert "spy" not in text
    assert not re.search(r"<script|https?:", text)


def test_sets_that_do_not_fit_are_refused(cache):
    train = real(60, 0)
    other = LabeledImages(*images(60, 1), ("dark", "bright"))
    small = LabeledImages(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), images(60, 0)[1], CLASSES)
    for options, message in (
        ({"holdout": other}, "`holdout` has dark, bright"),
        ({"holdout": small}, r"`holdout` of shape \(1, 4, 4\)"),
        ({"holdout": real(60, 0)}, "`holdout` is `train`"),
    ):
        with pytest.raises(MismatchError, match=message):
            score(cache, train, **options)
    with pytest.raises(ValueError, match="Class 1 has 0 images"):
        score(cache, train.subset(train.labels == 0))


# Drawing by hardness


@pytest.fixture
def scores(cache):
    """Any numbers, NaN for the rows that are pending."""
    return np.where(cache.done, np.random.default_rng(0).permutation(len(cache)), np.nan)


def strata_of(cache, scores, rows, parts):
    """The stratum of each row among the servable ones of its class."""
    found = []
    for row in rows.tolist():
        own = np.sort(scores[(cache.labels == cache.labels[row]) & cache.done])
        found.append(int(np.searchsorted(own, scores[row]) * parts // len(own)))
    return np.array(found)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
def test_only_the_hardest_share_of_each_class_is_served(cache, scores, share):
    mixed = MixedDataset(
        real(400, 0), cache, audit=None, fraction=1.0, filters=[Highest(scores, share)]
    )
    served = np.unique(mixed.synthetic_rows())
    for c in (0, 1):
        own = np.flatnonzero((cache.labels == c) & cache.done)
        expected = own[np.argsort(scores[own])[len(own) - round(20 * share) :]]
        assert served[cache.labels[served] == c].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("parts", [2, 4, 5, 20])
@pytest.mark.parametrize("items", [40, 80])
def test_every_epoch_draws_equally_often_from_every_stratum(cache, scores, parts, items):
    mixed = MixedDataset(
        real(items, 0), cache, audit=None, fraction=1.0, draw=Stratified(scores, parts)
    )
    seen = []
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()
        seen.append(rows)
        for c in (0, 1):
            own = rows[cache.labels[rows] == c]
            counts = np.bincount(strata_of(cache, scores, own, parts), minlength=parts)
            assert counts.tolist() == [items // 2 // parts] * parts
            assert (np.bincount(own)[np.unique(own)] == items // 40).all()
    assert (seen[0] != seen[1]).any()


def test_few_draws_are_balanced_to_within_one(cache, scores):
    draw = Stratified(scores, 3)
    mixed = MixedDataset(real(40, 0), cache, audit=None, fraction=0.4, draw=draw)
    for epoch in range(5):
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()
        for c in (0, 1):
            own = rows[(rows >= 0) & (np.arange(40) % 2 == c)]
            counts = np.bincount(strata_of(cache, scores, own, 3), minlength=3)
            assert counts.max() - counts.min() <= 1


def test_appended_images_come_equally_from_the_strata_of_the_hardest(cache, scores):
    mixed = MixedDataset(
        real(40, 0), cache, audit=None, mode="append", ratio=0.2,
        filters=[Highest(scores, 0.4)], draw=Stratified(scores, 4),
    )  # fmt: skip
    every = []
    for epoch in range(4):  # two passes over the eight hardest of each class
        mixed.set_epoch(epoch)
        rows = mixed.synthetic_rows()[40:]
        every.append(rows)
        for c in (0, 1):
            own = rows[cache.labels[rows] == c]
            hard = scores[own].argsort().argsort()
            assert len(own) == 4
            ranks = np.sort(scores[(cache.labels == c) & cache.done])[-8:].searchsorted(scores[own])
            assert sorted((ranks // 2).tolist()) == [0, 1, 2, 3]
            assert sorted(hard.tolist()) == [0, 1, 2, 3]
    assert np.bincount(np.concatenate(every)).max() == 2


def test_any_run_of_a_deal_holds_one_of_each_stratum():
    rng = np.random.default_rng(0)
    for n, parts in ((12, 3), (13, 4), (3, 5), (1, 2)):
        values = np.arange(n) + 100
        order = dealt(rng, values, parts)
        assert sorted(order) == values.tolist()
        stratum = (order - 100) * parts // n
        full = n // parts * parts
        for run in stratum[:full].reshape(-1, parts):
            assert sorted(run) == list(range(parts))
        assert len(set(stratum[full:].tolist())) == n - full


def test_draws_depend_on_seed_and_epoch_alone_and_are_part_of_the_recipe(cache, scores):
    def mixed(**options):
        given: Any = {"draw": Stratified(scores, 4), "seed": 3} | options
        return MixedDataset(real(60, 0), cache, audit=None, fraction=0.7, **given)

    one, two = mixed(), mixed()
    two.set_epoch(5)
    two.synthetic_rows()
    two.set_epoch(0)
    np.testing.assert_array_equal(one.synthetic_rows(), two.synthetic_rows())
    assert (one.synthetic_rows() != mixed(seed=4).synthetic_rows()).any()
    recipes = [
        mixed(**options).recipe()
        for options in (
            {},
            {"draw": Stratified(scores, 5)},
            {"filters": [Highest(scores, 0.5)]},
            {"draw": Stratified(-scores, 4)},
            {"draw": None},
        )
    ]
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    assert "Drawn equally from 4 strata" in repr(one)
    half = repr(mixed(filters=[Highest(scores, 0.5)]))
    assert "Filter: highest 0.5 of each class by score: 20 of 40 images left" in half


def test_a_report_goes_with_its_cache_and_withheld_rows_are_never_drawn(cache, tmp_path):
    report = score(cache)

    class Audit:
        identity, verdict = cache.identity, "pass"
        passed = np.arange(len(cache)) != np.nanargmax(report.hardness)

    mixed = MixedDataset(
        real(60, 0), cache, audit=Audit(), fraction=1.0, filters=[Highest(report, 0.2)]
    )
    assert "Filter: highest 0.2 of each class by hardness" in repr(mixed)
    assert np.nanargmax(report.hardness) not in mixed.synthetic_rows()
    other = cache_of(tmp_path / "other.h5", *images(40, 7), seed=1)
    for options in ({"filters": [Highest(report, 0.2)]}, {"draw": Stratified(report, 2)}):
        with pytest.raises(MismatchError, match="report of hardness judges another cache"):
            MixedDataset(real(60, 0), other, audit=None, fraction=1.0, **options)


def test_wrong_arguments_of_drawing_are_named(cache, scores):
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 0.0"):
        Highest(scores, 0.0)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Stratified(scores, 1)
    pending = np.where(np.arange(len(scores)) == 5, np.nan, scores)
    for given, message in (
        (scores[:-1], r"shape \(41,\), the cache has 42"),
        (pending, "first is row 5"),
    ):
        for options in ({"filters": [Highest(given, 0.5)]}, {"draw": Stratified(given, 2)}):
            with pytest.raises(ValueError, match=message):
                MixedDataset(real(60, 0), cache, audit=None, fraction=0.5, **options)


# The command


def test_the_command_writes_the_report_that_a_data_set_can_draw_by(cache, tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        for i, (pixels, label) in enumerate(zip(*images(40, seed), strict=True)):
            path = tmp_path / name / CLASSES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil(pixels).save(path)
    train, test = f"folder:{tmp_path / 'train'}", f"folder:{tmp_path / 'test'}"
    arguments = ["evaluate", "density", tmp_path / "c.h5", train]
    options = ["--holdout", test, "--components", "3", "--out", tmp_path / "new" / "out"]
    assert "held-out" in succeed(*arguments, *options, "--features", "pixels:4")
    assert "<html" in (tmp_path / "new" / "out.html").read_text()
    report = HardnessReport.from_json(tmp_path / "new" / "out.json")
    folder = LabeledImages(*images(40, 0), CLASSES)
    expected = score(cache, folder, holdout=real(40, 1), components=3)
    np.testing.assert_allclose(report.hardness, expected.hardness, rtol=1e-6)
    MixedDataset(folder, cache, audit=None, fraction=0.5, draw=Stratified(report, 2))
    assert "`--features` is missing" in fail(2, "-v", *arguments)
