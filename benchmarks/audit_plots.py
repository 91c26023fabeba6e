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


def nulls(axes: Any) -> None:
    """How often anything is flagged among images that copy nothing, beside the nominal rate."""
    found = read("audit_nulls")
    bars: dict[str, tuple[float, str]] = {}
    for space, rates in found["calibrated"].items():
        bars[f"calibrated: {space.removesuffix('.pt')}"] = (rates["any flagged at 0.1"], "C0")
    for images, rates in found["competition"].items():
        bars[f"competition: {images}"] = (rates["any found at 0.1"], "C1")
        bars[f"share test: {images}"] = (rates["share test at 0.05"], "C2")
    values = [value for value, _ in bars.values()]
    axes.barh(range(len(bars)), values, color=[colour for _, colour in bars.values()])
    axes.set_yticks(range(len(bars)), list(bars), fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0.1, color="grey", linestyle="--", label="nominal: flags, competition")
    axes.axvline(0.05, color="grey", linestyle=":", label="nominal: share test")
    axes.set_xlabel(f"share of {found['settings']['splits']} divisions with an alarm")
    axes.legend(fontsize=7)


def power(axes: Any) -> None:
    """Copies found, by what was done to them."""
    found = read("audit_power")
    kinds = list(found["power"])
    at = np.arange(len(kinds))
    for name, shift, label in (("proposed", 0.2, "among the candidates"), ("power", -0.2, "found")):
        axes.barh(at - shift, [found["power"][k][name] for k in kinds], height=0.4, label=label)
    axes.set_yticks(at, kinds, fontsize=8)
    axes.invert_yaxis()
    settings = found["settings"]
    copies = f"{settings['copies']} copies among {settings['synthetic']:,} images"
    axes.set_xlabel(f"share of {copies}, mean of {settings['divisions']} divisions")
    axes.legend(fontsize=8, loc="lower left")


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
    """Search for neighbours: time as a multiple of the matrix product's."""
    found = read("audit_speed")
    dims = list(found["search"])
    ways = [n for n, r in found["search"][dims[0]].items() if isinstance(r, dict)]
    at = np.arange(len(dims))
    for i, way in enumerate(ways):
        values = [found["search"][d][way]["to floor"] for d in dims]
        axes.bar(at + 0.16 * (i - len(ways) / 2), values, width=0.15, label=way)
    axes.axhline(1, color="grey", linestyle=":")
    axes.set_xticks(at, [f"{d} dimensions" for d in dims])
    settings = found["settings"]
    sizes = f"{settings['queries']:,} against {settings['database']:,}"
    axes.set_ylabel(f"time to the bare matrix product ({sizes})", fontsize=8)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for draw, size in ((nulls, (7, 5.0)), (power, (7, 5.5)), (overfit, (7, 4)), (speed, (7, 4))):
        print("Written:", plot(f"audit_{draw.__name__}", draw, size))
