"""Guidance by a classifier of clean images, shown the clean image that the sampler predicts.

At every step the network implies a clean image x0_hat(x_t). The classifier looks at it, a criterion
J says how much the images are wanted, and the step is pushed along the gradient of J by x_t:

    x_{t-1} ~ N(mu + scale sigma_t g / |g|, sigma_t^2),  g = d J(classifier(x0_hat(x_t))) / d x_t

So the classifier need not know noisy images. Notation: `step.signal` is alpha-bar_t.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from types import FunctionType
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from synthaug._support.arguments import check_choice, check_fields, check_type
from synthaug._support.devices import Placed
from synthaug._support.digests import tensor_digest
from synthaug._types import JSON, Images, ImageShape
from synthaug.denoisers import AnyDenoiser
from synthaug.errors import DivergedError, MismatchError
from synthaug.guidance._density import UNITS, Unit, log_odds, scaled
from synthaug.samplers import Step, denoised_estimate, steps_of

Criterion = Literal["entropy", "loss", "margin"]
"""What is raised, for the probabilities p that the classifier gives and an image's own class y.

"entropy": the entropy of p, so images that the classifier is undecided about. "loss": the
cross-entropy -log p_y, so images that it takes for another class. "margin": the largest logit of
another class less that of y, which also grows where the loss is nearly 0.
"""
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda logits, labels: -(logits.softmax(1) * logits.log_softmax(1)).sum(1),
    # As softplus of the odds: where p_y is nearly 1, the gradient of the usual form rounds to zero.
    "loss": lambda logits, labels: nn.functional.softplus(log_odds(-logits, labels)),
    "margin": lambda logits, labels: (
        logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        - logits.gather(1, labels[:, None])[:, 0]
    ),
}


@final
@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Steers samplers by a classifier of your own, which need not know noisy images.

        guidance = ClassifierGuidance(classifier, criterion="entropy", scale=0.5)
        guided = synthesizer.with_settings(classifier_guidance=guidance)
        generate(guided, guided.plan(per_class=500), "hard.h5")

    The digest of the classifier's weights is part of the recipe. With a scale of 0 recipe, plan and
    images are those without guidance, bit for bit.

    Args:
        model: Images float32 (n, C, H, W) in [-1, 1] => logits (n, num_classes), or with a
            criterion of your own whatever that takes. Any module in evaluation mode, TorchScript
            too. It stays as it is, on its device.
        criterion: "entropy", "loss" or "margin" (see `Criterion`), or a function of the model's
            outputs and the labels int64 (n,) that returns what is to be raised, (n,): row i depends
            on row i alone.
        scale: Strength, in `unit`. A negative one lowers the criterion.
        unit: Unit of the scale, see `Unit`. With "score" and the gradient through the denoiser,
            images follow p(x) exp(scale J(x)) as far as J is linear where x0_hat is unsure.
        through_denoiser: Whether the gradient goes through the denoiser, as it is defined: a step
            costs three evaluations of the network more. Without, x0_hat moves as much as x_t for
            the same predicted noise, which costs no evaluation, includes classifier-free guidance,
            and may change images in ways that only the classifier sees.
        classes: Names of the classes in the order of the logits; by default those of the
            synthesizer. The classifier may know more classes than the synthesizer.

    Raises:
        ValueError: For a setting out of range, a model in training mode, or a function without a
            name.
        TypeError: For a model that is no module.
    """

    model: nn.Module
    _: KW_ONLY
    criterion: Criterion | Callable[[Any, Tensor], Tensor] = "entropy"
    scale: float = 1.0
    unit: Unit = "length"
    through_denoiser: bool = True
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_type(nn.Module, "a torch module in evaluation mode", model=self.model)
        check_fields(self)
        check_choice(UNITS, unit=self.unit)
        if not math.isfinite(self.scale):
            raise ValueError(f"`scale` must be finite, got {self.scale}.")
        if not callable(self.criterion):
            check_choice(CRITERIA, "Or give a function.", criterion=self.criterion)
        elif "<lambda>" in self.criterion_name:
            raise ValueError(
                "`criterion` is a lambda, which has no name for the recipe of a cache. Define it "
                "with `def`."
            )
        self._check_mode()

    def _check_mode(self) -> None:
        if any(module.training for module in self.model.modules()):
            raise ValueError(
                "`model` is in training mode, in which it changes as it looks at images. Call "
                "`model.eval()` first."
            )

    @property
    def criterion_name(self) -> str:
        """The criterion as the recipe names it."""
        if not callable(self.criterion):
            return self.criterion
        # A callable object has the name of its class.
        is_function = isinstance(self.criterion, FunctionType)
        named: Any = self.criterion if is_function else type(self.criterion)
        return f"{named.__module__}.{named.__qualname__}"

    @cached_property
    def weights(self) -> str:
        """Digest of the model's structure and weights."""
        hashed = hashlib.blake2b(repr(self.model).encode(), digest_size=16)
        hashed.update(tensor_digest(self.model.state_dict()).encode())
        return hashed.hexdigest()

    def settings(self) -> dict[str, JSON]:
        """Returns the settings that determine images besides the weights, for a recipe."""
        return {
            "criterion": self.criterion_name,
            "scale": float(self.scale),
            "unit": self.unit,
            "through_denoiser": self.through_denoiser,
            "classes": None if self.classes is None else list(self.classes),
        }

    def check_fits(self, image_shape: ImageShape, classes: Sequence[str]) -> None:
        """Shows the model two blank images, so that a misfit is found before any work.

        Raises:
            ValueError: If the model is in training mode, does not take such images, or returns
                NaN.
            MismatchError: If it knows other classes than the synthesizer.
        """
        self._check_mode()
        labels = self.numbered(torch.zeros(2, dtype=torch.int64, device="cpu"), classes)
        blank = torch.zeros(2, *image_shape, dtype=torch.float32, device="cpu")
        try:
            with torch.no_grad():
                output = self._seen(blank)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"`model` {type(self.model).__name__} does not take images of shape "
                f"{tuple(image_shape)}: {error}"
            ) from error
        known = len(classes if self.classes is None else self.classes)
        logits = isinstance(output, Tensor) and output.ndim == 2
        if not callable(self.criterion) and (not logits or output.shape[1] != known):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise MismatchError(
                f"`model` returned {found} for 2 images, expected logits of {known} classes: "
                f"{', '.join(self.classes or classes)}. If it knows others, name them in Python "
                "in the order of its logits: `ClassifierGuidance(model, classes=[...])`."
            )
        with torch.no_grad():
            value = self.criterion_of(output, labels)
        if value.shape != (2,):
            raise ValueError(
                f"`criterion` returned shape {tuple(value.shape)} for 2 images, expected (2,)."
            )
        if not torch.isfinite(value).all():
            raise ValueError(
                f"`criterion` {self.criterion_name} is {value[0].item()} for a blank image: "
                "`model` returns NaN or infinity. Check its weights and the range of its inputs, "
                "[-1, 1]."
            )

    def numbered(self, labels: Tensor, classes: Sequence[str]) -> Tensor:
        """Labels as the classifier counts classes, int64 (n,), on the CPU; a class that it does not
        know is a MismatchError."""
        if self.classes is None:
            return labels
        place = {name: index for index, name in enumerate(map(str, self.classes))}
        missing = [name for name in classes if name not in place]
        if missing:
            raise MismatchError(
                f"The classifier does not know the class {missing[0]!r}. It knows "
                f"{', '.join(place)}; the synthesizer draws {', '.join(classes)}. Give a "
                "classifier of these classes."
            )
        return torch.tensor([place[name] for name in classes], dtype=torch.int64, device="cpu")[
            labels
        ]

    def criterion_of(self, output: Any, labels: Tensor) -> Tensor:
        """Returns the criterion to raise, (n,), for outputs of the model and labels as it counts
        them.
        """
        device = output.device if isinstance(output, Tensor) else labels.device
        rule = self.criterion if callable(self.criterion) else CRITERIA[self.criterion]
        return rule(output, labels.to(device))

    def _seen(self, images: Images) -> Any:
        """The model's outputs for images in [-1, 1], on its own device and in its dtype."""
        weight = next(self.model.parameters(), images)
        return self.model(images.to(weight.device, weight.dtype))

    def callback(self, labels: Tensor, classes: Sequence[str] | None = None) -> "PipelineGuide":
        """A `callback_on_step_end` for one call of a diffusers pipeline.

            pipeline(prompts, callback_on_step_end=guidance.callback(labels, ["cat", "dog"]))

        The pipeline's network is out of reach here: what a step predicted is worked out from the
        latents before and behind it, so `through_denoiser` has no effect, and the first step is not
        guided. That is exact for steps without noise: DDIM with eta 0, DPM-Solver++, and Euler's of
        diffusion and of flow matching.

        Args:
            labels: Class of every image of the call, int64 (n,).
            classes: Their names; by default as the classifier counts classes.
        """
        known = self.numbered(labels, classes) if classes is not None else labels
        return PipelineGuide(guidance=self, labels=known, classes=classes)

    def gradient(self, labels: Tensor, images: Images, by: Tensor) -> Tensor:
        """The gradient of the summed criterion, in the shape of `by`; call it where grad is on.

        Args:
            labels: Classes as the classifier counts them, int64 (n,).
            images: Clean images float32 (n, C, H, W) in [-1, 1] that depend on `by`.
            by: Variable to differentiate by.

        Raises:
            ValueError: If the criterion does not depend on the images.
            DivergedError: If the gradient is NaN or infinite.
        """
        value = self.criterion_of(self._seen(images), labels.clone())
        if not value.requires_grad:
            raise ValueError(
                f"`model` {type(self.model).__name__} is not differentiable: the criterion has no "
                "gradient. Compute it without numpy, `detach` and `no_grad`."
            )
        (gradient,) = torch.autograd.grad(value.sum(), by)
        if not torch.isfinite(gradient).all():
            raise DivergedError(
                f"The gradient of `criterion` {self.criterion_name} is NaN or infinite. Check the "
                "classifier on such images, or lower `scale`."
            )
        return gradient


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierPush:
    """Pushes a sampler as `ClassifierGuidance` says: a `Push`."""

    guidance: ClassifierGuidance
    labels: Tensor
    """Class of every row as the classifier counts classes, int64 (n,)."""
    denoiser: AnyDenoiser
    condition: Any
    """The denoiser's conditions, one per row."""
    prediction_type: str
    """What the denoiser predicts: "epsilon", "v_prediction", "sample" or "flow"."""
    decode: Callable[[Images], Images] = lambda x0: x0
    """Clean images of what is denoised: the decoder of a latent model."""

    def __call__(self, x: Images, step: Step, prediction: Images) -> Images:
        """Returns the term to add to x_{t-1}."""
        guidance, through = self.guidance, self.guidance.through_denoiser
        if not guidance.scale or not step.signal:  # pure noise shows no image yet
            return torch.zeros_like(x)
        # Samplers run in inference mode, whose tensors cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            by = x.clone().requires_grad_(through)
            predicted = prediction.clone()
            if through:
                every = torch.arange(len(x), dtype=torch.int64, device=x.device)
                condition = None if self.condition is None else self.condition[every]
                predicted = self.denoiser(by, step.t, condition)
            x0 = denoised_estimate(predicted, by, step.signal, self.prediction_type)
            if not through:
                by = x0 = x0.detach().requires_grad_()
            (labels,) = self._labels.on(x.device)
            gradient = guidance.gradient(labels, self.decode(x0), by)
        if not through:
            gradient = gradient / step.clean_share
        return scaled(gradient, guidance.scale, guidance.unit, step)

    @cached_property
    def _labels(self) -> Placed:
        return Placed(self.labels)

    def evaluations(self) -> Tensor:
        """Three per row and step through the denoiser, as backwards is twice the work."""
        each = 3 if self.guidance.through_denoiser and self.guidance.scale else 0
        return torch.full_like(self.labels, each)


