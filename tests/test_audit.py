"""Images here are smooth random fields: made up, but with the structure that distances live on."""

import base64
import hashlib
import json
import re
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu, norm
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import decode_image, encode_jpeg

import synthaug._audit
from synthaug import AuditReport, audit, features
from synthaug._audit import matches as _matches
from synthaug._audit.alignment import Aligner
from synthaug._audit.calibration import TAIL, closeness, conformal_p_values, q_values
from synthaug._audit.decisions import ROWS_SHARE, AuditPool
from synthaug._audit.descriptive import mann_whitney_z
from synthaug._audit.differences import NEAR_RMSE, rmse
from synthaug._audit.disturbances import disturbances
from synthaug._audit.matches import Matches
from synthaug._audit.matching import Matcher, linked
from synthaug._audit.power import visible
from synthaug._audit.report import _MISSING, _SPREAD
from synthaug._audit.spread import Spread
from synthaug._audit.tiers import Power
from synthaug._audit.verdict import Counts, Findings, judge, resolution
from synthaug._audit.verdict_report import told
from synthaug._neighbors import INDEXES, Index, merge, search, threads
from synthaug._support import progress
from synthaug.errors import AuditError, DataError

pytestmark = pytest.mark.usefixtures("compared_once")

COUNTS = Counts(
    synthetic_rows=100,
    synthetic_judged=100,
    withdrawn=0,
    withdrawn_unranked=0,
    withdrawn_incomparable=False,
    forgotten=0,
    train=50,
    train_distinct=50,
    holdout=500,
    holdout_dropped=0,
    holdout_near_equal=0,
    holdout_resembling=0,
    holdout_distinct=500,
    resolution=4,
    competition_resolution=2,
)
NOTHING = Findings(
    exact=0,
    identical=0,
    copied=False,
    calibrated=0,
    competed=0,
    alike=0,
    alike_p=1.0,
    named=(),
    excess=None,
    contested=False,
    shifted=False,
    leaning=False,
    withheld=0,
    fewest_copies=None,
)


def seen(kind: str = "k", noticed: int | None = 3) -> Power:
    """What an audit says of a required kind of copies."""
    return Power(
        kind=kind,
        required=True,
        planted=25,
        power=1,
        interval=(0.9, 1),
        found=1,
        alike=0,
        noticed=noticed,
        needed=noticed,
    )


def fields(n: int, seed: int = 0, c: int = 1, size: int = 8) -> Tensor:
    """Smooth random images, uint8 (n, c, size, size): no two alike, none alike mirrored."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, c, 4, 4)))
    return F.interpolate(coarse, (size, size), mode="bilinear").round().to(torch.uint8)


def whole(*args: Any, **kwargs: Any) -> AuditReport:
    return audit(*args, progress=False, **kwargs)


def quiet(*args: Any, **kwargs: Any) -> AuditReport:
    """An audit that plants fewer copies, tests with them 4 times, not 20, and shows few pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthaug._audit.comparison.PLANTED", 10)
        patch.setattr("synthaug._audit.power._DRAWS", 4)
        return whole(*args, **{"max_pairs": 5, **kwargs})


@pytest.fixture(scope="module")
def train() -> Tensor:
    return fields(200, seed=1)


@pytest.fixture(scope="module")
def holdout() -> Tensor:
    return fields(300, seed=2)


@pytest.fixture(scope="module")
def fresh() -> Tensor:
    return fields(120, seed=3)


@pytest.fixture(scope="module")
def with_copies(fresh: Tensor, train: Tensor) -> Tensor:
    """Rows 0 to 9 are training images 20 to 29; rows 10 to 19 are 30 to 39, mirrored."""
    pixels = fresh.clone()
    pixels[:10] = train[20:30]
    pixels[10:20] = train[30:40].flip(-1)
    return pixels


@pytest.fixture(scope="module")
def failed(with_copies: Tensor, train: Tensor, holdout: Tensor) -> AuditReport:
    return quiet(with_copies, train, holdout=holdout, max_pairs=50)


@pytest.fixture(scope="module")
def passed(fresh: Tensor, train: Tensor, holdout: Tensor) -> AuditReport:
    return whole(fresh, train, holdout=holdout)


@pytest.fixture(scope="module")
def quietly_passed(fresh: Tensor, train: Tensor, holdout: Tensor) -> AuditReport:
    return quiet(fresh, train, holdout=holdout)


# ---------------------------------------------------------------------------------- calibration


def test_p_values_count_hold_out_scores_that_are_as_low_ties_included() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 50):
        null, scores = rng.integers(0, 9, n) / 3, rng.integers(-1, 10, 40) / 3
        expected = [(1 + sum(h <= s for h in null)) / (n + 1) for s in scores]
        np.testing.assert_array_equal(conformal_p_values(scores, null), expected)


def test_p_values_weigh_hold_out_images_as_their_class_is_frequent() -> None:
    """With whole numbers for weights it is as if images were repeated, the image itself too."""
    rng = np.random.default_rng(1)
    null, scores = rng.uniform(size=30), rng.uniform(size=20)
    often, own = rng.integers(1, 4, 30), rng.integers(1, 4, 20)
    repeated = np.repeat(null, often)
    expected = [
        (o + (repeated <= s).sum()) / (o + len(repeated)) for o, s in zip(own, scores, strict=True)
    ]
    p = conformal_p_values(scores, null, weights=own / 1.0, null_weights=often / 1.0)
    np.testing.assert_allclose(p, expected)


def test_closeness_is_that_by_the_score_in_which_an_image_stands_out() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.5, 1, (1000, 3)) * [1, 10, 0.1]
    scores[7, 1] = 0.5  # a tenth of the least of this score
    values = closeness(scores)
    assert values.argmin() == 7
    unit = np.quantile(scores, TAIL, axis=0)
    np.testing.assert_allclose(values, ((unit / scores) ** 2).sum(axis=1) ** -0.5)
    np.testing.assert_allclose(closeness(scores * [5, 1, 0.01]), values)
    assert closeness(np.zeros((3, 2))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kinds", [1, 3])
def test_p_values_of_exchangeable_images_are_uniform(kinds: int) -> None:
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        shared = rng.standard_normal((20, 1))  # scores of one image depend on each other
        pool = shared + rng.standard_normal((20, kinds))
        values = closeness(np.exp(pool))
        p.append(conformal_p_values(values[:1], values[1:])[0])
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(p) <= level) <= level + 3 * (level * (1 - level) / 400) ** 0.5


def test_q_values_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    for m in (1, 2, 10, 50):
        p = rng.integers(1, 20, m) / 20  # with ties
        np.testing.assert_allclose(q_values(p), false_discovery_control(p), rtol=1e-12)


def test_q_values_never_decrease_with_p_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(4)
    p = rng.uniform(size=60)
    order = rng.permutation(60)
    q = q_values(p)
    assert (np.diff(q[np.argsort(p)]) >= 0).all()
    np.testing.assert_array_equal(q_values(p[order]), q[order])


@pytest.mark.parametrize(("m", "n", "fdr"), [(1000, 200, 0.05), (5000, 10_000, 0.05), (7, 3, 0.3)])
def test_resolution_is_the_smallest_number_of_smallest_p_values_that_is_flagged(
    m: int, n: int, fdr: float
) -> None:
    def flagged(count: int) -> bool:
        p = np.r_[np.full(min(count, m), 1 / (n + 1)), np.ones(m - min(count, m))]
        return (q_values(p) <= ROWS_SHARE * fdr).sum() >= count

    least = resolution(m, n, fdr)
    assert flagged(least) or least > m
    assert least == 1 or not flagged(least - 1)


# ----------------------------------------------------------------------------------- neighbors


def brute_force(xb: Any, xq: Any) -> Any:
    return np.sqrt(((xq[:, None].astype(np.float64) - xb[None]) ** 2).sum(-1))


def test_neighbors_and_their_plain_distances_equal_brute_force() -> None:
    rng = np.random.default_rng(5)
    xb, xq = rng.standard_normal((100, 12), np.float32), rng.standard_normal((30, 12), np.float32)
    D, ids = search(xb, xq, 7)
    expected = brute_force(xb, xq)
    np.testing.assert_array_equal(ids, np.argsort(expected, axis=1)[:, :7])
    np.testing.assert_allclose(D, np.sort(expected, axis=1)[:, :7], rtol=1e-12)


def test_distances_do_not_depend_on_how_many_queries_are_sent_together() -> None:
    rng = np.random.default_rng(6)
    xb = rng.standard_normal((400, 64), np.float32)
    xq = np.concatenate([xb[:500:4] + np.float32(1e-4), rng.standard_normal((900, 64), np.float32)])
    index = Index(xb)
    D, ids = index.search(xq, 10)
    for i in range(0, len(xq), 97):
        D_alone, ids_alone = index.search(xq[i : i + 1], 10)
        np.testing.assert_array_equal(D_alone[0], D[i])
        np.testing.assert_array_equal(ids_alone[0], ids[i])


@pytest.mark.parametrize("displacement", [1e-2, 1e-3, 1e-4, 1e-5])
def test_tiny_displacements_are_measured_within_one_percent(displacement: float) -> None:
    rng = np.random.default_rng(7)
    xb = rng.standard_normal((300, 512), np.float32)
    direction = rng.standard_normal((300, 512))
    direction *= displacement * np.linalg.norm(xb, axis=1, keepdims=True)
    direction /= np.linalg.norm(rng.standard_normal((1, 512)))
    xq = (xb + direction).astype(np.float32)
    D, ids = search(xb, xq, 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(300))
    # The planted displacement itself is rounded to float32.
    planted = np.linalg.norm(xq.astype(np.float64) - xb, axis=1)
    np.testing.assert_allclose(D[:, 0], planted, rtol=1e-12)
    np.testing.assert_allclose(D[:, 0], np.linalg.norm(direction, axis=1), rtol=0.01)


