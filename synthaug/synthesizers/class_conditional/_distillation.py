"""Distillation of a diffusion model into a student that draws in a few steps.

Salimans and Ho 2022 (progressive distillation: one step of the student arrives where several
deterministic ones of the teacher do; the loss is in the velocity), Meng et al. 2023 (guided
teachers). Unlike there, all halvings are one: a student's step stands for `teacher_steps` steps of
the teacher at once, which small networks can afford, and no student learns from another one. Those
steps are of DPM-Solver++ instead of DDIM, so that few of them arrive where very many would.
"""

from copy import copy, deepcopy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._support.devices import sent
from synthaug._training import checkpoints, fit_job
from synthaug._types import JSON, Images, Indices
from synthaug.denoisers import uncompiled
from synthaug.errors import CheckpointError
from synthaug.samplers import denoised_estimate, make_scheduler, set_timesteps, steps_flow
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._real import fitting_images
from synthaug.synthesizers._sampler import SamplerConfig
from synthaug.synthesizers.class_conditional._config import DistillationConfig


class DistillJob(fit_job.AbstractFitJob[nn.Module]):
    """Everything that `ClassConditional.distill` was asked for, checked before any work starts.

    Args:
        teacher: The model to learn from.
        real: Labeled images.
        config: How few steps, and of which guidance.

    Raises:
        MismatchError: For images that do not fit the teacher.
        CheckpointError: For a teacher that is a student itself, or predicts the noise.
        ValueError: For guidance of a teacher that cannot be guided.
    """

    student: DiffusionModel
    """The model that is trained, with the teacher's network at first."""

    def __init__(self, teacher: DiffusionModel, real: Any, config: DistillationConfig) -> None:
        teacher.check_guidance(config.guidance_scale)
        trained = teacher.training_scheduler().config.num_train_timesteps  # refuses a student
        if teacher.prediction_type == "epsilon":
            raise CheckpointError(
                "The teacher predicts the noise, which at the first step, from pure noise, tells "
                "nothing of the image. Train a teacher with `prediction_type` v_prediction, flow "
                "or sample."
            )
        if config.evaluations * config.teacher_steps > trained:
            raise ValueError(
                f"`evaluations` times `teacher_steps` is "
                f"{config.evaluations * config.teacher_steps:,}, more than the {trained:,} "
                "timesteps of the teacher. Lower one of the two."
            )
        self.teacher = teacher.in_precision("float32")
        self.config = config
        self.real = fitting_images(real, classes=teacher.classes, image_shape=teacher.image_shape)
        self.num_examples = len(self.real)
        record: dict[str, JSON] = {**asdict(config), "teacher": teacher.weights}
        self.student = replace(
            self.teacher,
            scheduler_config=_student_scheduler(teacher),
            unconditional_branch=False,
            trained_on={
                "labeled": self.real.record,
                "base": {"weights": teacher.weights, **(teacher.trained_on or {})},
            },
            distilled=record,
        )
        self.sampler = SamplerConfig(num_inference_steps=config.evaluations)
        self.student.check_sampler(self.sampler)
        self._scheduler = self.student.scheduler(self.sampler)
        self._grid = _grid(self._scheduler, config)

    def model(self, network: nn.Module) -> DiffusionModel:
        """The student with the weights trained so far."""
        return replace(self.student, network=network)

    def _build(self) -> nn.Module:
        return deepcopy(uncompiled(self.teacher.network)).float().requires_grad_(True)

    def _identity(self, module: nn.Module) -> dict[str, Any]:
        del module
        return {
            "synthesizer": "ClassConditional",
            "distilled": self.student.distilled,
            "lessons": "dpm-solver++(2m)",  # of DDIM, and not named, in runs of before
            "scheduler": checkpoints.plain_config(self.student.scheduler_config),
            "data": self.real.fingerprint or self.num_examples,
        }

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """Mean squared error of the prediction that leads, in one step, where the teacher arrives;
        the student's steps are stratified over the batch."""
        device = next(module.parameters()).device
        for part in (self.teacher.network, self.teacher.vae):
            if part is not None:
                part.to(device)
        step = fit_job.stratified(len(indices), self.config.evaluations)
        noise = sent(fit_job.batch_noise((len(indices), *self.teacher.latent_shape)), device)
        labels = self.real.labels[indices]
        condition = self.teacher.conditions(torch.from_numpy(labels))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            x0 = self.teacher.encode(self.real.pixels(indices))
            x, t, target = self.lesson(x0, noise, step, condition)
        denoiser = copy(self.student.denoiser)
        denoiser.network = module  # compiled or distributed, perhaps
        return nn.functional.mse_loss(denoiser(x, t, condition).float(), target)

    def lesson(
        self, x0: Images, noise: Images, step: Tensor, condition: Any
    ) -> tuple[Images, Tensor, Images]:
        """Returns the student's inputs and its target: noisy images, timesteps, predictions.

        Args:
            x0: Images as the networks denoise them, float32 (n, *latent_shape).
            noise: Standard normal noise of that shape.
            step: The student's step of each image, int64 (n,), counted from 0.
            condition: One condition per image.
        """
        # The rows of the grid as columns, one for each image.
        times, *levels = (sent(table[step].T, x0.device) for table in self._grid)
        signals, scales = (level.view(*level.shape, *[1] * (x0.ndim - 1)) for level in levels)
        image, spread = scales * signals.sqrt(), scales * (1 - signals).sqrt()
        x = start = image[0] * x0 + spread[0] * noise
        clean, slopes = start, _slopes(image, spread)
        for k in range(self.config.teacher_steps):
            prediction, before = self._taught(x, times[k], condition), clean
            clean = denoised_estimate(prediction, x, signals[k], self.teacher.prediction_type)
            ahead = clean + slopes[k] * (clean - before)
            x = image[k + 1] * ahead + spread[k + 1] / spread[k] * (x - image[k] * ahead)
        # The clean image for which one step of the student's sampler from `start` arrives at x.
        ratio, t = spread[-1] / spread[-2], times[-2]
        clean = (x - ratio * start) / (image[-1] - ratio * image[-2])
        implied = (start - image[-2] * clean) / spread[-2]
        return start, t, fit_job.denoising_target(self._scheduler, clean, implied, t)

    def _taught(self, x: Images, t: Tensor, condition: Any) -> Images:
        """The teacher's prediction, guided if it is to be."""
        scale, teacher = self.config.guidance_scale, self.teacher
        told = teacher.denoiser(x, t, condition)
        if scale == 1:
            return told
        untold = teacher.denoiser(x, t, teacher.null_conditions(len(x)))
        return untold + scale * (told - untold)