_EXACT = {
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
}
"""Schedulers of which a step without noise shows what it predicted."""


@final
@dataclass(eq=False, kw_only=True)
class PipelineGuide:
    """Pushes the latents of a diffusers pipeline; made by `ClassifierGuidance.callback`."""

    guidance: ClassifierGuidance
    labels: Tensor
    """Class of every image as the classifier counts classes, int64 (n,)."""
    classes: Sequence[str] | None = None
    """Names of the classes that the pipeline draws."""
    before: Tensor | None = None
    """The latents that the step began with."""

    def __call__(
        self, pipeline: Any, number: int, timestep: Any, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of the pipeline, with the latents pushed.

        Raises:
            ValueError: For a scheduler with noise in its steps, latents that are no images, or
                another number of them than of labels.
        """
        latents, before = tensors["latents"], self.before
        if not self.guidance.scale:
            return tensors
        if number == 0:
            self._check(pipeline, latents)
        elif before is not None:
            step, scales = _step_of(pipeline.scheduler, timestep)
            if step.sigma > 0:
                tensors = {**tensors, "latents": self._pushed(pipeline, latents, step, scales)}
        self.before = tensors["latents"]
        return tensors

    def _pushed(
        self, pipeline: Any, latents: Tensor, step: Step, scales: tuple[float, float]
    ) -> Tensor:
        assert self.before is not None
        with torch.inference_mode(False), torch.enable_grad():
            x_t, x_s = self.before.float() / scales[0], latents.float() / scales[1]
            a_t, b_t = step.signal**0.5, (1 - step.signal) ** 0.5
            a_s, b_s = step.next_signal**0.5, (1 - step.next_signal) ** 0.5
            # x = a x0 + b noise on both sides of the step, for the same x0 and noise.
            x0 = (b_t * x_s - b_s * x_t) / (a_s * b_t - a_t * b_s)
            x0 = x0.clone().requires_grad_()
            images = _decoded(pipeline.components.get("vae"), x0)
            gradient = self.guidance.gradient(self.labels, images, x0) / step.signal**0.5
        way = scaled(gradient, self.guidance.scale, self.guidance.unit, step)
        return (latents + scales[1] * way).to(latents.dtype)

    def _check(self, pipeline: Any, latents: Tensor) -> None:
        scheduler = pipeline.scheduler
        kind, config = type(scheduler).__name__, scheduler.config
        noisy = "sde" in config.get("algorithm_type", "") or config.get("stochastic_sampling")
        if kind not in _EXACT or noisy:
            raise ValueError(
                f"The pipeline's scheduler is {kind}{' with noise' if noisy else ''}, whose steps "
                "do not show what they predicted. Guide by a classifier with "
                f"{', '.join(sorted(_EXACT))}."
            )
        if latents.ndim != 4 or len(latents) != len(self.labels):
            raise ValueError(
                f"The pipeline's latents have shape {tuple(latents.shape)}, expected (n, c, h, w) "
                f"for {len(self.labels)} labels."
            )
        with torch.no_grad():
            shape: Any = _decoded(pipeline.components.get("vae"), latents[:1].float()).shape[1:]
        classes = self.classes or self.guidance.classes
        if classes is not None:
            self.guidance.check_fits(shape, classes)


def _decoded(vae: Any, x0: Tensor) -> Images:
    """Images in [-1, 1] of clean latents."""
    if vae is None:
        return x0.clamp(-1, 1)
    latents = x0 / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    images: Tensor = vae.decode(latents.to(vae.dtype)).sample
    return images.float().clamp(-1, 1)


def _step_of(scheduler: Any, timestep: Any) -> tuple[Step, tuple[float, float]]:
    """A step of a pipeline with a variance that stays 1, and by what its latents are larger, before
    and behind it."""
    times = scheduler.timesteps
    at = int((times == timestep).nonzero()[0])
    if "Euler" not in type(scheduler).__name__:
        return steps_of(scheduler, times, 0.0)[at], (1.0, 1.0)
    flow = type(scheduler).__name__.startswith("Flow")
    clean = [1 - float(s) if flow else 1.0 for s in scheduler.sigmas[at : at + 2]]
    noise = [float(s) for s in scheduler.sigmas[at : at + 2]]
    size = [math.hypot(a, b) for a, b in zip(clean, noise, strict=True)]
    signal, after = ((a / c) ** 2 for a, c in zip(clean, size, strict=True))
    step = Step(t=times[at], signal=signal, next_signal=after, eta=0.0)
    return step, (size[0], size[1])