def test_equally_distant_rows_come_in_order_of_their_numbers() -> None:
    xb = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    D, ids = search(xb, xb[5:6], 8)
    np.testing.assert_array_equal(ids[0], [5, 6, 7, 8, 9, 0, 1, 2])
    np.testing.assert_allclose(D[0], [0] * 5 + [2**0.5] * 3)


def test_merged_lists_hold_every_row_once_with_its_smaller_distance() -> None:
    rng = np.random.default_rng(8)
    xb = rng.standard_normal((40, 5), np.float32)
    a, b = rng.standard_normal((2, 25, 5), np.float32)
    lists = [search(xb, x, 10) for x in (a, b)]
    D, ids, column = merge(np.hstack([d for d, _ in lists]), np.hstack([i for _, i in lists]), 10)
    both = np.stack([brute_force(xb, a), brute_force(xb, b)])
    nearest = both.min(axis=0)
    np.testing.assert_array_equal(ids, np.argsort(nearest, axis=1)[:, :10])
    np.testing.assert_allclose(D, np.sort(nearest, axis=1)[:, :10], rtol=1e-12)
    which = np.take_along_axis(both.argmin(axis=0), ids, 1)
    np.testing.assert_array_equal(column >= 10, which == 1)


def clustered(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((30, 16))
    return (centers[rng.integers(0, 30, n)] + 0.4 * rng.standard_normal((n, 16))).astype(np.float32)


@pytest.mark.parametrize("kind", [kind for kind in INDEXES if kind not in ("exact", "auto")])
def test_an_approximate_index_finds_most_neighbors_and_measures_them_exactly(kind: str) -> None:
    xb, xq = clustered(1300, 1), clustered(200, 2)
    xq[:50] = xb[:50]
    index, exact = Index(xb, kind), Index(xb)
    D, ids = index.search(xq, 10)
    np.testing.assert_array_equal(D[:50, 0], 0)
    np.testing.assert_array_equal(ids[:50, 0], np.arange(50))
    direct = np.linalg.norm(xb[ids].astype(np.float64) - xq[:, None], axis=2)
    np.testing.assert_allclose(D, direct, rtol=1e-12)
    true = exact.search(xq, 10)[1]
    shared = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(ids, true, strict=True)])
    assert index.recall(xq, 10) == pytest.approx(shared)
    assert shared > 0.9
    assert exact.recall(xq, 10) == 1


def test_an_index_that_finds_too_few_neighbors_searches_for_these_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    xb, xq = clustered(4000, 1), clustered(20, 2)
    index = Index(xb, "ivf")
    monkeypatch.setattr(index._faiss, "nprobe", 1)
    D, ids = index.search(xq, 1000)
    assert np.isfinite(D).all()
    np.testing.assert_array_equal(ids, Index(xb).search(xq, 1000)[1])


def test_size_alone_makes_an_index_approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthaug._neighbors.LARGE", 500)
    assert Index(clustered(500, 1), "auto").kind == "exact"
    assert Index(clustered(501, 1), "auto").kind == "ivf"


def test_exact_search_runs_on_a_gpu_if_faiss_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    used = []

    def knn_gpu(resources: Any, xq: Any, xb: Any, k: int) -> Any:
        used.append(resources)
        return faiss.knn(xq, xb, k)

    xb, xq = clustered(300, 1), clustered(10, 2)
    expected = search(xb, xq, 5)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "gpu", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    for got, wanted in zip(search(xb, xq, 5), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert used == ["gpu"]


def test_faiss_uses_the_threads_of_torch_and_gets_its_own_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import faiss

    own = faiss.omp_get_max_threads()
    try:
        # Both may share one OpenMP, so torch only says that it is limited.
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        faiss.omp_set_num_threads(2)
        with threads():
            assert faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 2
        used, knn = [], faiss.knn

        def noted(xq: Any, xb: Any, k: int) -> Any:
            used.append(faiss.omp_get_max_threads())
            return knn(xq, xb, k)

        monkeypatch.setattr(faiss, "knn", noted)
        search(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), 1)
        assert used == [1]
    finally:
        faiss.omp_set_num_threads(own)


# ------------------------------------------------------------------------------------- matching


def matcher(train: Tensor, *extractors: features.Extractor, k: int = 6) -> Matcher:
    config = features.ExtractionConfig(batch_size=64)
    return Matcher(train, extractors or (features.Pixel(),), k=k, extraction=config)


def test_the_score_is_the_first_distance_over_the_mean_of_the_next(
    train: Tensor, fresh: Tensor
) -> None:
    spaces = features.Pixel(), features.Pixel(4, standardize=True)
    matches = matcher(train, *spaces).match(fresh[:20])
    for j, space in enumerate(spaces):
        x, y, z = space(train), space(fresh[:20]), space(fresh[:20].flip(-1))
        d = np.minimum(brute_force(x, y), brute_force(x, z))
        nearest = np.sort(d, axis=1)[:, :6]
        ratio = nearest[:, 0] / nearest[:, 1:].mean(1)
        np.testing.assert_allclose(matches.distances[:, j], nearest[:, 0], rtol=1e-9)
        np.testing.assert_allclose(matches.scores[:, j], ratio, rtol=1e-9)
        np.testing.assert_array_equal(matches.neighbors[:, j], d.argmin(axis=1))


def test_the_aligned_distance_is_that_of_the_best_of_all_proposals(
    train: Tensor, fresh: Tensor
) -> None:
    """With few training images all of them are proposed."""
    matches = matcher(train[:9], k=9).match(fresh[:20])
    every = np.tile(np.arange(9), (20, 1))
    distance, flipped = Aligner(train[:9]).distances(fresh[:20], every)
    ordered = np.sort(distance, axis=1)
    np.testing.assert_allclose(matches.distances[:, 1], ordered[:, 0], atol=1e-3)
    ratio = ordered[:, 0] / np.median(ordered[:, 1:], axis=1)
    np.testing.assert_allclose(matches.scores[:, 1], ratio, atol=3e-3)
    np.testing.assert_array_equal(matches.neighbors[:, 1], distance.argmin(axis=1))
    best = distance.argmin(axis=1)
    np.testing.assert_array_equal(matches.flipped[:, 1], flipped[np.arange(20), best])


def test_a_proposal_made_by_several_spaces_is_aligned_once() -> None:
    proposed = np.array([[3, 1, 3, 0, 1], [5, 5, 5, 5, 5], [0, 1, 2, 3, 4]])
    once = _matches.without_repeats(proposed)
    assert [sorted(row[row >= 0]) for row in once] == [[0, 1, 3], [5], [0, 1, 2, 3, 4]]
    assert ((once == proposed) | (once == -1)).all()


def assert_equal_matches(a: Matches, b: Matches) -> None:
    for name in Matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_training_images_and_decoys_are_searched_as_if_they_were_one_set(
    train: Tensor, holdout: Tensor, fresh: Tensor
) -> None:
    pixels = torch.cat([fresh[:40], train[3:5].flip(-1), holdout[7:9]])
    T, H = matcher(train), matcher(holdout)
    alone, both = T.ask(T.compare_pooled(H, pixels))[0]
    assert_equal_matches(alone, T.match(pixels))
    assert_equal_matches(both, matcher(torch.cat([train, holdout])).match(pixels))
    np.testing.assert_array_equal(both.twins[40:], [3, 4, 207, 208])


def test_rmse_is_that_of_the_pixels_as_shown(train: Tensor, fresh: Tensor) -> None:
    rows, flips = np.array([3, 5]), np.array([False, True])
    shown = torch.stack([fresh[0], fresh[1].flip(-1)]).double()
    expected = (shown - train[[3, 5]].double()).square().mean((1, 2, 3)).sqrt()
    np.testing.assert_allclose(rmse(fresh[:2], train, rows, flips), expected, rtol=1e-6)


def test_larger_images_are_searched_and_compared_in_part_too(
    scenes: tuple[Tensor, Tensor, Tensor],
) -> None:
    train, holdout, pixels = scenes[0][:60], scenes[1][:50], scenes[2][:12].clone()
    pixels[:6, :, 5:] = train[20:26, :, 5:]  # a bar covers them
    pixels[6:9] = holdout[7:10].flip(-1)
    pixels[6:9, :, :, :6] = 90
    T, H = matcher(train), matcher(holdout)
    assert T.statistics == ("pixels 16x16", "aligned", "partial", "registered")
    alone, both = T.ask(T.compare_pooled(H, pixels))[0]
    assert_equal_matches(alone, T.match(pixels))
    assert_equal_matches(both, matcher(torch.cat([train, holdout])).match(pixels))
    np.testing.assert_array_equal(both.neighbors[:9, 2], [*range(20, 26), 67, 68, 69])
    np.testing.assert_array_equal(both.flipped[:9, 2], [False] * 6 + [True] * 3)
    assert (both.scores[:9, 2] < 0.2).all()
    assert set(T.recall(pixels)) == {
        "pixels 16x16",
        "pixels 8x8, standardized",
        "pixels 8x8, standardized, middle",
        "spectrum",
        *(f"pixels 4x4, standardized, {half} half" for half in ("left", "right", "upper", "lower")),
    }


