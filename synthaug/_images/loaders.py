"""What `load_dataset` reads: class folders, torchvision's data sets, HDF5 files, digits.

Each loader returns (store, labels, class names), and raises `DataError` for
whatever it can find wrong without decoding.
"""

import logging
import os
import pickle
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from synthaug._images.leaves import class_names as names_of
from synthaug._images.leaves import labels_at, numbered_classes
from synthaug._images.stores import (
    HDF5,
    Conform,
    Files,
    Indexed,
    Memory,
    Problem,
    Store,
    open_hdf5,
    open_image,
    orientation,
    unreadable,
)
from synthaug._support.names import class_name, class_names
from synthaug._support.progress import bar
from synthaug._support.reading import parse_json
from synthaug._support.storage import storage_fault
from synthaug._types import Labels
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_EXTENSIONS = ".bmp .gif .jfif .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())
"""Files with one of these must be images; files with any other are passed over, and counted."""
_LARGEST_CHUNK = 2**30  # bytes, unpacked whole for a single value
_OTHERS = ".arw .avif .cr2 .cr3 .dng .heic .heif .jp2 .jxl .nef .orf .psd .raf .rw2 .svg .tga"
OTHER_IMAGES = frozenset(_OTHERS.split())
"""Images too, of formats that we do not read."""
LEFTOVERS = frozenset(("$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX"))
"""Folders that systems leave behind, besides hidden ones such as `.ipynb_checkpoints`."""
_LISTED = 20
"""How many files that cannot be used an error names."""


@dataclass(frozen=True)
class ImageRequest:
    """What `load_dataset` is asked for."""

    where: str
    """A path, or the name of a data set with its options."""
    split: str | None
    conform: Conform
    classes: Sequence[str] | None
    """The class names in the order that is wanted."""
    progress: bool | None
    skip_bad: bool = False
    """Leave out files that cannot be used."""
    skipped: list[str] = field(default_factory=list)
    """What was wrong with those that were left out."""

    def usable(self, problems: Mapping[str, Problem], total: int) -> None:
        """Records the files that cannot be used as left out, or refuses them.

        Args:
            problems: Why each of them cannot be used; a message that names the file.
            total: How many files there are.

        Raises:
            DataError, MismatchError: Naming them, if there are some and they are not left out.
        """
        if not problems:
            return
        listed = [str(problem) for problem in problems.values()]
        more = len(listed) - _LISTED
        lines = [*listed[:_LISTED], *([f"... and {more:,} more."] if more > 0 else [])]
        text = f"{len(listed):,} of {total:,} files cannot be used"
        if self.skip_bad:
            self.skipped.extend(listed)
            log.warning("%s, and are left out:\n  %s", text, "\n  ".join(lines))
            return
        kind = type(next(iter(problems.values())))
        if len(listed) == 1:
            raise kind(listed[0])
        remedy = "Repair or delete them, or leave them out with `skip_bad=True`."
        raise kind("\n  ".join([f"{text}:", *lines]) + f"\n{remedy}")


Loaded = tuple[Store, Labels, tuple[str, ...]]

# folder: -----------------------------------------------------------------------------------------


def _folder(asked: ImageRequest) -> Loaded:
    walk, names = _class_folders(asked)
    root = walk.root
    order = tuple(names) if asked.classes is None else tuple(asked.classes)
    paths: list[str] = []
    labels: list[int] = []
    others = sorted(os.path.join(root, f) for f in os.listdir(root) if (root / f).is_file())
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
    return Files(paths, asked.conform, shape), np.array(labels), order


