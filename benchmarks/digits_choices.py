"""How the settings of `synthaug demo` were chosen: on the training half of the digits alone.

    python benchmarks/digits_choices.py --per-class 3
    python benchmarks/digits_choices.py --per-class 10

The training half is cut into thirds, writer by writer as the scans come, so that the images to
choose on are by other writers, as the test half is. For every third the demo's generator is trained
on the others; variants are drawn with the demo's settings and with one of them changed at a time;
and classifiers are tested on the third. The test half is not read. Writes
`results/digits_choices_N.json` for N labels per class.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _machine import write

from synthaug import MixedDataset, evaluate, load_dataset
from synthaug._demo import DemoSettings, Split, Steps, joined, with_guesses
from synthaug._noise import counter_rng
from synthaug.evaluation import check_labels

VARIATIONS: dict[str, dict[str, Any]] = {
    "real + synthetic": {},
    "near": {"noise": (0.25,), "interpolation": (0.0, 0.25)},
    "far": {"noise": (0.5,), "interpolation": (0.5,)},
    "no guidance": {"guidance_scale": 1.0},
}
"""Settings that differ from the demo's."""


def split_by_writers(labels: np.ndarray, third: int, per_class: int) -> Split:
    """A third to choose on, and labeled images among the others."""
    part = np.arange(len(labels)) * 3 // len(labels)
    rng, others = counter_rng(third, 1), np.flatnonzero(part != third)
    of_class = [rng.permutation(others[labels[others] == c]) for c in np.unique(labels)]
    return Split(
        labeled=np.concatenate([rows[:per_class] for rows in of_class]),
        holdout=np.flatnonzero(part == third),
        pool=np.concatenate([rows[per_class:] for rows in of_class]),
    )


def one_third(third: int, settings: DemoSettings, work: Path) -> list[dict[str, Any]]:
    half = load_dataset("digits:train")
    split = split_by_writers(half.labels, third, settings.per_class)
    real, chosen_on = half.subset(split.labeled), half.subset(split.holdout)
    steps = Steps(settings, seed=third, progress=False)
    generator, _ = steps.train_generator(half.subset(split.seen), work / f"generator-{third}")
    guessed, right = steps.guess_labels(half, split)
    print(f"third {third}: {len(guessed)} sure guesses, {right:.3f} right", flush=True)
    folder = Path(tempfile.mkdtemp())
    sources = joined(real, guessed)
    inversion = steps.invert(generator, sources, folder / "inverted")

    def mixed(cache: Any, fraction: float, audit: Any = None) -> MixedDataset:
        return MixedDataset(real, cache, audit=audit, fraction=fraction, seed=third)

    of_few = steps.invert(generator, real, folder / "few")
    few = steps.draw_variants(of_few, real, folder / "few.h5")
    with_guessed = with_guesses(real, guessed, share=settings.fraction)
    arms: dict[str, Any] = {
        "real, augmented": real,
        "real + variants of them": mixed(few, settings.fraction),
        "real + guessed labels": with_guessed,
    }
    for number, (name, changed) in enumerate(VARIATIONS.items()):
        other = replace(steps, settings=replace(settings, **changed))
        cache = other.draw_variants(inversion, sources, folder / f"{number}.h5")
        arms[name] = mixed(cache, settings.fraction)
        if changed:
            continue
        check = check_labels(cache, with_guessed, threshold=0.5, **steps.classifiers)
        arms["label check"] = mixed(cache, settings.fraction, check)
        arms["fraction 0.5"] = mixed(cache, 0.5)
        arms["real + guessed labels + synthetic"] = MixedDataset(
            with_guessed, cache, audit=None, fraction=0.5, seed=third
        )
    report = evaluate(
        arms,
        test=chosen_on,
        baseline="real, augmented",
        **steps.classifiers,
    )
    print(f"{report.table()}\n", flush=True)
    return [
        {
            "third": third,
            "arm": arm,
            "accuracies": report.accuracies(arm).tolist(),
            "right_guesses": right,
            "withheld": float(check.withheld.mean()),
        }
        for arm in report.arm_names
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thirds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, default=DemoSettings().per_class)
    parser.add_argument(
        "--seeds", type=int, default=DemoSettings().seeds, help="classifiers per arm"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/digits"), help="keeps generators")
    options = parser.parse_args()
    settings = DemoSettings(per_class=options.per_class, seeds=options.seeds)
    rows = [row for third in options.thirds for row in one_third(third, settings, options.work)]
    summary = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        means = np.array([np.mean(row["accuracies"]) for row in rows if row["arm"] == arm])
        spread = float(means.std(ddof=1)) if len(means) > 1 else None
        summary[arm] = {"mean": float(means.mean()), "std_over_thirds": spread}
        print(f"{arm:45} {means.mean():.4f}")
    name = f"digits_choices_{options.per_class}"
    print("Written:", write(name, {"summary": summary, "rows": rows}))
