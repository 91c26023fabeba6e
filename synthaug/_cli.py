"""The command line: parse, call one public function, print.

Exit codes: 0 done (an audit passed), 1 an audit found copies, 2 wrong arguments or input that does
not fit, 3 an audit is inconclusive, 4 a file is missing, damaged, or cannot be read or written.
"""

import inspect
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthaug._errors import (
    CacheMismatchError,
    CachePendingError,
    DivergedError,
    SynthaugError,
)

DOES_NOT_FIT = (ValueError, ImportError, CacheMismatchError, CachePendingError, DivergedError)
"""Errors that mean exit code 2; the others that we expect mean 4."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What to draw.

    Args:
        per_class: Images of every class.
        ratio: Images per image of --source, with its class proportions.
        counts: Images of each class by name, for example '{"cat": 500, "dog": 200}'.
        source: Data set of real images: to start from with --strength, and to count for --ratio.
        strength: Share of the diffusion that is redone, from each image of --source. Several values
            are used in turn.
        guidance_scale: 1 is no guidance. Several values are used in turn.
        num_inference_steps: Denoising steps.
        scheduler: ddim, ddpm, dpmsolver++, or the name of a diffusers scheduler.
        eta: 0 for deterministic DDIM steps, 1 for ancestral ones.
        classes: Class names or prompts, for a checkpoint that does not name them.
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
    classes: list[str] | None = None
    image_size: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    seed: int = 0


def _prepare(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, Any]:
    """The synthesizer, its plan, and the data set of `--source`."""
    import torch

    from synthaug._data import load_dataset
    from synthaug.synthesizers import ClassConditional

    settings: dict[str, Any] = {"eta": options.eta}
    if options.num_inference_steps is not None:
        settings["num_inference_steps"] = options.num_inference_steps
    if options.scheduler is not None:
        settings["scheduler"] = options.scheduler
    synthesizer = ClassConditional.from_pretrained(
        checkpoint,
        classes=options.classes,
        image_size=options.image_size,
        dtype=getattr(torch, options.dtype),
        device=options.device,
        **settings,
    )
    source = None
    if options.source is not None:
        source = load_dataset(options.source, classes=synthesizer.classes)
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
    shown = min(10, len(synthesizer.classes))
    counts = dict.fromkeys(synthesizer.classes[:shown], 8)
    images = synthesizer.draw(synthesizer.plan(counts=counts, seed=seed, guidance_scale=1.5))
    picture = Path(out) / "samples.png"
    scale = max(1, 32 // images.shape[-1])
    grid(to_pixels(images), columns=8, scale=scale).save(picture)
    loss = f", loss {result.loss_curve[-1][1]:.4f}" if result.loss_curve else ""
    print(f"{result.step:,} steps{loss}. Checkpoint: {out}. Samples, a row per class: {picture}")


def plan(checkpoint: str, options: PlanOptions, *, estimate: bool = False) -> None:
    """Show what `generate` would do, and what it would cost.

    synthaug plan runs/cifar10 --per-class 500 --guidance-scale '[1.0, 1.5]' --estimate

    Args:
        checkpoint: Directory in diffusers layout.
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


