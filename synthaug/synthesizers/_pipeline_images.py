"""Images that a pipeline is called with, made from the real images that rows start from."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from synthaug._noise import rand, streams
from synthaug._types import Pixels, Unsigned

_MASKS = np.uint64(0x6D61736B)
"""Sets the streams of masks apart from those of the noise: "mask" in ASCII."""
_OUTLINE = 0.1
"""Slope of the brightness from which on a pixel belongs to an outline, per pixel of full range."""


def _source(pixels: Pixels, seeds: Unsigned) -> Pixels:
    del seeds
    return pixels


def _edges(pixels: Pixels, seeds: Unsigned) -> Pixels:
    """White outlines on black, uint8 (n, 1, H, W): where the Sobel slope of the brightness is high.

    Sobel and Feldman 1968.
    """
    del seeds
    brightness = pixels.float().mean(1, keepdim=True) / 255
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float32, device="cpu") / 4
    slope = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float32, device="cpu") / 2
    kernels = torch.stack([smooth.outer(slope), slope.outer(smooth)])[:, None]
    padded = torch.nn.functional.pad(brightness, (1, 1, 1, 1), mode="replicate")
    steep = torch.nn.functional.conv2d(padded, kernels).norm(dim=1, keepdim=True) > _OUTLINE
    return steep.to(torch.uint8) * 255


def _box(pixels: Pixels, seeds: Unsigned) -> Pixels:
    """Masks, uint8 (n, 1, H, W): 255 in a box with a quarter to three quarters of each side."""
    n, _, height, width = pixels.shape
    drawn = rand(streams(seeds ^ _MASKS), (4,))
    masks = torch.zeros(n, 1, height, width, dtype=torch.uint8, device="cpu")
    for mask, (tall, wide, down, right) in zip(masks, drawn.tolist(), strict=True):
        rows, columns = round(height * (0.25 + tall / 2)), round(width * (0.25 + wide / 2))
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        mask[:, top : top + rows, left : left + columns] = 255
    return masks


MADE: Mapping[str, Callable[[Pixels, Unsigned], Pixels]] = {
    "source": _source,
    "edges": _edges,
    "box": _box,
}
"""How an image is made from real images uint8 (n, C, H, W) and the seeds of rows, uint64 (n,)."""


def made_from(pixels: Pixels, seeds: Unsigned, images: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a call that are images, one per row and as Pillow's, which all pipelines take.

    Args:
        pixels: The real images, uint8 (n, C, H, W).
        seeds: Seed of every row, uint64 (n,).
        images: How each argument is made, see `MADE`.
    """
    made: dict[str, Any] = {}
    for name, kind in images.items():
        pictures = [_picture(image, masked=kind == "box") for image in MADE[kind](pixels, seeds)]
        # An adapter takes a list for each of its image encoders.
        made[name] = [pictures] if name.startswith("ip_adapter") else pictures
    return made


def _picture(image: Pixels, *, masked: bool) -> Image.Image:
    if masked:
        return Image.fromarray(image[0].numpy())
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def image_to_image(pipeline: Any, images: Mapping[str, str]) -> Any:
    """The pipeline with the same parts that takes images, as diffusers pairs them; a TypeError if
    there is none, or it does not take an argument of `images`."""
    from diffusers import AutoPipelineForImage2Image

    name = type(pipeline).__name__
    try:
        partner: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
    except (AttributeError, ValueError) as error:  # it is no diffusers pipeline, or not paired
        raise TypeError(
            f"{name} takes no `{next(iter(images))}`, and diffusers knows no image-to-image "
            "pipeline of its parts. Draw without sources, or load a pipeline that takes images."
        ) from error
    bar = vars(pipeline).get("_progress_bar_config")
    if bar is not None:
        partner.set_progress_bar_config(**bar)
    return partner
