"""Lists of classes that need not be equal, and names that only look different."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug import MixedDataset, Plan, load_dataset, mixing
from synthaug._images.source import ImageSource
from synthaug._plan.quota import given_quota
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import scaling_arms
from synthaug.evaluation._inputs import Inputs
from synthaug.images import LabeledImages
from synthaug.synthesizers import Constant
from synthaug.transforms import MixSynthetic
from tests.mixtures import CLASSES, make_cache, real_images

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


def with_unused_class() -> LabeledImages:
    """As EMNIST's letters, whose class 0 is "N/A" and has no image."""
    real = real_images()
    return LabeledImages(real.read(range(60)), real.labels + 1, ("N/A", *CLASSES))


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 1.0},
        {"mode": "append", "ratio": 0.5},
        {"fraction": 1.0, "items": mixing.ItemFormat(soft_labels=True)},
        {
            "fraction": 1.0,
            "items": mixing.ItemFormat(soft_labels=np.eye(4)[np.repeat([1, 2, 3], (7, 5, 9))]),
        },
    ],
)
def test_a_class_without_real_images_needs_no_synthetic_ones(tmp_path, options):
    cache = make_cache(tmp_path)
    mixed = MixedDataset(with_unused_class(), cache, audit=None, **options)
    rows = mixed.synthetic_rows()
    made = rows >= 0
    assert (mixed.labels[made] == cache.labels[rows[made]] + 1).all()
    served = [np.asarray(label) for _, label in mixed.__getitems__(np.flatnonzero(made).tolist())]
    assert [int(x.argmax() if x.ndim else x) for x in served] == mixed.labels[made].tolist()
    assert {x.shape for x in served} <= {(), (4,)}


def test_synthetic_images_of_a_rare_class_alone_are_mixed_where_they_are_asked_for(tmp_path):
    cache = make_cache(tmp_path, quota=(4,), classes=("bee",))
    mixed = MixedDataset(real_images(), cache, audit=None, fraction={"bee": 1.0})
    made = mixed.synthetic_rows() >= 0
    assert (made == (mixed.labels == 1)).all()
    with pytest.raises(MismatchError, match=r"Class 'ant' has no synthetic .*`fraction=\{\"NAME\""):
        MixedDataset(real_images(), cache, audit=None, fraction=0.5)
    mix = MixSynthetic(cache, audit=None, fraction=1.0, classes=CLASSES)
    images, labels = mix(torch.zeros(2, 3, 6, 5, dtype=torch.uint8), torch.tensor([1, 1]))
    assert images.min() >= 100
    assert labels.tolist() == [1, 1]
    unused = make_cache(tmp_path, quota=(7, 5, 9, 0), classes=(*CLASSES, "dog"))
    assert MixedDataset(real_images(), unused, audit=None, fraction=1.0).classes == CLASSES


