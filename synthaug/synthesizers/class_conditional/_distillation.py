"""Distillation of a diffusion model into a student that draws in a few steps.

Salimans and Ho 2022 (progressive distillation: one step of the student arrives where several
deterministic ones of the teacher do; the loss is in the velocity), Meng et al. 2023 (guided
teachers). Unlike there, all halvings are one: a student's step stands for `teacher_steps` steps of
the teacher at once, which small networks can afford, and no student learns from another one.
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
            "scheduler": checkpoints.plain_config(self.student.scheduler_config),
            "data": self.real.fingerprint or self.num_examples,
        }

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """Mean squared error of the prediction that leads, in one step, where the teacher arrives;
        the student's steps are stratified over the batch."""
        device = next(module.parameters()).device
        self.teacher.network.to(device)
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
        # Where the teacher's steps begin and end: a row for each, a column for each image.
        times, *levels = (sent(table[step].T, x0.device) for table in self._grid)
        signals, scales = (level.view(*level.shape, *[1] * (x0.ndim - 1)) for level in levels)
        image, spread = scales * signals.sqrt(), scales * (1 - signals).sqrt()
        x = start = image[0] * x0 + spread[0] * noise
        for k in range(self.config.teacher_steps):
            prediction = self._taught(x, times[k], condition)
            clean = denoised_estimate(prediction, x, signals[k], self.teacher.prediction_type)
            x = image[k + 1] * clean + spread[k + 1] / spread[k] * (x - image[k] * clean)
        # The clean image for which one step from `start` arrives at x.
        ratio = spread[-1] / spread[0]
        clean = (x - ratio * start) / (image[-1] - ratio * image[0])
        implied = (start - image[0] * clean) / spread[0]
        return start, times[0], fit_job.denoising_target(self._scheduler, clean, implied, times[0])

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
    if teacher.prediction_type != "flow":
        config |= {"clip_sample": False, "thresholding": False}
        config |= {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    return config


def _grid(scheduler: Any, config: DistillationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Where the teacher's steps begin and end, in a row for each step of the student.

    Returns:
        Timesteps, signals and scales as in `samplers.Step`, (evaluations, teacher_steps + 1).
    """
    set_timesteps(scheduler, config.evaluations)
    flow, trained = steps_flow(scheduler), scheduler.config.num_train_timesteps
    starts = scheduler.timesteps.double().cpu()
    ends = torch.cat([starts[1:], torch.tensor([0.0 if flow else -1.0], dtype=torch.float64)])
    way = torch.from_numpy(np.linspace(0, 1, config.teacher_steps + 1))
    times = torch.lerp(starts[:, None], ends[:, None], way)
    if flow:
        noise, image = times / trained, 1 - times / trained
        scales = torch.hypot(noise, image)
        return times.float(), (image / scales).square().float(), scales.float()
    times = times.round().long()
    signals = nn.functional.pad(scheduler.alphas_cumprod.cpu(), (0, 1), value=1.0)[times]
    return times, signals, torch.ones_like(signals)
