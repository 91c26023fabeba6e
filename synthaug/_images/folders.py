"""Class folders: what lies in them, and which of their files are images that can be used."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from synthaug._images.requests import ImageRequest, Loaded, check_known, check_labeled_images
from synthaug._images.stores import Files, Problem, open_image, orientation, unreadable
from synthaug._printable import amount
from synthaug._support.names import class_name
from synthaug._support.progress import bar
from synthaug._types import ImageShape, StrPath
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_EXTENSIONS = ".bmp .gif .jfif .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())
"""Files with one of these must be images; files with any other are passed over, and counted."""
_OTHERS = ".arw .avif .cr2 .cr3 .dng .heic .heif .jp2 .jxl .nef .orf .psd .raf .rw2 .svg .tga"
OTHER_IMAGES = frozenset(_OTHERS.split())
"""Images too, of formats that we do not read."""
LEFTOVERS = frozenset(("$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX"))
"""Folders that systems leave behind, besides hidden ones such as `.ipynb_checkpoints`."""


def load_folder(asked: ImageRequest) -> Loaded:
    """Reads a folder with one subfolder per class, or of one class that was given."""
    walk, names = _class_folders(asked)
    root = walk.root
    order = tuple(names) if asked.classes is None else tuple(asked.classes)
    paths: list[str] = []
    labels: list[int] = []
    others = [] if _FLAT in names.values() else walk.loose()
    for label, name in enumerate(order):
        files = sorted(walk.files(names[name])) if name in names else []
        images = [f for f in files if _extension(f) in IMAGE_EXTENSIONS]
        others += sorted(set(files) - set(images))
        paths += images
        labels += [label] * len(images)
    unread = Counter(_extension(path) for path in others if _extension(path) in OTHER_IMAGES)
    formats = ", ".join(f"{count:,} {extension}" for extension, count in sorted(unread.items()))
    advice = f" {formats} are images of formats that we do not read: convert them to JPEG or PNG."
    if not paths:
        raise DataError(
            f"{root} holds no image. Expected files ending in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}.{advice if unread else ''}"
        )
    check_labeled_images(labels, order, str(root), asked)
    _tell_left_out(others, advice if unread else "", walk.skipped)
    kept, shape = _check_headers(paths, asked)
    paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    check_labeled_images(labels, order, str(root), asked)
    folder = str(Path(asked.where).expanduser())
    return Files(paths, asked.conform, shape, folder), np.array(labels), order


def _tell_left_out(others: Sequence[str], advice: str, skipped: Sequence[str]) -> None:
    """Warns, in one line, of what lies in the folders and is not loaded."""
    notices = []
    if others:
        notices.append(
            "Passed over what is not an image in a class folder: "
            f"{amount(len(others), 'file')}, e.g. {others[0]}.{advice}"
        )
    if skipped:
        notices.append(
            "Skipped hidden or system files, or links to files that are listed already: "
            f"{amount(len(skipped), 'entry')}, e.g. {skipped[0]}."
        )
    if notices:
        log.warning("%s", " ".join(notices))


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


_FLAT = "."
"""The folder itself, in the place of a class folder."""


def is_flat(folder: StrPath) -> bool:
    """Whether a folder has files and no folder of images: its images have no classes."""
    root = Path(folder).expanduser()
    return root.is_dir() and not (walk := _Walk(root)).folders() and bool(walk.loose())


def _class_folders(asked: ImageRequest) -> tuple["_Walk", dict[str, str]]:
    """The folder that holds one subfolder per class, and these by the sorted names of classes."""
    root = Path(asked.where).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder with one subfolder per class.")
    if asked.split is not None:
        if not (root / asked.split).is_dir():
            raise DataError(
                f"{root} has no subfolder {asked.split!r}. "
                f"It has: {', '.join(_Walk(root).folders()) or 'none'}."
            )
        root = root / asked.split
    walk = _Walk(root)
    names = walk.folders()
    if not names and asked.classes is not None and len(asked.classes) == 1:
        return walk, {asked.classes[0]: _FLAT}
    if not names:
        raise DataError(
            f"{root} has no subfolders. Images must lie in one folder per class: "
            f"{root / 'cat' / '1.png'}, {root / 'dog' / '1.png'}, ... Images without classes go "
            f"into one such folder: {root / 'all' / '1.png'}, ..."
        )
    if set(names) <= {"train", "test", "val", "valid", "validation"}:
        raise MismatchError(
            f"The subfolders of {root} are splits and not classes: {', '.join(names)}. Choose one, "
            f"for example folder:{root / names[-1]}."
        )
    folders = {class_name(name): name for name in names}
    if len(folders) < len(names):
        twice = next(name for name in names if folders[class_name(name)] != name)
        raise DataError(f"{root} has two folders {twice!r}, whose names look alike. Rename one.")
    check_known(tuple(folders), asked.classes, f"{root} has a class folder")
    return walk, folders


class _Walk:
    """Lists a folder once: not what tools leave behind, nor links to what is listed anyway."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[str] = []
        self._real = root.resolve()
        self._followed: set[Path] = set()

    def folders(self) -> list[str]:
        """Sorted names of the folders in the root."""
        names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        return [name for name in names if self._is_listed(str(self.root / name))]

    def loose(self) -> list[str]:
        """Sorted paths of the files that lie directly in the root."""
        return sorted(entry.path for entry in os.scandir(self.root) if entry.is_file())

    def files(self, folder: str) -> Iterator[str]:
        """Paths of the files in a folder of the root, and in those below it."""
        for where, folders, files in os.walk(self.root / folder, followlinks=True):
            paths = [os.path.join(where, name) for name in sorted(folders)]
            folders[:] = [os.path.basename(path) for path in paths if self._is_listed(path)]
            for name in files:
                path = os.path.join(where, name)
                if name.startswith("."):
                    self.skipped.append(path)
                else:
                    yield path

    def _is_listed(self, folder: str) -> bool:
        """Whether a folder is to be listed; else it is counted as skipped."""
        listed = not _is_leftover(os.path.basename(folder))
        if listed and os.path.islink(folder):
            real = Path(folder).resolve()
            within = real.is_relative_to(self._real)
            inside = within and not any(map(_is_leftover, real.relative_to(self._real).parts))
            above = self._real.is_relative_to(real)
            listed = not (inside or above or real in self._followed)
            self._followed.add(real)
        if not listed:
            self.skipped.append(folder)
        return listed


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS


