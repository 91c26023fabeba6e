"""Feature extractors: images in, one vector per image out.

An extractor is any callable with a `name` that maps uint8 pixels (n, C, H, W) to a float32 array
(n, d). Some come with the package:

    features.Pixel()                          # the image itself, made small; needs no weights
    features.Spectrum()                       # its lowest frequencies, whatever their phase
    features.TorchModule(network)             # any module
    features.classifier(network)              # what a classifier's last layer sees
    features.TorchScript("encoder.pt", trusted=True)  # a file made by torch.jit.save

`named` makes one from a name, so that a command line or a file can ask for it, and knows the
networks of torchvision and timm. `extract` runs one over many images in bounded memory and checks
what it returns.
"""

import copy
import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug._cluster import RayEngine
from synthaug._plan import canonical_json
from synthaug._support import arguments, extras, torch_state
from synthaug._support.digests import check_seal, sealed_file, tensor_digest
from synthaug._support.progress import bar
from synthaug._types import JSON, Features, Pixels, StrPath

log = logging.getLogger(__name__)


@runtime_checkable
class Extractor(Protocol):
    """Turns images into vectors whose Euclidean distance says how alike two images are."""

    name: str
    """Shown in reports."""

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (n, C, H, W) to float32 (n, d), each row a function of its image alone."""


def describe(extractor: Extractor) -> dict[str, JSON]:
    """Returns the identity of an extractor for a report: its name and the digest of its weights, if
    any.
    """
    # An extractor of the user's own need not have weights.
    return {"name": extractor.name, "weights": getattr(extractor, "weights", None)}


@final
@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """How features are computed over many images. It changes no result beyond rounding.

    Args:
        batch_size: Images per call of an extractor.
        directory: Folder in which the features of networks are kept, for another call with the same
            images and so that they need not fit in memory; and, by an audit, how close images are
            to the real ones, so that one that was killed continues.
        engine: "local" works in this process. "ray", or a `RayEngine` with its settings, has the
            actors of a Ray cluster compute the features of networks.

    Raises:
        ValueError: If `batch_size` is not positive, or `engine` is unknown.
    """

    batch_size: int = 512
    directory: StrPath | None = None
    engine: str | RayEngine = "local"

    @property
    def folder(self) -> Path | None:
        """`directory` as a path."""
        return None if self.directory is None else Path(self.directory)

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_whole(1, batch_size=self.batch_size)
        if not isinstance(self.engine, RayEngine):
            arguments.check_choice(("local", "ray"), "Or give a `RayEngine`.", engine=self.engine)


@final
class Pixel:
    """The image itself, averaged down to at most `size` x `size` pixels.

    Vectors are scaled so that the Euclidean distance of two images is the root mean square
    difference of their small versions, in gray levels of 0 to 255.

    Args:
        size: Longest side of the small version, at least 1. Smaller images stay as they are.
        standardize: First brings every image to mean 0 and standard deviation 1, so that a change
            of brightness or contrast goes unseen. The distance of two images is then
            `sqrt(2 - 2 r)`, r their correlation. An image of one color becomes 0.

    >>> black, white = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 255)
    >>> pixel = Pixel(4)
    >>> float(np.linalg.norm(pixel(black) - pixel(white.to(torch.uint8))))
    255.0
    """

    def __init__(self, size: int = 16, *, standardize: bool = False) -> None:
        arguments.check_whole(1, size=size)
        self.size = size
        self.standardize = standardize
        self.name = f"pixels {size}x{size}" + (", standardized" if standardize else "")

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (n, C, H, W) to float32 (n, C * h * w) with h, w at most `size`."""
        h, w = pixels.shape[-2:]
        scale = min(1.0, self.size / max(h, w))
        small = F.adaptive_avg_pool2d(
            pixels.float(), (max(1, round(h * scale)), max(1, round(w * scale)))
        ).flatten(1)
        if self.standardize:
            small = small - small.mean(1, keepdim=True)
            norm = small.norm(dim=1, keepdim=True)
            # Averages of equal numbers may differ in the last bit: that is not structure.
            return torch.where(norm > 1e-3, small / norm.clamp(min=1e-3), 0).numpy()
        return (small / small.shape[1] ** 0.5).numpy()