def test_every_pixel_decides_which_images_are_equal_but_for_rounding() -> None:
    """Images are skipped by some of their pixels, but none that the others leave close enough."""
    rng = np.random.default_rng(0)
    train = torch.from_numpy(rng.integers(60, 200, (40, 3, 12, 12), dtype=np.uint8))
    # Differences of 1.5 to 2.5, everywhere, in a block, or at the very pixels looked at first.
    places = torch.zeros(3, 12, 12, dtype=torch.bool, device="cpu")
    places[0], places[1, :5, :5], places[2, ::4, ::4] = True, True, True
    rms = torch.linspace(1.5, 2.5, 40, dtype=torch.float64, device="cpu")
    signs = torch.from_numpy(rng.choice([-1, 1], (40, 3, 12, 12)))
    mask = places[torch.arange(40) % 3][:, None].double()
    size = rms[:, None, None, None] * (144 / mask.sum((2, 3), keepdim=True)).sqrt()
    pixels = (train + signs * mask * size).round().clamp(0, 255).to(torch.uint8)
    pixels[20:] = pixels[20:].flip(-1)
    rows, flips = np.arange(40), np.arange(40) >= 20
    equal = rmse(pixels, train, rows, flips) <= NEAR_RMSE
    assert 8 < equal.sum() < 32
    np.testing.assert_array_equal(matcher(train, k=5).match(pixels).twins >= 0, equal)


def test_repeating_training_images_changes_no_score(train: Tensor, fresh: Tensor) -> None:
    once, twice = (matcher(t).match(fresh) for t in (train, torch.cat([train, train])))
    np.testing.assert_array_equal(once.scores, twice.scores)
    np.testing.assert_array_equal(once.neighbors, twice.neighbors)


def test_far_away_training_images_beyond_k_change_no_ratio(train: Tensor, fresh: Tensor) -> None:
    black = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    near, more = (matcher(t, k=4).match(fresh) for t in (train, torch.cat([train, black])))
    np.testing.assert_array_equal(near.scores[:, 0], more.scores[:, 0])


def test_nothing_depends_on_the_batch_size(train: Tensor, fresh: Tensor) -> None:
    one, many = (
        Matcher(
            train, [features.Pixel(4)], k=6, extraction=features.ExtractionConfig(batch_size=size)
        ).match(fresh[:30])
        for size in (1, 100)
    )
    np.testing.assert_array_equal(one.scores, many.scores)


def test_equal_pixels_are_found_even_if_the_features_do_not_see_them(train: Tensor) -> None:
    class Blind:
        name, dim = "blind", 2

        def __call__(self, pixels: Tensor) -> Any:  # the same for all images
            return np.zeros((len(pixels), 2), np.float32)

    matches = matcher(train, Blind(), k=3).match(train[[7, 4]].flip(-1))
    np.testing.assert_array_equal(matches.twins, [7, 4])
    assert matches.twin_flipped.all()
    np.testing.assert_array_equal(matches.scores[:, 0], 0)


def test_pixels_that_differ_by_rounding_make_a_twin(train: Tensor) -> None:
    near, far = train[:5].clone(), train[:5].clone()
    near[:, 0, ::2] ^= 1
    far[:, 0, ::2] ^= 64
    matches = matcher(train).match(torch.cat([near, far, near.flip(-1)]))
    np.testing.assert_array_equal(matches.twins, [*range(5), *[-1] * 5, *range(5)])
    np.testing.assert_array_equal(
        matches.twin_flipped[[*range(5), *range(10, 15)]], [0] * 5 + [1] * 5
    )


def test_images_that_alignment_makes_equal_are_twins_and_smooth_gradients_are_not() -> None:
    train = fields(60, seed=50, c=3, size=32)
    ramp = torch.linspace(0, 120, 32)[None, None, :, None].expand(3, 3, 32, 32)
    slopes = torch.tensor([1.0, 1.1, 1.2])[:, None, None, None]
    ramps = (ramp * slopes).round().to(torch.uint8)
    brighter = (train[:5].float() * 0.7 + 60).round().to(torch.uint8)
    moved = F.pad(train[5:10].float(), (0, 3, 2, 0), mode="replicate")[..., :32, 3:]
    T = torch.cat([train, ramps, ramps.flip(2), (ramps.float() * 0.9 + 7).to(torch.uint8)])
    steeper = (ramp[:1] * 1.33 + 9).round().to(torch.uint8)
    shown = torch.cat(
        [brighter, moved.flip(-1).to(torch.uint8), steeper, fields(5, seed=51, c=3, size=32)]
    )
    matches = matcher(T).match(shown)
    np.testing.assert_array_equal(matches.twins, [*range(10), *[-1] * 6])
    np.testing.assert_array_equal(matches.twin_flipped[:10], [False] * 5 + [True] * 5)
    assert matches.distances[10, 1] < 0.03


# -------------------------------------------------------------------------------------- verdicts


def test_exact_and_mirrored_copies_are_all_flagged_and_traced_to_their_originals(
    failed: AuditReport,
) -> None:
    assert failed.verdict == "fail"
    assert failed.exit_code == 1
    np.testing.assert_array_equal(failed.flagged[:20], np.arange(20))
    assert len(failed.flagged) <= 22, "a false discovery rate of 0.05 allows one of 21"
    assert (failed.tier[:20] == 1).all()
    np.testing.assert_array_equal(failed.neighbors[:20], np.arange(20, 40))
    np.testing.assert_array_equal(failed.neighbor_flipped[:20], [False] * 10 + [True] * 10)
    np.testing.assert_array_equal(failed.rmse[:20], 0)
    np.testing.assert_array_equal(failed.scores[:20, 0], 0)
    assert (failed.scores[:20, 1:] < 0.03).all()


def test_rows_that_may_be_served_are_exactly_those_not_withheld(failed: AuditReport) -> None:
    np.testing.assert_array_equal(np.flatnonzero(~failed.passed), failed.withheld)
    assert set(failed.flagged) <= set(failed.withheld)


def test_images_that_copy_nothing_pass_and_the_report_says_at_which_power(
    passed: AuditReport,
) -> None:
    assert passed.verdict == "pass"
    assert passed.exit_code == 0
    assert len(passed.flagged) == 0
    served = 120 - len(passed.withheld)
    assert served >= 118, "one in a hundred of such images resembles another by chance"
    assert (
        f"No sign of copies among {served} images. Power: this audit detects" in passed.reasons[0]
    )
    power = {p.kind: p for p in passed.power}
    for kind in ("unchanged", "mirrored"):
        assert power[kind].required
        assert power[kind].power == 1
        assert power[kind].found == 1
        assert power[kind].noticed == 1
    least = passed.settings["resolution"]
    assert isinstance(least, int)
    assert all(p.needed is None or p.needed >= least for p in passed.power)


def test_no_report_claims_privacy(passed: AuditReport, failed: AuditReport, tmp_path: Path) -> None:
    for i, report in enumerate((passed, failed)):
        report.to_html(tmp_path / f"{i}.html")
        text = repr(report) + (tmp_path / f"{i}.html").read_text()
        text = text.replace("not a privacy guarantee", "")
        assert not re.search(r"privat|privacy|anonym", text, re.IGNORECASE)


def noisy(pixels: Tensor, sigma: float = 8) -> Tensor:
    noise = np.random.default_rng(9).normal(0, sigma, tuple(pixels.shape))
    return (pixels + torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)


def test_noisy_copies_are_flagged_by_their_rank_among_the_hold_out(
    fresh: Tensor, train: Tensor, holdout: Tensor
) -> None:
    pixels = torch.cat([noisy(train[50:80]), fresh])
    report = quiet(pixels, train, holdout=holdout)
    np.testing.assert_array_equal(report.flagged[:30], np.arange(30))
    assert (report.tier[:30] == 2).all()
    assert (report.q_values[report.tier == 2] <= 0.05).all()
    np.testing.assert_array_equal(report.neighbors[:30], np.arange(50, 80))


def test_p_values_of_the_report_follow_from_its_scores(failed: AuditReport) -> None:
    """Those of rows that resemble no training image; the hold-out holds no group and no twin."""
    null, m = failed.holdout_scores, len(failed)
    rest = (failed.scores[:, -1] > _matches.ALIKE) & (failed.tier != 1)
    assert (null[:, -1] > _matches.ALIKE).all()

    def p_values(rows: Any) -> Any:
        values = closeness(np.concatenate([failed.scores[rows], null]))
        return conformal_p_values(values[: rows.sum()], values[rows.sum() :])

    everything, clean = p_values(np.ones(m, bool)), p_values(rest)
    np.testing.assert_allclose(failed.p_values[rest], clean)
    np.testing.assert_allclose(failed.p_values[~rest], everything[~rest])
    q = false_discovery_control(everything) / ROWS_SHARE
    q[rest] = np.minimum(q[rest], false_discovery_control(clean) / ROWS_SHARE)
    np.testing.assert_allclose(failed.q_values, np.minimum(q, 1))
    single = [conformal_p_values(failed.scores[:, j], null[:, j]) for j in range(null.shape[1])]
    np.testing.assert_array_equal(failed.decided_by[rest], np.argmin(single, axis=0)[rest])


