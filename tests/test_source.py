"""One type for whatever holds images: every kind of data set gives the same labels and pixels."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.datasets import VisionDataset
from torchvision.transforms import v2

from synthaug import MixedDataset, OnTheFlyDataset, Plan, SynthCache, load_dataset
from synthaug._images.epochs import Epochs
from synthaug._images.fields import Fields
from synthaug._images.source import ImageSource
from synthaug._pixels import digest
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages
from tests.drawing import Noise, plan_of
from tests.images import to_pil
from tests.mixtures import FIRST_ROW, Listed, make_cache

CLASSES = ("ant", "bee", "cow")
LABELS = np.array([0, 0, 1, 1, 2, 2])
PIXELS = torch.randint(0, 256, (6, 3, 6, 5), generator=torch.Generator().manual_seed(0)).byte()
ITEMS = [(to_pil(image), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)]


class Torchvision(VisionDataset):
    """As torchvision's data sets are; `name` is where it lists its labels."""

    def __init__(self, name: str | None, with_index: bool = False) -> None:
        super().__init__(root="", transform=None)
        self.classes = list(CLASSES)
        if with_index:
            self.class_to_idx = {name: i for i, name in enumerate(CLASSES)}
        if name is not None:
            setattr(self, name, LABELS.tolist())

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return ITEMS[index]


def labeled() -> LabeledImages:
    return LabeledImages(PIXELS, LABELS, CLASSES)


def folder(path: Path) -> Path:
    for i, (image, label) in enumerate(ITEMS):
        (path / CLASSES[label]).mkdir(exist_ok=True)
        image.save(path / CLASSES[label] / f"{i}.png")
    return path


def cache(path: Path) -> SynthCache:
    plan = Plan.build([2, 2, 2], classes=CLASSES, settings={}, seed=0)
    manifest = {"recipe": {"synthesizer": "test", "settings": {}, "weights": {}}}
    made = SynthCache.create(path / "cache.h5", plan, image_shape=(3, 6, 5), manifest=manifest)
    made.write(np.arange(6), PIXELS, fsync="never")
    return made


def table(path: Path) -> Any:
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"img": library.Image(), "label": library.ClassLabel(names=list(CLASSES))}
    )
    columns = {"img": [image for image, _ in ITEMS], "label": LABELS.tolist()}
    return library.Dataset.from_dict(columns, features=features)


def timm_folder(path: Path) -> Any:
    timm_data = pytest.importorskip("timm.data")
    return timm_data.ImageDataset(str(folder(path)))


def mixture(path: Path) -> MixedDataset:
    return MixedDataset(labeled(), make_cache(path, shape=(3, 6, 5)), audit=None, fraction=0.0)


def subset_of_parts(path: Path) -> Any:
    """The six images in their order, out of parts of several kinds in another order."""
    parts: list[Any] = [
        Subset(ImageFolder(path), [4, 5]),
        ConcatDataset([labeled(), Subset(labeled(), [3, 1])]),
    ]
    return Subset(ConcatDataset(parts), [2, -1, 4, 8, 0, 1])


def ImageFolder(path: Path) -> Any:
    return datasets.ImageFolder(folder(path))


def tensors(_: Path) -> Any:
    return TensorDataset(PIXELS, torch.from_numpy(LABELS))


