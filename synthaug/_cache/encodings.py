"""How images are stored: raw pixels, or image files.

An image file from a stranger may claim a size that does not fit into memory. So its header is read
first, by us, and only a file that says what the cache says is handed to the decoder.

PNG and JPEG are decoded by Pillow: torchvision is as fast, but ends the process on some damaged PNG
files. WebP is decoded by torchvision, because there Pillow's threads wait for each other.
"""

import io
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, final

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from torchvision.io import ImageReadMode  # also makes its operators known to torch

from synthaug._pixels import to_pil
from synthaug._support.system import usable_processors
from synthaug._types import Bytes, ImageShape, Pixels

RAW_UP_TO = 128
"""Pixels of a side up to which images are stored raw if nothing else is asked for."""
LOSSLESS = "webp"
"""Above that: of the lossless encodings the smaller one, and the faster one both ways."""
_MAX_WEBP_SIDE = 16_383
_MAX_PIXELS = 2**26
"""Of one image that is encoded: a small file may hold a large image, and of larger ones Pillow
warns."""
_KINDS = "'raw', 'png', 'webp' or 'jpeg:QUALITY', such as 'jpeg:95'"
_MOST_THREADS = 8

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class UndecodableError(Exception):
    """Why a file is not the image that a cache declares."""


@final
@dataclass(frozen=True)
class Encoding:
    """How the images of a cache are stored."""

    kind: str
    """"raw", "png", "webp" (lossless) or "jpeg"."""
    quality: int | None = None
    """Of JPEG, 1 to 100."""

    @classmethod
    def parse(cls, text: str) -> "Encoding":
        """Reads "raw", "png", "webp" or "jpeg:95"; anything else is a ValueError."""
        match = re.fullmatch(r"(raw|png|webp)|jpeg:([1-9]\d?|100)", str(text))
        if match is None:
            raise ValueError(f"`encoding` must be {_KINDS} with 1 to 100, got {text!r}.")
        return cls(match[1]) if match[1] else cls("jpeg", int(match[2]))

    @classmethod
    def chosen(cls, text: str | None, image_shape: Sequence[int]) -> "Encoding":
        """The encoding that is asked for, or the usual one for images (C, H, W). A ValueError if
        `text` is none, or one that cannot hold such images."""
        if text is None:
            _, height, width = image_shape
            fits = max(height, width) <= _MAX_WEBP_SIDE and height * width <= _MAX_PIXELS
            return cls(LOSSLESS if fits and max(height, width) > RAW_UP_TO else "raw")
        encoding = cls.parse(text)
        if not encoding.raw and image_shape[1] * image_shape[2] > _MAX_PIXELS:
            raise ValueError(
                f"`encoding={text!r}` stores images of at most {_MAX_PIXELS:,} pixels, and "
                f"these have {image_shape[1]} x {image_shape[2]}. Use 'raw'."
            )
        if encoding.kind == "webp" and max(image_shape[1:]) > _MAX_WEBP_SIDE:
            raise ValueError(
                f"`encoding='webp'` stores images of at most {_MAX_WEBP_SIDE:,} pixels a "
                f"side, and these have {image_shape[1]} x {image_shape[2]}. Use 'png'."
            )
        return encoding

    @property
    def raw(self) -> bool:
        """Whether pixels are stored as they are."""
        return self.kind == "raw"

    @property
    def lossy(self) -> bool:
        """Whether an image that is read is not quite the one that was written."""
        return self.kind == "jpeg"

    def __str__(self) -> str:
        return self.kind if self.quality is None else f"{self.kind}:{self.quality}"

    def encoded(self, images: Bytes) -> list[bytes]:
        """Files of images, uint8 (n, C, H, W), with the losses that the encoding has."""
        return on_threads(self._file, torch.from_numpy(images))

    def _file(self, image: Pixels) -> bytes:
        options: dict[str, Any] = {}
        if self.kind == "webp":  # the fastest: more effort saves a tenth of the bytes at most
            options = {"lossless": True, "quality": 0, "method": 0}
        elif self.kind == "jpeg":
            # Without subsampling of colors no decoder has a choice how to fill them in again.
            options = {"quality": self.quality, "subsampling": 0}
        buffer = io.BytesIO()
        picture = to_pil(image)
        if self.kind == "webp":  # knows no gray
            picture = picture.convert("RGB")
        picture.save(buffer, format=self.kind.upper(), **options)
        return buffer.getvalue()

    def decoded(self, files: Iterable[bytes], shape: Sequence[int]) -> Bytes:
        """Images of files, uint8 (n, C, H, W); an UndecodableError if a file is not of this
        encoding and shape."""
        data = [np.frombuffer(bytearray(file), np.uint8) for file in files]
        pixels = np.empty((len(data), *shape), np.uint8)
        on_threads(lambda item: self.decode_into(*item), zip(data, pixels, strict=True))
        return pixels

    def decode_into(self, data: Bytes, image: Bytes) -> None:
        """Decodes a file, uint8 (n,), into an image, uint8 (C, H, W); an UndecodableError if it is
        none of this encoding and shape."""
        channels, height, width = image.shape
        header, decode, stored_channels = _FORMATS[self.kind]
        try:
            claimed = header(data)
        except (struct.error, IndexError, ValueError):
            raise UndecodableError(f"no {self.kind.upper()} file as we write them") from None
        stored = (stored_channels or channels, height, width)
        if claimed != stored:
            c, h, w = claimed
            raise UndecodableError(
                f"an image of {h:,} x {w:,} pixels and {c} channels, expected {height:,} x "
                f"{width:,} and {stored[0]}"
            )
        try:
            decoded = decode(data, stored)
        except Exception as error:  # what Pillow raises for damaged files is not documented
            reason = str(error).partition("\n")[0]
            raise UndecodableError(f"it does not decode: {reason}") from None
        if decoded.shape != stored:
            raise UndecodableError(f"it decodes to an image of the shape {decoded.shape}")
        np.copyto(image, decoded[:channels])