def test_fresh_images_audited_as_synthetic_are_flagged_at_no_more_than_the_nominal_rate() -> None:
    """Over many random splits of one pool; 80 splits at a level of 0.2 give 16 or fewer."""
    pool = fields(400, seed=10)
    matched = matcher(pool[:100], k=10).match(pool[100:])
    assert not matched.near_equal.any()
    any_flagged = 0.0
    for seed in range(80):
        order = np.random.default_rng(seed).permutation(300)
        scores = closeness(matched.scores)[order]
        any_flagged += bool((q_values(conformal_p_values(scores[:30], scores[30:])) <= 0.2).any())
    assert any_flagged / 80 <= 0.2 + 3 * (0.2 * 0.8 / 80) ** 0.5


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor, Tensor]:
    """Training, hold-out and fresh images of 16 x 16 pixels, in color."""
    return fields(100, 41, 3, 16), fields(200, 42, 3, 16), fields(60, 43, 3, 16)


def test_copies_too_few_to_be_flagged_are_noticed_and_withheld(
    scenes: tuple[Tensor, Tensor, Tensor],
) -> None:
    train, holdout, fresh = scenes
    copies = (255 * (train[:5] / 255) ** 1.4).round().to(torch.uint8).roll(1, -1)
    report = quiet(torch.cat([copies, fresh]), train, holdout=holdout)
    assert report.verdict == "inconclusive"
    assert len(report.flagged) == 0
    least = report.settings["resolution"]
    assert isinstance(least, int)
    assert least > 5
    assert set(range(5)) <= set(report.withheld.tolist())
    assert {pair["row"] for pair in report.pairs[:5]} == set(range(5))
    assert "Without copies, at most 1% of audits" in report.reasons[0]
    assert "expected" in report.reasons[0]


def test_one_equal_image_is_to_be_looked_at_and_more_are_a_failure(
    scenes: tuple[Tensor, Tensor, Tensor],
) -> None:
    train, holdout, fresh = scenes
    one = quiet(torch.cat([train[:1], fresh]), train, holdout=holdout)
    assert one.verdict == "inconclusive"
    assert one.flagged.tolist() == [0]
    assert one.reasons[0] == (
        "1 of 61 images equals a training image pixel by pixel. It is withheld."
    )
    assert "Look at the pairs" in one.reasons[1]
    assert quiet(torch.cat([train[:5], fresh]), train, holdout=holdout).verdict == "fail"


def test_blank_frames_are_served_if_held_out_images_are_blank_as_often(
    scenes: tuple[Tensor, Tensor, Tensor],
) -> None:
    def with_blanks(pixels: Tensor, share: float) -> Tensor:
        blank, count = pixels.clone(), round(share * len(pixels))
        blank[:count] = 7
        blank[:count:2, 0] = 8  # not all of them are equal
        return blank

    train, holdout, fresh = (with_blanks(x, 0.1) for x in scenes)
    report = quiet(fresh, train, holdout=holdout, deduplicate=True)
    assert report.settings["holdout_dropped"] == 20
    assert report.verdict == "pass"
    assert (report.tier[:6] == 0).all(), "the data hold blank frames as often"
    # But not if the hold-out has none: then they are equal images like any others.
    report = quiet(fresh, train, holdout=scenes[1])
    assert (report.tier[:6] == 1).all()
    assert report.verdict == "inconclusive"


def test_near_duplicates_of_training_images_are_withheld_and_left_out_of_a_pass(
    scenes: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Both sides hold them, as real data do: then they are no sign of copying."""
    train, holdout = (x.clone() for x in scenes[:2])
    fresh = torch.cat([scenes[2], fields(40, 45, 3, 16)])
    angle = torch.tensor(0.12)
    turn = torch.stack([angle.cos(), -angle.sin(), angle * 0, angle.sin(), angle.cos(), angle * 0])
    grid = F.affine_grid(turn.view(1, 2, 3).expand(19, 2, 3), [19, 3, 16, 16], align_corners=False)
    # Of training images and, as these are twice as many, twice as often of held-out ones.
    originals = torch.cat([train[:13], holdout[20:26]]).float()
    twins = F.grid_sample(originals, grid, padding_mode="border", align_corners=False)
    holdout[:10], fresh[:9] = twins[:10].to(torch.uint8), twins[10:].to(torch.uint8)
    holdout = torch.cat([holdout, fields(300, 44, 3, 16)])
    report = quiet(fresh, train, holdout=holdout)
    assert report.verdict == "pass"
    assert {0, 1, 2} <= set(report.withheld.tolist())
    assert (report.tier[:3] == 5).all()
    assert len(report.flagged) == 0
    assert "this verdict does not cover them" in " ".join(report.reasons)


def test_a_pass_is_out_of_reach_where_a_tenth_of_the_images_could_be_copies_unnoticed() -> None:
    """Of 60 images, 5 JPEG copies beside 60 held-out ones are chance with p = .03 at best."""
    train, holdout, fresh = fields(200, 1), fields(60, 2), fields(60, 3)
    for k in range(5):
        fresh[k] = decode_image(encode_jpeg(train[k], quality=60))
    report = quiet(fresh, train, holdout=holdout)
    assert set(report.withheld.tolist()) >= set(range(5))
    assert report.verdict == "inconclusive"
    assert "Hold out at least 94 distinct images" in " ".join(report.reasons)


def test_more_near_duplicates_than_the_hold_out_explains_are_no_pass() -> None:
    """Only their number is unusual: each has a training image that is like it, and none is near
    enough to be flagged."""
    some = replace(NOTHING, alike=9, alike_p=0.0004, withheld=9)
    common: dict[str, Any] = {"power": [seen()], "missing": (), "fdr": 0.05, "level": 0.01}
    verdict, reasons = judge(some, COUNTS, **common)
    assert verdict == "inconclusive"
    assert reasons[0].startswith("9 of 100 images (9.0%) resemble a training image")
    verdict, reasons = judge(replace(some, alike_p=0.03), COUNTS, **common)
    assert verdict == "pass"
    assert "held-out real images, 0.0% do (p = 0.03). They are withheld" in " ".join(reasons)


def test_shares_are_compared_within_classes() -> None:
    """A class that repeats itself, and that synthetic images have more of, is no sign of copies."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        of_class = np.array([40, 160]), np.array([160, 40])  # synthetic and held-out images
        strata = np.concatenate([np.repeat([0, 1], counts) for counts in of_class])
        some = rng.random(400) < np.where(strata == 1, 0.3, 0.02)
        p_values.append(share_pool(strata).share_test(some[:200], some[200:]).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    some = rng.random(400) < np.where(np.arange(400) < 200, 0.2, 0.02)
    test = share_pool(np.zeros(400, np.int64)).share_test(some[:200], some[200:])
    peer = fisher_exact(
        [[k := some[:200].sum(), 200 - k], [h := some[200:].sum(), 200 - h]], alternative="greater"
    )
    assert test.p_value == pytest.approx(peer.pvalue, rel=1e-9)
    assert (test.total, test.count) == (k + h, k)


def share_pool(strata: np.ndarray, num_synthetic: int = 200) -> AuditPool:
    """Images of which none resembles another, without scores."""
    empty: Any = SimpleNamespace(twins=np.zeros(num_synthetic))
    none = np.zeros(0, np.int64)
    group = np.arange(len(strata))
    return AuditPool(
        rows=empty, null=empty, strata=strata, group=group, dropped=none, dropped_strata=none
    )


def test_without_a_hold_out_the_verdict_is_at_best_inconclusive(
    fresh: Tensor, with_copies: Tensor, train: Tensor
) -> None:
    report = quiet(fresh, train)
    assert report.verdict == "inconclusive"
    assert report.exit_code == 3
    assert "Give a hold-out" in " ".join(report.reasons)
    assert np.isnan(report.p_values).all()
    assert len(report.flagged) == 0
    np.testing.assert_array_equal(quiet(with_copies, train).flagged, np.arange(20))


def test_a_hold_out_too_small_for_the_task_is_inconclusive_and_says_what_to_do(
    fresh: Tensor, train: Tensor, holdout: Tensor
) -> None:
    report = quiet(fresh, train, holdout=holdout[:8])
    assert report.verdict == "inconclusive"
    assert "Hold out at least " in " ".join(report.reasons)
    assert "could be chance if 12 copies came closer" in " ".join(report.reasons)
    assert quiet(fresh, train, holdout=holdout[:95]).verdict == "pass"


def test_the_order_of_rows_changes_nothing_but_the_order(
    with_copies: Tensor, train: Tensor, holdout: Tensor, failed: AuditReport
) -> None:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(with_copies)))
    shuffled = quiet(with_copies[order], train, holdout=holdout.flip(0))
    np.testing.assert_array_equal(shuffled.scores, failed.scores[order.numpy()])
    np.testing.assert_array_equal(shuffled.q_values, failed.q_values[order.numpy()])
    np.testing.assert_array_equal(shuffled.tier, failed.tier[order.numpy()])


def test_audits_repeat_exactly(
    quietly_passed: AuditReport, fresh: Tensor, train: Tensor, holdout: Tensor
) -> None:
    again = quiet(fresh, train, holdout=holdout)
    assert again.power == quietly_passed.power
    assert again.set_test == quietly_passed.set_test
    np.testing.assert_array_equal(again.p_values, quietly_passed.p_values)


def test_one_row_is_audited_like_any_other(train: Tensor, holdout: Tensor) -> None:
    assert quiet(train[:1], train, holdout=holdout).verdict == "fail"
    report = quiet(fields(1, seed=78), train, holdout=holdout)
    assert report.verdict == ("fail" if report.p_values[0] <= 0.05 else "pass")


PATTERNS = fields(6, seed=20).float()
KIND = np.random.default_rng(0).integers(0, 6, 700)


def scattered(rows: slice, share: float, seed: int) -> Tensor:
    """Images around six patterns, closer to these with a smaller share of their own."""
    own = fields(len(KIND[rows]), seed=seed).float()
    return ((1 - share) * PATTERNS[KIND[rows]] + share * own).round().to(torch.uint8)


