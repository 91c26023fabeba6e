"""Diffusers pipelines from files. As with our own parts, nothing in a checkpoint is executed."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from synthaug._printable import printable_line, shortened
from synthaug._support.devices import choose_device
from synthaug._support.extras import from_extra
from synthaug._support.precision import Precision, resolve_precision
from synthaug._support.reading import check_regular_below
from synthaug._support.torch_state import torch_defaults
from synthaug._training.checkpoints import load_tensors, read_record, reading, resolve, state_digest
from synthaug._training.hub import INDEX, variants
from synthaug._training.parts import code_free_json, read_index
from synthaug.errors import CheckpointError
from synthaug.synthesizers._adapters import ADAPTER_FILE, adapter_settings, add_adapters
from synthaug.synthesizers._loading import LoadingConfig

_CONFIGS = ("*config.json", "*config_*.json")
"""Files in which a checkpoint could name code."""


def load_pipeline(
    path: str | Path,
    files: LoadingConfig,
    *,
    dtype: "torch.dtype | Precision",
    device: "str | torch.device | None",
    **instead: None,
) -> Any:
    """The pipeline that a diffusers directory is for, without progress bars.

    Parts that are given as `None` are left out.

    Raises:
        CheckpointError: Under the same conditions as `FromPipeline.from_pretrained`.
        ValueError: For offloading without a GPU.
    """
    import diffusers

    target = choose_device(device)
    if files.offload and target.type == "cpu":
        raise ValueError(
            "`offload` moves networks between the memories of the CPU and of a GPU, and there is "
            "no GPU here. Pass `offload=False`."
        )
    folder = resolve(path, variant=files.variant, parts=None)
    if "adapts" in read_record(folder) and not (folder / INDEX).exists():
        raise CheckpointError(
            f"{folder} holds adapters alone. Load it by `ClassConditional.from_pretrained`, or the "
            "checkpoint that they belong to, with `lora` (`--lora`) "
            f"{folder / 'lora' / ADAPTER_FILE}."
        )
    index = read_index(folder)
    check_files(folder, index, files.variant)
    kind = dtype
    if isinstance(kind, str):
        resolved = resolve_precision(kind, target)
        kind = torch.bfloat16 if resolved == "bfloat16" else torch.float32
    remedy = "Copy the checkpoint again."
    with reading(folder, remedy), torch_defaults(), _without_bars():
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=kind,
            variant=files.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **instead,
        )
    pipeline.set_progress_bar_config(disable=True)
    if files.lora is not None:
        _merge(pipeline, Path(files.lora))
    if not files.offload:
        return pipeline.to(target)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            state_digest(part)
    pipeline.enable_model_cpu_offload(device=target)
    return pipeline


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps the progress bars of diffusers and transformers off: ours say how long all takes."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _merge(pipeline: Any, file: Path) -> None:
    """Adds low-rank adapters to the weights of a pipeline.

    Raises:
        CheckpointError: If the file is none of safetensors, not for this pipeline, or configured
            to do more than to add low-rank weights.
        ImportError: Without peft.
    """
    with from_extra("peft", "Adapters of low rank need peft", "lora"):
        import peft
        from diffusers.loaders.lora_base import LoraBaseMixin

        del peft  # diffusers asks for it later, without naming the extra
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(f"`lora` is {file}, expected a .safetensors file that exists.")
    with reading(file, "Is it for another model, or damaged?"), torch_defaults():
        check_adapter(file)
        if not isinstance(pipeline, LoraBaseMixin):  # as those of PixArt
            part = "transformer" if "transformer" in pipeline.components else "unet"
            tensors, settings = load_tensors(file), adapter_settings(file)
            add_adapters(pipeline.components[part], tensors, settings, part)
            return
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
        if not pipeline.get_list_adapters():
            raise LookupError(f"it has no adapter for a part of {type(pipeline).__name__}")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()


_LAYER = re.compile(r"[\w.\-]+")
"""Names of layers. peft takes them for patterns, and matching a stranger's may have no end."""
_NUMBERS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
"""Settings of an adapter that are numbers, for all layers or by the name of a layer."""
_LISTS = ("target_modules", "exclude_modules")
"""Settings that are names of layers."""
_FREE = (
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_bias"),
    *("lora_dropout", "peft_version", "revision", "task_type", "use_dora", "use_rslora"),
)
"""Settings that may have any value."""


