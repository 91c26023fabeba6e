"""Honest images: how often does the audit raise an alarm where nothing was copied?

    python benchmarks/audit_level.py --cifar10 folder:cifar10/train --mnist folder:mnist/train
    python benchmarks/audit_level.py --cifar10 folder:cifar10/train --quick

Real images are divided at random into training, hold-out and "synthetic" ones, many times, in the
scenarios below. Every division is audited and is a line of a file; a run that was stopped goes on
where it was. An alarm that rests only on natural twins, images that are a training image but for
what nobody sees, is neither right nor wrong. They are listed by comparing all pixels with all, not
by the audit. `results/audit_level.json` says of every scenario how often the audit failed wrongly
and how often it doubted, and whether the one-sided 95 % limit excludes the level that it promises.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _audit_memory import remembered, unplanted
from _machine import summary, write
from audit_copies import limits
from numpy.typing import NDArray

from synthaug import audit, load_dataset
from synthaug._audit.decisions import LEVEL
from synthaug._audit.tiers import NAMED

Images = NDArray[np.uint8]

TWIN_RMSE = 6.0
"""Up to this root mean square difference, in gray levels, nobody tells two images apart."""

TWIN_CORRELATION = 0.96
"""Photos that correlate so well show one scene; drawings of one digit may be as much alike."""

TRAINING_SETS = 5
"""Sets of training images over all divisions: the chance of one is not that of all."""


@dataclass(frozen=True)
class Division:
    """Training, hold-out and honest images."""

    train: Images
    holdout: Images
    honest: Images


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Where honest images come from, and what happens to them."""

    name: str
    data: str
    """"digits", or one of the command's data sets."""
    choose: Callable[[NDArray[np.int64], Any], NDArray[np.int64]]
    """Takes labels and a random generator, returns the rows that take part."""
    prepare: Callable[[Images, Any], Images] = lambda images, rng: images
    """Changes all images before they are divided."""
    finish: Callable[[Division, Any], Division] = lambda division, rng: division
    """Changes them afterwards."""
    photos: bool = False
    """Whether images that correlate highly are natural twins."""


def everything(labels: NDArray[np.int64], rng: Any) -> NDArray[np.int64]:
    return rng.permutation(len(labels))


def one_class(labels: NDArray[np.int64], rng: Any) -> NDArray[np.int64]:
    return rng.permutation(np.flatnonzero(labels == rng.choice(np.unique(labels))))


def long_tail(labels: NDArray[np.int64], rng: Any) -> NDArray[np.int64]:
    """Each class has two thirds of the images of the class before."""
    classes = rng.permutation(np.unique(labels))
    shares = (2 / 3) ** np.arange(len(classes))
    weights = np.zeros(labels.max() + 1)
    weights[classes] = shares
    kept = rng.random(len(labels)) < weights[labels]
    return rng.permutation(np.flatnonzero(kept))