def test_images_that_are_closer_to_everything_raise_no_alarm_and_copies_among_them_do() -> None:
    """Real images scatter around six patterns; synthetic ones are the patterns, nearly."""
    train, holdout = scattered(slice(200), 0.5, 21), scattered(slice(200, 500), 0.5, 22)
    typical = scattered(slice(500, 700), 0.05, 23)
    report = quiet(typical, train, holdout=holdout)
    assert len(report.flagged) == 0
    assert report.competition["clusters"] == 6, "one for each pattern"

    typical[:60] = noisy(train[:60])
    report = quiet(typical, train, holdout=holdout)
    assert report.verdict == "fail"
    np.testing.assert_array_equal(report.flagged, np.arange(60))
    assert (report.q_decoy[:60] <= 0.05).mean() > 0.9
    assert (report.q_decoy[60:] <= 0.05).mean() < 0.1


def test_where_all_images_are_drawn_to_training_images_competition_decides() -> None:
    train, holdout = scattered(slice(200), 0.5, 21), scattered(slice(200, 500), 0.5, 22)

    def drawn(share: float) -> AuditReport:
        """Audits images between their pattern and a training image."""
        pixels = share * train.float() + (1 - share) * PATTERNS[KIND[:200]]
        return quiet(pixels.round().to(torch.uint8), train, holdout=holdout)

    report = drawn(0.7)
    assert report.shift["shifted"]
    assert report.verdict == "fail"
    assert "by target-decoy competition" in report.reasons[0]
    np.testing.assert_array_equal(
        report.passed, ~((report.q_values <= 0.05) | (report.q_decoy <= 0.05))
    )
    # Farther away none stands out, but together they give the generator away.
    report = drawn(0.5)
    assert len(report.flagged) == 0
    assert report.verdict == "inconclusive"
    assert "more often than chance and a few copies explain" in report.reasons[1]


@pytest.mark.parametrize(
    ("rows", "least"),
    [(1, 1), (4, 1), (11, 2), (100, 10), (240, 24), (1000, 25), (1251, 26), (5000, 100)],
)
def test_a_pass_needs_sight_of_25_copies_or_2_percent_but_never_of_more_than_a_tenth(
    rows: int, least: int
) -> None:
    assert visible(rows) == least


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "pass"),
        ({"exact": 1}, "inconclusive"),
        ({"exact": 3, "copied": True}, "fail"),
        ({"exact": 3, "copied": True, "shifted": True}, "fail"),
        ({"calibrated": 9}, "fail"),
        ({"calibrated": 9, "shifted": True}, "inconclusive"),
        ({"calibrated": 9, "competed": 9, "shifted": True}, "fail"),
        ({"competed": 9}, "pass"),
        ({"shifted": True}, "pass"),
        ({"alike": 7}, "pass"),
        ({"named": (2, 5, 70), "excess": (4, 5, 1.0)}, "inconclusive"),
        ({"named": (2, 5, 70), "excess": (4, 5, 1.0), "calibrated": 9}, "fail"),
    ],
)
def test_a_shift_decides_which_evidence_counts(change: dict[str, Any], verdict: str) -> None:
    findings = replace(NOTHING, **change)
    result, reasons = judge(findings, COUNTS, power=[seen()], missing=(), fdr=0.05, level=0.01)
    assert result == verdict
    assert len(reasons) >= 1
    if change.get("alike"):
        assert "among 93 images" in reasons[0]
        assert "7 of 100 images (7.0%) resemble a training image" in reasons[1]
        assert "of the held-out real images, 0.0% do" in reasons[1]
    if change.get("named"):
        look = "Look at rows 2, 5, 70. They are withheld, and shown first."
        if change.get("calibrated"):  # the page shows flagged rows before them
            look = (
                "Beside the flagged rows, look at rows 2, 5, 70. They are withheld, and shown aft"
            )
        assert look in " ".join(reasons)
    assert "detects 3 copies or more of training images" in " ".join(reasons), "its power"
    assert "of trials, of each required kind." in " ".join(reasons), "none is the hardest"
    harder = [seen(), seen("hard", noticed=4)]
    told_of = judge(findings, COUNTS, power=harder, missing=(), fdr=0.05, level=0.01)[1]
    assert "even of the required kind that is hardest to detect (hard)." in " ".join(told_of)
    assert "only if at least 4 are suspicious; fewer" in " ".join(reasons)


def test_kinds_that_are_noticed_too_late_are_told_number_by_number() -> None:
    late = [seen("a", noticed=50), seen("b", noticed=None), seen("c", noticed=50), seen("d")]
    verdict, reasons = judge(NOTHING, COUNTS, power=late, missing=(), fdr=0.05, level=0.01)
    told = (
        "It takes at least 50 copies of one of these kinds: a, c. "
        f"Even {late[1].planted:,} copies of these kinds would go unseen too often: b."
    )
    assert verdict == "inconclusive"
    assert told in " ".join(reasons)


@pytest.mark.parametrize(
    ("change", "opening"),
    [
        ({"exact": 10, "identical": 10}, "10 of 100 images equal a training image pixel by pixel."),
        ({"exact": 3, "identical": 2}, "3 of 100 images equal a training image pixel by pixel, or"),
        ({"exact": 1, "copied": True}, "1 of 100 images equals a training image pixel by pixel"),
        ({"calibrated": 9, "shifted": True}, "9 of 100 images come closer to a training image"),
    ],
)
def test_a_verdict_is_followed_by_what_was_found(change: dict[str, Any], opening: str) -> None:
    findings = replace(NOTHING, withheld=12, fewest_copies=1, **change)
    verdict, reasons = judge(
        findings, COUNTS, power=[seen()], missing=("drawn",), fdr=0.05, level=0.01
    )
    text = told(verdict, reasons)
    assert text.startswith(f"Verdict: {verdict}. {opening}")
    assert text.splitlines()[0].endswith("withheld.")
    assert "1 synthetic class has no held-out images: 'drawn'." in text
    assert "detects 3 copies or more of training images" in text
    assert len(text.split()) < 150


def test_progress_moves_while_copies_are_judged_and_ends_at_its_total(
    monkeypatch: pytest.MonkeyPatch, scenes: tuple[Tensor, Tensor, Tensor]
) -> None:
    bars = []

    class Noted(progress.Lines):
        def update(self, n: int = 1) -> None:
            super().update(n)
            counts.append((self.desc, self.n))

    def noted(total: int, desc: str, unit: str, **_: Any) -> progress.Lines:
        bars.append(Noted(total, desc, unit))
        return bars[-1]

    counts: list[tuple[str, int]] = []
    monkeypatch.setattr("synthaug._audit.comparison.bar", noted)
    monkeypatch.setattr("synthaug._audit.matching._REGISTERED_AT_ONCE", 64 * 16 * 16)
    train, holdout, fresh = scenes
    quiet(fresh[:20], train[:20], holdout=holdout[[0, 0, *range(10)]])
    (shown,) = bars
    assert shown.n == shown.total
    planted = [n for desc, n in counts if desc.endswith("planted copies")]
    assert len(planted) >= 3
    assert np.diff(planted).max() <= 64


def test_a_verdict_says_how_many_copies_there_are_at_least() -> None:
    findings = replace(NOTHING, calibrated=9, withheld=12, fewest_copies=5)
    reasons = judge(findings, COUNTS, power=[seen()], missing=(), fdr=0.05, level=0.01)[1]
    assert "At least 5 of the 12 withheld rows are copies" in " ".join(reasons)
    assert "one by one" not in " ".join(reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"counts": replace(COUNTS, holdout=0)}, "Give a hold-out"),
        ({"findings": replace(NOTHING, leaning=True)}, "a few copies explain"),
        ({"missing": ("cat", "dog")}, "2 synthetic classes have no held-out images: 'cat', for"),
        (
            {
                "findings": replace(NOTHING, shifted=True),
                "counts": replace(COUNTS, competition_resolution=26),
            },
            "26 clusters",
        ),
        ({"power": [seen(noticed=26)]}, "It takes at least 26 copies of one of these kinds: k."),
        ({"power": [seen(noticed=None)]}, "Even 25 copies of these kinds would go unseen"),
    ],
)
def test_every_doubt_makes_the_verdict_inconclusive(change: dict[str, Any], reason: str) -> None:
    arguments: dict[str, Any] = {
        "findings": NOTHING,
        "counts": COUNTS,
        "power": [seen(noticed=10)],
        "missing": (),
        "fdr": 0.05,
        "level": 0.01,
    }
    assert judge(**arguments)[0] == "pass"
    verdict, reasons = judge(**(arguments | change))
    assert verdict == "inconclusive"
    assert reason in " ".join(reasons)


def test_a_fresh_set_is_not_called_shifted_and_matches_both_sides_in_proportion(
    passed: AuditReport,
) -> None:
    assert not passed.shift["shifted"]
    assert not passed.competition["leaning"]
    assert passed.competition["expected_share"] == 0.4
    share = passed.competition["share_p_value"]
    assert isinstance(share, float)
    assert share > 0.001


def test_images_are_linked_if_they_are_closer_than_the_limits_of_both() -> None:
    pixels = torch.tensor([0, 10, 100, 200], dtype=torch.uint8)[:, None, None, None]
    pixels = pixels.expand(4, 1, 2, 2).contiguous()
    few = features.ExtractionConfig(batch_size=2)
    links = linked(pixels, features.Pixel(), np.array([10.5, 20, 25, 25]), few)
    assert sorted(map(tuple, links.tolist())) == [(0, 1), (1, 0)]
    links = linked(pixels, features.Pixel(), np.array([9.5, 20, 25, 25]), few)
    assert len(links) == 0


