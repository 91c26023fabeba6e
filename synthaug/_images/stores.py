"""Where pixels come from: memory, image files, another data set, an HDF5 file.

Every store gives uint8 images of one shape, any rows in any order. `Conform` says what an image
file may be.
"""

import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from synthaug._images.convert import pixels_of, wrapped
from synthaug._images.fields import Adapter, field
from synthaug._pixels import to_pil
from synthaug._printable import printable_line
from synthaug._support.progress import bar
from synthaug._support.reading import open_regular
from synthaug._support.torch_state import lasting_tensors
from synthaug._types import Bytes, ImageShape, Integers
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, whatever its name says. Pillow knows more, and would start Ghostscript
for one of them, which runs programs in PostScript."""

_CHUNK = 256  # images per task of the thread pool
_ORIENTATION = 0x0112  # an EXIF tag: how a camera was held

Problem = DataError | MismatchError
"""Why a file cannot be used."""


@runtime_checkable
class Store(Protocol):
    """Where pixels come from: equal shapes, any order."""

    shape: ImageShape

    def read(self, rows: Integers) -> Bytes:
        """uint8 (len(rows), C, H, W)."""
        ...


class Conform:
    """An opened image to uint8 (C, H, W): converts what may be, refuses what may not be."""

    def __init__(
        self, size: tuple[int, int] | None, channels: int | None, *, upright: bool = False
    ) -> None:
        self.size = size  # (height, width)
        self.channels = channels
        self.upright = upright  # whether to turn images as their EXIF orientation says

    @classmethod
    def to(cls, image_shape: tuple[int, ...]) -> "Conform":
        """Returns the conversion of images to a shape (C, H, W); a ValueError if images cannot have
        it."""
        if len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape) < 1:
            raise ValueError(f"`image_shape` must be (C, H, W) with C 1 or 3, got {image_shape}.")
        return cls((image_shape[1], image_shape[2]), image_shape[0], upright=True)

    @property
    def changes(self) -> bool:
        """Whether it does anything to an image of mode L or RGB."""
        return self.size is not None or self.channels is not None

    def refuse(self, image: Image.Image) -> str | None:
        """Why an image cannot be used, judged by its header alone; `None` if it can."""
        if (frames := getattr(image, "n_frames", 1)) > 1:
            return f"has {frames} frames. Save the frame you want."
        if image.mode in ("I", "F") or image.mode.startswith("I;") or _is_16_bit(image):
            return (
                f"has more than 8 bits per value (mode {image.mode}). Convert it to 8 bits first, "
                "since only you know which range of values matters."
            )
        if self.channels is None and image.mode not in ("L", "RGB"):
            what = {"P": "a palette", "1": "two levels", "CMYK": "printing inks"}.get(
                image.mode, "an alpha channel" if _has_alpha(image) else "an unusual color space"
            )
            return (
                f"has mode {image.mode} ({what}). Convert all images when loading, with "
                "`channels=3` to RGB or with `channels=1` to gray."
            )
        return None

    def turned(self, image: Image.Image) -> Image.Image:
        """The image as its EXIF orientation says, if that is asked for."""
        turn = self.upright and (orientation(image) or 1) > 1
        return ImageOps.exif_transpose(image) if turn else image

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) that an image will have before it is resized, by its header."""
        width, height = image.size
        lies = self.upright and (orientation(image) or 1) > 4
        return (height, width) if lies else (width, height)

    def __call__(self, image: Image.Image, where: str) -> Bytes:
        reason = self.refuse(image)
        if reason is not None:
            raise MismatchError(f"{where} {reason}")
        if _has_alpha(image):
            lowest = int(np.asarray(image.convert("RGBA").getchannel("A")).min())
            if lowest < 255:
                raise MismatchError(
                    f"{where} has transparent pixels. Lay it on a background of your choice first."
                )
        image = self.turned(image)
        mode = {1: "L", 3: "RGB", None: image.mode}[self.channels]
        image = image.convert(mode)  # loads the pixels; a truncated file fails here
        if self.size is not None and image.size != self.size[::-1]:
            image = ImageOps.fit(image, self.size[::-1], Image.Resampling.BICUBIC)
        return pixels_of(image).numpy()

    def masked(self, mask: Any) -> Any:
        """A mask resized as its image is, each pixel from the nearest one, so that no value is new.

        Args:
            mask: A tensor (..., H, W), or an array (H, W) or (H, W, ...), of any dtype.
        """
        is_tensor = isinstance(mask, Tensor)
        height, width = mask.shape[-2:] if is_tensor else mask.shape[:2]
        if self.size is None or self.size == (height, width):
            return mask
        numbers = np.arange(height * width, dtype=np.int32).reshape(height, width)
        fitted = ImageOps.fit(
            Image.fromarray(numbers), self.size[::-1], Image.Resampling.NEAREST
        )  # of mode "I", which holds 2**31 pixels
        places = np.array(fitted)
        if is_tensor:
            return mask.flatten(-2)[..., torch.from_numpy(places).long().to(mask.device)]
        return mask.reshape(height * width, *mask.shape[2:])[places]

    def boxed(self, corners: Tensor, canvas: tuple[int, int]) -> Tensor:
        """Left, top, right and bottom of boxes, float (n, 4), resized and cut as their image is,
        which had the size `canvas` (H, W)."""
        if self.size is None or self.size == canvas:
            return corners
        scale = max(self.size[0] / canvas[0], self.size[1] / canvas[1])
        down, right = ((old * scale - new) / 2 for old, new in zip(canvas, self.size, strict=True))
        moved = corners * scale - corners.new_tensor([right, down] * 2)
        return moved.clamp(min=0).minimum(corners.new_tensor([*self.size[::-1]] * 2))


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an image that was opened, 1 (upright) to 8; loads no pixels.

    `None` if the image has EXIF that cannot be read; its pixels may be whole.
    """
    # Pillow turns TIFF itself, and would decode a PNG to look for EXIF behind its pixels.
    in_header = image.format != "PNG" or not image.info.keys().isdisjoint(("exif", "xmp"))
    if image.format == "TIFF" or not in_header:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises whatever damaged EXIF provokes
        return None
    if value is None and _is_damaged(image.info.get("exif", b"")):
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_damaged(exif: bytes) -> bool:
    """Whether EXIF is no list of tags, or is cut short; Pillow takes that of a JPEG for empty."""
    tags = exif
    while tags.startswith(b"Exif\0\0"):  # some write it twice, and Pillow reads these, too
        tags = tags[6:]
    order = {b"II": "<", b"MM": ">"}.get(tags[:2])
    if not tags or order is None:
        return bool(tags)
    try:
        start = struct.unpack_from(f"{order}I", tags, 4)[0]
        count = struct.unpack_from(f"{order}H", tags, start)[0]
    except struct.error:
        return True
    return bool(start + 2 + 12 * count > len(tags))  # 12 bytes a tag


def conformed(image: Any, conform: Conform) -> Any:
    """An image of any type that `pixels_of` accepts, as `load_dataset` loads it; the type stays."""
    is_pil = isinstance(image, Image.Image)
    array = conform(image if is_pil else to_pil(pixels_of(image)), "The image")
    pixels = torch.from_numpy(array)
    if is_pil:
        return to_pil(pixels)
    if isinstance(image, Tensor):
        levels = pixels if image.dtype == torch.uint8 else pixels.to(image.dtype) / 255
        return wrapped(levels.to(image.device), image)
    flat = image.ndim == 2 and len(array) == 1
    array = np.ascontiguousarray(array[0] if flat else array.transpose(1, 2, 0))  # CHW => HWC
    return array if image.dtype == np.uint8 else array.astype(image.dtype) / 255


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow opens 16-bit RGB as mode RGB and drops the lower half of each value without a word.
    # How the file holds them is in the decoder's first argument, e.g. "RGB;16B".
    for tile in getattr(image, "tile", ()):
        raw = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        if isinstance(raw, str) and re.search(";16[BLN]$", raw):
            return True
    return False


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Opens an image file whose format is one of `IMAGE_FORMATS`, without decoding it."""
    with open_regular(path) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
        yield image


