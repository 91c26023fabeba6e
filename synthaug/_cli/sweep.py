"""The command that searches sampling parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from synthaug._cli.arguments import load, names
from synthaug._cli.call import Call, Result
from synthaug._cli.judgement import written
from synthaug._cli.options import ClassifierOptions, NetworkOptions


def sweep(
    checkpoint: str,
    real: str,
    classifiers: ClassifierOptions,
    network: NetworkOptions,
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
    steps: int = 1_000,
    force: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    call: Call,
) -> Result:
    """Search the sampling parameters that make the best training images; run again to go on.

    synthaug sweep runs/cifar10 folder:cifar10/train --validation folder:cifar10/validation

    Args:
        checkpoint: Directory in diffusers layout, or hub:OWNER/NAME.
        real: The images that it was trained on. All real images are brought to its image size.
        classifiers: What is trained on images.
        network: What draws them.
        validation: Images to choose by: neither training images nor test images.
        test: Test images, only to see that they share no image with the validation split.
        out: Writes OUT.html, OUT.json and OUT.png, and keeps everything it made in the directory
            OUT.
        scheduler: Of this and the next five, all combinations are tried: ddpm,ddim,dpmsolver++.
        num_inference_steps: Denoising steps, 20,50 by default.
        guidance_scale: 1.0,1.5,2.0 by default.
        log_variance_mix: Of ddpm; 0.0,0.3,1.0 by default.
        stage_guidance_scale: Of a cascade.
        noise_conditioning_level: Of a cascade.
        guidance: Guidance scales of the second stage; 1.0,1.25,1.5,1.75,2.0 by default.
        per_class: Images of every class per setting.
        guidance_per_class: The same in the second stage; by default as many.
        features: Of the Fréchet distance: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum; by default those of a classifier trained on REAL.
        select: What the second stage chooses by: cas, the accuracy of classifiers trained on the
            images, or frechet.
        steps: Optimiser steps of every classifier.
        force: Take the Fréchet distance of fewer images than twice the features.
        batch_size: Images per batch while drawing; does not change them.
        seed: Base seed.
    """
    from synthaug import synthesizers
    from synthaug._support.devices import choose_device
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
    synthesizer: Any = getattr(synthesizers, kind).from_pretrained(checkpoint, **network.loading())
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
        features=None
        if features is None
        else named(features, device=choose_device(network.device)),
        select=select,
        model=classifiers.model,
        steps=steps,
        seeds=classifiers.seeds,
        horizontal_flip=classifiers.horizontal_flip,
        force=force,
        allow_overlap=classifiers.allow_overlap,
        batch_size=batch_size,
        seed=seed,
        device=network.device,
    )
    call = call.having(precision=report.settings["precision"])
    report = replace(report, settings={**report.settings, "command": call.line})
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    report.plot(f"{out}.png")
    chosen = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in report.chosen.items())
    return Result(
        record={
            "chosen": report.chosen,
            "select": report.select,
            "settings": len(report.coarse) + len(report.fine),
            **written(out, "png"),
        },
        text=f"{report}\nReport: {out}.html, {out}.json, {out}.png\n"
        f"Next: synthaug generate {checkpoint} {Path(out).name}.h5 --per-class 500 {chosen}",
    )
