"""Copies that no code of the audit knows: how many of thirty kinds does it notice, and flag?

    python benchmarks/audit_copies.py --data folder:cifar10/train
    python benchmarks/audit_copies.py --data folder:cifar10/train --quick

Copies of one kind (`audit_kinds.py`) are planted among honest images, real ones that stand for
synthetic ones, and audited. The same is done with the kinds of which the report itself says how
many would have been flagged, to compare what it claims with what comes true; and with no copies at
all, since an audit that doubts every set has noticed nothing. Every audit is a line of a file, and
a run that was stopped goes on where it was. Several parts of the data take turns as training,
hold-out and honest images. `results/audit_copies.json` sums the lines up.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _audit_memory import Memory, remembered, unplanted
from _machine import summary, write
from audit_kinds import KINDS, Kind
from audit_peers import Peers, by_audit, judged
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from synthaug import audit, features, load_dataset
from synthaug._audit.disturbances import disturbances

HONEST = "no copies"
OWN = "own: "
NOTICED_SHARE = 0.85
"""Share of the draws in which a kind must be noticed to count as such."""


def limits(hits: int, total: int) -> dict[str, float]:
    """A share with its one-sided 95 % limits, each on its own (Clopper and Pearson)."""
    both = binomtest(hits, total).proportion_ci(0.9)
    return {"share": hits / total, "at least": float(both.low), "at most": float(both.high)}


def mean_limits(values: Sequence[float]) -> dict[str, float]:
    """A mean share over draws; of several with one-sided 95 % limits by Student's t."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"mean": mean}
    half = float(t.ppf(0.95, n - 1) * np.std(values, ddof=1) / n**0.5)
    return {"mean": mean, "at least": max(0.0, mean - half), "at most": min(1.0, mean + half)}


class Part:
    """Training, hold-out and honest images of one division of the data.

    Args:
        images: uint8 (n, C, H, W), in random order.
        args: The command's arguments.
    """

    def __init__(self, images: NDArray[np.uint8], args: Any) -> None:
        if args.twins_by:
            images = without_twins(images, args)
        stops = np.cumsum([args.train, args.holdout, max(args.counts)])
        self.train, self.holdout, self.others, self.honest = np.split(images, stops)
        self.peers = Peers(self.train, self.holdout) if args.peers else None

    def plant(self, kind: Any, count: int, args: Any, draw: int) -> NDArray[np.uint8]:
        """Copies of `count` training images, first, and honest images to fill up."""
        rng = np.random.default_rng([args.seed, draw])
        originals = self.train[rng.choice(len(self.train), max(args.counts), replace=False)]
        honest = self.honest[rng.choice(len(self.honest), args.synthetic - count, replace=False)]
        if not count:
            return honest
        if isinstance(kind, Kind):
            copies = kind.apply(originals, self.others, draw)
        else:
            import torch

            copies = kind.apply(torch.from_numpy(originals), draw).numpy()
        return np.concatenate([copies[:count], honest])


def without_twins(images: NDArray[np.uint8], args: Any) -> NDArray[np.uint8]:
    """Leaves out hold-out and honest images that have a twin among the training images.

    A network that takes no part in the audit says so: the cosine of both features is at least
    `--twin`. So that it is known that what remains comes close to training images by chance alone.
    """
    import torch

    extractor = _extractor(args.twins_by)
    found = features.extract(extractor, torch.from_numpy(images), batch_size=64)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = (found[args.train :] @ found[: args.train].T).max(axis=1)
    kept = np.concatenate([np.ones(args.train, bool), cosine < args.twin])
    return images[kept]


def audited(part: Part, synthetic: NDArray[np.uint8], count: int, args: Any) -> dict[str, Any]:
    """Returns the audit's results for these images, of which the first `count` are copies."""
    start = time.perf_counter()
    report = audit(
        synthetic,
        part.train,
        holdout=part.holdout,
        features=[_extractor(name) for name in args.features],
        fdr=args.fdr,
        max_pairs=0,
        progress=False,
    )
    line: dict[str, Any] = {
        "verdict": report.verdict,
        "noticed": report.verdict != "pass",
        "flagged": int((report.flagged < count).sum()),
        "withheld": int((report.withheld < count).sum()),
        "others_withheld": int((report.withheld >= count).sum()),
        "others_flagged": int((report.flagged >= count).sum()),
        "smallest_effect": report.smallest_effect,
        "claims": {p.kind: [p.planted, p.power, p.noticed] for p in report.power},
        "first_reason": report.reasons[0],
        "seconds": round(time.perf_counter() - start, 2),
    }
    if part.peers is not None and count == args.counts[0]:
        ways = {"audit": by_audit(report), **part.peers.suspicions(synthetic)}
        is_copy = np.arange(len(synthetic)) < count
        line["peers"] = {name: judged(values, is_copy) for name, values in ways.items()}
        line["C_T p-value"] = part.peers.data_copying(synthetic)
    return line