def _student_scheduler(teacher: DiffusionModel) -> dict[str, Any]:
    """The scheduler config of a student: the teacher's noise, and deterministic steps from pure
    noise to the image in which nothing is clipped, since a lesson could not be inverted then."""
    scheduler = make_scheduler("ddim", teacher.scheduler_config)
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    if teacher.prediction_type == "flow":
        return {**config, "stochastic_sampling": False}
    config |= {"clip_sample": False, "thresholding": False}
    return {**config, "timestep_spacing": "trailing", "set_alpha_to_one": True}


def _slopes(image: Tensor, spread: Tensor) -> Tensor:
    """By how much of its last change the clean image is carried on in each step, (steps, n, ...).

    DPM-Solver++ (2M, Lu et al. 2022) in h = log(image / spread). A first step knows no change, and
    one from pure noise or to the clean image has no finite h: those are DDIM's.
    """
    h = (image / spread)[:-2].log().diff(dim=0)
    slopes = (h[1:] / (2 * h[:-1])).nan_to_num(0, posinf=0)
    return torch.cat([torch.zeros_like(h[:1]), slopes])


def _grid(scheduler: Any, config: DistillationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Where steps begin and end, in a row for each step of the student.

    Of the teacher all places, and then of the student's sampler the two that it takes itself to be
    at. They are the same for a flow. diffusers' DDIM steps by a whole number of timesteps, which
    may end a little before the next timestep, and before the clean image: the teacher goes on
    from where that step ends, and to the clean image.

    Returns:
        Timesteps, signals and scales as in `samplers.Step`, (evaluations, teacher_steps + 3).
    """
    set_timesteps(scheduler, config.evaluations)
    flow, trained = steps_flow(scheduler), scheduler.config.num_train_timesteps
    starts = scheduler.timesteps.double().cpu()
    ends = nn.functional.pad(starts[1:], (0, 1), value=0.0)
    if not flow:
        ends = (starts - trained // config.evaluations).clamp(min=-1)
    first = torch.cat([starts[:1], ends[:-1]])
    last = nn.functional.pad(ends[:-1], (0, 1), value=0.0 if flow else -1.0)
    way = torch.from_numpy(np.linspace(0, 1, config.teacher_steps + 1))
    places = torch.lerp(first[:, None], last[:, None], way)
    times = torch.cat([places, torch.stack([starts, ends], 1)], 1)
    if flow:
        noise, image = times / trained, 1 - times / trained
        scales = torch.hypot(noise, image)
        return times.float(), (image / scales).square().float(), scales.float()
    times = times.round().long()
    signals = nn.functional.pad(scheduler.alphas_cumprod.cpu(), (0, 1), value=1.0)[times]
    return times, signals, torch.ones_like(signals)