def _tell_left_out(others: Sequence[str], advice: str, skipped: Sequence[str]) -> None:
    """Warns, in one line, of what lies in the folders and is not loaded."""
    notices = []
    if others:
        notices.append(
            f"Passed over {len(others)} files that are not images in a class folder, e.g. "
            f"{others[0]}.{advice}"
        )
    if skipped:
        notices.append(
            f"Skipped {len(skipped)} files and folders that tools leave behind, or links to "
            f"what is listed anyway, e.g. {skipped[0]}."
        )
    if notices:
        log.warning("%s", " ".join(notices))


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def check_labeled_images(
    labels: Iterable[int], classes: Sequence[str], where: str, asked: ImageRequest
) -> None:
    """Refuses classes without an image.

    Raises:
        DataError: Naming them.
    """
    present = set(map(int, labels))
    empty = [repr(name) for label, name in enumerate(classes) if label not in present]
    if empty:
        more = f" (nor have {', '.join(empty[1:_LISTED])})" if len(empty) > 1 else ""
        remedy = "delete the folder" if asked.classes is None else "leave it out of `classes`"
        raise DataError(f"Class {empty[0]} has no image in {where}{more}. Add images, or {remedy}.")


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
    if not names:
        raise DataError(
            f"{root} has no subfolders. Images must lie in one folder per class: "
            f"{root / 'cat' / '1.png'}, {root / 'dog' / '1.png'}, ..."
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
    _check_known(tuple(folders), asked.classes, f"{root} has a class folder")
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


def _check_headers(
    paths: Sequence[str], asked: ImageRequest
) -> tuple[list[int], tuple[int, int, int]]:
    """Opens every file without decoding it.

    Returns:
        Which files can be used, and the shape that all of them will have.
    """
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
                f"Some images are grey and some are coloured: {path} has mode {mode}, {other} has "
                f"mode {other_mode}. Convert them when loading, with `channels=3` or "
                "`channels=1`."
            )
    channels = conform.channels or {"L": 1, "RGB": 3}[mode]
    height, width = conform.size or size[::-1]
    kept = [i for i, path in enumerate(paths) if path not in problems]
    return kept, (channels, height, width)


def _tell_unknown(paths: Sequence[str]) -> None:
    """Warns, in one line, of photos of which nobody knows how the camera was held."""
    if paths:
        log.warning(
            "The EXIF of %s cannot be read%s: taken as upright. Look whether it is.",
            paths[0],
            f" (nor that of {len(paths) - 1:,} more)" if len(paths) > 1 else "",
        )


# torchvision:, hdf5:, digits ---------------------------------------------------------------------


def _torchvision(asked: ImageRequest) -> Loaded:
    import inspect

    from torchvision import datasets

    name, _, query = asked.where.partition("?")
    split = asked.split
    kind = getattr(datasets, name, None)
    if name in ("LSUN", "LSUNClass"):
        raise ValueError(
            f"torchvision's {name} keeps a pickle beside its images, which can run any code. "
            "Export the images to a folder with one subfolder per class, and load that."
        )
    if name not in datasets.__all__ or not isinstance(kind, type):
        raise ValueError(
            f"torchvision has no data set {name!r}. It has, among others, CIFAR10, "
            "CIFAR100, MNIST, FashionMNIST, SVHN, STL10."
        )
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": "data"} if "root" in known else {}
    for key, value in parse_qsl(query):
        plain = int(value) if value.isdecimal() else value
        options[key] = {"true": True, "false": False}.get(value.lower(), plain)
    if "root" in options:
        options["root"] = str(Path(options["root"]).expanduser().absolute())
    if split is not None and "train" in known:
        if split not in ("train", "test"):
            raise ValueError(
                f'torchvision\'s {name} has the splits "train" and "test", not {split!r}.'
            )
        options["train"] = split == "train"
    elif split is not None and "split" in known:
        options["split"] = split
    elif split is not None:
        raise ValueError(f"torchvision's {name} has no splits, got the split {split!r}.")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"torchvision's {name} has no argument {unknown[0]!r}. It has: {', '.join(known)}."
        )
    try:
        dataset = kind(**options)
    except (RuntimeError, OSError, EOFError, pickle.PickleError) as error:
        spec = f"torchvision:{name}?root={options.get('root')}&download=true"
        advice = f"To download it: {shlex.quote(spec)}"  # a bare & would end a shell's command
        if options.get("download"):
            advice = "Check the connection, or copy the files there by hand."
        raise DataError(
            f"torchvision's {name} cannot be read from {options.get('root')!r} ({error}). {advice}"
        ) from error
    if len(dataset) == 0:
        raise DataError(f"torchvision's {name} in {options.get('root')!r} is empty.")
    labels, found = labels_at(dataset, np.arange(len(dataset))), names_of(dataset)
    labels, names = _ordered(labels, found, asked.classes, f"torchvision's {name}")
    return Indexed(dataset, 0, asked.conform), labels, names


