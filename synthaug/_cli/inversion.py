"""Commands about diffusion inversion: train a generator on tokens, learn embeddings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from synthaug._cli import pictures as _pictures
from synthaug._cli.arguments import load
from synthaug._cli.call import Call, Result
from synthaug._support.precision import Precision


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Learning.

    Args:
        updates: Updates that every embedding receives.
        snapshots: Further numbers of updates at which embeddings are kept, such as 30,60.
        batch_size: Images per step. Does not change the embeddings.
        learning_rate: Learning rate of Adam; it falls linearly to 0.
        start: What embeddings start from; by default the best that the checkpoint has.
        num_tokens: Tokens per image, if there is no encoder.
        block_size: Images that are learned at once.
        compile: Compile the network: a slow start, then faster steps.
        checkpoint_seconds: Seconds between checkpoints.
        seed: Seed of all noise.
    """

    updates: int = 100
    snapshots: list[int] | None = None
    batch_size: int = 64
    learning_rate: float = 0.1
    start: Literal["encoder", "prompt", "noise"] | None = None
    num_tokens: int | None = None
    block_size: int = 1024
    compile: bool = False
    checkpoint_seconds: float = 120.0
    seed: int = 0

    def config(self) -> Any:
        """`InversionConfig`."""
        from synthaug.synthesizers import InversionConfig

        return InversionConfig(**{**asdict(self), "snapshots": tuple(self.snapshots or ())})


def invert(
    checkpoint: str,
    data: str,
    out: str,
    learning: LearningOptions,
    *,
    image_size: int | None = None,
    precision: Precision = "auto",
    estimate: bool = False,
    device: str | None = None,
    call: Call,
) -> Result:
    """Learn an embedding of every image (diffusion inversion); run again to resume.

    synthaug invert runs/tokens folder:cifar10/train runs/inverted --updates 100

    Args:
        checkpoint: From `train --condition tokens`; or a Stable Diffusion directory, or
            hub:OWNER/NAME.
        data: Labelled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits. They are brought
            to the image size and channels of the checkpoint.
        out: Directory to write; `generate` draws variants from it.
        learning: How.
        image_size: Height and width to learn and draw at, if not the checkpoint's own.
        precision: Of the network; embeddings are float32 always. auto is bfloat16 on a device that
            has it in hardware, and what was begun keeps its own.
        estimate: Only print what it will cost.
        device: cpu, cuda ...; by default a GPU if there is one.
    """
    from synthaug._images.labeled import load_dataset
    from synthaug._training.checkpoints import record_command
    from synthaug.synthesizers import DiffusionInversion

    # The class names may be prompts. For them no image need be decoded, nor have any shape.
    classes = load_dataset(data, image_shape=(1, 1, 1), memory_limit=0).classes
    inversion = DiffusionInversion.from_pretrained(
        checkpoint,
        classes=classes,
        image_size=image_size,
        dtype=precision,
        device=device,
    )
    real = load(data, inversion.image_shape)
    config = learning.config()
    cost = inversion.cost(real, config, measure=estimate)
    record = {"images": len(real), "bytes": cost.bytes, "seconds": cost.seconds}
    if estimate:
        return Result(
            record={"checkpoint": None, "loss": None, "picture": None, **record}, text=str(cost)
        )
    print(cost, flush=True)
    inverted, result = inversion.fit(real, out, config=config)
    used = str(inverted.model.denoiser.dtype).removeprefix("torch.")
    record_command(out, call.having(precision=used).line)
    picture = Path(out) / "variants.png"
    _pictures.variants(inverted, real, picture)
    loss = result.loss_curve[-1][1] if result.loss_curve else None
    shown = "" if loss is None else f", loss {loss:.4f}"
    lines = (
        f"{len(real):,} embeddings{shown}: {out}. Real images and variants of each: {picture}",
        f"Next: synthaug generate {out} CACHE.h5 --ratio 5",
    )
    return Result(
        record={"checkpoint": out, "loss": loss, "picture": str(picture), **record},
        text="\n".join(lines),
    )