@final
class Spectrum:
    """Amplitudes of the lowest spatial frequencies: hardly changed by a shift of the image.

    The image is averaged down to at most 16 x 16 pixels, brought to mean 0 and norm 1, faded out
    towards its borders and Fourier transformed; of each amplitude the square root is taken, lest
    the lowest frequencies drown the others. Needs no weights.
    """

    name: str = "spectrum"

    _SIDE = 16
    _FREQUENCIES = 5
    """In each direction, 0 included."""

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (n, C, H, W) to float32 (n, C * frequencies), 45 of them from 9 x 9 pixels on."""
        h, w = (min(self._SIDE, side) for side in pixels.shape[-2:])
        small = F.adaptive_avg_pool2d(pixels.float(), (h, w))
        small = small - small.mean((1, 2, 3), keepdim=True)
        norm = small.flatten(1).norm(dim=1)[:, None, None, None]
        small = torch.where(norm > 1e-3, small / norm.clamp(min=1e-3), 0)
        fade = torch.outer(*(_window(side) for side in (h, w))).sqrt()
        amplitudes = torch.fft.rfft2(small * fade).abs().sqrt()
        down = min(self._FREQUENCIES, h // 2 + 1)
        # Of a real image, rows -1, -2, ... are frequencies in their own right, columns are not.
        rows = [*range(down), *range(h - min(down - 1, h - down), h)]
        return amplitudes[:, :, rows, : self._FREQUENCIES].flatten(1).numpy()


class TorchModule:
    """Any torch module as an extractor.

    Args:
        module: Maps what `preprocess` returns to a tensor whose first axis is the batch, or to a
            tuple or list whose first item is one. It is put into evaluation mode and moved to
            `device`.
        name: Shown in reports; the class name by default.
        preprocess: uint8 (n, C, H, W) to the module's input. By default `to_unit`: float in
            [0, 1], gray images repeated to three channels.
        device: Where the module runs.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = name or type(module).__name__
        self.weights: str | None = tensor_digest(module.state_dict())
        self.device = torch.device(device)
        self.preprocess = preprocess or to_unit
        self._module = module.to(self.device).eval()

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (n, C, H, W) to float32 (n, d); further axes of the output are flattened."""
        with torch.inference_mode():
            output = self._module(self.preprocess(pixels.to(self.device)))
        if isinstance(output, tuple | list):
            output = output[0]
        if not isinstance(output, Tensor) or len(output) != len(pixels):
            raise TypeError(
                f"{self.name} returned {_shown(output)} for {len(pixels)} images. It must return "
                "a tensor with one row per image, or a tuple whose first item is one."
            )
        return output.reshape(len(pixels), -1).float().cpu().numpy()


@final
class TorchScript(TorchModule):
    """A network in a TorchScript file as an extractor, if you trust whoever made the file.

    TorchScript is a program: its operations can read and write every file that you can, also while
    it is loaded. Where you have the network's class, `TorchModule` and weights in a safetensors
    file do without that trust.

    The network takes float images (n, 3, H, W) in [0, 1] and returns features, or a tuple whose
    first item is the features. Gray images are repeated to three channels.

    Args:
        path: File made by `torch.jit.save`.
        trusted: Must be `True`: that you trust the file as you would a program.
        name: Shown in reports; the file's name by default.
        device: Where the network runs.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not trusted, or is not TorchScript.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        trusted: bool = False,
        name: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        path = Path(path)
        module = load_torchscript(path, trusted=trusted, device=device)
        super().__init__(module, name=name or path.name, device=device)
        self._made_from = partial(
            TorchScript, path.absolute(), trusted=True, name=name, device=device
        )
        self.weights = hashlib.sha256(path.read_bytes()).hexdigest()

    def __reduce__(self) -> Any:  # networks in TorchScript cannot be pickled, their files read
        return self._made_from, ()


