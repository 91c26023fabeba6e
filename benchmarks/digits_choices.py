"""How the settings of `synthaug demo` were chosen: on the training half of the digits alone.

    python benchmarks/digits_choices.py

For several random splits of the training half it trains the demo's generator, draws with two
guidance scales, mixes in two proportions, and tests classifiers on the held-out images of the
training half. The test half is not read.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import Arm, MixedDataset, evaluate, generate, load_dataset
from synthaug._demo import (
    Settings,
    classifier_seeds,
    guess_labels,
    split_digits,
    train_generator,
    with_guesses,
)


def one_split(seed: int, settings: Settings) -> list[dict[str, Any]]:
    half = load_dataset("digits:train")
    split = split_digits(half.targets, settings, seed)
    real, chosen_on = half.subset(split.labelled), half.subset(split.holdout)
    folder = Path(tempfile.mkdtemp())
    guessed, rest, right = guess_labels(half, split, settings, seed=seed, progress=False)
    print(f"split {seed}: {len(guessed)} sure guesses, {right:.3f} right", flush=True)
    model, _ = train_generator(
        real, guessed, rest, folder / "generator", settings, seed=seed, progress=False
    )
    model = replace(
        model, scheduler="dpmsolver++", num_inference_steps=settings.num_inference_steps
    )
    arms: dict[str, Any] = {
        "real": Arm(real),
        "real, augmented": real,
        "real + guessed labels": with_guesses(real, guessed, share=settings.fraction),
    }
    for scale in (1.0, 2.0):
        plan = model.plan(per_class=settings.synthetic_per_class, guidance_scale=scale, seed=seed)
        cache = generate(model, plan, str(folder / f"{scale}.h5"), progress=False)
        for fraction in (0.5, 0.75):
            arms[f"guidance {scale:g}, fraction {fraction:g}"] = MixedDataset(
                real, cache, audit=None, fraction=fraction, seed=seed
            )
    report = evaluate(
        arms,
        test=chosen_on,
        steps=settings.classifier_steps,
        seeds=classifier_seeds(seed, settings),
        device="cpu",
        baseline="real, augmented",
        progress=False,
    )
    print(f"{report.table()}\n", flush=True)
    return [
        {"split": seed, "arm": arm, "accuracies": report.accuracies(arm).tolist()}
        for arm in report.arm_names
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=Settings().per_class)
    options = parser.parse_args()
    settings = Settings(per_class=options.per_class)
    rows = [row for s in range(1, options.splits + 1) for row in one_split(s, settings)]
    arms = dict.fromkeys(row["arm"] for row in rows)
    summary = {}
    for arm in arms:
        means = np.array([np.mean(r["accuracies"]) for r in rows if r["arm"] == arm])
        spread = float(means.std(ddof=1)) if len(means) > 1 else None
        summary[arm] = {"mean": float(means.mean()), "std_over_splits": spread}
        print(f"{arm:45} {means.mean():.4f}")
    print("Written:", write("digits_choices", {"summary": summary, "rows": rows}))
