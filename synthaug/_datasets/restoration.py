"""Images of any common type, degraded and restored: what the transforms that do so share."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from synthaug._images.convert import check_unit_range, describe, like, pixels_of, wrapped
from synthaug._noise import randn, streams
from synthaug._pixels import to_images, to_pixels
from synthaug._support.arguments import check_type
from synthaug._support.devices import sent
from synthaug._types import Images, ImageShape
from synthaug.samplers import denoised_estimate
from synthaug.synthesizers import ClassConditional


@runtime_checkable
class ColdRestorer(Protocol):
    """Interface of `ColdDiffusion` for the transforms."""

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        ...

    def degrade_and_restore(self, images: Images, *, severity: Any, seeds: Any) -> Images:
        """(n, C, H, W) in [-1, 1] to the same."""
        ...


class OneStep:
    """One noising and one network evaluation of a diffusion model, x_t and then x0_hat.

    A severity is the share of the noise schedule at which t lies. The network is not told the class
    of an image, so it needs a trained unconditional branch, or no classes at all.
    """

    def __init__(self, synthesizer: ClassConditional) -> None:
        """Looks at the schedule.

        Args:
            synthesizer: The synthesizer whose network restores.

        Raises:
            ValueError: If the network always needs a class.
            CheckpointError: For a student that was distilled.
        """
        model = synthesizer.model
        model.training_scheduler()  # refuses a student, which knows few timesteps
        if model.num_conditions is not None and not model.unconditional_branch:
            raise ValueError(
                "`synthesizer` always needs a class, which an image does not bring along. Train it "
                "with a `label_dropout` above 0."
            )
        self._model, scheduler = model, model.make_scheduler("ddpm")
        self._signals: Tensor = scheduler.alphas_cumprod
        self._prediction_type = str(scheduler.config.prediction_type)

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        return self._model.image_shape

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._model.device

    @torch.no_grad()
    def degrade_and_restore(self, images: Images, *, severity: Any, seeds: Any) -> Images:
        """x0_hat(x_t, t) of images (n, C, H, W) in [-1, 1], float32 on the network's device.

        Args:
            images: On any device.
            severity: t of each image as a share of the schedule, in (0, 1].
            seeds: One per image, for its noise.
        """
        model, steps = self._model, len(self._signals)
        clean = images if model.vae is None else model.encode(to_pixels(images))
        noise = sent(randn(streams(seeds), model.latent_shape), self.device)
        shares = torch.from_numpy(np.asarray(severity, np.float64).reshape(-1))
        t = (shares * steps).round().long().clamp(1, steps) - 1
        signal = self._signals[t].to(self.device, torch.float32)[:, None, None, None]
        x = signal.sqrt() * clean.to(self.device, torch.float32) + (1 - signal).sqrt() * noise
        prediction = model.denoiser(x, t.to(self.device), model.null_conditions(len(x)))
        return model.decode(denoised_estimate(prediction, x, signal, self._prediction_type))


class Restoration:
    """Degrades images to drawn severities and restores them; the type is kept."""

    def __init__(
        self, cold: ColdRestorer, severity_range: Sequence[float], name: str = "severity_range"
    ) -> None:
        """Takes what the transforms were given.

        Args:
            cold: A `ColdDiffusion`, or a `OneStep`.
            severity_range: Smallest and largest severity, in (0, 1].
            name: Name of the range in messages.

        Raises:
            TypeError: If `cold` cannot restore.
            ValueError: For another range.
        """
        remedy = 'a `ColdDiffusion`: `synthaug.ColdDiffusion.from_pretrained("PATH")`'
        check_type(ColdRestorer, remedy, cold=cold)
        if len(severity_range) != 2 or not 0 < severity_range[0] <= severity_range[1] <= 1:
            raise ValueError(
                f"`{name}` must be the smallest and the largest severity, in (0, 1]; got "
                f"{tuple(severity_range)}."
            )
        self.cold = cold
        self.low, self.high = map(float, severity_range)

    def severity(self, uniform: Any) -> Any:
        """A draw from [0, 1) as a severity of the range."""
        return self.low + uniform * (self.high - self.low)

    def __call__(
        self, image: Any, chosen: Sequence[int], severity: Sequence[float], seeds: Sequence[int]
    ) -> Any:
        """Restored views in place of some images.

        Args:
            image: One image of any type that `pixels_of` accepts, or a batch: a tensor
                (n, C, H, W), uint8 or floating point in [0, 1].
            chosen: Positions in the batch; [0] for a single image.
            severity: Severity of each of those.
            seeds: Seeds of each of those.

        Raises:
            TypeError: For any other type.
            ValueError: For another shape than the checkpoint's, or values out of range.
            RuntimeError: In a worker of a `DataLoader`, if the network is not on the CPU.
        """
        if self.cold.device.type != "cpu" and get_worker_info() is not None:
            raise RuntimeError(
                f"The network of the transform is on {self.cold.device}, which the workers of a "
                "DataLoader cannot use. Apply the transform to batches, after the loader; or load "
                "the checkpoint with device='cpu'."
            )
        x = _model_space(image)
        if tuple(x.shape[1:]) != tuple(self.cold.image_shape):
            raise ValueError(
                f"Got {describe(image)}; the checkpoint restores images of shape "
                f"{tuple(self.cold.image_shape)}. Resize them first."
            )
        rows = sent(torch.as_tensor(chosen, dtype=torch.int64, device="cpu"), x.device)
        views = self.cold.degrade_and_restore(x[rows], severity=severity, seeds=seeds)
        if not isinstance(image, Tensor):
            return _alike(views[0].cpu(), image)
        result = image.detach().as_subclass(Tensor).clone()
        values = to_pixels(views) if image.dtype == torch.uint8 else (views + 1) / 2
        values = values.to(result.device, result.dtype)
        if image.ndim == 4:
            result[rows] = values
        else:
            result = values[0]
        return wrapped(result, image)


def _model_space(image: Any) -> Images:
    """One image or a batch as float32 (n, C, H, W) in [-1, 1]; a single one has n = 1."""
    if isinstance(image, Tensor):
        x = image.detach().as_subclass(Tensor)
        if x.ndim not in (3, 4):
            raise ValueError(f"Got {describe(image)}, expected (C, H, W) or (n, C, H, W).")
    elif isinstance(image, np.ndarray) and image.dtype.kind == "f":
        pixels_of(image)  # refuses other axes
        x = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))
    else:
        x = pixels_of(image)
    x = x if x.ndim == 4 else x[None]
    if x.dtype == torch.uint8:
        return to_images(x)
    check_unit_range(x, image, "Put this before `Normalize`.")
    return x.float().clamp(0, 1) * 2 - 1


def _alike(view: Tensor, example: Any) -> Any:
    """One image (C, H, W) in [-1, 1] in the type of a PIL image or an array."""
    if isinstance(example, np.ndarray) and example.dtype.kind == "f":
        unit = ((view + 1) / 2).permute(1, 2, 0).numpy().astype(example.dtype)  # CHW => HWC
        return unit.reshape(example.shape)
    return like(to_pixels(view[None])[0], example)
