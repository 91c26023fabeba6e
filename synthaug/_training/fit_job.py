"""The common base of all trainings of our generators: the run, settings, and one denoising loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._support import arguments, devices, layout, torch_state
from synthaug._training.loop import TrainingResult, TrainingTask, own_randomness, own_rows, train
from synthaug._training.network_config import FLOW, PREDICTION_TYPES
from synthaug._training.training_config import TrainingConfig
from synthaug._types import Images, Indices, Labels
from synthaug.errors import DataError
from synthaug.samplers import add_flow_noise, shifted, steps_flow

Module = TypeVar("Module", bound=nn.Module)


class Saved(Protocol):
    """Interface of the result of a training: a synthesizer, or a part of one."""

    def save_pretrained(self, path: str | Path) -> None:
        """Writes the directory."""
        ...


Made = TypeVar("Made", bound=Saved)


class AbstractFitJob(ABC, Generic[Module]):
    """A training, whose settings and images are checked before any work starts."""

    num_examples: int
    """Size of the training set."""

    @abstractmethod
    def _build(self) -> Module:
        """Returns the module to train, with random weights from torch's global generator."""

    @abstractmethod
    def _identity(self, module: Module) -> dict[str, Any]:
        """Returns the identity of this run, besides the `TrainingConfig`, as JSON."""

    @abstractmethod
    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """The mean loss of some examples. Everything random in it is drawn on the CPU, so that it
        is the same on every device, and as `own_rows` says, for any number of processes."""

    def _rate_factor(self, name: str) -> float:
        """By what a parameter's learning rate differs from that of the `TrainingConfig`."""
        del name
        return 1.0

    @torch_state.lasting_tensors()
    def run(
        self,
        output_dir: str | Path,
        config: TrainingConfig,
        *,
        on_checkpoint: Callable[[Module], None],
        snapshots: Collection[int] = (),
        on_snapshot: Callable[[Module, int], None] = lambda module, step: None,
        progress: bool,
    ) -> tuple[Module, TrainingResult]:
        """Trains, and returns the averaged module, frozen, on its device.

        `on_checkpoint` gets it at every checkpoint, and once more at the end; `on_snapshot` after
        the steps `snapshots`.
        """
        from accelerate import PartialState

        with own_randomness(torch.device("cpu")):
            torch.manual_seed(config.seed)
            module = self._build()

        def saved(_: nn.Module, step: int) -> None:
            on_checkpoint(module)
            if step in snapshots:
                on_snapshot(module, step)

        task = TrainingTask(
            module=module,
            loss=self._loss,
            num_examples=self.num_examples,
            identity=self._identity(module),
            on_checkpoint=saved,
            checkpoint_steps=snapshots,
            rate_factor=self._rate_factor,
        )
        result = train(task, config, output_dir, progress=progress)
        module.requires_grad_(False)
        if PartialState().is_main_process:  # also after a kill between the last two writes
            on_checkpoint(module)
        PartialState().wait_for_everyone()  # before anyone reads what was written
        return module, result

    def fit(
        self,
        output_dir: str | Path,
        config: TrainingConfig | None,
        made: Callable[[Module], Made],
        *,
        progress: bool,
    ) -> tuple[Made, TrainingResult]:
        """Trains, and returns what `made` makes of the module, which is saved in `output_dir` at
        every checkpoint."""

        def save(module: Module) -> None:
            made(module).save_pretrained(output_dir)

        config = config or TrainingConfig()
        module, result = self.run(output_dir, config, on_checkpoint=save, progress=progress)
        return made(module), result


