"""The networks and the text encoder of a checkpoint, loaded. Nothing in it is executed.

Parts are loaded by class name from a closed list, weights from safetensors only.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from synthaug._printable import printable_line, shortened
from synthaug._support.extras import from_extra
from synthaug._support.precision import Precision, load_network
from synthaug._support.reading import check_regular_below
from synthaug._support.signatures import unfit_setting
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import hub
from synthaug._training.checkpoints import load_tensors, read_json, reading, restore
from synthaug._types import ImageShape
from synthaug.denoisers import OWN_PIPELINE
from synthaug.denoisers._networks import TRANSFORMERS
from synthaug.errors import CheckpointError

logger = logging.getLogger("synthaug")
Module = TypeVar("Module", bound=nn.Module)

_LARGEST_SIDE = 2**14  # pixels, as in a cache
_FLUX_SIZE = 128  # latent pixels of FLUX, whose config does not say them
_DIFFUSERS_PARTS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel", *TRANSFORMERS),
    "vae": ("AutoencoderKL", "AutoencoderDC", "VQModel"),
    "vqvae": ("VQModel",),
}
_TRANSFORMERS_PARTS = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

PARTS = hub.OUR_PARTS
"""Parts of a checkpoint that decide how its images look, and that some synthesizer uses."""
IDLE_PARTS = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""Parts that may be left out: they do not change an image that they let pass."""

_CODE_SETTINGS = ("auto_map", "custom_pipeline", "custom_pipelines", "quantization_config")
"""Settings of a config that make a library import code other than that of the class itself."""

_CLIP_TYPES = ("clip", "clip_text_model")
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
    """Reads the `model_index.json` of a checkpoint; a CheckpointError if it cannot be read, or
    names a pipeline of its own."""
    index = code_free_json(path / "model_index.json")
    if not isinstance(index.get("_class_name", ""), str):  # [module, class], a file of its own
        raise CheckpointError(
            f"{path / 'model_index.json'} names the custom pipeline "
            f"{shortened(index['_class_name'])}, whose code we never run. Load a checkpoint of a "
            "pipeline of diffusers."
        )
    return index


def code_free_json(path: Path) -> dict[str, Any]:
    """Reads a config; one that names code to import is a CheckpointError that says which
    setting."""
    config = read_json(path)
    for setting in _CODE_SETTINGS:
        if config.get(setting) is not None:
            raise CheckpointError(
                f"{path} sets `{setting}`, which would run code of the checkpoint's choice. We "
                "never do that: load a checkpoint without it."
            )
    return config


def check_parts(path: Path, index: Mapping[str, Any]) -> None:
    """Refuses a checkpoint with parts that we would leave out.

    Args:
        path: The checkpoint, for error messages.
        index: Contents of `model_index.json`.

    Raises:
        CheckpointError: Naming the part.
    """
    parts = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    for name in parts:
        if name not in (*PARTS, *IDLE_PARTS):
            raise CheckpointError(
                f"{path} is a {shortened(index.get('_class_name'))}, whose {printable_line(name)} "
                f"we cannot use, and its images need it. {OWN_PIPELINE}"
            )


def part_folder(path: Path, index: Mapping[str, Any], name: str) -> Path:
    """Returns the folder of a part: that of its name, or the checkpoint's own.

    The oldest models of the hub, a network and its scheduler, have both configs and the weights
    beside `model_index.json`.
    """
    parts = {key for key, value in index.items() if isinstance(value, list) and any(value)}
    at_the_root = parts <= {"unet", "scheduler"} and (path / "config.json").is_file()
    return path if at_the_root and not (path / name).is_dir() else path / name


