"""The base of our data sets: the names of torchvision's, items, and a summary."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from synthaug._images.calls import called
from synthaug._support.rows import row_number
from synthaug._types import Labels


class _Labeled(Protocol):
    @property
    def labels(self) -> Labels: ...


class AbstractLabeledDataset(Dataset[Any]):
    """A map-style data set of labeled images."""

    classes: tuple[str, ...]
    """Names of the classes."""
    transform: Callable[[Any], Any] | None
    """Called with the image of every item; may be assigned."""
    target_transform: Callable[[Any], Any] | None
    """Called with the label of every item; may be assigned."""

    @property
    def targets(self: _Labeled) -> list[int]:
        """Class index of every image, as Python ints."""
        return self.labels.tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class index of each name."""
        return {name: index for index, name in enumerate(self.classes)}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A whole batch at once; `DataLoader` and `Subset` call it."""

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([row_number(index, len(self))])[0]

    def _transformed(self, images: Iterable[Any], labels: Iterable[Any]) -> list[tuple[Any, Any]]:
        """Items, image by image, after the transforms."""
        if self.transform is not None:
            images = map(called(self.transform), images)
        if self.target_transform is not None:
            labels = map(self.target_transform, labels)
        return list(zip(images, labels, strict=True))

    @abstractmethod
    def _facts(self) -> list[str]:
        """Lines for `repr`."""

    def __repr__(self) -> str:
        facts = [f"Number of datapoints: {len(self)}", *self._facts()]
        if self.transform is not None:
            facts.append(f"Transform: {self.transform!r}")
        return "\n    ".join([f"Dataset {type(self).__name__}", *facts])
