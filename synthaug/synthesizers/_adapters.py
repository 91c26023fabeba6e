"""Low-rank adapters (LoRA): files of them as diffusers has them, and weights with them added.

Hu et al. 2022: W + B A in place of W, where A and B alone are trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from synthaug._printable import shortened
from synthaug._support.extras import from_extra
from synthaug._support.reading import parse_json
from synthaug._training import checkpoints
from synthaug.denoisers import Denoiser
from synthaug.errors import CheckpointError, MismatchError

ADAPTED = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""What adapters are put on: the projections of every attention layer, and those of the tokens where
a layer attends to tokens and image at once."""

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""What `load_lora_weights` of a diffusers pipeline looks for."""

_DOWN, _UP, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


def peft_library() -> Any:
    """The library peft, or an ImportError that names the extra that installs it."""
    with from_extra("peft", "Low-rank adapters need peft", "lora"):
        import peft
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


def adapter_settings(file: Path) -> dict[str, Any]:
    """Reads what a file of adapters says of them, by the name of the part, a dot and that of the
    setting; empty if nothing."""
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
    settings: dict[str, Any] = parse_json(text)
    return settings


@torch.no_grad()
def add_adapters(
    network: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], part: str
) -> None:
    """Adds adapters to the weights of a network that has none: alpha / r B A to each.

    Args:
        network: Changed in place.
        tensors: A and B of each adapted layer, of rank r, and perhaps its `alpha`.
        settings: `adapter_settings` of the same file, which may say alpha. By default it is r.
        part: Name of the network in the pipeline.

    Raises:
        LookupError: If a layer is missing, there is none for this part, or the file has more than
            that, which would be left out.
        RuntimeError: If the shapes differ.
        ValueError: If alpha is said twice, and not alike.
    """
    layers, start = dict(network.named_modules()), f"{part}."
    names = [name for name in tensors if name.startswith(start) and name.endswith(_DOWN)]
    if not names:
        raise LookupError(f"it has no adapter for a {part}")
    stems = [name.removesuffix(_DOWN) for name in names]
    used = {stem + ending for stem in stems for ending in (_DOWN, _UP, _ALPHA)}
    if more := sorted(name for name in tensors if name not in used):
        raise LookupError(f"it has {more[0]}, which is no low-rank weight of the {part}")
    if more := sorted(name for name in settings if not name.startswith(start)):
        raise LookupError(f"it sets {more[0]}, which is not of the {part}")
    said = {name.removeprefix(start): value for name, value in settings.items()}
    if said.get("use_dora"):
        raise LookupError("it sets `use_dora`, and has no magnitudes")
    for stem in stems:
        name = stem.removeprefix(start)
        layer: Any = layers[name]
        where = layer.weight.device
        up, down = (tensors[stem + ending].to(where, torch.float32) for ending in (_UP, _DOWN))
        change = up.flatten(1) @ down.flatten(1) * _scale(said, name, len(down), tensors, stem)
        layer.weight += change.view_as(layer.weight).to(layer.weight.dtype)


def _scale(
    said: Mapping[str, Any], layer: str, rank: int, tensors: Mapping[str, Tensor], stem: str
) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) if the file says so, as in peft."""
    alphas = {float(tensors[stem + _ALPHA])} if stem + _ALPHA in tensors else set()
    if "lora_alpha" in said:
        patterns = (said.get("alpha_pattern") or {}).items()
        ours = [value for key, value in patterns if f".{layer}".endswith(f".{key}")]
        alphas.add(float((ours or [said["lora_alpha"]])[0]))
    if len(alphas) > 1:
        raise ValueError(f"{stem} has the alphas {' and '.join(map(str, sorted(alphas)))}")
    return (alphas or {float(rank)}).pop() / (rank**0.5 if said.get("use_rslora") else rank)


@final
@dataclass(frozen=True)
class Adapters:
    """The adapters in a directory that has nothing else of a network, and what they belong to."""

    folder: Path
    record: Path
    """The file that says so, with a section `adapts`."""
    path: str
    """Address of the checkpoint that they belong to."""
    beside: str | None
    """The same, as seen from the folder, for those who moved both."""
    digests: Mapping[str, str]
    """Of its `network` in float32, and of its other parts."""

    @classmethod
    def of(cls, folder: Path, own: Mapping[str, Any], record: str) -> "Adapters | None":
        """Returns those of a checkpoint, if it has them in place of weights.

        Args:
            folder: The checkpoint.
            own: Our record beside its parts.
            record: The name of the file with it.

        Raises:
            CheckpointError: If the record is damaged.
        """
        if "adapts" not in own:
            return None
        said = own["adapts"]
        whole = isinstance(said, dict) and all(isinstance(value, str) for value in said.values())
        if not whole or not {"path", "network"} <= set(said):
            raise CheckpointError(
                f"In {folder / record}, `adapts` is {shortened(said)}, expected the `path` of a "
                "checkpoint and digests of its parts. Train the adapters anew."
            )
        digests = {name: value for name, value in said.items() if name not in ("path", "beside")}
        return cls(folder, folder / record, said["path"], said.get("beside"), digests)

    def base(self) -> Path:
        """The folder of the checkpoint that they belong to.

        Raises:
            CheckpointError: If there is none where the record says.
        """
        if self.path.startswith("hub:") or Path(self.path).is_dir():
            return checkpoints.resolve(self.path)
        beside = None if self.beside is None else self.folder.resolve() / self.beside
        if beside is None or not beside.is_dir():
            raise CheckpointError(
                f"{self.folder} holds adapters of the checkpoint {self.path}, which does not "
                f"exist. Copy it there, or set `path` in {self.record} to where it is."
            )
        return beside

    def check(self, digests: Mapping[str, str]) -> None:
        """Refuses a part of another digest than the adapters were trained with with a
        MismatchError."""
        for name, digest in digests.items():
            if self.digests.get(name, digest) != digest:
                raise MismatchError(
                    f"The {name} in {self.path} is not the one that the adapters in {self.folder} "
                    f"were trained with. Copy it again, or set `path` in {self.record} to where it "
                    "is."
                )

    def add_to(self, network: Any) -> None:
        """Adds them to the weights of a network in float32; a CheckpointError if they are damaged,
        a MismatchError if the weights are not those that they were trained with."""
        self.check({"network": checkpoints.state_digest(network)})
        file = self.folder / "lora" / ADAPTER_FILE
        checkpoints.restore(file.parent)
        with checkpoints.reading(file, "Train the adapters anew."):
            tensors, settings = checkpoints.load_tensors(file), adapter_settings(file)
            add_adapters(network, tensors, settings, Denoiser(network).part)
