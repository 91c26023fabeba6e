"""The vocabulary: shape, dtype and value range live in the type.

Axis names bind across the arguments of one call, so sets that may differ in size use `_n`.
"""

import os
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

Images: TypeAlias = Float[Tensor, "_n c h w"]
"""Model space: floating point, values in [-1, 1]."""

Pixels: TypeAlias = UInt8[Tensor, "_n c h w"]
"""Storage space: values in [0, 255]; `c` is 1 (gray) or 3 (RGB)."""

ImageShape: TypeAlias = tuple[int, int, int]
"""(C, H, W) of one image, or of a latent."""

Labels: TypeAlias = Int64[np.ndarray, " _n"]
"""Class indices."""

Indices: TypeAlias = Int64[np.ndarray, " _n"]
"""Row numbers of a plan or of a data set."""

Features: TypeAlias = Float[np.ndarray, "_n d"]
"""One row per image."""

Doubles: TypeAlias = NDArray[np.float64]
"""Numbers that are computed with; of any shape, as all arrays below."""

Singles: TypeAlias = NDArray[np.float32]
"""Numbers that a network made."""

Integers: TypeAlias = NDArray[np.int64]
"""Whole numbers: counts, or numbers of rows."""

Unsigned: TypeAlias = NDArray[np.uint64]
"""Digests, seeds and addresses."""

Bytes: TypeAlias = NDArray[np.uint8]
"""Gray levels, or the bytes of a file."""

Flags: TypeAlias = NDArray[np.bool_]
"""Masks."""

Array: TypeAlias = NDArray[Any]
"""Of any dtype."""

StrPath: TypeAlias = str | os.PathLike[str]
"""Where a file or a folder is."""

JSON: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
"""What a recipe, a manifest or a report may hold."""
