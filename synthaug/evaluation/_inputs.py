"""How an evaluation reads its images: from memory where possible, else batch by batch.

A data set whose items are always the same images (our loaders, a cache, torchvision's data sets
without transform, and `Subset` and `ConcatDataset` of those) is read once. Any other one, such as
`MixedDataset` or a data set with a transform, is asked anew for every batch, so what it does with
an index is part of what is evaluated.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from synthaug._images.leaves import numbered_classes
from synthaug._images.source import ImageSource
from synthaug._plan import canonical_json
from synthaug._support.devices import sent
from synthaug._types import JSON, Array, ImageShape, Indices, Integers, Labels, Singles, Unsigned
from synthaug.errors import DataError, MismatchError, SynthaugError

MEMORY_LIMIT = 4 << 30
"""Data sets whose items are always the same are held in memory up to so many bytes."""


@final
class Batches:
    """A set of images as a trainer reads it, with labels counted in a given order of classes."""

    image_shape: ImageShape
    """(C, H, W), after the transforms of the data set."""

    def __init__(
        self,
        source: ImageSource,
        classes: Sequence[str],
        device: torch.device,
        absent: Set[str] = frozenset(),
    ) -> None:
        """Reads the images if they fit in memory.

        Args:
            source: The images.
            classes: Class names in the order in which labels are counted.
            device: Where images in memory are held.
            absent: The classes that the test set has no image of, so that nobody needs them.

        Raises:
            ValueError: For a mixture whose length changes from epoch to epoch.
            DataError: If there is no image, or an item is no labeled image.
            MismatchError: If the classes differ.
        """
        if len(source) == 0:
            raise DataError(f"{source.name} is empty.")
        if not source.has_fixed_length:
            raise ValueError(
                f"{source.name} has another length in every epoch, since its `ratio` changes; an "
                "evaluation counts steps over data sets of one length. Schedule the `fraction` of "
                'mode="replace".'
            )
        self.source = source
        self._epochs = source.epochs
        self._table, self._num_classes = _class_table(source, classes, absent), len(classes)
        first, _ = source.batch([0])
        c, h, w = first.shape[1:]
        self.image_shape = c, h, w
        self._memory: tuple[Tensor, Tensor] | None = None
        with naming(source.name):
            if source.is_plain and len(source) * first.numel() <= MEMORY_LIMIT:
                labels = torch.from_numpy(self._relabeled(source.labels))
                self._memory = source.pixels().to(device), labels.to(device)
        self.forget_seen()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (n, C, H, W) and labels of items of an epoch: int64 (n,), or of a mixture
        with soft labels float32 (n, num_classes).

        Raises:
            DataError: If an item is no labeled image.
            MismatchError: If the images have another shape than the first one.
        """
        if self._memory is not None:
            self._note(indices)
            pixels, labels = self._memory
            rows = sent(torch.from_numpy(indices), pixels.device)
            return pixels[rows], labels[rows]
        self._epochs.set(epoch)
        if self.source.gives_pixels:  # without a detour over PIL
            pixels, values = self.source.pixels(indices), self.source.labels[indices]
        else:
            pixels, values = self.source.batch(indices)
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise MismatchError(
                f"{self.source.name}: images have shape {tuple(pixels.shape[1:])}, the first one "
                f"had {self.image_shape}. Bring all to one shape in the data set's transform."
            )
        self._note(indices)
        return pixels, torch.from_numpy(self._relabeled(values))

    def _relabeled(self, labels: Array) -> Array:
        if labels.ndim == 2:  # class probabilities
            probabilities = np.zeros((len(labels), self._num_classes), labels.dtype)
            shared = self._table >= 0
            probabilities[:, self._table[shared]] = labels[:, shared]
            return probabilities
        if labels.min() < 0 or labels.max() >= len(self._table):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"{self.source.name} holds label {bad}, but there are {len(self._table)} classes."
            )
        return self._table[labels]

    def labels(self) -> Labels:
        """The class of every image, int64 (n,), counted as in batches."""
        if self._memory is not None:
            return self._memory[1].cpu().numpy()
        return self._table[self.source.labels]

    @cached_property
    def class_counts(self) -> Labels:
        """Images of every class, int64 (num_classes,); of class probabilities the likeliest."""
        return np.bincount(self.class_indices, minlength=self._num_classes)

    @cached_property
    def class_indices(self) -> Labels:
        """The class of every image as `labels` has it; of class probabilities the likeliest."""
        if self._memory is not None:
            return self.labels()
        return self._table[self.source.class_indices()]

    @cached_property
    def contents(self) -> Unsigned:
        """Content digests of all images, before transforms, uint64 (n,)."""
        with naming(self.source.name):
            return self.source.digests()

    # Which images were seen

    def _note(self, indices: Indices) -> None:
        rows = self.source.synthetic_rows(indices)
        self._seen_synthetic.update(rows[rows >= 0].tolist())
        self._seen_real[indices[rows < 0]] = True

    def forget_seen(self) -> None:
        """Starts the count of `seen` anew."""
        self._seen_real = np.zeros(len(self), bool)
        self._seen_synthetic: set[int] = set()

    def seen(self) -> tuple[int, int]:
        """Different real and different synthetic images in all batches."""
        return int(self._seen_real.sum()), len(self._seen_synthetic)


