"""Add as a transform: an image becomes a cached variant of itself, in a torchvision pipeline.

python examples/transform.py
"""

import os
from pathlib import Path
from tempfile import mkdtemp

import torch
from torchvision.transforms import v2

import synthaug

out = Path(mkdtemp())
# Off a terminal bars are lines, every 30 seconds: say more often how far this is.
os.environ.setdefault("SYNTHAUG_PROGRESS_SECONDS", "3")
real = synthaug.load_dataset("digits:train").subset(range(200))
synthesizer, _ = synthaug.ClassConditional.fit(
    real,
    out / "generator",
    config=synthaug.TrainingConfig(steps=30, batch_size=16),
    channels=8,
)

# Variants start from the real images: noised half-way and denoised again.
variants = synthesizer.with_sources(real)
plan = variants.plan(ratio=2, strength=0.5, seed=0)
cache = synthaug.generate(variants, plan, str(out / "variants.h5"), source=real)

real.transform = v2.Compose(
    [
        synthaug.transforms.SyntheticVariant(cache, p=0.5, audit=None),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)
image, label = real[0]
print(image.shape, image.dtype, label)
