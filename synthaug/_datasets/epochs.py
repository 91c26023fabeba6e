"""The common parts of data sets with epochs: a counter that workers see, and views of labels."""

from abc import abstractmethod
from typing import Any, SupportsIndex

from synthaug._images.dataset import AbstractLabeledDataset
from synthaug._support.arguments import check_type, check_whole
from synthaug._support.torch_state import shared, shared_counter
from synthaug._types import Labels


class AbstractEpochDataset(AbstractLabeledDataset):
    """A map-style data set of labeled images, some of which change from epoch to epoch."""

    def __init__(self) -> None:
        # In shared memory, so that workers that already run see a new epoch.
        self._epoch = shared_counter()

    @property
    def epoch(self) -> int:
        """The epoch whose images are served."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Changes the images; call it before each epoch. Workers that already run follow."""
        check_whole(0, epoch=epoch)
        check_type(SupportsIndex, "the number of an epoch", epoch=epoch)
        self._epoch.fill_(epoch)

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """Class index of every item, int64 (N,)."""

    def __copy__(self) -> "AbstractEpochDataset":
        """A copy with epochs of its own, which begin where ours are."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, _epoch=shared_counter())
        copied._epoch.fill_(self.epoch)
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = shared(self._epoch)  # a deep copy is not; one in another process already is
