"""Data sets and transforms of one's own: which labels are believed, how transforms are called."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from synthaug import MixedDataset, SynthCache
from synthaug._images.source import ImageSource
from synthaug.errors import DataError
from synthaug.mixing import ItemFormat
from synthaug.transforms import MixSynthetic
from tests.mixtures import CLASSES, FIRST_ROW, Listed, items_of, make_cache, real_images, value

LABELS = [i % 3 for i in range(12)]


@pytest.fixture
def cache(tmp_path) -> SynthCache:
    (tmp_path / "caches").mkdir()
    return make_cache(tmp_path / "caches")


def listed(**attributes: Any) -> Listed:
    """Twelve labeled items of a foreign data set, with further attributes."""
    data = Listed([(Image.new("RGB", (5, 6), (i, i, i)), y) for i, y in enumerate(LABELS)])
    for name, attribute in {"classes": CLASSES, **attributes}.items():
        setattr(data, name, attribute)
    return data


# Labels


@pytest.fixture
def folder(tmp_path) -> ImageFolder:
    for i, y in enumerate(LABELS):
        path = tmp_path / "images" / CLASSES[y] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 6), (i, i, i)).save(path)
    return ImageFolder(tmp_path / "images")


def test_labels_that_were_changed_in_one_of_two_lists_are_refused(folder, cache):
    folder.samples[7] = (folder.samples[7][0], 0)  # what items have; `targets` is what is listed
    with pytest.raises(DataError, match=r"`samples` and `targets` .* 1 labels: that of item 7 is"):
        MixedDataset(folder, cache, audit=None, fraction=1.0)
    folder.targets = [label for _, label in folder.samples]
    mixed = MixedDataset(folder, cache, audit=None, fraction=1.0)
    assert mixed[7][1] == 0
    assert cache.labels[value(mixed[7][0]) - FIRST_ROW] == 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_list_is_compared_with_64_items_spread_evenly_and_messages_say_so(wrapped):
    class Relabeled(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            image, label = super().__getitem__(index)
            return image, label if index < 290 else label + 1

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    images = [(torch.zeros(3, 2, 2), 0) for _ in range(300)]
    data: Any = Listed(images if wrapped else images[:290] + [(x, 1) for x, _ in images[290:]])
    data.targets = [0] * 300
    if wrapped:
        data = Relabeled(data, range(300))
    with pytest.raises(DataError, match=r"has the label 1, listed is 0.*\(64 of 300 items were"):
        _ = ImageSource.open(data).labels


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": torch.zeros(12, 8, dtype=torch.int64)},  # as of QMNIST
        {"targets": LABELS, "labels": [CLASSES[y] for y in LABELS]},
        {"targets": LABELS, "labels": [0] * 12},  # of something else
        {"targets": [{"boxes": []}] * 12},
        {"labels": [[y] * (1 + y) for y in LABELS]},
        {"targets": [float(y) for y in LABELS]},
        {"labels": "of the data", "samples": ["a.png"] * 12},
    ],
    ids=lambda attributes: "+".join(attributes),
)
def test_a_list_that_is_not_of_class_indices_does_not_hide_another_one_or_the_items(
    cache, attributes
):
    mixed = MixedDataset(listed(**attributes), cache, audit=None, fraction=0.5)
    assert mixed.targets == LABELS
    assert [label for _, label in items_of(mixed)] == LABELS


# Transforms


class Own(Dataset[Any]):
    """Calls its transform as people write it."""

    classes = CLASSES
    targets = LABELS

    def __init__(self, form: str, transform: Any) -> None:
        self.form, self.transform = form, transform

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        image, label = np.full((6, 5, 3), index, np.uint8), LABELS[index]
        match self.form:
            case "keyword":
                return self.transform(image=image)["image"], label
            case "pair":
                return self.transform(image, label)
            case "item":
                return self.transform({"image": image, "label": label})
            case "tuple":
                return self.transform((image, label))
            case "mask":
                return self.transform(image=image, mask=image)["image"], label
            case "after":
                return self.transform(image) / 255, label
            case "tensor":
                return self.transform(image).float(), label
            case "later":
                return image, label
        return self.transform(image), label


def by_keyword(*, image: Any) -> dict[str, Any]:
    return {"image": image + 1}


def of_pair(image: Any, label: Any) -> tuple[Any, Any]:
    return image + 1, label


def of_item(item: Any) -> Any:
    if isinstance(item, tuple):
        return of_pair(*item)
    return {**item, "image": item["image"] + 1}


FORMS = {"keyword": by_keyword, "pair": of_pair, "item": of_item, "tuple": of_item}


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_transform_is_called_as_the_data_set_calls_it(cache, form, parts):
    own: Any = Own(form, FORMS[form])
    real = ConcatDataset([Subset(own, range(6)), Subset(own, range(6, 12))]) if parts else own
    mixed = MixedDataset(real, cache, audit=None, fraction=0.5)
    batches = pickle.loads(pickle.dumps(DataLoader(mixed, batch_size=12)))
    (batch,) = batches
    images, labels = batch.values() if isinstance(batch, dict) else batch
    assert labels.tolist() == LABELS
    made = mixed.synthetic_rows()
    assert 0 < (made >= 0).sum() < 12
    shown = [value(image) - 1 for image in images]
    assert shown == np.where(made < 0, np.arange(12), FIRST_ROW + made).tolist()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            "mask",
            r"Own calls its transform as `transform\(image=\.\.\., mask=\.\.\.\)`.*Call it as",
        ),
        ("after", "Own changes its images after it called its transform"),
        ("tensor", "Own changes its images after it called its transform"),
        ("later", "Own does not call its `transform` for every item. Take it off"),
    ],
)
def test_a_transform_that_synthetic_images_cannot_go_through_is_refused(cache, form, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MixedDataset(Own(form, v2.Identity()), cache, audit=None, fraction=0.5)


def test_parts_that_call_one_transform_in_two_ways_are_refused(cache):
    parts = [Own(form, of_pair) for form in ("image", "pair")]
    with pytest.raises(ValueError, match="ConcatDataset calls its `transform` in other ways in"):
        MixedDataset(ConcatDataset(parts), cache, audit=None, fraction=0.5)


def test_transforms_of_albumentations_may_be_given_wherever_others_may(cache):
    albumentations = pytest.importorskip("albumentations")
    invert = albumentations.Compose([albumentations.InvertImg(p=1.0)])
    real = real_images()
    given = MixedDataset(real, cache, audit=None, fraction=0.5, transform=invert)
    own = MixedDataset(Own("keyword", invert), cache, audit=None, fraction=0.5)
    for mixed in (given, own):
        pixels = mixed.read(range(len(mixed)))[:, 0, 0, 0].tolist()
        assert [255 - value(image) for image, _ in items_of(mixed)] == pixels
    real.transform = cache.transform = invert
    assert value(real[3][0]) == 255 - 3
    assert value(cache[3][0]) == 255 - FIRST_ROW - 3


# What belongs to the places in an image


def with_extras(**extras: Any) -> Listed:
    items = [{"image": image, "label": label, **extras} for image, label in listed().items]
    data = Listed(items)
    data.classes = CLASSES  # type: ignore[attr-defined]
    return data


@pytest.mark.parametrize(
    "extras",
    [
        {"boxes": [[0, 0, 2, 2]]},
        {"target": {"Masks": torch.zeros(2, 6, 5)}},
        {"keypoints": np.zeros((4, 2))},
        {"scene": Image.new("L", (5, 6))},
        {"other": np.zeros((6, 5), np.uint8)},
        {"placed": torch.ones(2, 4)},
        {"places": tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=(6, 5))},
    ],
    ids=lambda extras: next(iter(extras)),
)
def test_boxes_masks_and_key_points_do_not_stay_beside_a_synthetic_image(cache, extras):
    data = with_extras(**extras)
    (name,) = extras
    with pytest.raises(TypeError, match=r"(?i)annotations of places.*mask|" + name):
        MixedDataset(data, cache, audit=None, fraction=0.5)
    holds = ItemFormat(annotations_hold=True)
    mixed = MixedDataset(data, cache, audit=None, fraction=1.0, items=holds)
    assert mixed[3][name] is extras[name]


def test_what_does_not_belong_to_places_stays(cache):
    extras = {
        "path": "a.png",
        "index": 3,
        "embedding": torch.zeros(5),
        "masked": True,
        "mask": None,
    }
    mixed = MixedDataset(with_extras(**extras), cache, audit=None, fraction=1.0)
    assert {name: mixed[3][name] for name in extras} == extras


def test_transforms_refuse_them_by_the_names_of_a_sample_too(cache):
    mix = MixSynthetic(cache, audit=None)
    batch = {"image": torch.zeros(2, 3, 6, 5), "label": torch.tensor([0, 1]), "boxes": [[], []]}
    with pytest.raises(TypeError, match=r"'boxes' cannot follow an image .*`MixSynthetic` for"):
        mix(batch)
