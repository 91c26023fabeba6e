"""Adversarial training and testing by projected gradient ascent in a box around every image.

Madry et al. 2018, https://arxiv.org/abs/1706.06083: the largest loss within `epsilon` of an image,
in the maximum norm, is sought by a few steps along the sign of the gradient, each projected back
into the box and into the range of pixels; the network is trained on what they find. A library of
attacks would be a dependency for these twenty lines.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from synthaug._support import arguments, devices

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""Images float32 (n, C, H, W) in [0, 1] => a loss that adds up over the images, a scalar."""

_REACH = 2.5
"""All steps of an attack together, in multiples of `epsilon`, unless the step is given."""


@final
@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Adversarial training of all arms, and the attack under which they are tested as well.

        AdversarialConfig(epsilon=8 / 255)                  # CIFAR
        AdversarialConfig(epsilon=0.3, steps=7)             # handwritten digits

    Every training image is replaced by an attacked one; labels stay. The attack starts at a random
    place of the box. The test attack is stronger: an image counts as robust if the clean image and
    every image that all restarts pass through are classified correctly. With validation images, the
    weights of the best *robust* accuracy on them are tested, under the attack of the training: the
    robust accuracy of adversarial training falls again long before the clean one does.

    Args:
        epsilon: Largest change of a pixel, in [0, 1].
        step_size: Change of a pixel per step of the training attack; by default
            2.5 * epsilon / steps. The test attack always has 2.5 * epsilon / test_steps.
        steps: Gradient steps of the training attack.
        test_steps: Gradient steps of the test attack.
        restarts: How often the test attack starts anew, at other random places.
        attack_mode: Mode of the network while a training image is attacked. "eval" uses the running
            statistics of batch norm and no dropout; "train" those of the batch, and leaves the
            running ones alone. Test attacks have "eval" always.
        ema_decay: Decay per optimizer step of a moving average of weights and running statistics,
            which is what is validated and tested; 0 for the weights themselves. The decay rises
            from 0 with the number of steps, so that a short training forgets its initial weights.

    Raises:
        ValueError: For a value out of range.
    """

    epsilon: float
    step_size: float | None = None
    steps: int = 10
    test_steps: int = 20
    restarts: int = 2
    attack_mode: Literal["eval", "train"] = "eval"
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_within(
            "(0, 1]", "It is a change of pixels in [0, 1], as 8 / 255.", epsilon=self.epsilon
        )
        arguments.check_positive(step_size=self.step_size)
        arguments.check_at_least(
            1, steps=self.steps, test_steps=self.test_steps, restarts=self.restarts
        )
        arguments.check_choice(("eval", "train"), attack_mode=self.attack_mode)
        arguments.check_within("[0, 1)", ema_decay=self.ema_decay)

    def training_images(self, network: nn.Module, images: Tensor, loss: Loss) -> Tensor:
        """Attacks the images of a training step; leaves the network as it was, in training mode.

        Args:
            network: The network to attack, in training mode.
            images: Float32 (n, C, H, W) in [0, 1].
            loss: The loss to raise.
        """
        size = _REACH * self.epsilon / self.steps if self.step_size is None else self.step_size
        if self.attack_mode == "eval":
            network.eval()
            found = self._attack(images, loss, size, self.steps)
            network.train()
            return found
        statistics = [(buffer, buffer.clone()) for buffer in network.buffers()]
        found = self._attack(images, loss, size, self.steps)
        for buffer, before in statistics:
            buffer.copy_(before)
        return found

    def withstood(
        self, logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, testing: bool
    ) -> Tensor:
        """Returns a mask of the images that are classified correctly wherever the attack takes
        them, bool (n,).

        Args:
            logits: Images float32 (n, C, H, W) in [0, 1] => logits, row by row.
            images: The images to attack.
            labels: Their classes, int64 (n,).
            testing: The test attack with all its restarts; else that of the training, once.
        """
        with torch.no_grad():
            right = logits(images).argmax(dim=1) == labels
        steps, restarts = (self.test_steps, self.restarts) if testing else (self.steps, 1)
        for _ in range(restarts):
            # Of all images, so that what a restart draws for one does not depend on the others.
            start = _within_box(images, self.epsilon)
            rows = right.nonzero().flatten()  # the others have lost already
            if not len(rows):
                break
            right[rows] = self._survivors(logits, images[rows], start[rows], labels[rows], steps)
        return right

    def _survivors(
        self,
        logits: Callable[[Tensor], Tensor],
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        steps: int,
    ) -> Tensor:
        """Returns a mask of the images that are right at all places on the path of one attack."""
        right = torch.ones_like(labels, dtype=torch.bool)

        def loss(x: Tensor) -> Tensor:
            scores = logits(x)
            right.logical_and_(scores.argmax(dim=1) == labels)
            return nn.functional.cross_entropy(scores, labels, reduction="sum")

        end = ascend(loss, images, start, self.epsilon, _REACH * self.epsilon / steps, steps)
        with torch.no_grad():
            loss(end)
        return right

    def _attack(self, images: Tensor, loss: Loss, step_size: float, steps: int) -> Tensor:
        start = _within_box(images, self.epsilon)
        return ascend(loss, images, start, self.epsilon, step_size, steps)


def ascend(
    loss: Loss, images: Tensor, start: Tensor, epsilon: float, step_size: float, steps: int
) -> Tensor:
    """Goes up the loss by the sign of its gradient, within `epsilon` of the images and in [0, 1].

    Only signs count, so the loss may be a sum or a mean over the images.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        x = (x.detach() + step_size * gradient.sign()).clamp(low, high)
    return x


def _within_box(images: Tensor, epsilon: float) -> Tensor:
    """A random place within `epsilon` of every image; drawn on the CPU, alike for all devices."""
    change = torch.rand(images.shape, dtype=torch.float32, device="cpu").mul(2).sub(1)
    return (images + epsilon * devices.sent(change, images.device)).clamp(0, 1)


@final
class MovingAverage:
    """A network whose weights and buffers are moving averages of those of another one."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network)
        """The average, in the mode that the other network had."""
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the present weights and buffers."""
        kept = min(self._decay, self._updates / (self._updates + 9))
        self._updates += 1
        new = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - kept)
            else:
                value.copy_(new[name])
