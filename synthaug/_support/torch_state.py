"""Torch's global state, and code that must not depend on it.

Our own tensors name their dtype and device. What others make for us (schedulers, networks, the
state of an optimizer) takes them from `torch.set_default_dtype` and `torch.set_default_device`,
which belong to the caller: around such code they are what torch starts with.
"""

import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_lock = threading.Lock()
_inside = 0
_forked = False
_callers_dtype = torch.float32


@contextmanager
def torch_defaults() -> Iterator[None]:
    """A context, or a decorator, in which new tensors are float32 on the CPU unless told otherwise.

    Does nothing where that is so already. The default device belongs to a thread, but the default
    dtype to the process: other threads see it too. Threads that are inside at the same time share
    it, and the last one out gives the caller's back. So keep the context around short calls where
    a caller's own threads may run meanwhile.
    """
    global _inside, _callers_dtype
    one_thread_after_fork()
    with _lock:
        if not _inside:
            _callers_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        if _default_device().type == "cpu":
            yield
        else:
            with torch.device("cpu"):
                yield
    finally:
        with _lock:
            _inside = max(0, _inside - 1)
            if not _inside:
                torch.set_default_dtype(_callers_dtype)


def _default_device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.6 after `set_default_device(None)`, which means the CPU
        return torch.device("cpu")


def _leave_other_threads() -> None:
    """In a forked process: threads that were inside do not exist here, and will not leave."""
    global _lock, _inside, _forked, _arithmetic, _multiplying
    _lock, _arithmetic, _forked = threading.Lock(), threading.Lock(), True
    if _inside:
        torch.set_default_dtype(_callers_dtype)
    if _multiplying and _undo_arithmetic is not None:
        _undo_arithmetic()
    _inside = _multiplying = 0


if "register_at_fork" in vars(os):  # elsewhere nothing forks
    os.register_at_fork(after_in_child=_leave_other_threads)


def one_thread_after_fork() -> None:
    """Limits torch to one thread in a forked process, for good.

    The threads of OpenMP that its parent used do not exist there, and waiting for them never ends.
    """
    if _forked and torch.get_num_threads() > 1:
        log.warning(
            "This process was forked, so torch uses one thread from now on. For more "
            'threads, start the process by `multiprocessing.get_context("spawn")`.'
        )
        torch.set_num_threads(1)


_arithmetic = threading.Lock()
_multiplying = 0
_undo_arithmetic: Callable[[], None] | None = None


@contextmanager
def full_precision() -> Iterator[None]:
    """A context, or a decorator, in which float32 is multiplied as float32, not as TF32 or less.

    Convolutions on recent NVIDIA GPUs round to the 10 bits of TF32 unless told otherwise, and a
    caller may allow the same for all products (`torch.set_float32_matmul_precision`). These
    settings belong to the process: threads that are inside at the same time share them, and the
    last one out gives the caller's back.
    """
    global _multiplying, _undo_arithmetic
    with _arithmetic:
        if not _multiplying:
            _undo_arithmetic = _set_full_precision()
        _multiplying += 1
    try:
        yield
    finally:
        with _arithmetic:
            _multiplying = max(0, _multiplying - 1)
            if not _multiplying and _undo_arithmetic is not None:
                _undo_arithmetic()


def _set_full_precision() -> Callable[[], None]:
    """Sets what `full_precision` promises; returns what undoes it."""
    backends: Any = torch.backends
    try:
        convolutions, products = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used torch's newer settings, which know single parts
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        parts = cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.matmul
        before = [(part, part.fp32_precision) for part in parts]
        for part, _ in before:
            part.fp32_precision = "ieee"

        def undo_newer() -> None:
            for part, precision in before:
                part.fp32_precision = precision

        return undo_newer

    try:
        matmuls = backends.cuda.matmul, backends.mkldnn.matmul
        single = [(part, part.fp32_precision) for part in matmuls]
    except AttributeError:  # an older torch, in which they have one setting
        single = []

    def undo() -> None:  # what was so already is not touched
        if convolutions:
            backends.cudnn.allow_tf32 = True
        if products != "highest":
            torch.set_float32_matmul_precision(products)
            for part, precision in single:  # `cuda.matmul.allow_tf32` had set one of them alone
                part.fp32_precision = precision

    if convolutions:
        backends.cudnn.allow_tf32 = False
    if products != "highest":
        torch.set_float32_matmul_precision("highest")
    return undo


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """`torch_defaults`, and gradients as if the caller had neither `inference_mode` nor `no_grad`.

    For tensors that outlive the caller's context: those of `inference_mode` can never be trained or
    changed in place outside of it.
    """
    with torch_defaults(), torch.inference_mode(False), torch.enable_grad():
        yield


def shared_counter() -> Tensor:
    """An int64 scalar, 0, in memory that worker processes share and any caller can change."""
    with lasting_tensors():
        return shared(torch.zeros((), dtype=torch.int64, device="cpu"))


def shared(counter: Tensor) -> Tensor:
    """An int64 scalar in memory that worker processes share.

    Without shared memory objects (no /dev/shm in a container) it is in memory that forked workers
    share, and that cannot be sent to processes that are spawned.
    """
    try:
        return counter.share_memory_()
    except (OSError, RuntimeError):
        memory = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)[0]
        return memory.copy_(counter)