def load_torchscript(path: Path, *, trusted: bool, device: str | torch.device = "cpu") -> nn.Module:
    """Loads the network in a TorchScript file; errors as `TorchScript`."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` {path} does not exist. Give a TorchScript file.")
    if not trusted:
        raise ValueError(
            f"`path` {path} is TorchScript, a program that can read and write your files. If you "
            "trust it, say so: `features.TorchScript(path, trusted=True)` in Python, "
            "--trust-torchscript in a command."
        )
    try:
        module: nn.Module = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise ValueError(
            f"`path` {path} is not a TorchScript file. Make one with `torch.jit.save`."
        ) from error
    return module


def classifier(
    network: nn.Module,
    *,
    name: str | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> TorchModule:
    """Returns an extractor of the inputs of a classifier's last linear layer: features of what the
    classes differ in.

    A classifier trained on the audited training images may be used; it sees these somewhat better
    than others, which is what the hold-out's own numbers beside it are for.

    Args:
        network: Ends in a linear layer. It is copied and stays as it is.
        name: Shown in reports; the class name by default.
        preprocess: uint8 (n, C, H, W) to the network's input. By default `to_model`: float in
            [-1, 1], as the classifiers of `synthaug.evaluate` are trained with.
        device: Where the network runs.

    Raises:
        ValueError: There is no linear layer.
    """
    name = name or type(network).__name__
    return TorchModule(
        without_head(copy.deepcopy(network), name),
        name=name,
        preprocess=preprocess or to_model,
        device=device,
    )


def without_head(network: nn.Module, name: str) -> nn.Module:
    """Puts the identity in the place of the last linear layer: features come out, not classes."""
    last = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise ValueError(f"{name!r} does not end in a linear layer. Use `features.TorchModule`.")
    if not last[0]:
        return nn.Identity()
    parent, _, attribute = last[0].rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network


def _window(side: int) -> torch.Tensor:
    """Hann window of `side` values, all above 0."""
    return torch.hann_window(side + 2, periodic=False, dtype=torch.float32, device="cpu")[1:-1]


NAMES = "pixels, pixels:SIZE, spectrum, torchscript:PATH, torchvision:MODEL or timm:MODEL"
"""What `named` understands."""


@torch_state.lasting_tensors()
def named(
    name: str, *, pretrained: bool = True, trusted: bool = False, device: str | torch.device = "cpu"
) -> "Pixel | Spectrum | TorchModule":
    """An extractor from a name.

        features.named("pixels:8"), features.named("spectrum")
        features.named("torchscript:encoder.pt", trusted=True)
        features.named("torchvision:resnet50")    # with its published weights and preprocessing
        features.named("timm:vit_small_patch14_dinov2.lvd142m")

    Networks give what their classifier would have been given. Their weights are downloaded to the
    cache of torch or of Hugging Face if they are not there yet.

    Args:
        name: See above.
        pretrained: For networks: published weights, or random ones.
        trusted: For a TorchScript file: that you trust it as you would a program.
        device: Where a network runs.

    Raises:
        ValueError: An unknown name, a network that has no published weights, or a TorchScript file
            that is not trusted.
        FileNotFoundError: The TorchScript file does not exist.
        ImportError: timm is asked for and not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "pixels" and (not rest or rest.isdecimal()):
        return Pixel(int(rest)) if rest else Pixel()
    if name == "spectrum":
        return Spectrum()
    if kind == "torchscript" and rest:
        return TorchScript(rest, trusted=trusted, device=device)
    if kind == "torchvision" and rest:
        return _torchvision(rest, pretrained, device)
    if kind == "timm" and rest:
        return _timm(rest, pretrained, device)
    raise ValueError(f"No features are called {name!r}. Known: {NAMES}.")


def _torchvision(name: str, pretrained: bool, device: str | torch.device) -> TorchModule:
    from torchvision import models

    if name not in models.list_models(models):
        raise ValueError(
            f"torchvision has no classifier {name!r}. See `torchvision.models.list_models()`."
        )
    weights = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=weights if pretrained else None)
    network = without_head(network, f"torchvision {name}")
    transform = weights.transforms(antialias=True)
    return TorchModule(
        network,
        name=f"torchvision {name}",
        preprocess=lambda pixels: transform(_three_channels(pixels)),
        device=device,
    )


def _timm(name: str, pretrained: bool, device: str | torch.device) -> TorchModule:
    timm = timm_with(name, f"Features 'timm:{name}' need timm")
    from timm.data.config import resolve_model_data_config

    network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    config = resolve_model_data_config(network)
    size, mean, std = config["input_size"][1:], *map(torch.tensor, (config["mean"], config["std"]))

    def preprocess(pixels: Tensor) -> Tensor:
        images = _three_channels(pixels).float() / 255
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        center, scale = (v.to(images.device)[:, None, None] for v in (mean, std))
        return (images.clamp(0, 1) - center) / scale

    return TorchModule(network, name=f"timm {name}", preprocess=preprocess, device=device)


def timm_with(name: str, needs: str) -> Any:
    """The library timm, which has a model of that name, perhaps with the tag of its weights.

    timm would take others for folders or for repositories of the hub, whose configs choose freely.

    Raises:
        ImportError: If it is missing; the message begins with `needs`.
        ValueError: If it has no such model of its own.
    """
    with extras.from_extra("timm", needs, "timm"):
        import timm
    if not re.fullmatch(r"\w+(\.[\w-]+)?", name) or not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}. See `timm.list_models()`.")
    return timm