def check_labels(labels: Labels, classes: Sequence[str]) -> None:
    """Refuses labels beyond the classes, and classes without an image, with a DataError that names
    them."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise DataError(
            f"Labels must be in [0, {len(classes) - 1}], since there are {len(classes)} classes; "
            f"found {labels.min()} to {labels.max()}."
        )
    counts = np.bincount(labels, minlength=len(classes))
    if (counts == 0).any():
        raise DataError(
            f"Class {classes[int(counts.argmin())]!r} has no images. Add some, or remove it."
        )


def diffusion_config(prediction_type: str) -> dict[str, Any]:
    """The scheduler config that our diffusion models are trained with; an unknown prediction type
    is a ValueError.

    The last step of diffusers' flows begins where there is next to no noise, unless the steps are
    given (`even_shares`, see `samplers.set_timesteps`).
    """
    if prediction_type == FLOW:
        name = "FlowMatchEulerDiscreteScheduler"
        return {"_class_name": name, "shift": 1.0, "even_shares": True}
    arguments.check_choice(PREDICTION_TYPES, prediction_type=prediction_type)
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",  # starts at the last timestep, also for few steps
        # diffusers' DDIM clips the estimate of the image but not that of the noise, which goes on
        # from the two as if they belonged together: images get worse, much worse with guidance.
        "clip_sample": False,
    }


def half_mirrored(x: Images) -> Images:
    """The images, each of them mirrored with probability 1/2."""
    mirrored = chosen_rows(len(x), 0.5)
    return torch.where(devices.sent(mirrored, x.device).view(-1, 1, 1, 1), x.flip(-1), x)


def stratified(n: int, levels: int) -> Tensor:
    """One of 0 ... levels - 1 for each of n examples, evenly spread over the batch: int64 (n,)."""
    size, own = own_rows(n)
    strata = (
        torch.arange(size, dtype=torch.int64, device="cpu")
        + torch.rand(size, dtype=torch.float32, device="cpu")
    ) / size
    return (strata * levels).long().clamp(max=levels - 1)[own]


def _logit_normal(n: int) -> Tensor:
    """Numbers in (0, 1) whose logits are standard normal, evenly spread over a batch of n."""
    grid = 2**20
    return as_logit_normal((stratified(n, grid) + 0.5) / grid)


def as_logit_normal(uniform: Tensor) -> Tensor:
    """Numbers whose logits are standard normal, for uniform ones in (0, 1): float32."""
    return torch.special.ndtri(uniform.double()).sigmoid().float()


def batch_noise(shape: Sequence[int]) -> Tensor:
    """Standard normal noise for the examples of this process, float32 of that shape."""
    size, own = own_rows(shape[0])
    return torch.randn(size, *shape[1:], dtype=torch.float32, device="cpu")[own]


def chosen_rows(n: int, probability: float) -> Tensor:
    """Each of n examples with that probability: bool (n,)."""
    size, own = own_rows(n)
    return torch.rand(size, dtype=torch.float32, device="cpu")[own] < probability


def denoising_loss(
    scheduler: Any, x0: Images, predict: Callable[[Images, Tensor], Tensor]
) -> Tensor:
    """Mean squared error of `predict(x_t, t)`, at timesteps stratified over the batch.

    Uniform timesteps; for the flow logit-normal ones (Esser et al. 2024), most of them between,
    shifted as the scheduler shifts those that it draws at.
    """
    if steps_flow(scheduler):
        share = devices.sent(shifted(_logit_normal(len(x0)), scheduler), x0.device)
        noise = devices.sent(batch_noise(x0.shape), x0.device)
        x_t = layout.settled(add_flow_noise(x0, noise, share.view(-1, 1, 1, 1)))
        flow = predict(x_t, share * scheduler.config.num_train_timesteps)
        return nn.functional.mse_loss(flow.float(), noise - x0)
    t = devices.sent(stratified(len(x0), scheduler.config.num_train_timesteps), x0.device)
    noise = devices.sent(batch_noise(x0.shape), x0.device)
    x_t = layout.settled(scheduler.add_noise(x0, noise, t))
    prediction = predict(x_t, t)
    target = denoising_target(scheduler, x0, noise, t)
    return nn.functional.mse_loss(prediction.float(), target)


def denoising_target(scheduler: Any, x0: Images, noise: Images, t: Tensor) -> Images:
    """Returns the target of the network, by the scheduler's `prediction_type`; an unknown one is a
    ValueError."""
    check_prediction_type(scheduler)
    if steps_flow(scheduler):
        return noise - x0
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    velocity: Images = scheduler.get_velocity(x0, noise, t)
    return velocity


def check_prediction_type(scheduler: Any) -> None:
    """Refuses a scheduler whose `prediction_type` has no `denoising_target` with a ValueError."""
    if steps_flow(scheduler):
        return
    arguments.check_choice(PREDICTION_TYPES, prediction_type=scheduler.config.prediction_type)
