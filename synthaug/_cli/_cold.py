"""What `train --method cold` and `generate` do with a restorer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def train_cold(
    real: Any,
    out: str,
    config: Any,
    *,
    degradation: str,
    degradation_settings: Mapping[str, Any] | None,
    channels: int,
    num_layers: int,
    horizontal_flip: bool,
    colour_components: int = 1,
) -> None:
    """Trains a restorer, and shows what it restores.

    Args:
        real: The data set.
        out: Directory to write.
        config: A `TrainingConfig`.
        degradation: Short name, as in `degradations.named`.
        degradation_settings: Those that differ from its defaults.
        channels: Width of the network's first level.
        num_layers: Residual blocks per level.
        horizontal_flip: Mirror half of the training images.
        colour_components: Gaussians in the mixture of colours that generation starts from.
    """
    from accelerate import PartialState

    from synthaug import degradations
    from synthaug.synthesizers import ColdDiffusion

    cold, result = ColdDiffusion.fit(
        real,
        out,
        degradation=degradations.named(degradation, **(degradation_settings or {})),
        config=config,
        channels=channels,
        num_layers=num_layers,
        horizontal_flip=horizontal_flip,
        colour_components=colour_components,
    )
    if not PartialState().is_main_process:
        return
    picture = Path(out) / "samples.png"
    _picture(cold, real, picture)
    loss = f", loss {result.loss_curve[-1][1]:.4f}" if result.loss_curve else ""
    print(
        f"{result.step:,} steps{loss}. Checkpoint: {out}. Real images, what the last level leaves "
        f"of them, and what is restored: {picture}"
    )


def is_cold(checkpoint: str) -> bool:
    """Whether a directory is what `train --method cold` wrote."""
    path = Path(checkpoint) / "synthaug.json"
    return path.exists() and json.loads(path.read_text()).get("synthesizer") == "ColdDiffusion"


def prepare_cold(
    checkpoint: str,
    *,
    source: str | None,
    severity: float | list[float] | None,
    per_class: int | None,
    ratio: float | None,
    counts: Mapping[str, int] | None,
    num_steps: int | None,
    algorithm: str | None,
    output: str | None,
    classes: list[str] | None,
    dtype: str,
    device: str | None,
    seed: int,
) -> tuple[Any, Any, Any]:
    """The synthesizer, its plan, and the data set of `--source`."""
    import torch

    from synthaug._cli._inputs import load
    from synthaug.synthesizers import ColdDiffusion

    given: dict[str, Any] = {"num_steps": num_steps, "algorithm": algorithm, "output": output}
    cold = ColdDiffusion.from_pretrained(
        checkpoint,
        classes=classes,
        dtype=getattr(torch, dtype),
        device=device,
        **{name: value for name, value in given.items() if value is not None},
    )
    real: Any = None
    row: dict[str, Any] = {}
    if severity is not None:
        if source is None:
            raise ValueError("`--severity` needs `--source`, the real images to start from.")
        row["severity"] = severity
    if source is not None:
        real = load(source, cold.image_shape, classes=cold.classes)
        cold = cold.with_sources(real)
    plan = cold.plan(per_class=per_class, ratio=ratio, counts=counts, seed=seed, **row)
    return cold, plan, real


def _picture(cold: Any, real: Any, path: Path, images: int = 8) -> None:
    """A row of real images, one of what the last level leaves, one of what is restored."""
    import numpy as np
    import torch

    from synthaug._noise import streams
    from synthaug._pixels import grid, to_images, to_pixels

    chosen = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    pixels = real.read(chosen)
    drawn = cold.degradation.realise(streams(chosen.tolist()), cold.image_shape)
    realisation = {name: value.to(cold.device) for name, value in drawn.items()}
    T = cold.degradation.num_levels
    x_T = cold.degradation(to_images(pixels).to(cold.device), T, realisation)
    restored = cold.restore(x_T, T, realisation).x0
    sheet = torch.cat([pixels, to_pixels(x_T).cpu(), to_pixels(restored).cpu()])
    grid(sheet, columns=len(chosen), scale=max(1, 32 // pixels.shape[-1])).save(path)
