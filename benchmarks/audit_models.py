"""Generators that cannot have copied: how often does the audit raise an alarm over their images?

    python benchmarks/audit_models.py --runs runs/audit_models
    python benchmarks/audit_models.py --runs runs/mnist --data folder:mnist/train --images 4000

Real images are split at random into two halves. Diffusion models learn one half; their images are
audited against the other, which none has seen. That half is divided anew for every audit into
"training" and hold-out images, so that nothing but chance tells these two apart, while the audited
images are those of real generators: closer together, smoother or more typical than real images.

Five kinds of generators: good; trained for a tenth of the steps; the good one with 4 sampling
steps (smooth images); with guidance 5 (typical images); and one that learned a few images by heart
and draws these over and over (collapsed). Every audit is a line of a file, and a run that was
stopped goes on where it was. `results/audit_models.json` says how often audits failed wrongly or
asked wrongly to look, with one-sided 95 % limits, and how often a shift was named.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from _audit_memory import unplanted
from _machine import summary, write
from audit_copies import limits
from audit_level import natural_twins
from numpy.typing import NDArray

from synthaug import ClassConditional, TrainingConfig, audit, generate, load_dataset
from synthaug._audit.decisions import LEVEL
from synthaug._audit.tiers import NAMED

KINDS = {  # training images of all, share of the steps, sampling steps, guidance
    "good": (1.0, 1.0, 12, 1.0),
    "short training": (1.0, 0.1, 12, 1.0),
    "smooth, 4 sampling steps": (1.0, 1.0, 4, 1.0),
    "guided, scale 5": (1.0, 1.0, 12, 5.0),
    "collapsed": (0.02, 0.5, 12, 1.0),
}


def drawn(kind: str, half: int, learned: Any, args: Any) -> NDArray[np.uint8]:
    """Images of one kind of generator that learned one half, uint8 (n, C, H, W)."""
    share, steps, sampling, guidance = KINDS[kind]
    name = f"{half}-{share}-{steps}"
    folder = Path(args.runs) / name
    config = TrainingConfig(
        steps=round(steps * args.steps),
        batch_size=64,
        learning_rate=1e-3,
        decay_steps=round(steps * args.steps) // 3,
        ema_decay=0.998 if steps > 0.1 else 0.98,
        device="cpu",
        seed=half,
    )
    few = learned.subset(np.sort(_first_of_each_class(learned.labels, share)))
    model, _ = ClassConditional.fit(few, folder, channels=args.channels, config=config)
    model = model.with_settings(scheduler="dpmsolver++", num_inference_steps=sampling)
    plan = model.plan(per_class=args.per_class, guidance_scale=guidance, seed=half)
    path = folder.with_name(f"{name}-{sampling}-{guidance}.h5")
    cache = generate(model, plan, str(path))
    return np.asarray(cache.read(np.arange(len(cache))))


def _first_of_each_class(labels: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Rows of a share of each class, which no class is left without."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([of_class[: max(1, round(share * len(of_class)))] for of_class in rows])


def audits(args: Any, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Audits that were not done yet, the kinds in turn."""
    real = load_dataset(args.data)
    for half in range(args.halves):
        order = np.random.default_rng([args.seed, half]).permutation(len(real))[: args.images]
        learned, other = (real.subset(np.sort(part)) for part in np.array_split(order, 2))
        unseen = np.asarray(other.read(np.arange(len(other))))
        pools = {kind: drawn(kind, half, learned, args) for kind in KINDS}
        for number in range(half, args.audits, args.halves):
            for kind, pool in pools.items():
                if (kind, number) not in done:
                    yield {"kind": kind, "number": number, "half": half} | audited(
                        pool, unseen, np.random.default_rng([args.seed, 1, number]), args
                    )


def audited(
    pool: NDArray[np.uint8], unseen: NDArray[np.uint8], rng: Any, args: Any
) -> dict[str, Any]:
    """Audits some generated images, with images that no generator has seen."""
    real = unseen[rng.permutation(len(unseen))]
    train, holdout = real[: len(real) * 3 // 5], real[len(real) * 3 // 5 :]
    synthetic = pool[rng.choice(len(pool), args.synthetic, replace=False)]
    start = time.perf_counter()
    report = audit(synthetic, train, holdout=holdout, deduplicate=True, max_pairs=0, progress=False)
    seconds = round(time.perf_counter() - start, 2)
    twins = natural_twins(synthetic, train, photos=False)
    named, tests = report.tier == NAMED, cast(Any, report.set_test)
    return {
        "verdict": report.verdict,
        "flagged": len(report.flagged),
        "wrongly_failed": report.verdict == "fail" and not twins[report.flagged].all(),
        "wrongly_looked": bool(named.any() and not twins[named].all()),
        "withheld": len(report.withheld),
        "leaning": bool(report.competition.get("leaning")),
        "shifted": bool(report.shift.get("shifted")),
        "p_values": {name: test["p_value"] for name, test in tests.items()},
        "sizes": [len(train), len(holdout), len(synthetic)],
        "seconds": seconds,
    }


def summed_up(lines: list[dict[str, Any]], fdr: float) -> dict[str, Any]:
    """False alarms of each kind of generator and of all."""
    result: dict[str, Any] = {}
    for kind in ("all", *KINDS):
        of_kind = [line for line in lines if kind in ("all", line["kind"])]
        if not of_kind:
            continue
        total = len(of_kind)
        failed = limits(sum(line["wrongly_failed"] for line in of_kind), total)
        looked = limits(sum(line["wrongly_looked"] for line in of_kind), total)
        verdicts = [line["verdict"] for line in of_kind]
        result[kind] = {
            "audits": total,
            "verdicts": {v: verdicts.count(v) for v in ("pass", "inconclusive", "fail")},
            "wrongly_failed": failed,
            "at_most_fdr": failed["at least"] <= fdr,
            "wrongly_looked": looked,
            "at_most_level": looked["at least"] <= LEVEL,
            "shifted": sum(line["shifted"] for line in of_kind),
            "leaning": sum(line["leaning"] for line in of_kind),
            "withheld": summary([line["withheld"] for line in of_kind]),
            "seconds": summary([line["seconds"] for line in of_kind]),
        }
    return result


def main() -> None:
    """Runs and writes `results/audit_models.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", metavar="SPEC")
    parser.add_argument("--runs", required=True, metavar="FOLDER", help="for models and records")
    parser.add_argument("--result", default="audit_models", help="name of the result")
    parser.add_argument("--images", type=int, default=1797, help="real images, both halves")
    parser.add_argument("--halves", type=int, default=2, help="how often the images are halved")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=16, help="width of the networks")
    parser.add_argument("--per-class", type=int, default=60, help="images drawn of each class")
    parser.add_argument("--audits", type=int, default=60, help="of each kind of generator")
    parser.add_argument("--synthetic", type=int, default=200, help="audited images")
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    records = Path(args.runs) / "audits.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(x) for x in records.read_text().splitlines()] if records.exists() else []
    with unplanted(), records.open("a") as file:
        for line in audits(args, {(line["kind"], line["number"]) for line in lines}):
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{line['number']:4} {line['kind']:26}{line['verdict']}", flush=True)
    settings = {**vars(args), "runs": Path(args.runs).name}
    print(write(args.result, {"settings": settings, "kinds": summed_up(lines, args.fdr)}))


if __name__ == "__main__":
    main()
