"""Small files that are whole or absent, whatever happens while they are written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from synthaug._support.reading import check_replaceable


def check_folder(path: str | os.PathLike[str]) -> None:
    """Whether a folder is there, or can be made, before work starts whose results go into it.

    Raises:
        ValueError: It, or a folder that it would lie in, is a file.
    """
    path = Path(path)
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not place.is_dir():
        raise ValueError(f"{place} is a file, expected a folder to write to. Choose another name.")


@contextmanager
def whole_file(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[str]:
    """Gives the name of a temporary file, which takes the place of `path` when it is complete.

    Args:
        path: File to write; its folder is made if it is missing. An older one stays if an error
            comes.
        private: For its owner only.

    Raises:
        ValueError: There is something else of that name: a folder, a pipe, a device.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield temporary
        if not private:  # what `open` would have given
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format of a picture by its name, asked before work starts that ends with the picture.

    Raises:
        ValueError: Pillow writes no such format, or something else than a file has the name.
    """
    check_replaceable(path)
    Image.init()
    suffix = Path(path).suffix.lower()
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE:
        raise ValueError(f"{os.fspath(path)}: there are no pictures {suffix!r}. Name it .png.")
    return name


def write_picture(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Writes a picture in the format that its name says, whole or not at all."""
    with whole_file(path) as temporary:
        picture.save(temporary, format=picture_format(path))


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> Path:
    """Writes a text file: until it is whole and on disk, an older one stays.

    Args:
        path: File to write; its folder is made if it is missing.
        text: What to write, as UTF-8.
        private: For its owner only, where others could see real images in it.
    """
    path = Path(path)
    with (
        whole_file(path, private=private) as temporary,
        open(temporary, "w", encoding="utf-8") as f,
    ):
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    return path