def check_adapter(file: Path) -> None:
    """Refuses an adapter whose config would have peft import something, allocate more than its
    weights take, or match without end, with a CheckpointError that names the setting."""
    import peft
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in list(opened.keys())}
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    usual = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=list))

    def fits(name: str, value: Any) -> bool:
        if name in _NUMBERS:
            numbers = value if isinstance(value, dict) else {"all": value}
            return all(map(_LAYER.fullmatch, numbers)) and all(
                isinstance(number, int | float) and ("alpha" in name or 0 < number <= largest)
                for number in numbers.values()
            )
        if name in _LISTS:
            listed = isinstance(value, list) and all(_LAYER.fullmatch(str(one)) for one in value)
            return value is None or listed
        if name == "init_lora_weights":  # they are replaced by those of the file
            return value in (True, False, "gaussian")
        return name in _FREE or value in (None, usual.get(name))

    settings = [
        (place.rpartition(".")[2], value) for place, value in adapter_settings(file).items()
    ]
    unfit = [f"`{n}` to {v!r}" for n, v in settings if not fits(n, v)]
    unfit += [f"weights of a layer {name!r}" for name in shapes if not _LAYER.fullmatch(name)]
    if unfit:
        raise CheckpointError(
            f"{file} sets {printable_line(shortened(unfit[0]))}, which we do not use for an "
            "adapter. Take one of plain low-rank weights."
        )


def check_files(folder: Path, index: Mapping[str, Any], variant: str | None) -> None:
    """Looks at all that diffusers would load, before it does.

    Args:
        folder: The checkpoint.
        index: Contents of `model_index.json`.
        variant: The variant of weights that is asked for.

    Raises:
        CheckpointError: If a part is of another library, names code of its own or has an adapter
            beside it, or there are weights, but none that are asked for in safetensors files.
    """
    import diffusers

    pipelines = {path.name for path in (Path(diffusers.__file__).parent / "pipelines").iterdir()}
    libraries = {"diffusers", "transformers"} | {name for name in pipelines if name.isidentifier()}
    parts = {n: v for n, v in index.items() if n[0] != "_" and isinstance(v, list) and len(v) == 2}
    with reading(folder, "Copy the checkpoint again."):
        check_regular_below(folder)
    for name, (library, kind) in parts.items():
        if kind is None:
            continue
        if library not in libraries or not isinstance(kind, str):
            raise CheckpointError(
                f"{folder}: the {name} is {kind} of {library}; we load parts of diffusers and "
                "transformers."
            )
        place = folder / name if (folder / name).is_dir() else folder
        if (place / "adapter_config.json").exists():  # names a base, which may be anywhere
            raise CheckpointError(
                f"{place} holds an adapter, which transformers would load unasked. Delete "
                "adapter_config.json there, and give the adapter's file as `lora`."
            )
        for config in sorted({path for kinds in _CONFIGS for path in place.glob(kinds)}):
            code_free_json(config)
        _check_weights(place, variant)


def _check_weights(place: Path, variant: str | None) -> None:
    """Refuses a folder whose weights are not of the variant that is asked for."""
    files = [path.name for path in place.iterdir()]
    there = variants(files)
    if there and None not in there and variant not in there:
        names = " or ".join(sorted(str(name) for name in there))
        raise CheckpointError(
            f"{place} holds only the variant {names} of the weights. Pass `variant={names!r}`."
        )
    if not there and any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in files):
        raise CheckpointError(
            f"{place} holds pickled weights, which can run code when they are read. Convert the "
            "checkpoint to safetensors, or take one that has such files."
        )
