"""Segmentation masks in a folder of their own, by the names of the images that they belong to."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image

from synthaug._images.source import ImageSource
from synthaug._images.stores import Files, open_image, unreadable
from synthaug._support.progress import bar
from synthaug._types import Array, StrPath
from synthaug.errors import DataError, MismatchError

_LOSSLESS = frozenset((".bmp", ".gif", ".pgm", ".png", ".tif", ".tiff"))
"""Formats that keep class numbers as they are."""


class MaskFiles:
    """The masks of images that `load_dataset` read from a folder, decoded when asked for.

    The mask of `IMAGES/cat/1.jpg` is `MASKS/cat/1.png`, or of another format without losses. It has
    the size of its image as this is seen, upright, and is resized as the image was, each pixel from
    the nearest one. Of a palette the indices count.
    """

    def __init__(
        self, folder: StrPath, images: ImageSource, *, progress: bool | None = None
    ) -> None:
        """Finds the mask of every image, and compares the sizes by the headers of both files.

        Raises:
            ValueError: If `images` were not all read from files by `load_dataset`.
            DataError: If a mask is missing or cannot be read, or an image has several.
            MismatchError: If a mask has another size than its image, or colors.
        """
        files = images.files()
        if files is None:
            raise ValueError(
                f"`masks` is the folder {os.fspath(folder)!r}, whose files are found by the names "
                "of the images, and `real` was not read from files by `load_dataset`. Load it so, "
                "or give a list of masks."
            )
        self._files, self._folder = files, os.path.expanduser(os.fspath(folder))
        if not os.path.isdir(self._folder):
            raise DataError(f"`masks` is {self._folder!r}, which is no folder.")
        self.paths = self._found()
        sizes = sizes_of(files, progress)
        for (file, row), size, mask in zip(files, sizes, self.paths, strict=True):
            _check(file.paths[row], size, mask)

    def _found(self) -> list[str]:
        """The path of the mask of each image."""
        listed: dict[str, dict[str, list[str]]] = {}
        paths, owners = [], dict[str, str]()
        for file, row in self._files:
            image = file.paths[row]
            inner, name = os.path.split(os.path.relpath(image, file.folder))
            where, stem = os.path.join(self._folder, inner), os.path.splitext(name)[0]
            if where not in listed:
                listed[where] = _by_stem(where)
            found = listed[where].get(stem, [])
            expected = os.path.join(where, f"{stem}.png")
            if len(found) != 1:
                several = f"is not the only mask of its name: {', '.join(found)}"
                raise DataError(
                    f"{expected}, the mask of {image}, {several if found else 'does not exist'}. "
                    "Give each image one mask of its name, without losses (no JPEG)."
                )
            paths.append(os.path.join(where, found[0]))
            if owners.setdefault(paths[-1], image) != image:
                raise DataError(
                    f"{paths[-1]} would be the mask of {image} and of {owners[paths[-1]]}. Rename "
                    "one of them, and give it a mask of its own."
                )
        return paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Array:
        """The mask of an image, integers (H, W)."""
        with _opened(self.paths[index]) as mask:
            values = np.array(mask)
        resized: Array = self._files[index][0].conform.masked(values)
        return resized


def sizes_of(files: list[tuple[Files, int]], progress: bool | None) -> list[tuple[int, int]]:
    """(width, height) of images, upright and before they are resized, by the headers of their
    files."""

    def size(entry: tuple[Files, int]) -> tuple[int, int]:
        with _opened(entry[0].paths[entry[1]]) as image:
            return entry[0].conform.size_of(image)

    with (
        bar(len(files), "check files", "image", delay=2, progress=progress) as shown,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        sizes = []
        for one in pool.map(size, files):
            sizes.append(one)
            shown.update()
    return sizes


def _check(image: str, size: tuple[int, int], path: str) -> None:
    """Refuses a mask with colors, or of another size than its image."""
    with _opened(path) as mask:
        if len(mask.getbands()) > 1 or mask.mode == "F":
            raise MismatchError(
                f"{path} has mode {mask.mode}, expected one class number per pixel. Save it as "
                "gray levels or with a palette."
            )
        if mask.size != size:
            raise MismatchError(
                f"{path} is {mask.width}x{mask.height}, and its image {image} "
                f"{size[0]}x{size[1]}, upright. A mask has the size of its image's file."
            )


def _by_stem(folder: str) -> dict[str, list[str]]:
    """The names of the masks in a folder by their names without the ending."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        stem, extension = os.path.splitext(name)
        if extension.lower() in _LOSSLESS:
            names.setdefault(stem, []).append(name)
    return names


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An image file; whatever its reader raises is a DataError that names it."""
    try:
        with open_image(path) as image:
            yield image
    except (DataError, MismatchError):
        raise
    except Exception as error:  # Pillow's readers raise whatever the bytes provoke
        raise DataError(unreadable(path, error)) from error