def _png_header(data: Bytes) -> ImageShape:
    """(C, H, W) of a PNG file of 8 bits, not interlaced; other files are a ValueError."""
    start = bytes(data[:29])
    if start[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        raise ValueError
    width, height, *kind = struct.unpack(">IIBBBBB", start[16:])
    return {(8, 0, 0, 0, 0): 1, (8, 2, 0, 0, 0): 3}.get(tuple(kind), 0), height, width


def _webp_header(data: Bytes) -> ImageShape:
    """(C, H, W) of a plain lossless WebP file; others are a ValueError."""
    start = bytes(data[:25])
    if start[:4] != b"RIFF" or start[8:16] != b"WEBPVP8L" or start[20] != 0x2F:
        raise ValueError
    bits = int.from_bytes(start[21:25], "little")
    return 3 + (bits >> 28 & 1), (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1


def _jpeg_header(data: Bytes) -> ImageShape:
    """(C, H, W) of a baseline JPEG file of 8 bits; others are a ValueError."""
    if bytes(data[:2]) != b"\xff\xd8":
        raise ValueError
    at = 2
    while True:
        mark, kind, length = struct.unpack(">BBH", bytes(data[at : at + 4]))
        if kind == 0xC0 and mark == 0xFF:
            bits, height, width, channels = struct.unpack(">BHHB", bytes(data[at + 4 : at + 10]))
            return channels if bits == 8 else 0, height, width
        # Tables and comments may stand before the frame, other kinds of frames and scans not.
        if mark != 0xFF or not (kind in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= kind <= 0xEF):
            raise ValueError
        at += 2 + length


def _by_pillow(data: Bytes, shape: ImageShape) -> Bytes:
    with Image.open(io.BytesIO(data.data), formats=("PNG", "JPEG", "WEBP")) as picture:
        # Of several headers in a file it obeys the last one. No pixel has been decoded yet.
        if (picture.mode, picture.size) != ("L" if shape[0] == 1 else "RGB", shape[:0:-1]):
            raise ValueError(f"a second header says {picture.size} pixels, {picture.mode}")
        pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # HWC => CHW


def _by_torchvision(data: Bytes, shape: ImageShape) -> Bytes:
    del shape  # it knows the one header that we have read
    # Not by its function in Python: that warns of its end each time, and where warnings are errors
    # every image would look damaged.
    decode = torch.ops.image.decode_webp
    pixels: Bytes = decode(torch.from_numpy(data), ImageReadMode.UNCHANGED.value).numpy()
    return pixels


def _decode_webp(data: Bytes, shape: ImageShape) -> Bytes:
    return _webp_decoder()(data, shape)


@cache
def _webp_decoder() -> "_Decoder":
    """Torchvision's, unless it was built without."""
    try:
        _by_torchvision(np.frombuffer(bytearray(_file_of_one("webp")), np.uint8), (3, 1, 1))
    except (AttributeError, RuntimeError):
        return _by_pillow
    return _by_torchvision


def _file_of_one(kind: str) -> bytes:
    return Encoding(kind, 95 if kind == "jpeg" else None).encoded(np.zeros((1, 3, 1, 1), "u1"))[0]


@cache
def check_installed(encoding: Encoding) -> None:
    """Refuses an encoding that Pillow was built without, where every row would look damaged, with
    an ImportError that names it."""
    if not encoding.raw:
        try:
            file = _file_of_one(encoding.kind)
            encoding.decoded([file], (3, 1, 1))
        except (KeyError, OSError, UndecodableError) as error:
            raise ImportError(
                f"The installed Pillow cannot read or write {encoding.kind.upper()} "
                f"({error}). Install one that can: pip install --upgrade pillow"
            ) from error


_Decoder = Callable[[Bytes, ImageShape], Bytes]
"""Takes a file and the shape that its header says, and returns the image, (C, H, W)."""
_Format = tuple[Callable[[Bytes], ImageShape], _Decoder, int | None]
_FORMATS: dict[str, _Format] = {
    "png": (_png_header, _by_pillow, None),
    "webp": (_webp_header, _decode_webp, 3),
    "jpeg": (_jpeg_header, _by_pillow, None),
}
"""Of each kind what reads the header, what decodes, and the channels if they are always as many."""


def on_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Calls `function` for every item, on as many threads as processors are free for it.

    A worker of a loader has one: the others are busy with workers of their own. Threads live as
    long as the call, so that a forked process never waits for threads that it does not have.
    """
    waiting = list(items)
    threads = 1 if get_worker_info() is not None else usable_processors()
    threads = min(threads, _MOST_THREADS, len(waiting))
    if threads <= 1:
        return [function(item) for item in waiting]

    def share(number: int) -> list[_Result]:
        return [function(item) for item in waiting[number::threads]]

    # A share for each, one of them for this thread: handing over single images takes longer.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share, number) for number in range(1, threads)]
        shares = [share(0), *(other.result() for other in others)]
    return [shares[place % threads][place // threads] for place in range(len(waiting))]
