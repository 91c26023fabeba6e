"""Checkpoints in diffusers layout: found, read, digested, written. Nothing in them is executed.

Parts are loaded by class name from a closed list, weights from safetensors only.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthaug._errors import CheckpointError


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits of blake2b over names, dtypes, shapes and bytes."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def state_digest(module: nn.Module) -> str:
    """`tensor_digest` of a module's weights and buffers, compiled or not."""
    inner: Any = getattr(module, "_orig_mod", module)
    return tensor_digest(inner.state_dict())


def diffusers_version() -> str:
    """The installed version, as `model_index.json` records it."""
    from importlib.metadata import version

    return version("diffusers")


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new directory to fill, which takes the place of `folder` once it is whole."""
    new, old = (folder.with_name(f".{folder.name}-{age}") for age in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a diffusers checkpoint: it has no {path.name}."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def resolve(path: str | Path) -> Path:
    """A local directory, or a snapshot of a model on the hub."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise CheckpointError(
            f"{path} is a file; a checkpoint is a directory with model_index.json."
        )
    if isinstance(path, Path) or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no directory {path}. Train a model with `synthaug train`, or give the path "
            "of a checkpoint in diffusers layout."
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"There is no directory {path}, and it could not be loaded from the hub "
            f"({type(error).__name__}). Check the path, or download the checkpoint first."
        ) from error


_PARTS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
    "vae": ("AutoencoderKL",),
}


def load_part(path: Path, index: Mapping[str, Any], name: str, dtype: torch.dtype) -> Any:
    """Loads one part by its class name, from a closed list."""
    import diffusers

    kind = (index.get(name) or (None, None))[1]
    if kind not in _PARTS[name]:
        raise CheckpointError(
            f"{path}: the {name} is {kind or 'missing'}; we load {' or '.join(_PARTS[name])}."
        )
    if kind == "Transformer2DModel":  # what DiT checkpoints call it
        kind = "DiTTransformer2DModel"
    try:
        part = getattr(diffusers, kind).from_pretrained(
            path / name, use_safetensors=True, torch_dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / name} cannot be loaded: {error}") from error
    for key, weight in part.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"{path / name}: the weight {key} is not finite. The checkpoint is broken; take an "
                "earlier one."
            )
    return part


def embed_prompts(path: Path, prompts: Sequence[str]) -> Tensor:
    """Token sequences of the prompts, float32 (n, k, d), from the checkpoint's text encoder."""
    try:
        from transformers import AutoTokenizer, CLIPTextModel
    except ImportError:
        raise ImportError(
            "A checkpoint with a text encoder needs transformers. Install it with "
            "`pip install synthaug[text]`."
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            path / "text_encoder", use_safetensors=True, local_files_only=True
        ).eval()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the text encoder cannot be loaded: {error}") from error
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        return encoder(tokens.input_ids)[0].float().clone()


def default_shape(network: Any, vae: Any) -> tuple[int, int, int]:
    """(C, H, W) in pixels of what the checkpoint was trained on."""
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if vae is None:
        return network.config.in_channels, height, width
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.out_channels, height * factor, width * factor
