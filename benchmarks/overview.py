"""Draws the README's picture from what `synthaug demo` left, and from the results of three seeds.

    synthaug demo && python benchmarks/overview.py synthaug-demo

Writes `docs/overview.png`. The images are those of one run; the accuracies are those of
`benchmarks/results/demo.json`, as in the table of the README.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from synthaug import SynthCache, load_dataset
from synthaug._demo import DemoSettings, split_digits
from synthaug._pixels import grid

INK, SOFT, BLUE = "#1b1b1a", "#6b6b68", "#2a6fc9"
ARMS = {
    "real, augmented": "only your 30 images",
    "real + guessed labels": "+ unlabeled images,\nlabels guessed",
    "real + synthetic": "+ synthetic images",
}


def show(axes: Axes, pixels: Tensor, columns: int) -> None:
    axes.imshow(grid(pixels, columns=columns, scale=4, padding=3), cmap="gray")
    axes.set_anchor("NW")
    axes.axis("off")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what `synthaug demo` wrote")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/overview.png")
options = parser.parse_args()

half = load_dataset("digits:train")
real = half.subset(split_digits(half.targets, DemoSettings(), seed=0).labeled)
cache = SynthCache(options.folder / f"{DemoSettings().per_class}-per-class" / "digits.h5")
rows = [r for c in range(10) for r in np.flatnonzero(cache.labels == c)[:10]]
results = json.loads((Path(__file__).parent / "results/demo.json").read_text())
arms = results["summary"]["3 labels per class"]["arms"]

figure = Figure(
    figsize=(11.5, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06, rect=(0, 0, 1, 0.85))
)
titles = (
    ("1  You have", "3 labeled images\nof each digit"),
    (
        "2  synthaug draws",
        f"{len(cache)} variants of them and of unlabeled ones,\naudited for copies",
    ),
    ("3  Your classifier learns from all", "accuracy on test images:\nmean of three seeds (dots)"),
)
parts = figure.subplots(1, 3, width_ratios=[0.5, 1.06, 1.15])
show(parts[0], real.read(range(len(real))), DemoSettings().per_class)
show(parts[1], cache.read(rows), 10)
bars = parts[2]
for row, (arm, text) in enumerate(ARMS.items()):
    values = [100 * value for value in arms[arm]["values"]]
    color = BLUE if arm == "real + synthetic" else "#b9c3d0"
    bars.barh(row, mean(values), height=0.55, color=color)
    bars.scatter(values, [row] * len(values), s=22, color=INK, alpha=0.7, zorder=3)
    bars.text(-3, row, text, ha="right", va="center", fontsize=11, color=INK)
    shown = f"{mean(values):.1f} %"
    bars.text(103, row, shown, va="center", fontsize=13, color=INK, weight="bold")
bars.set_xlim(0, 100)  # bars from zero: their lengths compare as the accuracies do
bars.set_ylim(len(ARMS) - 0.5, -0.6)
bars.set_yticks([])
bars.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"], color=SOFT)
bars.spines[["top", "right", "left"]].set_visible(False)
figure.draw_without_rendering()  # lays the parts out, whose places the titles need
figure.set_layout_engine("none")
for part, (title, subtitle) in zip(parts, titles, strict=True):
    left = part.get_position().x0 - (0.145 if part is bars else 0)  # over the names of the bars
    figure.text(left, 0.94, title, fontsize=13, color=INK, weight="bold")
    figure.text(left, 0.86, subtitle, fontsize=10, color=SOFT)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=110, facecolor="white")

print("Written:", options.out)
