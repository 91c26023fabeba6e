"""An image classifier in Lightning."""

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

import synthaug

transform = v2.Compose(
    [v2.RandomCrop(32, padding=2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)


class Images(L.LightningDataModule):
    """Class folders."""

    def setup(self, stage: str) -> None:
        """Finds the images."""
        self.train = datasets.ImageFolder("data/train", transform)
        self.val = datasets.ImageFolder("data/val", transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches to learn from."""
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches to judge by."""
        return DataLoader(self.val, batch_size=200)


class Classifier(L.LightningModule):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy."""
        images, labels = batch
        accuracy = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """How it learns."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


cache = synthaug.SynthCache("synthetic.h5")
report = synthaug.AuditReport.from_json("audit.json")
datamodule = Images()
datamodule = synthaug.lightning.MixedDataModule(datamodule, cache, audit=report, fraction=0.5)
trainer = L.Trainer(max_epochs=2)
trainer.fit(Classifier(), datamodule=datamodule)
print(trainer.callback_metrics)
