"""The common base of synthesizers that sample one diffusion model."""

import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from synthaug._plan import Plan
from synthaug._support.precision import Resolved
from synthaug._types import JSON, Doubles, Images, ImageShape, Labels, Pixels
from synthaug.guidance import ClassifierGuidance
from synthaug.samplers import check_pushable
from synthaug.synthesizers._base import AbstractSynthesizer, Guide
from synthaug.synthesizers._losses import LossGrid, diffusion_losses
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._sampler import SamplerConfig

Diffusion = TypeVar("Diffusion", bound="AbstractDiffusionSynthesizer")


def check_guidable(
    model: DiffusionModel,
    sampler: SamplerConfig,
    guidance: ClassifierGuidance | None,
    classes: Sequence[str],
) -> None:
    """Refuses guidance by a classifier that does not fit the images, or that the sampler cannot
    follow.

    Raises:
        ValueError, MismatchError: Under the same conditions as `ClassifierGuidance.check_fits` and
            `check_pushable`.
        CheckpointError: For a student that was distilled.
    """
    if guidance is not None:
        guidance.check_fits(model.image_shape, classes)
        if guidance.scale:
            model.training_scheduler()  # refuses a student, whose steps are too long to be pushed
            check_pushable(model.scheduler(sampler))


def evaluations_per_step(guidance: ClassifierGuidance | None) -> int:
    """Network evaluations that guidance by a classifier costs each row per pushed step."""
    return 3 if guidance is not None and guidance.scale and guidance.through_denoiser else 0


def with_guidance(recipe: dict[str, Any], guidance: ClassifierGuidance | None) -> dict[str, JSON]:
    """A recipe with what a classifier's guidance changes; as it was, if that is nothing."""
    if guidance is None or not guidance.scale:
        return recipe
    settings = {**recipe["settings"], "classifier_guidance": guidance.settings()}
    weights = {**recipe["weights"], "classifier": guidance.weights}
    return {**recipe, "settings": settings, "weights": weights}


def check_unguided(guidance: ClassifierGuidance | None) -> None:
    """Refuses to save guidance by a classifier, which may be any code, with a TypeError."""
    if guidance is not None:
        raise TypeError(
            "`classifier_guidance` cannot be saved: its classifier may be any code. Save the "
            "synthesizer without (`with_settings(classifier_guidance=None)`), and give it again "
            "where it is needed."
        )


class AbstractDiffusionSynthesizer(AbstractSynthesizer):
    """A synthesizer that samples one diffusion model: a dataclass with the fields below."""

    model: DiffusionModel
    """The trained network, and what belongs to it."""
    sampler: SamplerConfig
    """Scheduler, steps and noise."""
    classifier_guidance: ClassifierGuidance | None
    """A classifier that steers the sampler; `with_settings(classifier_guidance=...)`."""

    def _check_guidance(self) -> None:
        check_guidable(self.model, self.sampler, self.classifier_guidance, self.classes)

    def _guidance_evaluations(self) -> int:
        """Network evaluations that the classifier's guidance costs each row per pushed step."""
        return evaluations_per_step(self.classifier_guidance)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order of the label column."""
        return self.model.classes

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images, in pixels."""
        return self.model.image_shape

    @abc.abstractmethod
    def draw(self, rows: Plan, *, guide: Guide | None = None) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1]; `guide` pushes the sampler."""

    def in_precision(self: Diffusion, precision: Resolved) -> Diffusion:
        """See `AbstractSynthesizer.in_precision`."""
        own: Any = self
        changed: Diffusion = replace(own, model=self.model.in_precision(precision))
        return changed

    @torch.inference_mode()
    def restoration_losses(self, pixels: Pixels, labels: Labels, grid: LossGrid) -> Doubles:
        """See `AbstractSynthesizer.restoration_losses`: the mean squared error of the prediction.

        In the latents of an autoencoder, if the model has one.
        """
        condition = self._described(pixels, labels)
        return diffusion_losses(self.model, self.model.encode(pixels), condition, grid)

    def _described(self, pixels: Pixels, labels: Labels) -> Any:
        """Returns the conditions that training gave for such real images, one per image."""
        del pixels
        return self.model.known_conditions(labels)