def unreadable(path: str, error: Exception) -> str:
    """Says why an image file cannot be used, and what to do."""
    if isinstance(error, UnidentifiedImageError):  # whose message names our handle of the file
        error = ValueError(f"it is none of {', '.join(IMAGE_FORMATS)}")
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"{path} cannot be opened: {error.strerror}."
    return (
        f"{path} cannot be decoded ({error}). The file is damaged or is not an image: "
        "replace it or delete it."
    )


class Memory:
    """Decoded images. A tensor, since workers started by `spawn` share it instead of copying it."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"`images` is {pixels.dtype} with shape {tuple(pixels.shape)}, expected uint8 "
                "(N, C, H, W) with C 1 or 3."
            )
        self.pixels = pixels.contiguous()
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def read(self, rows: Integers) -> Bytes:
        return self.pixels.numpy()[rows]


class Files:
    """Image files of one shape, decoded when read."""

    def __init__(
        self, paths: Sequence[str], conform: "Conform", shape: ImageShape, folder: str
    ) -> None:
        self.paths = [os.path.abspath(path) for path in paths]  # whatever the folder is later
        self.folder = os.path.abspath(folder)
        self.conform = conform
        self.shape = shape

    @property
    def names(self) -> list[str]:
        """The files as a report names them: relative to the folder that was given, printable."""
        return [printable_line(os.path.relpath(path, self.folder)) for path in self.paths]

    def read(self, rows: Integers, problems: MutableMapping[int, Problem] | None = None) -> Bytes:
        """uint8 (len(rows), C, H, W); why a row cannot be read is raised, or put in `problems`."""
        out = np.zeros((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows):
            try:
                out[i] = self.decode(row)
            except (DataError, MismatchError) as problem:
                if problems is None:
                    raise
                problems[int(row)] = problem
        return out

    def decode(self, row: int, change: Callable[[Image.Image], Image.Image] | None = None) -> Bytes:
        """One image, uint8 (C, H, W).

        Args:
            row: Its number.
            change: A change of the whole image before it is resized and converted.
        """
        path = self.paths[row]
        try:
            with open_image(path) as image:
                whole = image if change is None else change(self.conform.turned(image))
                return self.conform(whole, path)
        except (DataError, MismatchError):
            raise
        except Exception as error:  # Pillow's decoders raise whatever the bytes provoke
            raise DataError(unreadable(path, error)) from error


class Indexed:
    """A map-style data set of images of one shape."""

    def __init__(
        self,
        dataset: Any,
        first: int,
        conform: "Conform | None" = None,
        fields: Adapter | None = None,
    ) -> None:
        self.dataset = dataset
        self.conform = conform
        self.fields = fields
        _warn_if_turned(dataset)
        self.shape = tuple(self._image(first).shape)

    def _image(self, row: int) -> Bytes:
        item = self.dataset[row]
        image = field(item, "image") if self.fields is None else self.fields.get(item)[0]
        where = f"Image {row} of {type(self.dataset).__name__}"
        if self.conform is not None and isinstance(image, Image.Image):
            return self.conform(image, where)
        try:
            array = pixels_of(image).numpy()
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} cannot be used. {error}") from error
        if self.conform is not None:
            return self.conform(to_pil(torch.from_numpy(array)), where)
        return array

    def read(self, rows: Integers) -> Bytes:
        out = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows):
            image = self._image(int(row))
            if image.shape != self.shape:
                raise MismatchError(
                    f"Image {row} of {type(self.dataset).__name__} has shape {image.shape}, others "
                    f"have {self.shape}. Bring all to one size and mode when loading, for example "
                    "with `image_size=32` and `channels=3`."
                )
            out[i] = image
        return out


_LOOKED_AT = 64
"""How many files of a folder of torchvision are looked at for an EXIF orientation."""
_looked_through: WeakSet[Any] = WeakSet()


def _warn_if_turned(dataset: Any) -> None:
    """Warns, once, of a folder of torchvision with photos that its loader leaves on their side."""
    from torchvision.datasets.folder import DatasetFolder, default_loader

    if not isinstance(dataset, DatasetFolder) or dataset in _looked_through:
        return
    _looked_through.add(dataset)
    places = np.unique(np.linspace(0, len(dataset.samples) - 1, _LOOKED_AT).astype(int))
    paths = [dataset.samples[place][0] for place in places] if len(dataset.samples) else []
    turned = [path for path in paths if _orientation_of(path) > 1]
    if turned and dataset.loader is default_loader:
        log.warning(
            "%d of %d files of %s that were looked at have an EXIF orientation, which torchvision "
            "ignores: these photos lie on their side, or are mirrored (%s). `load_dataset` turns "
            "them; or give the data set a `loader` that does, by `PIL.ImageOps.exif_transpose`.",
            len(turned),
            len(paths),
            type(dataset).__name__,
            turned[0],
        )


def _orientation_of(path: str) -> int:
    try:
        with open_image(path) as image:
            return orientation(image) or 1
    except Exception:  # whoever reads its pixels says what is wrong with it
        return 1


def open_hdf5(path: str) -> Any:
    """Opens an HDF5 file to read, also where it cannot be locked, as on some network file systems;
    an OSError if it cannot be read."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        # No lock to be had; or the file is open already, and was opened without one.
        if "lock file" not in str(error) and "locking flag" not in str(error):
            raise
        _tell_unlocked(os.path.abspath(path))
        return h5py.File(path, "r", locking=False)