def _hdf5(asked: ImageRequest) -> Loaded:

    if asked.split is not None:
        raise ValueError(f"An HDF5 file has no splits, got the split {asked.split!r}.")
    path = str(Path(asked.where).expanduser())
    if not os.path.isfile(path):
        raise DataError(f"{path} does not exist, or is not a file.")
    try:
        with open_hdf5(path) as file:
            return _hdf5_contents(path, file, asked)
    except (DataError, MismatchError):
        raise
    except Exception as error:  # what HDF5 raises for damaged metadata is not documented
        raise DataError(f"{path} is not a readable HDF5 file ({error}).") from error


def _hdf5_contents(path: str, file: Any, asked: ImageRequest) -> Loaded:
    images, labels, state = (own_data_set(file, name) for name in ("images", "labels", "state"))
    if images is None or labels is None:
        raise DataError(
            f"{path} has no data set {'labels' if labels is None else 'images'!r}. Expected "
            "`images`, uint8 (N, C, H, W) or (N, H, W, C), and `labels`, int (N,)."
        )
    first = images.ndim == 4 and images.shape[1] in (1, 3)
    last = images.ndim == 4 and images.shape[3] in (1, 3) and not first
    fits = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if images.dtype != np.uint8 or not (first or last) or not fits:
        raise DataError(
            f"{path} has `images` {images.dtype} {images.shape} and `labels` {labels.dtype} "
            f"{labels.shape}, expected uint8 (N, C, H, W) or (N, H, W, C) with C 1 or 3, "
            "and int (N,)."
        )
    values = labels[:]
    rows = np.arange(len(values))
    if state is not None:
        if state.shape != labels.shape or state.dtype.kind not in "iu":
            raise DataError(
                f"{path} has `state` {state.dtype} {state.shape}, expected integers "
                f"{labels.shape}. Leave it out if all images are there."
            )
        rows = np.flatnonzero(state[:] == 1)  # done; not pending, not withdrawn
        if len(rows) == 0:
            raise DataError(f"{path} has no finished row. Generate its images first.")
        if len(rows) < len(values):
            log.warning("%s: %d of %d rows are done", path, len(rows), len(values))
    found = _hdf5_classes(file)
    if len(rows) == 0:
        raise DataError(f"{path} holds no image.")
    values, names = _ordered(values[rows], found, asked.classes, path)
    return HDF5(path, rows, last, asked.conform), values, names


def own_data_set(file: Any, name: str) -> Any:
    """A data set that lies in this very HDF5 file; `None` if there is nothing of the name.

    Raises:
        DataError: It lies elsewhere, which could be any file of this machine, or declares more than
            the file can hold.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        return None
    where = f"{file.filename}: `{name}`"
    remedy = "Copy it into a file of its own: `h5py.File(new, 'w')[name] = values`."
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{where} is a link, which we do not follow. {remedy}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is no data set. {remedy}")
    # Images are read row by row, so they may be far larger than a file that has a few of them.
    size = None if name == "images" else os.stat(file.filename).st_size
    fault = storage_fault(dataset, size=size, largest_chunk=_LARGEST_CHUNK)
    if fault is not None:
        raise DataError(f"{where} {fault}. {remedy}")
    return dataset


def _hdf5_classes(file: Any) -> tuple[str, ...] | None:
    """Class names: of a cache's manifest, or of an attribute `classes`."""
    if "manifest" in file.attrs:
        try:
            names = parse_json(file.attrs["manifest"]).get("classes")
        except (TypeError, ValueError, AttributeError):
            log.warning("%s: no class names, its attribute `manifest` is damaged.", file.filename)
            names = None
        if isinstance(names, list):
            return tuple(str(name) for name in names)
    if "classes" in file.attrs:
        values = np.atleast_1d(file.attrs["classes"])
        return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
    return None


def _digits(asked: ImageRequest) -> Loaded:
    from sklearn.datasets import load_digits

    if asked.split not in (None, "train", "test"):
        raise ValueError(f'The digits have the splits "train" and "test", not {asked.split!r}.')
    bunch = load_digits()
    half = len(bunch.target) // 2
    rows = {None: slice(None), "train": slice(half), "test": slice(half, None)}[asked.split]
    pixels = (bunch.images[rows] * (255 / 16)).round().astype(np.uint8)
    images = np.stack([asked.conform(Image.fromarray(image), "A digit") for image in pixels])
    digits = [str(i) for i in range(10)]
    labels, names = _ordered(bunch.target[rows], digits, asked.classes, "digits")
    return Memory(torch.from_numpy(images)), labels, names


