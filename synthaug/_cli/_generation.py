"""Commands that train a generator and draw with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthaug._cli._inputs import load, names


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What to draw.

    Args:
        per_class: Images of every class.
        ratio: Images per image of --source, with its class proportions.
        counts: Images of each class by name, for example '{"cat": 500, "dog": 200}'.
        source: Data set of real images: to start from with --strength, and to count for --ratio.
            They are brought to the checkpoint's image size and channels.
        strength: Share of the diffusion that is redone, from each image of --source. Several values
            are used in turn.
        guidance_scale: 1 is no guidance. Several values are used in turn.
        num_inference_steps: Denoising steps.
        scheduler: ddim, ddpm, dpmsolver++, or the name of a diffusers scheduler.
        eta: 0 for deterministic DDIM steps, 1 for ancestral ones.
        classes: Class names or prompts (cat,dog), for a checkpoint that does not name them.
        image_size: Height and width, if not the checkpoint's own.
        dtype: bfloat16 is faster; images then depend slightly on the batch size.
        device: cpu, cuda ...; a GPU if there is one by default.
        seed: Base seed.
    """

    per_class: int | None = None
    ratio: float | None = None
    counts: dict[str, int] | None = None
    source: str | None = None
    strength: float | list[float] | None = None
    guidance_scale: float | list[float] | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    eta: float = 0.0
    classes: str | list[str] | None = None
    image_size: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    seed: int = 0


def _prepare(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, Any]:
    """The synthesizer, its plan, and the data set of `--source`."""
    import torch

    from synthaug.synthesizers import ClassConditional

    settings: dict[str, Any] = {"eta": options.eta}
    if options.num_inference_steps is not None:
        settings["num_inference_steps"] = options.num_inference_steps
    if options.scheduler is not None:
        settings["scheduler"] = options.scheduler
    synthesizer = ClassConditional.from_pretrained(
        checkpoint,
        classes=None if options.classes is None else names(options.classes),
        image_size=options.image_size,
        dtype=getattr(torch, options.dtype),
        device=options.device,
        **settings,
    )
    source = None
    if options.source is not None:
        source = load(options.source, synthesizer.image_shape, classes=synthesizer.classes)
    row: dict[str, Any] = {}
    if options.guidance_scale is not None:
        row["guidance_scale"] = options.guidance_scale
    if options.strength is not None:
        if source is None:
            raise ValueError("`--strength` needs `--source`, the real images to start from.")
        synthesizer = synthesizer.with_sources(source)
        row["strength"] = options.strength
    plan = synthesizer.plan(
        None if source is None else source.targets,
        per_class=options.per_class,
        ratio=options.ratio,
        counts=options.counts,
        seed=options.seed,
        **row,
    )
    return synthesizer, plan, source


