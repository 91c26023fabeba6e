"""Generated images under adversarial training: a share of each batch, on few labeled digits.

    python benchmarks/robust_digits.py --seeds 0 1 2 3 4 --shares 0.3 0.5 0.7
    python benchmarks/robust_digits.py --train folder:mnist/train --test folder:mnist/test \
        --image-size 16 --per-class 100 --test-images 5000 --steps 1200 --epsilon 0.2 --shares 0.5

A seed is another choice of 300 labeled digits, another generator trained on them alone, other draws
and other classifiers. All arms make equally many optimizer steps of equally large batches under the
same attack, and are tested on digits of other writers, clean and attacked. Arms: real images as
they are, and with affine augmentation; and with a share of each batch from class-wise Gaussians, or
from the generator, both as they are; and from the generator, augmented as real images are. The
control of them: the same real images as they are, in place of synthetic ones. The ceiling: further
real digits with their true labels, which no generator has seen.

Kept by seed and arm in --work: run again after a kill, it goes on where it was. Writes --out anew
after each seed.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import RESULTS, machine
from numpy.typing import NDArray

from synthaug import ClassConditional, SynthCache, TrainingConfig, evaluate, generate, load_dataset
from synthaug._noise import counter_rng
from synthaug.evaluation import (
    AdversarialConfig,
    AffineAugment,
    Arm,
    ClassifierConfig,
    EvaluationReport,
    class_gaussians,
)
from synthaug.images import LabeledImages

BASELINE = "real, affine"
CONTROL = "the same real digits, not augmented"
CEILING = "further real digits"


def labeled_part(half: LabeledImages, per_class: int, seed: int) -> LabeledImages:
    """Takes as many images of every class, chosen anew for each seed."""
    return half.subset(labeled_rows(half, per_class, seed))


def labeled_rows(half: LabeledImages, per_class: int, seed: int) -> NDArray[np.int64]:
    """Chooses their rows."""
    order = counter_rng(seed, 0).permutation(len(half))
    chosen = [order[half.labels[order] == c][:per_class] for c in range(len(half.classes))]
    return np.sort(np.concatenate(chosen))


def train_generator(
    real: LabeledImages, folder: Path, seed: int, options: argparse.Namespace, device: str = "cpu"
) -> ClassConditional:
    """Trains a generator that has seen `real` only; goes on where a killed run was."""
    steps = options.generator_steps
    config = TrainingConfig(
        steps=steps,
        batch_size=64,
        learning_rate=1e-3,
        decay_steps=steps // 3,
        ema_decay=0.998,
        checkpoint_seconds=60,
        seed=seed,
        device=device,
        precision="float32",
    )
    model, _ = ClassConditional.fit(
        real, folder / "generator", channels=options.width, config=config
    )
    return model


def drawn(real: LabeledImages, folder: Path, seed: int, options: argparse.Namespace) -> SynthCache:
    """Images of a generator that has seen `real` only."""
    path = folder / "synthetic.h5"
    if path.exists() and SynthCache(path).done.all():
        return SynthCache(path)
    model = train_generator(real, folder, seed, options)
    model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=15)
    plan = model.plan(per_class=options.synthetic_per_class, guidance_scale=1.0, seed=seed)
    return generate(model, plan, path, batch_size=256)


def arms_of(
    real: LabeledImages,
    gaussians: LabeledImages,
    cache: SynthCache,
    further: LabeledImages,
    shares: list[float],
) -> dict[str, Any]:
    affine: Any = AffineAugment()
    arms: dict[str, Any] = {
        BASELINE: Arm(real, augment=affine),
        "real, not augmented": Arm(real),
    }
    kinds: dict[str, tuple[Any, bool]] = {
        CONTROL: (real, False),
        "Gaussians": (gaussians, False),
        "diffusion": (cache, False),
        "diffusion, augmented": (cache, True),
    }
    for kind, (synthetic, augmented) in kinds.items():
        for share in shares:
            arms[f"{kind}, {share:g}"] = Arm(
                real,
                augment=affine,
                synthetic=synthetic,
                share=share,
                augment_synthetic=augmented,
            )
    arms[f"{CEILING}, 0.5"] = Arm(real, augment=affine, synthetic=further, share=0.5)
    return arms


def one_seed(seed: int, options: argparse.Namespace) -> EvaluationReport:
    folder = options.work / f"seed-{seed}"
    half = load_dataset(options.train, image_size=options.image_size)
    test = load_dataset(options.test, image_size=options.image_size)
    if options.test_images is not None:
        test = labeled_part(test, options.test_images // len(test.classes), seed=0)
    rows = labeled_rows(half, options.per_class, seed)
    real, further = half.subset(rows), half.subset(np.setdiff1d(np.arange(len(half)), rows))
    cache = drawn(real, folder, seed, options)
    gaussians = class_gaussians(real, per_class=options.synthetic_per_class, seed=seed)
    arms = arms_of(real, gaussians, cache, further, options.shares)
    return evaluate(
        {name: arm for name, arm in arms.items() if name.startswith(tuple(options.arms))},
        test=test,
        seeds=[seed],
        config=ClassifierConfig(
            steps=options.steps, batch_size=64, device="cpu", precision="float32"
        ),
        adversarial=AdversarialConfig(
            epsilon=options.epsilon,
            steps=options.attack_steps,
            test_steps=options.test_steps,
            restarts=options.restarts,
            ema_decay=options.ema_decay,
        ),
        baseline=BASELINE,
        output_dir=folder / "runs",
    )


def spread(values: Any) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std_over_seeds": std, "values": values.tolist()}


def summed_up(report: EvaluationReport) -> dict[str, Any]:
    """For every arm accuracies, and gains over the baseline and the Gaussians of its share."""
    summary: dict[str, Any] = {}
    for arm in report.arm_names:
        figures: dict[str, Any] = {}
        for result in (None, "robust"):
            name = result or "clean"
            figures[name] = spread(report.accuracies(arm, result))
            share = arm.rpartition(", ")[2]
            others = [BASELINE, f"Gaussians, {share}", f"{CONTROL}, {share}"]
            for other in others if arm.startswith("diffusion") else others[:1]:
                if other != arm and other in report.arm_names:
                    gain = report.difference(arm, other, result=result)
                    figures[f"{name}, gain over {other}"] = asdict(gain)
        summary[arm] = figures
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", default="digits:train", help="`load_dataset` takes it")
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--image-size", type=int, help="for folders")
    parser.add_argument("--test-images", type=int, help="as many of every class; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument(
        "--arms", nargs="+", default=[""], help="beginnings of the names of those to train"
    )
    parser.add_argument("--per-class", type=int, default=30, help="labeled images")
    parser.add_argument("--synthetic-per-class", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400, help="of each classifier")
    parser.add_argument("--generator-steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=16, help="of the generator")
    parser.add_argument("--epsilon", type=float, default=0.15)
    parser.add_argument("--attack-steps", type=int, default=5)
    parser.add_argument("--test-steps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--ema-decay", type=float, default=0.995)
    parser.add_argument("--work", type=Path, default=Path("runs/robust_digits"))
    parser.add_argument("--out", type=Path, default=RESULTS / "robust_digits.json")
    options = parser.parse_args()
    if not BASELINE.startswith(tuple(options.arms)):
        parser.error(f"--arms needs {BASELINE!r}, which the others are compared with")
    reports: list[EvaluationReport] = []
    for seed in options.seeds:
        reports.append(one_seed(seed, options))
        runs = [run for report in reports for run in report.runs]
        whole = reports[0].changed(runs=runs)
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        result = {
            "machine": machine(),
            "settings": {
                **settings,
                "seeds": options.seeds[: len(reports)],
                "work": "runs/robust_digits",
                "out": f"benchmarks/results/{options.out.name}",
                "classifiers": whole.settings,
            },
            "summary": summed_up(whole),
            "runs": [
                {
                    "arm": run.arm,
                    "seed": run.seed,
                    "clean": run.test_accuracy,
                    "robust": run.others["robust"].accuracy,
                    "robust_by_class": run.others["robust"].class_accuracies,
                    "seconds": run.seconds,
                }
                for run in runs
            ],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{whole.table()}\nWritten: {options.out}\n", flush=True)


if __name__ == "__main__":
    main()
