"""Orders that are functions of (seed, epoch), in every process and after any interruption."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Generic, SupportsIndex, TypeVar, final

import numpy as np
from torch.utils.data import Sampler

from synthaug._datasets.draws import shuffled
from synthaug._images.source import ImageSource
from synthaug._noise import checked_seed, counter_rng
from synthaug._support.arguments import check_type, check_whole, check_within
from synthaug._types import Indices

# Streams of random numbers; 0 to 2 are those of `_choices`.
BATCHES, ORDER, WITHIN = 3, 4, 5

T_co = TypeVar("T_co", covariant=True)


class AbstractSeededSampler(Sampler[T_co], Generic[T_co]):
    """A sampler whose epochs are pure functions, so that it can stop and go on anywhere."""

    def __init__(self, data: Any, seed: int, num_replicas: int, rank: int) -> None:
        check_whole(1, num_replicas=num_replicas)
        check_whole(0, rank=rank)
        check_within(f"[0, {num_replicas})", rank=rank)
        self.seed, self.num_replicas, self.rank = checked_seed(seed), num_replicas, rank
        self._epochs = ImageSource(data, "`data`").epochs
        self._epoch_set = 0
        self._at = (0, 0)  # epoch and position of the pass under way
        self._resume: tuple[int, int] | None = None

    @abstractmethod
    def _order(self, epoch: int) -> Sequence[T_co]:
        """Everything that an epoch gives to this rank."""

    @abstractmethod
    def _size(self) -> int:
        """Returns the size that a state must have, besides the seed and the number of ranks."""

    @property
    def epoch(self) -> int:
        """The epoch of the next pass: that of the data set, if it has epochs."""
        epoch = self._epochs.current
        return self._epoch_set if epoch is None else epoch

    def set_epoch(self, epoch: int) -> None:
        """Changes the order, and the images of a `MixedDataset` inside the data set."""
        check_whole(0, epoch=epoch)
        check_type(SupportsIndex, "the number of an epoch", epoch=epoch)
        self._epoch_set = epoch
        self._epochs.set(epoch)

    def __iter__(self) -> Iterator[T_co]:
        epoch = self.epoch
        order = self._order(epoch)
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        if start >= len(order):
            self._resume = None  # a finished epoch is given once, as an empty pass
        self._at = epoch, start
        return self._walk(epoch, order, start)

    def _walk(self, epoch: int, order: Sequence[T_co], start: int) -> Iterator[T_co]:
        # A loader may ask for an iterator and throw it away, so the place to resume from is only
        # used up by the one that is walked.
        self._resume = None
        for position in range(start, len(order)):
            self._at = epoch, position + 1
            yield order[position]

    def state_dict(self) -> dict[str, int]:
        """Where the pass is: what was given out so far, also what a loader has loaded ahead.

        `torchdata.stateful_dataloader.StatefulDataLoader` asks at the right moment. With a plain
        `DataLoader` and workers, count yourself: `{**sampler.state_dict(), "position": n}`.
        """
        epoch, position = self.epoch, 0
        if self._at[0] == epoch:
            position = self._at[1]
        if self._resume is not None and self._resume[0] == epoch:
            position = self._resume[1]
        return {
            "epoch": epoch,
            "position": position,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
            "size": self._size(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a state: the next pass gives the rest of its epoch.

        If a later epoch was set already, the state of a finished one changes nothing.

        Raises:
            ValueError: If it is the state of another order.
        """
        for name, value in {"seed": self.seed, "num_replicas": self.num_replicas}.items():
            if state.get(name) != value:
                raise ValueError(
                    f"The state was saved with {name}={state.get(name)}, and this sampler has "
                    f"{name}={value}. Make it with the arguments of the run to be resumed."
                )
        epoch, position = state["epoch"], state["position"]
        before = self.epoch
        self.set_epoch(epoch)
        if (size := self._size()) != state["size"]:
            self.set_epoch(before)
            raise ValueError(
                f"The state was saved for {state['size']} items, and this sampler has "
                f"{size}. Use the data set of the run to be resumed."
            )
        if before > epoch and position >= len(self._order(epoch)):
            self.set_epoch(before)
        else:
            self._resume = epoch, position


@final
class SeededSampler(AbstractSeededSampler[int]):
    """A random order that is a function of (seed, epoch) alone, for any map-style data set.

        sampler = SeededSampler(mixed, seed=0)
        loader = DataLoader(mixed, batch_size=128, sampler=sampler)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)            # and that of `mixed`
            for images, labels in loader: ...

    It differs from `shuffle=True` in that neither global generators nor persistent workers have a
    part in it. With `rank` and `num_replicas` it is a distributed sampler too; leave them away
    where accelerate or Lightning divide the batches among processes.

    `state_dict` and `load_state_dict` stop and go on within an epoch, as torchdata's
    `StatefulDataLoader` does.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Finds the data sets with epochs inside.

        Args:
            dataset: The data set to sample, a `MixedDataset` or any other.
            seed: Seed of the order.
            shuffle: `False` gives the items in their order.
            num_replicas: Processes that share an epoch.
            rank: Number of this process among them.
            drop_last: If the items cannot be divided equally, leaves some away instead of giving
                some twice.

        Raises:
            ValueError: If `rank` is not below `num_replicas`.
        """
        super().__init__(dataset, seed, num_replicas, rank)
        self.dataset, self.shuffle, self.drop_last = dataset, shuffle, drop_last

    def over(self, dataset: Sized) -> "SeededSampler":
        """The same rule for another data set."""
        return SeededSampler(
            dataset,
            seed=self.seed,
            shuffle=self.shuffle,
            num_replicas=self.num_replicas,
            rank=self.rank,
            drop_last=self.drop_last,
        )

    def _size(self) -> int:
        return len(self.dataset)

    def _order(self, epoch: int) -> list[int]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = shuffled(counter_rng(self.seed, ORDER, epoch), order)
        return share(order, len(self), self.num_replicas, self.rank).tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.num_replicas)
        return whole + (rest > 0 and not self.drop_last)


def share(order: Indices, count: int, num_replicas: int, rank: int) -> Indices:
    """So many values for one rank: every `num_replicas`-th, beginning again where they end."""
    return np.resize(order, count * num_replicas)[rank::num_replicas]
