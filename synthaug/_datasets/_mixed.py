"""Real and synthetic images in one data set.

Which image index `i` gives is a pure function of (seed, epoch, i): the choices of a whole epoch are
drawn at once into a table, by each process for itself, the first time it sees the epoch. So it does
not matter how many workers there are, how they were started, or in which order they are asked; and
a choice costs one array access instead of a generator object.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from synthaug._adapt import (
    Transform,
    field_key,
    label_like,
    labels_of,
    like,
    without_transforms,
)
from synthaug._data import as_pixels
from synthaug._datasets._checks import check_example, checked_classes, checked_share
from synthaug._datasets._strata import by_hardness, checked_hardness, dealt
from synthaug._errors import DataError, DataMismatchError
from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._plan import matching_quota
from synthaug._serving import Scored, SyntheticImages, Verdicts, servable
from synthaug._sources import checked_labels
from synthaug._types import JSON, Indices, Labels, Pixels

# Streams of random numbers; no two uses share one. 3 is the sampler's.
_WHICH, _SHUFFLE, _DECK = 0, 1, 2
_THUMBNAILS = 24

Mode = Literal["replace", "append"]


class MixedDataset(Dataset[Any]):
    """Real images mixed with synthetic ones of the same classes, as one map-style data set.

        mixed = MixedDataset(real, cache, audit=report, fraction=0.5)
        mixed = MixedDataset(real, cache, audit=report, mode="append", ratio=1.0)
        mixed = MixedDataset(real, cache, audit=None, fraction=0.5)   # unaudited
        for epoch in range(epochs):
            mixed.set_epoch(epoch)          # reaches persistent workers too
            for images, labels in loader: ...

    **replace**: `len(mixed) == len(real)`. Each item is replaced, with probability `fraction`, by
    a synthetic image of its class; its label and all other fields stay those of the real item. In
    one epoch no synthetic image occurs twice before all of its class have occurred.

    **append**: the items of `real` in their order, each once per epoch, then `round(ratio *
    len(real))` synthetic ones in the class proportions of `real`. Over the epochs no synthetic
    image occurs again before all of its class have occurred.

    Which images an epoch has is a function of `seed`, the epoch, and the arguments, and of nothing
    else: any number of workers gives the same.

    Items have the types of the items of `real`, which may be (image, label), a longer tuple, a list
    or a dict with "image" (or "img", "pixel_values") and "label" (or "labels", "target"); images
    may be of PIL, tensors, `tv_tensors` or arrays. If `real` has a `transform`, it is taken over:
    both kinds of images go through it here, and `mixed.transform` may be assigned. The same holds
    for `target_transform`. `real` itself is not changed. A data set that transforms its images in
    another way is mixed as it is, so take random changes out of it.
    """

    def __init__(
        self,
        real: Any,
        synthetic: SyntheticImages,
        *,
        audit: Verdicts | None,
        mode: Mode = "replace",
        fraction: float | None = None,
        ratio: float | None = None,
        hardness: Scored | ArrayLike | None = None,
        hardest: float | None = None,
        strata: int | None = None,
        seed: int = 0,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        classes: Sequence[str] | None = None,
        any_size: bool = False,
    ) -> None:
        """Checks that the two sides fit together, and takes over the transforms of `real`.

        Args:
            real: A map-style data set, also inside `Subset` and `ConcatDataset`.
            synthetic: A `SynthCache`. Rows that are done now are used.
            audit: A report about it; images that it did not pass are not served. `None` skips the
                audit, with a warning.
            mode: "replace" or "append".
            fraction: For "replace": the probability of an item to be replaced, in [0, 1].
            ratio: For "append": synthetic images per real image, at least 0.
            hardness: The report of `synthaug.score_hardness` about the cache, or a number per row,
                (N,): for the two below.
            hardest: Serves of each class the hardest images only: this share, rounded up.
            strata: Parts of equal size into which each class is divided by hardness, and from which
                every epoch draws equally often.
            seed: Of the choices.
            transform: For both kinds of images, if `real` has none.
            target_transform: For the labels of both, if `real` has none.
            classes: Class names of `real`, if it does not know them.
            any_size: Allows synthetic images of another size than the real ones, which makes sense
                if the transform brings all to one size.

        Raises:
            ValueError, TypeError: For wrong arguments, or items that we cannot make equal.
            AuditError: If the report judges another cache.
            CacheMismatchError: If the classes, channels or sizes differ.
            DataError: If a class has no synthetic image that may be served.
        """
        self._share = checked_share(mode, fraction, ratio)
        self.mode = mode
        self.seed = seed
        self.real, self.synthetic = real, synthetic
        self.served = servable(synthetic, audit)
        self._hardest, self._strata = hardest, strata
        scores = checked_hardness(synthetic, hardness, hardest, strata)
        if len(real) == 0:
            raise DataError("`real` holds no image.")

        self._raw, taken, target_taken = without_transforms(real)
        for name, given, own in [
            ("transform", transform, taken),
            ("target_transform", target_transform, target_taken),
        ]:
            if given is not None and own is not None:
                raise ValueError(
                    f"`real` has a transform already, and `{name}` was given too. Without the "
                    "argument, that of `real` goes to both kinds of images."
                )
        self.transform = transform if transform is not None else taken
        self.target_transform = target_transform if target_transform is not None else target_taken

        self.classes = checked_classes(real, synthetic, classes)
        self._labels = checked_labels(labels_of(self._raw), self.classes, "`real`")
        check_example(
            self._raw, self._labels, synthetic, appended=mode == "append", any_size=any_size
        )
        self._example = self._raw[0]
        self._image_key = field_key(self._example, "image")
        self._label_key = field_key(self._example, "label")

        # Servable rows in the order of their classes; those of class c lie between two starts.
        rows = np.flatnonzero(self.served.mask)
        labels = np.asarray(synthetic.labels)
        self._pool: Indices = (
            rows[np.argsort(labels[rows], kind="stable")]
            if scores is None
            else by_hardness(rows, labels[rows], scores, hardest)
        )
        self._starts = np.searchsorted(labels[self._pool], np.arange(len(self.classes) + 1))
        if mode == "replace":
            self._quota = np.bincount(self._labels, minlength=len(self.classes))
            self._by_class = np.argsort(self._labels, kind="stable")
        elif self._share == 0:
            self._quota = np.zeros(len(self.classes), np.int64)
        else:
            self._quota = matching_quota(self._labels, len(self.classes), ratio=self._share)
        short = (self._quota > 0) & (np.diff(self._starts) == 0)
        if self._share > 0 and short.any():
            c = int(np.flatnonzero(short)[0])
            done = np.asarray(synthetic.done)[np.asarray(synthetic.labels) == c]
            raise DataMismatchError(
                f"Class {self.classes[c]!r} has no synthetic image that may be served: of "
                f"{len(done)} rows, {done.sum()} are done"
                f"{'' if audit is None else ' and none of them passed the audit'}. Generate more "
                "images of it, or leave the class out of `real`."
            )
        # In shared memory, so that workers that already run see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._table: tuple[int, Indices] | None = None

    # Choices

    @property
    def epoch(self) -> int:
        """The epoch whose images are served."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Changes the choices; call it before each epoch. Workers that already run follow."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be at least 0, got {epoch}.")
        self._epoch.fill_(epoch)

    def synthetic_rows(self, indices: ArrayLike | None = None) -> Indices:
        """The row of the cache that each index gives in this epoch, -1 for a real image.

        Args:
            indices: int (n,); all if `None`.
        """
        rows = self._rows()
        return rows.copy() if indices is None else rows[np.asarray(indices, np.int64)]

    def recipe(self) -> dict[str, JSON]:
        """What decides, besides the images themselves and the epoch, which of them are served."""
        pool = hashlib.blake2b(self._pool.tobytes(), digest_size=16).hexdigest()
        by_hardness = {"hardest": self._hardest, "strata": self._strata}
        return {
            **{name: value for name, value in by_hardness.items() if value is not None},
            "mode": self.mode,
            "share": self._share,
            "seed": self.seed,
            "audit": self.served.verdict,
            "pool": pool,
        }

    def is_synthetic(self, index: int) -> bool:
        """Whether an index gives a synthetic image in this epoch."""
        return bool(self._rows()[index] >= 0)

    def provenance(self, index: int) -> dict[str, Any]:
        """Where the image of an index comes from in this epoch.

        Of a real image `{"synthetic": False, "index": ...}`; of a synthetic one its `row`, and what
        the cache says about it.
        """
        row = int(self._rows()[index])
        if row < 0:
            return {"synthetic": False, "index": int(index) % len(self)}
        known = getattr(self.synthetic, "provenance", None)
        return {"synthetic": True, "row": row, **({} if known is None else known(row))}

    def _rows(self) -> Indices:
        epoch = self.epoch
        if self._table is None or self._table[0] != epoch:
            draw = self._draw_replaced if self.mode == "replace" else self._draw_appended
            rows = draw(epoch)
            rows.setflags(write=False)
            self._table = epoch, rows
        return self._table[1]

    def _draw_replaced(self, epoch: int) -> Indices:
        replaced = counter_rng(self.seed, _WHICH, epoch).random(len(self._labels)) < self._share
        rows = np.full(len(self._labels), -1, np.int64)
        members = self._by_class[replaced[self._by_class]]  # sorted by class
        ends = np.cumsum(np.bincount(self._labels[members], minlength=len(self.classes)))
        for c, part in enumerate(np.split(members, ends[:-1])):
            if len(part):
                pool = self._pool[self._starts[c] : self._starts[c + 1]]
                rng = counter_rng(self.seed, _SHUFFLE, epoch, c)
                rounds = -(-len(part) // len(pool))
                deck = np.concatenate([self._deck(rng, pool) for _ in range(rounds)])
                rows[part] = deck[: len(part)]
        return rows

    def _draw_appended(self, epoch: int) -> Indices:
        parts = [np.full(len(self._labels), -1, np.int64)]
        for c, quota in enumerate(self._quota.tolist()):
            if quota:
                pool = self._pool[self._starts[c] : self._starts[c + 1]]
                first, last = epoch * quota, (epoch + 1) * quota  # counted over all epochs
                rounds = range(first // len(pool), (last - 1) // len(pool) + 1)
                decks = [self._deck(counter_rng(self.seed, _DECK, c, r), pool) for r in rounds]
                skip = first - rounds[0] * len(pool)
                parts.append(np.concatenate(decks)[skip : skip + quota])
        return np.concatenate(parts)

    def _deck(self, rng: np.random.Generator, pool: Indices) -> Indices:
        """All images of a class in the order in which they are drawn."""
        return shuffled(rng, pool) if self._strata is None else dealt(rng, pool, self._strata)

    # Items

    def __len__(self) -> int:
        return len(self._labels) + (int(self._quota.sum()) if self.mode == "append" else 0)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):  # what ends a `for` loop over us
            raise IndexError(f"Index {index} is out of range for {len(self)} items.")
        row = int(self._rows()[index])
        if row < 0:
            return self._item(self._raw[index % len(self)])
        item = self._raw[index % len(self)] if self._has_extras else self._example
        return self._item(item, self.synthetic.read([row])[0], int(self.synthetic.labels[row]))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A whole batch: each side is asked once. `DataLoader` and `Subset` call it."""
        where = np.asarray(indices, np.int64)
        rows = self._rows()[where]  # checks them
        made = rows >= 0
        needed = where[~made | self._has_extras] % len(self)
        raw = iter(_items(self._raw, needed.tolist()))
        pixels = iter(self.synthetic.read(rows[made])) if made.any() else iter(())
        labels = np.asarray(self.synthetic.labels)[rows]
        return [
            self._item(next(raw) if self._has_extras else self._example, next(pixels), label)
            if is_made
            else self._item(next(raw))
            for is_made, label in zip(made.tolist(), labels.tolist(), strict=True)
        ]

    @property
    def _has_extras(self) -> bool:
        return len(self._example) > 2  # further fields come from the real item

    def _item(self, item: Any, pixels: Tensor | None = None, label: int = 0) -> Any:
        """An item of `real`, or with `pixels` a synthetic one like it, after the transforms."""
        if pixels is None and self.transform is None and self.target_transform is None:
            return item
        image, target = item[self._image_key], item[self._label_key]
        if pixels is not None:
            image, target = like(pixels, image), label_like(label, target)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        if type(item) is tuple and len(item) == 2:  # nearly all are
            return image, target
        return _with(item, {self._image_key: image, self._label_key: target})

    def read(self, indices: ArrayLike) -> Pixels:
        """The images of this epoch as pixels, uint8 (n, C, H, W), without the transform."""
        where = np.asarray(indices, np.int64)
        rows = self._rows()[where]
        made = torch.from_numpy(rows >= 0)
        if made.all():
            return self.synthetic.read(rows)
        real = as_pixels(self._raw, where[rows < 0] % len(self))
        if not made.any():
            return real
        fake = self.synthetic.read(rows[rows >= 0])
        if real.shape[1:] != fake.shape[1:]:
            raise DataMismatchError(
                f"Real images have shape {tuple(real.shape[1:])}, synthetic ones "
                f"{tuple(fake.shape[1:])}: only a transform can bring them together."
            )
        pixels = torch.empty((len(rows), *fake.shape[1:]), dtype=torch.uint8)
        pixels[made], pixels[~made] = fake, real
        return pixels

    @property
    def labels(self) -> Labels:
        """Class index of every item, int64 (N,): of `real`, then of the appended ones."""
        if self.mode == "replace":
            return self._labels.copy()
        return np.concatenate([self._labels, np.repeat(np.arange(len(self._quota)), self._quota)])

    @property
    def targets(self) -> list[int]:
        """`labels` as a list, the same in every epoch, as torchvision's data sets have it."""
        return self.labels.tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to class index."""
        return {name: i for i, name in enumerate(self.classes)}

    # Copies

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # cheaper to draw again than to send

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a deep copy is not; one in another process already is

    # Display

    def __repr__(self) -> str:
        share = "fraction" if self.mode == "replace" else "ratio"
        made = int((self._rows() >= 0).sum())
        lines = [
            f"Dataset {type(self).__name__}",
            f"    Number of datapoints: {len(self)}",
            f"    Mode: {self.mode}, {share} {self._share:g}, seed {self.seed}",
            f"    Real: {len(self._labels)}, {type(self.real).__name__}",
            f"    Synthetic: {self.served}",
            f"    Epoch {self.epoch}: {len(self) - made} real, {made} synthetic",
            f"    Classes: {len(self.classes)}",
        ]
        if self._hardest is not None:
            lines.append(f"    Hardest {self._hardest:.3g} of each class: {len(self._pool)} images")
        if self._strata is not None:
            lines.append(f"    Drawn equally from {self._strata} strata of hardness")
        if self.transform is not None:
            lines.append(f"    Transform: {self.transform!r}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: the text, and up to 24 images of this epoch, half of them synthetic."""
        from markupsafe import escape

        from synthaug._html import data_uri

        made = self._rows() >= 0
        figures = []
        for kind, indices in (("real", np.flatnonzero(~made)), ("synthetic", np.flatnonzero(made))):
            count = min(_THUMBNAILS // 2, len(indices))
            chosen = indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]
            images = "".join(
                f'<img src="{data_uri(to_pil(self.read([i])[0]))}" style="width:64px;margin:1px;'
                f'image-rendering:pixelated" title="{escape(self.classes[label])}">'
                for i, label in zip(chosen.tolist(), self.labels[chosen].tolist(), strict=True)
            )
            figures.append(f"<div>{kind}<br>{images}</div>" if count else "")
        return f"<pre>{escape(repr(self))}</pre>{''.join(figures)}"


def shuffled(rng: np.random.Generator, values: Indices) -> Indices:
    """The values in a random order."""
    # By sorting uniform numbers: numpy may change `permutation` between versions.
    return values[np.argsort(rng.random(len(values)), kind="stable")]


def _items(dataset: Any, indices: list[int]) -> list[Any]:
    if not indices:
        return []
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(indices))
    return [dataset[i] for i in indices]


def _with(item: Any, changed: dict[Any, Any]) -> Any:
    """A copy of an item, of the same type, with some fields changed."""
    if isinstance(item, dict):
        return {**item, **changed}
    values = [changed.get(position, value) for position, value in enumerate(item)]
    return item._make(values) if hasattr(item, "_make") else type(item)(values)  # namedtuple