def test_arms_and_evaluations_take_no_notice_of_classes_without_images(tmp_path):
    arms = scaling_arms(with_unused_class(), make_cache(tmp_path), audit=None, ratios=[0.2])
    assert len(arms["real + 0.2 x synthetic"]) == 60 + 12  # type: ignore[arg-type]
    test, device = with_unused_class(), torch.device("cpu")
    opened = Inputs.open({"a": real_images()}, test, None, device)
    assert opened.arms["a"].batch(0, np.arange(9))[1].tolist() == test.labels[:9].tolist()
    opened = Inputs.open({"a": test}, real_images(), None, device)
    assert opened.arms["a"].batch(0, np.arange(9))[1].tolist() == real_images().labels[:9].tolist()
    few = real_images().subset(real_images().labels != 1)
    fewer = LabeledImages(few.read(range(len(few))), few.labels // 2, ("ant", "cow"))
    for one, other in [(fewer, real_images()), (real_images(), fewer)]:
        with pytest.raises(MismatchError, match=r"has other classes than the test set.*bee"):
            Inputs.open({"a": one}, other, None, device)


def test_two_classes_of_one_name_are_told_apart_by_new_names(tmp_path, monkeypatch):
    from torchvision import datasets

    class Cranes(datasets.FakeData):
        """As torchvision's ImageNet, whose names are tuples of synonyms."""

        def __init__(self) -> None:
            super().__init__(size=6, image_size=(3, 6, 5), num_classes=3)
            self.classes = [("ant", "emmet"), ("crane",), ("crane",)]

    monkeypatch.setattr(datasets, "FakeData", Cranes)
    with pytest.raises(
        DataError, match=r"'crane' occurs twice\. Give each class a name of its own"
    ):
        load_dataset("torchvision:FakeData")
    names = ["ant", "crane (bird)", "crane (machine)"]
    loaded = load_dataset("torchvision:FakeData", classes=names)
    assert loaded.classes == tuple(names)
    assert loaded.targets == ImageSource.open(Cranes()).labels.tolist()
    assert ImageSource.open(Cranes()).classes == ("ant, emmet", "crane", "crane")
    cache = make_cache(tmp_path, quota=(3, 3, 3), classes=tuple(names))
    with pytest.raises(MismatchError, match="only the real images have 'ant, emmet'"):
        MixedDataset(Cranes(), cache, audit=None, fraction=0.5)
    given = mixing.ItemFormat(classes=names)
    mixed = MixedDataset(Cranes(), cache, audit=None, fraction=0.5, items=given)
    assert mixed.classes == tuple(names)


def test_names_are_equal_in_whatever_form_their_accents_are(tmp_path):
    def folder(name: str, *classes: str) -> Path:
        for one in classes:
            (tmp_path / name / one).mkdir(parents=True)
            Image.new("RGB", (5, 6)).save(tmp_path / name / one / "0.png")
        return tmp_path / name

    (tmp_path / "caches").mkdir()
    cache = make_cache(tmp_path / "caches", quota=(3, 3), classes=(COMPOSED, "tea"))
    real = load_dataset(folder("real", DECOMPOSED, "tea"))
    assert real.classes == (COMPOSED, "tea")
    assert real.paths == [str(tmp_path / "real" / one / "0.png") for one in (DECOMPOSED, "tea")]
    mixed = MixedDataset(real, cache, audit=None, fraction={DECOMPOSED: 1.0})
    assert (mixed.synthetic_rows() >= 0).tolist() == [True, False]
    chosen = load_dataset(tmp_path / "real", classes=["tea", DECOMPOSED])
    assert chosen.classes == ("tea", COMPOSED)
    assert given_quota({DECOMPOSED: 2}, cache.classes).tolist() == [2, 0]
    plans = [
        Plan.build([1, 1], classes=[name, "tea"], settings={}, seed=0)
        for name in (COMPOSED, DECOMPOSED)
    ]
    assert plans[0].digest == plans[1].digest
    with pytest.raises(DataError, match=r"two folders .*, whose names look alike\. Rename one"):
        load_dataset(folder("twice", COMPOSED, DECOMPOSED))


def test_classes_are_given_as_any_list_and_data_sets_as_any_path(tmp_path):
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    lists: list[Any] = [
        [0, 1, 2],
        np.arange(3),
        np.array(["0", "1", "2"]),
        range(3),
        torch.arange(3),
        np.array([b"0", b"1", b"2"]),  # as HDF5 files have them
        {"0": 0, "1": 1, "2": 2}.keys(),
    ]
    for classes in lists:
        plan = Plan.build([1, 1, 1], classes=classes, settings={}, seed=0)
        assert Constant(pixels, [0, 1, 2], classes=classes).classes == ("0", "1", "2")
        assert plan.classes == ("0", "1", "2")
    tens: list[Any] = [np.arange(10), list(range(10))]
    for classes in tens:
        assert load_dataset("digits", classes=classes).classes == tuple(map(str, range(10)))
    with pytest.raises(TypeError, match=r"`classes` is the text 'cat', expected a list of names"):
        load_dataset("digits", classes="cat")
    for classes in ({"0", "1", "2"}, 3):
        with pytest.raises(TypeError, match=r"`classes` is .*, expected a list of names in the"):
            Plan.build([1, 1, 1], classes=classes, settings={}, seed=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`spec` is a int, expected a text such as `folder:PATH`"):
        load_dataset(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nowhere does not exist; expected a folder with one"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(DataError, match=r"a\.txt is not a readable HDF5 file"):
        load_dataset(tmp_path / "a.txt")
