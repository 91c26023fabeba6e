"""Measures accuracy over the number of synthetic images on a long tail: which are worth drawing?

    python benchmarks/targeting.py --data digits --seeds 0 1 2 3 4 --numbers 100 300 1000
    python benchmarks/targeting.py --tiny --out /tmp/targeting.json      # only that it runs

A seed is another choice of real images, another generator trained on them alone, other draws and
other classifiers. Of every class fewer real images are kept than of the one before (--imbalance).
All arms make equally many steps, half of each batch synthetic; they differ in which images these
are:

    random      classes in the proportions of the real images, from noise
    difficult   more of the classes that classifiers find hard which have not learned from them
    guided      as random, pushed to where a classifier of the real images is undecided
    selected    as random, --overdraw times as many, of which `selection.select` keeps the number

Images are not audited here: arms are compared with each other, and nothing is handed on. Kept by
seed in --work: run again after a kill, it goes on where it was. Writes --out anew after each seed.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import RESULTS, machine
from robust_digits import train_generator
from torch.utils.data import Subset

from synthaug import SynthCache, evaluate, generate, load_dataset
from synthaug.evaluation import (
    Arm,
    ClassifierConfig,
    EvaluationReport,
    long_tail,
    trained_classifier,
)
from synthaug.guidance import ClassifierGuidance
from synthaug.selection import Difficulty, ImageSelection, difficulty, select

BASELINE = "none"
TARGETS = ("random", "difficult", "guided", "selected")
TINY: dict[str, Any] = {
    "data": "digits",
    "seeds": [0],
    "numbers": [20, 40],
    "per_class": 16,
    "imbalance": 2.0,
    "steps": 4,
    "generator_steps": 3,
    "width": 8,
    "inference_steps": 2,
    "overdraw": 2,
    "rules": ["distinct", "k-center"],  # classifiers of four steps recognize nothing
}


def classifiers(options: argparse.Namespace) -> ClassifierConfig:
    return ClassifierConfig(
        steps=options.steps, batch_size=64, device=options.device, precision="float32"
    )


def tail_of(seed: int, options: argparse.Namespace) -> Any:
    """Few labeled images, of every class fewer than of the one before, chosen anew by the seed."""
    whole = load_dataset(f"{options.data}:train")
    if options.per_class is not None:
        order = np.random.default_rng(seed).permutation(len(whole))
        labels = whole.labels[order]
        chosen = [order[labels == c][: options.per_class] for c in range(len(whole.classes))]
        whole = whole.subset(np.sort(np.concatenate(chosen)))
    return whole.subset(np.array(long_tail(whole, imbalance=options.imbalance, seed=seed).indices))


def generator(real: Any, folder: Path, seed: int, options: argparse.Namespace) -> Any:
    """A generator that has seen `real` only."""
    model = train_generator(real, folder, seed, options, options.device)
    return model.with_settings(scheduler="dpmsolver++", num_inference_steps=options.inference_steps)


def counts_by(weights: Any, total: int, classes: tuple[str, ...]) -> dict[str, int]:
    """About so many images, by the weights of classes, at least one of each."""
    exact = total * np.asarray(weights, float) / np.sum(weights)
    return {name: max(1, round(n)) for name, n in zip(classes, exact.tolist(), strict=True)}


def hard_classes(real: Any, folder: Path, seed: int, options: argparse.Namespace) -> Any:
    """Weights of classes: half by their images, half by the mean loss of these."""
    path = folder / "difficulty.json"
    if not path.exists():
        difficulty(real, runs=1, config=classifiers(options), seed=seed).to_json(path)
    hard = Difficulty.from_json(path)
    present = np.bincount(real.labels, minlength=len(real.classes))
    loss = np.array([hard.loss[hard.labels == c].mean() for c in range(len(real.classes))])
    return present / present.sum() + loss / loss.sum()


def rows_of(
    target: str, real: Any, model: Any, folder: Path, seed: int, options: argparse.Namespace
) -> tuple[SynthCache, dict[int, Any]]:
    """The images of a target, and which rows are used at each number."""
    most, classes = max(options.numbers), tuple(real.classes)
    weights = np.bincount(real.labels, minlength=len(classes)).astype(float)
    if target == "difficult":
        weights = hard_classes(real, folder, seed, options)
    if target == "guided":
        network = trained_classifier(real, seed=seed, config=classifiers(options), progress=False)
        guidance = ClassifierGuidance(network, criterion="entropy", scale=options.scale)
        model = model.with_settings(classifier_guidance=guidance)
    total = most * (options.overdraw if target == "selected" else 1)
    plan = model.plan(counts=counts_by(weights, total, classes), guidance_scale=1.5, seed=seed)
    cache = generate(model, plan, folder / f"{target}.h5", batch_size=256)
    labels, rows = np.asarray(cache.labels), {}
    for number in options.numbers:
        if target == "selected":
            mask = chosen(cache, real, number / len(cache), folder, seed, options).passed
            rows[number] = np.flatnonzero(mask)
            continue
        share = number / most  # the first rows of each class, so that larger numbers hold smaller
        parts = [np.flatnonzero(labels == c) for c in range(len(classes))]
        first = [part[: max(1, round(share * len(part)))] for part in parts]
        rows[number] = np.sort(np.concatenate(first))
    return cache, rows


def chosen(
    cache: SynthCache,
    real: Any,
    keep: float,
    folder: Path,
    seed: int,
    options: argparse.Namespace,
) -> ImageSelection:
    """A selection of a share of the images, made once."""
    path = folder / f"selected-{keep:.4f}-{'-'.join(options.rules)}.json"
    if not path.exists():
        selection = select(
            cache, real, keep=keep, rules=options.rules, config=classifiers(options), seed=seed
        )
        selection.to_json(path)
    return ImageSelection.from_json(path)


def one_seed(seed: int, options: argparse.Namespace) -> tuple[EvaluationReport, dict[str, int]]:
    """The runs of a seed, and how many images each arm has."""
    folder = options.work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    real = tail_of(seed, options)
    model = generator(real, folder, seed, options)
    arms: dict[str, Any] = {BASELINE: Arm(real, augment="standard")}
    used = {BASELINE: 0}
    for target in options.targets:
        cache, rows = rows_of(target, real, model, folder, seed, options)
        for number, kept in rows.items():
            name = f"{target}, {number}"
            used[name] = len(kept)
            arms[name] = Arm(
                real, augment="standard", synthetic=Subset(cache, kept.tolist()), share=0.5
            )
    report = evaluate(
        arms,
        test=load_dataset(f"{options.data}:test"),
        seeds=[seed],
        config=classifiers(options),
        baseline=BASELINE,
        class_sizes=tuple(options.class_sizes),
        output_dir=folder / "runs",
    )
    return report, used


def summed_up(report: EvaluationReport) -> dict[str, Any]:
    """For every arm its accuracies, and its gains over none and over as many random images."""
    summary: dict[str, Any] = {}
    for arm in report.arm_names:
        target, _, number = arm.partition(", ")
        figures: dict[str, Any] = {
            group: report.group_accuracies(arm, group).tolist()
            for group in (*report.groups, "worst")
        }
        for other in (BASELINE, f"random, {number}"):
            if target != BASELINE and other != arm and other in report.arm_names:
                figures[f"gain over {other}"] = asdict(report.difference(arm, other, group="all"))
        summary[arm] = figures
    return summary


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="digits", help="what ':train' and ':test' are added to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--numbers", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--per-class", type=int, help="real images before the tail is cut")
    parser.add_argument("--imbalance", type=float, default=20.0)
    parser.add_argument("--class-sizes", type=int, nargs=2, default=[20, 100])
    parser.add_argument("--steps", type=int, default=600, help="of each classifier")
    parser.add_argument("--generator-steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=16, help="of the generator")
    parser.add_argument("--inference-steps", type=int, default=15)
    parser.add_argument("--scale", type=float, default=0.5, help="of the guidance")
    parser.add_argument("--overdraw", type=int, default=4)
    parser.add_argument("--rules", nargs="+", default=["label", "support", "distinct", "k-center"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="so small that numbers mean nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/targeting"))
    parser.add_argument("--out", type=Path, default=RESULTS / "targeting.json")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(TINY)
        options.work = options.out.with_suffix("")
    return options


def main() -> None:
    options = parsed()
    reports: list[EvaluationReport] = []
    images: dict[int, dict[str, int]] = {}
    for seed in options.seeds:
        report, images[seed] = one_seed(seed, options)
        reports.append(report)
        whole = reports[0].changed(runs=[run for one in reports for run in one.runs])
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        result = {
            "machine": machine(),
            "settings": {**settings, "classifiers": whole.settings},
            "train_counts": whole.train_counts,
            "images": images,
            "summary": summed_up(whole),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{whole.table()}\nWritten: {options.out}\n", flush=True)


if __name__ == "__main__":
    main()
