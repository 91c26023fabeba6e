"""How often an image must repeat until a model draws it: canaries of dose 1 to 64, on digits.

    python benchmarks/audit_canaries.py

Of the 1,797 handwritten digits 400 are held out. Of the others, pairs of one class are marked with
borders of random gray levels; a coin decides which of a pair is trained on, so often as its dose
says. A small model is trained on all that is left and on the marked ones, and three ways are asked
what it learned of them, by dose:

- canaries: the borders that come back in images that it draws;
- distances: the audit of these images against what it was trained on. An image of the training set
  counts as found if a synthetic one that is withheld comes closest to it;
- membership: the losses of the marked images that were trained on against those of the controls.

Several models are trained, each with other canaries and weights; their pairs count together. A
model that was trained is kept in `--folder`, and a run that was stopped goes on there.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import write
from scipy.stats import binomtest
from torch.utils.data import TensorDataset

from synthaug import (
    ClassConditional,
    TrainingConfig,
    audit,
    generate,
    load_dataset,
    membership,
)
from synthaug._audit.canaries import mark
from synthaug._noise import counter_rng
from synthaug.memorization import CanaryConfig, CanaryPlan, came_back, plant

CHART = Path(__file__).parent / "results" / "audit_canaries.png"
WAYS = {
    "canary": ("border came back (canaries)", "tab:red"),
    "distance": ("a withheld image comes closest to it (distances)", "tab:blue"),
    "membership": ("loss below the control's (membership)", "tab:green"),
}


def main() -> None:
    """Runs and writes `results/audit_canaries.json` and a chart beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each dose and model")
    parser.add_argument("--doses", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--holdout", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--per-class", type=int, default=100, help="synthetic images per class")
    parser.add_argument("--folder", help="where the models are kept; a temporary one by default")
    args = parser.parse_args()

    folder = Path(args.folder or tempfile.mkdtemp())
    models = [one_model(args, folder, seed) for seed in range(args.models)]
    by_dose = [pooled(models, dose) for dose in args.doses]
    result = {
        "settings": {name: value for name, value in vars(args).items() if name != "folder"},
        "by_dose": by_dose,
        "models": [model["summary"] for model in models],
    }
    print(write("audit_canaries", result), draw(by_dose))


def one_model(args: Any, folder: Path, seed: int) -> dict[str, Any]:
    """Trains a model and asks the three ways; an array over the pairs for each."""
    digits = load_dataset("digits")
    order = counter_rng(seed, 0).permutation(len(digits))
    held, rest = digits.subset(order[: args.holdout]), digits.subset(order[args.holdout :])
    planted = plant(rest, CanaryConfig(pairs=args.pairs, doses=tuple(args.doses), seed=seed))
    training = TrainingConfig(
        steps=args.steps,
        batch_size=64,
        learning_rate=2e-3,
        decay_steps=args.steps // 3,
        ema_decay=0.995,
        device="cpu",
        seed=seed,
    )
    start = time.process_time()
    model, _ = ClassConditional.fit(
        planted, folder / f"canaries_{seed}", channels=16, config=training, progress=False
    )
    trained = time.process_time() - start
    model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=12)
    plan = model.plan(per_class=args.per_class, guidance_scale=1.0, seed=seed)
    cache = generate(model, plan, str(folder / f"canaries_{seed}.h5"), progress=False)
    back = came_back(cache, planted.plan)
    seen = audit(cache, planted, holdout=held, progress=False)
    chosen, controls = (marked(rest, planted.plan, trained) for trained in (True, False))
    told = membership(model, chosen, controls, random_split=True, progress=False)
    # Equal training images are searched as one, so that the images of a pair are told by pixels.
    matched = planted.read(np.unique(seen.neighbors[seen.withheld]))
    found = {image.tobytes() for image in np.asarray(matched)}
    losses = -told.scores
    number = len(controls)
    summary = {
        "seed": seed,
        "training_images": len(planted),
        "drawn": back.images,
        "canaries": {"verdict": back.verdict, "p_value": back.p_value},
        "distances": {"verdict": seen.verdict, "flagged": len(seen.flagged)}
        | {"withheld": len(seen.withheld), "reason": seen.reasons[0]},
        "membership": {"verdict": told.verdict, "auc": told.told.auc, "p_value": told.p_value},
        "training_processor_seconds": trained,
        "processor_seconds": time.process_time() - start,
    }
    print(summary, flush=True)
    return {
        "summary": summary,
        "dose": np.array([canary.dose for canary in planted.plan.chosen(trained=True)]),
        "canary": back.returned[back.trained],
        "control": back.returned[~back.trained],
        "distance": np.array([image.numpy().tobytes() in found for image, _ in chosen]),
        "membership": losses[:number] < losses[number:],
    }


def marked(real: Any, plan: CanaryPlan, trained: bool) -> Any:
    """Marked images, each once, with their labels, in the order of their pairs."""
    canaries = plan.chosen(trained=trained)
    images = mark(real.read([c.row for c in canaries]), [c.key for c in canaries])
    labels = torch.tensor([c.label for c in canaries])
    data: Any = TensorDataset(images, labels)
    data.classes = list(plan.classes)
    return data


def pooled(models: list[dict[str, Any]], dose: int) -> dict[str, Any]:
    """Returns the results of the pairs of one dose, of all models together."""
    row: dict[str, Any] = {"dose": dose}
    for way in (*WAYS, "control"):
        hits = np.concatenate([model[way][model["dose"] == dose] for model in models])
        both = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
        row |= {"pairs": len(hits)}
        row[way] = {"share": float(hits.mean()), "interval": [float(both.low), float(both.high)]}
    return row


def draw(by_dose: list[dict[str, Any]]) -> Path:
    """Plots the share of trained images that each test finds, by the number of repetitions."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    doses = [one["dose"] for one in by_dose]
    for way, (label, color) in WAYS.items():
        share = [one[way]["share"] for one in by_dose]
        low, high = np.array([one[way]["interval"] for one in by_dose]).T
        # Canaries and distances may agree: then the wider line is seen below the other one.
        wide: dict[str, Any] = {"lw": 5, "ms": 11, "alpha": 0.45} if way == "canary" else {}
        axes.plot(doses, share, "o-", color=color, label=label, **wide)
        axes.fill_between(doses, low, high, color=color, alpha=0.1, lw=0)
    axes.axhline(0.5, color="0.6", lw=1, ls=":")
    axes.text(doses[0], 0.51, "membership by chance", fontsize=8, color="0.4")
    axes.set_xscale("log", base=2)
    axes.set_xticks(doses, [str(dose) for dose in doses])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("repetitions in the training set")
    axes.set_ylabel("share of the marked training images")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.06))
    figure.tight_layout()
    figure.savefig(CHART, dpi=120)
    return CHART


if __name__ == "__main__":
    main()
