"""Audits that are over sooner, for tests about other things than what an audit sees."""

from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHORT: dict[str, Any] = {
    "synthaug._audit.comparison.PLANTED": 5,
    "synthaug._audit.power._DRAWS": 4,
    "synthaug._audit.registration._STARTS": ((0, 1.0),),
    "synthaug._audit.registration._SMALL_STEPS": 1,
    "synthaug._audit.registration._STEPS": 1,
    "synthaug._audit.partial._SETTLING": 1,
    "synthaug._audit.partial._STEPS": 1,
}


def shorten(patch: Any) -> None:
    """Plants fewer copies, tests with them less often, and takes one step where images are fitted.

    `patch` is a `pytest.MonkeyPatch`.
    """
    for name, value in SHORT.items():
        patch.setattr(name, value)


def measure_no_audit(patch: Any) -> None:
    """`improve` takes for known what an audit costs; to measure it, it makes two."""
    patch.setattr("synthaug.improvement._cost._of_audit", lambda *_: (2.0, 0.01))


def compare_once(patch: Any) -> None:
    """Aligns, registers and fits the same two images once, in however many audits they are.

    These take most of an audit's time, and have tests of their own.
    """
    from synthaug._audit import matching, partial, registration
    from synthaug._audit.alignment import Aligner

    aligned: dict[tuple[bytes, bytes], tuple[float, bool]] = {}
    trained: WeakKeyDictionary[Aligner, list[bytes]] = WeakKeyDictionary()
    align = Aligner._distances

    def distances(
        aligner: Aligner, pixels: Tensor, candidates: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        if aligner not in trained:
            trained[aligner] = [_digest(image) for image in aligner._train]
        queries = [_digest(image) for image in pixels]
        keys = {
            (i, j): (queries[i], trained[aligner][candidates[i, j]])
            for i, j in np.argwhere(candidates >= 0).tolist()
        }
        new = np.full_like(candidates, -1)
        for place, key in keys.items():
            if key not in aligned:
                new[place] = candidates[place]
        D, flipped = align(aligner, pixels, new)
        for place, key in keys.items():
            aligned.setdefault(key, (D[place], flipped[place]))
            D[place], flipped[place] = aligned[key]
        return D, flipped

    patch.setattr(Aligner, "_distances", distances)
    patch.setattr(matching, "register", _remembered(registration.register))
    patch.setattr(partial, "fit", _remembered(partial.fit))
    patch.setattr(partial, "glance", _remembered(partial.glance))


def _remembered(compared: Any) -> Any:
    """A comparison of each query to its reference that is made once."""
    results: dict[bytes, Tensor] = {}

    def compare(queries: Tensor, references: Tensor) -> Tensor:
        keys = [_digest(*pair) for pair in zip(queries, references, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in results]
        if new:
            made = compared(queries[new], references[new])
            results.update(zip([keys[i] for i in new], made, strict=True))
        return torch.stack([results[key] for key in keys])

    return compare


def _digest(*tensors: Tensor) -> bytes:
    """Of shapes, dtypes and values."""
    made = blake2b()
    for tensor in tensors:
        made.update(repr((tensor.shape, tensor.dtype)).encode())
        made.update(tensor.contiguous().numpy().tobytes())
    return made.digest()
