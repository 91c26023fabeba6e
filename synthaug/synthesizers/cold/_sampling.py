"""Restoring degraded images level by level: the algorithms of cold diffusion (Bansal et al. 2022).

Notation as in the paper: D(x, s) the degradation, R(x_s, s) the restorer, T the last level.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from synthaug._types import Images
from synthaug.degradations import AbstractDegradation, Realization

Restorer: TypeAlias = Callable[[Images, Tensor], Images]
"""`R(x_s, s)`: the clean images that it sees in images at levels s, int64 (n,), all at least 1."""

Algorithm: TypeAlias = Literal["improved", "naive", "direct"]
"""Algorithm 2, Algorithm 1, or R applied once."""


class Restored(NamedTuple):
    """The two images that a recursion leaves: which one is wanted is the caller's choice."""

    x0: Images
    """The recursion's own state at level 0."""
    prediction: Images
    """What R said last, at the last level above 0."""


def visited_levels(s: Tensor, num_steps: int | None) -> Tensor:
    """Levels from s down to 0, int64 (n, k + 1): all of them, or at most `num_steps` even steps.

    Rows with fewer steps than others end in further zeros.
    """
    steps = s if num_steps is None else s.clamp(max=num_steps)
    taken = torch.arange(int(steps.max()) + 1, dtype=torch.int64, device="cpu")
    return s[:, None] * (steps[:, None] - taken).clamp(min=0) // steps[:, None].clamp(min=1)


def restore(
    restorer: Restorer,
    degradation: AbstractDegradation,
    x: Images,
    s: Tensor,
    realization: Realization,
    *,
    algorithm: Algorithm = "improved",
    num_steps: int | None = None,
) -> Restored:
    """Restores images from levels s to level 0, each from its own.

        improved   x_{s'} = x_s - D(R(x_s, s), s) + D(R(x_s, s), s')      (Algorithm 2)
        naive      x_{s'} = D(R(x_s, s), s')                              (Algorithm 1)
        direct     x_0 = R(x_s, s)

    with s' = s - 1, or the next of `num_steps` levels. Nothing is clipped: what Algorithm 2
    promises for any restorer (it inverts D = x + s e, it keeps what every level keeps) holds only
    without.

    Args:
        restorer: R.
        degradation: D.
        x: x_s, floating point (n, C, H, W).
        s: Level of each image, int64 (n,), on the CPU. Images at level 0 stay as they are.
        realization: Realization of D, on the device of `x`; it is the same at all levels.
        algorithm: "improved", "naive" or "direct".
        num_steps: Restorer evaluations per image at most; `None` visits every level.
    """
    if algorithm == "direct":
        algorithm, num_steps = "naive", 1  # one step to level 0, where D(R, 0) is R
    prediction = x
    levels = visited_levels(s, num_steps)
    for now, then in zip(levels.T[:-1], levels.T[1:], strict=True):
        chosen = slice(None) if (now > 0).all() else now.nonzero()[:, 0]
        at, to = now[chosen], then[chosen]
        rows = chosen if isinstance(chosen, slice) else chosen.to(x.device)
        held = {name: value[rows] for name, value in realization.items()}
        x_s = x[rows]
        x_hat = restorer(x_s, at)
        if algorithm == "improved":
            below = x_s - degradation(x_hat, at, held) + degradation(x_hat, to, held)
        else:
            below = degradation(x_hat, to, held)
        if isinstance(rows, slice):
            x, prediction = below, x_hat
        else:
            x = x.index_copy(0, rows, below.to(x.dtype))
            prediction = prediction.index_copy(0, rows, x_hat.to(x.dtype))
    return Restored(x0=x, prediction=prediction)
