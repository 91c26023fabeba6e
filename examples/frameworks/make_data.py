"""Small data for the examples beside this file: run it once, then any of them, in one folder.

    python make_data.py && python pytorch_mixed.py

Writes class folders `data/train` and `data/val`, a cache `synthetic.h5` and its audit `audit.json`.
Digits by other writers stand in for what a generator would draw.
"""

from pathlib import Path

from PIL import Image

import synthaug
from synthaug import caches

digits = synthaug.load_dataset("digits")
parts = {"data/train": range(64), "generated": range(64, 144), "data/val": range(144, 244)}
for folder, indices in parts.items():
    for i in indices:
        image, label = digits[i]
        path = Path(folder, digits.classes[label], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC).save(path)

cache = caches.import_images("folder:generated", "synthetic.h5", name="digits by other writers")
train, val = (synthaug.load_dataset(f"folder:data/{part}") for part in ("train", "val"))
report = synthaug.audit(cache, train, holdout=val)
report.to_json("audit.json")
print(cache, report.verdict)
