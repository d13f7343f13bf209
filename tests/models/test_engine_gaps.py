import numpy as np
import pytest

from models.engine_gaps import reconstruct_holed
from models.pca import PrincipalComponents, reconstruct, scores


def model(readings, k, noise=0.3, seed=0):
    random = np.random.default_rng(seed)
    components = np.ascontiguousarray(np.linalg.qr(random.normal(size=(readings, k)))[0].T)
    return PrincipalComponents(0.1 * random.normal(size=readings), components, np.linspace(6, 1, k), noise)


def rebuilt(pca, x, observed, last):
    out = np.empty((len(x), last), np.float32)
    mean, loadings = pca.mean.astype(np.float32), np.array(pca.components.T, np.float32, order="C")
    reconstruct_holed(x, observed, mean, loadings, pca.noise / pca.variance, last, out)
    return out


@pytest.mark.parametrize(("noise", "tolerance"), [(0.3, 1e-6), (1e-4, 1e-3)])
@pytest.mark.parametrize("hidden", [1, 4, 5, 6, 20, 39])
def test_windows_with_gaps_are_rebuilt_as_the_model_defines_it(hidden, noise, tolerance):
    pca = model(40, 5, noise)
    random = np.random.default_rng(hidden)
    x = random.normal(size=(30, 40)).astype(np.float32)
    observed = np.ones((30, 40), np.bool_)
    for row in observed:
        row[random.permutation(40)[:hidden]] = False
    want = reconstruct(pca, scores(pca, x, observed))
    np.testing.assert_allclose(rebuilt(pca, x, observed, 40), want, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(rebuilt(pca, x, observed, 8), rebuilt(pca, x, observed, 40)[:, 32:])


@pytest.mark.parametrize("readings", [40, 41, 42, 43])
def test_a_window_has_the_same_bits_alone_and_among_others(readings):
    pca, random = model(readings, 5), np.random.default_rng(readings)
    x = (3 * random.normal(size=(60, readings))).astype(np.float32)
    masks = random.random((7, readings)) < np.linspace(0.3, 0.99, 7)[:, None]
    observed = masks[np.sort(random.integers(0, 7, 60))]
    alone = np.concatenate([rebuilt(pca, x[i : i + 1], observed[i : i + 1], 9) for i in range(60)])
    for n in (60, 33, 16, 8, 7):
        np.testing.assert_array_equal(rebuilt(pca, x[:n], observed[:n], 9), alone[:n])


def test_what_stands_where_nothing_was_observed_says_nothing():
    pca = model(40, 5)
    random = np.random.default_rng(0)
    x, observed = random.normal(size=(9, 40)).astype(np.float32), random.random((9, 40)) < 0.7
    other = np.where(observed, x, np.float32(1e9))
    np.testing.assert_array_equal(rebuilt(pca, x, observed, 8), rebuilt(pca, other, observed, 8))


def test_a_window_in_the_span_of_the_components_is_rebuilt_from_half_of_it():
    pca = model(40, 5, noise=1e-9)
    random = np.random.default_rng(1)
    x = (random.normal(size=(9, 5)) @ pca.components + pca.mean).astype(np.float32)
    observed = random.random((9, 40)) < 0.5
    np.testing.assert_allclose(rebuilt(pca, x, observed, 40), x, atol=1e-5)


def test_a_series_that_never_varies_has_a_component_of_zeros_and_expects_its_mean():
    pca = PrincipalComponents(np.full(6, 0.5), np.zeros((1, 6)), np.ones(1), 1e-6)
    got = rebuilt(pca, np.ones((1, 6), np.float32), np.array([[True] * 5 + [False]]), 6)
    np.testing.assert_array_equal(got, np.full((1, 6), 0.5, np.float32))
