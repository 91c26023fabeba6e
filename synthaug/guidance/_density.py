"""Guidance by density: gradients of hardness that push a sampler, in a unit of their own.

Sehwag et al. 2022, "Generating High Fidelity Data from Low-density Regions using Diffusion Models".

Notation (code -> paper): `alpha`, `beta` -> the two strengths; `step.sigma` -> sigma_t;
`temperature` -> tau; hardness -> H(x, c), `odds` -> log((1 - p_y) / p_y) for p = softmax(-H / tau).

    x_{t-1} ~ N(mu + alpha sigma_t g_1 + beta sigma_t g_2, sigma_t^2),  g = gradient / |gradient|

The paper's normalization |.| and factor could not be consulted, so the unit of alpha and beta is a
choice here, and exact: see `Unit`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from synthaug._support.devices import Placed
from synthaug._types import Images
from synthaug.samplers import Step

Unit = Literal["rms", "length", "score"]
"""What a strength counts, for an image of d values.

"rms": the root mean square of the push over all values, in sigma_t. "length": its Euclidean length
in sigma_t, which is sqrt(d) times as much: how many standard deviations of the step's noise it
moves an image along one direction. The same length does about the same at every image size; an RMS
of 1 moves a CIFAR image by 55 standard deviations. "score": strength times the gradient of the
contrastive loss L is added to the score of x_t, whatever its length, so images follow
p(x) exp(strength L(x)) where the hardness of noisy images is known exactly.
"""
UNITS: tuple[Unit, ...] = ("rms", "length", "score")
"""Every `Unit`, in the order of the documentation above."""


@runtime_checkable
class HardnessModel(Protocol):
    """Hardness of noisy images. It takes the timestep: one for clean images alone will not do."""

    @property
    def weights(self) -> str:
        """Digest of everything that it learned."""
        ...

    @property
    def evaluations(self) -> int:
        """The cost of a gradient, in evaluations of the denoiser."""
        ...

    def __call__(self, x: Images, t: Tensor, condition: Tensor | None) -> Tensor:
        """Hardness under every class, floating point (n, C), differentiable in `x`.

        Args:
            x: Noisy images or latents x_t, float32 (n, c, h, w).
            t: Timestep on the training grid, a scalar.
            condition: The denoiser's conditions, one per row.
        """
        ...


def log_odds(hardness: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log((1 - p_y) / p_y) for p = softmax(-H / tau): how little an image looks like its class.

    The contrastive loss is softplus of it, so both rise in the same direction. But where p_y is
    nearly 1, as it is for most images, the gradient of the loss rounds to zero, and that of the
    odds does not.

    Args:
        hardness: (n, C), at least two classes.
        labels: int64 (n,).
        temperature: tau. With two classes it does not change the direction of the gradient.

    >>> log_odds(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))  # p = (0.88, 0.12)
    tensor([-2.])
    """
    scores = -hardness / temperature
    column = labels[:, None]
    others = scores.scatter(1, column, -torch.inf)
    return others.logsumexp(1) - scores.gather(1, column)[:, 0]


def unit_rms(gradient: Tensor) -> Tensor:
    """Every row scaled to a root mean square of 1; a row of zeros stays.

    >>> unit_rms(torch.tensor([[3.0, -3.0], [0.0, 0.0]]))
    tensor([[ 1., -1.],
            [ 0.,  0.]])
    """
    flat = gradient.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)  # or the squares of small numbers vanish
    rms = flat.square().mean(1, keepdim=True).sqrt()
    return (flat / torch.where(rms > 0, rms, 1)).view_as(gradient)


def scaled(gradient: Images, strength: Tensor | float, unit: Unit, step: Step) -> Images:
    """The push along a gradient, float32 (n, c, h, w), whose strength counts in a unit."""
    if unit == "score":
        return strength * step.score_weight * gradient
    size = 1.0 if unit == "rms" else gradient[0].numel() ** -0.5
    return strength * size * step.sigma * unit_rms(gradient)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HardnessPush:
    """Pushes every image away from a class: a `Push` of the sampler.

    With the classes of the data and an image's own label it raises the image's hardness (the
    paper's term 1). With synthetic and real as classes, and the label of synthetic images for all,
    it makes images look real (term 2).
    """

    model: HardnessModel
    labels: Tensor
    """Class to leave, int64 (n,)."""
    strength: Tensor
    """float32 (n,). Rows with strength 0 are not evaluated, and stay bit-equal."""
    condition: Tensor | None = None
    """The denoiser's conditions, one per row, for models that denoise."""
    temperature: float = 1.0
    unit: Unit = "rms"
    """Of `strength`."""

    def __call__(self, x: Images, step: Step, prediction: Images | None = None) -> Images:
        """Returns the term to add to x_{t-1}, zero for rows with strength 0."""
        push = torch.zeros_like(x)
        rows, labels, strength = self._pushed.on(x.device)
        if not len(rows):
            return push
        # Samplers run in inference mode, whose tensors cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            x_t = x[rows].requires_grad_()
            condition = None if self.condition is None else self.condition[rows]
            hardness = self.model(x_t, step.t, condition)
            if not hardness.requires_grad:
                raise ValueError(
                    f"`model` {type(self.model).__name__} is not differentiable in `x`: its "
                    "hardness has no gradient. Compute it without numpy, `detach` and "
                    "`inference_mode`."
                )
            odds = log_odds(hardness, labels, self.temperature)
            (gradient,) = torch.autograd.grad(odds.sum(), x_t)
        if self.unit == "score":
            slope = odds.detach().sigmoid().to(x).view(-1, 1, 1, 1)  # of the loss by the odds
            gradient = slope * gradient
        push[rows] = scaled(gradient, strength.to(x), self.unit, step)
        return push

    @cached_property
    def _pushed(self) -> Placed:
        """The rows that are pushed, int64 (m,), their labels, and strengths (m, 1, 1, 1)."""
        rows = self.strength.cpu().nonzero()[:, 0]
        return Placed(rows, self.labels.cpu()[rows], self.strength.cpu()[rows].view(-1, 1, 1, 1))

    def evaluations(self) -> Tensor:
        """One gradient per row and step, none for rows with strength 0."""
        return self.model.evaluations * (self.strength != 0).long()
