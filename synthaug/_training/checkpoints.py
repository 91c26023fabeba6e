"""Checkpoints in diffusers layout: found, read, digested, written. Nothing in them is executed.

Parts are loaded by class name from a closed list, weights from safetensors only.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from synthaug._plan import canonical_json, settings_digest
from synthaug._support.differences import described, differences
from synthaug._support.extras import from_extra
from synthaug._support.files import sync_file, write_text
from synthaug._support.precision import Precision, Resolved, in_precision, load_network
from synthaug._support.reading import (
    check_regular,
    check_regular_below,
    parse_json,
    read_text,
)
from synthaug._support.signatures import unfit_setting
from synthaug._support.torch_state import lasting_tensors
from synthaug._types import JSON
from synthaug.denoisers import uncompiled
from synthaug.errors import CheckpointError, MismatchError, SynthaugError

_LARGEST_SIDE = 2**14  # pixels, as in a cache
_LONGEST_CAUSE = 500
"""Characters of a library's own message; diffusers' may name every weight."""
Module = TypeVar("Module", bound=nn.Module)


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
    return tensor_digest(uncompiled(module).state_dict())


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, from any device."""
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(path))


def save_network(network: nn.Module, folder: Path) -> None:
    """Writes a diffusers network, compiled or not, in float32 if its dtype was chosen by us: what
    suits one device is none of the checkpoint's business."""
    uncompiled(in_precision(network, "float32")).save_pretrained(folder, safe_serialization=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, onto the CPU."""
    from safetensors.torch import load_file

    check_regular(path)
    return load_file(str(path))


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a damaged file raises into one error.

    Raises:
        CheckpointError: Naming the path, the cause and the remedy.
    """
    try:
        yield
    except SynthaugError:
        raise
    except Exception as error:  # the libraries that read it raise whatever the bytes provoke
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        cause = cause if len(cause) <= _LONGEST_CAUSE else f"{cause[:_LONGEST_CAUSE]} ..."
        raise CheckpointError(f"{path} cannot be read ({cause}). {remedy}") from error


def scheduler_settings(scheduler: Any) -> dict[str, JSON]:
    """Kind and config of a diffusers scheduler, for a recipe."""
    # Through text and back: tuples become lists, and -inf (a limit that is off) a string.
    config = {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in scheduler.config.items()
        if not k.startswith("_")
    }
    return {
        "scheduler": type(scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=list)),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole or absent."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_index(folder: Path, pipeline: str, parts: Mapping[str, str]) -> None:
    """Writes `model_index.json`. It makes the directory a checkpoint, so it comes last.

    Args:
        folder: The directory.
        pipeline: Class name of a pipeline that could load it.
        parts: Class name of every part.
    """
    index: dict[str, Any] = {"_class_name": pipeline, "diffusers_version": version("diffusers")}
    index |= {name: ["diffusers", kind] for name, kind in parts.items()}
    write_json(folder / "model_index.json", index)


@contextmanager
def replaced(folder: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A new directory to fill, which takes the place of `folder` once it is whole and on disk.

    Args:
        folder: The directory.
        keep: Where what was in `folder` is kept; by default it is deleted.
    """
    restore(folder)
    new, old = (folder.with_name(f".{folder.name}-{age}") for age in ("new", "old"))
    old = keep or old
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in new.iterdir():
            with open(path, "rb") as file:
                sync_file(file.fileno())
    except Exception:  # a full disk: give back what was taken
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    if keep is None:
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Puts back what a kill between the two renames of `replaced` left aside."""
    old = folder.with_name(f".{folder.name}-old")
    if not folder.exists() and old.exists():
        old.rename(folder)


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Names the file and the free space if a disk is full or not writable.

    Raises:
        CheckpointError: For any error of the file system.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        there = path
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 2**20
        raise CheckpointError(
            f"{path} could not be written: {error}. {free:,.0f} MiB are free there. {remedy}"
        ) from error


def check_same_run(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses to go on with another run than the one that was begun.

    Args:
        path: What holds the run.
        stored: `run_record` of the one that was begun.
        settings: All that decides the result of this one.

    Raises:
        MismatchError: Naming every setting that differs, with both values.
    """
    record = run_record(settings)
    if stored.get("digest") == record["digest"]:
        return
    found = differences("", stored.get("settings", {}), record["settings"])
    short = {name.partition(".")[2] or name: values for name, values in found.items()}
    raise MismatchError(
        f"{path} belongs to another run:\n{described(short, 'there', 'now')}\nUse another output "
        "directory, or delete this one to start over."
    )


def run_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a directory keeps of the run that it belongs to."""
    plain = json.loads(canonical_json(settings))
    return {"digest": settings_digest(settings), "settings": plain}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file is missing, unreadable, or holds something else.
    """
    try:
        value = parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a diffusers checkpoint: it has no {path.name}."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def read_record(folder: Path, name: str = "synthaug.json") -> dict[str, Any]:
    """What we wrote beside the parts of a checkpoint; empty if it is not one of ours."""
    return read_json(folder / name) if (folder / name).exists() else {}


def recorded_dtype(record: Mapping[str, Any]) -> Resolved:
    """The dtype of the network that a record is about, as a precision."""
    return "bfloat16" if record["dtype"] == "torch.bfloat16" else "float32"


def changed_part(
    record: Mapping[str, Any], dtype: torch.dtype, weights: Mapping[str, JSON]
) -> str | None:
    """The first part whose weights are not those of a record, or `None`.

    Args:
        record: Digests in `weights`, and the network's `dtype`.
        dtype: That of the network.
        weights: Digests of the parts that there are.
    """
    for name, digest in record["weights"].items():
        # The network's digest is of its dtype, if it was chosen; prompts are embedded anew, and
        # their last digits depend on the processor.
        free = name == "class_embeddings" or (name == "network" and record["dtype"] != str(dtype))
        if not free and weights.get(name) != digest:
            return str(name)
    return None


def record_command(path: str | Path, command: str) -> None:
    """Notes in a checkpoint's own file which command made it."""
    for name in ("synthaug.json", "inversion.json"):
        file = Path(path) / name
        if file.exists():
            write_json(file, {**read_json(file), "command": command})


def resolve(path: str | Path) -> Path:
    """A local directory, or `hub:OWNER/NAME`: only what says so is looked for on the hub."""
    if isinstance(path, str) and path.startswith("hub:"):
        return _download(path.removeprefix("hub:"))
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise CheckpointError(
            f"{path} is a file; a checkpoint is a directory with model_index.json."
        )
    raise CheckpointError(
        f"There is no directory {path}. Train a model with `synthaug train`, or give the path of a "
        "checkpoint in diffusers layout, or hub:OWNER/NAME."
    )


def lasting_address(path: str | Path) -> str:
    """The address of a checkpoint from any working directory; `resolve` takes it."""
    here = str(path)
    return here if here.startswith("hub:") else str(Path(path).expanduser().absolute())


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} could not be loaded from the hub ({type(error).__name__}: {error}). Check the "
            "name, or download the checkpoint and give its path."
        ) from error


_DIFFUSERS_PARTS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
    "vae": ("AutoencoderKL", "VQModel"),
    "vqvae": ("VQModel",),
}
_TRANSFORMERS_PARTS = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

