"""Checks of arguments: what passes, and that a message names argument, value and remedy."""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from synthaug import (
    Plan,
    TrainingConfig,
    audit,
    generate,
    load_dataset,
    metrics,
    split_for_audit,
)
from synthaug._support import arguments
from synthaug.caches import RayEngine
from synthaug.degradations import Blur, Snow
from synthaug.density import ClassGaussians, Neighborhood
from synthaug.evaluation import ClassifierConfig, StandardAugment
from synthaug.images import LabeledImages
from synthaug.mixing import Balance, Linear
from synthaug.sweeps import SweepConfig
from synthaug.synthesizers import (
    Constant,
    FineTuningConfig,
    InversionConfig,
    LossGrid,
    SamplerConfig,
    StageConfig,
    TokenConfig,
)


@pytest.mark.parametrize(
    ("check", "bound", "fits", "does_not", "wanted"),
    [
        ("check_at_least", (2,), (2, 2.5, math.inf), (1.9, math.nan), "at least 2"),
        ("check_whole", (1,), (1, np.int64(3)), (1.5, "2", True), "a whole number"),
        ("check_whole", (1,), (1,), (0, -1), "at least 1"),
        ("check_positive", (), (0.1, math.inf), (0, -1, math.nan), "positive"),
        ("check_finite", (0,), (0, 7.5), (-1, math.inf, math.nan), "at least 0 and finite"),
        ("check_fraction", (), (0, 0.5, 1), (-0.1, 1.1, math.nan), r"in \[0, 1\]"),
        ("check_within", ("[0, 1)",), (0, 0.9), (-0.1, 1, math.nan), r"in \[0, 1\)"),
        ("check_within", ("(0, inf)",), (0.1, 1e9), (0, math.inf), r"in \(0, inf\)"),
        ("check_choice", (("a", "b"),), ("a", "b"), ("c",), "one of 'a', 'b'"),
    ],
)
def test_a_check_names_the_argument_what_it_must_be_its_value_and_the_remedy(
    check, bound, fits, does_not, wanted
):
    for value in fits:
        getattr(arguments, check)(*bound, "Do that.", size=value)
    for value in does_not:
        with pytest.raises(ValueError, match=rf"`size` must be {wanted}, got .*{value}.*\. Do th"):
            getattr(arguments, check)(*bound, "Do that.", size=value, other=fits[0])


@dataclass(frozen=True)
class Settings:
    steps: int = 1
    size: int | None = None
    rate: float | None = 1.0
    flip: bool = False
    levels: tuple[int, ...] = ()
    shape: int | str = 1
    name: str | None = None

    def __post_init__(self) -> None:
        arguments.check_fields(self)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"steps": 1.5}, "`steps` must be a whole number, got 1.5."),
        ({"steps": True}, "`steps` must be a whole number, got True."),
        ({"steps": None}, "`steps` must be a whole number, got None."),
        ({"size": "2"}, "`size` must be a whole number, got '2'."),
        ({"rate": "fast"}, "`rate` must be a number, got 'fast'."),
        ({"rate": False}, "`rate` must be a number, got False."),
        ({"flip": "no"}, "`flip` must be True or False, got 'no'."),
        ({"rate": float("nan")}, "`rate` must be a number, got nan."),
        ({"levels": (1, 2.5)}, "`levels` must be a list or tuple of several whole numbers, got 2."),
        ({"levels": 3}, "`levels` must be a list or tuple of several whole numbers, got 3."),
        ({"name": 3}, "`name` must be a text, got 3."),
    ],
)
def test_fields_hold_what_they_declare(fields, wanted):
    numpys: Any = np.bool_(True)
    Settings(2, 3, 1, numpys, (1, 2), "any")
    with pytest.raises(ValueError, match=re.escape(wanted)):
        Settings(**fields)


@pytest.mark.parametrize("several", [[1, 2], range(1, 3), np.array([1, 2]), (np.int64(1), 2)])
def test_any_sequence_of_whole_numbers_is_a_tuple_of_them(several):
    levels = Settings(levels=several).levels
    assert levels == (1, 2)
    assert [type(one) for one in levels] == [int, int]


