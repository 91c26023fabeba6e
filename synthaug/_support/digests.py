"""Digests of tensors, by which weights are told apart."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensor_digest(tensors: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of blake2b over names, dtypes, shapes and bytes.

    Args:
        tensors: Such as a state dict; entries that are no tensors are passed over.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            hashed.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