_CODE_SETTINGS = ("auto_map", "custom_pipeline", "custom_pipelines", "quantization_config")
"""Settings of a config that make a library import code other than that of the class itself."""

_TEXT_SETTINGS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_factor",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "projection_dim",
    "vocab_size",
)
"""What a text encoder is built from. Nothing else of its config reaches transformers, which would
look for kernels, adapters and weights where some settings say."""


def read_index(path: Path) -> dict[str, Any]:
    """Reads the `model_index.json` of a checkpoint.

    Raises:
        CheckpointError: If it cannot be read, or names a pipeline of its own.
    """
    index = _without_code(path / "model_index.json")
    if not isinstance(index.get("_class_name", ""), str):  # [module, class], a file of its own
        raise CheckpointError(
            f"{path / 'model_index.json'} names the custom pipeline {index['_class_name']}, whose "
            "code we never run. Load a checkpoint of a pipeline of diffusers."
        )
    return index


def _without_code(path: Path) -> dict[str, Any]:
    """Reads a config, and refuses one that names code to import.

    Raises:
        CheckpointError: Naming the setting.
    """
    config = read_json(path)
    for setting in _CODE_SETTINGS:
        if config.get(setting) is not None:
            raise CheckpointError(
                f"{path} sets `{setting}`, which would run code of the checkpoint's choice. We "
                "never do that: load a checkpoint without it."
            )
    return config


