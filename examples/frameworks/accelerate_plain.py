"""An image classifier with accelerate: `accelerate launch --num_processes 2 FILE`."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

transform = v2.Compose(
    [v2.RandomCrop(32, padding=2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)
train = datasets.ImageFolder("data/train", transform)
loader = DataLoader(train, batch_size=16, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, len(train.classes)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for epoch in range(2):
    loader.set_epoch(epoch)
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.print(f"epoch {epoch}: loss {loss.item():.2f}")
