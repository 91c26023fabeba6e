"""Commands that draw images with a generator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthaug._cli._inputs import load, names


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What to draw. What a kind of checkpoint does not know, it refuses.

    Args:
        per_class: Images of every class.
        ratio: Images per image of --source, with its class proportions.
        counts: Images of each class by name, for example '{"cat": 500, "dog": 200}'.
        source: Data set of real images: to start from with --strength or --severity, and to count
            for --ratio. They are brought to the checkpoint's image size and channels.
        guidance_scale: 1 is no guidance. Of this and the next nine, several values are used in
            turn.
        strength: Share of the diffusion that is redone, from each image of --source.
        severity: Share of each image of --source that is taken away and restored (cold diffusion).
        noise: Noise on an image's embedding, as a share of its size (diffusion inversion).
        interpolation: Way to the embedding of a partner of the same class (diffusion inversion).
        snapshot: Updates after which the embedding was kept (diffusion inversion).
        stage_guidance_scale: Guidance of the stages of a cascade.
        noise_conditioning_level: Noise on the smaller images that a stage is given, up to the level
            that it was trained with (cascade).
        alpha: Push away from where the class is dense, in units of each step's noise (hardness).
        beta: Push towards real images, likewise (hardness).
        unit: Of alpha and beta: the rms of a push over all values of an image, its length, which
            means the same at every image size, or score, the gradient as it is (hardness).
        num_inference_steps: Denoising steps.
        scheduler: ddim, ddpm, dpmsolver++, or the name of a diffusers scheduler.
        eta: 0 for deterministic DDIM steps, 1 for ancestral ones.
        log_variance_mix: For ddpm: 0 gives its steps the smaller of their two variances, 1 the
            larger.
        num_steps: Restoration steps (cold diffusion).
        algorithm: improved, naive or direct (cold diffusion).
        truncated: true stops each chain at the noise level of the stage after it; false runs it to
            its end and adds noise (cascade).
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
    guidance_scale: float | list[float] | None = None
    strength: float | list[float] | None = None
    severity: float | list[float] | None = None
    noise: float | list[float] | None = None
    interpolation: float | list[float] | None = None
    snapshot: int | list[int] | None = None
    stage_guidance_scale: float | list[float] | None = None
    noise_conditioning_level: int | list[int] | None = None
    alpha: float | list[float] | None = None
    beta: float | list[float] | None = None
    unit: Literal["rms", "length", "score"] | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    eta: float | None = None
    log_variance_mix: float | None = None
    num_steps: int | None = None
    algorithm: Literal["improved", "naive", "direct"] | None = None
    truncated: bool | None = None
    classes: str | list[str] | None = None
    image_size: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    seed: int = 0

    def given(self, *options: str) -> dict[str, Any]:
        """Those of these options that were given."""
        values = {name: getattr(self, name) for name in options}
        return {name: value for name, value in values.items() if value is not None}


ROW = (
    "guidance_scale",
    "strength",
    "severity",
    "noise",
    "interpolation",
    "snapshot",
    "stage_guidance_scale",
    "noise_conditioning_level",
    "alpha",
    "beta",
)
SETTINGS = (
    "num_inference_steps",
    "scheduler",
    "eta",
    "log_variance_mix",
    "num_steps",
    "algorithm",
    "truncated",
    "image_size",
    "unit",
)


def _prepare(checkpoint: str, options: PlanOptions) -> tuple[Any, Any, Any]:
    """The synthesizer, its plan, and the data set of `--source`."""
    import torch

    from synthaug import synthesizers
    from synthaug.synthesizers._kinds import kind_of

    name = kind_of(checkpoint)
    if name not in synthesizers.__all__:
        raise ValueError(f"{checkpoint} is a checkpoint for {name!r}, which we do not know.")
    if name == "CascadeStage":
        raise ValueError(
            f"{checkpoint} is one stage of a cascade. Put it behind a base with `synthaug cascade "
            f"DIRECTORY BASE {checkpoint}`."
        )
    kind = getattr(synthesizers, name)
    synthesizer = kind.from_pretrained(
        checkpoint,
        classes=None if options.classes is None else names(options.classes),
        dtype=getattr(torch, options.dtype),
        device=options.device,
        **options.given(*SETTINGS),
    )
    if kind is synthesizers.Cascade and (options.strength or options.severity):
        raise ValueError("A cascade starts from noise: leave `--strength` and `--severity` out.")
    if options.source is not None and kind is synthesizers.DiffusionInversion:
        raise ValueError("`--source`: an inversion knows its real images. Leave it out.")
    row = options.given(*ROW)
    source = None
    if options.source is not None:
        source = load(options.source, synthesizer.image_shape, classes=synthesizer.classes)
        if row.keys() & {"strength", "severity"} or kind is synthesizers.ColdDiffusion:
            synthesizer = synthesizer.with_sources(source)
    elif row.keys() & {"strength", "severity"}:
        option = "strength" if "strength" in row else "severity"
        raise ValueError(f"`--{option}` needs `--source`, the real images to start from.")
    plan = synthesizer.plan(
        None if source is None else source.targets,
        per_class=options.per_class,
        ratio=options.ratio,
        counts=options.counts,
        seed=options.seed,
        **row,
    )
    return synthesizer, plan, source


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
