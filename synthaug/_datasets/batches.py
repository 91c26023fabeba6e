"""Batches with exact shares of real and synthetic images."""

import inspect
from collections.abc import Callable
from typing import Any, final

import numpy as np
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from synthaug._datasets.draws import shuffled
from synthaug._datasets.mixed import MixedDataset
from synthaug._datasets.samplers import BATCHES, WITHIN, AbstractSeededSampler, SeededSampler, share
from synthaug._noise import counter_rng
from synthaug._support.arguments import check_type, check_whole


@final
class MixedBatchSampler(AbstractSeededSampler[list[int]], BatchSampler):
    """Batches with exactly so many synthetic images each, for a `MixedDataset` that appends.

        mixed = MixedDataset(real, cache, audit=report, mode="append", ratio=1.0)
        sampler = MixedBatchSampler(mixed, batch_size=128, synthetic_per_batch=64)
        loader = DataLoader(mixed, batch_sampler=sampler)

    An epoch has every real image once. In a batch real and synthetic images are in random order, so
    that parts of it, as `DataParallel` or `split_batches=True` cut them, have both. The last batch
    may be shorter; its synthetic share is the same, to the nearest whole image. The order is a
    function of (seed, epoch), and the epoch is that of `mixed`.

    `mixed` must append enough: `ratio` at least synthetic / real per batch. If it appends more,
    each epoch takes a random part.

    With `rank` and `num_replicas` every rank has such batches, and equally many; to that end some
    images may be given twice. `state_dict` and `load_state_dict` stop and go on within an epoch.

    Lightning's DDP makes it anew on every rank, with a `sampler` that says which one that is, and
    sets the epoch.
    """

    def __new__(cls, mixed: Any = None, *args: Any, **arguments: Any) -> "MixedBatchSampler":
        """Refuses the sampler that Lightning makes of one that it did not see being made."""
        del args, arguments
        if isinstance(mixed, Sampler):
            raise TypeError(
                "`mixed` is a sampler: Lightning divides the images among ranks, and did not see "
                "how this `MixedBatchSampler` was made. Pass `num_replicas` and `rank`, and "
                "`Trainer(use_distributed_sampler=False)`."
            )
        return super().__new__(cls)

    def __init__(
        self,
        mixed: MixedDataset,
        batch_size: int,
        synthetic_per_batch: int | Callable[[int], float],
        *,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
        sampler: DistributedSampler[Any] | None = None,
    ) -> None:
        """Counts the batches of epoch 0.

        Args:
            mixed: With `mode="append"`.
            batch_size: Images per batch.
            synthetic_per_batch: How many of them are synthetic, in [0, batch_size); or a function
                of the epoch, such as `mixing.Linear(0, 64, epochs=10)`, which is rounded.
            seed: Seed of the order.
            drop_last: Leaves a shorter last batch away, and so the real images in it.
            num_replicas: Processes that share an epoch.
            rank: Number of this process among them.
            sampler: Says both, in place of them: what Lightning injects.

        Raises:
            TypeError: If `mixed` is not a `MixedDataset`.
            ValueError: If `mixed` replaces, or appends too little, or the numbers make no sense.
        """
        check_type(MixedDataset, "a MixedDataset", mixed=mixed)
        if sampler is not None:
            num_replicas, rank = sampler.num_replicas, sampler.rank
        super().__init__(mixed, seed, num_replicas, rank)
        # Lightning and accelerate set the epoch of what a batch sampler draws from.
        self.sampler = SeededSampler(mixed, seed=seed)
        check_whole(1, batch_size=batch_size)
        self.mixed, self.batch_size = mixed, int(batch_size)
        self.synthetic_per_batch, self.drop_last = synthetic_per_batch, drop_last
        if mixed.mode != "append":
            made = self._synthetic(0)
            raise ValueError(
                "`mixed` replaces images at random. For exact counts make it with "
                f'mode="append" and ratio={made}/{batch_size - made}.'
            )
        self._counts(0)
        _remember(self, mixed, batch_size, synthetic_per_batch, seed=seed, drop_last=drop_last)

    def _synthetic(self, epoch: int) -> int:
        rule = self.synthetic_per_batch
        made = round(rule(epoch)) if callable(rule) else rule
        if (
            type(made) is bool
            or not isinstance(made, int | np.integer)
            or not 0 <= made < self.batch_size
        ):
            raise ValueError(
                f"`synthetic_per_batch` must be a whole number in [0, {self.batch_size}), below "
                f"the batch size; got {made}{f' in epoch {epoch}' if callable(rule) else ''}."
            )
        return int(made)

    def _counts(self, epoch: int) -> list[tuple[int, int]]:
        """Real and synthetic images of every batch of a rank."""
        made = self._synthetic(epoch)
        num_real = len(self.mixed.real)
        available = int(self.mixed.appended(epoch).sum())
        needed = sum(s for _, s in self._divided(num_real, made, available))
        if needed > available:
            raise ValueError(
                f"`mixed` appends {available} synthetic images to {num_real} real ones, these "
                f"batches need {needed}. Make it with ratio={made}/{self.batch_size - made}."
            )
        return self._divided(-(-num_real // self.num_replicas), made, available)

    def _divided(self, num_real: int, made: int, available: int) -> list[tuple[int, int]]:
        per_batch = self.batch_size - made
        full, rest = divmod(num_real, per_batch)
        counts = [(per_batch, made)] * full
        if rest and not self.drop_last:
            counts.append((rest, _nearest(rest * made, per_batch, available - full * made)))
        return counts

    def _size(self) -> int:
        return len(self.mixed)

    def __len__(self) -> int:
        return len(self._counts(self.epoch))

    def _order(self, epoch: int) -> list[list[int]]:
        counts = np.array(self._counts(epoch), np.int64).reshape(-1, 2)
        num_real = len(self.mixed.real)
        rng = counter_rng(self.seed, BATCHES, epoch)
        parts = [
            shuffled(rng, np.arange(num_real)),
            shuffled(rng, num_real + np.arange(self.mixed.appended(epoch).sum())),
        ]
        real, fake = (
            np.split(share(part, count.sum(), self.num_replicas, self.rank), np.cumsum(count)[:-1])
            for part, count in zip(parts, counts.T, strict=True)
        )
        order = counter_rng(self.seed, WITHIN, epoch)
        batches = [np.append(*parts) for parts in zip(real, fake, strict=True)][: len(counts)]
        return [shuffled(order, batch).tolist() for batch in batches]


def _remember(sampler: BatchSampler, *arguments: Any, **named: Any) -> None:
    """Notes how a sampler was made where Lightning looks for it, to make it anew on every rank.

    Lightning does so itself, but only in `train_dataloader`, and only for classes that were
    imported before.
    """
    names = tuple(inspect.signature(type(sampler).__init__).parameters)[1:]
    known = {"args": arguments, "kwargs": {**named, "sampler": None}, "default_kwargs": {}}
    for name, value in {**known, "arg_names": names[: len(arguments)]}.items():
        setattr(sampler, f"__pl_saved_{name}", value)


def _nearest(numerator: int, denominator: int, limit: int) -> int:
    """The whole number nearest to a fraction; of two equally near ones, one within the limit."""
    down, rest = divmod(numerator, denominator)
    if 2 * rest == denominator:
        return down + (down < limit)
    return down + (2 * rest > denominator)