@pytest.mark.parametrize(
    ("config", "fields", "named"),
    [
        (SamplerConfig, {"num_inference_steps": 0}, "`num_inference_steps` must be at least 1"),
        (SamplerConfig, {"num_inference_steps": -1}, "`num_inference_steps` must be at least 1"),
        (SamplerConfig, {"eta": -0.5}, "`eta` must be at least 0 and finite"),
        (SamplerConfig, {"log_variance_mix": 2.0}, "`log_variance_mix` must be in [0, 1]"),
        (SamplerConfig, {"scheduler": 3}, "`scheduler` must be a text, got 3"),
        (TrainingConfig, {"learning_rate": float("inf")}, "`learning_rate` must be at least 0 and"),
        (TrainingConfig, {"ema_decay": float("nan")}, "`ema_decay` must be a number, got nan"),
        (InversionConfig, {"start_std": float("inf")}, "`start_std` must be at least 0 and finite"),
        (InversionConfig, {"checkpoint_seconds": -1}, "`checkpoint_seconds` must not be negative"),
        (InversionConfig, {"snapshots": 3}, "`snapshots` must be a list or tuple of several whole"),
        (FineTuningConfig, {"image_size": 0}, "`image_size` must be at least 1, got 0"),
        (FineTuningConfig, {"class_learning_rate": 0}, "`class_learning_rate` must be positive"),
        (StageConfig, {"low_size": -1}, "`low_size` must be at least 1, got -1"),
        (StageConfig, {"low_size": (8, 0)}, "`low_size` must be at least 1, got 0"),
        (StageConfig, {"low_size": 4, "blur_std_range": [0.4]}, "`blur_std_range` must be a list"),
        (SweepConfig, {"per_class": 0}, "`per_class` must be at least 1, got 0"),
        (SweepConfig, {"seeds": 0}, "`seeds` must be at least 1, got 0"),
    ],
)
def test_a_bad_value_is_refused_where_it_is_given(config, fields, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        config(**fields)


CONFIGURATIONS = (
    TrainingConfig(),
    Balance(),
    Linear(0, 1, epochs=3),
    ClassifierConfig(),
    SweepConfig(),
    StandardAugment(padding=1),
    FineTuningConfig(),
    InversionConfig(),
    LossGrid(),
    RayEngine(),
    SamplerConfig(),
    StageConfig(low_size=4),
    TokenConfig(),
    Blur(num_levels=2),
    Snow(num_levels=2),
)


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_no_configuration_cuts_a_float_or_takes_true_for_one(config):
    counts = [one.name for one in fields(config) if int in (get_args(one.type) or (one.type,))]
    assert counts
    for name in counts:
        for value in (1.5, True):
            with pytest.raises(ValueError, match=f"`{name}` must be a .*whole numbers?, got"):
                replace(config, **{name: value})


FEATURES = np.random.default_rng(0).normal(size=(12, 3))
PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
IMAGES = LabeledImages(
    torch.arange(64, dtype=torch.uint8).reshape(4, 1, 4, 4), [0, 1] * 2, list("ab")
)
PLANNER = Constant(PIXELS, [0, 1], classes=("cat", "dog"))
PLAN = PLANNER.plan(per_class=2, seed=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: PLANNER.plan(counts={"cat": n}),
        lambda n: PLANNER.plan(per_class=n),
        lambda n: Plan.build([n, n], classes=("cat", "dog"), settings={}, seed=0),
        lambda n: list(PLAN.batches(n)),
        lambda n: generate(PLANNER, PLAN, "unused.h5", batch_size=n),
        lambda n: metrics.inception_score(FEATURES, splits=n),
        lambda n: metrics.kernel_distance(FEATURES, FEATURES, subsets=n),
        lambda n: metrics.kernel_distance(FEATURES, FEATURES, subset_size=n),
        lambda n: metrics.manifold_scores(FEATURES, FEATURES, k=n),
        lambda n: Neighborhood(FEATURES, k=n),
        lambda n: ClassGaussians.fit(FEATURES, np.arange(12) % 2, components=n),
        lambda n: ClassGaussians.fit(FEATURES, np.arange(12) % 2, num_classes=n),
        lambda n: load_dataset("digits", image_size=n),
        lambda n: load_dataset("digits", channels=n),
        lambda n: load_dataset("digits", memory_limit=n),
        lambda n: audit(FEATURES, FEATURES, k=n),
        lambda n: audit(FEATURES, FEATURES, max_pairs=n),
        lambda n: split_for_audit(IMAGES, seed=n),
    ],
)
def test_no_number_of_things_is_cut(call):
    for wrong in (1.5, 2.0, True, "2"):
        with pytest.raises((TypeError, ValueError), match=r"whole number|expected integers"):
            call(wrong)


def test_texts_and_true_are_no_numbers():
    wrong: tuple[Any, ...] = ("2", True)
    for value in wrong:
        with pytest.raises(ValueError, match=f"`size` must be a number, got {value!r}"):
            arguments.check_at_least(1, size=value)


def test_what_was_not_given_passes():
    arguments.check_at_least(1, size=None)
    arguments.check_whole(1, size=None)
    arguments.check_positive(size=None)
    arguments.check_finite(1, size=None)
    arguments.check_within("[0, 1)", size=None)


def test_types_repetitions_and_emptiness():
    arguments.check_type(int | str, "a number", size=1, name="x")
    arguments.check_distinct(names=("a", "b"), none=())
    arguments.check_some("image", pixels=np.zeros(1))
    with pytest.raises(TypeError, match=r"^`size` is a list, expected a number\.$"):
        arguments.check_type(int, "a number", size=[])
    with pytest.raises(ValueError, match=r"^`names` holds 'a' more than once\. Rename it\.$"):
        arguments.check_distinct("Rename it.", names=["b", "a", "a"])
    with pytest.raises(ValueError, match=r"^`pixels` holds no image\.$"):
        arguments.check_some("image", pixels=[])


def test_signs_and_bounds_that_are_explained():
    arguments.check_not_negative(size=0, other=None)
    arguments.check_between(1, 3, ", as many as there are", size=3, other=None)
    with pytest.raises(ValueError, match=r"^`size` must not be negative, got -1\. Do that\.$"):
        arguments.check_not_negative("Do that.", size=-1)
    with pytest.raises(ValueError, match=r"^`size` must be from 1 to 3, as many as there are, got"):
        arguments.check_between(1, 3, ", as many as there are", size=0)
