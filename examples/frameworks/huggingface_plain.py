"""An image classifier with Hugging Face's datasets and Trainer."""

import torch
from datasets import load_dataset
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

augment = v2.Compose(
    [v2.RandomCrop(32, padding=2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)


def transform(batch: dict) -> dict:
    """Columns of a batch, as the model takes them."""
    return {"pixel_values": [augment(image) for image in batch["image"]], "labels": batch["label"]}


train = load_dataset("imagefolder", data_dir="data", split="train").with_transform(transform)
small = ViTConfig(image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_labels=10)
trainer = Trainer(
    ViTForImageClassification(small),
    TrainingArguments(
        "runs",
        num_train_epochs=2,
        per_device_train_batch_size=32,
        remove_unused_columns=False,
        report_to="none",
    ),
    train_dataset=train,
)
print(trainer.train())
