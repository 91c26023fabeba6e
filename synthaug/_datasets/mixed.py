"""Real and synthetic images in one data set."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from synthaug._cache.format import spans
from synthaug._cache.serving import SyntheticImages, Traced, Verdicts, labels_of, num_rows, servable
from synthaug._datasets.choices import Choices, Mode
from synthaug._datasets.draws import Stratified, Weighted, WeightedDraws, bound_draw, row_weights
from synthaug._datasets.epochs import AbstractEpochDataset
from synthaug._datasets.filters import filtered
from synthaug._datasets.fractions import Balance, Filled, Share, Shares, checked_share
from synthaug._datasets.items import ItemFormat
from synthaug._datasets.labels import ItemLabels
from synthaug._datasets.log import ServedLog
from synthaug._datasets.opening import open_cache, open_report
from synthaug._datasets.real import RealItems
from synthaug._datasets.show import notebook
from synthaug._images.calls import apply
from synthaug._images.convert import Transform, all_like
from synthaug._images.source import ImageSource, items_of
from synthaug._noise import checked_seed
from synthaug._support.arguments import check_whole
from synthaug._support.rows import row_number, row_numbers, rows_by_class
from synthaug._types import JSON, Doubles, Indices, Labels, Pixels, StrPath
from synthaug.errors import MismatchError


class MixedDataset(AbstractEpochDataset):
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

    Both may be given by class and by epoch, and `filters` and `draw` say which synthetic images are
    served and how often: see `synthaug.mixing`.

    Which images an epoch has is a function of `seed`, the epoch, and the arguments, and of nothing
    else: any number of workers gives the same.

    Items have the types of the items of `real`, which may be (image, label), a longer tuple, a list
    or a dict with "image" (or "img", "pixel_values", "images") and "label" (or "labels", "target",
    "targets"); for others give `items`. Images may be of PIL, tensors, `tv_tensors` or arrays;
    labels class indices, or vectors of class probabilities. If `real` has a `transform`, it is
    taken over: both kinds of images go through it here, and `mixed.transform` may be assigned. The
    same holds for `target_transform`. `real` itself is not changed. A data set that transforms its
    images in another way is mixed as it is, so take random changes out of it.
    """

    def __init__(
        self,
        real: Any,
        synthetic: SyntheticImages | StrPath,
        *,
        audit: Verdicts | StrPath | None,
        mode: Mode = "replace",
        fraction: Share | None = None,
        ratio: Share | Balance | None = None,
        filters: Sequence[Any] = (),
        draw: Stratified | Weighted | WeightedDraws | None = None,
        items: ItemFormat | None = None,
        seed: int = 0,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        """Checks that the two sides fit together, and takes over the transforms of `real`.

        Args:
            real: A map-style data set, also inside `Subset` and `ConcatDataset`, of the `datasets`
                library, a pair of arrays (images, labels), or a mixture with another cache.
            synthetic: A `SynthCache` or its path; or an `OnTheFlyDataset`. Rows that are done now
                are used. Classes are matched by name: their order may be another one than in
                `real`, whose order holds everywhere here.
            audit: A report about it, or its path; images that it did not pass are not served.
                `None` skips the audit, with a warning.
            mode: "replace" or "append".
            fraction: For "replace": the probability of an item to be replaced, in [0, 1]; or one by
                class, {"cat": 0.5}, in which classes not named are not replaced; or a function of
                the epoch, such as `mixing.Linear(0.0, 0.5, epochs=10)`; or a dict of those.
            ratio: For "append": synthetic images per real image, at least 0, in the same forms; or
                `mixing.Balance()` to fill classes up to one size. If it changes with the epoch, so
                does `len(mixed)`.
            filters: Filters of the images that may be served: `mixing.AtLeast`, `AtMost`,
                `Highest`, `Lowest`, masks, bool (N,), or reports; applied one after the other.
            draw: `mixing.Weighted`, `mixing.Stratified` or `mixing.WeightedDraws`; `None` draws
                every image equally often.
            items: `mixing.ItemFormat(...)`: where items of `real` have what, names of its classes,
                synthetic images of another size, labels as vectors of class probabilities, and how
                much synthetic images count.
            seed: Seed of the choices.
            transform: For both kinds of images, if `real` has none.
            target_transform: For the labels of both, if `real` has none.

        Raises:
            ValueError, TypeError: For wrong arguments, or items that we cannot make equal.
            MismatchError: If a report judges another cache, the classes, channels or sizes differ,
                or a class has no synthetic image that may be served.
            DataError: If `real` is empty, or does not know its classes.
        """
        super().__init__()
        name, share = checked_share(mode, fraction, ratio)
        items = items or ItemFormat()
        self.mode, self.seed = mode, checked_seed(seed)
        self.synthetic: SyntheticImages = open_cache(synthetic)
        self.served = servable(
            self.synthetic, open_report(audit), soft_labels=items.soft_labels is not False
        )
        self._items = RealItems(real, items, self.synthetic, appended=mode == "append")
        self.real, self.classes = self._items.dataset, self._items.classes
        self.transform = _one_transform("transform", transform, self._items.transform)
        self.target_transform = _one_transform(
            "target_transform", target_transform, self._items.target_transform
        )
        rows, weights = self._lay_out(name, share, filters, draw, items.weights)
        self._item_labels = ItemLabels(
            items.soft_labels, self._items, self.synthetic, rows, weights
        )
        if self._item_labels.changes_real and self.target_transform is not None:
            raise ValueError(
                "Soft labels and a `target_transform` exclude each other: it would be given "
                "vectors of class probabilities. Take it off `real`."
            )
        self._log: ServedLog | None = None

    def _lay_out(
        self, name: str, share: Any, filters: Sequence[Any], draw: Any, weights: Any
    ) -> tuple[Indices, Doubles | None]:
        """Decides which rows can be drawn, how often, and in the place of what: the rows that
        filters and weights leave, int64 (n,), and the weight of every row."""
        labels, classes = self._items.labels, self.classes
        rows, self._filters = filtered(self.synthetic, np.flatnonzero(self.served.mask), filters)
        if weights is not None:
            weights = row_weights(weights, self.synthetic, rows)
            rows = rows[weights[rows] > 0]
        rule = bound_draw(draw, self.synthetic, rows)
        if rule.served is not None and self.mode != "replace":
            raise ValueError(
                "`draw` serves a synthetic image with a probability, and the real image "
                'otherwise. Use mode="replace", or `mixing.Weighted` with mode="append".'
            )
        self._drawn = None if draw is None else str(draw)  # not its scores, which are large
        drawn = self._labels_of(rule.arranged(rows))
        available = np.bincount(drawn, minlength=len(classes))
        self._shares = (
            Filled(share, labels, available, classes)
            if isinstance(share, Balance)
            else Shares(share, labels, classes, name)
        )
        self._choices = Choices(
            labels,
            rows_by_class(rows, self._labels_of(rows), len(classes)),
            shares=self._shares,
            draw=rule,
            seed=self.seed,
            mode=self.mode,
        )
        short = np.flatnonzero(self._shares.possible & (available == 0))
        if len(short):
            raise self._unserved(int(short[0]), name)
        return rows, weights

    def _labels_of(self, rows: Indices | slice) -> Labels:
        """Labels of rows of the cache, as `real` counts classes."""
        return self._items.class_table[labels_of(self.synthetic, rows)]

    def _unserved(self, c: int, share: str) -> MismatchError:
        """Says why a class that needs synthetic images has none."""
        of_class = np.empty(num_rows(self.synthetic), bool)
        for span in spans(len(of_class)):
            of_class[span] = self._labels_of(span) == c
        done = int(np.asarray(self.synthetic.done)[of_class].sum())
        allowed = int(self.served.mask[of_class].sum())
        withheld = f" and the report withholds {'all' if not allowed else done - allowed} of them"
        judged = withheld if self.served.judged and allowed < done else ""
        left = ", and the filters or weights leave none" if allowed else ""
        return MismatchError(
            f"Class {self.classes[c]!r} has no synthetic image that may be served: of "
            f"{of_class.sum()} rows, {done} are done{judged}{left}. Generate more images of it, "
            "leave the class out of `real`, or name the classes that get some: "
            f'`{share}={{"NAME": ...}}`.'
        )

    # Choices

    def set_epoch(self, epoch: int) -> None:
        """Changes the choices; call it before each epoch. Workers that already run follow."""
        super().set_epoch(epoch)
        for side in (self._items.source, ImageSource(self.synthetic, "`synthetic`")):
            side.epochs.set(epoch)  # of a mixture, of an `OnTheFlyDataset`

    def synthetic_rows(self, indices: ArrayLike | None = None) -> Indices:
        """The row of the cache that each index gives in this epoch, -1 for an image of `real`.

        Args:
            indices: int (n,), or a mask, bool (N,); all if `None`.
        """
        rows = self._rows()
        return rows.copy() if indices is None else rows[row_numbers(indices, len(rows))]

    def recipe(self) -> dict[str, JSON]:
        """Returns the settings that decide, for given images and epoch, which images are served."""
        recipe: dict[str, JSON] = {
            "mode": self.mode,
            "share": self._shares.recipe(),
            "seed": self.seed,
            "audit": self.served.verdict,
            "pool": self._choices.digest(),
        }
        if self._drawn is not None:
            recipe["draw"] = self._drawn
        if self.has_soft_labels:
            recipe["soft_labels"] = self._item_labels.digest()
        return recipe

    def is_synthetic(self, index: int) -> bool:
        """Whether an index gives a synthetic image in this epoch."""
        return bool(self.provenance(index)["synthetic"])

    def provenance(self, index: int) -> dict[str, Any]:
        """Where the image of an index comes from in this epoch.

        Of a real image `{"synthetic": False, "index": ...}`; of a synthetic one its `row`, and what
        the cache says about it, with labels as the cache counts them.
        """
        index = row_number(index, len(self))
        row = int(self._rows()[index])
        if row < 0:
            if isinstance(self.real, MixedDataset):
                return self.real.provenance(index)
            return {"synthetic": False, "index": index}
        facts = self.synthetic.provenance(row) if isinstance(self.synthetic, Traced) else {}
        return {"synthetic": True, "row": row, **facts}

    def log_served(self, path: StrPath | None) -> None:
        """Writes a line to a file for every item that is loaded from now on, also by workers.

        `mixing.read_log` reads it. What a loader loads ahead and does not use is in it too. Call it
        before the loader starts: persistent workers that already run do not hear of it.

        Args:
            path: A CSV file, which is continued if it exists; each rank needs its own. `None`
                stops.
        """
        self._log = None if path is None else ServedLog(path)

    @property
    def has_fixed_length(self) -> bool:
        """Whether every epoch has as many items; otherwise `ratio` changes."""
        return self.mode == "replace" or not self._shares.scheduled

    @property
    def has_weights(self) -> bool:
        """Whether labels of some synthetic images are scaled by a weight."""
        return self._item_labels.weighted or self._items.source.has_weights

    @property
    def has_soft_labels(self) -> bool:
        """Whether labels are vectors of class probabilities."""
        return self._item_labels.vectors

    def appended(self, epoch: int) -> Labels:
        """Synthetic images that an epoch appends, of each class, int64 (num_classes,)."""
        check_whole(0, epoch=epoch)
        none = np.zeros(len(self.classes), np.int64)
        return none if self.mode == "replace" else self._choices.quota(epoch)

    def _rows(self) -> Indices:
        return self._choices.rows(self.epoch)

    # Items

    def __len__(self) -> int:
        if self.mode == "replace":
            return len(self._items.labels)
        return len(self._items.labels) + int(self.appended(self.epoch).sum())

    def __getitem__(self, index: int) -> Any:
        every = self._rows()
        place = row_number(index, len(every))
        row = every.item(place)
        if self._log is not None or (row >= 0 and self._items.has_extras):
            return self.__getitems__([place])[0]
        if row < 0:
            return self._item(items_of(self._items.raw, [place])[0])
        (made,) = self._synthetic(np.array([place]), every[place : place + 1])
        return self._item(self._items.example, made)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A whole batch: each side is asked once. `DataLoader` and `Subset` call it."""
        every = self._rows()
        where = row_numbers(indices, len(every))
        rows = every[where]  # checks them
        where = where % len(every)
        if self._log is not None:
            self._log.write(self.epoch, where.tolist(), rows.tolist())
        made = rows >= 0
        real = self._items
        raw = iter(items_of(real.raw, where[~made | real.has_extras].tolist()))
        synthetic = self._synthetic(where[made], rows[made]) if made.any() else iter(())
        if real.pairs and not self._changes_items:
            return [next(raw if row < 0 else synthetic) for row in rows.tolist()]
        return [
            self._item(next(raw))
            if row < 0
            else self._item(next(raw) if real.has_extras else real.example, next(synthetic))
            for row in rows.tolist()
        ]

    def _synthetic(self, where: Indices, rows: Indices) -> Iterator[tuple[Any, Any]]:
        """Images and labels of rows of the cache, of the types of the items of `real`.

        What takes the place of a real image has its class, so the cache need not be asked.
        """
        replacing = self.mode == "replace"
        labels = (self._items.labels[where] if replacing else self._labels_of(rows)).tolist()
        images = all_like(self.synthetic.read(rows), self._items.image)
        for row, label, image in zip(rows.tolist(), labels, images, strict=True):
            yield image, self._item_labels.of_row(row, label)

    @property
    def _changes_items(self) -> bool:
        """Whether items of `real` do not leave as they came."""
        transformed = self.transform is not None or self.target_transform is not None
        return transformed or self._item_labels.changes_real

    def _item(self, item: Any, synthetic: tuple[Any, Any] | None = None) -> Any:
        """An item of `real`, or with a synthetic image and label in it, after the transforms."""
        if synthetic is not None:
            image, label = synthetic
        else:
            if not self._changes_items:
                return item
            image, label = item if self._items.pairs else self._items.fields.get(item)
            label = self._item_labels.of_real(label)
        whole = self._items.form == "item"
        if self.transform is not None and not whole:
            image, label = apply(self.transform, self._items.form, image, label)
        if self.target_transform is not None:
            label = self.target_transform(label)
        item = (image, label) if self._items.pairs else self._items.fields.put(item, image, label)
        return self.transform(item) if whole and self.transform is not None else item

    def read(self, indices: ArrayLike) -> Pixels:
        """The images of this epoch as pixels, uint8 (n, C, H, W), without the transform."""
        where = row_numbers(indices, len(self))
        rows = self._rows()[where]
        made = torch.from_numpy(rows >= 0)
        if made.all():
            return self.synthetic.read(rows)
        real = self._items.source.pixels(where[rows < 0] % len(self))
        if not made.any():
            return real
        fake = self.synthetic.read(rows[rows >= 0])
        if real.shape[1:] != fake.shape[1:]:
            raise MismatchError(
                f"Real images have shape {tuple(real.shape[1:])}, and synthetic ones "
                f"{tuple(fake.shape[1:])}. Load the real ones with "
                "`image_shape=cache.image_shape`, or give a transform that makes all of one "
                "shape."
            )
        pixels = torch.empty((len(rows), *fake.shape[1:]), dtype=torch.uint8, device="cpu")
        pixels[made], pixels[~made] = fake, real
        return pixels

    @property
    def labels(self) -> Labels:
        """Class index of every item, int64 (N,): of `real`, then of the appended ones of this
        epoch. The same in every epoch, unless `ratio` changes."""
        quota = self.appended(self.epoch)
        return np.concatenate([self._items.labels, np.repeat(np.arange(len(quota)), quota)])

    # Display

    def _facts(self) -> list[str]:
        share = "fraction" if self.mode == "replace" else "ratio"
        made = int((self._rows() >= 0).sum())
        facts = [
            f"Mode: {self.mode}, {share} {self._shares}, seed {self.seed}",
            f"Real: {len(self._items.labels)}, {type(self.real).__name__}",
            f"Synthetic: {self.served}",
            f"Epoch {self.epoch}: {len(self) - made} real, {made} synthetic",
            f"Classes: {len(self.classes)}",
            *[f"Filter: {line}" for line in self._filters],
        ]
        if self._drawn is not None:
            facts.append(f"Drawn {self._drawn}")
        if self.has_soft_labels:
            scaled = ", times a weight" if self.has_weights else ""
            facts.append(f"Labels: class probabilities{scaled}")
        return facts

    def _repr_html_(self) -> str:
        return notebook(self)


def _one_transform(
    name: str, argument: Transform | None, taken_over: Transform | None
) -> Transform | None:
    if argument is not None and taken_over is not None:
        raise ValueError(
            f"`real` has a transform already, and `{name}` was given too. Without the argument, "
            "that of `real` goes to both kinds of images."
        )
    return taken_over if argument is None else argument
