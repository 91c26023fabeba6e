"""How the settings of `synthaug demo` were chosen: on the training half of the digits alone.

    python benchmarks/digits_choices.py

For several random splits of the training half it trains the demo's generator, draws with several
guidance scales, from noise and from the labelled images, and tests classifiers on the held-out images
of the training half. The test half is not read.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import MixedDataset, SynthCache, evaluate, generate, load_dataset
from synthaug._demo import Settings, split_digits, train_generator
from synthaug._evaluation import standard_arms


def one_split(seed: int, settings: Settings) -> list[dict[str, Any]]:
    half = load_dataset("digits", split="train")
    split = split_digits(half.targets, settings, seed)
    real, chosen_on = half.subset(split.labelled), half.subset(split.holdout)
    folder = Path(tempfile.mkdtemp())
    model, _ = train_generator(
        half, split, folder / "generator", settings, seed=seed, progress=False
    )
    model = replace(
        model, scheduler="dpmsolver++", num_inference_steps=settings.num_inference_steps
    )
    from_real = model.with_sources(real)
    caches: dict[str, SynthCache] = {}
    for scale in (1.0, 1.5, 2.5):
        plan = model.plan(per_class=settings.synthetic_per_class, guidance_scale=scale, seed=seed)
        path = str(folder / f"{scale}.h5")
        caches[f"noise, guidance {scale:g}"] = generate(model, plan, path, progress=False)
    for strength in (0.6, 0.8):
        plan = from_real.plan(
            per_class=settings.synthetic_per_class, strength=strength, seed=seed
        )
        path = str(folder / f"strength{strength}.h5")
        caches[f"labelled images, strength {strength:g}"] = generate(
            from_real, plan, path, progress=False
        )
    arms = standard_arms(real)
    for name, cache in caches.items():
        for fraction in (0.5, 0.75):
            arms[f"{name}, fraction {fraction:g}"] = MixedDataset(
                real, cache, audit=None, fraction=fraction, seed=seed
            )
    report = evaluate(
        arms,
        test=chosen_on,
        steps=settings.classifier_steps,
        seeds=settings.seeds,
        baseline="real, augmented",
        progress=False,
    )
    print(f"split {seed}\n{report.table()}\n", flush=True)
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
