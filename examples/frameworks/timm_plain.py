"""An image classifier with timm's loader and model."""

import timm
import torch
from timm.data import create_dataset, create_loader
from torch import nn

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
train = create_dataset("", root="data/train", is_training=True)
loader = create_loader(
    train,
    input_size=(3, 32, 32),
    batch_size=32,
    is_training=True,
    num_workers=0,
    persistent_workers=False,
    device=device,
)
model = timm.create_model("resnet18", num_classes=10).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(2):
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.2f}")
