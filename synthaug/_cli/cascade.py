"""The command that puts a cascade together."""

from synthaug._cli.arguments import names
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults

CASCADE = defaults("synthesizers.cascade._synthesizer:Cascade.from_pretrained")


def cascade(
    out: str,
    models: list[str],
    *,
    classes: str | list[str] | None = CASCADE.classes,
    noise_conditioning_level: int | None = CASCADE.noise_conditioning_level,
    truncated: bool | None = CASCADE.truncated,
    call: Call,
) -> Result:
    """Put a base and its super-resolution stages into one directory.

    synthaug cascade runs/cascade runs/cifar8 runs/8to32 --noise-conditioning-level 100

    Args:
        out: Directory to write; generate, plan and the others take it as they take any checkpoint.
        models: The base, then the stages from small to large (train --method upsample, or others'
            super-resolution checkpoints).
        classes: Class names or prompts (cat,dog), for a base that does not name them.
        noise_conditioning_level: The level that the stages use where a plan does not name one.
        truncated: Stop each chain at the noise level of the stage after it.
    """
    from synthaug._training.checkpoints import record_command
    from synthaug.synthesizers import Cascade

    base, *stages = models
    cascaded = Cascade.from_pretrained(
        base,
        stages=stages,
        truncated=truncated,
        classes=None if classes is None else names(classes),
        dtype="float32",
        device="cpu",
        noise_conditioning_level=noise_conditioning_level,
    )
    cascaded.save_pretrained(out)
    record_command(out, call.line)
    shapes = [cascaded.base.model.image_shape, *(stage.image_shape for stage in cascaded.stages)]
    sizes = " to ".join(f"{height} x {width}" for _, height, width in shapes)
    return Result(
        record={"checkpoint": out, "image_shapes": [list(shape) for shape in shapes]},
        text=f"{sizes} pixels. Checkpoint: {out}.\n"
        f"Next: synthaug generate {out} CACHE.h5 --per-class 100",
    )
