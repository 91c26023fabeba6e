"""What an audit compares: a cache, a data set or bare pixels, brought to one form and checked."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._data import as_pixels, classes_of, labels_of
from synthaug._types import JSON, Indices, Labels, Pixels


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with what is known about them."""

    name: str
    """The argument they came from: `synthetic`, `train` or `holdout`."""
    pixels: Pixels
    """uint8 (n, C, H, W)."""
    rows: Indices
    """Row number of each image in what was given, int64 (n,)."""
    total: int
    """Rows in what was given, at least n."""
    labels: Labels
    """Class of every row given, int64 (total,); -1 if unknown."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    identity: dict[str, JSON]
    """What was given: a cache's own identity, else the number and a digest of the images."""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: NDArray[np.bool_]) -> "ImageSet":
        """Some of the images, under their old row numbers."""
        return ImageSet(
            name=self.name,
            pixels=self.pixels[torch.from_numpy(np.flatnonzero(keep))],
            rows=self.rows[keep],
            total=self.total,
            labels=self.labels,
            classes=self.classes,
            identity=self.identity,
        )


def image_set(given: Any, name: str, *, progress: bool) -> ImageSet:
    """Reads what was given as argument `name`.

    Args:
        given: uint8 tensor or array (n, C, H, W); a cache, of which the finished rows are read; or
            any map-style image data set.
        name: For messages.
        progress: Shows a bar if reading takes long.

    Raises:
        TypeError: It is none of these, or an array of another dtype.
        ValueError: It holds no image, or an array has another shape.
    """
    if isinstance(given, Tensor | np.ndarray):
        pixels = torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given.cpu()
        if pixels.dtype != torch.uint8:
            raise TypeError(
                f"`{name}` has dtype {pixels.dtype}, expected uint8 with values 0 to 255."
            )
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"`{name}` has shape {tuple(pixels.shape)}, expected (n, C, H, W) with C 1 or 3."
            )
        rows = np.arange(len(pixels))
        labels: Labels = np.full(len(pixels), -1, np.int64)
        classes: tuple[str, ...] = ()
    elif hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        done = getattr(given, "done", None)
        rows = np.arange(len(given)) if done is None else np.flatnonzero(np.asarray(done))
        if len(rows) == 0:
            what = "no row is generated yet" if len(given) else "it holds no image"
            raise ValueError(f"`{name}` cannot be audited: {what}.")
        pixels = as_pixels(given, rows, progress=progress)
        labels, classes = labels_of(given), tuple(map(str, classes_of(given) or ()))
    else:
        raise TypeError(
            f"`{name}` is a {type(given).__name__}, expected a cache, a map-style data set or "
            "uint8 pixels (n, C, H, W)."
        )
    if len(pixels) == 0:
        raise ValueError(f"`{name}` holds no image.")
    return ImageSet(
        name=name,
        pixels=pixels.contiguous(),
        rows=rows.astype(np.int64),
        total=len(labels),
        labels=np.asarray(labels, np.int64),
        classes=classes,
        identity=_identity(given, pixels),
    )


def keys(pixels: Pixels) -> list[bytes]:
    """A content key of 16 bytes per image: images of one shape are equal if their keys are."""
    flat = pixels.reshape(len(pixels), -1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in flat]


def check_comparable(*sets: ImageSet) -> None:
    """All sets hold images of one shape.

    Their classes may differ: a generator may have been trained on other classes than it is used
    for, and can copy those as well.

    Raises:
        ValueError: Naming the two sets, both shapes and the remedy.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.pixels.shape[1:] != first.pixels.shape[1:]:
            raise ValueError(
                f"`{first.name}` holds images of shape {tuple(first.pixels.shape[1:])}, "
                f"`{other.name}` of shape {tuple(other.pixels.shape[1:])}. Load the real images "
                "with the `image_size` and `channels` of the synthetic ones."
            )


def _identity(given: Any, pixels: Pixels) -> dict[str, JSON]:
    identity = getattr(given, "identity", None)
    if isinstance(identity, dict):
        return identity
    fingerprint = getattr(given, "fingerprint", None)
    if not isinstance(fingerprint, str):
        hashed = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
        for start in range(0, len(pixels), 4096):
            hashed.update(pixels[start : start + 4096].numpy().tobytes())
        fingerprint = hashed.hexdigest()
    return {"fingerprint": fingerprint, "rows": len(pixels)}
