"""`SyntheticVariant`: an image becomes a cached variant of itself."""

import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from synthaug import SynthCache, albumentations, load_dataset
from synthaug._cache import serving as _serving
from synthaug._datasets.variants import Variants
from synthaug._images.convert import like
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.metrics import edge_agreement
from synthaug.transforms import Fit, SyntheticVariant
from tests.variants import CLASSES, make_cache, real_images, row_of, rows_from


@pytest.fixture
def real() -> LabeledImages:
    return real_images()


@pytest.fixture
def cache(tmp_path, real):
    return make_cache(tmp_path, real)


def test_an_image_becomes_a_variant_of_itself_and_all_of_them_equally_often(real, cache):
    variant = SyntheticVariant(cache, audit=None, p=1.0)
    torch.manual_seed(0)
    for i in range(6):
        rows = [row_of(variant(real[i][0])) for _ in range(300)]
        own = rows_from(cache, i)
        assert len(own) == 3
        counts = [rows.count(row) for row in own]
        assert sum(counts) == 300
        assert min(counts) > 60


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_probability_of_a_change(real, cache, p):
    variant = SyntheticVariant(cache, audit=None, p=p)
    image = real[0][0]
    torch.manual_seed(0)
    changed = [variant(image) is not image for _ in range(1000)]
    assert abs(np.mean(changed) - p) <= 4 * np.sqrt(p * (1 - p) / 1000)


def test_an_image_without_variants_stays_or_raises(real, cache):
    image = real[7][0]
    assert SyntheticVariant(cache, audit=None, p=1.0)(image) is image
    strict = SyntheticVariant(cache, audit=None, p=1.0, on_missing="raise")
    with pytest.raises(DataError, match=r"has no variant in the cache\. Put this transform before"):
        strict(image)
    assert row_of(strict(real[0][0])) is not None


