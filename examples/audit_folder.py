"""Audit any images: are those in one folder copies of those in another?

    python examples/audit_folder.py SYNTHETIC TRAINING HOLDOUT REPORT.html

Each is a folder with one subfolder per class; without arguments, made-up images are audited, one of
them a mirrored training image.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import synthaug

if len(sys.argv) > 1:
    synthetic, train, holdout = (synthaug.load_dataset(f"folder:{path}") for path in sys.argv[1:4])
    target = Path(sys.argv[4])
else:
    digits = synthaug.load_dataset("digits")
    train, holdout = digits.subset(range(400)), digits.subset(range(400, 800))
    pixels = digits.read(range(800, 860))
    pixels[0] = train.read([7])[0].flip(-1)
    synthetic = synthaug.images.LabeledImages(pixels, digits.labels[800:860], digits.classes)
    target = Path(mkdtemp()) / "audit.html"

report = synthaug.audit(synthetic, train, holdout=holdout)
report.to_html(target)
print(report.verdict, report.flagged[:10], target)