@final
@dataclass(frozen=True)
class ArmImages:
    """The images in the batches of an arm: a data set, and one with a share of each batch."""

    base: Batches
    added: Batches | None = None
    share: float = 0.0
    """Of `added` in every batch, rounded to whole images."""
    augment_added: bool = True
    """Whether images of `added` are augmented too."""
    balanced: bool = False
    """Whether all classes of `base` are drawn equally often."""
    effective_number: float | None = None
    """The beta of class weights of `base`."""
    logit_adjustment: float | None = None
    """How many times the logarithm of class shares of `base` is added to its logits."""

    @property
    def parts(self) -> list[Batches]:
        """The data set, and the added one if there is one."""
        return [self.base] if self.added is None else [self.base, self.added]

    def divided(self, batch_size: int) -> list[tuple[Batches, int]]:
        """Where the images of a batch come from, and how many from each."""
        added = self._count(batch_size)
        return list(zip(self.parts, (batch_size - added, added), strict=False))

    def augmented_part(self, batch_size: int) -> int:
        """How many images at the head of a batch are augmented."""
        return batch_size if self.augment_added else batch_size - self._count(batch_size)

    @property
    def rare_facts(self) -> str:
        """How rare classes count more, for people; "" if they do not."""
        if self.balanced:
            return "drawn as often as others"
        if self.effective_number is not None:
            return f"weighted by effective numbers, beta {self.effective_number:g}"
        if self.logit_adjustment is not None:
            return f"{self.logit_adjustment:g} times the logarithm of class shares in the loss"
        return ""

    @cached_property
    def rows_by_class(self) -> list[Indices]:
        """The images of `base` of every class that has any."""
        labels = self.base.class_indices
        return [np.flatnonzero(labels == c) for c in np.unique(labels)]

    @cached_property
    def class_weights(self) -> Singles | None:
        """Weights of the losses of `base` by class, float32 (num_classes,), with a mean of 1 over
        its images; `None` for none."""
        if self.effective_number is None:
            return None
        counts = self.base.class_counts.clip(min=1).astype(np.float64)
        # (1 - beta) / (1 - beta^n) without the loss of digits where beta is close to 1.
        beta = self.effective_number
        inverse = 1 / -np.expm1(counts * np.log(beta)) if beta else np.ones(len(counts))
        mean = (inverse * self.base.class_counts).sum() / self.base.class_counts.sum()
        return (inverse / mean).astype(np.float32)

    @cached_property
    def logit_offsets(self) -> Singles | None:
        """The offsets of the logits of `base` in the loss, float32 (num_classes,); `None` for none.
        A class without images counts as one with a single image.
        """
        if self.logit_adjustment is None:
            return None
        counts = self.base.class_counts.clip(min=1)
        shares = self.logit_adjustment * np.log(counts / counts.sum())
        return shares.astype(np.float32)

    def _count(self, batch_size: int) -> int:
        return math.floor(self.share * batch_size + 0.5)

    def fingerprint(self) -> JSON:
        """Returns the identity of the images of this arm."""
        rare = [self.balanced, self.effective_number, self.logit_adjustment]
        way: list[JSON] = [] if rare == [False, None, None] else [*rare]
        if self.added is None:
            return [fingerprint(self.base), *way] if way else fingerprint(self.base)
        return [*map(fingerprint, self.parts), self.share, self.augment_added, *way]

    def forget_seen(self) -> None:
        """Starts the count of `seen` anew."""
        for part in self.parts:
            part.forget_seen()

    def seen(self) -> tuple[int, int]:
        """Different real and different synthetic images in all batches; all added ones count as
        synthetic."""
        real, synthetic = self.base.seen()
        return real, synthetic + (0 if self.added is None else sum(self.added.seen()))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of a data set before what is wrong with it: with the data, not an argument."""
    try:
        yield
    except (DataError, MismatchError, TypeError, ValueError) as error:
        kind = type(error) if isinstance(error, SynthaugError) else DataError
        raise error if name in str(error) else kind(f"{name}: {error}") from error


def fingerprint(images: Batches) -> str:
    """32 hexadecimal digits over the content digests and what is made of the images.

    Mixtures of the same images differ in how they choose (`recipe`) and in what they chose for the
    epochs 0 and 1; transforms differ in the first items of epoch 0.
    """
    source, hashed = images.source, hashlib.blake2b(images.contents.tobytes(), digest_size=16)
    hashed.update(repr((len(source), source.classes)).encode())
    for recipe in source.recipes():
        hashed.update(canonical_json(recipe).encode())
    for epoch in (1, 0):
        source.epochs.set(epoch)
        hashed.update(source.synthetic_rows(np.arange(len(source))).tobytes())
    torch.manual_seed(0)
    pixels, labels = source.batch(range(min(len(source), 256)))
    hashed.update(pixels.numpy().tobytes())
    hashed.update(labels.tobytes())
    hashed.update(source.labels.tobytes() if source.is_plain else b"")
    return hashed.hexdigest()


def _class_table(source: ImageSource, classes: Sequence[str], absent: Set[str]) -> Integers:
    """Where each class of a source is in `classes`: matched by name, kept if there are no names.

    Classes that have no image need not be equal; they are -1.
    """
    names = source.classes or tuple(classes)
    missing = sorted(set(classes) - set(names) - absent)
    extra = set(names) - set(classes)
    if extra or missing:
        extra &= {names[c] for c in np.unique(source.labels)}
    if extra or missing:
        raise MismatchError(
            f"{source.name} has other classes than the test set. Missing: "
            f"{', '.join(missing[:5]) or 'none'}; not in the test set: "
            f"{', '.join(sorted(extra)[:5]) or 'none'}."
        )
    place = {name: c for c, name in enumerate(classes)}
    return np.array([place.get(name, -1) for name in names], np.int64)


def _absent_classes(test: ImageSource, others: Iterable[ImageSource]) -> Set[str]:
    """Classes of the test set that it has no image of, if others have other classes."""
    names = test.classes
    if names is None or all(set(other.classes or names) == set(names) for other in others):
        return frozenset()
    return set(names) - {names[c] for c in np.unique(test.labels)}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The data sets of one evaluation, with one order of the classes and one image shape."""

    arms: Mapping[str, Batches]
    """Training images of each arm."""
    added: Mapping[str, Batches]
    """Images that arms add to their batches, for those that do."""
    test: Batches
    others: Mapping[str, Batches]
    """Further test sets by name."""
    validation: Batches | None
    classes: tuple[str, ...]
    """Class names in the order in which labels are counted: the test set's."""
    sets: Mapping[str, Batches]
    """All of them by the names that messages use."""

    @classmethod
    def open(
        cls,
        arms: Mapping[str, Any],
        test: Any,
        validation: Any,
        device: torch.device,
        added: Mapping[str, Any] = MappingProxyType({}),
        others: Mapping[str, Any] = MappingProxyType({}),
    ) -> "Inputs":
        """Opens every data set; one that several arms share is read once.

        Args:
            arms: Data set of each arm.
            test: The test set, whose order of classes is that of the evaluation.
            validation: Images to choose by, or `None`.
            device: Where images in memory are held.
            added: Data sets that some arms add to their batches.
            others: Further test sets.

        Raises:
            MismatchError: If they differ in classes or image shape.
            DataError: If one cannot be read.
        """
        given = {"`test`": test, **({} if validation is None else {"`validation`": validation})}
        given.update({_further(name): dataset for name, dataset in others.items()})
        given.update({f"Arm {name!r}": dataset for name, dataset in arms.items()})
        given.update({f"`synthetic` of arm {name!r}": dataset for name, dataset in added.items()})
        sources = {name: ImageSource.open(one, name) for name, one in given.items()}
        classes = _classes(sources)
        absent = _absent_classes(sources["`test`"], sources.values())
        opened: dict[int, Batches] = {}
        for source in sources.values():
            if id(source.dataset) not in opened:
                opened[id(source.dataset)] = Batches(source, classes, device, absent)
        sets = {name: opened[id(source.dataset)] for name, source in sources.items()}
        shape = sets["`test`"].image_shape
        for name, images in sets.items():
            if images.image_shape != shape:
                raise MismatchError(
                    f"{name} has images of shape {images.image_shape}, `test` has {shape}. "
                    "Load both with the same image size and number of channels."
                )
        return cls(
            arms={name: sets[f"Arm {name!r}"] for name in arms},
            added={name: sets[f"`synthetic` of arm {name!r}"] for name in added},
            test=sets["`test`"],
            others={name: sets[_further(name)] for name in others},
            validation=sets.get("`validation`"),
            classes=classes,
            sets=sets,
        )