def _three_channels(pixels: Tensor) -> Tensor:
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def to_unit(pixels: Pixels) -> Tensor:
    """uint8 (n, C, H, W) to float32 (n, 3, H, W) in [0, 1]; gray is repeated to three channels."""
    return _three_channels(pixels).float() / 255


def to_model(pixels: Pixels) -> Tensor:
    """uint8 (n, C, H, W) to float32 (n, C, H, W) in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def extract(
    extractor: Extractor,
    pixels: Pixels,
    *,
    batch_size: int = 512,
    progress: bool = False,
    features_dir: StrPath | None = None,
) -> Features:
    """Runs `extractor` over all images, `batch_size` at a time.

    Args:
        extractor: The extractor to run.
        pixels: uint8 (n, C, H, W), n at least 1.
        batch_size: Images per call.
        progress: Shows a bar with the rate and the time left.
        features_dir: Folder, made if need be, in which the features of a network are kept in a file
            named by the digests of its weights and of the images: a second call maps that file
            into memory and runs nothing. Give another `preprocess` another `name`: the name is part
            of the digest. Extractors without weights are faster than a file.

    Returns:
        float32 (n, d), contiguous.

    Raises:
        TypeError: The extractor does not return a two-dimensional array with a row per image.
        ValueError: No images; a value that is not finite; rows of different length.
    """
    arguments.check_some("image", pixels=pixels)
    arguments.check_whole(1, batch_size=batch_size)
    if features_dir is None or describe(extractor)["weights"] is None:
        return _extracted(extractor, pixels, batch_size, progress)
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(canonical_json([describe(extractor), list(pixels.shape)]).encode())
    for start in range(0, len(pixels), 4096):
        hashed.update(pixels[start : start + 4096].numpy().tobytes())
    path = Path(features_dir) / f"{hashed.hexdigest()}.npy"
    try:
        return _kept(path, len(pixels))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s): its features are computed again.", path, error)
    with sealed_file(path) as temporary:
        _extracted(extractor, pixels, batch_size, progress, temporary)
    return _kept(path, len(pixels))


def _kept(path: Path, rows: int) -> Features:
    """Maps the features that `extract` kept in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not the file that was written, or has other rows.
    """
    check_seal(path)
    kept: Features = np.load(path, mmap_mode="r", allow_pickle=False)
    if kept.dtype != np.float32 or kept.ndim != 2 or len(kept) != rows:
        raise ValueError("it holds other features than it should")
    return kept


def _extracted(
    extractor: Extractor, pixels: Pixels, batch_size: int, progress: bool, path: str | None = None
) -> Features:
    """The features in memory, or in the .npy file `path`, so that they need not fit in memory."""
    features: np.ndarray[Any, np.dtype[np.float32]] | None = None
    with bar(len(pixels), extractor.name, "image", progress=progress) as shown:
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size]
            rows = np.asarray(extractor(batch), np.float32)
            if rows.ndim != 2 or len(rows) != len(batch):
                raise TypeError(
                    f"{extractor.name} returned shape {rows.shape} for {len(batch)} images, "
                    f"expected ({len(batch)}, d)."
                )
            if not np.isfinite(rows).all():
                bad = start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
                raise ValueError(
                    f"{extractor.name} returned a value that is not finite for image {bad}. "
                    "Check its weights and its preprocessing."
                )
            if features is None:
                shape = len(pixels), rows.shape[1]
                features = (
                    np.empty(shape, np.float32)
                    if path is None
                    else np.lib.format.open_memmap(path, "w+", np.float32, shape)
                )
            if rows.shape[1] != features.shape[1]:
                raise ValueError(
                    f"{extractor.name} returned vectors of length {features.shape[1]} and then of "
                    f"length {rows.shape[1]}. It must return one length for all images."
                )
            features[start : start + len(batch)] = rows
            shown.update(len(batch))
    assert features is not None
    return features


def _shown(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


__all__ = [
    "NAMES",
    "ExtractionConfig",
    "Extractor",
    "Pixel",
    "Spectrum",
    "TorchModule",
    "TorchScript",
    "classifier",
    "describe",
    "extract",
    "named",
    "to_model",
    "to_unit",
    "without_head",
]