def generate(checkpoint: str, out: str, options: PlanOptions, *, batch_size: int = 64) -> None:
    """Draw synthetic images into a cache; run again to resume.

    synthaug generate runs/cifar10 cifar10.h5 --per-class 500 --num-inference-steps 25

    Args:
        checkpoint: Directory in diffusers layout, trained by us or not.
        out: The cache, an HDF5 file. Samples of it are shown in a picture of that name with .png.
        options: What to draw.
        batch_size: Images per batch; does not change them.
    """
    from synthaug._generate import generate as fill
    from synthaug._pixels import grid

    synthesizer, rows, source = _prepare(checkpoint, options)
    cache = fill(synthesizer, rows, out, batch_size=batch_size, source=source)
    print(cache)
    done = cache.done.nonzero()[0]
    labels = cache.labels[done]
    shown = [i for label in sorted(set(labels))[:10] for i in done[labels == label][:8]]
    if shown:  # not if all were withdrawn
        picture = Path(out).with_suffix(".png")
        scale = max(1, 32 // cache.image_shape[-1])
        grid(cache.read(shown), columns=8, scale=scale).save(picture)
        print(f"Samples: {picture}")


def audit(
    synthetic: str,
    train: str,
    *,
    holdout: str | None = None,
    out: str = "audit",
    features: list[str] | None = None,
    fdr: float = 0.05,
) -> int:
    """Ask whether synthetic images are copies of training images.

    synthaug audit cifar10.h5 folder:cifar10/train --holdout folder:cifar10/test

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        train: The images that the generator was trained on.
        holdout: Real images that it never saw. Without them the verdict is inconclusive at best.
        out: Writes OUT.html and OUT.json.
        features: pixels, or the path of a TorchScript feature extractor.
        fdr: False discovery rate among the flagged images.
    """
    from synthaug._audit import audit as run
    from synthaug._cache import SynthCache
    from synthaug._data import load_dataset
    from synthaug.features import TorchScript

    images: Any = load_dataset(synthetic) if ":" in synthetic else SynthCache(synthetic)
    extractors = [TorchScript(name) for name in features or [] if name != "pixels"]
    if len(extractors) > 1:
        raise ValueError("`--features` takes one extractor.")
    report = run(
        images,
        load_dataset(train),
        holdout=None if holdout is None else load_dataset(holdout),
        features=extractors[0] if extractors else None,
        fdr=fdr,
    )
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    print(f"{report.verdict}: " + " ".join(report.reasons))
    print(f"Report: {out}.html, {out}.json")
    return int(report.exit_code)


def evaluate(
    real: str,
    synthetic: str,
    test: str,
    *,
    validation: str | None = None,
    audit: str | None = None,
    fraction: float = 0.5,
    model: str = "small-cnn",
    steps: int = 2_000,
    batch_size: int = 128,
    seeds: int = 3,
    padding: int | None = None,
    horizontal_flip: bool | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    out: str = "evaluation",
) -> None:
    """Train the same classifier on real, real plus synthetic, and synthetic images.

    synthaug evaluate folder:cifar10/train cifar10.h5 folder:cifar10/test --audit audit.json

    Args:
        real: Labelled training images.
        synthetic: The cache.
        test: Test images; used once per run, at the end.
        validation: Images to choose the best moment of training by; else the last one counts.
        audit: JSON report of the cache; the images it flagged are left out.
        fraction: Share of the real images replaced by synthetic ones in the mixed arm.
        model: small-cnn, resnet20, or a torchvision model.
        steps: Optimiser steps of every arm.
        batch_size: Images per step.
        seeds: Runs per arm.
        padding: Largest random shift in pixels; by default an eighth of the side, and below 16
            pixels a side small shifts and turns between the pixels.
        horizontal_flip: true mirrors half of the images; by default colour images only.
        precision: bfloat16 runs the network under autocast.
        out: Writes OUT.html and OUT.json, and keeps finished runs in the directory OUT.
    """
    from synthaug._audit import AuditReport
    from synthaug._cache import SynthCache
    from synthaug._data import load_dataset
    from synthaug._datasets import MixedDataset
    from synthaug._evaluation import StandardAugment, standard_arms
    from synthaug._evaluation import evaluate as run

    images = load_dataset(real)
    cache = SynthCache(synthetic)
    report = None if audit is None else AuditReport.from_json(audit)
    augment: Any = "standard"
    if padding is not None or horizontal_flip is not None:
        colour, side = cache.image_shape[0] == 3, min(cache.image_shape[1:])
        augment = StandardAugment(
            padding=round(side / 8) if padding is None else padding,
            horizontal_flip=colour if horizontal_flip is None else horizontal_flip,
        )
    table = run(
        standard_arms(
            images,
            mixed=MixedDataset(images, cache, audit=report, fraction=fraction),
            synthetic=MixedDataset(images, cache, audit=report, fraction=1.0),
        ),
        test=load_dataset(test),
        validation=None if validation is None else load_dataset(validation),
        model=model,
        steps=steps,
        batch_size=batch_size,
        seeds=seeds,
        precision=precision,
        augment=augment,
        baseline="real, augmented",
        output_dir=out,
    )
    table.to_html(f"{out}.html")
    table.to_json(f"{out}.json")
    print(table.table())
    print(f"Report: {out}.html, {out}.json")


def demo(out: str = "synthaug-demo", *, seed: int = 0) -> None:
    """The whole job on scikit-learn's handwritten digits, within five minutes on two cores.

    synthaug demo

    Args:
        out: Directory to write; run again to resume.
        seed: Seed of the split, the models and the plan.
    """
    from synthaug._demo import demo as run

    run(out, seed=seed)


def info(cache: str) -> None:
    """Show what a cache holds.

    synthaug cache info cifar10.h5

    Args:
        cache: The HDF5 file.
    """
    from synthaug._cache import SynthCache

    opened = SynthCache(cache)
    print(opened)
    print(opened.plan)
    print(json.dumps(opened.manifest, indent=2))


def verify(cache: str) -> int:
    """Check every image of a cache against its checksum.

    synthaug cache verify cifar10.h5

    Args:
        cache: The HDF5 file.
    """
    from synthaug._cache import SynthCache

    bad = SynthCache(cache).verify()
    if len(bad):
        rows = ", ".join(map(str, bad[:20]))
        print(f"{len(bad)} damaged rows: {rows}. Run `synthaug generate` again to draw them anew.")
        return 4
    print("Every row is intact.")
    return 0


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "plan": plan,
    "generate": generate,
    "audit": audit,
    "evaluate": evaluate,
}
CACHE_COMMANDS: dict[str, Any] = {"info": info, "verify": verify}


