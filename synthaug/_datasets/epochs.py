"""What data sets with epochs share: a counter that workers see, and views of their labels."""

from abc import abstractmethod
from typing import Any

from torch.utils.data import Dataset

from synthaug._support.torch_state import shared_counter
from synthaug._types import Labels


def checked_epoch(epoch: int) -> int:
    """The epoch, if there is one of that number.

    Raises:
        ValueError: If it is negative.
    """
    if epoch < 0:
        raise ValueError(f"`epoch` must be at least 0, got {epoch}.")
    return epoch


def checked_index(index: int, size: int) -> int:
    """A place among `size` items, counted from 0; an index beyond them ends a `for` loop.

    Raises:
        IndexError: If there is no such place.
    """
    if not -size <= index < size:
        raise IndexError(f"Index {index} is out of range for {size} items.")
    return index % size


class AbstractEpochDataset(Dataset[Any]):
    """A map-style data set of labeled images, some of which change from epoch to epoch."""

    classes: tuple[str, ...]
    """Names of the classes."""

    def __init__(self) -> None:
        # In shared memory, so that workers that already run see a new epoch.
        self._epoch = shared_counter()

    @property
    def epoch(self) -> int:
        """The epoch whose images are served."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Changes the images; call it before each epoch. Workers that already run follow."""
        self._epoch.fill_(checked_epoch(epoch))

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """Class index of every item, int64 (N,)."""

    @property
    def targets(self) -> list[int]:
        """`labels` as a list, as torchvision's data sets have it."""
        return self.labels.tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class index of each name."""
        return {name: index for index, name in enumerate(self.classes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a deep copy is not; one in another process already is
