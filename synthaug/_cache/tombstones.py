"""Records of forgotten images, and how to recognize them elsewhere.

A tombstone is a content key (`_pixels.digest`): of a real image that was forgotten, or of a
synthetic image that was erased. What has such a key, or derives from an image that has it, is
served no more, wherever it comes from: another cache, an export that is imported, a resumed job.
"""

import numpy as np
import torch

from synthaug._pixels import digest
from synthaug._plan import Plan
from synthaug._types import Bytes, Indices, Unsigned


def rows_from_sources(plan: Plan, source_keys: Unsigned) -> Indices:
    """Rows of `plan` that any of these real images went into, int64, ascending."""
    derived = [np.empty(0, np.int64)]
    for name in plan.columns if len(source_keys) else ():
        if name.endswith("_key"):  # parameters are int64: the same 64 bits
            for start, piece in plan.pieces(name):
                derived.append(np.flatnonzero(np.isin(piece.view(np.uint64), source_keys)) + start)
    return np.unique(np.concatenate(derived))


def source_keys_of(plan: Plan) -> Unsigned:
    """Content keys of the real images that the rows of `plan` derive from, with repetitions."""
    columns = [column for name, column in plan.columns.items() if name.endswith("_key")]
    return np.concatenate(columns, dtype=np.uint64, casting="unsafe")


def content_keys(images: Bytes) -> Unsigned:
    """Hashes every image, uint8 (n, C, H, W) -> uint64 (n,)."""
    return np.array([digest(image) for image in torch.from_numpy(images)], np.uint64)
