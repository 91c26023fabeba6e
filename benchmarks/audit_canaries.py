"""How often an image must repeat until a model draws it: canaries of dose 1 to 64, on digits.

    python benchmarks/audit_canaries.py

Of the 1,797 handwritten digits, pairs of one class are marked with borders of random grey levels; a
coin decides which of a pair is trained on, so often as its dose says. A small model is trained on
all that is left and on the marked ones, draws images, and the borders that come back are counted.
The same images are audited by their distances to what the model was trained on.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import ClassConditional, TrainingConfig, generate, load_dataset
from synthaug.memorization import CanaryConfig, CanaryReport, came_back, plant

CHART = Path(__file__).parent / "results" / "audit_canaries.png"


def main() -> None:
    """Runs and writes `results/audit_canaries.json` and a chart beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each dose")
    parser.add_argument("--doses", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--per-class", type=int, default=100, help="synthetic images per class")
    parser.add_argument("--folder", help="where the model is kept; a temporary one by default")
    args = parser.parse_args()

    folder = Path(args.folder or tempfile.mkdtemp())
    config = CanaryConfig(pairs=args.pairs, doses=tuple(args.doses))
    planted = plant(load_dataset("digits"), config)
    training = TrainingConfig(
        steps=args.steps,
        batch_size=64,
        learning_rate=2e-3,
        decay_steps=args.steps // 3,
        ema_decay=0.995,
        device="cpu",
    )
    start = time.process_time()
    model, _ = ClassConditional.fit(
        planted, folder / "canaries", channels=16, config=training, progress=False
    )
    trained = time.process_time() - start
    model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=12)
    plan = model.plan(per_class=args.per_class, guidance_scale=1.0, seed=0)
    cache = generate(model, plan, str(folder / "canaries.h5"), progress=False)
    report = came_back(cache, planted.plan)
    print(report)
    result: dict[str, Any] = {
        "settings": vars(args),
        "training_images": len(planted),
        "marked": sum(c.dose for c in planted.plan.chosen(trained=True)),
        "drawn": report.images,
        "carriers": len(report.carriers),
        "verdict": report.verdict,
        "p_value": report.p_value,
        "threshold": report.threshold,
        "by_dose": [asdict(one) for one in report.by_dose],
        "median_similarity": {
            one.dose: {
                name: float(np.median(report.similarity[(report.dose == one.dose) & chosen]))
                for name, chosen in (("trained", report.trained), ("control", ~report.trained))
            }
            for one in report.by_dose
        },
        "training_processor_seconds": trained,
        "processor_seconds": time.process_time() - start,
    }
    print(write("audit_canaries", result), draw(report))


def draw(report: CanaryReport) -> Path:
    """The share of the marks that came back, by the number of repetitions."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.6, 3.8))
    doses = [one.dose for one in report.by_dose]
    for name, label, color in (
        ("trained", "trained on", "tab:red"),
        ("control", "controls", "tab:blue"),
    ):
        share = [vars(one)[f"{name}_back"] / one.pairs for one in report.by_dose]
        low, high = np.array([vars(one)[f"{name}_interval"] for one in report.by_dose]).T
        axes.plot(doses, share, "o-", color=color, label=label)
        axes.fill_between(doses, low, high, color=color, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(doses, [str(dose) for dose in doses])
    axes.set_xlabel("repetitions in the training set")
    axes.set_ylabel("share of marks that came back")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(CHART, dpi=120)
    return CHART


if __name__ == "__main__":
    main()