@pytest.mark.parametrize("c", [1, 3])
def test_every_disturbance_keeps_shape_and_type_and_all_but_one_change_something(c: int) -> None:
    pixels = fields(5, c=c, size=16)
    names = set()
    for kind in disturbances(16):
        names.add(kind.name)
        changed = kind.apply(pixels, 0)
        assert changed.shape == pixels.shape
        assert changed.dtype == torch.uint8
        assert torch.equal(changed, pixels) == (kind.name == "unchanged")
        assert torch.equal(kind.apply(pixels, 0), changed)
        if kind.name not in ("unchanged", "mirrored"):
            assert not torch.equal(kind.apply(pixels, 1), changed)
        np.testing.assert_array_equal(kind.apply(pixels[:2], 0), changed[:2])
    assert len(names) == 19
    required = [{kind.name for kind in disturbances(side) if kind.required} for side in (8, 16)]
    assert required[1] - required[0] == {"shift by up to an eighth"}


# ----------------------------------------------------------------------------------- descriptive


def test_a_training_image_is_isolated_from_the_others_and_not_from_itself(train: Tensor) -> None:
    x = features.Pixel()(train)
    d = brute_force(x, x)
    np.fill_diagonal(d, np.inf)
    rows = np.array([5, 0, 5, 199])
    T = matcher(train)
    isolation = T.ask(T.isolation(rows))[0]
    np.testing.assert_allclose(isolation, d.min(axis=1)[rows], rtol=1e-9)


def test_mann_whitney_z_agrees_with_scipy_and_is_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, 60) / 1.0, rng.integers(3, 23, 40) / 1.0
    expected = mannwhitneyu(x, y, method="asymptotic", use_continuity=False, alternative="less")
    assert norm.cdf(mann_whitney_z(x, y)) == pytest.approx(expected.pvalue, rel=1e-9)
    assert mann_whitney_z(x, y) == pytest.approx(-mann_whitney_z(y, x))
    assert mann_whitney_z(x, x) == pytest.approx(0)
    assert mann_whitney_z(np.ones(3), np.ones(4)) == 0


def test_numbers_from_the_literature_stand_beside_those_of_the_hold_out(
    train: Tensor, holdout: Tensor, passed: AuditReport
) -> None:
    copies = {d["name"]: d for d in quiet(train, train, holdout=holdout).descriptive}
    assert copies["authentic share"]["synthetic"] == 0
    assert copies["ratio below 0.5"]["synthetic"] == 1
    assert copies["correlation above 0.95"]["synthetic"] == 1
    z = copies["C_T, one cell"]["synthetic"]
    assert isinstance(z, float)
    assert z < -15
    for record in passed.descriptive[:3]:
        a, b = record["synthetic"], record["holdout"]
        assert isinstance(a, float)
        assert isinstance(b, float)
        assert abs(a - b) < 0.2


def test_the_smallest_effect_is_that_of_the_hardest_required_kind(passed: AuditReport) -> None:
    needed = {p.kind: p.noticed for p in passed.power if p.required}
    assert passed.smallest_effect == max(n for n in needed.values() if n is not None)
    never = [replace(p, noticed=None) for p in passed.power]
    assert replace(passed, power=tuple(never)).smallest_effect is None


def test_the_counterpart_of_a_pair_is_the_closest_hold_out_image(
    passed: AuditReport, fresh: Tensor, holdout: Tensor
) -> None:
    closest = matcher(holdout, k=14).match(fresh)
    for pair in passed.pairs[:10]:
        row, j = pair["row"], passed.statistics.index(str(pair["statistic"]))
        assert isinstance(row, int)
        assert pair["holdout_row"] == closest.neighbors[row, j]
        assert pair["holdout_distance"] == pytest.approx(closest.distances[row, j], rel=1e-6)


def test_flagged_copies_of_given_training_images_are_listed(failed: AuditReport) -> None:
    np.testing.assert_array_equal(failed.copies_of([25, 31, 150]), [5, 11])
    assert len(failed.copies_of([])) == 0


# ---------------------------------------------------------------------------------------- inputs


class Labeled(Dataset):
    """A map-style data set with classes."""

    def __init__(self, pixels: Tensor, classes: Any = ("cat", "dog")) -> None:
        self.pixels, self.classes = pixels, list(classes)
        self.targets = [i % len(classes) for i in range(len(pixels))]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], self.targets[index]


class Cache(Labeled):
    """What the audit needs of a cache."""

    identity = {"plan_digest": "0" * 32, "weights": {}, "rows": 30}  # noqa: RUF012

    def __init__(self, pixels: Tensor, done: Any) -> None:
        super().__init__(pixels)
        self.done = done
        self.labels = np.array(self.targets)

    def read(self, indices: Any) -> Tensor:
        assert self.done[indices].all(), "only finished rows may be read"
        return self.pixels[torch.as_tensor(indices)]


def test_rows_of_a_cache_that_are_not_done_are_neither_judged_nor_served(
    train: Tensor, holdout: Tensor
) -> None:
    done = np.arange(30) % 3 > 0
    pixels = fields(30, seed=5)
    pixels[4] = train[11]  # done
    pixels[3] = train[11]  # not done
    report = quiet(Cache(pixels, done), train, holdout=holdout)
    np.testing.assert_array_equal(report.tier == -1, ~done)
    np.testing.assert_array_equal(report.flagged, [4])
    assert not report.passed[~done].any()
    assert np.isnan(report.scores[~done]).all()
    assert (report.neighbors[~done] == -1).all()
    assert report.identity == Cache.identity
    assert len(report) == 30
    assert "10 of 30 rows" in report.reasons[-1]


def test_data_sets_and_bare_pixels_give_the_same_report_and_arrays_too(
    fresh: Tensor, train: Tensor, holdout: Tensor, passed: AuditReport
) -> None:
    report = quiet(Labeled(fresh), Labeled(train), holdout=holdout.numpy())
    np.testing.assert_array_equal(report.p_values, passed.p_values)
    assert report.classes == ("cat", "dog")
    assert {pair["class"] for pair in report.pairs} == {"cat", "dog"}


def test_a_copy_of_an_image_of_another_class_is_traced_to_it(
    fresh: Tensor, train: Tensor, holdout: Tensor
) -> None:
    pixels = fresh.clone()
    pixels[0] = train[5]  # row 0 is a cat, training image 5 a dog
    pair = quiet(Labeled(pixels), Labeled(train), holdout=holdout).pairs[0]
    assert (pair["row"], pair["class"]) == (0, "cat")
    assert (pair["train_row"], pair["train_class"]) == (5, "dog")


def test_a_hold_out_that_overlaps_the_training_images_is_refused_or_cleaned(
    fresh: Tensor, train: Tensor, holdout: Tensor
) -> None:
    leaky = torch.cat([holdout, train[3:6]])
    with pytest.raises(ValueError, match=r"3 of the 303 images in `holdout` are also in `train`"):
        quiet(fresh, train, holdout=leaky)
    report = quiet(fresh, train, holdout=leaky, deduplicate=True)
    assert report.settings["holdout_dropped"] == 3
    assert len(report.holdout_scores) == 300
    with pytest.raises(ValueError, match="nothing is held out"):
        quiet(fresh, train, holdout=train, deduplicate=True)


def test_hold_out_images_nearly_equal_to_training_images_are_set_aside_and_mentioned(
    fresh: Tensor, train: Tensor, holdout: Tensor, quietly_passed: AuditReport
) -> None:
    near = train[:5].clone()
    near[:, 0, 0, 0] ^= 1  # one gray level in one pixel
    report = quiet(fresh, train, holdout=torch.cat([holdout, near]))
    assert report.settings["holdout_near_equal"] == 5
    assert "5 of 305 held-out real images" in report.reasons[-1]
    rest = quietly_passed.tier != 5
    np.testing.assert_array_equal(report.p_values[rest], quietly_passed.p_values[rest])
    resembling = report.settings["holdout_resembling"]
    assert isinstance(resembling, int)
    assert resembling >= 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"synthetic": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)},
            ValueError,
            "`synthetic` holds no",
        ),
        (
            {"train": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)},
            ValueError,
            "`train` holds no image",
        ),
        ({"synthetic": torch.zeros(3, 1, 8, 8)}, TypeError, "dtype float32 and shape"),
        ({"synthetic": torch.zeros(3, 8, 8, dtype=torch.uint8)}, ValueError, r"shape \(3, 8, 8\)"),
        ({"synthetic": fields(3, c=3)}, ValueError, r"`train` of shape \(1, 8, 8\)"),
        ({"holdout": fields(3, size=16)}, ValueError, r"`holdout` of shape \(1, 16, 16\)"),
        ({"synthetic": 7}, TypeError, "`synthetic` is a int, expected a cache"),
        ({"fdr": 0.0}, ValueError, "`fdr` must lie between 0 and 1"),
        ({"k": 1}, ValueError, "`k` is 1, but must lie between 2 and 200"),
        ({"k": 201}, ValueError, "`k` is 201"),
        ({"max_pairs": -1}, ValueError, "`max_pairs`"),
        ({"features": "dino"}, ValueError, "No features are called 'dino'"),
        ({"features": 3}, TypeError, "`features` holds a int"),
        ({"index": "annoy"}, ValueError, "`index` must be one of exact, auto"),
        ({"train": fields(1)}, ValueError, "must lie between 2 and 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    fresh: Tensor,
    train: Tensor,
    holdout: Tensor,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    arguments = {"synthetic": fresh, "train": train, "holdout": holdout} | change
    with pytest.raises(error, match=message):
        quiet(arguments.pop("synthetic"), arguments.pop("train"), **arguments)


def test_everything_that_is_wrong_is_said_at_once(fresh: Tensor, train: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`fdr` .*got 2\..*`max_pairs` .*got -1\..*'annoy'"):
        quiet(fresh, train, fdr=2, max_pairs=-1, index="annoy")


def test_a_cache_without_a_finished_row_is_refused(train: Tensor) -> None:
    with pytest.raises(ValueError, match="no row is generated yet"):
        quiet(Cache(fields(3), np.zeros(3, bool)), train)


def test_features_that_are_not_finite_are_refused(fresh: Tensor, train: Tensor) -> None:
    class Broken:
        name, dim = "broken", 1

        def __call__(self, pixels: Tensor) -> Any:
            return np.full((len(pixels), 1), np.nan, np.float32)

    with pytest.raises(ValueError, match="broken returned a value that is not finite"):
        quiet(fresh, train, features=Broken())


def test_any_extractor_can_be_used_and_is_named_in_the_report(
    with_copies: Tensor, train: Tensor, holdout: Tensor
) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 16))
    extractor = features.TorchModule(network, name="projection")
    report = quiet(with_copies, train, holdout=holdout, features=extractor)
    np.testing.assert_array_equal(report.flagged[:20], np.arange(20))
    assert report.settings["features"] == [{"name": "projection", "weights": extractor.weights}]
    assert report.statistics == ("projection", "aligned", "registered")


