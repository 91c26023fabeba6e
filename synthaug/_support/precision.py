"""Chooses the precision of networks: that of the device's hardware, or of a run that goes on.

"auto" is resolved before anything is written, so recipes, settings of runs and caches say "float32"
or "bfloat16".
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

from synthaug._support.arguments import check_choice

if TYPE_CHECKING:  # torch takes a second to import, and the command line needs the names alone
    import torch
    from torch import nn

logger = logging.getLogger("synthaug")

Resolved = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]
_Module = TypeVar("_Module", bound="nn.Module")

_WIDE = 64
"""Channels of a first layer from which on bfloat16 is not slower on any CPU that has it."""

_WITHOUT = ("DEFAULT", "NO AVX", "AVX2")
_LIMITS_WITH = ("ALL", "DEFAULT", "BF16", "FP16", "AMX")
"""Ends of oneDNN's names for the sets of instructions with bfloat16."""

_PROBE_SIDE = 128
_PROBE_SECONDS = 0.01
"""For each of the two precisions."""

_loaders: WeakKeyDictionary[Any, Callable[[Any], Any]] = WeakKeyDictionary()
"""What loads a network anew in another dtype, for those whose dtype was chosen automatically."""


def check_precision(precision: object) -> None:
    """Refuses an unknown precision with a ValueError that lists the known ones."""
    check_choice(get_args(Precision), precision=precision)


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 in hardware, as far as torch can tell."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported()
    if device.type != "cpu":
        return False
    # Who limits the instructions that torch and oneDNN may use gets the emulation on any processor.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    if torch.backends.cpu.get_cpu_capability() in _WITHOUT or not limit.endswith(_LIMITS_WITH):
        return False
    # Private functions of torch, which other versions may not have.
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, query, lambda: False)() for query in queries)


def fastest_precision(device: "torch.device", network: "nn.Module | None" = None) -> Resolved:
    """Returns the precision that "auto" means on a device, for a new run.

    Args:
        device: Where it runs.
        network: The network that runs, if it is known. Group normalization and attention are
            slower in bfloat16 on a CPU, and in a narrow network they take most of the time.
    """
    slow = device.type == "cpu" and network is not None and _is_narrow(network)
    return "bfloat16" if has_bfloat16(device) and not slow else "float32"


def _is_narrow(network: "nn.Module") -> bool:
    """Whether its first layer makes few channels, and groups of them are normalized."""
    from torch import nn

    width = next((len(p) for p in network.parameters() if p.dim() > 1), _WIDE)
    return width < _WIDE and any(isinstance(part, nn.GroupNorm) for part in network.modules())


def resolve_precision(
    precision: str,
    device: "torch.device",
    *,
    begun: object = None,
    network: "nn.Module | None" = None,
) -> Resolved:
    """Turns "auto" into the precision to run in, and logs it.

    Args:
        precision: "auto", "float32" or "bfloat16".
        device: Where the network runs.
        begun: Precision that the run recorded, which "auto" keeps on every machine.
        network: The network that runs, if it is known; see `fastest_precision`.

    Raises:
        ValueError: For any other precision.
    """
    check_precision(precision)
    chosen: object = precision
    if precision == "auto" and begun in get_args(Resolved):
        chosen = begun
        logger.info("precision %s, as it was begun", chosen)
    elif precision == "auto":
        chosen = fastest_precision(device, network)
        has = "has" if has_bfloat16(device) else "does not have"
        narrow = has == "has" and chosen == "float32"
        why = ", where so narrow a network is slower in it" if narrow else ""
        logger.info("precision %s: %s %s bfloat16 in hardware%s", chosen, device, has, why)
    if chosen != "bfloat16":
        return "float32"
    _warn_if_emulated(device)
    return "bfloat16"


def recorded_precision(settings: Mapping[str, Any]) -> str | None:
    """The dtype in the settings of a recipe, or else in those of the model that it begins with."""
    while "dtype" not in settings and isinstance(settings.get("base"), Mapping):
        settings = settings["base"]
    found = settings.get("dtype")
    return found if isinstance(found, str) else None


def load_network(
    load: "Callable[[torch.dtype], nn.Module]",
    dtype: "torch.dtype | Precision",
    device: "torch.device",
) -> "nn.Module":
    """Loads a network in a dtype, or in the one that a precision stands for on the device.

    Args:
        load: Loads it in a dtype, onto the device.
        dtype: After "auto", `in_precision` can change it.
        device: Where it runs.

    Raises:
        ValueError: For a dtype that is no torch.dtype of floating point, and no precision.
    """
    import torch

    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        if dtype == torch.bfloat16:
            _warn_if_emulated(device)
        return load(dtype)
    if dtype not in get_args(Precision):
        raise ValueError(
            "`dtype` must be 'auto', 'float32', 'bfloat16' or a floating point torch.dtype, such "
            f"as torch.bfloat16, got {dtype!r}."
        )
    if dtype != "auto":
        return load(_dtype(resolve_precision(str(dtype), device)))
    network = load(_dtype(fastest_precision(device)))
    chosen = _dtype(resolve_precision("auto", device, network=network))
    if next(network.parameters()).dtype != chosen:
        network = load(chosen)
    _loaders[network] = load
    return network


def _dtype(precision: Resolved) -> "torch.dtype":
    import torch

    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def beside(
    part: _Module, network: "nn.Module", load: "Callable[[torch.dtype], _Module]"
) -> _Module:
    """A part whose dtype follows that of a network, and can change if the network's can."""
    if network in _loaders:
        _loaders[part] = load
    return part


def in_precision(network: _Module, precision: Resolved) -> _Module:
    """The network in a precision if its own was chosen automatically; otherwise as it is."""
    load, dtype = _loaders.get(network), _dtype(precision)
    if load is None or next(network.parameters()).dtype == dtype:
        return network
    changed: _Module = load(dtype)
    _loaders[changed] = load
    return changed


def _warn_if_emulated(device: "torch.device") -> None:
    if device.type in ("cpu", "cuda") and not has_bfloat16(device):
        _warn_once(device.type)


@lru_cache
def _warn_once(kind: str) -> None:
    """Warns once per process and kind of device, if bfloat16 is as slow there as is feared."""
    ratio = _slowdown(kind)
    if ratio <= 1:
        logger.info("bfloat16 matrix products take %.2f times as long as float32 ones", ratio)
        return
    warnings.warn(
        f"This {kind} emulates bfloat16: a matrix product took {ratio:.3g} times as long as in "
        "float32. Precision 'auto' takes bfloat16 only where it is faster.",
        stacklevel=2,
    )


def _slowdown(kind: str) -> float:
    """How many times as long a product of two bfloat16 matrices takes as one of float32."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype, device=kind)
        factor @ factor  # prepares the kernel
        best, begun = float("inf"), time.perf_counter()
        while True:
            started = time.perf_counter()
            (factor @ factor)[0, 0].item()  # waits for the device
            ended = time.perf_counter()
            best = min(best, ended - started)
            if ended - begun > _PROBE_SECONDS:
                return best

    return seconds(torch.bfloat16) / seconds(torch.float32)
