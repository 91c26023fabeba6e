"""A pretended GPU: tensors compute on the CPU, say that they are on `cuda:0`, and refuse to mix.

    with PretendedGPU() as gpu:
        network.to("cuda")
        ...
        gpu.counts["to the device"]

What a GPU forbids (operands on two devices, numpy of a tensor on it) is an error here too, and what
makes the host wait for it (copies, `item`, `nonzero`) is counted. Speed, memory and rounding of a
GPU are not pretended.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from synthaug.density import ClassGaussians

_aten = torch.ops.aten
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
"""Operations that take indices from the CPU too, and copy them."""
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_WAITS = {
    _aten._local_scalar_dense.default: "item",
    _aten.nonzero.default: "nonzero",
    _aten.equal.default: "equal",
    _aten.masked_select.default: "masked_select",
    _aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Operations of which the host needs the result."""

counts: "Counter[str]" = Counter()
"""What happened since the last `PretendedGPU` began: "to the device" and "from the device" (copies
that the host waits for), "pinned copies" (that it does not wait for), "waits", "operations"."""


class OnGPU(Tensor):
    """A tensor that says it is on `cuda:0`; its numbers are in `on_cpu`, on the CPU."""

    on_cpu: Tensor
    is_cuda, is_cpu, is_meta = True, False, False
    __torch_function__: Any = torch._C._disabled_torch_function_impl
    __torch_dispatch__: Any = classmethod(
        lambda cls, func, types, args=(), kwargs=None: _run(func, args, kwargs or {})
    )

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> "OnGPU":
        made = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            dtype=real.dtype,
            device=torch.device("meta"),
            requires_grad=requires_grad,
        )
        made.on_cpu = real
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda:0")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGPU({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Mode(TorchDispatchMode):
    """Sees also what begins with tensors of the CPU, or with none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    # Whether a tensor is one of inference mode is not pretended. The guard ends with its name.
    guard = torch._C._InferenceMode(False)  # noqa: F841
    if _is_composite(func):  # inference mode hands these over whole: `to`, `matmul` and others
        with _Mode():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    tensors = list(_tensors((*args, *kwargs.values())))
    from_there = any(isinstance(tensor, OnGPU) for tensor in tensors)
    target = kwargs.get("device")
    # C++ takes our tensors to be on "meta": it moves indices there, and makes zeros for gradients.
    ends_there = from_there if target is None else torch.device(target).type != "cpu"
    if ends_there or from_there:
        counts["operations"] += 1
        _check(func, args, kwargs, tensors, from_there, ends_there)
    if target is not None and ends_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with torch.no_grad():  # gradients are recorded above, for our tensors
        result = func(*_on_cpu(args), **_on_cpu(kwargs))
    if not ends_there:
        return result
    name = func._schema.name
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], OnGPU):
        return args[0]
    return _on_gpu(result)


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_on_cpu(part) for part in value)
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    return value.on_cpu if isinstance(value, OnGPU) else value


def _on_gpu(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_on_gpu(part) for part in value)
    return OnGPU(value) if isinstance(value, Tensor) else value


def _check(
    func: Any, args: Any, kwargs: Any, tensors: list[Tensor], from_there: bool, ends_there: bool
) -> None:
    """Counts what an operation costs the host, and raises what a GPU would."""
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
    if func is _aten._foreach_copy_.default:
        counts["to the device"] += len(args[0]) if isinstance(args[0][0], OnGPU) else 0
        return
    if func in _COPIES:
        source = args[1] if func is _aten.copy_.default else args[0]
        goes = isinstance(args[0], OnGPU) if func is _aten.copy_.default else ends_there
        if isinstance(source, OnGPU) and not goes:
            counts["from the device"] += 1
        elif goes and not isinstance(source, OnGPU):
            unblocked = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            counts["pinned copies" if unblocked and source in _pinned else "to the device"] += 1
        return
    if func in _INDEXED:
        if not isinstance(args[0], OnGPU):
            raise RuntimeError(f"{func}: a tensor on the CPU is indexed by one on cuda:0")
        indices = [index for index in args[1] if index is not None]
        counts["to the device"] += sum(not isinstance(index, OnGPU) for index in indices)
        counts["waits"] += sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
        elsewhere = [x for x in args[2:3] if not isinstance(x, OnGPU) and isinstance(x, Tensor)]
    if from_there and (mixed := [tuple(x.shape) for x in elsewhere if x.ndim]):
        raise RuntimeError(f"{func}: operands on cuda:0 and, of shape {mixed[0]}, on the CPU")
    if func in _WAITS and from_there:
        counts["waits"] += 1


class _Pinned:
    """The tensors that were pinned, by identity; kept alive, so that no other gets their place."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __contains__(self, tensor: Tensor) -> bool:
        return any(tensor is pinned for pinned in self.tensors)


_pinned = _Pinned()


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    copied = tensor.clone()
    _pinned.tensors.append(copied)
    return copied


class PretendedGPU:
    """A context with a GPU, in this thread; `counts` begins at zero."""

    counts = counts

    def __enter__(self) -> "PretendedGPU":
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        self._patch.setattr(torch.cuda, "is_available", lambda: True)
        self._patch.setattr(torch.cuda, "device_count", lambda: 1)
        self._patch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
        self._patch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        check = "_accelerator_graph_capture_health_check"  # asks the device what it records
        self._patch.setattr(torch.optim.Optimizer, check, lambda optimizer: None)
        self._patch.setattr(torch.random, "fork_rng", _fork_rng)
        self._patch.setattr(Tensor, "pin_memory", _pin)
        self._mode = _Mode()
        self._mode.__enter__()
        counts.clear()
        _pinned.tensors.clear()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._mode.__exit__(*raised)
        self._patch.undo()


@contextmanager
def _fork_rng(devices: Any = (), *_: Any, **__: Any) -> Iterator[None]:
    """Of the CPU alone: a pretended GPU has no generator of its own."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def on_gpu(value: Any) -> Any:
    """A copy of a synthesizer, or of a part of one, whose networks are on the pretended GPU."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to("cuda:0")
    if isinstance(value, ClassGaussians):
        return value.to("cuda:0")
    if isinstance(value, tuple | list):
        return type(value)(on_gpu(part) for part in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {f.name: on_gpu(getattr(value, f.name)) for f in fields(value) if f.init}
    changed = {name: part for name, part in parts.items() if part is not getattr(value, name)}
    return replace(value, **changed) if changed else value