def part_class(path: Path, index: Mapping[str, Any], name: str) -> str:
    """The class name of a part, from a closed list.

    Args:
        path: The checkpoint, for error messages.
        index: Contents of `model_index.json`.
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
        f"{path}: the {name} is {shortened(value or 'missing')}; we load {' or '.join(known)} of "
        f"{library}. {OWN_PIPELINE}"
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
    config = code_free_json(folder / name)
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
    """Refuses a config of more layers than its weights can be of with a CheckpointError, since to
    build these takes as long as it says, before it comes out that their weights are missing."""
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

    place = part_folder(path, index, name) if folder is None else path / folder
    restore(place)
    kind = part_class(path, index, name)
    config = read_config(place)
    if kind == "Transformer2DModel":  # what DiT checkpoints call it, and those of PixArt
        kind = "DiTTransformer2DModel"
        if (norm := config.get("norm_type")) != "ada_norm_zero":
            raise CheckpointError(
                f"{place} is a Transformer2DModel with the `norm_type` {shortened(norm)!r}, and "
                f"not a DiT's ('ada_norm_zero'). {OWN_PIPELINE}"
            )
    with reading(place, "Copy the checkpoint again."):
        # diffusers loads its classes when they are asked for, by a name out of our closed list.
        network = getattr(diffusers, kind)
        if fault := unfit_setting(network.__init__, config):
            raise ValueError(f"in config.json, {fault}")
        with _naming_what_is_passed_over(place / "config.json", network, config):
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
        for layer in part.modules():  # torch takes any number that divides, and fails in the draw
            if isinstance(layer, torch.nn.GroupNorm) and layer.num_groups < 1:
                raise ValueError(f"in config.json, a norm has {layer.num_groups} groups")
    for key, weight in part.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"{place}: the weight {key} is not finite. The checkpoint is broken; take an "
                "earlier one."
            )
    return part


def load_autoencoder(path: Path, index: Mapping[str, Any]) -> Any:
    """The autoencoder of a latent model, float32, whatever its part is called; `None` if there is
    none."""
    for name in ("vae", "vqvae"):
        if index.get(name) and any(index[name]):
            return load_part(path, index, name, torch.float32)
    return None


@contextmanager
def _naming_what_is_passed_over(
    path: Path, network: Any, config: Mapping[str, Any]
) -> Iterator[None]:
    """Warns of settings that a network does not have, as diffusers does without a file name."""
    known = inspect.signature(network.__init__).parameters
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    theirs = logging.getLogger("diffusers.configuration_utils")
    level = theirs.level
    if unknown:
        names = printable_line(shortened(", ".join(unknown)))
        logger.warning("%s sets %s, which is ignored: no such network takes it.", path, names)
        theirs.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.setLevel(level)


def load_frozen(
    path: Path,
    index: Mapping[str, Any],
    dtype: "torch.dtype | Precision",
    device: torch.device,
    change: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """The network of a checkpoint, to draw with; `dtype` as for `load_network`.

    `change` gets it in float32 whenever it is loaded, and changes it in place.
    """
    name = "transformer" if "transformer" in index else "unet"

    @lasting_tensors()
    def load(dtype: torch.dtype) -> nn.Module:
        first = dtype if change is None else torch.float32
        network: nn.Module = load_part(path, index, name, first)
        if change is not None:
            change(network)
            nn.Module.to(network, dtype)  # diffusers' own warns of layers that none of these has
        return network.eval().requires_grad_(False).to(device)

    return load_network(load, dtype, device)


@lasting_tensors()
def embed_prompts(path: Path, index: Mapping[str, Any], prompts: Sequence[str]) -> Tensor:
    """Token sequences of the prompts, float32 (n, k, d), from the checkpoint's text encoder.

    Raises:
        CheckpointError: If text encoder or tokenizer are damaged, or not those of CLIP.
        ValueError: If a prompt is too long, or two prompts of classes are the same to the encoder.
    """
    needs = "A checkpoint with a text encoder needs transformers"
    with from_extra("transformers", needs, "text"):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast
    for name in _TRANSFORMERS_PARTS:
        part_class(path, index, name)
    folder = path / "text_encoder"
    said = read_config(folder)
    if (model_type := said.get("model_type", "clip_text_model")) not in _CLIP_TYPES:
        raise CheckpointError(
            f"{folder} is an encoder of the type {shortened(model_type)!r}, and not CLIP's. "
            f"{OWN_PIPELINE}"
        )
    config = {k: v for k, v in said.items() if k in _TEXT_SETTINGS}
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
        longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(list(prompts), padding="max_length", max_length=longest)
    _check_prompts(prompts, tokens.input_ids, longest)
    with reading(path, "Its text encoder is damaged: copy it again."), torch.inference_mode():
        ids, mask = (
            torch.tensor(rows, dtype=torch.int64, device="cpu")
            for rows in (tokens.input_ids, tokens.attention_mask)
        )
        used = mask if said.get("use_attention_mask") else None
        return encoder.float().eval()(ids, used)[0].clone()


def _check_prompts(prompts: Sequence[str], tokens: Sequence[Sequence[int]], longest: int) -> None:
    """Refuses prompts that a text encoder cannot tell apart; the last one is the negative one."""
    seen: dict[tuple[int, ...], str] = {}
    for number, (prompt, row) in enumerate(zip(prompts, tokens, strict=True), 1):
        if len(row) > longest:
            raise ValueError(
                f"The prompt {shortened(prompt)!r} has {len(row)} tokens, and the text encoder "
                f"reads {longest}: the end would be cut off. Shorten the name in `classes`, "
                "`prompt_template` or `negative_prompt`."
            )
        if number == len(prompts):
            return
        if (same := seen.get(tuple(row))) is not None:
            raise ValueError(
                f"The prompts {shortened(same)!r} and {shortened(prompt)!r} of two classes are the "
                "same to the text encoder. Give names in `classes` that differ, and put {} into "
                "`prompt_template` where the name goes."
            )
        seen[tuple(row)] = prompt


def recorded_shape(record: Mapping[str, Any]) -> ImageShape | None:
    """(C, H, W) that a file of ours says, `None` if it does not; a ValueError if it is none."""
    shape = record.get("image_shape")
    if not shape:
        return None
    sides = tuple(shape)
    if len(sides) != 3 or not all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in sides):
        raise ValueError(f"`image_shape` is {shortened(shape)}, expected (C, H, W)")
    return sides


def default_shape(network: Any, vae: Any) -> ImageShape:
    """(C, H, W) in pixels of what the checkpoint was trained on."""
    size = network.config.get("sample_size", _FLUX_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    if max(height, width) > _LARGEST_SIDE:
        raise CheckpointError(
            f"The network's config sets `sample_size` to {size}, more than {_LARGEST_SIDE:,}. "
            "Copy the checkpoint again."
        )
    if vae is None:
        return network.config.in_channels, height, width
    factor = downsampling(vae)
    return vae_channels(vae), height * factor, width * factor


def vae_channels(vae: Any) -> int:
    """Channels of the images that an autoencoder takes."""
    config = vae.config
    return int(config.out_channels if "out_channels" in config else config.in_channels)


def downsampling(vae: Any) -> int:
    """By what an autoencoder divides height and width."""
    config = vae.config
    levels = config.get("block_out_channels") or config.encoder_block_out_channels
    return int(2 ** (len(levels) - 1))
