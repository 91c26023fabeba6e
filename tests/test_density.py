"""Hardness against scipy and explicit refits, neighbors against scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from synthaug.density import (
    ESTIMATORS,
    STRUCTURES,
    ClassGaussians,
    Neighborhood,
    average_knn_distance,
    contrastive_loss,
    local_outlier_factor,
)

SKLEARN = {"ledoit_wolf": LedoitWolf, "oas": OAS, "empirical": EmpiricalCovariance}

Floats = NDArray[np.float64]


def data(n: int = 40, k: int = 4, classes: int = 3, seed: int = 0) -> tuple[Floats, Any]:
    """Correlated features whose spread differs between classes and between dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, k)) @ rng.normal(size=(k, k)) * (1 + y[:, None]) + 2 * y[:, None]
    x[:, 0] *= 3
    return x, y


def covariances(x: Floats, y: Any, structure: str, estimator: str) -> list[Floats]:
    means = np.stack([x[y == c].mean(axis=0) for c in range(y.max() + 1)])
    residuals = x - means[y]
    groups = [residuals if structure == "tied" else residuals[y == c] for c in range(len(means))]
    found = [SKLEARN[estimator](assume_centered=True).fit(g).covariance_ for g in groups]
    return [np.diag(np.diag(S)) if structure == "diagonal" else S for S in found]


# Hardness


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hardness_is_minus_the_log_density_of_scipy(structure: Any, estimator: Any) -> None:
    x, y = data()
    fresh = data(seed=1)[0]
    gaussians = ClassGaussians.fit(x, y, structure=structure, estimator=estimator)
    H = gaussians.all_hardness(fresh)
    for c, S in enumerate(covariances(x, y, structure, estimator)):
        expected = -multivariate_normal(x[y == c].mean(axis=0), S).logpdf(fresh)
        np.testing.assert_allclose(H[:, c], expected, rtol=1e-9)
    np.testing.assert_allclose(gaussians.hardness(fresh, y), H[np.arange(len(y)), y], rtol=1e-12)


def test_hardness_of_principal_components_is_that_of_the_projection() -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y, components=2)
    u = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:2]
    p = (x - x.mean(axis=0)) @ u.T
    expected = ClassGaussians.fit(p, y).all_hardness(p)
    np.testing.assert_allclose(gaussians.all_hardness(x), expected, rtol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_the_hardness_of_arrays_and_its_gradient(structure: Any, dtype: Any) -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y, structure=structure, components=3)
    tensor, labels = torch.tensor(x, dtype=dtype, requires_grad=True), torch.from_numpy(y)
    H = gaussians.all_hardness(tensor)
    assert H.dtype == dtype
    np.testing.assert_allclose(H.detach(), gaussians.all_hardness(x), rtol=1e-4)
    own = gaussians.hardness(tensor, labels)
    torch.testing.assert_close(own, H[torch.arange(len(y)), labels])
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda t: gaussians.hardness(t, labels[:5]), tensor[:5])


def test_half_precision_and_autocast_do_not_reach_the_squares() -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y)
    tensor = torch.from_numpy(x).float()
    with torch.autocast("cpu", torch.bfloat16):
        H = gaussians.all_hardness(tensor)
    assert torch.equal(H, gaussians.all_hardness(tensor))
    assert gaussians.all_hardness(tensor.half()).dtype == torch.float32


def test_a_wider_class_is_harder_by_the_logarithm_of_its_volume() -> None:
    x, y = data()
    wide = x.copy()
    wide[y == 1] = 5 * x[y == 1]
    for structure in ("full", "diagonal"):
        before, after = (ClassGaussians.fit(v, y, structure=structure) for v in (x, wide))
        grown = after.hardness(wide, y) - before.hardness(x, y)
        np.testing.assert_allclose(grown, np.where(y == 1, x.shape[1] * math.log(5), 0), atol=1e-8)


def test_many_classes_are_scored_in_parts_with_the_same_result(monkeypatch: Any) -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y)
    whole = gaussians.all_hardness(x)
    monkeypatch.setattr("synthaug.density._gaussians.CHUNK_VALUES", 1)
    np.testing.assert_allclose(gaussians.all_hardness(x), whole, rtol=1e-12)


