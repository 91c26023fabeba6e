"""Memory that does not suffice: which errors say so, and work in batches that shrink by it."""

import logging
from collections.abc import Callable

logger = logging.getLogger("synthaug")

_SAID = (
    "out of memory",  # CUDA, HIP, XPU and MPS
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",  # the same on Windows
    "_status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "cufft_alloc_failed",
    "cudaerrormemoryallocation",
    "invalid buffer size",  # MPS, for a single tensor that is too large
    "out_of_device_memory",  # XPU
    "out_of_host_memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory did not suffice.

    Torch has a class for its CUDA allocator's alone; libraries of the device, the CPU's allocator
    and other devices raise a `RuntimeError` with a text.
    """
    import torch  # which takes a second, and few who import this need it

    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID):
            return True
        error = error.__cause__
    return False


def is_device_lost(error: BaseException | None) -> bool:
    """Whether an error leaves this process unable to use its device, so that a new one is needed.

    After an illegal access or a failed assertion every later call to the device fails.
    """
    while error is not None:
        lost = isinstance(error, RuntimeError) and "CUDA error: " in str(error)
        if lost and not is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


class ShrinkingBatches:
    """Batches of some rows, halved for good whenever memory does not hold one.

    For work of which the size of a batch changes nothing but time and memory.

    Args:
        size: Rows of the first batches, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, count: int, work: Callable[[slice], object]) -> None:
        """Does `work` for `count` rows; if it runs out of memory it must have changed nothing.
        Raises what `work` raised, if memory does not hold one row."""
        start = 0
        while start < count:
            rows = slice(start, min(start + self.size, count))
            if self._fits(rows, work):
                start = rows.stop
            else:  # what the failed batch held is freed by now
                self.size = (rows.stop - start) // 2
                logger.warning("Out of memory: going on with batches of %d.", self.size)

    def _fits(self, rows: slice, work: Callable[[slice], object]) -> bool:
        try:
            work(rows)
        except Exception as error:
            if rows.stop - rows.start == 1 or not is_out_of_memory(error):
                raise
            return False
        return True
