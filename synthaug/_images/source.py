"""`ImageSource`: a set of images of whatever kind, opened once at the door.

Inside the package there is this one type. The walk through `Subset` and `ConcatDataset` is done
once, when a source is opened; what it finds below them are leaves, which know their kind.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property, partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from synthaug._images.convert import is_probabilities, label_of, pixels_of
from synthaug._images.epochs import Epochs
from synthaug._images.fields import Adapter, Fields, field
from synthaug._images.labeled import LabeledImages, load_dataset
from synthaug._images.leaves import (
    check_sample,
    class_names,
    has_transforms,
    is_plain,
    label_sample,
    labels_at,
    pixels_at,
    reads,
)
from synthaug._images.stores import Files, Indexed, gather
from synthaug._images.untransformed import without_transforms
from synthaug._images.wrappers import flattened, only_selects
from synthaug._pixels import digest
from synthaug._support.rows import row_numbers, rows_by_class, whole_numbers
from synthaug._types import JSON, Array, Flags, ImageShape, Indices, Labels, Pixels, Unsigned
from synthaug.errors import DataError, MismatchError

_BLOCK = 1024
"""Images that are read at once where all of them are needed one after the other."""


@final
class ImageSource:
    """Images and their labels, whatever data set they come from.

        source = ImageSource.open(ImageFolder("cifar10/train"), "`train`")
        source.labels, source.classes, source.image_shape
        source.pixels([5, 3])       # uint8 (2, C, H, W)
        source.batch([5, 3])        # pixels and labels after the data set's transforms

    It holds the data set and reads it when asked; nothing but labels is kept.
    """

    def __init__(self, dataset: Any, name: str, fields: Adapter | None = None) -> None:
        self.dataset = dataset
        """The data set as it was given, with its transforms."""
        self.name = name
        """What messages call it, for example "`train`"."""
        self._fields = fields
        self.leaves = [dataset]
        """The data sets below `Subset` and `ConcatDataset`."""
        self._places: tuple[NDArray[np.int32], Indices] | None = None
        if isinstance(dataset, Subset | ConcatDataset):
            self.leaves, leaf, row = flattened(dataset)
            self._places = leaf, row

    @classmethod
    def open(
        cls, given: Any, name: str | None = None, *, fields: Adapter | None = None
    ) -> "ImageSource":
        """Opens whatever holds images.

        Args:
            given: A map-style data set of any library, also inside `Subset` and `ConcatDataset`; a
                cache or a mixture; what `load_dataset` reads, such as "folder:PATH"; pixels without
                labels, uint8 (n, C, H, W); a pair (images, labels) of arrays or tensors; or an
                `ImageSource`.
            name: Its name in messages.
            fields: Where items have their image and their label, if not in the usual places.

        Raises:
            TypeError: If it is none of these.
            ValueError: For a pair of different lengths.
        """
        if isinstance(given, ImageSource):
            opened = copy.copy(given)  # it keeps what it has read
            opened.name = name or given.name
            return opened
        name = name or "The data set"
        if isinstance(given, str | os.PathLike):
            return cls(load_dataset(os.fspath(given)), name, fields)
        if isinstance(given, tuple):
            return cls(_paired(given, name), name, fields)
        items = hasattr(given, "__getitem__") or reads(given)
        if isinstance(given, IterableDataset | Mapping) or not (isinstance(given, Sized) and items):
            raise TypeError(
                f"{name} is a {type(given).__name__}, expected a cache, or a map-style data set "
                "with `__len__` and `__getitem__`. Choose a split of several, read the items of a "
                "stream into a list, and give a data set and not its loader."
            )
        return cls(given, name, fields)

    def __len__(self) -> int:
        return len(self.dataset)

    # Labels and classes

    @cached_property
    def labels(self) -> Labels:
        """The class index of every image, int64 (N,).

        Raises:
            DataError: If the labels are not one integer per image, or are not those of items.
        """
        if self._places is None:
            return labels_at(self.dataset, None, self._label_key)
        labels = self.labels_of(np.arange(len(self)))
        if not only_selects(self.dataset):
            sample = label_sample(self.dataset, np.arange(len(self)), self._label_key)
            check_sample(labels, sample, self.name)
        return labels

    def labels_of(self, rows: Indices) -> Labels:
        """The class index of some images, int64 (n,); errors as `labels`."""
        if "labels" in vars(self):  # read before, or given
            return self.labels[rows]
        labels = np.empty(len(rows), np.int64)
        for leaf, mask, inner in self._by_leaf(rows):
            labels[mask] = labels_at(leaf, inner, self._label_key)
        return labels

    def class_indices(self) -> Labels:
        """`labels` of any kind of items; of class probabilities the most probable class. Vectors
        that are none, such as those of several labels, are a DataError."""
        if self.has_weights:
            return self.labels  # vectors need not sum to 1
        example = self.dataset[0]
        fields = self._fields or Fields.of(example)
        soft = is_probabilities(fields.get(example)[1])
        if not soft and isinstance(fields, Fields):
            return self.labels
        labels = [fields.get(self.dataset[i])[1] for i in range(len(self))]
        if not soft:
            return np.array([int(label) for label in labels], np.int64)
        vectors = np.stack([np.asarray(label) for label in labels])
        wrong = np.flatnonzero((vectors < 0).any(1) | (np.abs(vectors.sum(1) - 1) > 0.01))
        if len(wrong):
            raise DataError(
                f"The label of item {wrong[0]} of {self.name} is {vectors[wrong[0]]}, and class "
                "probabilities are not negative, and 1 in sum. Images of several classes at once "
                "cannot be mixed."
            )
        return vectors.argmax(axis=1)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The class names; `None` if no part of the data set knows them.

        Raises:
            MismatchError: If parts have different classes or count them in another order.
            DataError: If `classes` and `class_to_idx` of a part disagree.
        """
        every = {class_names(leaf, self._label_key) for leaf in self.leaves}
        names = sorted(one for one in every if one is not None)
        if len(names) > 1:
            first, second = names[:2]
            raise MismatchError(
                f"The parts of the ConcatDataset have different classes: {', '.join(first)} and "
                f"{', '.join(second)}. Their labels must mean the same."
            )
        return names[0] if names else None

    @property
    def _label_key(self) -> str | int | None:
        """Where items have their label, if that was said."""
        return self._fields.label if isinstance(self._fields, Fields) else None

    def relabeled(self, labels: ArrayLike) -> "ImageSource":
        """The same images with other labels, int (N,); another number of them is a ValueError."""
        values = whole_numbers(labels, "labels")
        if values.shape != (len(self),):
            raise ValueError(f"Got {len(values)} `labels` for {len(self)} real images.")
        other = copy.copy(self)
        other.__dict__["labels"] = values
        return other

    def rows_of_classes(self, num_classes: int) -> list[Indices]:
        """The rows of each class, ascending."""
        return rows_by_class(np.arange(len(self)), self.labels, num_classes)

    def named_classes(self) -> tuple[str, ...]:
        """The class names; a ValueError if they are not known."""
        if self.classes is None:
            raise ValueError(f"{self.name} does not name its classes.")
        return self.classes

    # Pixels

    @cached_property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images, that of the first one if the data set does not say; a ValueError
        if there is none."""
        shape = getattr(self.leaves[0], "image_shape", None) if len(self.leaves) == 1 else None
        if shape is None and len(self) == 0:
            raise ValueError(f"{self.name} is empty: there is no image to gather.")
        c, h, w = self.pixels([0]).shape[1:] if shape is None else shape
        return c, h, w

    def pixels(self, rows: ArrayLike | None = None, *, progress: bool | None = False) -> Pixels:
        """Some images, gathered.

        Args:
            rows: Images by number, int (n,) or a mask, bool (N,); all of them if `None`.
            progress: Shows a bar if it takes more than two seconds; `None`: on a terminal only.

        Returns:
            uint8 (n, C, H, W). A data set with a method `read` gives the images without their
            transforms; of any other one they come as it gives them.

        Raises:
            ValueError: If the data set holds no image.
            DataError: If one is not an image that we know.
            MismatchError: If the images have different shapes.
        """
        rows = np.arange(len(self)) if rows is None else row_numbers(rows, len(self), "rows")
        if len(rows) == 0:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8, device="cpu")
        if self._fields is not None and not self._reads:
            images = Indexed(self.dataset, int(rows[0]), fields=self._fields)
            return gather(images, rows, progress, "Reading images")
        parts = [(mask, pixels_at(leaf, r, progress)) for leaf, mask, r in self._by_leaf(rows)]
        if len(parts) == 1:
            return parts[0][1]
        shape = _one_shape("Images in parts of the ConcatDataset", (part for _, part in parts))
        pixels = torch.empty((len(rows), *shape), dtype=torch.uint8, device="cpu")
        for mask, part in parts:
            pixels[torch.from_numpy(mask)] = part
        return pixels

    def changed(self, rows: ArrayLike, change: Callable[..., Image.Image]) -> Pixels | None:
        """Some images as they would be had their files been changed before they were read.

        Args:
            rows: Images by number, int (n,).
            change: Called with the whole image of a file, and its `place` among `rows`; returns
                what the file is to hold instead.

        Returns:
            uint8 (n, C, H, W); `None` if one of them has no file, or none that `load_dataset` read.
        """
        rows = np.asarray(rows, np.int64)
        pixels = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8, device="cpu")
        for leaf, mask, local in self._by_leaf(rows):
            files = leaf.subset(local).files if isinstance(leaf, LabeledImages) else None
            if files is None or not all(map(os.path.exists, files.paths)):
                return None
            for i, place in enumerate(np.arange(len(rows))[mask].tolist()):
                pixels[place] = torch.from_numpy(files.decode(i, partial(change, place=place)))
        return pixels

    def file_names(self, rows: ArrayLike) -> list[str | None]:
        """The files of some images, relative to the folder that was given, printable; `None` where
        there is none that `load_dataset` read.

        Args:
            rows: Images by number, int (n,).
        """
        rows = np.asarray(rows, np.int64)
        names = np.full(len(rows), None, object)
        for leaf, mask, local in self._by_leaf(rows):
            files = leaf.subset(local).files if isinstance(leaf, LabeledImages) else None
            if files is not None:
                names[mask] = files.names
        return names.tolist()

    def files(self) -> list[tuple[Files, int]] | None:
        """For every image, what reads its file and its row there; `None` if some have no file that
        `load_dataset` read."""
        found: dict[int, tuple[Files, int]] = {}
        every = np.arange(len(self))
        for leaf, mask, local in self._by_leaf(every):
            files = leaf.files if isinstance(leaf, LabeledImages) else None
            if files is None:
                return None
            places = zip(every[mask].tolist(), local.tolist(), strict=True)
            found |= {place: (files, row) for place, row in places}
        return [found[i] for i in range(len(self))]

    def blocks(self, size: int = _BLOCK) -> Iterator[Pixels]:
        """All images in order, uint8 (n, C, H, W), n at most `size`."""
        for start in range(0, len(self), size):
            yield self.pixels(np.arange(start, min(start + size, len(self))))

    def batch(self, rows: Sequence[int] | Indices) -> tuple[Pixels, Array]:
        """Some items after the data set's transforms.

        Returns:
            Pixels, uint8 (n, C, H, W); and labels, int64 (n,), or float32 (n, num_classes) if they
            are class probabilities.

        Raises:
            DataError: If an item is no labeled image.
            MismatchError: If the images have different shapes.
        """
        numbers = row_numbers(rows, len(self), "rows").tolist()
        images, labels = [], []
        for i, item in zip(numbers, items_of(self.dataset, numbers), strict=True):
            try:
                images.append(pixels_of(field(item, "image")))
                labels.append(label_of(field(item, "label")))
            except (TypeError, ValueError) as error:
                raise DataError(f"Item {i} of {self.name} cannot be used. {error}") from error
        _one_shape(f"Images of {self.name}", images)
        values = np.array(labels)
        return torch.stack(images), values.astype(np.float32 if values.ndim == 2 else np.int64)

    def keys(self) -> Unsigned:
        """Content digest of every image as `pixels` gives it, uint64 (N,)."""
        return np.array([digest(image) for block in self.blocks() for image in block], np.uint64)

    def digests(self) -> Unsigned:
        """Content digests of all images that can be shown, before transforms, uint64 (n,).

        Of a mixture those of both sides, of a cache those of the finished rows. Where a transform
        cannot be taken off, images count as they come.
        """
        return np.fromiter(map(digest, self._shown(np.arange(len(self)))), np.uint64)

    def _shown(self, rows: Indices) -> Iterator[Tensor]:
        """All images that some items can show, uint8 (C, H, W), which may differ in size."""
        for leaf, _, local in self._by_leaf(rows):
            if hasattr(leaf, "real") and hasattr(leaf, "synthetic"):
                real, synthetic = (ImageSource(x, self.name) for x in (leaf.real, leaf.synthetic))
                yield from real._shown(local[local < len(real)])
                yield from synthetic._shown(np.arange(len(synthetic)))
            elif reads(leaf):
                local = local[_done(leaf)[local]]  # what is not generated cannot be shown
                for start in range(0, len(local), _BLOCK):
                    yield from pixels_at(leaf, local[start : start + _BLOCK])
            else:
                yield from _untransformed(leaf, local)

    # What is known of it

    @property
    def done(self) -> Flags:
        """Mask of the rows that can be read, bool (N,): of a cache those that are generated."""
        if self._places is None:
            return _done(self.dataset)
        done = np.ones(len(self), bool)
        for leaf, mask, rows in self._by_leaf(np.arange(len(self))):
            done[mask] = _done(leaf)[rows]
        return done

    def done_rows(self, purpose: str) -> Indices:
        """The rows that can be read, at least one.

        Args:
            purpose: For the message, such as "audited".

        Raises:
            ValueError: If there is none.
        """
        done = self.done
        if not done.any():
            what = "no row is generated yet" if len(self) else "it holds no image"
            raise ValueError(f"{self.name} cannot be {purpose}: {what}.")
        return np.flatnonzero(done)

    @property
    def is_plain(self) -> bool:
        """Whether an item is always the same image, with no transform on it."""
        return all(map(is_plain, self.leaves)) and not has_transforms(self.dataset)

    @property
    def gives_pixels(self) -> bool:
        """Whether `pixels` and `labels` are what items are made of: no transform, no soft label."""
        soft = any(self._told("has_soft_labels", False))
        changed = any(map(has_transforms, (self.dataset, *self.leaves)))
        return self._reads and not changed and not soft

    @property
    def has_weights(self) -> bool:
        """Whether class probabilities are scaled by weights, as those of a mixture can be."""
        return any(self._told("has_weights", False))

    def _told(self, property: str, default: bool) -> list[bool]:
        """Asks every leaf for a property that mixtures have."""
        return [getattr(leaf, property, default) for leaf in self.leaves]

    @property
    def _reads(self) -> bool:
        return all(map(reads, self.leaves))

    @property
    def has_fixed_length(self) -> bool:
        """Whether every epoch has as many items."""
        return all(self._told("has_fixed_length", True))

    @property
    def epochs(self) -> "Epochs":
        """The epochs of the data sets inside."""
        return Epochs(self.leaves)

    def synthetic_rows(self, rows: Indices) -> Indices:
        """Returns numbers that tell synthetic images among some items apart, int64 (n,), -1 for
        real ones.

        A mixture says it itself, for its epoch. Of others, a cache is synthetic: it alone has a
        plan.
        """
        synthetic = np.full(len(rows), -1, np.int64)
        for n, leaf in enumerate(self.leaves):
            mask, local = self._inside(n, rows)
            if _is_mixture(leaf):
                local = leaf.synthetic_rows(local)
            elif not _is_cache(leaf):
                continue
            synthetic[mask] = np.where(local < 0, -1, local + (n << 40))  # rows of another cache
        return synthetic

    def recipes(self) -> list[dict[str, JSON]]:
        """Returns the recipes of all mixtures inside, which decide their synthetic images in an
        epoch.
        """
        mixtures = filter(_is_mixture, self.leaves)
        return [mixture.recipe() for mixture in mixtures if hasattr(mixture, "recipe")]

    @property
    def synthetic_facts(self) -> str:
        """How many synthetic images it may show, and what an audit said; "" if there are none.

        A mixture knows. Of a cache alone nobody said which of its images may be served.
        """
        facts = []
        for leaf in self.leaves:
            if hasattr(leaf, "served"):
                facts.append(str(leaf.served))
            elif _is_cache(leaf):
                facts.append(f"{int(np.sum(leaf.done)):,} images, no audit report")
        return "; ".join(dict.fromkeys(facts))

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint that the data set itself gives for its images."""
        fingerprint = getattr(self.dataset, "fingerprint", None)
        return fingerprint if isinstance(fingerprint, str) else None

    @property
    def record(self) -> dict[str, JSON]:
        """Fingerprint and number of the images, for those who learned from them; and the digest of
        the plan of canaries among them, if there are any."""
        record: dict[str, JSON] = {"fingerprint": self.fingerprint, "images": len(self)}
        if isinstance(self.dataset, LabeledImages):
            if self.dataset.skipped:
                record["skipped_files"] = len(self.dataset.skipped)
            if self.dataset.canaries is not None:
                record["canaries"] = self.dataset.canaries
        return record

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity in reports: that of a cache, or the fingerprint of another data set."""
        identity = getattr(self.dataset, "identity", None)
        return identity if isinstance(identity, dict) else {"fingerprint": self.fingerprint}

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of a cache, which tells how its images were made; empty for other data sets."""
        manifest: dict[str, Any] = getattr(self.dataset, "manifest", {})
        return manifest

    @property
    def title(self) -> str:
        """The name of the data set, for people."""
        return str(getattr(self.dataset, "name", None) or type(self.dataset).__name__)

    @property
    def spec(self) -> str | None:
        """How a command line would name it: the path of a cache, or what `load_dataset` was given;
        `None` if it could not."""
        path, name = (getattr(self.dataset, key, None) for key in ("path", "name"))
        if hasattr(self.dataset, "done") and isinstance(path, str | os.PathLike):
            return os.fspath(path)
        return name if isinstance(name, str) and self.fingerprint is not None else None

    def first_rows(self) -> list[int]:
        """The first row of each leaf that has some."""
        if self._places is None:
            return [0]
        return np.unique(self._places[0], return_index=True)[1].tolist()

    def _by_leaf(self, rows: Indices) -> Iterator[tuple[Any, Any, Indices]]:
        """Where some images lie: a leaf that holds some, which of `rows`, and their rows there."""
        for n, leaf in enumerate(self.leaves):
            mask, inner = self._inside(n, rows)
            if len(inner):
                yield leaf, mask, inner

    def _inside(self, n: int, rows: Indices) -> tuple[Any, Indices]:
        """Returns the positions of the `rows` in leaf number n, and their rows there."""
        if self._places is None:
            return slice(None), rows
        numbers, inner = self._places
        mask = numbers[rows] == n
        return mask, inner[rows[mask]]


