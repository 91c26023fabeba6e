"""Images and labels of any common type to our pixels, and back to the type that they came in.

Real and synthetic images must leave a data set in one type, or the first batch that mixes them
fails in `default_collate`. So each foreign type is converted in one place, here:

    pixels_of(image) -> uint8 (C, H, W)        # what the cache, the digests and the audit speak
    like(pixels, example) -> an image of the type of `example`
    label_like(label, example) -> a label of the type of `example`
    probabilities_like(values, example) -> class probabilities of the type of `example`

Float images are in [0, 1], as torchvision has them. Our model space [-1, 1] never comes here.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthaug._pixels import channels_last, to_pil

Transform = Callable[[Any], Any]

_MODES = {"L": 1, "RGB": 3}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_BRIGHT = 16
"""Beyond any value of an image that was normalized, and soon reached from 0 to 255."""
_SMALL = 64 * 64
"""Pixels above which Pillow merges planes faster than numpy weaves them."""
_SLACK = 1e-4
"""Resizing and bfloat16 overshoot [0, 1] a little; normalized images do so by far more."""


def describe(image: Any) -> str:
    """A few words on the type of an image, for messages."""
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.width}x{image.height}"
    if isinstance(image, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(image, Tensor) else "an array"
        return f"{kind} of {image.dtype} with shape {tuple(image.shape)}"
    return f"{type(image).__module__}.{type(image).__qualname__}"


def pixels_of(image: Any) -> Tensor:
    """One image of any common type as uint8 (C, H, W), C 1 or 3.

    Args:
        image: A PIL image of mode L or RGB; a tensor (C, H, W), also a `tv_tensors.Image`, uint8 or
            floating point in [0, 1]; an array (H, W) or (H, W, C), uint8 or floating point in
            [0, 1]. Float images are rounded to the nearest of the 256 levels.

    Returns:
        A tensor on the CPU. It may share memory with `image`: do not write to it.

    Raises:
        TypeError: For any other type or dtype.
        ValueError: For another PIL mode, another shape, or values outside [0, 1].
    """
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise ValueError(
                f"Got {describe(image)}, expected mode L or RGB. Convert it first, "
                'for example with `image.convert("RGB")`.'
            )
        array = np.array(image)  # a copy: torch warns about memory that it must not write to
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise ValueError(
                f"Got {describe(image)}, expected (H, W) or (H, W, C) with C 1 or 3. "
                "Arrays have their channels last, tensors have them first."
            )
        hwc = image[..., None] if image.ndim == 2 else image
        return _levels(
            torch.from_numpy(np.require(hwc.transpose(2, 0, 1), requirements=["C", "W"])), image
        )
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(
                f"Got {describe(image)}, expected (C, H, W) with C 1 or 3. "
                "Tensors have their channels first, arrays have them last."
            )
        return _levels(image.detach().as_subclass(Tensor).cpu(), image)
    raise TypeError(f"Got {describe(image)}, expected a PIL image, a tensor or a numpy array.")


def size_of(image: Any) -> tuple[int, ...] | None:
    """(height, width) of what may be an image or a mask, of any common type."""
    if isinstance(image, Image.Image):
        return image.size[::-1]
    if isinstance(image, Tensor):
        return tuple(image.shape[-2:])
    return image.shape[:2] if isinstance(image, np.ndarray) else None


def _levels(chw: Tensor, image: Any) -> Tensor:
    if chw.dtype == torch.uint8:
        return chw
    advice = (
        "Normalize after the images of both kinds came together: take `Normalize` off this data "
        "set, and give it where the images are used."
    )
    check_unit_range(chw, image, advice)
    return (chw.float() * 255).round().clamp(0, 255).to(torch.uint8)


def check_unit_range(values: Tensor, image: Any, remedy: str) -> None:
    """Refuses images that are not floating point in [0, 1].

    Args:
        values: The numbers of the image.
        image: The image or the batch as it came, for the message.
        remedy: A sentence, for values that do not look like levels from 0 to 255.

    Raises:
        TypeError: For another dtype.
        ValueError: For other values.
    """
    if not values.is_floating_point():
        raise TypeError(f"Got {describe(image)}, expected uint8, or floating point in [0, 1].")
    low, high = (float(v) for v in values.detach().aminmax()) if values.numel() else (0.0, 0.0)
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # a NaN fails this too
        if low >= 0 and high > _BRIGHT:
            remedy = "Divide by 255, or give uint8."
        raise ValueError(
            f"Got {describe(image)} with values from {low:.4g} to {high:.4g}, expected [0, 1]. "
            + remedy
        )


def like(pixels: Tensor, example: Any) -> Any:
    """One image, uint8 (C, H, W), in the type of `example`.

    Args:
        pixels: uint8 (C, H, W).
        example: An image that `pixels_of` accepts. Its type, PIL mode, dtype, device and axes are
            followed, its size is not.

    Raises:
        TypeError: If `example` has a type that `pixels_of` refuses.
        ValueError: If the numbers of channels differ.
    """
    channels: int | None
    if isinstance(example, Image.Image):
        channels = _MODES.get(example.mode)
    elif isinstance(example, np.ndarray):
        channels = 1 if example.ndim == 2 else example.shape[2]
    elif isinstance(example, Tensor):
        channels = example.shape[0]
    else:
        raise TypeError(
            f"An image cannot be converted to {describe(example)}. Give a PIL image, a "
            "tensor or a numpy array."
        )
    if pixels.shape[0] != channels:
        raise ValueError(
            f"An image of {pixels.shape[0]} channels cannot be converted to "
            f"{describe(example)}. Give both the same number of channels."
        )
    if isinstance(example, Image.Image):
        return to_pil(pixels)
    if isinstance(example, np.ndarray):
        hwc = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))  # CHW => HWC
        array = hwc[:, :, 0] if example.ndim == 2 else hwc
        if example.dtype == np.uint8:
            return array
        return array.astype(example.dtype) / example.dtype.type(255)
    image = pixels.clone() if example.dtype == torch.uint8 else pixels.to(example.dtype) / 255
    return wrapped(image.to(example.device), example)


def all_like(pixels: Tensor, example: Any) -> list[Any]:
    """Images, uint8 (n, C, H, W), each as `like` makes it; small ones for PIL in less time.

    Raises:
        TypeError, ValueError: Under the same conditions as `like`.
    """
    n, channels, height, width = pixels.shape
    to_rgb = isinstance(example, Image.Image) and example.mode == "RGB" and channels == 3
    if to_rgb and n > 1 and height * width <= _SMALL:
        woven = channels_last(pixels.numpy())
        return [Image.frombytes("RGB", (width, height), hwc.tobytes()) for hwc in woven]
    return [like(image, example) for image in pixels]


def wrapped(image: Tensor, example: Tensor) -> Tensor:
    """A tensor in the class of another one, such as `tv_tensors.Image`."""
    if type(example) is Tensor:
        return image
    from torchvision import tv_tensors

    return tv_tensors.wrap(image, like=example)


def label_like(label: int, example: Any) -> Any:
    """A class index in the type of `example`: int, numpy integer, or integer tensor without axes;
    another type is a TypeError."""
    if isinstance(example, bool | np.bool_):
        raise TypeError(f"Labels must be class indices, got {example!r}.")
    if isinstance(example, int):
        return int(label)
    if isinstance(example, np.integer):
        return type(example)(label)
    if isinstance(example, np.ndarray) and example.ndim == 0 and example.dtype.kind in "iu":
        return np.asarray(label, example.dtype)
    if isinstance(example, Tensor) and example.ndim == 0 and example.dtype in _INTEGERS:
        return torch.tensor(label, dtype=example.dtype, device=example.device)
    raise TypeError(
        f"Labels must be class indices (int, numpy integer or integer tensor without axes), "
        f"got {example!r}."
    )


def is_probabilities(label: Any) -> bool:
    """Whether a label is a vector of class probabilities: a tensor or an array, float (K,)."""
    if isinstance(label, Tensor):
        return label.ndim == 1 and label.is_floating_point()
    return isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind == "f"


def probabilities_like(values: NDArray[np.floating[Any]], example: Any) -> Any:
    """Class probabilities (K,) in the type of `example`, for which `is_probabilities` holds."""
    if isinstance(example, Tensor):
        return torch.tensor(values, dtype=example.dtype, device=example.device)
    return np.array(values, example.dtype)


def label_of(label: Any) -> Any:
    """A label of an item as an int, or as an array of class probabilities, float (K,); anything
    else is a TypeError."""
    return np.asarray(label) if is_probabilities(label) else operator.index(label)
