"""One step of noise and denoising as augmentation: accuracy on corrupted digits.

    python benchmarks/denoise_once.py --seeds 0 1 2 3 4

A seed is another choice of 300 labeled digits, another generator trained on them alone, and other
classifiers. All arms make equally many optimizer steps on the same images; they differ in the
augmentation. They are tested on digits of other writers, clean and under the corruptions of
`synthaug.evaluation.corruptions`, of which none occurs in training.

Generators are kept by seed in --work, those of robust_digits.py are used if it is the same folder:
run again after a kill, it goes on where it was. Writes --out anew after each seed.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _machine import RESULTS, machine
from robust_digits import labeled_part, spread, train_generator

from synthaug import evaluate, load_dataset
from synthaug.evaluation import (
    AffineAugment,
    Arm,
    Chain,
    ClassifierConfig,
    EvaluationReport,
    corruptions,
)
from synthaug.evaluation._augment import AugmentName, named_augment
from synthaug.transforms import DenoiseOnce

BASELINE = "trivialaugment"


def arms_of(real: Any, model: Any, ranges: list[list[float]]) -> dict[str, Any]:
    """Makes arms: augmentations without a generator, and `DenoiseOnce` after two of them."""
    names: tuple[AugmentName, ...] = ("affine", "randaugment", "trivialaugment")
    arms: dict[str, Any] = {"none": Arm(real)}
    arms |= {name: Arm(real, augment=name) for name in names}
    size = real.read([0]).shape[1:]
    first: dict[str, Any] = {
        "affine": AffineAugment(),
        "trivialaugment": named_augment("trivialaugment", size, horizontal_flip=False),
    }
    for low, high in ranges:
        denoise = DenoiseOnce(model, t_range=(low, high), p=0.5)
        for name, augment in first.items():
            arms[f"{name}, denoised once, t {low:g} to {high:g}"] = Arm(
                real, augment=Chain(steps=(augment, denoise))
            )
    return arms


def one_seed(seed: int, options: argparse.Namespace) -> EvaluationReport:
    folder = options.work / f"seed-{seed}"
    real = labeled_part(load_dataset(f"{options.data}:train"), options.per_class, seed)
    test = load_dataset(f"{options.data}:test")
    model = train_generator(real, folder, seed, options)
    return evaluate(
        arms_of(real, model, options.ranges),
        test={"clean": test, **corruptions(test)},
        seeds=[seed],
        config=ClassifierConfig(
            steps=options.steps, batch_size=64, device="cpu", precision="float32"
        ),
        baseline=BASELINE,
        output_dir=folder / "denoise_once",
    )


def summed_up(report: EvaluationReport) -> dict[str, Any]:
    """Sums up accuracies, calibration and gains by arm."""
    corrupted = report.results
    kinds = sorted({name.rsplit(" ", 1)[0] for name in corrupted})
    summary: dict[str, Any] = {}
    for arm in report.arm_names:
        figures: dict[str, Any] = {
            "clean": spread(report.accuracies(arm)),
            "corrupted": spread(report.accuracies(arm, corrupted)),
            "calibration_error": spread(report.calibration_errors(arm)),
        }
        for kind in kinds:
            names = [name for name in corrupted if name.startswith(kind + " ")]
            figures[f"corrupted, {kind}"] = spread(report.accuracies(arm, names))
        first = arm.partition(", denoised")[0]
        for other in {BASELINE, first} - {arm}:
            for name, result in (("clean", None), ("corrupted", corrupted)):
                gain = report.difference(arm, other, result=result)
                figures[f"{name}, gain over {other}"] = asdict(gain)
        summary[arm] = figures
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="digits", help="what ':train' and ':test' are added to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--per-class", type=int, default=30, help="labeled images")
    parser.add_argument("--steps", type=int, default=800, help="of each classifier")
    parser.add_argument("--generator-steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=16, help="of the generator")
    parser.add_argument(
        "--range",
        dest="ranges",
        type=float,
        nargs=2,
        action="append",
        help="timesteps, as shares of the noise schedule; may be given several times",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/robust_digits"))
    parser.add_argument("--out", type=Path, default=RESULTS / "denoise_once.json")
    options = parser.parse_args()
    options.ranges = options.ranges or [[0.1, 0.5], [0.3, 0.7]]
    reports: list[EvaluationReport] = []
    for seed in options.seeds:
        reports.append(one_seed(seed, options))
        whole = reports[0].changed(runs=[run for report in reports for run in report.runs])
        result = {
            "machine": machine(),
            "settings": {
                **vars(options),
                "seeds": options.seeds[: len(reports)],
                "work": "runs/robust_digits",
                "out": "benchmarks/results/denoise_once.json",
                "classifiers": whole.settings,
            },
            "summary": summed_up(whole),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{whole.table()}\nWritten: {options.out}\n", flush=True)


if __name__ == "__main__":
    main()
