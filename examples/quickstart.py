"""Wrap a data set: real digits, some of them replaced by cached synthetic ones.

    python examples/quickstart.py

Every stage on one screen, at toy size: `synthaug demo` does the same with enough training to help.
"""

from pathlib import Path
from tempfile import mkdtemp

from torch.utils.data import DataLoader
from torchvision.transforms import v2

import synthaug

out = Path(mkdtemp())
half = synthaug.load_dataset("digits:train")
test = synthaug.load_dataset("digits:test")
real, holdout = half.subset(range(400)), half.subset(range(400, 600))

# A generator, a plan, a cache.
synthesizer, _ = synthaug.ClassConditional.fit(
    real,
    out / "generator",
    config=synthaug.TrainingConfig(steps=30, batch_size=16),
    channels=8,
)
plan = synthesizer.plan(per_class=10, seed=0)
cache = synthaug.generate(synthesizer, plan, str(out / "digits.h5"))

# The audit, and the data set behind the loader you already have.
report = synthaug.audit(cache, real, holdout=holdout)
print(report)
mixed = synthaug.MixedDataset(real, cache, audit=report, fraction=0.5)
mixed.transform = v2.PILToTensor()
for epoch in range(2):
    mixed.set_epoch(epoch)
    for _images, _labels in DataLoader(mixed, batch_size=64, shuffle=True):
        pass  # your training step: a plain loop, left as it is
print(mixed)
