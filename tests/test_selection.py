"""Over-drawing and selecting, and labels with doubt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synthaug import ClassifierConfig, MixedDataset, Plan, SynthCache, selection
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.mixing import ItemFormat
from synthaug.selection import ImageSelection, _folds, _rules, pseudo_label, select, teacher_labels

CLASSES = ("dark", "bright")
SHAPE = (1, 8, 8)
CONFIG = ClassifierConfig(steps=2, batch_size=4, device="cpu")


class Level:
    """One feature: the mean gray level."""

    name = "level"

    def __call__(self, pixels: Tensor) -> np.ndarray:
        return pixels.float().mean((1, 2, 3))[:, None].numpy()


class Judge(nn.Module):
    """Bright images are likely "bright", and those of a mean level of 128 undecided."""

    def forward(self, images: Tensor) -> Tensor:
        level = 4 * images.mean((1, 2, 3))
        return torch.stack([-level, level], 1)


def judged(pixels: Tensor) -> np.ndarray:
    return Judge()(pixels.float() / 127.5 - 1).softmax(1).numpy()


def images(levels: ArrayLike) -> Tensor:
    values = torch.as_tensor(np.asarray(levels), dtype=torch.uint8)
    return values[:, None, None, None].expand(-1, *SHAPE).contiguous()


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Classifiers go by the mean level, and nothing is trained; notes which images they saw."""
    seen: list[list[int]] = []

    def curves(train: Any, pixels: Tensor, **options: Any) -> np.ndarray:
        whole = range(len(train))
        seen.append(list(getattr(train, "indices", whole)))
        options["advance"](options["config"].steps)
        return judged(pixels)[None]

    monkeypatch.setattr(_folds, "learning_curves", curves)
    return seen


@pytest.fixture
def real() -> LabeledImages:
    levels = [20, 30, 40, 50, 60, 70, 180, 190, 200, 210, 220, 230]
    return LabeledImages(images(levels), np.repeat([0, 1], 6), CLASSES)


def cache_of(
    folder: Path, dark: list[int], bright: list[int], done: Any = None, real: Any = None
) -> SynthCache:
    """A cache of images of these levels; with `real`, row i of a class starts from its image i."""
    from synthaug._images.source import ImageSource

    sources: dict[str, Any] = {}
    if real is not None:
        sources = {
            "sources": [np.flatnonzero(np.asarray(real.labels) == c) for c in (0, 1)],
            "source_keys": ImageSource.open(real, "`real`").keys(),
        }
    counts = (len(dark), len(bright))
    plan = Plan.build(counts, classes=CLASSES, settings={}, seed=0, **sources)
    manifest = {"recipe": {"synthesizer": "test", "settings": {}, "weights": {}}}
    path = folder / f"{len(list(folder.iterdir()))}.h5"
    cache = SynthCache.create(path, plan, image_shape=SHAPE, manifest=manifest)
    rows = np.arange(len(plan)) if done is None else np.asarray(done)
    cache.write(rows, images(np.array([*dark, *bright])[rows]), fsync="never")
    return cache


def chosen(cache: SynthCache, real: Any, *rules: Any, **options: Any) -> ImageSelection:
    settings = {"features": Level(), "config": CONFIG, "progress": False, **options}
    return select(cache, real, rules=rules, **settings)


# Rules


def test_keeping_everything_is_bit_equal_to_doing_nothing(tmp_path, real):
    cache = cache_of(tmp_path, [10, 20, 30], [200, 210, 220])
    everything = chosen(cache, real, keep=1.0)
    assert everything.passed.all()
    plain = MixedDataset(real, cache, audit=None, fraction=0.5)
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5, filters=[everything])
    assert mixed.recipe() == plain.recipe()
    for epoch in (0, 3):
        plain.set_epoch(epoch)
        mixed.set_epoch(epoch)
        assert torch.equal(plain.read(range(12)), mixed.read(range(12)))