def cases(kinds: Sequence[Kind], own: Sequence[Any], counts: Sequence[int]) -> Iterator[Any]:
    """Name, kind and number of copies of all audits of a draw."""
    yield HONEST, None, 0
    for count in counts:
        yield from ((kind.name, kind, count) for kind in kinds)
    # The report claims for as many copies as it must be able to see.
    yield from ((OWN + kind.name, kind, max(counts)) for kind in own)


def run(args: Any, records: Path) -> list[dict[str, Any]]:
    """All audits that are not among the records yet; returns every record."""
    lines = [json.loads(x) for x in records.read_text().splitlines()] if records.exists() else []
    done = {(line["draw"], line["kind"], line["count"]) for line in lines}
    real = load_dataset(args.data)
    needed = args.train + args.holdout + max(args.counts) + 2 * args.synthetic
    needed += args.synthetic if args.twins_by else 0  # in place of those that are left out
    if needed > len(real):
        raise SystemExit(f"{args.data} has {len(real):,} images, but {needed:,} are needed.")
    part, current, end = None, -1, time.monotonic() + 60 * args.minutes
    planting = nullcontext() if args.claims else unplanted()
    with remembered() as memory, planting, records.open("a") as file:
        for draw in range(args.draws):
            for name, kind, count in cases(*_kinds(args, real), args.counts):
                if (draw, name, count) in done:
                    continue
                if time.monotonic() > end:
                    return lines
                number = draw * args.divisions // args.draws
                if part is None or number != current:
                    part, current = _part(real, needed, number, args, memory), number
                found = audited(part, part.plant(kind, count, args, draw), count, args)
                line = {"draw": draw, "division": number, "kind": name, "count": count, **found}
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(
                    f"draw {draw}, {count:2} x {name:36} {found['verdict']:13}"
                    f"{found['flagged']:3} flagged, {found['seconds']:.0f} s",
                    flush=True,
                )
    return lines


@cache
def _extractor(name: str) -> Any:
    return features.named(name, trusted=True)


def _part(real: Any, needed: int, number: int, args: Any, memory: Memory) -> Part:
    memory.clear()
    order = np.random.default_rng([args.seed, 1, number]).permutation(len(real))[:needed]
    return Part(np.asarray(real.read(order)), args)


def _kinds(args: Any, real: Any) -> tuple[list[Kind], list[Any]]:
    shape = tuple(np.asarray(real.read(np.arange(1))).shape[1:])
    kinds = [kind for kind in KINDS if shape[0] == 3 or not kind.colors]
    own = disturbances(max(shape[1:]))
    return kinds[: args.kinds], own[: args.kinds] if args.claims else []


