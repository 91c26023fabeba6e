"""Quality of a cache beside real images, and its report."""

import json
import re

import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import QualityReport, score_quality
from synthaug.features import Pixel
from synthaug.images import LabeledImages
from tests.command_line import fail, succeed
from tests.images import to_pil

CLASSES = ("dark", "light")
PIXELS = Pixel(2)


def real(n: int, seed: int, shift: int = 0) -> LabeledImages:
    """Dark and light images of noise, in turn."""
    labels = np.arange(n) % 2
    noise = torch.randint(0, 80, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    levels = noise + torch.from_numpy(labels * 100).view(-1, 1, 1, 1) + shift
    return LabeledImages(levels.to(torch.uint8), labels, CLASSES, name=f"real {seed}")


@pytest.fixture
def cache(tmp_path):
    return cache_of(tmp_path / "c.h5", real(80, 9))


def cache_of(path, images, **manifest):
    """A cache of these images, with two rows pending."""
    counts = [len(images) // 2 + 1] * 2
    plan = Plan.build(counts, classes=CLASSES, settings={}, seed=0)
    cache = SynthCache.create(
        path, plan, image_shape=(1, 4, 4), manifest={"recipe": {}, **manifest}
    )
    for c in (0, 1):
        rows = np.flatnonzero(images.labels == c)
        cache.write(np.flatnonzero(cache.labels == c)[: len(rows)], images.read(rows))
    return cache


def score(cache, reference, **options):
    return score_quality(cache, reference, features=PIXELS, progress=False, **options)


class Brightness:
    """Logits that know the two classes by their brightness."""

    name, dim, weights = "brightness", 2, None

    def __call__(self, pixels):
        level = pixels.float().mean((1, 2, 3)).numpy()
        return np.stack([90 - level, level - 90], axis=1).astype(np.float32)


def test_images_of_the_same_distribution_reach_the_floor_and_others_do_not(cache, tmp_path):
    report = score(cache, real(80, 1), holdout=real(80, 2), classifier=Brightness())
    assert report.synthetic.frechet_distance < 3 * report.floor.frechet_distance
    assert report.synthetic.precision > 0.8
    assert report.synthetic.inception_score == pytest.approx(2, rel=0.05)
    far = cache_of(tmp_path / "far.h5", real(80, 9, shift=60))
    worse = score(far, real(80, 1), holdout=real(80, 2))
    assert worse.synthetic.frechet_distance > 10 * worse.floor.frechet_distance
    assert worse.synthetic.kernel_distance > 10 * abs(worse.floor.kernel_distance)
    assert worse.synthetic.coverage < 0.5 < worse.floor.coverage


def test_all_sets_are_equally_large_and_the_floor_shares_no_image_with_the_reference(cache):
    seen = []

    class Spy:
        name, dim, weights = "spy", None, None

        def __call__(self, pixels):
            seen.append({bytes(x) for x in pixels.numpy().reshape(len(pixels), -1)})
            return PIXELS(pixels)

    report = score_quality(cache, real(60, 1), features=Spy(), progress=False)
    _, synthetic, reference, other = seen  # the first call asks for the number of features
    assert len(synthetic) == len(reference) == len(other) == report.synthetic.n == 30
    assert not reference & other
    assert report.floor_from == "another half of real 1"
    assert score(cache, real(60, 1), images=20).floor.n == 20
    assert score(cache, real(70, 1), holdout=real(50, 2)).floor.n == 50


def test_real_images_against_themselves_are_at_no_distance(cache):
    images = real(80, 9)
    report = score(images, images, holdout=real(80, 2))
    assert report.synthetic.frechet_distance < 1e-6 * report.floor.frechet_distance
    assert report.synthetic.coverage == report.synthetic.recall == 1


def test_classes_are_scored_where_they_have_images_enough(cache):
    report = score(cache, real(80, 1), holdout=real(80, 2))
    assert set(report.by_class) == set(CLASSES)
    assert report.by_class["dark"][0].n == 40
    few = score(cache, real(80, 1), images=8)
    assert all(a.n <= 4 for a, _ in few.by_class.values())
    assert few.synthetic.frechet_distance is not None


def test_the_report_says_whether_the_generator_saw_the_reference(tmp_path, cache):
    reference = real(80, 1)
    assert score(cache, reference).reference["trained_on"] is None
    for seen, expected in ((reference.fingerprint, True), ("other", False)):
        trained = {"base": {"fingerprint": seen, "images": 80}}
        made = cache_of(tmp_path / f"{expected}.h5", real(80, 9), trained_on=trained)
        report = score(made, reference)
        assert report.reference["trained_on"] is expected
        assert ("on which the generator was trained" in str(report)) is expected


def test_too_few_images_are_refused_unless_it_is_forced(cache):
    with pytest.raises(ValueError, match="Each set that is compared has 7 images for 4 features"):
        score(cache, real(80, 1), images=7, k=3)
    report = score(cache, real(80, 1), images=7, k=3, force=True)
    assert "was forced" in report.caption()
    with pytest.raises(ValueError, match="more than `k`=5"):
        score(cache, real(10, 1))
    with pytest.raises(MismatchError, match="`holdout` is `real`"):
        score(cache, real(80, 1), holdout=real(80, 1))


def test_a_report_survives_its_file_and_its_page_loads_nothing(cache, tmp_path):
    report = score(cache, real(80, 1), classifier=Brightness())
    report.to_json(tmp_path / "q.json")
    again = QualityReport.from_json(tmp_path / "q.json")
    assert str(again) == str(report)
    assert again.by_class == report.by_class
    report.to_html(tmp_path / "q.html")
    text = (tmp_path / "q.html").read_text()
    assert "pixels 2x2" in text
    assert "real 1" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(DataError, match="is not a quality report"):
        QualityReport.from_json(tmp_path / "q.json")


@pytest.mark.parametrize(
    ("images", "verdict"),
    [
        (real(80, 9), "as near to the reference as real ones, within chance"),
        (real(80, 9, shift=60), "farther from the reference than real ones"),
    ],
)
def test_a_report_ends_with_what_its_numbers_mean(tmp_path, images, verdict):
    reference, others = real(80, 1), real(80, 2, shift=3)
    report = score(cache_of(tmp_path / "c.h5", images), reference, holdout=others)
    assert verdict in report.verdict()
    assert str(report).endswith(f"Verdict: {report.verdict()}")
    swapped = report.changed(synthetic=report.floor, floor=report.synthetic)
    assert ("nearer to the reference than real ones" in swapped.verdict()) is ("farther" in verdict)


def test_quality_from_the_command_line(cache, tmp_path):
    for name, images in {"real": real(40, 1), "holdout": real(40, 2)}.items():
        for i, label in enumerate(images.targets):
            folder = tmp_path / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(images.read([i])[0]).save(folder / f"{i}.png")
    specs = [f"folder:{tmp_path / name}" for name in ("real", "holdout")]
    out = tmp_path / "quality"
    arguments = ["evaluate", "quality", tmp_path / "c.h5", specs[0], "--holdout", specs[1]]
    text = succeed(*arguments, "--features", "pixels:2", "--out", f"{out}.html")
    assert f"Report: {out}.html, {out}.json" in text
    assert "Fréchet distance" in text
    assert "Verdict: Synthetic images are as near" in text
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["synthetic"]["n"] == 40
    changed = ("--features", "pixels:4", "--out", out, "--images", 20)
    assert "go on with `--force`" in fail(2, *arguments, *changed)
