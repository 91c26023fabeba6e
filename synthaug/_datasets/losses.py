"""Recognizes losses that weigh an image if its class probabilities are scaled by a weight."""

from torch import nn
from torch.nn import functional as F

_REMEDY = "Serve rows with their weight for a probability: `draw=mixing.WeightedDraws(weights)`."


def check_loss(loss: object, *, label_smoothing: float = 0.0) -> None:
    """Refuses a loss that would misread labels scaled by `ItemFormat(weights=...)`.

        mixing.check_loss(criterion)

    The cross-entropy of torch is linear in its targets, so scaled targets are the weighted loss.
    Smoothed labels are not scaled with them, and binary losses also learn from what is missing.

    Args:
        loss: `torch.nn.CrossEntropyLoss(...)` or `torch.nn.functional.cross_entropy`.
        label_smoothing: Label smoothing of the loss, for the function.

    Raises:
        ValueError: For a loss that smooths labels.
        TypeError: For another loss.
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        label_smoothing = max(label_smoothing, loss.label_smoothing)
    elif loss is not F.cross_entropy:
        name = type(loss).__name__
        raise TypeError(
            f"`loss` is a {name}, and only torch's cross-entropy of class probabilities is the "
            f"weighted loss where labels are scaled. {_REMEDY}"
        )
    if label_smoothing:
        raise ValueError(
            f"`label_smoothing` is {label_smoothing:g}, which would give images of small weight a "
            f"large loss. Set it to 0. {_REMEDY}"
        )
