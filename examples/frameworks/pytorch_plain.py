"""An image classifier in plain PyTorch."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

transform = v2.Compose(
    [v2.RandomCrop(32, padding=2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)
train = datasets.ImageFolder("data/train", transform)
loader = DataLoader(train, batch_size=32, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, len(train.classes)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(2):
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.2f}")
