"""Digests, by which weights are told apart and damage is found."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug._support.files import whole_file
from synthaug._support.reading import open_regular

_SEAL_BYTES = 16


def tensor_digest(tensors: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of blake2b over names, dtypes, shapes and bytes of tensors, such as a
    state dict; other entries are passed over."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            hashed.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def file_digest(path: str | Path, stop: int | None = None) -> str:
    """32 hexadecimal digits of blake2b over the bytes of a file before `stop`, by default all.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    hashed = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while block := file.read(2**20 if stop is None else min(2**20, stop - file.tell())):
            hashed.update(block)
    return hashed.hexdigest()


@contextmanager
def sealed_file(path: Path) -> Iterator[str]:
    """Works like `whole_file`, for the owner only, and puts a digest behind what was written.

    Readers of arrays do not look there.
    """
    with whole_file(path, private=True) as temporary:
        yield temporary
        with open(temporary, "ab") as file:
            file.write(bytes.fromhex(file_digest(temporary)))


def check_seal(path: Path) -> None:
    """Compares a file with the digest behind it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not the file that was written.
    """
    end = max(path.stat().st_size - _SEAL_BYTES, 0)
    digest = file_digest(path, end)
    with open_regular(path) as file:
        file.seek(end)
        if digest != file.read().hex():
            raise ValueError("its digest is that of another file")