@pytest.mark.parametrize(
    "example",
    [
        Image.new("RGB", (1, 1)),
        torch.zeros(3, 1, 1, dtype=torch.uint8),
        torch.zeros(3, 1, 1),
        torch.zeros(3, 1, 1, dtype=torch.float64),
        tv_tensors.Image(torch.zeros(3, 1, 1, dtype=torch.uint8)),
        tv_tensors.Image(torch.zeros(3, 1, 1)),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', '')}",
)
@pytest.mark.parametrize("pickled", [False, True])
def test_the_type_of_the_image_is_kept_and_labels_pass_through(real, cache, example, pickled):
    variant = SyntheticVariant(cache, audit=None, p=1.0)
    if pickled:
        variant = pickle.loads(pickle.dumps(variant))
    image = like(real.read([3])[0], example)
    label = torch.tensor(1)
    shown, same = variant(image, label)
    assert same is label
    assert type(shown) is type(image)
    assert getattr(shown, "dtype", None) == getattr(image, "dtype", None)
    assert row_of(shown) in rows_from(cache, 3)
    nested = variant({"image": image, "label": 1, "name": "x"})
    assert (nested["label"], nested["name"]) == (1, "x")
    assert type(nested["image"]) is type(image)


def test_a_cache_may_be_given_by_path(real, cache):
    variant = SyntheticVariant(cache.path, audit=None, p=1.0)
    assert row_of(variant(real[2][0])) in rows_from(cache, 2)


def test_float_images_are_matched_after_rounding(real, cache):
    variant = SyntheticVariant(cache, audit=None, p=1.0, on_missing="raise")
    image = real.read([2])[0] / 255 + 0.4 / 255 * (torch.rand(3, 4, 5) - 0.5)
    assert row_of(variant(image)) in rows_from(cache, 2)


def test_it_stands_first_in_a_pipeline_and_is_seeded_by_torch(real, cache):
    pipeline = v2.Compose(
        [
            SyntheticVariant(cache, audit=None),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    real.transform = pipeline

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([real[i][0] for i in range(8)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    assert {image.dtype for image in epoch(0)} == {torch.float32}


def test_all_images_of_one_sample_share_the_draw(real, cache):
    variant = SyntheticVariant(cache, audit=None, p=0.5)
    torch.manual_seed(0)
    for _ in range(40):
        one, two = variant(real[0][0], real[1][0])
        rows = row_of(one), row_of(two)
        if rows == (None, None):
            continue
        turns = [cache.plan["variant"][row] for row in rows]
        assert turns[0] == turns[1]


def test_variants_that_did_not_pass_or_are_withdrawn_are_never_served(real, cache):
    passed = cache.plan["variant"] != 1
    report = SimpleNamespace(identity=cache.identity, passed=passed, verdict="fail")
    cache.withdraw(np.flatnonzero(cache.plan["variant"] == 2))
    variant = SyntheticVariant(cache, audit=report, p=1.0)
    rows = {row_of(variant(real[i][0])) for i in range(6) for _ in range(20)}
    assert rows == set(np.flatnonzero(cache.plan["variant"] == 0).tolist())
    other = SimpleNamespace(identity={**cache.identity, "rows": 3}, passed=passed, verdict="pass")
    with pytest.raises(MismatchError, match="another cache"):
        SyntheticVariant(cache, audit=other)


@pytest.mark.parametrize("key", [0, 2**63, 2**64 - 1])
def test_the_smallest_and_the_largest_key_are_found(cache, key):
    variants = Variants(cache, None, "keep")
    variants.keys = np.array([key, key], np.uint64)
    assert variants.rows_of(key).tolist() == variants.rows[:2].tolist()


def test_neighboring_keys_are_told_apart(cache):
    variants = Variants(cache, None, "keep")
    variants.keys = np.array([2**62, 2**62 + 1], np.uint64)  # equal as float64
    found = [variants.rows_of(2**62 + i).tolist() for i in range(3)]
    assert found == [[variants.rows[0]], [variants.rows[1]], []]


def test_a_pipeline_in_which_no_image_has_a_variant_is_mentioned_once(real, cache, caplog):
    changed = [v2.functional.invert(real[i][0]) for i in range(8)]
    misplaced = SyntheticVariant(cache, audit=None, p=1.0)
    for _ in range(20):
        for image in changed:
            misplaced(image)
    (record,) = (r for r in caplog.records if "has a variant" in r.getMessage())
    assert "None of 3 images has a variant" in record.getMessage()  # chance does that rarely
    assert "Put this transform before all others" in record.getMessage()
    caplog.clear()
    partly = SyntheticVariant(cache, audit=None, p=1.0)
    for image in [real[0][0]] + 100 * [real[7][0]]:
        partly(image)
    assert not caplog.records


def test_after_fit_images_are_found_again_and_after_another_resize_this_is_said_soon(
    tmp_path, caplog
):
    files = tmp_path / "photos"
    photos = real_images(12, 15)
    for i in range(8):
        path = files / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photos[i][0].save(path)
    real = load_dataset(f"folder:{files}", image_size=6, channels=1)
    (tmp_path / "caches").mkdir()
    cache = make_cache(tmp_path / "caches", real, sources=(range(4), range(4, 8)))
    folder = ImageFolder(files)
    variant = SyntheticVariant(cache, audit=None, p=1.0)

    def exchanged(*before: Any) -> int:
        pipeline = v2.Compose([*before, variant])
        return sum(row_of(pipeline(image)) is not None for image, _ in folder)

    assert exchanged(Fit(cache.image_shape)) == 8
    assert exchanged(v2.ToImage(), Fit(cache.image_shape)) == 8
    assert exchanged(v2.ToImage(), v2.ToDtype(torch.float32, scale=True), Fit((1, 6, 6))) == 8
    assert not caplog.messages[1:]
    variant = SyntheticVariant(cache, audit=None, p=1.0)
    assert exchanged(v2.Resize((6, 6)), v2.Grayscale()) == 0
    assert "None of 3 images has a variant in the cache" in caplog.text
    assert "`Fit(cache.image_shape)`" in caplog.text
    never = v2.Compose([v2.Resize((5, 5)), SyntheticVariant(cache, audit=None, p=0.0)])
    with pytest.raises(MismatchError, match=r"size \(5, 5\), its variants would have \(1, 6, 6\)"):
        never(folder[0][0])
    with pytest.raises(ValueError, match=r"`image_shape` must be \(C, H, W\) .* got \(2, 6, 6\)"):
        Fit((2, 6, 6))


def test_variants_that_were_not_audited_are_mentioned(cache, caplog, monkeypatch):
    monkeypatch.setattr(_serving, "_warned", set())
    SyntheticVariant(cache, audit=None)
    assert "18 images, not audited" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_what_it_cannot_do_is_refused(real, cache, tmp_path):
    for options, message in [
        ({"p": 1.5}, r"`p` must be in \[0, 1\], got 1.5"),
        ({"p": float("nan")}, "got nan"),
        ({"on_missing": "skip"}, "`on_missing` must be one of 'keep', 'raise', got 'skip'"),
    ]:
        with pytest.raises(ValueError, match=message):
            SyntheticVariant(cache, audit=None, **options)  # type: ignore[arg-type]
    without = make_cache(tmp_path, real, sources=None)
    with pytest.raises(DataError, match=r"made from a real image. Use .*MixedDataset"):
        SyntheticVariant(without, audit=None)
    small = make_cache(tmp_path, real, shape=(3, 2, 2))
    with pytest.raises(MismatchError, match=r"size \(4, 5\), its variants would have \(3, 2, 2\)"):
        SyntheticVariant(small, audit=None, p=1.0)(real[0][0])
    variant = SyntheticVariant(cache, audit=None, p=1.0)
    with pytest.raises(TypeError, match="Mask cannot follow an image"):
        variant(real[0][0], tv_tensors.Mask(torch.zeros(4, 5)))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\), expected \(C, H, W\)"):
        variant(torch.zeros(2, 3, 4, 5))


def test_it_prints_its_settings(cache):
    text = repr(SyntheticVariant(cache, audit=None, p=0.25))
    assert text == "SyntheticVariant(p=0.25, on_missing=keep)"


def outlined(left: int) -> torch.Tensor:
    """A bright square on gray, whose left side is at a column."""
    pixels = torch.full((1, 3, 16, 16), 60, dtype=torch.uint8)
    pixels[:, :, 4:11, left : left + 7] = 200
    return pixels


def test_edge_agreement_is_about_places_and_not_about_levels() -> None:
    image = outlined(3)
    noisy = (image + 10 * torch.randn(image.shape, generator=torch.manual_seed(0))).to(torch.uint8)
    flat = torch.full_like(image, 9)
    others = torch.cat([image, 255 - image, noisy, outlined(5), outlined(9), flat])
    same, inverted, noise, near, far, none = edge_agreement(image.expand_as(others), others)
    assert same == pytest.approx(1) == inverted
    assert same > noise > 0.9 > 0.8 > near > far
    assert none == 0
    assert edge_agreement(flat, flat + 1) == 1
    with pytest.raises(ValueError, match=r"`others` has the shape \(1, 3, 4, 4\)"):
        edge_agreement(image, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.fixture
def outlines(tmp_path: Path) -> tuple[LabeledImages, SynthCache]:
    """Two squares. Of the first, one variant has its edges and two moved; of the second all did."""
    real = LabeledImages(torch.cat([outlined(3), outlined(8)]), [0, 1], CLASSES)
    cache = make_cache(tmp_path, real, sources=([0], [1]))
    rows, other = rows_from(cache, 0), rows_from(cache, 1)
    cache.write(rows, torch.cat([outlined(9)] * (len(rows) - 1) + [255 - outlined(3)]))
    cache.write(other, torch.cat([outlined(2)] * len(other)))
    return real, cache


def test_masks_and_boxes_stay_beside_variants_whose_edges_agree(
    outlines: tuple[LabeledImages, SynthCache],
) -> None:
    real, cache = outlines
    image, mask = real[0][0], tv_tensors.Mask(torch.ones(16, 16, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[3, 4, 10, 11]], format="XYXY", canvas_size=(16, 16))
    with pytest.raises(TypeError, match=r"a Mask.* or give `min_edge_agreement`"):
        SyntheticVariant(cache, audit=None, p=1.0)(image, mask)
    variant = SyntheticVariant(cache, audit=None, p=1.0, min_edge_agreement=0.8)
    for _ in range(8):
        shown, kept, same, label = variant(image, mask, boxes, 1)
        assert np.array_equal(np.asarray(shown), 255 - np.asarray(image))
        assert kept is mask
        assert same is boxes
        assert label == 1
    other = real[1][0]
    assert variant(other, mask)[0] is other  # all of its variants moved
    strict = SyntheticVariant(cache, audit=None, p=1.0, min_edge_agreement=0.8, on_missing="raise")
    with pytest.raises(DataError, match=r"no variant whose edges agree .* 0\.8\. Draw variants of"):
        strict(real[1][0])
    with pytest.raises(TypeError, match="a Video"):
        variant(image, tv_tensors.Video(torch.zeros(2, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"`min_edge_agreement` must be in \(0, 1\]"):
        SyntheticVariant(cache, audit=None, min_edge_agreement=0)


def test_albumentations_keeps_masks_beside_variants_whose_edges_agree(
    outlines: tuple[LabeledImages, SynthCache],
) -> None:
    real, cache = outlines
    image, mask = np.asarray(real[0][0]), np.ones((16, 16), np.uint8)
    with pytest.raises(TypeError, match=r"`mask` cannot.* or give `min_edge_agreement`"):
        albumentations.SyntheticVariant(cache, audit=None, p=1.0)(image=image, mask=mask)
    variant = albumentations.SyntheticVariant(cache.path, audit=None, p=1.0, min_edge_agreement=0.8)
    shown = variant(image=image, mask=mask)
    assert np.array_equal(shown["image"], 255 - image)
    assert np.array_equal(shown["mask"], mask)
    assert A.from_dict(A.to_dict(A.Compose([variant]))).transforms[0].min_edge_agreement == 0.8
    with pytest.raises(TypeError, match="`volume` cannot"):
        variant(image=image, volume=np.zeros((2, 16, 16), np.uint8))
