"""Chooses the device to run on, and brings tensors there."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes a second to import, and the command line needs the names alone
    import torch
    from torch import Tensor


def choose_device(name: Any = None) -> Any:
    """The `torch.device` called `name`; for `None` or "auto" the accelerator that there is.

    That may be a GPU of any maker (cuda, which is also ROCm's name, mps or xpu). Where several
    processes share a machine, LOCAL_RANK chooses among its devices, unless `name` has a number.

    Raises:
        ValueError: If torch cannot use it here.
    """
    import torch

    try:
        device: Any = _accelerator() if name is None or name == "auto" else torch.device(name)
        rank = os.environ.get("LOCAL_RANK", "")
        if device.index is None and device.type in ("cuda", "xpu") and rank.isdecimal():
            count = torch.get_device_module(device).device_count()
            device = torch.device(device.type, int(rank) % max(1, count))
        torch.empty(0, device=device, dtype=torch.float32)
    # torch asserts that CUDA is compiled in, and has a TypeError for what names no device.
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(
            f"`device` is {str(name)!r}, which torch cannot use here. Leave it out to take a GPU "
            "if there is one, or use 'cpu'."
        ) from None
    return device


def _accelerator() -> "torch.device":
    """The kind of device that computes fastest here."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    # Others that torch knows, such as those for servers alone, were never tried.
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None and found.type in ("mps", "xpu") else torch.device("cpu")


def sent(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """A tensor of the CPU on a device; on a CUDA device by a copy that the host does not wait for.

    An ordinary copy to such a device waits until all that was asked of it before is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Placed:
    """Tensors that are copied to a device once, however often they are asked for there."""

    def __init__(self, *tensors: "Tensor") -> None:
        self._tensors = tensors

    def on(self, device: "torch.device") -> "tuple[Tensor, ...]":
        """The tensors, on a device; they may take part in gradients, also in inference mode."""
        import torch

        if any(x.device != device or x.is_inference() for x in self._tensors):
            with torch.inference_mode(False):
                own = (x.clone() if x.is_inference() else x for x in self._tensors)
                self._tensors = tuple(sent(x, device) for x in own)
        return self._tensors


def timesteps_of(t: "Tensor", x: "Tensor") -> "Tensor":
    """A timestep, a scalar or (n,), for each of the images `x`: (n,), on their device.

    One number on the CPU is written there by the device itself, without a copy.
    """
    import torch

    if t.device.type == "cpu" and x.device.type != "cpu" and bool((t == t.reshape(-1)[0]).all()):
        return torch.full((len(x),), t.reshape(-1)[0].item(), dtype=t.dtype, device=x.device)
    return sent(t, x.device).expand(len(x))
