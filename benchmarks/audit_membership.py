"""Membership beside the audit of images: models that saw few, more and many digits.

    python benchmarks/audit_membership.py

Handwritten digits, all 1,797 of them in random order: 400 are held out, and models are trained on
the first 100, 300 and 1,397 of the others, with the same settings and as many steps. Each is asked
for its losses (`synthaug.membership`), and images that it draws are audited (`synthaug.audit`).
A model that was never trained shows what chance looks like.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import write

from synthaug import ClassConditional, TrainingConfig, audit, generate, load_dataset, membership
from synthaug._noise import counter_rng

CHART = Path(__file__).parent / "results" / "audit_membership.png"


def main() -> None:
    """Runs and writes `results/audit_membership.json` and a chart beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, nargs="+", default=[100, 300, 1397])
    parser.add_argument("--holdout", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--per-class", type=int, default=20, help="synthetic images per class")
    parser.add_argument("--folder", help="where models are kept; a temporary one by default")
    args = parser.parse_args()

    folder = Path(args.folder or tempfile.mkdtemp())
    digits = load_dataset("digits")
    order = counter_rng(0, 0).permutation(len(digits))
    held, rest = digits.subset(order[: args.holdout]), order[args.holdout :]
    settings = {name: value for name, value in vars(args).items() if name != "folder"}
    result: dict[str, Any] = {"settings": settings, "models": {}}
    curves = {}
    for count in args.train:
        start, real = time.process_time(), digits.subset(rest[:count])
        config = TrainingConfig(
            steps=args.steps,
            batch_size=64,
            learning_rate=2e-3,
            decay_steps=args.steps // 3,
            ema_decay=0.995,
            device="cpu",
        )
        model, _ = ClassConditional.fit(
            real, folder / str(count), channels=16, config=config, progress=False
        )
        trained = time.process_time() - start
        asked = membership(model, real, held, random_split=True, progress=False)
        model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=12)
        plan = model.plan(per_class=args.per_class, guidance_scale=1.0, seed=0)
        cache = generate(model, plan, str(folder / f"{count}.h5"), progress=False)
        seen = audit(cache, real, holdout=held, progress=False)
        point = asked.low_false_positives
        curves[f"{count:,} images: AUC {asked.told.auc:.2f}, audit {seen.verdict}"] = asked
        result["models"][count] = {
            "membership": {
                "verdict": asked.verdict,
                "auc": asked.told.auc,
                "interval": list(asked.told.interval),
                "p_value": asked.p_value,
                "recognized_at_1_percent": None if point is None else point.rate,
                "recognized_interval": None if point is None else list(point.interval),
                "reference_auc": asked.reference.auc,
                "reference_interval": list(asked.reference.interval),
            },
            "audit": {
                "verdict": seen.verdict,
                "flagged": len(seen.flagged),
                "withheld": len(seen.withheld),
                "audited": int((seen.tier >= 0).sum()),
            },
            "training_processor_seconds": trained,
            "processor_seconds": time.process_time() - start,
        }
        print(count, result["models"][count], flush=True)
    print(write("audit_membership", result), draw(curves))


def draw(reports: dict[str, Any]) -> Path:
    """The share of training images recognized against held-out ones that are taken for such."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(5.2, 4.6))
    for name, report in reports.items():
        own, others = report.scores[report.member], report.scores[~report.member]
        thresholds = np.sort(report.scores)[::-1]
        x, y = ([(part >= t).mean() for t in thresholds] for part in (others, own))
        axes.plot(x, y, label=name)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, label="chance")
    axes.set_xlabel("held-out images taken for training images")
    axes.set_ylabel("training images recognized")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(CHART, dpi=120)
    return CHART


if __name__ == "__main__":
    main()