LOADERS: dict[str, Callable[[ImageRequest], Loaded]] = {
    "folder": _folder,
    "torchvision": _torchvision,
    "hdf5": _hdf5,
    "digits": _digits,
}


def spec_of(path: os.PathLike[str]) -> str:
    """What a path alone stands for: a folder or an HDF5 file."""
    return f"{'hdf5' if os.path.isfile(path) else 'folder'}:{os.fspath(path)}"


def parse_spec(spec: str, split: str | None) -> tuple[str, str, str | None]:
    """The kind of a data set, where it is, and its split, which `spec` or `split` may name.

    Raises:
        ValueError: If it is none of `folder:PATH`, `torchvision:NAME[:SPLIT][?OPTIONS]`,
            `hdf5:PATH` and `digits[:SPLIT]`, or names another split than `split`.
    """
    kind, colon, where = spec.partition(":")
    given = None
    if kind == "digits" and colon:
        where, given = "", where
    elif kind == "torchvision":
        name, mark, options = where.partition("?")
        name, colon, rest = name.partition(":")
        where, given = name + mark + options, rest if colon else None
    if kind not in LOADERS or given == "" or (where == "") != (kind == "digits"):
        likely = "folder" if os.path.isdir(spec) else "hdf5" if os.path.isfile(spec) else None
        raise ValueError(
            f"Got the data set {spec!r}, expected `folder:PATH`, "
            "`torchvision:NAME[:SPLIT][?root=DIR]`, `hdf5:PATH` or `digits[:SPLIT]`."
            + (f" Did you mean {likely}:{spec}?" if likely else "")
        )
    if given is not None and split not in (None, given):
        raise ValueError(
            f"The data set {spec!r} names its split, and `split` is {split!r}. Leave one out."
        )
    return kind, where, split if given is None else given


def _ordered(
    labels: ArrayLike, found: Sequence[str] | None, wanted: Sequence[str] | None, where: str
) -> tuple[Labels, tuple[str, ...]]:
    """Checks labels, and renumbers them from the order of `found` to that of `wanted`, by name."""
    found = None if found is None else class_names(found)
    if found is not None and wanted is not None and len({*found}) < len(found) == len(wanted):
        found = wanted  # the same classes, each under a name of its own
    if found is None:  # SVHN, FakeData, a file with labels alone
        found = wanted or numbered_classes(labels, where)
    values = checked_labels(labels, found, where)
    if wanted is None:
        return values, tuple(found)
    _check_known(found, wanted, f"{where} has a class")
    number = {name: index for index, name in enumerate(wanted)}
    return np.array([number[name] for name in found], np.int64)[values], tuple(wanted)


def _check_known(names: Sequence[str], wanted: Sequence[str] | None, what: str) -> None:
    known = set(wanted or ())
    unknown = [] if wanted is None else [repr(name) for name in names if name not in known]
    if wanted is not None and unknown:
        raise MismatchError(
            f"{what} {', '.join(unknown[:_LISTED])}, which is not among the {len(wanted)} classes "
            f"that were given: {', '.join(wanted)}."
        )


def checked_labels(labels: ArrayLike, classes: Sequence[str], where: str) -> Labels:
    """Labels as int64 (N,), each of them one of the classes, whose names differ."""
    values = np.asarray(labels)
    if values.shape == (0,):
        values = values.astype(np.int64)  # of an empty list
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` is {values.dtype} with shape {values.shape}, expected integers (N,)."
        )
    if len(set(classes)) != len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise DataError(
            f"{where}: the class name {twice!r} occurs twice. Give each class a name of its own: "
            f"`classes=[...]`, {len(classes)} names in the order of the labels."
        )
    if len(values) and not (values.min() >= 0 and values.max() < len(classes)):
        bad = int(values.max() if values.max() >= len(classes) else values.min())
        row = int(np.flatnonzero(values == bad)[0])
        raise DataError(
            f"{where}: image {row} has label {bad}, but there are {len(classes)} classes "
            f"(labels 0 to {len(classes) - 1}). Correct it, or give the names of all "
            "classes."
        )
    return values.astype(np.int64)
