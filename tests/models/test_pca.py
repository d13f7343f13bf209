import naive_pca
import numpy as np
import pytest
import torch

from models.autoencoders import DenseAutoencoder
from models.pca import PrincipalComponents, fit_pca, q_statistic, reconstruct, scores, t_squared
from models.series import windows
from models.training import LoopSpec, train
from pipeline.errors import ConfigError, TooLittleHistory

WINDOW, CHANNELS = 4, 6


def factors(n, seed=0, channels=CHANNELS, strength=(3.0, 2.0), noise=0.3):
    """Rows of `channels` readings that two slow factors drive: float32 (n, channels)."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(99).normal(size=(len(strength), channels))
    slow = np.stack([np.convolve(rng.normal(size=n + 20), np.ones(20) / 4.5, "valid")[:n] for _ in strength], axis=1)
    return ((slow * strength) @ loadings + noise * rng.normal(size=(n, channels))).astype(np.float32)


def flat(x, observed, ends, window=WINDOW):
    rows, seen = windows(x, observed, ends, window)
    return rows.reshape(len(ends), -1), seen.reshape(len(ends), -1)


@pytest.fixture(scope="module")
def fitted():
    x = factors(1500)
    seen = np.ones(x.shape, np.bool_)
    ends = np.arange(WINDOW - 1, len(x))
    return x, seen, ends, fit_pca(x, seen, ends, WINDOW, share=0.9)


def test_the_fit_is_the_singular_value_decomposition_of_all_windows(fitted):
    x, seen, ends, pca = fitted
    mean, components, variance, noise = naive_pca.fit(flat(x, seen, ends)[0], 0.9)
    np.testing.assert_allclose(pca.mean, mean, atol=1e-9)
    np.testing.assert_allclose(pca.variance, variance, rtol=1e-9)
    assert pca.noise == pytest.approx(noise, rel=1e-9)
    np.testing.assert_allclose(np.abs(pca.components @ components.T), np.eye(len(components)), atol=1e-7)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(len(pca.components)), atol=1e-12)


def test_the_fewest_components_that_hold_the_share_are_kept(fitted):
    x, seen, ends, pca = fitted
    total = np.var(flat(x, seen, ends)[0].astype(np.float64), axis=0, ddof=1).sum()
    assert pca.variance.sum() > 0.9 * total
    assert pca.variance[:-1].sum() <= 0.9 * total


def test_the_largest_entry_of_every_component_is_positive(fitted):
    pca = fitted[3]
    largest = np.abs(pca.components).argmax(axis=1)
    assert (pca.components[np.arange(len(largest)), largest] > 0).all()


def test_more_windows_than_allowed_are_thinned_evenly(fitted):
    x, seen, ends, _ = fitted
    few = fit_pca(x, seen, ends, WINDOW, max_windows=300)
    same = fit_pca(x, seen, ends[np.arange(300) * len(ends) // 300], WINDOW)
    assert few.windows == 300
    np.testing.assert_array_equal(few.components, same.components)


def test_the_cap_on_components_holds_and_one_direction_is_always_left(fitted):
    x, seen, ends, _ = fitted
    assert fit_pca(x, seen, ends, WINDOW, share=0.99, max_components=3).components.shape == (3, WINDOW * CHANNELS)
    assert len(fit_pca(x, seen, ends, WINDOW, share=0.999999999).variance) == WINDOW * CHANNELS - 1


@pytest.mark.parametrize("gap_share", [0.0, 0.1, 0.6, 0.95])
def test_scores_and_q_are_those_of_the_slow_oracle_window_by_window(fitted, gap_share):
    pca = fitted[3]
    rng = np.random.default_rng(4)
    x, _ = flat(factors(60, seed=5), np.ones((60, CHANNELS), np.bool_), np.arange(WINDOW - 1, 60))
    seen = rng.random(x.shape) >= gap_share
    t = scores(pca, x, seen)
    q = q_statistic(x, reconstruct(pca, t), seen)
    for i in np.flatnonzero(seen.any(axis=1)):
        expected = naive_pca.scores_of(pca.mean, pca.components, pca.variance, pca.noise, x[i], seen[i])
        np.testing.assert_allclose(t[i], expected, rtol=1e-6, atol=1e-7)
        assert q[i] == pytest.approx(naive_pca.q_of(pca.mean, pca.components, expected, x[i], seen[i]), rel=1e-6)


def test_what_stands_in_an_unobserved_reading_changes_nothing(fitted):
    pca = fitted[3]
    x, _ = flat(factors(20, seed=6), np.ones((20, CHANNELS), np.bool_), np.arange(WINDOW - 1, 20))
    seen = np.random.default_rng(7).random(x.shape) > 0.3
    other = np.where(seen, x, np.float32(1e6))
    t = scores(pca, x, seen)
    np.testing.assert_array_equal(scores(pca, other, seen), t)
    np.testing.assert_array_equal(
        q_statistic(other, reconstruct(pca, t), seen), q_statistic(x, reconstruct(pca, t), seen)
    )


def test_a_window_with_nothing_observed_is_at_the_mean_and_has_no_q(fitted):
    pca = fitted[3]
    x, seen = np.zeros((1, WINDOW * CHANNELS), np.float32), np.zeros((1, WINDOW * CHANNELS), np.bool_)
    t = scores(pca, x, seen)
    np.testing.assert_array_equal(t, 0)
    np.testing.assert_allclose(reconstruct(pca, t)[0], pca.mean)
    assert np.isnan(q_statistic(x, reconstruct(pca, t), seen)[0])


def test_t_squared_of_what_was_fitted_averages_to_the_number_of_components(fitted):
    x, seen, ends, pca = fitted
    t = scores(pca, *flat(x, seen, ends))
    assert t_squared(pca, t).mean() == pytest.approx(len(pca.variance), rel=1e-2)


def test_leaving_a_lost_channel_out_is_unbiased_and_zero_filling_it_is_not():
    """Rows as the model assumes them: two factors in twelve channels, the same white noise in each."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(4000, 2)) @ rng.normal(1.0, 0.5, (2, 12)) + 0.3 * rng.normal(size=(4000, 12)) + 2.0
    x = x.astype(np.float32)
    seen = np.ones(x.shape, np.bool_)
    pca = fit_pca(x, seen, np.arange(4000), 1, share=0.999, max_components=2)

    def q_and_t2(readings, observed):
        t = scores(pca, readings, observed)
        return q_statistic(readings, reconstruct(pca, t), observed).mean(), t_squared(pca, t).mean()

    q, t2 = q_and_t2(x, seen)
    for channel in range(12):
        left = seen.copy()
        left[:, channel] = False
        holed = np.where(left, x, np.float32(0))
        q_left_out, t2_left_out = q_and_t2(holed, left)
        q_filled, t2_filled = q_and_t2(holed, seen)
        assert q_left_out == pytest.approx(q, rel=0.05)
        assert t2_left_out == pytest.approx(t2, rel=0.05)
        assert q_filled > 2 * q
        assert abs(t2_filled / t2 - 1) > abs(t2_left_out / t2 - 1)


