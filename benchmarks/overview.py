"""Draws the README's picture from what `synthaug demo` left behind.

    synthaug demo && python benchmarks/overview.py synthaug-demo

Writes `docs/overview.png`.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from synthaug import AuditReport, SynthCache, load_dataset
from synthaug._demo import DemoSettings, split_digits
from synthaug._pixels import grid
from synthaug.evaluation import EvaluationReport

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what `synthaug demo` wrote")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/overview.png")
options = parser.parse_args()

half = load_dataset("digits:train")
real = half.subset(split_digits(half.targets, DemoSettings(), seed=0).labelled)
folder = options.folder / f"{DemoSettings().per_class}-per-class"
cache = SynthCache(folder / "digits.h5")
evaluation = EvaluationReport.from_json(folder / "evaluation.json")
audit = AuditReport.from_json(folder / "audit.json")
rows = [r for c in range(10) for r in np.flatnonzero(cache.labels == c)[:10]]

figure = Figure(figsize=(11, 3.7), layout="constrained")
first, second, third = figure.subplots(1, 3, width_ratios=[0.32, 1, 1.35])
for axes, title, pixels, columns in (
    (first, "all labels\nthere are", real.read(range(len(real))), DemoSettings().per_class),
    (second, f"synthetic\naudit: {audit.verdict}", cache.read(rows), 10),
):
    sheet = grid(pixels, columns=columns, scale=4, padding=3)
    axes.imshow(sheet, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.axis("off")
arms = evaluation.arm_names
for row, arm in enumerate(arms):
    values = 100 * evaluation.accuracies(arm)
    third.scatter(values, np.full(len(values), row), s=26, color="#2a6fc9", alpha=0.55)
    third.plot([values.mean()] * 2, [row - 0.25, row + 0.25], color="#1b1b1a", lw=2)
    third.annotate(f"{values.mean():.1f}", (values.mean(), row - 0.32), ha="center", fontsize=9.5)
third.set_yticks(range(len(arms)), arms)
third.set_ylim(len(arms) - 0.5, -0.7)
third.set_title("test accuracy in percent\none dot per seed, mean", fontsize=11)
third.grid(axis="x", alpha=0.3)
third.spines[["top", "right", "left"]].set_visible(False)
third.tick_params(axis="y", length=0)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=110)

print("Written:", options.out)
