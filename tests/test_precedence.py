"""The test of the whole set: its level, its power, and what it counts once."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import hypergeom

from synthaug._audit.precedence import ASSIGNMENTS, depth_of, excess, precedence, surprise

M, N = 60, 240


def run(closeness: NDArray, *, group: NDArray | None = None, strata: NDArray | None = None):
    size = len(closeness)
    return precedence(
        closeness,
        np.arange(size) < M,
        group=np.arange(size) if group is None else group,
        strata=np.zeros(size, np.int64) if strata is None else strata,
        level=0.01,
        seed=0,
    )


def test_the_chance_of_a_run_at_the_head_is_that_of_drawing_it() -> None:
    """With one place the p-value is the share of synthetic images; with k, hypergeometric."""
    rng = np.random.default_rng(0)
    named = np.array([True])
    one = excess(named, population=(10, 3), level=0.5, rng=rng)
    assert one.p_value == pytest.approx(0.3, abs=0.02)
    three = excess(np.ones(3, bool), population=(20, 8), level=0.5, rng=rng)
    # No other outcome is as surprising: all of the three places are named.
    assert three.p_value == pytest.approx(hypergeom.pmf(3, 20, 8, 3), abs=0.005)
    assert (three.depth, three.count) == (3, 3)
    assert three.expected == pytest.approx(1.2)


def test_exchangeable_images_are_rejected_at_the_level_whatever_their_closeness() -> None:
    rng = np.random.default_rng(1)
    p = []
    for _ in range(300):
        closeness = rng.integers(0, 40, M + N) / 1.0  # many ties
        p.append(run(closeness).excess.p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) <= level + 3 * (level * (1 - level) / 300) ** 0.5
    assert np.mean(np.array(p) <= 0.5) > 0.3, "not merely never"


def test_a_few_copies_that_no_row_wise_test_can_flag_are_noticed_and_named() -> None:
    closeness = np.random.default_rng(2).uniform(1, 2, M + N)
    closeness[[3, 17, 20, 41, 55]] = 0.5
    test = run(closeness)
    assert test.excess.p_value < 0.003
    assert {3, 17, 20, 41, 55} <= set(test.rows.tolist())
    assert len(test.rows) <= 8
    assert test.excess.surprise >= test.excess.critical


def test_a_group_counts_once_and_all_of_its_rows_are_named() -> None:
    """Fifty near-copies of one image are no more evidence than the image."""
    closeness = np.random.default_rng(3).uniform(1, 2, M + N)
    closeness[:50] = np.linspace(0.5, 0.6, 50)
    group = np.arange(M + N)
    assert run(closeness).excess.p_value < 1e-3
    group[:50] = 0
    assert run(closeness, group=group).excess.p_value > 0.05
    closeness[50:56] = 0.55  # six more, alone
    test = run(closeness, group=group)
    assert test.excess.p_value < 0.01
    assert set(range(56)) <= set(test.rows.tolist())


def test_names_are_dealt_out_within_classes() -> None:
    """One class is closer to everything, and half of the synthetic images are of it."""
    rng = np.random.default_rng(4)
    rejected = {"classes": 0, "one": 0}
    for _ in range(60):
        strata = np.concatenate([rng.random(M) < 0.5, rng.random(N) < 0.05]).astype(np.int64)
        closeness = rng.uniform(size=M + N) + np.where(strata == 1, 0, 0.3)
        rejected["classes"] += run(closeness, strata=strata).excess.p_value <= 0.05
        rejected["one"] += run(closeness).excess.p_value <= 0.05
    assert rejected["one"] > 50
    assert rejected["classes"] <= 60 * 0.05 + 3 * (60 * 0.05 * 0.95) ** 0.5


def test_order_of_images_and_ties_change_nothing() -> None:
    closeness = np.random.default_rng(5).uniform(1, 2, M + N)
    closeness[:4] = 0.5
    first = run(closeness)
    order = np.concatenate([np.random.default_rng(6).permutation(M), M + np.arange(N)])
    again = run(closeness[order])
    assert again.excess.p_value == first.excess.p_value
    assert set(order[again.rows]) == set(first.rows)


def test_nothing_to_compare_is_no_excess() -> None:
    for named in (np.ones(5, bool), np.zeros(5, bool), np.zeros(0, bool)):
        found = excess(named, level=0.01, rng=np.random.default_rng(0))
        assert (found.p_value, found.depth, found.count) == (1, 0, 0)
    # A class without held-out images adds nothing, and divides by nothing.
    strata = np.array([0, 0, 0, 1, 1])
    with np.errstate(all="raise"):
        found = excess(
            np.array([True, True, True, True, False]),
            strata,
            level=0.01,
            rng=np.random.default_rng(0),
        )
    assert 0 < found.p_value <= 1


def test_the_critical_surprise_is_exceeded_with_the_level() -> None:
    rng = np.random.default_rng(7)
    found = excess(np.array([False] * 30 + [True] * 10), level=0.1, rng=rng)
    highest = []
    for _ in range(3000):
        named = rng.permutation(np.array([False] * 30 + [True] * 10))[: depth_of(40)]
        places = np.arange(1, len(named) + 1)
        highest.append(surprise(np.cumsum(named), 0.25 * places, places).max())
    share = np.mean(np.array(highest) >= found.critical - 1e-9)
    assert share <= 0.1 + 3 * (0.1 * 0.9 / 3000) ** 0.5 + 3 / ASSIGNMENTS**0.5