def _further(name: str) -> str:
    """A further test set in messages."""
    return f"`test` {name!r}"


def digests(dataset: Any, name: str) -> Unsigned:
    """Content digests of all images that a data set can show, before transforms, uint64 (n,).

    Of a mixture, which has a `.real` and a `.synthetic` data set, of both. Where the transform
    cannot be taken off, images count as they come.

    Raises:
        DataError: If there is no image.
    """
    source = ImageSource.open(dataset, name)
    if len(source) == 0:
        raise DataError(f"{name} is empty.")
    return source.digests()


def check_overlap(contents: Mapping[str, Unsigned], *, allow: bool) -> dict[str, dict[str, int]]:
    """Counts images of `test` and `validation` that another data set holds too, pixel for pixel.

    Returns:
        For "test" and "validation" the number of their images found in each other data set; those
        with none are left out.

    Raises:
        DataError: If there are any, unless `allow`.
    """
    shared: dict[str, dict[str, int]] = {}
    messages = []
    tests = [name for name in contents if name.startswith("`test`")]
    for held_out in ("`validation`", *tests):
        if held_out not in contents:
            continue
        counts = {}
        places: dict[tuple[int, int], list[str]] = {}  # arms mostly share the same images
        for name, keys in contents.items():
            if name == held_out or name in tests:  # `validation` against `test` counts once
                continue
            both = np.isin(contents[held_out], keys)
            if both.any():
                counts[name] = int(both.sum())
                example = int(np.argmax(both))
                places.setdefault((counts[name], example), []).append(name)
        for (count, example), holders in places.items():
            messages.append(
                f"{count} of {len(contents[held_out])} images of {held_out} are in "
                f"{', '.join(holders)} too, the first is number {example}."
            )
        if counts:
            shared[held_out.replace("`", "")] = counts
    if messages and not allow:
        raise MismatchError(
            " ".join(messages) + " Take them out of one of the two, or go on with "
            "`allow_overlap=True`: the report then says how many there were."
        )
    return shared


def _classes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    for name, source in sources.items():  # the test set comes first
        with naming(name):
            names = source.classes
        if names is not None:
            if len(set(names)) < len(names):
                raise DataError(f"{name} has two classes of one name: {', '.join(names)}.")
            return names
    numbered = (numbered_classes(source.labels, name) for name, source in sources.items())
    return max(numbered, key=len)
