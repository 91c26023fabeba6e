"""The command of diffusion inversion: learn embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from synthaug._cli import pictures as _pictures
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import config_options, configured
from synthaug._cli.options import LOADING, FileOptions, Tracker
from synthaug._support.precision import Precision
from synthaug._support.stopping import kept_at_stop
from synthaug.synthesizers.inversion._config import InversionConfig

if TYPE_CHECKING:
    LearningOptions: TypeAlias = Any
else:
    LearningOptions = config_options(
        "Learning",
        InversionConfig,
        log_with=(Tracker | None, None, "Also sends loss and speed to a tracker."),
    )


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """The generator.

    Args:
        image_size: Height and width to learn and draw at, if not the checkpoint's own.
        precision: Precision of the network; embeddings are float32 always. auto is bfloat16 where
            the hardware makes it faster, and what was begun keeps its own.
        device: cpu, cuda ...; by default a GPU if there is one.
    """

    image_size: int | None = None
    precision: Precision = LOADING.dtype
    device: str | None = LOADING.device


def invert(
    checkpoint: str,
    data: str,
    out: str,
    learning: LearningOptions,
    generator: GeneratorOptions,
    files: FileOptions,
    *,
    estimate: bool = False,
    call: Call,
) -> Result:
    """Learn an embedding of every image (diffusion inversion); run again to resume.

    synthaug invert runs/tokens folder:cifar10/train runs/inverted --updates 100

    Args:
        checkpoint: From `train --condition tokens`; or a Stable Diffusion directory, or
            hub:OWNER/NAME.
        data: Labeled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits. They are brought
            to the image size and channels of the checkpoint.
        out: Directory to write; `generate` draws variants from it.
        learning: How embeddings are learned.
        generator: The generator to invert.
        files: For data sets.
        estimate: Only print what it will cost.
    """
    from synthaug._training.checkpoints import record_command
    from synthaug.synthesizers import DiffusionInversion

    # The class names may be prompts. For them no image need be decoded, nor have any shape.
    classes = files.opened(data, image_shape=(1, 1, 1), memory_limit=0).classes
    inversion = DiffusionInversion.from_pretrained(
        checkpoint,
        classes=classes,
        image_size=generator.image_size,
        dtype=generator.precision,
        device=generator.device,
    )
    real = files.shaped(data, inversion.image_shape)
    config = configured(InversionConfig, learning)
    cost = inversion.cost(real, config, measure=estimate)
    record: dict[str, Any] = {"checkpoint": None, "loss": None, "picture": None}
    record |= {"images": len(real), "bytes": cost.bytes, "seconds": cost.seconds}
    if estimate:
        again = call.brief.without(["estimate"]).line
        return Result(record=record, text=f"{cost}\nNext: {again}")
    print(cost, flush=True)
    inverted, result = inversion.fit(real, out, config=config)
    used = str(inverted.model.denoiser.dtype).removeprefix("torch.")
    record_command(out, call.having(precision=used).line)
    picture = Path(out) / "variants.png"
    with kept_at_stop(lambda: f"The inversion is complete: {out}."):
        _pictures.variants(inverted, real, picture)
    loss = result.loss_curve[-1][1] if result.loss_curve else None
    shown = "" if loss is None else f", loss {loss:.4f}"
    return Result(
        record={**record, "checkpoint": out, "loss": loss, "picture": str(picture)},
        text=f"{len(real):,} embeddings{shown}: {out}. Real images and variants of each: {picture}"
        f"\nNext: synthaug generate {out} CACHE.h5 --ratio 5",
    )