def _check_headers(paths: Sequence[str], asked: ImageRequest) -> tuple[list[int], ImageShape]:
    """Opens every file without decoding it; says which can be used, and the shape that all will
    have."""
    conform = asked.conform

    unknown: list[str] = []  # files whose EXIF cannot be read

    def header(path: str) -> tuple[str, tuple[int, int], Problem | None]:
        try:
            with open_image(path) as image:
                if conform.upright and orientation(image) is None:
                    unknown.append(path)
                reason = conform.refuse(image)
                refused = None if reason is None else MismatchError(f"{path} {reason}")
                return image.mode, conform.size_of(image), refused
        except Exception as error:  # Pillow's readers raise whatever the bytes provoke
            return "", (0, 0), DataError(unreadable(path, error))

    problems: dict[str, Problem] = {}
    seen: dict[tuple[str, tuple[int, int]], str] = {}
    with (
        bar(len(paths), "check files", "image", delay=2, progress=asked.progress) as shown,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for path, (mode, size, problem) in zip(paths, pool.map(header, paths), strict=True):
            shown.update()
            if problem is not None:
                problems[path] = problem
            else:
                seen.setdefault((mode, size), path)
    _tell_unknown(sorted({*unknown} - {*problems}))
    if problems and not asked.skip_bad:  # an error, so one of all files rather than one per run
        whole = [path for path in paths if path not in problems]
        problems = dict(sorted({**problems, **_damaged(whole[:_DECODED], asked)}.items()))
    asked.usable(problems, len(paths))
    if not seen:
        raise DataError(f"None of the {len(paths):,} files can be used.")
    (mode, size), path = next(iter(seen.items()))
    for (other_mode, other_size), other in seen.items():
        if conform.size is None and other_size != size:
            raise MismatchError(
                f"Images differ in size: {path} is {size[0]}x{size[1]}, {other} is "
                f"{other_size[0]}x{other_size[1]}. Resize them when loading, for example with "
                f"`image_size={min(size)}`."
            )
        if conform.channels is None and other_mode != mode:
            raise MismatchError(
                f"Some images are gray and some are colored: {path} has mode {mode}, {other} has "
                f"mode {other_mode}. Convert them when loading, with `channels=3` or "
                "`channels=1`."
            )
    channels = conform.channels or {"L": 1, "RGB": 3}[mode]
    height, width = conform.size or size[::-1]
    kept = [i for i, path in enumerate(paths) if path not in problems]
    return kept, (channels, height, width)


_DECODED = 20_000
"""Files that are decoded only to name what is wrong with them, which takes a minute at most."""


def _damaged(paths: Sequence[str], asked: ImageRequest) -> dict[str, Problem]:
    """Decodes files whose headers are in order; says which cannot be decoded."""
    files, problems = Files(paths, asked.conform, (0, 0, 0), ""), dict[str, Problem]()

    def decode(row: int) -> None:
        try:
            files.decode(row)
        except (DataError, MismatchError) as problem:
            problems[paths[row]] = problem

    with (
        bar(len(paths), "decode files", "image", delay=2, progress=asked.progress) as shown,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for _ in pool.map(decode, range(len(paths))):
            shown.update()
    return problems


def _tell_unknown(paths: Sequence[str]) -> None:
    """Warns, in one line, of photos of which nobody knows how the camera was held."""
    if paths:
        log.warning(
            "The EXIF of %s cannot be read%s, so it was not rotated. Check that it is upright.",
            paths[0],
            f" (nor that of {len(paths) - 1:,} more)" if len(paths) > 1 else "",
        )
