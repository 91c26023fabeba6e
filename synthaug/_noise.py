"""One noise stream per row, so that neither batching, order nor resumption changes a row's noise.

Streams are CPU `torch.Generator`s, which every diffusers scheduler accepts as a list. A plain
`torch.Generator().manual_seed(seed)` keeps only the low 32 bits of `seed`, so among 100,000 rows
two would share all their noise more likely than not. We therefore key the same Mersenne twister
with all 64 bits (`init_by_array` of Matsumoto and Nishimura, through numpy).
"""

import ctypes
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._support.arguments import check_not_negative
from synthaug._types import Unsigned

Streams: TypeAlias = Sequence[torch.Generator]
"""One stream of random numbers per row."""

# Layout of a CPU generator's state: seed, (left, seeded), next, then the 624 words of the twister,
# each in eight bytes. `test_noise` checks it against torch itself.
_WORDS = slice(24, 24 + 8 * 624)
_TEMPLATE = torch.Generator("cpu").manual_seed(0).get_state()


class _Twister(threading.local):
    """One Mersenne twister of numpy per thread, to key again and again.

    A new `RandomState` asks the system for entropy first, and hands its state out word by word. To
    key one that is there, and to read its memory, takes a small part of that time.
    """

    def __init__(self) -> None:
        bits = np.random.MT19937(0)
        self._twister = np.random.RandomState(bits)
        self._bits = bits  # owns the memory below
        memory = (ctypes.c_uint32 * 624).from_address(bits.ctypes.state_address)
        self._memory: NDArray[np.uint32] | None = np.ctypeslib.as_array(memory)
        if not np.array_equal(self._memory, self._state()):  # another layout than we know
            self._memory = None

    def _state(self) -> NDArray[np.uint32]:
        state: NDArray[np.uint32] = self._twister.get_state(legacy=False)["state"]["key"]
        return state

    def keyed(self, seed: int) -> Unsigned:
        """The 624 words of a twister that was keyed with 64 bits."""
        self._twister.seed(np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))
        return (self._state() if self._memory is None else self._memory).astype(np.uint64)


_TWISTER = _Twister()


def stream(seed: int) -> torch.Generator:
    """The noise stream of one row, keyed with all 64 bits of `seed`."""
    state = _TEMPLATE.clone()
    state[_WORDS] = torch.from_numpy(_TWISTER.keyed(seed).view(np.uint8))
    generator = torch.Generator("cpu")
    generator.set_state(state)
    return generator


def streams(seeds: Iterable[int] | Unsigned) -> list[torch.Generator]:
    """One stream per seed, in order."""
    return [stream(int(seed)) for seed in seeds]


def randn(generators: Streams, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 (len(generators), *shape): row i comes from generator i alone.

    Drawn on the CPU: the streams of CUDA devices differ, and this is never the slow part. On a
    processor of another instruction set torch's logarithms and cosines round otherwise, so noise
    differs by up to 2e-6.
    """
    draw = partial(torch.randn, tuple(shape), dtype=torch.float32, device="cpu")
    return torch.stack([draw(generator=g) for g in generators])


def rand(generators: Streams, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), float32 (len(generators), *shape); streams as in `randn`."""
    draw = partial(torch.rand, tuple(shape), dtype=torch.float32, device="cpu")
    return torch.stack([draw(generator=g) for g in generators])


def randint(generators: Streams, high: int) -> Tensor:
    """Whole numbers in [0, high), int64 (len(generators),); streams as in `randn`."""
    draw = partial(torch.randint, high, (), dtype=torch.int64, device="cpu")
    return torch.stack([draw(generator=g) for g in generators])


def counter_rng(seed: int, *counters: int) -> np.random.Generator:
    """A numpy generator that is a pure function of `seed` and up to three counters.

    For choices keyed by (seed, epoch, index): any one can be made without making those before it.
    """
    if len(counters) > 3:
        raise ValueError(f"`counters` holds {len(counters)} values, at most 3 are possible.")
    words = [0, *counters, *[0] * (3 - len(counters))]  # word 0 counts the draws themselves
    return np.random.Generator(
        np.random.Philox(key=checked_seed(seed) & (2**128 - 1), counter=words)
    )


def checked_seed(seed: Any) -> int:
    """A seed as `counter_rng` takes it. A negative one is a ValueError, anything but a whole number
    a TypeError: `None` is not "another one each time" here."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"`seed` is {seed!r}, expected a whole number.")
    check_not_negative(seed=int(seed))
    return int(seed)
