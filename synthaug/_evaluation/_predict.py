"""What classifiers trained on some images say of others."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from synthaug._adapt import classes_of
from synthaug._classifiers import build_classifier
from synthaug._evaluation._augment import Augment, standard_augment
from synthaug._evaluation._fit import Settings, default_decay, fit, seed_initial_weights
from synthaug._evaluation._sources import open_source
from synthaug._pixels import to_images
from synthaug._types import Features, Pixels

_BATCH = 512


def class_probabilities(
    train: Dataset[Any],
    pixels: Pixels,
    *,
    classes: Sequence[str] | None = None,
    seeds: int = 3,
    steps: int = 1000,
    batch_size: int = 64,
    model: str = "small-cnn",
    augment: Augment | Literal["standard"] | None = "standard",
    learning_rate: float = 0.05,
    weight_decay: float | None = None,
    device: str | torch.device | None = None,
) -> Features:
    """Trains classifiers, and averages the class probabilities that they give to other images.

    Args:
        train: Labelled images, as an arm of `evaluate`.
        pixels: The images to judge, uint8 (n, C, H, W).
        classes: Class names; by default those of `train`.
        seeds: Number of classifiers; they are trained as the seeds 0, 1, ... of an evaluation.
        steps: Optimiser steps of each.
        batch_size: Images per step.
        model: As in `evaluate`.
        augment: As in `evaluate`.
        learning_rate: Its peak.
        weight_decay: As in `evaluate`.
        device: By default the GPU if there is one.

    Returns:
        float32 (n, num_classes); rows add up to 1.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = tuple(classes or classes_of(train) or ())
    if not names:
        raise ValueError("`classes` is needed: the data set does not name its classes.")
    shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
    chosen = standard_augment(shape) if augment == "standard" else augment
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=default_decay(learning_rate, steps) if weight_decay is None else weight_decay,
        warmup_steps=round(steps / 20),
        eval_every=max(1, steps // 20),
        precision="float32",
    )
    total = torch.zeros(len(pixels), len(names))
    devices = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for seed in range(seeds):
            seed_initial_weights(seed)
            network = build_classifier(model, len(names), shape).to(target)
            fit(
                network,
                open_source(train, "`train`", names, target),
                settings,
                seed=seed,
                augment=chosen,
                validation=None,
                device=target,
                run=f"classifier {seed}",
                advance=lambda steps: None,
            )
            network.eval()
            with torch.inference_mode():
                logits = [network(to_images(part.to(target))) for part in pixels.split(_BATCH)]
            total += torch.cat(logits).softmax(dim=1).cpu()
    return np.asarray(total / seeds, np.float32)