def test_several_spaces_are_judged_together(
    with_copies: Tensor, train: Tensor, holdout: Tensor
) -> None:
    spaces = [features.Pixel(4), features.Pixel(8, standardize=True)]
    report = quiet(with_copies, train, holdout=holdout, features=spaces)
    assert report.statistics == ("pixels 4x4", "pixels 8x8, standardized", "aligned", "registered")
    assert report.scores.shape == (120, 4)
    np.testing.assert_array_equal(report.flagged[:20], np.arange(20))
    with pytest.raises(ValueError, match="two extractors of one name"):
        quiet(with_copies, train, features=[features.Pixel(4), features.Pixel(4)])
    with pytest.raises(ValueError, match="`features` is empty"):
        quiet(with_copies, train, features=[])


def vectors(n: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def vector_report() -> AuditReport:
    S, T = vectors(120, 3), vectors(200, 1)
    S[:5] = T[30:35]
    S[5:10] = T[40:45] * np.float32(1 + 1e-6)
    S[10:20] = T[50:60] + 0.02 * vectors(10, 9)
    return quiet(S, T, holdout=vectors(300, 2))


def test_features_are_audited_without_their_images(
    vector_report: AuditReport, tmp_path: Path
) -> None:
    report = vector_report
    assert report.verdict == "fail"
    np.testing.assert_array_equal(report.tier[:20], [1] * 10 + [2] * 10)
    assert len(report.flagged) <= 25
    np.testing.assert_array_equal(report.neighbors[:10], [*range(30, 35), *range(40, 45)])
    assert report.statistics == ("features as given",)
    assert np.isnan(report.rmse).all()
    assert report.smallest_effect is not None
    report.to_json(tmp_path / "audit.json")
    assert_equal_reports(report, AuditReport.from_json(tmp_path / "audit.json"))
    assert "<img" not in html(report, tmp_path)


def test_features_that_copy_nothing_pass() -> None:
    T, H = vectors(200, 1), vectors(300, 2)
    report = quiet(torch.from_numpy(vectors(120, 3)), T, holdout=H)
    assert report.verdict == "pass"
    with pytest.raises(ValueError, match="holds features already"):
        quiet(vectors(9, 3), T, features="pixels")


def test_every_kind_of_file_gives_what_the_array_gives(
    tmp_path: Path, with_copies: Tensor, train: Tensor, failed: AuditReport, holdout: Tensor
) -> None:
    import h5py

    np.save(tmp_path / "synthetic.npy", with_copies.numpy())
    np.savez(tmp_path / "train.npz", images=train.numpy()[:, 0], labels=np.arange(200) % 7)
    with h5py.File(tmp_path / "holdout.h5", "w") as file:
        file["images"], file["labels"] = holdout.numpy(), np.zeros(300, np.int64)
    paths = [tmp_path / name for name in ("synthetic.npy", "train.npz", "holdout.h5")]
    report = quiet(paths[0], str(paths[1]), holdout=paths[2])
    np.testing.assert_array_equal(report.q_values, failed.q_values)
    assert report.settings["command"] == (
        f"synthaug audit {paths[0]} {paths[1]} --holdout {paths[2]} "
        "--fdr 0.05 --k 14 --index exact --seed 0"
    )


def test_files_of_features_give_what_the_arrays_give(
    tmp_path: Path, vector_report: AuditReport
) -> None:
    import h5py

    T, H = vectors(200, 1), vectors(300, 2)
    S = vectors(120, 3)
    S[:5], S[5:10] = T[30:35], T[40:45] * np.float32(1 + 1e-6)
    S[10:20] = T[50:60] + 0.02 * vectors(10, 9)
    np.save(tmp_path / "train.npy", T)
    np.savez(tmp_path / "holdout.npz", H)
    with h5py.File(tmp_path / "synthetic.hdf5", "w") as file:
        file["features"] = S
    report = quiet(
        tmp_path / "synthetic.hdf5", tmp_path / "train.npy", holdout=tmp_path / "holdout.npz"
    )
    np.testing.assert_array_equal(report.q_values, vector_report.q_values)
    assert report.identity == vector_report.identity


def test_files_that_cannot_be_used_are_refused_by_name(tmp_path: Path, train: Tensor) -> None:
    import h5py

    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", things=np.zeros(3))
    np.savez(tmp_path / "labels.npz", images=train.numpy(), labels=np.zeros(3, int))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink("elsewhere.h5", "features")
    for name, error, message in (
        ("broken.npy", DataError, "cannot be read"),
        ("objects.npy", DataError, "cannot be read"),
        ("other.npz", DataError, "holds things; expected one array"),
        ("labels.npz", DataError, "200 rows, but labels"),
        ("link.h5", DataError, "is a link, which we do not follow"),
        ("none.npy", DataError, "does not exist"),
        ("none.txt", ValueError, "is not understood"),
    ):
        with pytest.raises(error, match=message):
            quiet(tmp_path / name, train)
    with pytest.raises(ValueError, match="`synthetic` holds features, `train` images"):
        quiet(vectors(5, 1), train)
    with pytest.raises(ValueError, match="not finite in row 2"):
        quiet(np.array([[1.0], [2], [np.inf]]), vectors(9, 1))
    with pytest.raises(ValueError, match="Take all features from one network"):
        quiet(vectors(9, 1), vectors(9, 1)[:, :5])


def test_copies_of_test_images_are_found_by_an_audit_against_these(
    train: Tensor, holdout: Tensor, fresh: Tensor
) -> None:
    """The images that the generator was trained on say how close real images come by chance."""
    tests, pixels = fields(150, seed=30), fresh.clone()
    pixels[:4] = tests[60:64].flip(-1)
    report = quiet(pixels, tests, holdout=torch.cat([train, holdout]))
    assert report.verdict == "fail"
    np.testing.assert_array_equal(report.flagged, np.arange(4))
    np.testing.assert_array_equal(report.neighbors[:4], np.arange(60, 64))


def test_an_approximate_audit_says_how_much_its_index_found(
    with_copies: Tensor, train: Tensor, holdout: Tensor, failed: AuditReport, tmp_path: Path
) -> None:
    report = quiet(with_copies, train, holdout=holdout, index="hnsw")
    assert report.settings["index"] == "hnsw"
    recall = report.settings["recall"]
    assert isinstance(recall, dict)
    assert set(recall) == {"pixels 16x16", "pixels 8x8, standardized", "spectrum"}
    assert all(0.9 < share <= 1 for share in recall.values())
    np.testing.assert_array_equal(report.flagged, failed.flagged)
    assert "of the nearest neighbors" in html(report, tmp_path)


def test_features_kept_in_a_folder_are_not_computed_again(
    fresh: Tensor, train: Tensor, holdout: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    extractor = features.TorchModule(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)), name="projection"
    )
    kept = features.ExtractionConfig(directory=tmp_path)
    first = quiet(fresh, train, holdout=holdout, features=extractor, extraction=kept)

    def never(*args: Any) -> None:
        raise AssertionError("the network was run")

    extractor._module.forward = never
    again = quiet(fresh, train, holdout=holdout, features=extractor, extraction=kept)
    np.testing.assert_array_equal(again.scores, first.scores)


# --------------------------------------------------------------------------------------- reports


def assert_equal_reports(a: Any, b: Any) -> None:
    for name in AuditReport.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            assert x == y, name


