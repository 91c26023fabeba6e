"""The one memory layout of a network: the same weights then run through the same kernels.

Which convolution kernel runs depends on strides, and kernels round differently. So a network in
memory and the same one from disk draw bit-equal images only if their strides are equal too.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from synthaug._support.torch_state import lasting_tensors

Module = TypeVar("Module", bound=nn.Module)


def settled(tensor: Tensor) -> Tensor:
    """Returns the tensor in its one layout: channels-last with four dimensions, else row-major.

    With one channel or 1 x 1 pixels a tensor is contiguous in both formats, whatever the strides of
    the dimensions of size 1, and torch then sees nothing to convert. Kernels are chosen by strides,
    so strides are what is compared here.

    Returns:
        `tensor` itself if its strides are those of a new tensor, else a copy, through which
        gradients flow.
    """
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    wanted = torch.empty_like(tensor, device="meta", memory_format=layout).stride()
    if tensor.stride() == wanted:
        return tensor
    return torch.empty_like(tensor, memory_format=layout).copy_(tensor)


@lasting_tensors()
def settle_layout(module: Module) -> Module:
    """Lays out all parameters and buffers of a module as `settled` does, in place.

    Parameters stay the same objects, so optimizers, tied weights and compiled wrappers keep them.

    Returns:
        `module`.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = settled(tensor.data)
    return module
