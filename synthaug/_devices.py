"""Which device to run on."""

from typing import Any


def choose_device(name: Any = None) -> Any:
    """The `torch.device` called `name`; a GPU if there is one for `None`.

    Raises:
        ValueError: If torch cannot use it here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch asserts that CUDA is compiled in
        raise ValueError(
            f"`device` is {str(name)!r}, which torch cannot use here. Leave it out to take a GPU "
            "if there is one, or use 'cpu'."
        ) from None
    return device
