"""Draws what the audit's benchmarks measured, from the JSON that they wrote.

python benchmarks/audit_plots.py
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from _inversion import plot
from _machine import RESULTS


def read(name: str) -> dict[str, Any]:
    """`results/NAME.json`."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def copies(axes: Any) -> None:
    """How often copies of kinds that the audit does not know are noticed, by their number."""
    kinds: Mapping[str, Any] = read("audit_copies")["kinds"]
    at = np.arange(len(kinds))
    counts = sorted({int(count) for found in kinds.values() for count in found})
    for i, count in enumerate(counts):
        values = [found[str(count)]["noticed"]["share"] for found in kinds.values()]
        height = 0.8 / len(counts)
        axes.barh(at + height * (i - (len(counts) - 1) / 2), values, height, label=f"{count}")
    axes.set_yticks(at, list(kinds), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of audits that did not pass")
    axes.legend(title="copies", fontsize=8, loc="lower left")


def overfit(axes: Any) -> None:
    """A generator trained on few images beside one trained on all."""
    models: Mapping[str, Any] = read("audit_overfit")["models"]
    names = [f"trained on {m['train']:,} images: {m['verdict']}" for m in models.values()]
    rows = {
        "flagged": [m["flagged"] / m["synthetic"] for m in models.values()],
        "clusters nearest to training": [m["competition"]["share"] for m in models.values()],
        "the same, by chance": [m["competition"]["expected_share"] for m in models.values()],
    }
    at = np.arange(len(names))
    for i, (label, values) in enumerate(rows.items()):
        axes.bar(at + 0.27 * (i - 1), values, width=0.25, label=label)
    axes.set_xticks(at, names, fontsize=8)
    axes.set_ylabel("share")
    axes.legend(fontsize=8)


def speed(axes: Any) -> None:
    """Search for neighbors: time as a multiple of the matrix product's."""
    found = read("audit_speed")
    dims = list(found["search"])
    ways = [n for n, r in found["search"][dims[0]].items() if isinstance(r, dict)]
    at = np.arange(len(dims))
    for i, way in enumerate(ways):
        values = [found["search"][d][way]["to floor"] for d in dims]
        axes.bar(at + 0.16 * (i - len(ways) / 2), values, width=0.15, label=way)
    axes.axhline(1, color="gray", linestyle=":")
    axes.set_xticks(at, [f"{d} dimensions" for d in dims])
    settings = found["settings"]
    sizes = f"{settings['queries']:,} against {settings['database']:,}"
    axes.set_ylabel(f"time to the bare matrix product ({sizes})", fontsize=8)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for draw, size in ((copies, (7, 8.0)), (overfit, (7, 4)), (speed, (7, 4))):
        print("Written:", plot(f"audit_{draw.__name__}", draw, size))
