"""A data module around another one."""

import inspect
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from synthaug._cache.serving import SyntheticImages, Verdicts
from synthaug._datasets import MixedDataset, SeededSampler
from synthaug._types import StrPath

_HOOKS = (
    "prepare_data",
    "teardown",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "state_dict",
    "load_state_dict",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "on_exception",
)


@final
class MixedDataModule(LightningDataModule):
    """A `LightningDataModule` whose training images are mixed with synthetic ones.

        datamodule = MixedDataModule(datamodule, cache, audit=report, fraction=0.5)
        trainer.fit(model, datamodule=datamodule)

    The data set of its train loader becomes a `MixedDataset`; the loader keeps its sampler and all
    other settings. Validation, test and prediction are left alone. Every epoch draws other images,
    and a run that is resumed draws those that it would have drawn. A loader that must go on in the
    middle of an epoch is a `torchdata.stateful_dataloader.StatefulDataLoader`.

    Attributes that we do not have are those of the data module inside.
    """

    def __init__(
        self,
        datamodule: LightningDataModule,
        synthetic: SyntheticImages | StrPath,
        *,
        audit: Verdicts | StrPath | None,
        **options: Any,
    ) -> None:
        """Stores the arguments; images are mixed when Lightning asks for the train loader.

        Args:
            datamodule: Its `train_dataloader` gives one `DataLoader` over a map-style data set.
            synthetic: A `SynthCache`, or its path.
            audit: A report about it, its path, or `None`; see `MixedDataset`.
            options: Further arguments of `MixedDataset`, such as `fraction`.

        Raises:
            TypeError: If `datamodule` is something else, or for an unknown option.
        """
        if not isinstance(datamodule, LightningDataModule):
            raise TypeError(
                f"`datamodule` is a {type(datamodule).__name__}, expected a LightningDataModule of "
                "`lightning.pytorch`, and not of `pytorch_lightning`."
            )
        self.datamodule = datamodule  # first: `trainer` is its
        super().__init__()
        self._arguments = {"audit": audit, **options}
        inspect.signature(MixedDataset).bind(datamodule, synthetic, **self._arguments)
        self._synthetic = synthetic
        self.mixed: MixedDataset | None = None
        """The training images, once the train loader has been asked for."""
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        # Those of the data module inside: Lightning asks which of them were overridden.
        for name in _HOOKS:
            setattr(self, name, getattr(datamodule, name))

    @property
    def trainer(self) -> Any:
        """The `Trainer` that we are attached to, which the data module inside sees too."""
        return self.datamodule.trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self.datamodule.trainer = trainer

    def setup(self, stage: str) -> None:
        """Sets up the data module inside, and follows the epochs of the trainer."""
        if self.trainer is not None and not any(
            isinstance(callback, _Epochs) and callback.datamodule is self
            for callback in self.trainer.callbacks
        ):
            self.trainer.callbacks.append(_Epochs(self))
        self.datamodule.setup(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """The train loader of the data module inside, over mixed images.

        Raises:
            TypeError: If it is not one `DataLoader`, or cannot be built anew.
            ValueError: If its sampler cannot reach images that are appended, or the trainer would
                not see that `ratio` changes the number of batches.
        """
        loader = self.datamodule.train_dataloader()
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"`train_dataloader` gives a {type(loader).__name__}, expected one DataLoader. Mix "
                "the data sets in your data module with `synthaug.MixedDataset`."
            )
        self.mixed = MixedDataset(loader.dataset, self._synthetic, **self._arguments)
        if (
            not self.mixed.has_fixed_length
            and self.trainer is not None
            and self.trainer.reload_dataloaders_every_n_epochs != 1
        ):
            raise ValueError(
                "`ratio` changes, and so does the number of batches, which Lightning counts when "
                "it loads: use `Trainer(reload_dataloaders_every_n_epochs=1)`."
            )
        mixed = _loader_of(self.mixed, loader)
        self.follow_epoch()
        # Only some samplers have epochs. Lightning itself sets them too late, after resuming.
        if hasattr(mixed.sampler, "set_epoch"):
            mixed.sampler.set_epoch(self._epoch)
        return mixed

    def follow_epoch(self) -> None:
        """Serves the images of the trainer's epoch."""
        if self.mixed is not None:
            self.mixed.set_epoch(self._epoch)

    @property
    def _epoch(self) -> int:
        # Not `current_epoch`, which a run that was saved at the end of an epoch still has to raise.
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_progress.current.processed

    def __getattr__(self, name: str) -> Any:
        if name == "datamodule":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.datamodule, name)


class _Epochs(Callback):
    """Data modules are not told of epochs, callbacks are."""

    def __init__(self, datamodule: MixedDataModule) -> None:
        self.datamodule = datamodule

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self.datamodule.follow_epoch()


def _loader_of(mixed: MixedDataset, loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader with all settings of another one, over other images."""
    kind = type(loader)
    names = {*inspect.signature(DataLoader).parameters, *inspect.signature(kind).parameters}
    # A foreign loader keeps most of its arguments under their names, but need not keep all.
    settings = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    settings["dataset"] = mixed
    order = settings.pop("sampler"), settings.pop("batch_sampler")
    draws_batches = settings["batch_size"] is None and order[1] is not None
    if mixed.has_fixed_length and len(mixed) == len(mixed.real):
        if draws_batches:
            del settings["batch_size"], settings["drop_last"]
            settings["batch_sampler"] = order[1]
        else:
            settings["sampler"] = order[0]
    elif isinstance(seeded := order[0], SeededSampler) and not draws_batches:
        settings["sampler"] = seeded.over(mixed)
    else:
        drawn = isinstance(order[0], RandomSampler) and not order[0].replacement
        if draws_batches or not (drawn or isinstance(order[0], SequentialSampler)):
            kind_of_order = type(order[draws_batches]).__name__
            raise ValueError(
                f"The train loader draws with a {kind_of_order}, which cannot "
                'reach images that are appended. Use mode="replace", or mix in your data module, '
                "and give the sampler the mixed images."
            )
        settings["shuffle"] = drawn
    try:
        return kind(**settings)
    except TypeError as error:
        raise TypeError(
            f"The train loader, a {kind.__name__}, cannot be built anew over other images "
            f"({error}). Mix in your data module with `synthaug.MixedDataset`."
        ) from error
