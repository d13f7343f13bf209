import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import aggregate as naive

from models.aggregation import aggregate, channel_shares, check_fitted, combine
from models.residuals import fit_aggregation
from pipeline.errors import BundleError


def shares(residuals, weights, observed):
    """Those of every second row of a larger batch, the last first; nothing else of it is written."""
    n = len(observed)
    at = 2 * np.arange(n)[::-1]
    all_observed, out = np.zeros((2 * n, observed.shape[1]), np.bool_), np.zeros((2 * n, observed.shape[1]), np.float32)
    all_observed[at] = observed
    channel_shares(residuals, weights, all_observed, at, out)
    assert not out[1::2].any()
    return out[at]


def case(seed, n=60, channels=11, missing=0.3, rows=1):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(channels, channels))
    normal = (random.normal(size=(500, channels)) @ mixing).astype(np.float32)
    fitted = fit_aggregation(normal, np.ones(normal.shape, np.bool_))
    residual = (3 * random.normal(size=(n, channels)) @ mixing).astype(np.float32)
    weight = random.integers(1, rows + 1, (n, channels)) * (random.random((n, channels)) >= missing)
    weight[np.arange(n), random.integers(0, channels, n)] = 1  # something is always observed
    return np.where(weight, residual, 0).astype(np.float32), weight.astype(np.float32), fitted


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.9]), st.integers(1, 40), st.integers(1, 9))
def test_every_aggregation_equals_the_plain_one_on_what_was_observed(seed, missing, channels, rows):
    residual, weight, fitted = case(seed, 20, channels, missing, rows)
    for kind in ("mse", "ztop", "mahalanobis"):
        got = aggregate(kind, residual, weight, fitted)
        want = [naive(kind, r, w, fitted) for r, w in zip(residual.astype(np.float64), weight, strict=True)]
        np.testing.assert_allclose(got, want, rtol=1e-3 if kind == "mahalanobis" else 1e-6)


@pytest.mark.parametrize("kind", ["mse", "ztop", "mahalanobis"])
def test_what_is_not_observed_says_nothing_whatever_stands_there(kind):
    residual, weight, fitted = case(1)
    other = np.where(weight, residual, np.float32(1e9))
    np.testing.assert_array_equal(aggregate(kind, residual, weight, fitted), aggregate(kind, other, weight, fitted))


@pytest.mark.parametrize("kind", ["mse", "ztop", "mahalanobis"])
def test_a_row_is_worked_on_by_itself(kind):
    residual, weight, fitted = case(2)
    alone = [aggregate(kind, residual[i : i + 1], weight[i : i + 1], fitted)[0] for i in range(len(residual))]
    assert np.array(alone).tobytes() == aggregate(kind, residual, weight, fitted).tobytes()


@pytest.mark.parametrize("kind", ["mse", "ztop", "mahalanobis"])
def test_a_larger_residual_is_more_anomalous(kind):
    residual, weight, fitted = case(3, missing=0.0)
    assert (aggregate(kind, 2 * residual, weight, fitted) > aggregate(kind, residual, weight, fitted)).all()


def test_mahalanobis_of_normal_residuals_is_about_the_root_of_the_channels_however_many_are_lost():
    random = np.random.default_rng(0)
    normal = (random.normal(size=(4000, 16)) @ random.normal(size=(16, 16))).astype(np.float32)
    fitted = {"location": normal.mean(axis=0), "precision": np.linalg.inv(np.cov(normal.T))}
    weight = np.ones(normal.shape, np.float32)
    for lost in (0, 1, 8):
        weight[:, :lost] = 0
        square = aggregate("mahalanobis", normal, weight, fitted) ** 2
        assert abs(square.mean() / 16 - 1) < 0.01


def test_two_members_combine_to_the_root_of_their_product():
    a, b = np.array([4.0, 0.0, 1e-9]), np.array([9.0, 1.0, 1e9])
    np.testing.assert_allclose(combine([a, b]), np.sqrt(np.maximum(a, 1e-30) * b), rtol=1e-6)
    np.testing.assert_array_equal(combine([a]), a.astype(np.float32))
    np.testing.assert_allclose(combine([a, b, b])[0], (4 * 81) ** (1 / 3), rtol=1e-6)


def test_shares_are_the_mean_of_the_members_shares():
    residuals = [np.array([[3, 4, 0]], np.float32), np.array([[0, 1, 1]], np.float32)]
    weights = [np.ones((1, 3), np.float32)] * 2
    got = shares(residuals, weights, np.ones((1, 3), np.bool_))
    np.testing.assert_allclose(got, [[9 / 50, 16 / 50 + 0.25, 0.25]], rtol=1e-6)


def test_shares_go_to_observed_channels_alone_and_evenly_where_nothing_is_off():
    residual, weight = np.array([[3, 4, 5], [0, 0, 0]], np.float32), np.ones((2, 3), np.float32)
    observed = np.array([[True, True, False]] * 2)
    np.testing.assert_allclose(shares([residual], [weight], observed), [[9 / 25, 16 / 25, 0], [0.5, 0.5, 0]])


def test_an_unknown_aggregate_or_a_missing_tensor_is_refused():
    with pytest.raises(BundleError, match="unknown aggregate 'max'"):
        check_fitted("max", 3, {})
    with pytest.raises(BundleError, match=r"agg\.median of shape \(3,\), the bundle has nothing"):
        check_fitted("ztop", 3, {})
    with pytest.raises(BundleError, match=r"agg\.precision"):
        check_fitted("mahalanobis", 3, {"location": np.zeros(3), "precision": np.zeros(3)})
