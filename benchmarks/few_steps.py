"""Fréchet distance by network evaluations: velocity, flow, and students that were distilled.

    python benchmarks/few_steps.py
    python benchmarks/few_steps.py --rows velocity:dpmsolver++:10 student:ddim:3 student:ddim:1
    python benchmarks/few_steps.py --data folder:mnist/train --image-size 16 --width 16 \
        --steps 3000 --student-steps 1500 --work runs/few_steps_mnist --out few_steps_mnist.json

For each seed two networks are trained alike, one predicts the velocity, one the flow, and students
of one, two and three steps are distilled from the first. All of them draw one plan; its images are
compared with all real ones in the features named. Heun's method evaluates the network twice per
step but the last: it takes the most steps that the number of evaluations allows. Images per second
are per second of processor time.

Networks are kept in --work and every row in --out: run again after a kill, it goes on.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from _machine import RESULTS, machine

from synthaug import ClassConditional, SamplerConfig, TrainingConfig, load_dataset
from synthaug._pixels import to_pixels
from synthaug.features import extract, named
from synthaug.images import LabeledImages
from synthaug.metrics import frechet_distance
from synthaug.synthesizers import DistillationConfig

BUDGETS = (3, 5, 10, 20)
HEUN = "FlowMatchHeunDiscreteScheduler"


@dataclass(frozen=True)
class Way:
    """A network, a sampler, and how many evaluations an image may take."""

    network: str
    scheduler: str
    budget: int

    def __str__(self) -> str:
        return f"{self.network}:{self.scheduler}:{self.budget}"

    @property
    def sampler(self) -> SamplerConfig:
        """Heun's method: n steps are 2 n - 1 evaluations."""
        steps = (self.budget + 1) // 2 if self.scheduler == HEUN else self.budget
        return SamplerConfig(scheduler=self.scheduler, num_inference_steps=steps)


def ways() -> Iterator[Way]:
    """Lists all rows of a seed."""
    for network, schedulers, budgets in (
        ("velocity", ("ddim",), (50,)),
        ("student", ("ddim",), (3, 2, 1)),
        ("velocity", ("dpmsolver++", "ddim"), BUDGETS),
        ("flow", ("ddim", HEUN, "dpmsolver++"), BUDGETS),
    ):
        for scheduler in schedulers:
            for budget in budgets:
                yield Way(network, scheduler, budget)


def network(way: Way, real: LabeledImages, seed: int, options: Any) -> ClassConditional:
    """Trains the network of a row, or takes it from where it was kept."""
    folder = options.work / f"seed-{seed}"
    common: dict[str, Any] = {"device": "cpu", "precision": "float32", "seed": seed}
    common |= {"batch_size": options.batch_size, "learning_rate": options.learning_rate}

    def config(steps: int) -> TrainingConfig:
        return TrainingConfig(steps=steps, decay_steps=steps // 2, **common)

    if way.network == "student":
        teacher = network(Way("velocity", "ddim", 50), real, seed, options)
        few = DistillationConfig(evaluations=way.budget, teacher_steps=12 // way.budget)
        student, _ = teacher.distill(
            real, folder / f"student-{way.budget}", few, config=config(options.student_steps)
        )
        return student
    kind = {"velocity": "v_prediction", "flow": "flow"}[way.network]
    model, _ = ClassConditional.fit(
        real,
        folder / way.network,
        config=config(options.steps),
        channels=options.width,
        prediction_type=kind,
    )
    return replace(model, sampler=way.sampler)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of every way over the seeds that are there."""
    table = []
    for way in ways():
        chosen = [row for row in rows if [row[k] for k in vars(way)] == list(vars(way).values())]
        if not chosen:
            continue
        distances = [row["frechet"] for row in chosen]
        table.append(
            {
                **vars(way),
                "evaluations": chosen[0]["evaluations"],
                "frechet": distances,
                "mean": mean(distances),
                "spread": stdev(distances) if len(distances) > 1 else None,
                "images_per_second": mean(row["images_per_second"] for row in chosen),
            }
        )
    return table


def main() -> None:
    """Trains, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rows", nargs="+", choices=list(map(str, ways())), metavar="ROW")
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--work", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--out", type=Path, default=RESULTS / "few_steps.json")
    options = parser.parse_args()
    real = load_dataset(options.data, image_size=options.image_size)
    extractor = named(options.features, device=torch.device("cpu"))
    features = extract(extractor, real.read(np.arange(len(real))))
    order = np.random.default_rng(0).permutation(len(real))
    halves = features[order[::2]], features[order[1::2]]
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for seed in options.seeds:
        for way in ways():
            key = {"seed": seed, **vars(way)}
            wanted = not options.rows or str(way) in options.rows
            if not wanted or any(key.items() <= row.items() for row in rows):
                continue
            model = network(way, real, seed, options)
            plan = model.plan(per_class=-(-options.images // len(real.classes)), seed=seed)
            started = time.process_time()
            drawn = torch.cat([to_pixels(model.draw(part)) for part in plan.batches(250)])
            seconds = time.process_time() - started
            distance = frechet_distance(extract(extractor, drawn), features)
            rate = len(drawn) / seconds
            evaluations = int(model.evaluations(plan[:1])[0])
            row = {**key, "evaluations": evaluations, "frechet": distance}
            rows.append({**row, "images_per_second": round(rate, 1)})
            print(rows[-1], flush=True)
            settings = {k: v for k, v in vars(options).items() if k not in ("work", "out", "rows")}
            result = {
                "machine": machine(),
                "settings": {**settings, "seeds": sorted({row["seed"] for row in rows})},
                "real_images": len(real),
                "real_to_real": frechet_distance(*halves),
                "rows": rows,
                "summary": summary(rows),
            }
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