def test_each_rule_takes_what_it_says(tmp_path, real):
    # Real images are 10 levels apart.
    cache = cache_of(tmp_path, [20, 22, 95, 180, 20, 66], [200, 210, 255, 100, 226, 181])

    def kept(*rules: Any, **options: Any) -> list[int]:
        return np.flatnonzero(chosen(cache, real, *rules, **options).passed).tolist()

    assert kept("label") == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
    assert kept(selection.Recognized(threshold=0.99)) == [0, 1, 4, 7, 8, 10]
    assert kept("support") == [0, 1, 4, 5, 6, 7, 10, 11]
    assert kept("distinct") == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert kept("useful") == [1, 2, 4, 5, 6, 7, 10, 11]
    assert kept("label", "support", "distinct") == [0, 5, 6, 7, 10, 11]


def test_diverse_rules_keep_as_many_as_are_wanted(tmp_path, real):
    dark = [0, 1, 2, 3, 40, 41, 80, 81]
    cache = cache_of(tmp_path, dark, [200, 201, 202, 203])
    for rule in ("k-center", "facility-location", "mmd"):
        found = chosen(cache, real, rule, keep=3)
        assert found.passed.sum() == 6, rule
    center = chosen(cache, real, "k-center", keep=3).passed
    assert {dark[i] // 40 for i in np.flatnonzero(center[:8])} == {0, 1, 2}
    facility = chosen(cache, real, "facility-location", keep=3).passed
    assert {dark[i] // 40 for i in np.flatnonzero(facility[:8])} == {0, 1, 2}


def test_greedy_discrepancy_follows_the_real_images(tmp_path, real):
    dark = [20, 30, 40, 50, 60, 70, 0, 1, 2, 3, 4, 5]
    cache = cache_of(tmp_path, dark, [200] * 12)
    like = chosen(cache, real, "mmd", keep=0.5).passed[:12]
    assert np.array(dark)[like].mean() == pytest.approx(45, abs=8)
    assert like[:6].sum() >= 5


def test_what_rules_leave_beyond_the_number_is_drawn_by_lot(tmp_path, real):
    cache = cache_of(tmp_path, list(range(40)), list(range(180, 220)))
    first, again = chosen(cache, real, keep=0.25), chosen(cache, real, keep=0.25)
    other = chosen(cache, real, keep=0.25, seed=1)
    assert np.bincount(cache.labels[first.passed]).tolist() == [10, 10]
    assert (first.passed == again.passed).all()
    assert (first.passed != other.passed).any()


# The report


def test_the_report_says_what_each_rule_took_and_shows_it(tmp_path, real):
    cache = cache_of(tmp_path, [20, 22, 95, 180], [200, 210, 255, 100], done=range(7))
    report = chosen(cache, real, "label", "support", keep=1)
    counts = {name: values.tolist() for name, values in report.counts.items()}
    assert counts == {"label": [1, 0], "support": [1, 1], "number": [1, 1], "kept": [1, 1]}
    assert str(report).startswith("2 of 7 images kept")
    frame = report.to_frame()
    assert frame["taken by"].tolist()[2:4] == ["support", "label"]
    assert frame["taken by"].tolist()[7] == "not done"
    page = report.to_html(tmp_path / "page.html").read_text()
    assert "Taken by label" in page
    assert page.count("data:image/png") == 7
    again = ImageSelection.from_json(report.to_json(tmp_path / "selection.json"))
    assert (again.passed == report.passed).all()
    assert again.identity == cache.identity


def test_a_selection_stands_beside_an_audit_and_refuses_another_cache(tmp_path, real):
    cache = cache_of(tmp_path, [20, 22, 95], [200, 210, 255])
    report = chosen(cache, real, "support")
    mixed = MixedDataset(real, cache, audit=None, fraction=1.0, filters=[report])
    assert set(mixed.synthetic_rows().tolist()) == {0, 1, 3, 4}
    audit = chosen(cache, real)
    audit.taken_by[0] = 0
    joined = report.with_audit(audit.changed(verdict="pass"))
    assert np.flatnonzero(joined.passed).tolist() == [1, 3, 4]
    assert joined.verdict == "pass"
    again = ImageSelection.from_json(joined.to_json(tmp_path / "joined.json"))
    assert (again.passed == report.passed).all()
    other = cache_of(tmp_path, [20, 22, 95, 30], [200, 210, 255])
    with pytest.raises(MismatchError, match="audit judges another cache than the selection"):
        report.with_audit(chosen(other, real))
    with pytest.raises(MismatchError, match="Judge this cache, or leave the filter out"):
        MixedDataset(real, other, audit=None, fraction=1.0, filters=[report])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "`keep` must be at least 1"),
        ({"keep": 1.5}, r"`keep` must be in \(0, 1\].*whole number of images"),
        ({"rules": ["labels"]}, "`rules` must be one of 'label', 'support'"),
        ({"real": [0, 1, 6, 7, 8, 9]}, "Class 'dark' has 2 images, too few for 2 folds"),
        ({"real": [0, 6, 7], "rules": ["support"]}, "has 1 real images, too few to say how far"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(tmp_path, real, options, message):
    cache = cache_of(tmp_path, [20, 22], [200, 210])
    settings = {"features": Level(), "config": CONFIG, "progress": False, **options}
    real = real.subset(settings.pop("real", range(12)))
    with pytest.raises((ValueError, DataError), match=message):
        select(cache, real, **settings)


def test_rules_have_ranges_and_images_one_shape(tmp_path, real):
    with pytest.raises(ValueError, match=r"`low` is 0\.9, expected less than `high`"):
        selection.Useful(low=0.9, high=0.5)
    with pytest.raises(ValueError, match="`method` must be one of"):
        selection.Covering(method="random")  # type: ignore[arg-type]
    wide = LabeledImages(torch.zeros(4, 1, 8, 9, dtype=torch.uint8), [0, 0, 1, 1], CLASSES)
    cache = cache_of(tmp_path, [20, 22], [200, 210])
    with pytest.raises(MismatchError, match=r"shape \(1, 8, 8\), `real` of shape \(1, 8, 9\)"):
        chosen(cache, wide, "label")


def test_without_an_extractor_features_are_those_of_a_classifier(tmp_path, real, monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    monkeypatch.setattr(_rules, "trained_classifier", lambda *a, **k: network)
    cache = cache_of(tmp_path, [20, 22, 250], [200, 210])
    assert chosen(cache, real, "k-center", keep=2, features=None).passed.sum() == 4


# Labels with doubt


def test_teachers_judge_no_row_whose_real_image_they_learned_from(tmp_path, real, trained):
    cache = cache_of(tmp_path, [20, 30, 140], [200, 210], real=real, done=[0, 1, 2, 3])
    soft = teacher_labels(cache, real=real, config=CONFIG, runs=3, progress=False)
    assert soft.shape == (5, 2)
    assert np.isnan(soft[4]).all()
    np.testing.assert_allclose(soft[:4], judged(cache.read(range(4))), rtol=1e-5)
    assert len(trained) == 6
    assert all(len(seen) == 6 for seen in trained)
    mixed = MixedDataset(real, cache, audit=None, fraction=1.0, items=ItemFormat(soft_labels=soft))
    label = mixed[0][1]
    assert label.sum().item() == pytest.approx(1)
    own = teacher_labels(cache, Judge().eval())
    np.testing.assert_allclose(own[:4], soft[:4], rtol=1e-5)


def test_a_teacher_that_fits_no_images_is_refused(tmp_path):
    cache = cache_of(tmp_path, [20], [200])
    with pytest.raises(ValueError, match="Give a `model`, or `real` images"):
        teacher_labels(cache)
    with pytest.raises(ValueError, match="training mode"):
        teacher_labels(cache, Judge().train())
    with pytest.raises(MismatchError, match="logits of 2 classes"):
        teacher_labels(cache, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval())


def test_pseudo_labels_are_those_that_classifiers_are_sure_about(real, trained):
    pool = images([10, 128, 250, 20])  # the last one is among the real images
    guessed = pseudo_label(pool, real, threshold=0.9, config=CONFIG, runs=2, progress=False)
    assert guessed.rows.tolist() == [0, 2, 3]
    assert guessed.images.labels.tolist() == [0, 1, 0]
    assert guessed.images.classes == CLASSES
    assert guessed.labels[[0, 2]].tolist() == [0, 1]
    assert len(trained) == 4
    with pytest.raises(MismatchError, match="Load both with one image size"):
        pseudo_label(torch.zeros(2, 1, 9, 9, dtype=torch.uint8), real)
