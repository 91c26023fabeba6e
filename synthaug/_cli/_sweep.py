"""The command that searches sampling parameters."""

from pathlib import Path
from typing import Any, Literal

from synthaug._cli._inputs import load, names


def sweep(
    checkpoint: str,
    real: str,
    *,
    validation: str | None = None,
    test: str | None = None,
    out: str = "sweep",
    scheduler: str | list[str] | None = None,
    num_inference_steps: int | list[int] | None = None,
    guidance_scale: float | list[float] | None = None,
    log_variance_mix: float | list[float] | None = None,
    stage_guidance_scale: float | list[float] | None = None,
    noise_conditioning_level: int | list[int] | None = None,
    guidance: float | list[float] | None = None,
    per_class: int = 100,
    guidance_per_class: int | None = None,
    features: str | None = None,
    select: Literal["cas", "frechet"] = "cas",
    model: str = "small-cnn",
    steps: int = 1_000,
    seeds: int = 3,
    horizontal_flip: bool = False,
    force: bool = False,
    allow_overlap: bool = False,
    batch_size: int = 64,
    classes: str | list[str] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Search the sampling parameters that make the best training images; run again to go on.

    synthaug sweep runs/cifar10 folder:cifar10/train --validation folder:cifar10/validation

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        real: The images that it was trained on. All real images are brought to its image size.
        validation: Images to choose by: neither training images nor test images.
        test: Test images, only to see that they share no image with the validation split.
        out: Writes OUT.html, OUT.json and OUT.png, and keeps everything it made in the directory
            OUT.
        scheduler: Of this and the next five, all combinations are tried: ddpm,ddim,dpmsolver++.
        num_inference_steps: Denoising steps, '[20, 50]' by default.
        guidance_scale: '[1.0, 1.5, 2.0]' by default.
        log_variance_mix: Of ddpm; '[0.0, 0.3, 1.0]' by default.
        stage_guidance_scale: Of a cascade.
        noise_conditioning_level: Of a cascade.
        guidance: Guidance scales of the second stage; '[1.0, 1.25, 1.5, 1.75, 2.0]' by default.
        per_class: Images of every class per setting.
        guidance_per_class: The same in the second stage; by default as many.
        features: Of the Fréchet distance: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum; by default those of a classifier trained on REAL.
        select: What the second stage chooses by: cas, the accuracy of classifiers trained on the
            images, or frechet.
        model: Classifier: small-cnn, resnet20, a torchvision model, or timm:NAME.
        steps: Optimiser steps of every classifier.
        seeds: Classifiers per setting.
        horizontal_flip: Mirror half of their training images.
        force: Take the Fréchet distance of fewer images than twice the features.
        allow_overlap: Go on if the splits share images.
        batch_size: Images per batch while drawing; does not change them.
        classes: Class names or prompts (cat,dog), for a checkpoint that does not name them.
        dtype: Of the generator's network.
        device: cpu, cuda ...; a GPU if there is one by default.
        seed: Base seed.
    """
    import torch

    from synthaug import synthesizers
    from synthaug._sweep import default_grid
    from synthaug._sweep import sweep as run
    from synthaug.features import named
    from synthaug.synthesizers._kinds import kind_of

    if validation is None:
        raise ValueError(
            "`validation` is missing: images to choose by, which are neither training images nor "
            "test images."
        )
    kind = kind_of(checkpoint)
    if kind not in ("ClassConditional", "Cascade"):
        raise ValueError(
            f"{checkpoint} holds a {kind}; a sweep takes a ClassConditional or Cascade."
        )
    synthesizer: Any = getattr(synthesizers, kind).from_pretrained(
        checkpoint,
        classes=None if classes is None else names(classes),
        dtype=getattr(torch, dtype),
        device=device,
    )
    given: dict[str, Any] = {
        "scheduler": None if scheduler is None else names(scheduler),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "log_variance_mix": log_variance_mix,
        "stage_guidance_scale": stage_guidance_scale,
        "noise_conditioning_level": noise_conditioning_level,
    }
    grid = {**default_grid(synthesizer)}
    for name, values in given.items():
        if values is not None:
            grid[name] = values if isinstance(values, list) else [values]
    if guidance is not None and not isinstance(guidance, list):
        guidance = [guidance]
    shape, known = synthesizer.image_shape, synthesizer.classes
    report = run(
        synthesizer,
        real=load(real, shape, known),
        validation=load(validation, shape, known),
        test=None if test is None else load(test, shape, known),
        output_dir=out,
        grid=grid,
        guidance=guidance,
        per_class=per_class,
        guidance_per_class=guidance_per_class,
        features=None if features is None else named(features, device=device or "cpu"),
        select=select,
        model=model,
        steps=steps,
        seeds=seeds,
        horizontal_flip=horizontal_flip,
        force=force,
        allow_overlap=allow_overlap,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    report.plot(f"{out}.png")
    print(report)
    print(f"Report: {out}.html, {out}.json, {out}.png")
    chosen = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in report.chosen.items())
    print(f"Next: synthaug generate {checkpoint} {Path(out).name}.h5 --per-class 500 {chosen}")