@cache
def _tell_unlocked(path: str) -> None:
    """Warns once."""
    log.warning("%s cannot be locked, and is read without a lock: do not write to it now.", path)


class HDF5:
    """Images of an HDF5 file. Opened in each process, since a handle must not cross a fork."""

    def __init__(self, path: str, rows: Integers, last: bool, conform: "Conform") -> None:
        self.path = os.path.abspath(path)
        self.rows = rows
        self.last = last  # whether the channels are the last axis
        self.conform = conform
        self.file: Any = None
        self.pid = -1
        self.shape = tuple(self.read(np.zeros(1, np.int64)).shape[1:])

    def read(self, rows: Integers) -> Bytes:
        if not len(rows):
            return np.empty((0, *self.shape), np.uint8)
        if self.pid != os.getpid():
            self.file, self.pid = open_hdf5(self.path), os.getpid()
        wanted, back = np.unique(self.rows[rows], return_inverse=True)  # h5py wants them increasing
        whole = wanted[-1] - wanted[0] + 1 == len(wanted)  # a slice is read many times faster
        try:
            images = self.file["images"][slice(wanted[0], wanted[-1] + 1) if whole else wanted]
        except Exception as error:  # what HDF5 raises for damaged bytes is not documented
            raise DataError(
                f"{self.path} cannot be read in rows {wanted[0]} to {wanted[-1]} ({error}). The "
                "file is damaged: replace it."
            ) from error
        images = images[back]
        if self.last:
            images = images.transpose(0, 3, 1, 2)  # NHWC => NCHW
        if self.conform.changes:
            where = f"An image of {self.path}"
            images = [self.conform(to_pil(torch.from_numpy(x.copy())), where) for x in images]
        return np.ascontiguousarray(images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None, "pid": -1}


@lasting_tensors()  # threads fill it, and inference mode belongs to one
def gather(
    store: Any,
    rows: Integers,
    progress: bool | None,
    description: str,
    problems: MutableMapping[int, Problem] | None = None,
) -> Tensor:
    """All images of a store in one tensor, uint8 (n, C, H, W), decoded by a thread per CPU.

    With `problems`, files that cannot be decoded are named there, by their rows, and black.
    """
    out = torch.empty((len(rows), *store.shape), dtype=torch.uint8, device="cpu")
    starts = range(0, len(rows), _CHUNK)

    def fill(start: int) -> int:
        part = rows[start : start + _CHUNK]
        read = store.read(part, problems) if isinstance(store, Files) else store.read(part)
        out[start : start + len(part)] = torch.from_numpy(read)
        return len(part)

    # Foreign data sets and h5py promise nothing about threads; files are ours.
    workers = (os.cpu_count() or 1) if isinstance(store, Files) else 1
    with (
        bar(len(rows), description, "image", delay=2, progress=progress) as shown,
        ThreadPoolExecutor(workers) as pool,
    ):
        for done in pool.map(fill, starts):
            shown.update(done)
    return out