def test_a_report_of_a_large_cache_keeps_the_judged_rows_alone(
    failed: AuditReport, tmp_path: Path
) -> None:
    n, rows = len(failed), 2 * np.arange(len(failed)) + 1
    of_rows = {name: vars(failed)[name] for name in _SPREAD}
    large = failed.changed(
        **{
            name: Spread(values, rows, 3 * n, _MISSING.get(name, np.nan))
            for name, values in of_rows.items()
        }
    )
    assert len(large) == 3 * n
    assert (large.flagged == rows[failed.flagged]).all()
    assert (large.withheld == rows[failed.withheld]).all()
    assert (np.flatnonzero(large.passed) == rows[failed.passed]).all()
    assert large._headline() == failed._headline()
    whole = html(large, tmp_path).replace("120 of 360 rows", "120")
    assert whole == html(failed, tmp_path)
    for name, values in of_rows.items():
        np.testing.assert_array_equal(getattr(large, name)[rows], values)
        np.testing.assert_array_equal(large.at(name, rows[::-1]), values[::-1])
        np.testing.assert_array_equal(large.at(name, rows - 1), getattr(large, name)[rows - 1])
    again = AuditReport.from_json(large.to_json(tmp_path / "large.json"))
    assert_equal_reports(large, again)
    assert isinstance(vars(again)["scores"], Spread)
    record = json.loads((tmp_path / "large.json").read_text())
    for change in ({"total": 1}, {"total": "9"}, {"row": rows[::-1].tolist()}, {"row": [1, 2]}):
        (tmp_path / "bad.json").write_text(json.dumps(record | {"rows": record["rows"] | change}))
        with pytest.raises(AuditError, match=r"rows\.(row|total)"):
            AuditReport.from_json(tmp_path / "bad.json")


def test_a_report_survives_its_file(failed: AuditReport, tmp_path: Path) -> None:
    failed.to_json(tmp_path / "audit.json")
    again = AuditReport.from_json(tmp_path / "audit.json")
    assert_equal_reports(failed, again)
    assert repr(again) == repr(failed)
    assert stat.S_IMODE((tmp_path / "audit.json").stat().st_mode) == 0o600
    failed.to_json(tmp_path / "audit.json", shared=True)
    assert stat.S_IMODE((tmp_path / "audit.json").stat().st_mode) & 0o044


def test_the_file_is_strict_json_with_a_version_and_no_temporary_file_stays(
    failed: AuditReport, tmp_path: Path
) -> None:
    failed.to_json(tmp_path / "audit.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((tmp_path / "audit.json").read_text(), parse_constant=refuse)
    assert (record["format"], record["format_version"]) == ("synthaug-audit", 1)
    assert {len(column) for column in record["rows"].values()} == {120}
    assert record["environment"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]


def test_a_failed_write_leaves_the_old_report_and_nothing_else(
    failed: AuditReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.json"
    path.write_text("old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        failed.to_json(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]


def test_damaged_files_are_refused_with_one_kind_of_error(
    failed: AuditReport, tmp_path: Path
) -> None:
    failed.to_json(tmp_path / "audit.json")
    text = (tmp_path / "audit.json").read_text()
    record = json.loads(text)
    damaged = [
        "",
        "[]",
        "{",
        "null",
        "[" * 100_000,
        text[: len(text) // 2],
        text.replace('"format_version": 1', '"format_version": 2'),
        text.replace("0.05", "NaN", 1),
        json.dumps(record | {"format": "other"}),
        json.dumps(record | {"verdict": "great"}),
        json.dumps(record | {"verdict": "pass"}),  # while rows are flagged
        json.dumps(record | {"power": [{"kind": 3}]}),
        json.dumps({k: v for k, v in record.items() if k != "identity"}),
        json.dumps(
            record | {"classes": ["only one"], "rows": {**record["rows"], "label": [5] * 120}}
        ),
    ]
    for name in record["rows"]:
        for value in ([], [None] * 119, ["x"] * 120, [1e400] * 120, [10**400] * 120, None, 3):
            damaged.append(json.dumps(record | {"rows": record["rows"] | {name: value}}))
    path = tmp_path / "damaged.json"
    for content in damaged:
        path.write_text(content)
        with pytest.raises(AuditError, match=r"damaged\.json"):
            AuditReport.from_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AuditError, match="cannot be read"):
        AuditReport.from_json(path)
    with pytest.raises(AuditError, match="does not exist"):
        AuditReport.from_json(tmp_path / "none.json")


def test_whatever_is_changed_in_a_file_only_our_own_errors_come_of_it(
    failed: AuditReport, tmp_path: Path
) -> None:
    """Replaces or removes values at random places, at all depths."""
    few = failed.changed(pairs=failed.pairs[:4], holdout_pairs=failed.holdout_pairs[:4])
    few.to_json(tmp_path / "audit.json")
    text = (tmp_path / "audit.json").read_text()
    rng = np.random.default_rng(0)
    values: list[Any] = [None, True, -1, 1e300, 10**30, "x", "<b>", [], {}, [[]], [None], {"a": 1}]
    outcomes = set()
    for _ in range(150):
        record = json.loads(text)
        place: Any = record
        for _ in range(rng.integers(1, 5)):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[rng.integers(len(keys))]
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            parent, place = place, inner
        else:
            place = parent
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = values[rng.integers(len(values))]
        (tmp_path / "changed.json").write_text(json.dumps(record))
        try:
            AuditReport.from_json(tmp_path / "changed.json").to_html(tmp_path / "changed.html")
            outcomes.add("shown")
        except AuditError:
            outcomes.add("refused")
    assert outcomes == {"shown", "refused"}


def test_every_report_follows_the_schema_that_comes_with_the_package(
    failed: AuditReport,
    passed: AuditReport,
    vector_report: AuditReport,
    fresh: Tensor,
    train: Tensor,
    tmp_path: Path,
) -> None:
    from jsonschema import Draft202012Validator, ValidationError

    schema = json.loads((Path(synthaug._audit.__file__).parent / "audit.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    path = tmp_path / "audit.json"
    for report in (failed, passed, vector_report, quiet(fresh, train)):
        for redact in (False, True):
            report.to_json(path, redact=redact)
            validator.validate(json.loads(path.read_text()))
    record = json.loads(path.read_text())
    changes: list[dict[str, Any]] = [
        {"verdict": "good"},
        {"more": 1},
        {"rows": {}},
        {"smallest_effect": 0},
    ]
    for change in changes:
        with pytest.raises(ValidationError):
            validator.validate(record | change)


def html(report: AuditReport, tmp_path: Path, **kwargs: Any) -> str:
    path = Path(tmp_path) / "audit.html"
    report.to_html(path, **kwargs)
    return path.read_text()


def test_the_page_shows_verdict_pairs_power_and_limits_in_this_order(
    failed: AuditReport, tmp_path: Path
) -> None:
    text = html(failed, tmp_path)
    place = 0
    for part in (
        "<h1>Audit: fail. Images too close to training images</h1>",
        "20 of 120 images equal a training image pixel by pixel",
        "What was compared",
        "The closest pairs",
        "difference, aligned",
        "closest hold-out",
        "For scale: held-out real images",
        "All scores",
        "What this audit could have seen",
        "The smallest effect that would have been noticed",
        "noise, sigma 15 to 25",
        "not a privacy guarantee",
        "synthaug.audit(synthetic, train, holdout=holdout, fdr=0.05, k=14, index=",
        "faiss-cpu",
    ):
        place = text.index(part, place)
    assert text.count('alt="synthetic ') == 50
    assert text.count("nearly equal pixels</b>") == 20


def test_the_page_loads_nothing_and_runs_nothing_but_its_own_script(
    failed: AuditReport, tmp_path: Path
) -> None:
    text = html(failed, tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; img-src data:; style-src" in text
    assert f"; script-src 'sha256-{digest}'\">" in text
    assert text.count("<script") == 1
    assert not re.search(r"fetch|XMLHttp|WebSocket|import|eval|innerHTML", script)
    assert "http" not in text.replace("http-equiv", "")


def test_a_script_in_a_class_name_is_inert(
    fresh: Tensor, train: Tensor, holdout: Tensor, tmp_path: Path
) -> None:
    name = "<script>alert(1)</script>"
    report = quiet(Labeled(fresh, (name, "b")), Labeled(train, (name, "b")), holdout=holdout)
    text = html(report, tmp_path)
    assert name not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_report_from_elsewhere_cannot_bring_its_own_addresses(
    failed: AuditReport, tmp_path: Path
) -> None:
    failed.to_json(tmp_path / "audit.json")
    record = json.loads((tmp_path / "audit.json").read_text())
    record["pairs"][0]["image"] = "https://example.org/tracker.png"
    record["pairs"][1]["train_image"] = 'data:image/png;base64,AAAA" onerror="alert(1)'
    (tmp_path / "audit.json").write_text(json.dumps(record))
    text = html(AuditReport.from_json(tmp_path / "audit.json"), tmp_path)
    assert "example.org" not in text
    assert "onerror" not in text


def test_a_redacted_report_holds_no_real_image(failed: AuditReport, tmp_path: Path) -> None:
    every = (*failed.pairs, *failed.holdout_pairs)
    real = {str(p["train_image"]) for p in every} | {str(p["difference"]) for p in every}
    real |= {str(p["holdout_image"]) for p in failed.pairs}
    real |= {str(p["image"]) for p in failed.holdout_pairs}
    text = html(failed, tmp_path, redact=True)
    failed.to_json(tmp_path / "audit.json", redact=True)
    text += (tmp_path / "audit.json").read_text()
    real |= {str(p["image"]) for p in failed.pairs if p["tier"]}
    assert not any(image in text for image in real)
    assert any(str(p["image"]) in text for p in failed.pairs), "clear synthetic images stay"


def test_reports_without_hold_out_classes_or_pairs_have_a_page_too(
    fresh: Tensor, train: Tensor, tmp_path: Path
) -> None:
    text = html(quiet(fresh, train, max_pairs=0), tmp_path)
    assert "<h1>Audit: inconclusive. Look at the pairs" in text
    assert "By class" not in text
