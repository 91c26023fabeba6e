"""`albumentations.SyntheticVariant` in pipelines, and in a data set behind a loader's workers."""

import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from synthaug.albumentations import Fit, SyntheticVariant
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from tests.variants import CLASSES, make_cache, real_images, row_of, rows_from


@pytest.fixture
def real() -> LabeledImages:
    return real_images()


@pytest.fixture
def cache(tmp_path, real):
    return make_cache(tmp_path, real)


def array(real: LabeledImages, index: int) -> Any:
    return np.array(real[index][0])


def test_in_a_pipeline_an_image_becomes_a_variant_of_itself_and_all_equally_often(real, cache):
    pipeline = A.Compose([SyntheticVariant(cache, audit=None, p=1.0), A.HorizontalFlip()], seed=0)
    for i in range(6):
        served = [pipeline(image=array(real, i), label=i) for _ in range(300)]
        counts = [sum(row_of(x["image"]) == row for x in served) for row in rows_from(cache, i)]
        assert sum(counts) == 300
        assert min(counts) > 60
        assert {x["label"] for x in served} == {i}


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_probability_of_a_change(real, cache, p):
    pipeline = A.Compose([SyntheticVariant(cache, audit=None, p=p)], seed=0)
    made = [row_of(pipeline(image=array(real, 0))["image"]) is not None for _ in range(1000)]
    assert abs(np.mean(made) - p) <= 4 * np.sqrt(p * (1 - p) / 1000)
    always = SyntheticVariant(cache, audit=None, p=p)(image=array(real, 0), force_apply=True)
    assert row_of(always["image"]) is not None


@pytest.mark.parametrize(
    "image",
    [
        lambda x: x,
        lambda x: (x / 255).astype(np.float32),
        lambda x: x[..., :1],
        lambda x: x[..., 0],
    ],
    ids=["color", "float", "gray (H, W, 1)", "gray (H, W)"],
)
def test_type_and_shape_are_kept_also_after_pickling(tmp_path, image):
    given = image(array(real_images(), 3))
    real = real_images()
    if given.shape[2:] != (3,):
        real = LabeledImages(real.read(range(8))[:, :1], real.labels, real.classes)
    variant = SyntheticVariant(make_cache(tmp_path, real), audit=None, p=1.0, on_missing="raise")
    shown = pickle.loads(pickle.dumps(variant))(image=given)["image"]
    assert (shown.dtype, shown.shape) == (given.dtype, given.shape)
    assert row_of(shown) in rows_from(variant._variants.cache, 3)


def test_each_of_several_images_becomes_a_variant_of_itself(real, cache):
    images = np.stack([array(real, i) for i in range(6)])
    shown = SyntheticVariant(cache, audit=None, p=1.0)(images=images)["images"]
    assert all(row_of(image) in rows_from(cache, i) for i, image in enumerate(shown))


class Photos(Dataset[Any]):
    """A data set as users of albumentations write it."""

    def __init__(self, real: LabeledImages, cache: Any, seed: int | None) -> None:
        self.real = real
        self.transform = A.Compose([SyntheticVariant(cache, audit=None)], seed=seed)

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        return self.transform(image=array(self.real, index % 6))["image"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_draw_differently_and_seeds_fix_them(real, cache, persistent):
    def epochs(seed: int) -> list[list[int | None]]:
        torch.manual_seed(seed)
        loader = DataLoader(
            Photos(real, cache, seed=0),
            batch_size=24,  # batches 0 and 2 are of one worker, 1 and 3 of the other
            num_workers=2,
            multiprocessing_context="fork",
            persistent_workers=persistent,
        )
        return [[row_of(image.numpy()) for batch in loader for image in batch] for _ in range(2)]

    first = epochs(1)
    assert epochs(1) == first
    assert epochs(2) != first
    parts = [tuple(epoch[i : i + 24]) for epoch in first for i in range(0, 96, 24)]
    assert len(set(parts)) == 8


def test_without_workers_the_seed_of_the_pipeline_fixes_the_draws(real, cache):
    def draws(seed: int) -> list[int | None]:
        photos = Photos(real, cache, seed)
        return [row_of(photos[i]) for i in range(96)]

    torch.manual_seed(0)
    first = draws(0)
    torch.manual_seed(1)
    assert draws(0) == first
    assert draws(1) != first


def test_what_it_cannot_do_is_refused(real, cache, tmp_path):
    for options, message in [
        ({"p": 1.5}, r"`p` must be in \[0, 1\], got 1.5"),
        ({"on_missing": "skip"}, "`on_missing` must be one of 'keep', 'raise', got 'skip'"),
    ]:
        with pytest.raises(ValueError, match=message):
            SyntheticVariant(cache, audit=None, **options)  # type: ignore[arg-type]
    always = SyntheticVariant(cache, audit=None, p=1.0, on_missing="raise")
    for name, value in [("mask", np.zeros((4, 5), np.uint8)), ("bboxes", np.zeros((1, 4)))]:
        with pytest.raises(TypeError, match=f"`{name}` cannot follow an image"):
            always(image=array(real, 0), **{name: value})
    always(image=array(real, 0), mask=None)  # as a pipeline passes on what a sample does not have
    with pytest.raises(DataError, match=r"has no variant in the cache.*colors in the order RGB"):
        always(image=array(real, 0)[..., ::-1])
    small = make_cache(tmp_path, real, shape=(3, 2, 2))
    with pytest.raises(MismatchError, match=r"size \(3, 4, 5\), its variants would have \(3, 2"):
        SyntheticVariant(small, audit=None, p=1.0)(image=array(real, 0))


def test_after_fit_an_image_is_found_again(tmp_path):
    photos = real_images(12, 15)
    small = Fit((3, 6, 6))
    pixels = np.stack([small(image=array(photos, i))["image"] for i in range(8)])
    loaded = LabeledImages(
        torch.from_numpy(pixels.transpose(0, 3, 1, 2)), np.arange(8) % 2, CLASSES
    )
    variant = SyntheticVariant(make_cache(tmp_path, loaded), audit=None, p=1.0, on_missing="raise")
    pipeline = A.Compose([small, variant])
    assert row_of(pipeline(image=array(photos, 3))["image"]) is not None
