"""Evaluations whose classifiers are described by keywords, as most tests change one of them."""

import math
from dataclasses import fields
from typing import Any

from torch import nn

from synthaug.evaluation import (
    AdversarialConfig,
    ClassifierConfig,
    EvaluationReport,
    _classifiers,
)
from synthaug.evaluation import evaluate as run

FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "device": "cpu"}
WEAK = AdversarialConfig(epsilon=0.1, steps=2, test_steps=2, restarts=1)
FIELDS = {field.name for field in fields(ClassifierConfig)}


def configured(**arguments: Any) -> dict[str, Any]:
    """The arguments, those of a `ClassifierConfig` in one."""
    config = ClassifierConfig(**{name: arguments[name] for name in FIELDS & arguments.keys()})
    rest = {name: value for name, value in arguments.items() if name not in FIELDS}
    return {**rest, "config": config}


def evaluate(arms: Any, **arguments: Any) -> EvaluationReport:
    return run(arms, **configured(**arguments))


def linear(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))


def make_linear(patch: Any) -> None:
    """Classifiers of which nothing is said are linear, for tests that are about other things.

    `patch` is a `pytest.MonkeyPatch`.
    """
    patch.setitem(_classifiers._OURS, "small-cnn", linear)