KINDS: dict[str, tuple[Callable[[Path], Any], bool]] = {  # and whether it knows its classes
    "ImageFolder": (ImageFolder, True),
    "torchvision, targets": (lambda _: Torchvision("targets", with_index=True), True),
    "torchvision, labels": (lambda _: Torchvision("labels"), True),
    "torchvision, _labels": (lambda _: Torchvision("_labels"), True),
    "torchvision, labels in items": (lambda _: Torchvision(None), True),
    "TensorDataset": (tensors, False),
    "table of `datasets`": (table, True),
    "timm": (timm_folder, True),
    "Subset of ConcatDataset": (subset_of_parts, True),
    "cache": (cache, True),
    "mixture": (mixture, True),
    "LabeledImages": (lambda _: labeled(), True),
    "LabeledImages.subset": (lambda _: labeled().subset(np.arange(6)), True),
    "text": (lambda path: f"folder:{folder(path)}", True),
    "pair of tensors": (lambda _: (PIXELS, torch.from_numpy(LABELS)), False),
    "pair of arrays": (lambda _: (PIXELS.permute(0, 2, 3, 1).numpy(), LABELS), False),
    "list of pairs": (lambda _: ITEMS, False),
    "list of dicts": (lambda _: [{"img": x, "target": y} for x, y in ITEMS], False),
    "list of longer tuples": (lambda _: [(x, y, "more") for x, y in ITEMS], False),
    "opened before": (lambda _: ImageSource.open(labeled()), True),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm's open files
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same_labels_classes_and_pixels(kind, tmp_path):
    make, knows_classes = KINDS[kind]
    source = ImageSource.open(make(tmp_path), "`real`")
    assert (len(source), source.name) == (6, "`real`")
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == source.class_indices().tolist() == LABELS.tolist()
    assert source.classes == (CLASSES if knows_classes else None)
    assert source.image_shape == (3, 6, 5)
    assert torch.equal(source.pixels(), PIXELS)
    assert torch.equal(source.pixels([4, 1, 1]), PIXELS[[4, 1, 1]])
    pixels, labels = source.batch([5, 0])
    assert torch.equal(pixels, PIXELS[[5, 0]])
    assert labels.tolist() == [2, 0]
    assert source.done_rows("read").tolist() == list(range(6))
    wanted = [digest(image) for image in PIXELS]
    assert source.keys().tolist() == wanted
    assert set(wanted) <= set(source.digests().tolist())


def test_pixels_alone_have_no_labels():
    for given in (PIXELS, PIXELS.numpy()):
        source = ImageSource.open(given)
        assert source.labels.tolist() == [-1] * 6
        assert source.classes is None
        assert torch.equal(source.pixels([3, 0]), PIXELS[[3, 0]])


def test_fields_say_where_items_of_any_structure_have_what():
    class Nested:
        def get(self, item: Any) -> tuple[Any, Any]:
            return item["inputs"]["pixels"], item["y"]

        def put(self, item: Any, image: Any, label: Any) -> Any:
            raise NotImplementedError

    cases: list[tuple[Any, list[Any]]] = [
        (Fields(1, 2), [("name", x, y) for x, y in ITEMS]),
        (Fields("photo", "fine"), [{"photo": x, "fine": y, "label": 9} for x, y in ITEMS]),
        (Nested(), [{"inputs": {"pixels": x}, "y": y} for x, y in ITEMS]),
    ]
    for fields, items in cases:
        source = ImageSource.open(Subset(Listed(items), range(1, 6)), fields=fields)
        assert source.class_indices().tolist() == LABELS[1:].tolist()
        assert torch.equal(source.pixels([4, 0]), PIXELS[[5, 1]])


def random_tree(rng: np.random.Generator, depth: int) -> Any:
    """Data sets of numbers below `Subset` and `ConcatDataset`, nested at random."""
    if depth == 0 or rng.random() < 0.2:
        labels = rng.integers(0, 1000, 7)
        images = torch.from_numpy(rng.integers(0, 256, (7, 1, 2, 2), np.uint8))
        return TensorDataset(images, torch.from_numpy(labels))
    if rng.random() < 0.5:
        inner = random_tree(rng, depth - 1)
        return Subset(inner, rng.integers(-len(inner), len(inner), 6).tolist())
    return ConcatDataset([random_tree(rng, depth - 1) for _ in range(rng.integers(1, 4))])


@pytest.mark.parametrize("seed", range(20))
def test_any_nesting_gives_what_its_items_are(seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, 4)
    rows = rng.integers(0, len(tree), 9)
    source = ImageSource.open(tree)
    items = [tree[int(row)] for row in rows]
    assert source.labels[rows].tolist() == [int(label) for _, label in items]
    assert torch.equal(source.pixels(rows), torch.stack([image for image, _ in items]))


def test_an_opened_source_keeps_what_it_read_under_another_name(monkeypatch):
    first = ImageSource.open(Listed(ITEMS), "`train`")
    assert first.labels.tolist() == LABELS.tolist()
    monkeypatch.setattr(Listed, "__getitem__", lambda *_: pytest.fail("read again"))
    second = ImageSource.open(first, "`test`")
    assert (first.name, second.name) == ("`train`", "`test`")
    assert second.labels is first.labels


def test_messages_name_the_argument():
    scalars: Any = 3
    with pytest.raises(TypeError, match="`real` is a int, expected a cache, or a map-style"):
        ImageSource.open(scalars, "`real`")
    with pytest.raises(DataError, match="Item 1 of Arm 'x' cannot be used"):
        ImageSource.open([ITEMS[0], ("path.png", 0)], "Arm 'x'").batch([0, 1])
    with pytest.raises(ValueError, match="`train` does not name its classes"):
        ImageSource.open(Listed(ITEMS), "`train`").named_classes()
    small = [ITEMS[0], (Image.new("RGB", (2, 2)), 1)]
    with pytest.raises(MismatchError, match="Images of `test` have different shapes"):
        ImageSource.open(small, "`test`").batch([0, 1])


def test_rows_of_a_cache_that_are_not_done_are_left_out_wherever_it_lies(tmp_path):
    half = make_cache(tmp_path, quota=(2, 2, 2), done=[1, 2, 5])
    real = LabeledImages(torch.zeros(3, 3, 6, 5, dtype=torch.uint8), [0, 1, 2], CLASSES)
    both = ImageSource.open(ConcatDataset([real, half]))
    assert both.done_rows("scored").tolist() == [0, 1, 2, 4, 5, 8]
    assert len(both.digests()) == 6
    assert both.synthetic_facts == "3 images, no audit report"
    rows = both.synthetic_rows(np.arange(9))
    assert (rows[:3] == -1).all()
    assert len(set(rows[3:].tolist())) == 6
    empty = make_cache(tmp_path, quota=(2, 2, 2), done=[])
    with pytest.raises(ValueError, match="`s` cannot be scored: no row is generated yet"):
        ImageSource.open(empty, "`s`").done_rows("scored")


def test_digests_are_of_both_sides_of_a_mixture_and_without_transforms(tmp_path):
    real = datasets.ImageFolder(folder(tmp_path / "."), transform=v2.functional.invert)
    (tmp_path / "caches").mkdir()
    mixed = MixedDataset(real, make_cache(tmp_path / "caches"), audit=None, fraction=0.5)
    found = set(ImageSource.open(Subset(mixed, range(6))).digests().tolist())
    wanted = {digest(image) for image in PIXELS}
    made = {digest(torch.full((3, 6, 5), FIRST_ROW + i, dtype=torch.uint8)) for i in range(21)}
    assert found == wanted | made


class Inverted(Subset[Any]):
    """A part with a transform of its own, as many projects write it."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        super().__init__(dataset, indices)
        self.transform = v2.functional.invert

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return self.transform(image), label

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


def test_items_are_plain_unless_something_changes_them(tmp_path):
    assert ImageSource.open(labeled()).is_plain
    assert ImageSource.open(ConcatDataset([labeled(), cache(tmp_path)])).is_plain
    assert not ImageSource.open(Listed(ITEMS)).is_plain  # nobody knows
    changed = labeled()
    changed.transform = v2.functional.invert
    (tmp_path / "mixed").mkdir()
    for given in (
        changed,
        Subset(changed, [0]),
        Inverted(labeled(), [0]),
        mixture(tmp_path / "mixed"),
    ):
        assert not ImageSource.open(given).is_plain


def test_epochs_reach_every_data_set_that_has_them_and_are_given_back(tmp_path):
    mixed = MixedDataset(labeled(), make_cache(tmp_path), audit=None, fraction=0.5)
    live = OnTheFlyDataset(Noise(), plan_of(), background=False)
    parts: list[Dataset[Any]] = [Subset(mixed, [0, 1]), labeled(), live]
    epochs = ImageSource.open(ConcatDataset(parts)).epochs
    mixed.set_epoch(3)
    assert epochs.current == 3
    with epochs.kept():
        epochs.set(7)
        assert (mixed.epoch, live.epoch) == (7, 7)
    assert (mixed.epoch, live.epoch) == (3, 0)
    assert Epochs([]).current is None


def test_files_are_named_relative_to_the_folder_that_was_given_and_printably(tmp_path):
    for name in ("a.png", "b\n\x1b.png"):
        (tmp_path / "train" / "cat").mkdir(parents=True, exist_ok=True)
        to_pil(torch.zeros(1, 8, 8, dtype=torch.uint8)).save(tmp_path / "train" / "cat" / name)
    images = load_dataset(f"folder:{tmp_path}", split="train")
    parts = [Subset(images, [1, 0]), LabeledImages(images.read([0]), [0], ["cat"])]
    source = ImageSource.open(ConcatDataset(parts))
    assert source.file_names([2, 1, 0]) == [None, "train/cat/a.png", r"train/cat/b\n\x1b.png"]
    assert ImageSource.open(images).file_names([0]) == ["train/cat/a.png"]


def test_other_labels_take_the_place_of_those_of_the_data_set():
    source = ImageSource.open(labeled())
    assert source.relabeled([2, 1, 0, 0, 1, 2]).rows_of_classes(3)[0].tolist() == [2, 3]
    assert source.labels.tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="Got 2 `labels` for 6 real images"):
        source.relabeled([0, 1])


def test_a_source_crosses_processes(tmp_path):
    sent: ImageSource = pickle.loads(pickle.dumps(ImageSource.open(subset_of_parts(tmp_path))))
    read: Tensor = sent.pixels([3, 1])
    assert torch.equal(read, PIXELS[[3, 1]])