# Leave one out


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [20, 31])
def test_leaving_one_out_equals_a_refit_without_it(structure: Any, estimator: Any, n: int) -> None:
    x, y = data(n)
    settings: Any = {"structure": structure, "estimator": estimator}
    left = ClassGaussians.fit(x, y, **settings).leave_one_out(x, y)
    refits = [ClassGaussians.fit(np.delete(x, i, 0), np.delete(y, i), **settings) for i in range(n)]
    expected = [g.hardness(x[[i]], y[[i]])[0] for i, g in enumerate(refits)]
    np.testing.assert_allclose(left, expected, rtol=1e-7)


@pytest.mark.parametrize("estimator", ["ledoit_wolf", "oas"])
def test_leaving_one_out_of_fewer_images_than_dimensions_equals_a_refit(estimator: Any) -> None:
    x, y = data(9, k=6, classes=2)  # shrinkage at its bound for some
    left = ClassGaussians.fit(x, y, estimator=estimator).leave_one_out(x, y)
    for i in range(len(x)):
        refit = ClassGaussians.fit(np.delete(x, i, 0), np.delete(y, i), estimator=estimator)
        assert left[i] == pytest.approx(refit.hardness(x[[i]], y[[i]])[0], rel=1e-9)


def test_left_out_images_are_as_hard_as_held_out_ones_and_fitted_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    n, k = 300, 100
    x, fresh = rng.normal(size=(2, n, k))
    y = np.zeros(n, np.int64)
    gaussians = ClassGaussians.fit(x, y, estimator="empirical")
    constant = (k * math.log(2 * math.pi) + float(gaussians.log_determinants[0])) / 2
    held_out = (gaussians.hardness(fresh, y) - constant).mean() / k * 2
    assert held_out == pytest.approx((n**2 - 1) / ((n - 1) * (n - k - 2)), rel=0.03)
    assert (gaussians.hardness(x, y) - constant).mean() / k * 2 == pytest.approx(1)
    left = gaussians.leave_one_out(x, y).mean()
    assert left == pytest.approx(gaussians.hardness(fresh, y).mean(), rel=0.02)


def test_leaving_one_out_needs_the_features_that_were_fitted() -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y)
    gaussians.to(dtype=torch.float32).leave_one_out(x, y)
    with pytest.raises(ValueError, match="not those that were fitted"):
        gaussians.leave_one_out(x + 1, y)
    with pytest.raises(ValueError, match="not those that were fitted"):
        gaussians.leave_one_out(x[:-1], y[:-1])


# What cannot be fitted


def test_singular_covariances_are_refused_and_shrunk_ones_are_finite() -> None:
    x, y = data(15, k=6)
    for structure, remedy in (("full", "ledoit_wolf"), ("tied", "components")):
        few, labels = (x, y) if structure == "full" else (x[:8], y[:8])
        with pytest.raises(ValueError, match=remedy):
            ClassGaussians.fit(few, labels, structure=structure, estimator="empirical")  # type: ignore[arg-type]
        for estimator in ("ledoit_wolf", "oas"):
            fitted = ClassGaussians.fit(few, labels, structure=structure, estimator=estimator)  # type: ignore[arg-type]
            assert np.isfinite(fitted.all_hardness(x)).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_constant_or_repeated_feature_is_singular_unless_shrunk(structure: Any) -> None:
    x, y = data()
    constant = x.copy()
    constant[:, 1] = 7.3
    repeated = np.concatenate([x, x[:, :1] / 3], axis=1)
    for z in (constant, repeated) if structure != "diagonal" else (constant,):
        with pytest.raises(ValueError, match="singular"):
            ClassGaussians.fit(z, y, structure=structure, estimator="empirical")
        left = ClassGaussians.fit(z, y, structure=structure).leave_one_out(z, y)
        assert np.isfinite(left).all()


