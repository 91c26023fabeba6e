"""Says which device to run on."""

import os
from typing import Any


def choose_device(name: Any = None) -> Any:
    """The `torch.device` called `name`; for `None` a GPU if there is one, by LOCAL_RANK its own.

    Raises:
        ValueError: If torch cannot use it here.
    """
    import torch

    if name is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK", "")
        own = f"cuda:{int(rank) % torch.cuda.device_count()}" if rank.isdecimal() else "cuda"
        return torch.device(own)
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float32)
    # torch asserts that CUDA is compiled in, and has a TypeError for what names no device.
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(
            f"`device` is {str(name)!r}, which torch cannot use here. Leave it out to take a GPU "
            "if there is one, or use 'cpu'."
        ) from None
    return device
