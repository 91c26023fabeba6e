"""Checks of arguments: what passes, and that a message names argument, value and remedy."""

import math

import numpy as np
import pytest

from synthaug._support import arguments


@pytest.mark.parametrize(
    ("check", "bound", "fits", "does_not", "wanted"),
    [
        ("check_at_least", (2,), (2, 2.5, math.inf), (1.9, math.nan), "at least 2"),
        ("check_whole", (1,), (1, np.int64(3)), (0, 1.5, "2"), "a whole number from 1"),
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