def summed_up(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the shares noticed, flagged and claimed, kind by kind."""
    honest = [line for line in lines if line["kind"] == HONEST]
    result: dict[str, Any] = {
        "audits": len(lines),
        "seconds_per_audit": summary([line["seconds"] for line in lines]),
        "honest": {
            "verdicts": _verdicts(honest),
            "noticed": limits(sum(line["noticed"] for line in honest), len(honest)),
            "flagged": summary([line["others_flagged"] for line in honest]),
            "withheld": summary([line["others_withheld"] for line in honest]),
        },
        "kinds": {},
        "claims": {},
    }
    names = dict.fromkeys(line["kind"] for line in lines if line["count"])
    for name in names:
        of_kind = [line for line in lines if line["kind"] == name]
        if name.startswith(OWN):
            result["claims"][name.removeprefix(OWN)] = _claim(name, of_kind)
            continue
        result["kinds"][name] = {
            str(count): _of_count([line for line in of_kind if line["count"] == count])
            for count in dict.fromkeys(line["count"] for line in of_kind)
        }
    result["goals"] = _goals(result["kinds"])
    # Only of unknown kinds: what the audit itself plants is no contest.
    peers = [line for line in lines if "peers" in line and not line["kind"].startswith(OWN)]
    if peers:
        result["peers"] = _peers(peers)
    return result


def _verdicts(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    verdicts = [line["verdict"] for line in lines]
    return {verdict: verdicts.count(verdict) for verdict in ("pass", "inconclusive", "fail")}


def _of_count(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shares, kept = (
        [line[what] / line["count"] for line in lines] for what in ("flagged", "withheld")
    )
    return {
        "draws": len(lines),
        "verdicts": _verdicts(lines),
        "noticed": limits(sum(line["noticed"] for line in lines), len(lines)),
        "any_flagged": limits(sum(line["flagged"] > 0 for line in lines), len(lines)),
        "share_flagged": summary(shares) | mean_limits(shares),
        "share_withheld": summary(kept) | mean_limits(kept),
        "others_flagged": float(np.mean([line["others_flagged"] for line in lines])),
    }


def _claim(name: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Claimed is above real if the mean of the claims exceeds what the flags may stand for.

    Copies of one draw are flagged together or not at all, so the upper limit is the larger one of
    that of all copies and that of the draws.
    """
    claimed = [line["claims"][name.removeprefix(OWN)] for line in lines]
    real = limits(sum(x["flagged"] for x in lines), sum(x["count"] for x in lines))
    of_draws = mean_limits([x["flagged"] / x["count"] for x in lines])
    for end, further in (("at least", min), ("at most", max)):
        real[end] = further(real[end], of_draws.get(end, real[end]))
    mean = float(np.mean([power for _, power, _ in claimed]))
    return {
        "draws": len(lines),
        "claimed_for": claimed[0][0],
        "planted": lines[0]["count"],
        "claimed": mean,
        "real": real,
        "claimed_above_real": mean > real["at most"],
    }


def _goals(kinds: dict[str, Any]) -> dict[str, Any]:
    """How many kinds are noticed and flagged, for every number of copies."""
    counts = dict.fromkeys(count for of_kind in kinds.values() for count in of_kind)
    goals = {}
    for count in counts:
        rows = [of_kind[count] for of_kind in kinds.values() if count in of_kind]
        goals[f"{count} copies"] = {
            "kinds": len(rows),
            "noticed": sum(row["noticed"]["share"] >= NOTICED_SHARE for row in rows),
            "any flagged": sum(row["any_flagged"]["share"] >= NOTICED_SHARE for row in rows),
            "half withheld": sum(row["share_withheld"]["mean"] >= 0.5 for row in rows),
            "half flagged": sum(row["share_flagged"]["mean"] >= 0.5 for row in rows),
            "mean share flagged": float(np.mean([row["share_flagged"]["mean"] for row in rows])),
        }
    return goals


def _peers(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of each way over kinds and draws."""
    result: dict[str, Any] = {"copies": lines[0]["count"], "audits": len(lines)}
    for name in lines[0]["peers"]:
        result[name] = {
            what: float(np.mean([line["peers"][name][what] for line in lines]))
            for what in ("average_precision", "found")
        }
    noticed = float(np.mean([line["C_T p-value"] <= 0.01 for line in lines]))
    return result | {"C_T, one cell": {"noticed at 0.01": noticed}}


def main() -> None:
    """Runs and writes `results/audit_copies.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--records", default="audit_copies.jsonl", metavar="FILE")
    parser.add_argument("--result", default="audit_copies", help="name of the result")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--holdout", type=int, default=4000, help="hold-out images")
    parser.add_argument("--synthetic", type=int, default=1000, help="audited images")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 25, 5])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--divisions", type=int, default=4, help="of the data, over all draws")
    parser.add_argument("--features", nargs="+", default=["pixels"], help="of `features.named`")
    parser.add_argument("--twins-by", metavar="NAME", help="features that name natural twins")
    parser.add_argument("--twin", type=float, default=0.9, help="cosine from which on they do")
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="the first so many only")
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--claims", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="small sets, 1 draw, 10 copies")
    args = parser.parse_args()
    if args.quick:
        args.train, args.holdout, args.synthetic = 1000, 1000, 250
        args.counts, args.draws, args.divisions = [10], 1, 1

    lines = run(args, Path(args.records))
    print(write(args.result, {"settings": vars(args), **summed_up(lines)}))


if __name__ == "__main__":
    main()
