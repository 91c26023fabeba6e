"""Checkpoints in diffusers layout: found, read, digested, written. `parts` loads what they hold."""

import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from synthaug._plan import canonical_json, settings_digest
from synthaug._printable import shortened
from synthaug._support.arguments import check_type, check_whole
from synthaug._support.differences import described, differences
from synthaug._support.digests import tensor_digest
from synthaug._support.extras import installed_version
from synthaug._support.files import sync_file, write_text
from synthaug._support.memory import is_out_of_memory
from synthaug._support.names import class_names
from synthaug._support.precision import Resolved, in_precision
from synthaug._support.reading import check_regular, parse_json, read_text
from synthaug._training import hub
from synthaug._types import JSON
from synthaug.denoisers import uncompiled
from synthaug.errors import CheckpointError, MismatchError, SynthaugError

P = ParamSpec("P")
Loaded = TypeVar("Loaded")

_SAMPLED = 64
"""Values of a tensor that `state_digest` compares to see whether it changed."""


_DIGEST = "synthaug.digest"
"""Key of the digest in the metadata of a safetensors file."""
_digests: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""The last digest of each module, and `_traces` of the tensors that it was computed from."""


def state_digest(module: nn.Module) -> str:
    """`tensor_digest` of a module's weights and buffers, compiled or not.

    It is computed once, and again only after a tensor was replaced or changed: weights may be tens
    of gigabytes, and planning and drawing ask for it several times.
    """
    module = uncompiled(module)
    tensors = module.state_dict()
    traces = _traces(tensors)
    remembered = _digests.get(module)
    if remembered is None or remembered[0] != traces:
        remembered = _digests[module] = (traces, tensor_digest(tensors))
    return remembered[1]


def _traces(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns values that change if a tensor is replaced or changed in place.

    Torch counts changes in place, but not those of `tensor.data`, as adapters are merged: so a few
    values of every tensor count too.
    """
    traces: dict[str, Any] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLED)].double().sum().item()
        version = -1 if tensor.is_inference() else tensor._version
        traces[name] = (tensor.dtype, tensor.shape, tensor.data_ptr(), version, some)
    return traces


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, from any device."""
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(path))


def write_tensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file into a file that is there, as `whole_file` gives one.

    `save_tensors` would put another file in its place, without its lock and its rights. The file
    holds a digest: later runs go on with what is in it.
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    Path(path).write_bytes(save(own, {_DIGEST: tensor_digest(own)}))


def save_network(network: nn.Module, folder: Path) -> None:
    """Writes a diffusers network, compiled or not, in float32 if its dtype was chosen by us: what
    suits one device is none of the checkpoint's business."""
    uncompiled(in_precision(network, "float32")).save_pretrained(folder, safe_serialization=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, onto the CPU.

    Raises:
        ValueError: It has a digest, which is that of other tensors.
    """
    from safetensors import safe_open

    check_regular(path)
    with safe_open(str(path), "pt") as file:
        names = file.keys()
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
        expected = (file.metadata() or {}).get(_DIGEST)
    if expected not in (None, tensor_digest(tensors)):
        raise ValueError("its tensors are not those that were written")
    return tensors


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a damaged file raises into a CheckpointError with path, cause and remedy."""
    try:
        yield
    except SynthaugError:
        raise
    except ImportError as error:
        raise _lacking(path, error, remedy) from error
    except Exception as error:  # the libraries that read it raise whatever the bytes provoke
        raise CheckpointError(f"{path} cannot be read ({cause_of(error)}). {remedy}") from error


_EXTRAS = {"transformers": "text", "peft": "lora"}
"""Packages that networks in a checkpoint may need, and the extras that install them."""


def _lacking(path: Path, error: ImportError, remedy: str) -> Exception:
    """Returns an error that says what to install, or that the checkpoint is damaged."""
    for package, extra in _EXTRAS.items():
        if (error.name or "").partition(".")[0] == package and find_spec(package) is None:
            return ImportError(
                f"{path} needs {package}. Install it with `pip install 'synthaug[{extra}]'`."
            )
    return CheckpointError(f"{path} cannot be read ({cause_of(error)}). {remedy}")


def cause_of(error: Exception) -> str:
    """An error in a few words."""
    return shortened(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def loading(load: Callable[P, Loaded]) -> Callable[P, Loaded]:
    """Makes a `from_pretrained` raise one error for whatever values of the checkpoint provoke.

    Errors about its arguments stay as they are: they name one that was given, or a setting in it,
    or ask for one ("Pass `classes`").
    """

    known = inspect.signature(load)

    @wraps(load)
    def loaded(*args: P.args, **kwargs: P.kwargs) -> Loaded:
        known.bind(*args, **kwargs)  # or it is no fault of the checkpoint
        _check_arguments(**kwargs)
        try:
            return load(*args, **kwargs)
        except (SynthaugError, ImportError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            path = kwargs.get("path", next(iter(args[1:]), None))  # after the class
            mappings = (value for value in kwargs.values() if isinstance(value, Mapping))
            stated = {name for name, value in kwargs.items() if value is not None}
            stated |= {name for one in mappings for name in one}
            about = {*re.findall(r"[`'](\w+)[`'=]", str(error))}
            ours = isinstance(error, TypeError | ValueError)
            if path is None or (ours and (stated & about or "Pass `" in str(error))):
                raise
            raise CheckpointError(
                f"The checkpoint {path} cannot be used ({cause_of(error)}). Copy it again."
            ) from error

    return loaded


def _check_arguments(
    *,
    classes: Any = None,
    image_size: Any = None,
    prompt_template: Any = "",
    negative_prompt: Any = "",
    **others: Any,
) -> None:
    """Refuses arguments of another type than every `from_pretrained` takes.

    Raises:
        TypeError, ValueError: Naming the argument.
    """
    del others
    if classes is not None and not isinstance(classes, str):  # refused with a remedy of its own
        class_names(classes)
    check_whole(1, image_size=image_size)
    check_type(str, "a text", prompt_template=prompt_template, negative_prompt=negative_prompt)


def scheduler_settings(scheduler: Any) -> dict[str, JSON]:
    """Kind and config of a diffusers scheduler, for a recipe."""
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    return {"scheduler": type(scheduler).__name__, "scheduler_config": plain_config(config)}


def plain_config(config: Mapping[str, Any]) -> Any:
    """A scheduler's config as JSON: tuples become lists, and -inf (a limit that is off) text."""
    finite = {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in config.items()
    }
    return json.loads(json.dumps(finite, default=list))


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
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "diffusers_version": installed_version("diffusers"),
    }
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
    """Turns any error of the file system into a CheckpointError that names the file and the free
    space."""
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
        path: The directory of the run.
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
    """Returns the record of a run for its directory."""
    plain = json.loads(canonical_json(settings))
    return {"digest": settings_digest(settings), "settings": plain}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a CheckpointError if the file is missing, unreadable or another
    thing."""
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
    """Returns our record beside the parts of a checkpoint; empty if it is not one of ours."""
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
        dtype: Dtype of the network.
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


def resolve(
    path: str | Path,
    *,
    variant: str | None = None,
    parts: Collection[str] | None = (*hub.OUR_PARTS, *hub.MORE_ENCODERS),
) -> Path:
    """A local directory, or `hub:OWNER/NAME`: only what says so is looked for on the hub.

    Args:
        path: Where the checkpoint is.
        variant: Variant of a model of the hub, which weights are fetched.
        parts: Parts of a model of the hub, which parts are fetched; `None` for all.
    """
    if isinstance(path, str) and path.startswith("hub:"):
        return hub.download(path.removeprefix("hub:"), variant=variant, parts=parts)
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


def address_beside(folder: Path, address: str) -> dict[str, str]:
    """A lasting address as `beside`, seen from a folder; nothing if no path leads there."""
    if address.startswith("hub:"):
        return {}
    with suppress(ValueError):  # on another drive of Windows
        return {"beside": os.path.relpath(os.path.realpath(address), os.path.realpath(folder))}
    return {}


def lasting_address(path: str | Path) -> str:
    """The address of a checkpoint from any working directory; `resolve` takes it."""
    here = str(path)
    return here if here.startswith("hub:") else str(Path(path).expanduser().absolute())
