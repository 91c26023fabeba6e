"""How far are variants from their source? Distances in feature space, and how they grow.

    python benchmarks/inversion_variants.py runs/tokens --pretrained-on "CIFAR-100, half" \
        --features mobilenet_v2_96.pt

For some images of every class: the distance from the image to its variant without noise or
interpolation, beside the distances to another image of its class at random, and to the nearest of
all those. Then the same for growing noise, interpolation and guidance, and how far the variants of
one image are from each other.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _inversion import (
    common_arguments,
    config_of,
    draw_pixels,
    facts,
    first_per_class,
    fitting,
    inverted,
    plot,
    sampling,
)
from _machine import write

from synthaug.features import extract, named


def quantiles(values: np.ndarray) -> dict[str, float]:
    levels = (5, 25, 50, 75, 95)
    found = {f"p{q}": float(x) for q, x in zip(levels, np.percentile(values, levels), strict=True)}
    return {"mean": float(values.mean()), **found}


def distances(options: argparse.Namespace) -> dict[str, Any]:
    all_images = fitting(options.data, options.checkpoint)
    rows = first_per_class(all_images.targets, options.images, options.seed)
    real = all_images.subset(rows)
    inversion, seconds = inverted(
        options.checkpoint,
        real,
        Path(options.work) / "variants",
        config_of(options, snapshots=(0,)),
        **sampling(options),
    )
    extractor = named(options.features, trusted=True)
    features = extract(extractor, real.read(np.arange(len(real))))
    # All pairs of one class, by |a - b|^2 = |a|^2 + |b|^2 - 2 a b in double precision.
    labels, f = real.labels, features.astype(np.float64)
    squared = (f**2).sum(1)
    matrix = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * f @ f.T, 0))
    same = (labels[:, None] == labels[None]) & ~np.eye(len(f), dtype=bool)
    others = np.where(same, matrix, np.nan)
    rng = np.random.default_rng(options.seed)
    other = np.array([matrix[i, rng.choice(np.flatnonzero(same[i]))] for i in range(len(f))])
    nearest = np.nanmin(others, axis=1)

    def variants(count: int = 1, **row: Any) -> tuple[np.ndarray, np.ndarray]:
        """Distance of variants to their source, (n, count), and to one another, (n,)."""
        plan = inversion.plan(ratio=count, seed=options.seed, **row)
        order = np.argsort(plan["source"], kind="stable")
        g = extract(extractor, draw_pixels(inversion, plan[order])).astype(np.float64)
        g = g.reshape(len(f), count, -1)
        spread = np.linalg.norm(g - g.mean(1, keepdims=True), axis=2).mean(1)
        return np.linalg.norm(g - f[:, None], axis=2), spread

    plain, _ = variants(noise=0, interpolation=0, guidance_scale=options.guidance)
    start, _ = variants(noise=0, interpolation=0, guidance_scale=options.guidance, snapshot=0)
    samples = {
        "variant, no noise, no interpolation": plain[:, 0],
        "the same before any update": start[:, 0],
        "nearest other image of the class": nearest,
        "another image of the class": other,
    }
    base = {"noise": 0.0, "interpolation": 0.0, "guidance_scale": options.guidance}
    grid = {
        "noise": [0.0, 0.1, 0.2, 0.4, 0.8],
        "interpolation": [0.0, 0.1, 0.2, 0.3, 0.5],
        "guidance_scale": [1.0, 1.5, 2.0, 3.0],
    }
    growth: list[dict[str, Any]] = []
    for name, values in grid.items():
        for value in values:
            to_source, spread = variants(options.variants, **{**base, name: value})
            growth.append(
                {
                    "parameter": name,
                    "value": value,
                    "to_source": quantiles(to_source.ravel()),
                    "spread": quantiles(spread),
                }
            )
            print(f"{name} {value:g}: {np.median(to_source):.3f} from the source", flush=True)
    closer = {
        "than another image of the class": float((plain[:, 0] < other).mean()),
        "than the nearest one": float((plain[:, 0] < nearest).mean()),
    }
    name = options.name or "inversion_variants"

    def histogram(axes: Any) -> None:
        bins = np.linspace(0, float(np.percentile(other, 99)), 50)
        for label, values in samples.items():
            axes.hist(values, bins=bins, histtype="step", label=label, linewidth=1.5)
        axes.set_xlabel(f"distance to the source ({extractor.name})")
        axes.set_ylabel("images")
        axes.legend(fontsize=8)

    def curves(axes: Any) -> None:
        for parameter, values in grid.items():
            points = [g for g in growth if g["parameter"] == parameter]
            axes.plot(values, [g["to_source"]["p50"] for g in points], "o-", label=parameter)
        axes.axhline(float(np.median(nearest)), color="gray", linestyle=":")
        axes.set_xlabel("value (dotted: the nearest other image of the class)")
        axes.set_ylabel("median distance to the source")
        axes.legend()

    plot(name, histogram)
    plot(f"{name}_growth", curves)
    return {
        "features": extractor.name,
        "images": len(real),
        "inversion_seconds": seconds,
        "distance_to_source": {label: quantiles(values) for label, values in samples.items()},
        "share_of_plain_variants_closer": closer,
        "growth": growth,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser)
    parser.add_argument("--features", default="pixels", help="As in `synthaug audit`")
    parser.add_argument("--images", type=int, default=50, help="Per class")
    parser.add_argument("--variants", type=int, default=4, help="Per image")
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    result = distances(options)
    print(result["share_of_plain_variants_closer"])
    print("Written:", write(options.name or "inversion_variants", {**facts(options), **result}))