def test_an_image_without_which_a_covariance_is_singular_is_not_left_out() -> None:
    x, y = data(30, classes=1)
    x[1:, 2] = 0
    gaussians = ClassGaussians.fit(x, y, estimator="empirical")
    with pytest.raises(ValueError, match="No image can be left out"):
        gaussians.leave_one_out(x, y)
    with pytest.raises(ValueError, match=r"No image can be left out.*3 images; 4 are needed"):
        ClassGaussians.fit(x[:3], y[:3]).leave_one_out(x[:3], y[:3])


def test_wrong_arguments_are_named() -> None:
    x, y = data()
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("Class 3 has 0 images", x, y, {"num_classes": 4}),
        ("Class 0 has 1 images", x, np.where(y == 0, 1, y) * (np.arange(40) > 0), {}),
        ("`num_classes` is 2", x, y, {"num_classes": 2}),
        ("not finite in row 3", np.where(np.arange(40)[:, None] == 3, np.nan, x), y, {}),
        ("`structure` must be one of", x, y, {"structure": "sparse"}),
        ("`estimator` must be one of", x, y, {"estimator": "mcd"}),
        ("`components` must be from 1 to 4", x, y, {"components": 5}),
        ("`labels` must be integers", x, y / 1, {}),
        ("`features` must be floating point", y[:, None], y, {}),
    ]
    for message, features, labels, settings in cases:
        with pytest.raises(ValueError, match=message):
            ClassGaussians.fit(features, labels, **settings)
    gaussians = ClassGaussians.fit(x, y)
    with pytest.raises(ValueError, match=r"expected \(n, 4\)"):
        gaussians.all_hardness(x[:, :3])
    with pytest.raises(ValueError, match="from 0 to 2"):
        gaussians.hardness(x, y + 1)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("components", [None, 2])
def test_a_fit_survives_a_safetensors_file(tmp_path: Any, structure: Any, components: Any) -> None:
    from safetensors.torch import load_file, save_file

    x, y = data()
    gaussians = ClassGaussians.fit(x, y, structure=structure, components=components)
    save_file(gaussians.state(), tmp_path / "gaussians.safetensors")
    loaded = ClassGaussians.from_state(load_file(tmp_path / "gaussians.safetensors"))
    np.testing.assert_array_equal(loaded.all_hardness(x), gaussians.all_hardness(x))
    np.testing.assert_array_equal(loaded.leave_one_out(x, y), gaussians.leave_one_out(x, y))
    state = gaussians.state()
    for broken in ({}, {**state, "means": state["means"][:2]}, {**state, "more": state["means"]}):
        with pytest.raises(ValueError, match="not the tensors of"):
            ClassGaussians.from_state(broken)


# The contrastive loss


def test_the_loss_has_the_gradient_of_the_equation() -> None:
    H = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 1.5]], dtype=torch.float64, requires_grad=True)
    labels, tau = torch.tensor([0, 2]), 0.7
    loss = contrastive_loss(H, labels, tau)
    p = torch.softmax(-H.detach() / tau, dim=1)
    torch.testing.assert_close(loss.detach(), -p[torch.arange(2), labels].log())
    (gradient,) = torch.autograd.grad(loss.sum(), H)
    own = torch.nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(gradient, (own - p) / tau)


def test_a_small_ascent_raises_the_hardness_and_lowers_the_share_of_the_class() -> None:
    x, y = data()
    gaussians = ClassGaussians.fit(x, y)
    labels = torch.from_numpy(y)
    point = torch.from_numpy(x).requires_grad_()
    loss = contrastive_loss(gaussians.all_hardness(point), labels)
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    with torch.no_grad():
        after = contrastive_loss(gaussians.all_hardness(point + 1e-5 * gradient), labels)
    assert (after > loss).all()


