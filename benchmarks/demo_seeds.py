"""Measures the gain of `synthaug demo`: all of it with several seeds, at 3 and 10 labels per class.

    python benchmarks/demo_seeds.py

A seed is another split of the training half, another generator, other variants and other
classifiers; so the spread over seeds is that of the whole. The test half is used here, and nothing
is chosen. Writes `results/demo.json`; run again after a kill it goes on where it was.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import AuditReport
from synthaug._demo import DemoSettings, demo
from synthaug.evaluation import EvaluationReport

BASELINE, GUESSES, OURS = "real, augmented", "real + guessed labels", "real + synthetic"


def spread(values: Any) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    values = np.asarray(values, float)
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std_over_seeds": std, "values": values.tolist()}


def one_run(work: Path, seed: int, per_class: int) -> dict[str, Any]:
    out, settings = work / f"seed-{seed}", DemoSettings(per_class=per_class)
    folder = out / f"{per_class}-per-class"
    if not (folder / "report.html").exists():  # written last
        demo(out, seed=seed, settings=settings, progress=False)
    evaluation = EvaluationReport.from_json(folder / "evaluation.json")
    audit = AuditReport.from_json(folder / "audit.json")
    return {
        "seed": seed,
        "per_class": per_class,
        "arms": {arm: evaluation.accuracies(arm).tolist() for arm in evaluation.arm_names},
        "audit": {"verdict": audit.verdict, "flagged": len(audit.flagged)},
        "settings": evaluation.settings,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="keeps the runs")
    options = parser.parse_args()
    runs = [one_run(options.work, s, n) for s in options.seeds for n in options.per_class]
    summary: dict[str, Any] = {}
    for n in options.per_class:
        means = {
            arm: np.array([np.mean(run["arms"][arm]) for run in runs if run["per_class"] == n])
            for arm in runs[0]["arms"]
        }
        summary[f"{n} labels per class"] = {
            "arms": {arm: spread(values) for arm, values in means.items()},
            "gain over real, augmented": {
                arm: spread(values - means[BASELINE])
                for arm, values in means.items()
                if arm != BASELINE
            },
            "gain over guessed labels": spread(means[OURS] - means[GUESSES]),
        }
        print(f"{n} labels per class: test accuracy, and gain over {BASELINE}, in percent")
        for arm, values in means.items():
            text = "  ".join(
                f"{100 * x.mean():6.2f}" + (f" ± {100 * x.std(ddof=1):.2f}" if len(x) > 1 else "")
                for x in (values, values - means[BASELINE])
            )
            print(f"  {arm:28} {text}")
    print("Written:", write("demo", {"summary": summary, "runs": runs}))
