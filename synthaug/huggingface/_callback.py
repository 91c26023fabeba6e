"""`Trainer` and the epochs of a data set."""

from typing import Any, final

from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from synthaug._datasets import check_loss
from synthaug._images.source import ImageSource


@final
class SetEpoch(TrainerCallback):
    """Tells the training set which epoch begins, so that each one draws other images.

        trainer = Trainer(..., train_dataset=mixed, callbacks=[SetEpoch()])

    `Trainer` itself tells a data set only on one device, and not after it was resumed in the middle
    of an epoch. Parts of a mixed data set (`Subset`) are found; one without epochs stays as it is.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Refuses label smoothing where synthetic images have weights."""
        del state, control
        training_set = ImageSource(others["train_dataloader"].dataset, "`train_dataset`")
        if training_set.has_weights:
            check_loss(cross_entropy, label_smoothing=args.label_smoothing_factor)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Calls `set_epoch` of the training set."""
        del args, control
        training_set = ImageSource(others["train_dataloader"].dataset, "`train_dataset`")
        training_set.epochs.set(int(state.epoch))
