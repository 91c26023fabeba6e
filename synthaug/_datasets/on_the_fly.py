"""`OnTheFlyDataset`: a pool of images that are drawn while training goes on, with no cache.

Three things are kept apart. *Which* images an epoch has is a table, a pure function of (seed,
epoch), as everywhere in synthaug. *What* they look like is a pure function of weights, settings and
row. *When* they are drawn is left to a thread, and changes neither.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from synthaug._cache import State, SynthCache
from synthaug._cache.serving import between_classes
from synthaug._cache.synthesizer import Declared, texts_of
from synthaug._datasets.drawing import Drawing
from synthaug._datasets.epochs import AbstractEpochDataset
from synthaug._datasets.pool import Pool
from synthaug._generate import Synthesizer, as_begun, check_plan, open_cache
from synthaug._images.convert import Transform
from synthaug._noise import checked_seed
from synthaug._pixels import to_pil
from synthaug._plan import Plan
from synthaug._support.arguments import check_choice, check_whole
from synthaug._support.rows import row_numbers
from synthaug._types import JSON, Flags, ImageShape, Indices, Labels, Pixels, StrPath
from synthaug.errors import CachePendingError, MismatchError

log = logging.getLogger(__name__)


class OnTheFlyDataset(AbstractEpochDataset):
    """A pool of synthetic images, drawn while training goes on and refreshed in every epoch.

        live = OnTheFlyDataset(synthesizer, plan, size=2000, reuse=4, output_type="pt")
        for epoch in range(epochs):
            live.set_epoch(epoch)              # a quarter of the pool is exchanged
            for images, labels in DataLoader(live, batch_size=128): ...

        mixed = MixedDataset(real, live, audit=None, fraction=0.5)      # in place of a cache;
                                                                        # sets the epoch of both
        mix = transforms.MixSynthetic(live, audit=None, fraction=0.5)   # after the loader

    In every epoch the data set is `size` images, in the class proportions of `plan`. Index `i`
    always has the same class; which image of it is a function of (seed, epoch, i). A new image
    stays for `reuse` epochs, so each epoch exchanges 1 / `reuse` of the pool for the next rows of
    the plan. No image occurs twice in an epoch. For a faster exchange, `set_epoch` takes any
    counter that grows, for example `step // 100`. The order is random already: a `DataLoader`
    without `shuffle` asks for images in the order in which they are drawn.

    An image is drawn once while it is in the pool, and held in memory as uint8: at most
    `max_images` of them. With `cache`, every image drawn is stored in that file too, is not drawn
    again by any later job, and can be audited.

    A thread of the training process draws, on the device of the synthesizer. It is a thread, and
    not a step between batches, because a training loop leaves the device idle at times, and because
    the loop's `autocast` and `no_grad` do not reach it. With `background` it draws ahead: first
    what this epoch still lacks, then what the next one exchanges; what a batch waits for comes
    before both. An error in it is raised where images are asked for next. `close`, or the end of
    the data set or of the program, ends it after the batch at work.

    A GPU cannot be used from the workers of a `DataLoader`, and we refuse to try. A synthesizer on
    the CPU can: each worker then draws, without drawing ahead, what it is asked for, and holds a
    pool of its own. Of several training processes give each its share: `plan[rank::world_size]`.

    Nobody has seen these images before they are trained on, so there is no audit of them: audit a
    cache of the same synthesizer first. What is withdrawn from `cache` meanwhile, because a real
    image was forgotten, leaves the pool with the next batch.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        plan: Plan,
        *,
        size: int | None = None,
        reuse: int = 1,
        batch_size: int = 64,
        background: bool = True,
        cache: StrPath | SynthCache | None = None,
        seed: int = 0,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        output_type: Literal["pil", "pt", "np"] = "pil",
    ) -> None:
        """Lays out the pool; nothing is drawn before the first image is asked for.

        Args:
            synthesizer: Has `draw(rows)` and `recipe()`.
            plan: The rows to draw from, made for this synthesizer. Many cost little.
            size: Images per epoch; all rows of the plan by default, and then nothing is exchanged.
            reuse: Epochs for which an image stays.
            batch_size: Rows per call of `draw`, at most. Does not change the images.
            background: Draw ahead of what is asked for.
            cache: A file, created or continued, or a `SynthCache`; of the same plan and recipe.
            seed: Seed of the choices.
            transform: Applied to the image.
            target_transform: Applied to the label.
            output_type: Type of the image in `live[i]`, as in `SynthCache`: "pil" a PIL image of
                mode L or RGB, "pt" a uint8 tensor (C, H, W), "np" a uint8 array (H, W, C).

        Raises:
            ValueError: For wrong arguments, or a plan made with other settings or classes.
            MismatchError: If the cache is of another plan or recipe.
            CacheError: If the cache cannot be made or read.
        """
        super().__init__()
        check_whole(1, size=size, reuse=reuse, batch_size=batch_size)
        check_choice(("pil", "pt", "np"), output_type=output_type)
        check_plan(synthesizer, plan)
        if cache is not None:
            path = cache.path if isinstance(cache, SynthCache) else cache
            synthesizer, plan = as_begun(synthesizer, plan, path)
        self.cache = None if cache is None else _opened(synthesizer, plan, cache)
        usable = np.ones(len(plan), bool)
        usable[between_classes(plan)] = False
        if self.cache is not None:
            usable &= self.cache.state != State.WITHDRAWN
        rows = np.flatnonzero(usable)
        labels = plan.at("label", rows)
        self._pool = Pool(
            rows, labels, plan.classes, size=size, reuse=reuse, seed=checked_seed(seed)
        )
        self._drawing = Drawing(synthesizer, plan, self.cache, batch_size)
        self.synthesizer, self.reuse, self.seed = synthesizer, reuse, seed
        self.classes = plan.classes
        self.background = background
        self.transform, self.target_transform = transform, target_transform
        self.output_type = output_type
        self._table: tuple[int, Indices] | None = None

    # Which images

    def rows(self, indices: ArrayLike | None = None) -> Indices:
        """The row of the plan that each index gives in this epoch.

        Args:
            indices: int (n,), or a mask, bool (size,); all if `None`.
        """
        epoch = self.epoch
        if self._table is None or self._table[0] != epoch:
            rows = self._pool.rows(epoch)
            order = rows.tolist()
            if self.background:
                order += np.setdiff1d(self._pool.rows(epoch + 1), rows).tolist()
            self._drawing.follow(order)
            self._table = epoch, rows
        rows = self._in_place_of_withdrawn(self._table[1])
        return rows.copy() if indices is None else rows[row_numbers(indices, len(rows))]

    def _in_place_of_withdrawn(self, rows: Indices) -> Indices:
        """The row of every index, where rows that were withdrawn meanwhile have left their place
        to the next one of the same class."""
        if self.cache is None:
            return rows
        gone = np.flatnonzero(self.cache.state_of(rows) == State.WITHDRAWN)
        if not len(gone):
            return rows
        rows = rows.copy()
        stays = np.setdiff1d(np.arange(len(rows)), gone)
        for index in gone.tolist():
            others = stays[self.labels[stays] == self.labels[index]]
            if not len(others):
                raise CachePendingError(
                    f"{self.cache.path}: every image of class {self.classes[self.labels[index]]!r} "
                    "in this epoch's pool was withdrawn. Make the data set anew: its pool then "
                    "has other rows."
                )
            rows[index] = rows[others[np.searchsorted(others, index) % len(others)]]
        log.warning("%s rows of the pool were withdrawn; others take their place.", len(gone))
        self._table = self.epoch, rows
        self._drawing.follow(rows.tolist())  # which drops the images of the others
        return rows

    @property
    def max_images(self) -> int:
        """Most images that one process holds in memory."""
        return len(self._pool) + (self._pool.max_exchanged if self.background else 0)

    @property
    def num_drawn(self) -> int:
        """Images that this process has drawn."""
        return self._drawing.count

    # Images

    def read(self, indices: ArrayLike) -> Pixels:
        """The images of this epoch as pixels, uint8 (n, C, H, W), drawn if need be.

        Raises:
            RuntimeError: If they would be drawn on a GPU in a worker of a `DataLoader`.
            DivergedError: If an image is not finite.
            ValueError: If `draw` returned something else than images in [-1, 1].
        """
        while True:
            try:
                images = self._drawing.read(self.rows(indices).tolist(), ahead=self.background)
                break
            except CachePendingError as error:  # a row was withdrawn while it was drawn
                log.info("%s", error)
                self.rows()  # leaves it out, or raises
        if not images:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8, device="cpu")
        return torch.stack(images)

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W). If the synthesizer does not say, its first image does, which is drawn."""
        shape = Declared.by(self.synthesizer).image_shape
        if shape is None and self.cache is not None:
            shape = self.cache.image_shape
        c, h, w = self.read([0]).shape[1:] if shape is None else map(int, shape)
        return c, h, w

    def close(self) -> None:
        """Ends the thread after the batch at work, and frees the images; using us begins anew."""
        self._drawing.close()

    # A map-style data set, and what a `MixedDataset` asks of a cache

    def __len__(self) -> int:
        return len(self._pool)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """A whole batch, of which what is missing is drawn at once. `DataLoader` calls it."""
        pixels = self.read(indices)
        images: Any = pixels.unbind(0)
        if self.output_type == "np":
            images = pixels.permute(0, 2, 3, 1).contiguous().numpy()  # NCHW => NHWC
        elif self.output_type == "pil":
            images = map(to_pil, images)
        return self._transformed(images, self.labels[row_numbers(indices, len(self))].tolist())

    @property
    def labels(self) -> Labels:
        """Class index of every item, int64 (size,), the same in every epoch."""
        return self._pool.labels

    @property
    def done(self) -> Flags:
        """Mask of the items that can be read, bool (size,): all of them."""
        return np.ones(len(self), bool)

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity of these images; no audit report is about them."""
        return {
            "plan_digest": self._drawing.plan.digest,
            "weights": self.synthesizer.recipe().get("weights", {}),
            "on_the_fly": [len(self), self.reuse, self.seed],
        }

    def provenance(self, index: int) -> dict[str, Any]:
        """Where the image of an index comes from in this epoch: its row of the plan."""
        row = int(self.rows([index])[0])
        values = self._drawing.plan.row(row)
        texts = texts_of(values, self.synthesizer.recipe())
        return {**values, "row": row, "class": self.classes[int(values["label"])], **texts}

    # Copies, display

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _facts(self) -> list[str]:
        stays = "1 epoch" if self.reuse == 1 else f"{self.reuse} epochs"
        facts = [
            f"Drawn by: {type(self.synthesizer).__name__}, {self.num_drawn} images by now",
            f"Plan: {len(self._drawing.plan)} rows; an image stays {stays}, seed {self.seed}",
            f"In memory: at most {self.max_images} images",
            f"Classes: {len(self.classes)}",
        ]
        if self.cache is not None:
            facts.append(f"Stored in: {self.cache.path}")
        return facts


def _opened(synthesizer: Any, plan: Plan, cache: StrPath | SynthCache) -> SynthCache:
    path = cache.path if isinstance(cache, SynthCache) else Path(cache)
    if not path.exists():
        open_cache(synthesizer, plan, path)
    begun = SynthCache(path, on_corrupt="regenerate", synthesizer=synthesizer)
    if begun.plan_digest != plan.digest:
        raise MismatchError(
            f"{path} holds images of another plan: {begun.plan!r}, not {plan!r}. Write "
            "to another file, or leave `cache` out."
        )
    return begun
