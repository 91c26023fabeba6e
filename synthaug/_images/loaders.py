"""Loaders of `load_dataset`: class folders, torchvision's data sets, HDF5 files, digits.

Each loader returns (store, labels, class names), and raises `DataError` for
whatever it can find wrong without decoding.
"""

import logging
import os
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image

from synthaug._images.folders import load_folder
from synthaug._images.leaves import class_names as names_of
from synthaug._images.leaves import labels_at
from synthaug._images.requests import ImageRequest, Loaded, ordered
from synthaug._images.stores import HDF5, Indexed, Memory, open_hdf5
from synthaug._support.reading import parse_json
from synthaug._support.storage import storage_fault
from synthaug.errors import DataError, MismatchError

log = logging.getLogger(__name__)

_LARGEST_CHUNK = 2**30  # bytes, unpacked whole for a single value


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
    labels, names = ordered(labels, found, asked.classes, f"torchvision's {name}")
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
    values, names = ordered(values[rows], found, asked.classes, path)
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
        raise DataError(f"{where} is not a data set. {remedy}")
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
    labels, names = ordered(bunch.target[rows], digits, asked.classes, "digits")
    return Memory(torch.from_numpy(images)), labels, names


LOADERS: dict[str, Callable[[ImageRequest], Loaded]] = {
    "folder": load_folder,
    "torchvision": _torchvision,
    "hdf5": _hdf5,
    "digits": _digits,
}


def spec_of(path: os.PathLike[str]) -> str:
    """Returns the full name of a path alone: a folder or an HDF5 file."""
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
