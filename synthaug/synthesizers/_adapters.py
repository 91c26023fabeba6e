"""Low-rank adapters (LoRA): files of them as diffusers has them, and weights with them added.

Hu et al. 2022: W + B A in place of W, where A and B alone are trained.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthaug._training import checkpoints
from synthaug.denoisers import Denoiser
from synthaug.errors import MismatchError

ADAPTED = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""What adapters are put on: the projections of every attention layer, and those of the tokens where
a layer attends to tokens and image at once."""

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""What `load_lora_weights` of a diffusers pipeline looks for."""

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def peft_library() -> Any:
    """The library peft.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import peft
    except ImportError:
        raise ImportError(
            "Low-rank adapters need peft. Install it with `pip install 'synthaug[lora]'`."
        ) from None
    return peft


def save_adapters(network: Any, part: str, folder: Path) -> None:
    """Writes the adapters of a network, for `load_lora_weights` of a pipeline.

    Args:
        network: One with adapters.
        part: Name of the part in the pipeline, unet or transformer.
        folder: Gets the file `ADAPTER_FILE`.

    Raises:
        CheckpointError: If the disk is full or not writable.
    """
    weights = peft_library().get_peft_model_state_dict(network)
    named = {f"{part}.{name}": weight for name, weight in weights.items()}
    with (
        checkpoints.writing(folder, "Free some space and run again."),
        checkpoints.replaced(folder) as new,
    ):
        checkpoints.save_tensors(new / ADAPTER_FILE, named)


@torch.no_grad()
def add_adapters(network: nn.Module, tensors: Mapping[str, Tensor], part: str) -> None:
    """Adds adapters to the weights of a network that has none.

    Args:
        network: Changed in place.
        tensors: Tensors that `save_adapters` wrote: A and B of each adapted layer.
        part: Name of the network in the pipeline.

    Raises:
        LookupError: If a layer is missing, or there is none for this part.
        RuntimeError: If the shapes differ.
    """
    layers = dict(network.named_modules())
    names = [name for name in tensors if name.startswith(f"{part}.") and name.endswith(_DOWN)]
    if not names:
        raise LookupError(f"it has no adapter for a {part}")
    for name in names:
        layer: Any = layers[name.removeprefix(f"{part}.").removesuffix(_DOWN)]
        up = tensors[name.removesuffix(_DOWN) + _UP].to(layer.weight.device, torch.float32)
        down = tensors[name].to(layer.weight.device, torch.float32)
        layer.weight += (up @ down).to(layer.weight.dtype)


def adapted(
    path: Path, own: Mapping[str, Any], record: str
) -> tuple[Path, Callable[[nn.Module], None]]:
    """Where the weights of a checkpoint are, and what adds its adapters to them, if it has any.

    Args:
        path: The checkpoint.
        own: Our record beside its parts.
        record: The name of the file with it.

    Raises:
        CheckpointError: If the weights are not there, or the adapters are damaged.
        MismatchError: If the weights are not those that the adapters were trained with.
    """
    adapts = own.get("adapts")
    if adapts is None:
        return path, lambda network: None
    file = path / "lora" / ADAPTER_FILE
    checkpoints.restore(file.parent)

    def change(network: Any) -> None:
        kept = network.dtype == torch.float32  # the digest is of these
        if kept and checkpoints.state_digest(network) != adapts["network"]:
            raise MismatchError(
                f"The network in {adapts['path']} is not the one that the adapters in {path} were "
                f"trained with. Copy it again, or set `path` in {path / record} to where it is."
            )
        with checkpoints.reading(file, "Train the adapters anew."):
            add_adapters(network, checkpoints.load_tensors(file), Denoiser(network).part)

    return checkpoints.resolve(adapts["path"]), change