def recorded(record: Any, name: str) -> set[str]:
    """Returns the values of a name, such as "fingerprint", in a record of training images, at any
    depth: a cascade has one for each model.
    """
    if not isinstance(record, Mapping):
        return set()
    value = record.get(name)
    here = {value} if isinstance(value, str) else set()
    return here.union(*(recorded(part, name) for part in record.values()))


def items_of(dataset: Any, rows: list[int]) -> list[Any]:
    """Items of a data set, which is asked for all of them at once if it can be."""
    if not rows:
        return []
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(rows))
    return [dataset[i] for i in rows]


def _one_shape(owner: str, images: Iterable[Tensor]) -> tuple[int, ...]:
    """The shape (C, H, W) of single images, or of batches of them."""
    shapes = sorted({tuple(image.shape[-3:]) for image in images})
    if len(shapes) > 1:
        raise MismatchError(
            f"{owner} have different shapes, {shapes[0]} and {shapes[1]}. Bring all to one shape, "
            "for example in a transform."
        )
    return shapes[0]


def _untransformed(dataset: Any, rows: Indices) -> Iterator[Tensor]:
    """Images before the transforms where these can be taken off, uint8 (C, H, W)."""
    try:
        raw = without_transforms(dataset)[0]
    except ValueError:  # they cannot be taken off
        raw = dataset
    for i in rows.tolist():
        try:
            image = pixels_of(field(raw[i], "image"))
        except (TypeError, ValueError):  # of a mode that only the transform makes usable
            image = pixels_of(field(dataset[i], "image"))
        yield image


def _is_mixture(leaf: Any) -> bool:
    return hasattr(leaf, "synthetic_rows")


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "plan_digest")


def _done(leaf: Any) -> Flags:
    """Returns a mask of the images of a data set that can be read, bool (N,)."""
    return np.asarray(getattr(leaf, "done", np.ones(len(leaf), bool)))


def _paired(given: tuple[Any, ...], name: str) -> Any:
    """A pair (images, labels) of arrays or tensors as a data set."""
    if len(given) != 2 or not all(isinstance(part, np.ndarray | Tensor) for part in given):
        raise TypeError(
            f"{name} is a tuple of {', '.join(type(part).__name__ for part in given)}, expected a "
            "data set, or a pair of arrays (images, labels)."
        )
    images, labels = given
    if len(images) != len(labels):
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels.")
    if isinstance(images, Tensor) and isinstance(labels, Tensor):
        return TensorDataset(images, labels)
    return list(zip(images, labels.tolist() if labels.ndim == 1 else labels, strict=True))
