"""Evaluations whose classifiers are described by keywords, as most tests change one of them."""

from dataclasses import fields
from typing import Any

from synthaug.evaluation import ClassifierConfig, EvaluationReport
from synthaug.evaluation import evaluate as run

FIELDS = {field.name for field in fields(ClassifierConfig)}


def configured(**arguments: Any) -> dict[str, Any]:
    """The arguments, those of a `ClassifierConfig` in one."""
    config = ClassifierConfig(**{name: arguments[name] for name in FIELDS & arguments.keys()})
    rest = {name: value for name, value in arguments.items() if name not in FIELDS}
    return {**rest, "config": config}


def evaluate(arms: Any, **arguments: Any) -> EvaluationReport:
    return run(arms, **configured(**arguments))
