import numpy as np
import pytest

from synthaug._audit.competition import Competition, Entrants, compete

NO_LINKS = np.zeros((0, 2), np.int64)


@pytest.fixture(autouse=True)
def few_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    """They serve the excess among the closest alone, whose tests are in `test_precedence`."""
    monkeypatch.setattr("synthaug._audit.precedence.ASSIGNMENTS", 100)


def simulate(
    seed: int,
    *,
    rows: int = 300,
    copies: int = 0,
    hubs: int = 0,
    targets: int = 600,
    decoys: int = 300,
    linked: bool = True,
) -> Competition:
    """Rows match a real image at random; `copies` match targets closely; `hubs` are 30 rows each
    that all match the same real image closely."""
    rng = np.random.default_rng(seed)
    ranks = rng.uniform(size=rows)
    matches = rng.choice(targets + decoys, rows, replace=rows > targets + decoys)
    ranks[:copies] = rng.uniform(0, 1e-3, copies)
    matches[:copies] = rng.choice(targets, copies, replace=False)
    links = []
    for i in range(hubs):
        members = slice(rows - 30 * (i + 1), rows - 30 * i)
        ranks[members] = rng.uniform(0, 1e-3, 30)
        # Near-identical rows have the same match, or one that is as close.
        near = rng.choice(targets + decoys)
        matches[members] = near if linked else (near + np.arange(30)) % (targets + decoys)
        start = members.start
        links += [[start, start + j] for j in range(1, 30)]
    return compete(
        Entrants(
            ranks=ranks,
            matches=matches,
            is_target=matches < targets,
            links=np.array(links, np.int64).reshape(-1, 2),
        ),
        num_targets=targets,
        num_decoys=decoys,
        fdr=0.1,
        level=0.01,
        seed=0,
    )


def test_q_values_count_decoys_among_the_closest_matches() -> None:
    ranks = np.array([1.0, 2, 3, 4, 5, 6])
    is_target = np.array([True, True, False, True, True, False])
    result = compete(
        Entrants(ranks=ranks, matches=np.arange(6), is_target=is_target, links=NO_LINKS),
        num_targets=10,
        num_decoys=10,
        fdr=0.1,
        level=0.01,
        seed=0,
    )
    # (1 + decoys) / targets at each place: 1, 1/2, 1, 2/3, 2/4, 3/4; then the least from there on.
    np.testing.assert_allclose(result.q_values, [0.5, 0.5, 1, 0.5, 0.5, 1])
    assert (result.targets, result.num_clusters) == (4, 6)
    assert result.share == pytest.approx(4 / 6)
    assert result.expected_share == 0.5


def test_unequal_numbers_of_targets_and_decoys_are_allowed_for() -> None:
    result = compete(
        Entrants(
            ranks=np.arange(50.0),
            matches=np.arange(50),
            is_target=np.ones(50, bool),
            links=NO_LINKS,
        ),
        num_targets=50,
        num_decoys=10,
        fdr=0.1,
        level=0.01,
        seed=0,
    )
    np.testing.assert_allclose(result.q_values, 5 / 50)
    assert result.resolution == 50


def test_a_cluster_is_represented_by_its_closest_member() -> None:
    links = np.array([[0, 1], [3, 4]])
    result = compete(
        Entrants(
            ranks=np.array([3.0, 1, 2, 5, 4]),
            matches=np.array([0, 1, 1, 2, 3]),
            is_target=np.array([True] * 5),
            links=links,
        ),
        num_targets=4,
        num_decoys=4,
        fdr=0.5,
        level=0.01,
        seed=0,
    )
    assert result.clusters[0] == result.clusters[1] == result.clusters[2]
    assert result.clusters[3] == result.clusters[4] != result.clusters[0]
    np.testing.assert_array_equal(result.q_values < 1, [False, True, False, False, True])


def test_without_copies_hardly_any_run_finds_one() -> None:
    found = [(simulate(seed).q_values <= 0.1).any() for seed in range(200)]
    assert np.mean(found) <= 0.1 + 3 * (0.1 * 0.9 / 200) ** 0.5


def test_collapsed_modes_raise_no_alarm_since_each_counts_once() -> None:
    for linked in (True, False):
        found = [
            (simulate(seed, hubs=5, linked=linked).q_values <= 0.1).any() for seed in range(200)
        ]
        assert np.mean(found) <= 0.1 + 3 * (0.1 * 0.9 / 200) ** 0.5


def test_the_share_of_targets_is_tested_at_its_nominal_level() -> None:
    low = [simulate(seed, hubs=seed % 5).share_p_value <= 0.05 for seed in range(300)]
    assert np.mean(low) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert simulate(0, copies=150).share_p_value < 1e-3


def test_leaning_needs_more_than_chance_and_a_few_copies() -> None:
    assert np.mean([simulate(seed).leaning for seed in range(150)]) <= 0.01
    assert np.mean([simulate(seed, copies=6).leaning for seed in range(150)]) <= 0.01 + 0.02
    assert np.mean([simulate(seed, copies=150).leaning for seed in range(30)]) > 0.9


def test_copies_beyond_the_resolution_are_found_and_few_others() -> None:
    shares, wrong = [], []
    for seed in range(40):
        found = np.flatnonzero(simulate(seed, copies=60).q_values <= 0.1)
        shares.append((found < 60).sum() / 60)
        wrong.append((found >= 60).sum() / max(1, len(found)))
    assert np.mean(shares) > 0.99
    assert np.mean(wrong) <= 0.1


def test_fewer_copies_than_the_resolution_are_never_found() -> None:
    result = simulate(0, rows=19, copies=19)
    assert result.resolution == 20
    assert (result.q_values > 0.1).all()
    assert (simulate(0, rows=20, copies=20).q_values <= 0.1).all()
