"""A data set of `datasets`, mixed."""

from collections.abc import Callable, Sequence
from typing import Any, final

from torch.utils.data import Dataset

from synthaug._cache.serving import SyntheticImages, Verdicts
from synthaug._datasets import MixedDataset as Mixed
from synthaug._images.leaves import is_table
from synthaug._types import StrPath


@final
class MixedDataset(Dataset[dict[str, Any]]):
    """`synthaug.MixedDataset` for a `datasets.Dataset`, whose transform it takes over.

        train = train.with_transform(transform)
        train = synthaug.huggingface.MixedDataset(train, cache, audit=report, fraction=0.5)
        trainer = Trainer(..., train_dataset=train, callbacks=[SetEpoch()])

    Items are the dicts that `train[i]` gives: columns of real and of synthetic images go through
    the transform (that of `with_transform` or `set_transform`) in batches, after they were mixed.
    To `Trainer` it is a plain PyTorch data set, so columns that only the transform needs are not
    removed before it has run, whatever `remove_unused_columns` says.
    """

    def __init__(
        self,
        real: Any,
        synthetic: SyntheticImages | StrPath,
        *,
        audit: Verdicts | StrPath | None,
        **options: Any,
    ) -> None:
        """Mixes.

        Args:
            real: A `datasets.Dataset` with a column of images and one of class indices; for other
                names than the usual ones give `fields`.
            synthetic: A `SynthCache`, or its path.
            audit: A report about it, its path, or `None`; see `synthaug.MixedDataset`.
            options: Its further arguments, such as `fraction`.

        Raises:
            TypeError: If `real` is something else, or for columns of other types.
            ValueError, SynthaugError: Under the same conditions as `synthaug.MixedDataset`.
        """
        if not is_table(real):
            raise TypeError(
                f"`real` is a {type(real).__name__}, expected a `datasets.Dataset`. For other data "
                "sets use `synthaug.MixedDataset`."
            )
        custom = real.format["type"] == "custom"
        self._transform: Callable[[dict[str, list[Any]]], dict[str, Any]] | None = (
            real.format["format_kwargs"]["transform"] if custom else None
        )
        raw = real.select_columns(real.format["columns"]).with_format(None) if custom else real
        self.mixed = Mixed(raw, synthetic, audit=audit, **options)
        """What is served, before the transform."""

    def set_epoch(self, epoch: int) -> None:
        """Changes the choices; `SetEpoch` calls it before each epoch."""
        self.mixed.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.mixed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch, which the transform sees as one."""
        items: list[dict[str, Any]] = self.mixed.__getitems__(indices)
        if self._transform is None or not items:
            return items
        columns = self._transform({name: [item[name] for item in items] for name in items[0]})
        return [{name: column[i] for name, column in columns.items()} for i in range(len(items))]

    def __repr__(self) -> str:
        return repr(self.mixed)
