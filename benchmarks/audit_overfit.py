"""A diffusion model that was overfitted on purpose is caught; with enough data it is not.

    python benchmarks/audit_overfit.py

Handwritten digits, all 1,797 of them in random order: some are held out for the audit; one model is
trained on a few of the others, one on all of the others, with the same settings and as many steps.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import ClassConditional, TrainingConfig, audit, generate, load_dataset
from synthaug._noise import counter_rng


def main() -> None:
    """Runs and writes `results/audit_overfit.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=150, help="images of the overfitted model")
    parser.add_argument("--holdout", type=int, default=400)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--per-class", type=int, default=20, help="synthetic images per class")
    parser.add_argument("--html", help="folder for the reports", metavar="FOLDER")
    args = parser.parse_args()

    digits = load_dataset("digits")
    order = counter_rng(0, 0).permutation(len(digits))
    held, rest = digits.subset(order[: args.holdout]), order[args.holdout :]
    result: dict[str, Any] = {"settings": vars(args), "models": {}}
    for name, rows in (("few", rest[: args.few]), ("all", rest)):
        start = time.perf_counter()
        real, folder = digits.subset(rows), Path(tempfile.mkdtemp())
        config = TrainingConfig(
            steps=args.steps,
            batch_size=64,
            learning_rate=1e-3,
            decay_steps=args.steps // 3,
            ema_decay=0.998,
            device="cpu",
        )
        model, training = ClassConditional.fit(
            real, folder / "model", channels=16, config=config, progress=False
        )
        trained = time.perf_counter() - start
        model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=12)
        plan = model.plan(per_class=args.per_class, guidance_scale=1.0, seed=0)
        cache = generate(model, plan, str(folder / "cache.h5"), progress=False)
        report = audit(cache, real, holdout=held, progress=False)
        if args.html:
            report.to_html(Path(args.html) / f"overfit_{name}.html")
        judged = report.tier >= 0
        result["models"][name] = {
            "train": len(rows),
            "synthetic": int(judged.sum()),
            "loss": training.loss_curve[-1][1] if training.loss_curve else None,
            "verdict": report.verdict,
            "flagged": len(report.flagged),
            "equal": int((report.tier == 1).sum()),
            "competition": report.competition,
            "shift": report.shift,
            "descriptive": list(report.descriptive),
            "reasons": list(report.reasons),
            "median_rmse": float(np.median(report.rmse[judged])),
            "training_seconds": trained,
            "seconds": time.perf_counter() - start,
        }
        print(name, result["models"][name], flush=True)
    print(write("audit_overfit", result))


if __name__ == "__main__":
    main()