def part_class(path: Path, index: Mapping[str, Any], name: str) -> str:
    """The class name of a part, from a closed list.

    Args:
        path: The checkpoint, for error messages.
        index: What `model_index.json` holds.
        name: The part.

    Raises:
        CheckpointError: If it is missing, or of a class that we do not load, which includes every
            class of a Python file that lies beside the weights.
    """
    in_diffusers = name in _DIFFUSERS_PARTS
    library = "diffusers" if in_diffusers else "transformers"
    known = _DIFFUSERS_PARTS[name] if in_diffusers else _TRANSFORMERS_PARTS[name]
    value = index.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == library:
        if isinstance(value[1], str) and value[1] in known:
            return value[1]
        value = value[1]
    raise CheckpointError(
        f"{path}: the {name} is {value or 'missing'}; we load {' or '.join(known)} of {library}."
    )


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Reads the config of one part, before a library does, and looks at the files beside it.

    Raises:
        CheckpointError: If the folder or the config is missing, the config names code of its own,
            or an index of weights leads out of the folder or to files that are not safetensors.
    """
    if not folder.is_dir():  # libraries would take its name for one on the hub
        raise CheckpointError(f"{folder} is missing. The checkpoint is incomplete: copy it again.")
    with reading(folder, "Copy the checkpoint again."):
        check_regular_below(folder)
    config = _without_code(folder / name)
    with reading(folder, "Copy the checkpoint again."):
        _check_extent(folder / name, config, sum(map(_tensors_in, folder.glob("*.safetensors"))))
    for path in sorted(folder.glob("*.index.json")):
        with reading(path, "Copy the checkpoint again."):
            for file in read_json(path)["weight_map"].values():
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise CheckpointError(
                        f"{path} names {file!r}, expected .safetensors files beside it."
                    )
    return config


def _tensors_in(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return len(file.keys())


def _check_extent(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuses a config of more layers than its weights can be of, since to build these takes as
    long as it says, before it comes out that their weights are missing.

    Raises:
        CheckpointError: Naming the setting.
    """
    for name, value in config.items():
        many: float = len(value) if isinstance(value, list) else 0
        if "layers" in name:
            many = max(many, *(x for x in _numbers_in(value)), 0)
        if many > max(tensors, 64):
            raise CheckpointError(
                f"{path} sets `{name}` to {many:,}, and there are {tensors:,} weights beside it. "
                "It is not the config of this network: copy the checkpoint again."
            )


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for inner in value:
            yield from _numbers_in(inner)
    elif isinstance(value, int | float):
        yield value


def load_module(
    make: Callable[[], Module], folder: Path, tensors: Mapping[str, Tensor] | None = None
) -> Module:
    """Makes one of our own networks and loads its weights, unless its config is another's.

    Args:
        make: Makes the network, by a config out of a file.
        folder: Holds its weights, in `model.safetensors`.
        tensors: The weights, if they have been read.

    Raises:
        RuntimeError: The config and the weights do not fit; then nothing of the size that the
            config says was allocated.
    """
    if tensors is None:
        tensors = load_tensors(folder / "model.safetensors")
    with torch.device("meta"):
        make().load_state_dict({name: x.to("meta") for name, x in tensors.items()}, assign=True)
    network = make()
    network.load_state_dict(tensors)
    return network


