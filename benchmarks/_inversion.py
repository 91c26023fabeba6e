"""Shared parts of the inversion benchmarks: nested subsets, drawing, arms, a way to plot."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import RESULTS
from torch import Tensor

from synthaug import DiffusionInversion, SamplerConfig, SynthCache, generate, load_dataset
from synthaug._noise import counter_rng
from synthaug._pixels import to_pixels
from synthaug.images import LabeledImages
from synthaug.synthesizers import InversionConfig


def first_per_class(labels: Sequence[int], count: int, seed: int) -> np.ndarray:
    """`count` images of every class, ascending; a smaller count gives some of the same images."""
    found = []
    for c in np.unique(labels):
        rows = counter_rng(seed, 1, int(c)).permutation(np.flatnonzero(np.asarray(labels) == c))
        if len(rows) < count:
            raise SystemExit(f"Class {c} has {len(rows)} images, {count} are needed.")
        found.append(rows[:count])
    return np.sort(np.concatenate(found))


def inverted(
    checkpoint: str,
    real: LabeledImages,
    folder: Path,
    config: InversionConfig,
    *,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    **settings: Any,
) -> tuple[DiffusionInversion, float]:
    """Embeddings of `real`, and the seconds that it took; resumes what is in `folder`."""
    started = time.monotonic()
    generator = DiffusionInversion.from_pretrained(
        checkpoint, classes=real.classes, dtype=dtype, image_size=image_size, **settings
    )
    learned, _ = generator.fit(real, folder, config=config)
    return learned, time.monotonic() - started


def restricted(inversion: DiffusionInversion, rows: np.ndarray) -> DiffusionInversion:
    """The synthesizer of `real.subset(rows)`: no embedding depends on the other images."""
    assert inversion.table is not None
    return replace(inversion, table=inversion.table.subset(rows))


def drawn(
    inversion: DiffusionInversion, *, ratio: float, seed: int = 0, **row: Any
) -> tuple[SynthCache, dict[str, float]]:
    """A cache of variants, and what it cost."""
    plan = inversion.plan(ratio=ratio, seed=seed, **row)
    path = Path(tempfile.mkdtemp()) / "variants.h5"
    started = time.monotonic()
    cache = generate(inversion, plan, path, batch_size=256, progress=False)
    evaluations = int(inversion.evaluations(plan).sum())
    return cache, {
        "images": len(plan),
        "evaluations": evaluations,
        "seconds": time.monotonic() - started,
    }


def draw_pixels(inversion: DiffusionInversion, rows: Any, batch_size: int = 256) -> Tensor:
    """The images of some rows, uint8 (n, C, H, W)."""
    return torch.cat([to_pixels(inversion.draw(part)) for part in rows.batches(batch_size)])


def batch_of(augment: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An augmentation of single images as one of batches."""
    return lambda pixels: torch.stack([augment(image) for image in pixels])


def plot(name: str, draw: Callable[[Any], None], size: tuple[float, float] = (7, 4.5)) -> Path:
    """Writes `results/NAME.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size)
    draw(axes)
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def fitting(spec: str, checkpoint: str, **size: Any) -> Any:
    """A data set, brought to the size of the checkpoint's images unless told otherwise."""
    settings = json.loads((Path(checkpoint) / "synthaug.json").read_text())
    return load_dataset(spec, **(size or {"image_shape": tuple(settings["image_shape"])}))


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that all scripts have."""
    parser.add_argument("checkpoint", help="From `synthaug train --condition tokens`")
    parser.add_argument("--data", default="folder:cifar10/train")
    parser.add_argument("--test", default="folder:cifar10/test")
    parser.add_argument("--pretrained-on", required=True, help="What the generator saw, in words")
    parser.add_argument("--work", default="runs/inversion", help="Keeps embeddings and runs")
    parser.add_argument("--updates", type=int, default=InversionConfig().updates)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=InversionConfig().learning_rate)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--inference-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="Of the results")


def config_of(options: argparse.Namespace, snapshots: Sequence[int] = ()) -> InversionConfig:
    """How to learn, from the arguments."""
    return InversionConfig(
        updates=options.updates,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        snapshots=tuple(snapshots),
        seed=options.seed,
    )


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """How to draw, from the arguments."""
    steps = options.inference_steps
    return {"sampler": SamplerConfig(scheduler="dpmsolver++", num_inference_steps=steps)}


def facts(options: argparse.Namespace) -> Mapping[str, Any]:
    """All arguments, for the record."""
    return {k: v for k, v in vars(options).items() if k not in ("work", "name")}
