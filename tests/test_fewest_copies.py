"""The least number of copies among some rows: never too high more often than it says."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from synthaug._audit.bound import fewest_copies, most_by_chance

M, N = 60, 140
ONE = np.zeros(M + N, np.int64)


def test_the_limits_of_one_held_out_image_are_those_of_all_orders() -> None:
    """Before the first held-out image come k others with the chance of share ** k."""
    (limit,) = most_by_chance((0.4,), 0.05).tolist()
    assert 0.4 ** (limit + 1) <= 0.05 < 0.4**limit
    # All orders of 3 synthetic and 9 held-out images: none of the limits is passed more often.
    limits = most_by_chance(tuple(3 / (12 - h) for h in range(5)), 0.2)
    orders = list(itertools.combinations(range(12), 3))
    exceeded = 0
    for places in orders:
        before = np.array(places) - np.arange(3)
        exceeded += any((before <= h).sum() > limit for h, limit in enumerate(limits))
    assert exceeded / len(orders) <= 0.2


def shares_of_too_high_bounds(strata: NDArray, rng: np.random.Generator) -> tuple[float, float]:
    """How often the bound exceeds the copies among rows that are chosen after looking; and how many
    of ten copies at the head it counts."""
    too_high, counted = 0, []
    for _ in range(400):
        copies = int(rng.choice([0, 3, 10]))
        closeness = rng.uniform(size=M + N) * np.where(strata == 1, 0.4, 1)
        closeness[:copies] = rng.uniform(0, rng.choice([0.001, 0.05, 0.5]), copies)
        order = np.argsort(closeness)
        is_synthetic, is_copy = order < M, order < copies
        bounds = []
        for depth in range(5, 60, 9):
            chosen = is_synthetic & (np.arange(M + N) < depth)
            bound = fewest_copies(is_synthetic, strata[order], chosen, 0.05)
            bounds.append(bound - (is_copy & chosen).sum())
        too_high += max(bounds) > 0
        if is_copy[:10].all():
            everything = fewest_copies(is_synthetic, strata[order], is_synthetic, 0.05)
            counted.append(everything)
    return too_high / 400, float(np.mean(counted))


@pytest.mark.parametrize("classes", [1, 2])
def test_the_bound_holds_for_rows_that_are_chosen_after_looking(classes: int) -> None:
    rng = np.random.default_rng(0)
    strata = ONE.copy()
    if classes == 2:  # nearly half of the synthetic images are of a class that comes closer
        strata[:25], strata[M : M + 35] = 1, 1
    too_high, counted = shares_of_too_high_bounds(strata, rng)
    assert too_high <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert counted >= 5, "of ten copies that come first"


def test_nothing_is_claimed_where_nothing_can_be_told() -> None:
    all_first = np.arange(M + N) < M
    assert fewest_copies(all_first, ONE, all_first, 0.05) >= M - 5
    assert fewest_copies(np.ones(9, bool), np.zeros(9, np.int64), np.ones(9, bool), 0.05) == 0
    assert fewest_copies(np.zeros(9, bool), np.zeros(9, np.int64), np.ones(9, bool), 0.05) == 0
    # A class that is hardly held out: its rows may all be the closest by chance.
    strata = (np.arange(M + N) < M - 1).astype(np.int64)
    strata[M] = 1
    assert fewest_copies(all_first, strata, all_first, 0.05) == 0