def train(
    data: str,
    out: str,
    *,
    unlabelled: str | None = None,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 4e-4,
    warmup_steps: int = 200,
    decay_steps: int = 0,
    ema_decay: float = 0.9995,
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    width: int = 32,
    num_layers: int = 1,
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction",
    label_dropout: float = 0.1,
    horizontal_flip: bool = False,
    checkpoint_seconds: float = 120.0,
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Train a class-conditional diffusion model; run again to resume.

    synthaug train folder:cifar10/train runs/cifar10 --steps 20000 --precision bfloat16

    Args:
        data: Labelled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits.
        out: Directory to write; it becomes a checkpoint in diffusers layout.
        unlabelled: Further images, which train the unconditional branch.
        image_size: Resize the shorter side to it and cut out the centre.
        channels: 1 converts to grey, 3 to RGB.
        steps: Optimiser steps in all.
        batch_size: Images per step.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Steps at the end over which the learning rate falls to 0.
        ema_decay: Decay of the moving average of the weights.
        precision: bfloat16 runs the network under autocast.
        compile: Compile the network: a slow start, then faster steps.
        width: Channels of the network's first level.
        num_layers: Residual blocks per level.
        prediction_type: What the network predicts.
        label_dropout: Share of the labels hidden, to train the unconditional branch.
        horizontal_flip: Mirror half of the training images.
        checkpoint_seconds: Seconds between checkpoints.
        device: cpu, cuda ...; a GPU if there is one by default.
        seed: Seed.
    """
    from accelerate import PartialState

    from synthaug._data import load_dataset
    from synthaug._pixels import grid, to_pixels
    from synthaug._training import TrainingConfig
    from synthaug.synthesizers import ClassConditional

    real = load_dataset(data, image_size=image_size, channels=channels)
    more = None
    if unlabelled is not None:
        more = load_dataset(unlabelled, image_size=image_size, channels=channels)
    synthesizer, result = ClassConditional.fit(
        real,
        out,
        unlabelled=more,
        config=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            ema_decay=ema_decay,
            precision=precision,
            compile=compile,
            seed=seed,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
        ),
        channels=width,
        num_layers=num_layers,
        prediction_type=prediction_type,
        label_dropout=label_dropout,
        horizontal_flip=horizontal_flip,
    )
    if not PartialState().is_main_process:
        return
    counts = dict.fromkeys(synthesizer.classes[:10], 8)
    scale = 1.5 if synthesizer.can_be_guided else 1.0
    images = synthesizer.draw(synthesizer.plan(counts=counts, seed=seed, guidance_scale=scale))
    picture = Path(out) / "samples.png"
    zoom = max(1, 32 // images.shape[-1])
    grid(to_pixels(images), columns=8, scale=zoom).save(picture)
    loss = f", loss {result.loss_curve[-1][1]:.4f}" if result.loss_curve else ""
    print(f"{result.step:,} steps{loss}. Checkpoint: {out}. Samples, a row per class: {picture}")


def plan(checkpoint: str, options: PlanOptions, *, estimate: bool = False) -> None:
    """Show what `generate` would do, and what it would cost.

    synthaug plan runs/cifar10 --per-class 500 --guidance-scale '[1.0, 1.5]' --estimate

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        options: What to draw.
        estimate: Draw one small batch to measure the time.
    """
    import time

    synthesizer, rows, _ = _prepare(checkpoint, options)
    rate = None
    if estimate:
        sample = rows[:: max(1, len(rows) // 16)][:16]
        synthesizer.draw(sample[:1])
        started = time.monotonic()
        synthesizer.draw(sample)
        rate = synthesizer.evaluations(sample).sum() / (time.monotonic() - started)
    print(rows)
    print(
        rows.estimate(
            synthesizer.image_shape,
            evaluations=synthesizer.evaluations(rows),
            evaluations_per_second=rate,
        )
    )
    for name, count in zip(rows.classes, rows.quota, strict=True):
        print(f"  {name}: {count:,}")


def generate(
    checkpoint: str,
    out: str,
    options: PlanOptions,
    *,
    batch_size: int = 64,
    generator_licence: str | None = None,
    source_licence: str | None = None,
) -> None:
    """Draw synthetic images into a cache; run again to resume.

    synthaug generate runs/cifar10 cifar10.h5 --per-class 500 --num-inference-steps 25

    Args:
        checkpoint: Directory in diffusers layout, trained by us or not; or hub:OWNER/NAME.
        out: The cache, an HDF5 file. Samples of it are shown in a picture of that name with .png.
        options: What to draw.
        batch_size: Images per batch; does not change them.
        generator_licence: Licence of the generator, for the record.
        source_licence: Licence of the data it was trained on, for the record.
    """
    from synthaug._generate import generate as fill
    from synthaug._pixels import grid

    synthesizer, rows, source = _prepare(checkpoint, options)
    licence = {"generator": generator_licence, "source": source_licence}
    cache = fill(synthesizer, rows, out, batch_size=batch_size, source=source, licence=licence)
    print(cache)
    done = cache.done.nonzero()[0]
    labels = cache.labels[done]
    shown = [i for label in sorted(set(labels))[:10] for i in done[labels == label][:8]]
    if shown:  # not if all were withdrawn
        picture = Path(out).with_suffix(".png")
        scale = max(1, 32 // cache.image_shape[-1])
        grid(cache.read(shown), columns=8, scale=scale).save(picture)
        print(f"Samples: {picture}")
