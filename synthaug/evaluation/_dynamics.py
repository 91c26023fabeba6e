"""Records a classifier's predictions for some images while it learns from others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.devices import choose_device
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import Features, Pixels, Singles
from synthaug.evaluation._inputs import Batches
from synthaug.evaluation._predict import fitted_classifier

_BATCH = 512


def learning_curves(
    train: Any,
    pixels: Pixels,
    *,
    looks: int,
    seed: int,
    config: ClassifierConfig,
    advance: Callable[[int], object] = lambda steps: None,
) -> Singles:
    """Trains a classifier as `evaluate` does, and notes now and then what it says of other images.

    Args:
        train: Labeled images that name their classes.
        pixels: The images to look at, uint8 (n, C, H, W).
        looks: How often, at about equal distances; the last look is at the end.
        seed: Seed of initial weights, order and augmentation.
        config: Network and training.
        advance: Called with the number of steps made.

    Returns:
        Class probabilities, float32 (looks, n, num_classes); fewer looks if there are fewer steps.
    """
    source = ImageSource.open(train, "`real`")
    images = Batches(source, source.named_classes(), choose_device(config.device))
    every = -(-config.steps // looks)
    done, curves = 0, []

    def look(network: nn.Module, steps: int) -> None:
        nonlocal done
        done += steps
        if done % every == 0 or done == config.steps:
            curves.append(probabilities(network.eval(), pixels))
            network.train()
        advance(steps)

    fitted_classifier(images, replace(config, eval_every=every), seed, look)
    return np.stack(curves)


@torch.inference_mode()
def probabilities(network: nn.Module, pixels: Pixels) -> Features:
    """The class probabilities that a classifier gives, float32 (n, num_classes).

    Args:
        network: Images float (n, C, H, W) in [-1, 1] => logits, in evaluation mode.
        pixels: uint8 (n, C, H, W).
    """
    place = next((weight.device for weight in network.parameters()), pixels.device)
    parts = [network(to_images(part.to(place))) for part in pixels.split(_BATCH)]
    return torch.cat(parts).float().softmax(dim=1).cpu().numpy()
