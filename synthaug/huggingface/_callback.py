"""`Trainer` and the epochs of a data set."""

from typing import Any, final

from transformers import TrainerCallback


@final
class SetEpoch(TrainerCallback):
    """Tells the training set which epoch begins, so that each one draws other images.

        trainer = Trainer(..., train_dataset=mixed, callbacks=[SetEpoch()])

    `Trainer` itself tells a data set only on one device, and not after it was resumed in the middle
    of an epoch.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Calls `set_epoch` of the training set."""
        del args, control
        others["train_dataloader"].dataset.set_epoch(int(state.epoch))