@lasting_tensors()
def load_part(
    path: Path,
    index: Mapping[str, Any],
    name: str,
    dtype: torch.dtype,
    *,
    folder: str | None = None,
) -> Any:
    """Loads one part by its class name, from a closed list; its folder has its name, or another."""
    import diffusers

    place = path / (name if folder is None else folder)
    restore(place)
    kind = part_class(path, index, name)
    if kind == "Transformer2DModel":  # what DiT checkpoints call it
        kind = "DiTTransformer2DModel"
    config = read_config(place)
    with reading(place, "Copy the checkpoint again."):
        # diffusers loads its classes when they are asked for, by a name out of our closed list.
        network = getattr(diffusers, kind)
        if fault := unfit_setting(network.__init__, config):
            raise ValueError(f"in config.json, {fault}")
        part, loaded = network.from_pretrained(
            place,
            use_safetensors=True,
            torch_dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
        # diffusers would go on with random weights, or without some that are there.
        for keys, fault in (("missing_keys", "lacks"), ("unexpected_keys", "has, unasked,")):
            if loaded[keys]:
                raise LookupError(f"it {fault} the weight {min(loaded[keys])}")
    for key, weight in part.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"{place}: the weight {key} is not finite. The checkpoint is broken; take an "
                "earlier one."
            )
    return part


def load_frozen(
    path: Path,
    index: Mapping[str, Any],
    dtype: "torch.dtype | Precision",
    device: torch.device,
) -> nn.Module:
    """The network of a checkpoint, to draw with; `dtype` as for `load_network`."""
    name = "transformer" if "transformer" in index else "unet"

    @lasting_tensors()
    def load(dtype: torch.dtype) -> nn.Module:
        network: nn.Module = load_part(path, index, name, dtype)
        return network.eval().requires_grad_(False).to(device)

    return load_network(load, dtype, device)


@lasting_tensors()
def embed_prompts(path: Path, index: Mapping[str, Any], prompts: Sequence[str]) -> Tensor:
    """Token sequences of the prompts, float32 (n, k, d), from the checkpoint's text encoder."""
    needs = "A checkpoint with a text encoder needs transformers"
    with from_extra("transformers", needs, "text"):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast
    for name in _TRANSFORMERS_PARTS:
        part_class(path, index, name)
    folder = path / "text_encoder"
    config = {k: v for k, v in read_config(folder).items() if k in _TEXT_SETTINGS}
    read_config(path / "tokenizer", "tokenizer_config.json")
    with reading(path, "Its text encoder is damaged: copy it again."), torch.inference_mode():
        # `AutoTokenizer` would ask on standard input for leave to run a checkpoint's own code.
        tokenizer = CLIPTokenizerFast.from_pretrained(
            path / "tokenizer", local_files_only=True, trust_remote_code=False
        )
        encoder, loaded = CLIPTextModel.from_pretrained(
            None,
            config=CLIPTextConfig(**config),
            state_dict=load_tensors(folder / "model.safetensors"),
            output_loading_info=True,
            trust_remote_code=False,
        )
        if loaded["missing_keys"]:
            raise LookupError(f"there is no weight {min(loaded['missing_keys'])}")
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),
            truncation=True,
            return_tensors="pt",
        )
        return encoder.float().eval()(tokens.input_ids)[0].clone()


def default_shape(network: Any, vae: Any) -> tuple[int, int, int]:
    """(C, H, W) in pixels of what the checkpoint was trained on."""
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if max(height, width) > _LARGEST_SIDE:
        raise CheckpointError(
            f"The network's config sets `sample_size` to {size}, more than {_LARGEST_SIDE:,}. "
            "Copy the checkpoint again."
        )
    if vae is None:
        return network.config.in_channels, height, width
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.out_channels, height * factor, width * factor
