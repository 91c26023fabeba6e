"""Commands about diffusion inversion: train a generator on tokens, learn embeddings."""

from pathlib import Path
from typing import Any, Literal

from synthaug._cli._inputs import load


def invert(
    checkpoint: str,
    data: str,
    out: str,
    *,
    updates: int = 100,
    snapshots: list[int] | None = None,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    start: Literal["encoder", "prompt", "noise"] | None = None,
    num_tokens: int | None = None,
    block_size: int = 1024,
    image_size: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    estimate: bool = False,
    checkpoint_seconds: float = 120.0,
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Learn an embedding of every image (diffusion inversion); run again to resume.

    synthaug invert runs/tokens folder:cifar10/train runs/inverted --updates 100

    Args:
        checkpoint: From `train --condition tokens`; or a Stable Diffusion directory, or
            hub:OWNER/NAME.
        data: Labelled images: folder:PATH, torchvision:NAME, hdf5:PATH or digits. They are brought
            to the image size and channels of the checkpoint.
        out: Directory to write; `generate` draws variants from it.
        updates: Updates that every embedding receives.
        snapshots: Further numbers of updates at which embeddings are kept, such as '[30, 60]'.
        batch_size: Images per step. Does not change the embeddings.
        learning_rate: Of Adam; falls linearly to 0.
        start: What embeddings start from; by default the best that the checkpoint has.
        num_tokens: Tokens per image, if there is no encoder.
        block_size: Images that are learned at once.
        image_size: Height and width to learn and draw at, if not the checkpoint's own.
        dtype: Of the network; embeddings are float32 always.
        compile: Compile the network: a slow start, then faster steps.
        estimate: Only print what it will cost.
        checkpoint_seconds: Seconds between checkpoints.
        device: cpu, cuda ...; a GPU if there is one by default.
        seed: Seed of all noise.
    """
    import torch

    from synthaug._data import load_dataset
    from synthaug.synthesizers import DiffusionInversion, InversionConfig

    # The class names may be prompts. For them no image need be decoded, nor have any shape.
    classes = load_dataset(data, image_shape=(1, 1, 1), memory_limit=0).classes
    inversion = DiffusionInversion.from_pretrained(
        checkpoint,
        classes=classes,
        image_size=image_size,
        dtype=getattr(torch, dtype),
        device=device,
    )
    real = load(data, inversion.image_shape)
    config = InversionConfig(
        updates=updates,
        snapshots=tuple(snapshots or ()),
        batch_size=batch_size,
        learning_rate=learning_rate,
        start=start,
        num_tokens=num_tokens,
        block_size=block_size,
        compile=compile,
        checkpoint_seconds=checkpoint_seconds,
        seed=seed,
    )
    print(inversion.cost(real, config, measure=estimate), flush=True)
    if estimate:
        return
    inverted, result = inversion.fit(real, out, config=config)
    picture = Path(out) / "variants.png"
    _picture(inverted, real, picture)
    loss = f", loss {result.loss_curve[-1][1]:.4f}" if result.loss_curve else ""
    print(f"{len(real):,} embeddings{loss}: {out}. Real images and variants of each: {picture}")


def _picture(inverted: Any, real: Any, path: Path, images: int = 8, variants: int = 7) -> None:
    """A row per image: the real one, then variants of it."""
    import numpy as np
    import torch

    from synthaug._pixels import grid, to_pixels

    plan = inverted.plan(ratio=variants, interpolation=0)
    shown = np.unique(np.linspace(0, len(real) - 1, images).astype(int))
    rows = np.concatenate([np.flatnonzero(plan["source"] == i)[:variants] for i in shown])
    drawn = to_pixels(inverted.draw(plan[rows])).unflatten(0, (len(shown), -1))
    sheet = torch.cat([real.read(shown)[:, None], drawn], 1).flatten(0, 1)
    grid(sheet, columns=drawn.shape[1] + 1, scale=max(1, 32 // real.image_shape[-1])).save(path)
