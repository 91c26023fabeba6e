"""Digests, by which weights are told apart and damage is found."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug._support.reading import open_regular


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