def test_windows_with_a_gap_are_left_out_while_enough_have_none(fitted):
    x, seen, _, _ = fitted
    x, seen = x.copy(), seen.copy()
    seen[300:600, 1] = False
    x[300:600, 1] = 0
    ends = np.arange(WINDOW - 1, len(x))
    pca = fit_pca(x, seen, ends, WINDOW)
    without = fit_pca(x, seen, np.array([e for e in ends if seen[e - WINDOW + 1 : e + 1].all()]), WINDOW)
    assert not pca.imputed
    np.testing.assert_array_equal(pca.components, without.components)


def test_too_many_gaps_are_put_at_the_location_and_the_fit_says_so(fitted):
    x, seen, ends, _ = fitted
    seen = seen.copy()
    seen[::3, 1] = False
    pca = fit_pca(np.where(seen, x, np.float32(0)), seen, ends, WINDOW)
    assert pca.imputed
    assert pca.windows == len(ends)


def test_a_channel_that_was_never_observed_is_no_gap(fitted):
    x, seen, ends, _ = fitted
    seen = seen.copy()
    seen[:, 3] = False
    pca = fit_pca(np.where(seen, x, np.float32(0)), seen, ends, WINDOW)
    assert not pca.imputed
    assert pca.windows == len(ends)
    np.testing.assert_allclose(pca.components.reshape(-1, WINDOW, CHANNELS)[:, :, 3], 0, atol=1e-12)


def test_a_series_that_never_varies_leaves_everything_to_the_residual():
    x = np.full((50, 2), 0.5, np.float32)
    seen = np.ones(x.shape, np.bool_)
    pca = fit_pca(x, seen, np.arange(2, 50), 3)
    moved = np.full((1, 6), 0.5, np.float32)
    moved[0, -1] = 1.5
    t = scores(pca, moved, np.ones(moved.shape, np.bool_))
    assert q_statistic(moved, reconstruct(pca, t), np.ones(moved.shape, np.bool_))[0] == pytest.approx(1 / 6)
    assert t_squared(pca, t)[0] == 0


def test_tensors_are_float32_and_serve_as_well(fitted):
    x, seen, ends, pca = fitted
    named = pca.tensors()
    assert {name: (a.dtype.name, a.ndim) for name, a in named.items()} == {
        "mean": ("float32", 1),
        "components": ("float32", 2),
        "variance": ("float32", 1),
        "noise": ("float32", 0),
    }
    served = PrincipalComponents(named["mean"], named["components"], named["variance"], float(named["noise"]))
    part = flat(x, seen, ends[:50])
    np.testing.assert_allclose(scores(served, *part), scores(pca, *part), rtol=1e-4, atol=1e-5)


def test_a_linear_autoencoder_converges_to_the_same_subspace():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = factors(800, channels=4, strength=(2.0, 1.0), noise=0.1)
        x /= x.std()
        seen = np.ones(x.shape, np.bool_)
        ends = np.arange(2, len(x))
        spec = LoopSpec(steps=800, batch=128, learning_rate=1e-2, weight_decay=0.0, mask_share=0.0)
        weights, _ = train(lambda: DenseAutoencoder(3, 4, hidden=(), latent=2), x, seen, ends, 3, spec)
    finally:
        torch.set_num_threads(threads)
    pca = fit_pca(x, seen, ends, 3, share=0.999, max_components=2)
    angles = naive_pca.principal_angles(weights["decoder.0.weight"].T, pca.components)
    assert angles.max() < 0.02
    untrained = naive_pca.principal_angles(np.random.default_rng(0).normal(size=(2, 12)), pca.components)
    assert untrained.max() > 0.5


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_that_keeps_nothing_or_everything_is_refused(fitted, share):
    x, seen, ends, _ = fitted
    with pytest.raises(ConfigError, match="pca_variance"):
        fit_pca(x, seen, ends, WINDOW, share=share)


def test_a_cap_of_no_components_is_refused(fitted):
    x, seen, ends, _ = fitted
    with pytest.raises(ConfigError, match="pca_max_components"):
        fit_pca(x, seen, ends, WINDOW, max_components=0)


def test_fewer_than_two_windows_are_too_little(fitted):
    x, seen, ends, _ = fitted
    with pytest.raises(TooLittleHistory, match="1 normal windows of 4 rows, 2 needed"):
        fit_pca(x, seen, ends[:1], WINDOW)
