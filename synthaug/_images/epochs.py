"""The epochs of data sets that serve other images in each."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final


@final
class Epochs:
    """The epochs of those data sets that have them."""

    def __init__(self, leaves: Iterable[Any]) -> None:
        self._datasets = [leaf for leaf in leaves if hasattr(leaf, "set_epoch")]

    @property
    def _own(self) -> list[tuple[Any, int]]:
        """The data sets that say their epoch, with it."""
        return [(d, d.epoch) for d in self._datasets if hasattr(d, "epoch")]

    def set(self, epoch: int) -> None:
        """Changes all of them."""
        for dataset in self._datasets:
            dataset.set_epoch(epoch)

    @property
    def current(self) -> int | None:
        """The epoch of the first that says its own; `None` if none does."""
        return next((int(epoch) for _, epoch in self._own), None)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Gives the data sets back in the epochs that they were in."""
        before = self._own
        try:
            yield
        finally:
            for dataset, epoch in before:
                dataset.set_epoch(epoch)