def test_a_pair_of_gaussians_serves_as_the_realism_term() -> None:
    x, y = data(classes=2)  # 0 synthetic, 1 real
    gaussians = ClassGaussians.fit(x, y)
    point = torch.from_numpy(x).requires_grad_()
    H = gaussians.all_hardness(point)
    loss = contrastive_loss(H, torch.zeros(len(x), dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    with torch.no_grad():
        p = torch.softmax(-gaussians.all_hardness(point + 1e-5 * gradient), 1)[:, 1]
    assert (p > torch.softmax(-H, 1)[:, 1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_huge_hardness_is_exact(dtype: Any) -> None:
    for offset in (0.0, 1e6, -1e6):
        H = torch.tensor([[offset, offset + 1]], dtype=dtype, requires_grad=True)
        loss = contrastive_loss(H, torch.tensor([0]))
        assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss.sum(), H)
        assert torch.isfinite(gradient).all()
    apart = torch.tensor([[0.0, 1e6]], dtype=dtype)
    assert contrastive_loss(apart, torch.tensor([1])).item() == 1e6
    assert contrastive_loss(apart, torch.tensor([0])).item() == 0
    assert torch.isfinite(contrastive_loss(apart, torch.tensor([1]), 1e-6)).all()
    close = torch.tensor([[1e6, 1e6 + 1]], dtype=dtype)
    assert contrastive_loss(close, torch.tensor([1]), 1e-3).item() == pytest.approx(1000, rel=1e-5)


def test_the_gradient_vanishes_as_the_temperature_grows() -> None:
    H = torch.tensor([[5.0, 1.0]], requires_grad=True)
    sizes = [
        torch.autograd.grad(contrastive_loss(H, torch.tensor([0]), tau).sum(), H)[0].abs().max()
        for tau in (1, 1e2, 1e4, math.inf)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    for tau in (0, -1, math.nan):
        with pytest.raises(ValueError, match="`temperature` must be positive"):
            contrastive_loss(H, torch.tensor([0]), tau)


# Neighbors


def clouds(n: int, seed: int) -> NDArray[np.float32]:
    """A dense and a sparse cluster, and every tenth row twice."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * np.where(np.arange(n) % 2, 1.0, 0.1)[:, None]
    x[::10] = x[1::10][: len(x[::10])]
    return x.astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_outlier_factors_and_distances_are_those_of_sklearn(k: int) -> None:
    reference, queries = clouds(200, 0), clouds(60, 1)
    queries[:5] = reference[:5]  # a copy is a query like any other
    neighborhood = Neighborhood(reference, k)
    lof = LocalOutlierFactor(k, novelty=True).fit(reference.astype(np.float64))
    near = NearestNeighbors(n_neighbors=k).fit(reference.astype(np.float64))
    for given, factors, own in (
        (queries, lof.score_samples(queries.astype(np.float64)), queries.astype(np.float64)),
        (None, lof.negative_outlier_factor_, None),
    ):
        distance, factor = neighborhood.scores(given)
        np.testing.assert_allclose(factor, -factors, rtol=1e-9)
        np.testing.assert_allclose(distance, near.kneighbors(own)[0].mean(axis=1), atol=1e-12)
        np.testing.assert_array_equal(average_knn_distance(reference, given, k=k), distance)
        np.testing.assert_array_equal(local_outlier_factor(reference, given, k=k), factor)


def test_an_image_is_not_its_own_neighbor_but_its_duplicates_are() -> None:
    x = np.array([[0.0], [0.0], [0.0], [1.0], [3.0]], np.float32)
    assert average_knn_distance(x, k=1).tolist() == [0, 0, 0, 1, 2]
    assert average_knn_distance(x, k=2).tolist() == [0, 0, 0, 1, 2.5]
    assert average_knn_distance(x[:3], x[3:], k=2).tolist() == [1, 3]
    for i, found in enumerate(Neighborhood(x, 2).nearest()[1].tolist()):
        assert i not in found


def test_scores_need_enough_finite_images_of_one_length() -> None:
    x = clouds(10, 0)
    for k in (0, 10):
        with pytest.raises(ValueError, match="`k` must be from 1 to 9"):
            Neighborhood(x, k)
    with pytest.raises(ValueError, match="5 features, and the reference images have 6"):
        Neighborhood(x).scores(x[:, :5])
    with pytest.raises(ValueError, match="`queries` is not finite in row 1"):
        Neighborhood(x).scores(np.where(np.arange(10)[:, None] == 1, np.nan, x))