def with_repeats(images: Images, rng: Any) -> Images:
    """A fifth of the images is there three times."""
    repeated = images[: len(images) // 5]
    together = np.concatenate([images[: len(images) * 3 // 5], repeated, repeated])
    return together[rng.permutation(len(together))]


def with_blanks(images: Images, rng: Any) -> Images:
    """One image in twenty is of one gray level, one of a few."""
    changed = images.copy()
    blank = rng.random(len(images)) < 0.05
    levels = rng.choice([0, 127, 250, 255], int(blank.sum()))
    changed[blank] = levels[:, None, None, None]
    return changed


def repeated_holdout(division: Division, rng: Any) -> Division:
    """The hold-out is a fifth of its images, each five times."""
    few = division.holdout[: len(division.holdout) // 5]
    return Division(division.train, np.repeat(few, 5, axis=0), division.honest)


def holdout_with_twins(division: Division, rng: Any) -> Division:
    """One hold-out image in fifty is a training image that was hardly changed."""
    holdout = division.holdout.copy()
    count = len(holdout) // 50
    of_train = division.train[rng.choice(len(division.train), count, replace=False)]
    noise = rng.normal(5, 3, of_train.shape)
    holdout[:count] = (of_train + noise).round().clip(0, 255).astype(np.uint8)
    return Division(division.train, holdout, division.honest)


SCENARIOS = (
    Scenario(name="digits", data="digits", choose=everything),
    Scenario(name="MNIST", data="mnist", choose=everything),
    Scenario(name="CIFAR-10", data="cifar10", choose=everything, photos=True),
    Scenario(name="MNIST, one class", data="mnist", choose=one_class),
    Scenario(name="CIFAR-10, one class", data="cifar10", choose=one_class, photos=True),
    Scenario(name="CIFAR-10, imbalanced", data="cifar10", choose=long_tail, photos=True),
    Scenario(
        name="CIFAR-10, images repeated",
        data="cifar10",
        choose=everything,
        prepare=with_repeats,
        photos=True,
    ),
    Scenario(
        name="CIFAR-10, blank images",
        data="cifar10",
        choose=everything,
        prepare=with_blanks,
        photos=True,
    ),
    Scenario(
        name="CIFAR-10, hold-out repeated",
        data="cifar10",
        choose=everything,
        finish=repeated_holdout,
        photos=True,
    ),
    Scenario(
        name="CIFAR-10, twins in the hold-out",
        data="cifar10",
        choose=everything,
        finish=holdout_with_twins,
        photos=True,
    ),
)


def natural_twins(images: Images, train: Images, *, photos: bool) -> NDArray[np.bool_]:
    """Returns a mask of the images that equal a training image, but for invisible changes, (n,)."""
    pixels, real = (torch.from_numpy(x).flatten(1).float() for x in (images, train))
    mirrored = torch.from_numpy(images[..., ::-1].copy()).flatten(1).float()
    twins = torch.zeros(len(images), dtype=torch.bool)
    for shown in (pixels, mirrored):
        far = torch.cdist(shown, real, compute_mode="donot_use_mm_for_euclid_dist")
        twins |= (far / pixels.shape[1] ** 0.5).amin(dim=1) <= TWIN_RMSE
        if photos:
            twins |= (_normalized(shown) @ _normalized(real).T).amax(dim=1) >= TWIN_CORRELATION
    return twins.numpy()


def _normalized(flat: torch.Tensor) -> torch.Tensor:
    centered = flat - flat.mean(dim=1, keepdim=True)
    return centered / centered.norm(dim=1, keepdim=True).clamp(min=1e-3)


def divided(scenario: Scenario, number: int, args: Any) -> Division:
    """Division number `number` of a scenario: training images change after some divisions."""
    images, labels = _loaded(vars(args)[scenario.data])
    of_set = np.random.default_rng([args.seed, _training_set(number, args.divisions)])
    rows = scenario.choose(labels, of_set)
    parts = np.array([args.train, args.holdout, args.synthetic])
    if len(rows) < parts.sum():
        parts = parts * len(rows) // parts.sum()
    # Some more than are needed, so that not all honest images are audited every time.
    prepared = scenario.prepare(images[rows[: 3 * parts.sum()]], of_set)
    train, pool = np.split(prepared, parts[:1])
    rng = np.random.default_rng([args.seed, 1, number])
    drawn = pool[: 2 * parts[1:].sum()]
    drawn = drawn[rng.permutation(len(drawn))][: parts[1:].sum()]
    return scenario.finish(Division(train, drawn[: parts[1]], drawn[parts[1] :]), rng)


@cache
def _loaded(spec: str) -> tuple[Images, NDArray[np.int64]]:
    real = load_dataset(spec)
    return np.asarray(real.read(np.arange(len(real)))), np.asarray(real.labels)


def audited(scenario: Scenario, number: int, args: Any) -> dict[str, Any]:
    """Returns the audit's results for a division that count here."""
    division = divided(scenario, number, args)
    start = time.perf_counter()
    report = audit(
        division.honest,
        division.train,
        holdout=division.holdout,
        fdr=args.fdr,
        deduplicate=True,
        max_pairs=0,
        progress=False,
    )
    seconds = round(time.perf_counter() - start, 2)
    twins = natural_twins(division.honest, division.train, photos=scenario.photos)
    flagged = report.flagged
    wrong = int((~twins[flagged]).sum())
    return {
        "verdict": report.verdict,
        "flagged": len(flagged),
        "twins": int(twins.sum()),
        "twins_flagged": len(flagged) - wrong,
        "wrongly_failed": report.verdict == "fail" and wrong > 0,
        "wrongly_looked": bool(
            (report.tier == NAMED).any() and not twins[report.tier == NAMED].all()
        ),
        "withheld": len(report.withheld),
        "leaning": bool(report.competition.get("leaning")),
        "shifted": bool(report.shift.get("shifted")),
        "reasons": report.reasons[:2],
        "sizes": [len(division.train), len(division.holdout), len(division.honest)],
        "seconds": seconds,
    }


def run(args: Any, records: Path) -> list[dict[str, Any]]:
    """All audits that are not among the records yet; returns every record."""
    lines = [json.loads(x) for x in records.read_text().splitlines()] if records.exists() else []
    done = {(line["scenario"], line["number"]) for line in lines}
    chosen = [s for s in SCENARIOS if vars(args)[s.data] and s.name in (args.only or [s.name])]
    end = time.monotonic() + 60 * args.minutes
    with remembered() as memory, unplanted(), records.open("a") as file:
        for number, scenario, new_set in _in_turn(chosen, args.divisions):
            if new_set:
                memory.clear()
            if (scenario.name, number) in done:
                continue
            if time.monotonic() > end:
                return lines
            line = {"scenario": scenario.name, "number": number}
            line |= audited(scenario, number, args)
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(
                f"{number:4} {scenario.name:34}{line['verdict']:13} {line['seconds']:.0f} s",
                flush=True,
            )
    return lines


def _in_turn(chosen: Sequence[Scenario], divisions: int) -> Iterator[tuple[int, Scenario, bool]]:
    """Divisions, with whether one has other training images than that before.

    All divisions of one training set come together, for what is remembered; all scenarios take
    turns, for a run that is stopped.
    """
    for _, numbers in groupby(range(divisions), lambda number: _training_set(number, divisions)):
        of_set = list(numbers)
        for scenario in chosen:
            yield from ((number, scenario, number == of_set[0]) for number in of_set)


def _training_set(number: int, divisions: int) -> int:
    return number * TRAINING_SETS // divisions


def summed_up(lines: Sequence[dict[str, Any]], fdr: float) -> dict[str, Any]:
    """False alarms of every scenario, and whether they exclude what is promised."""
    result: dict[str, Any] = {}
    for name in dict.fromkeys(line["scenario"] for line in lines):
        of_name = [line for line in lines if line["scenario"] == name]
        total = len(of_name)
        failed = limits(sum(line["wrongly_failed"] for line in of_name), total)
        looked = limits(sum(line["wrongly_looked"] for line in of_name), total)
        verdicts = [line["verdict"] for line in of_name]
        result[name] = {
            "divisions": total,
            "verdicts": {v: verdicts.count(v) for v in ("pass", "inconclusive", "fail")},
            "wrongly_failed": failed,
            "at_most_fdr": failed["at least"] <= fdr,
            "wrongly_looked": looked,
            "at_most_level": looked["at least"] <= LEVEL,
            "withheld": summary([line["withheld"] for line in of_name]),
            "inconclusive": limits(verdicts.count("inconclusive"), total),
            "leaning": limits(sum(line["leaning"] for line in of_name), total),
            "shifted": sum(line["shifted"] for line in of_name),
            "natural_twins": sum(line["twins"] for line in of_name),
            "twins_flagged": sum(line["twins_flagged"] for line in of_name),
            "sizes": of_name[0]["sizes"],
            "seconds": summary([line["seconds"] for line in of_name]),
        }
    return result


def main() -> None:
    """Runs and writes `results/audit_level.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", metavar="SPEC")
    parser.add_argument("--mnist", metavar="SPEC")
    parser.add_argument("--digits", default="digits", metavar="SPEC")
    parser.add_argument("--records", default="audit_level.jsonl", metavar="FILE")
    parser.add_argument("--result", default="audit_level", help="name of the result")
    parser.add_argument("--divisions", type=int, default=500, help="of every scenario")
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--holdout", type=int, default=1000)
    parser.add_argument("--synthetic", type=int, default=250)
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scenarios only")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--quick", action="store_true", help="10 divisions of small sets")
    args = parser.parse_args()
    if args.quick:
        args.divisions, args.train, args.holdout, args.synthetic = TRAINING_SETS, 300, 400, 100

    lines = run(args, Path(args.records))
    print(write(args.result, {"settings": vars(args), "scenarios": summed_up(lines, args.fdr)}))


if __name__ == "__main__":
    main()
