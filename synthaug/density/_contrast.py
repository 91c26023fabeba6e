"""The loss that guidance towards sparse regions climbs."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthaug._support.arguments import check_positive


def contrastive_loss(
    hardness: Float[Tensor, "n c"], labels: Tensor, temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """Minus the logarithm of the share of a class among all classes' likelihoods.

    L_g1(x, y) = -log(exp(-H(x, y) / tau) / sum_c exp(-H(x, c) / tau)) = -log p_y. Its gradient by
    H(x, y) is (1 - p_y) / tau, and by another H(x, c) it is -p_c / tau, so an ascent makes an image
    less likely under its own class and more likely under others. It vanishes where the class is
    certain, p_y = 1. For L_g2, give the hardness under the Gaussians of synthetic and real images,
    with the label of the synthetic ones. The equation is a reconstruction: the printed one could
    not be consulted.

    Args:
        hardness: (n, C), of every class; of any size without overflow.
        labels: int64 (n,).
        temperature: tau, positive; the larger, the softer.

    Returns:
        (n,), not averaged, so that the gradient of an image does not depend on its batch.

    Raises:
        ValueError: If `temperature` is not positive.
    """
    check_positive(temperature=temperature)
    least = hardness.detach().amin(1, keepdim=True)  # the loss depends on differences only
    return F.cross_entropy((least - hardness) / temperature, labels, reduction="none")