def build_parser() -> Any:
    """The parser of the whole command line."""
    from argparse import RawDescriptionHelpFormatter

    from docstring_parser import parse as parse_docstring
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the example line of a docstring on a line of its own."""

    def command(function: Any) -> Any:
        parser = ArgumentParser(
            description=(function.__doc__ or "").split("Args:")[0].replace("\n    ", "\n").strip(),
            formatter_class=Formatter,
        )
        parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
        parameters = inspect.signature(function).parameters.values()
        switches = [p.name for p in parameters if isinstance(p.default, bool)]
        has_plan = "options" in function.__annotations__
        skip: set[str | int] = {*switches, "options"} if has_plan else {*switches}
        parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skip)
        if has_plan:
            parser.add_class_arguments(PlanOptions, as_group=False)
        texts = {p.arg_name: p.description for p in parse_docstring(function.__doc__ or "").params}
        for name in switches:  # a plain switch, where jsonargparse would want `--name true`
            parser.add_argument(f"--{name}", action="store_true", help=texts[name])
        return parser

    parser = ArgumentParser(
        prog="synthaug",
        description="Synthetic training images, and the audit that says whether they are copies.",
        formatter_class=Formatter,
        version=_version(),
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="Log what is decided.")
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        commands.add_subcommand(name, command(function), help=_first_line(function))
    cache = ArgumentParser(description="Look after cache files.", formatter_class=Formatter)
    commands.add_subcommand("cache", cache, help="Look after cache files.")
    actions = cache.add_subcommands(dest="action")
    for name, function in CACHE_COMMANDS.items():
        actions.add_subcommand(name, command(function), help=_first_line(function))
    return parser


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def _underscored(text: str) -> str:
    """`--per-class` means `--per_class`."""
    if not text.startswith("--"):
        return text
    name, equals, value = text.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _version() -> str:
    from importlib.metadata import version

    return version("synthaug")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `synthaug`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = build_parser().parse_args([_underscored(text) for text in given])
    level = logging.INFO if parsed.verbose else logging.WARNING
    logging.basicConfig(level=level, format="synthaug: %(message)s")
    chosen, functions = parsed[parsed.command], COMMANDS
    name = parsed.command
    if name == "cache":
        name, functions = chosen.action, CACHE_COMMANDS
        chosen = chosen[name]
    values = {k: v for k, v in chosen.as_dict().items() if k != "config"}
    function: Any = functions[name]
    if "options" in function.__annotations__:
        own = {k: values.pop(k) for k in PlanOptions.__dataclass_fields__}
        values["options"] = PlanOptions(**own)
    try:
        code = function(**values)
    except (SynthaugError, ValueError, ImportError, OSError) as error:
        if os.environ.get("SYNTHAUG_TRACEBACK"):
            raise
        print(f"synthaug: error: {error}", file=sys.stderr)
        print("(Set SYNTHAUG_TRACEBACK=1 to see where.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, DOES_NOT_FIT) else 4)
    except KeyboardInterrupt:
        print("synthaug: stopped. What was done is kept; run again to go on.", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
