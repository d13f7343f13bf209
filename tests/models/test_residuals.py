import naive_pca
import numpy as np
import pytest
import torch

from models.autoencoders import build_module
from models.pca import fit_pca
from models.residuals import channel_residuals, fit_aggregation, ledoit_wolf
from models.series import windows
from pipeline.bundle import MemberSpec

RNG = np.random.default_rng(2)
WINDOW, CHANNELS = 4, 3


@pytest.fixture(scope="module")
def rows():
    x = np.cumsum(RNG.normal(size=(200, CHANNELS)), axis=0)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    seen = RNG.random(x.shape) > 0.1
    return np.where(seen, x, np.float32(0)), seen, np.arange(WINDOW - 1, len(x))


def tensors_of(kind, rows):
    if kind == "pca":
        return fit_pca(*rows, WINDOW).tensors()
    module = build_module(
        MemberSpec("dense", WINDOW, params={"hidden": [8], "latent": 2, "batch_norm": True}), CHANNELS
    )
    return {name: value.numpy() for name, value in module.state_dict().items()}


def member(kind, error):
    params = {} if kind == "pca" else {"hidden": [8], "latent": 2, "batch_norm": True}
    return MemberSpec(kind, WINDOW, error, params=params)


def test_the_last_residual_of_an_autoencoder_is_reading_minus_reconstruction(rows):
    tensors = tensors_of("dense", rows)
    residual, known = channel_residuals(member("dense", "last"), tensors, *rows)
    module = build_module(member("dense", "last"), CHANNELS).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    x, seen = (torch.from_numpy(part) for part in windows(*rows, WINDOW))
    with torch.no_grad():
        left = (x - module(x, seen.float()))[:, -1].numpy()
    np.testing.assert_array_equal(known, seen[:, -1])
    np.testing.assert_allclose(residual, np.where(known, left, 0), atol=1e-6)


def test_the_last_residual_of_pca_is_reading_minus_projection(rows):
    pca = fit_pca(*rows, WINDOW)
    residual, known = channel_residuals(member("pca", "last"), pca.tensors(), *rows)
    x, seen = windows(*rows, WINDOW)
    for i in range(0, len(x), 9):
        mask = seen[i].reshape(-1)
        t = naive_pca.scores_of(pca.mean, pca.components, pca.variance, pca.noise, x[i].reshape(-1), mask)
        back = (pca.mean + t @ pca.components).reshape(WINDOW, CHANNELS)
        np.testing.assert_allclose(residual[i], np.where(seen[i, -1], x[i, -1] - back[-1], 0), atol=1e-4)
    np.testing.assert_array_equal(known, seen[:, -1])


def test_the_window_residual_is_the_root_mean_square_over_observed_rows(rows):
    tensors = tensors_of("dense", rows)
    residual, known = channel_residuals(member("dense", "window"), tensors, *rows)
    module = build_module(member("dense", "window"), CHANNELS).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    x, seen = windows(*rows, WINDOW)
    with torch.no_grad():
        left = x - module(torch.from_numpy(x), torch.from_numpy(seen).float()).numpy()
    for i in range(len(x)):
        for c in range(CHANNELS):
            here = seen[i, :, c]
            expected = np.sqrt(np.mean(left[i, here, c] ** 2)) if here.any() else 0.0
            assert residual[i, c] == pytest.approx(expected, abs=1e-5)
            assert known[i, c] == here.any()


def test_residuals_do_not_touch_the_global_random_state(rows):
    tensors = tensors_of("dense", rows)
    before = torch.get_rng_state()
    channel_residuals(member("dense", "last"), tensors, *rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_median_and_mad_are_of_the_size_and_location_of_the_signed_residual():
    residual = np.array([[-3, 0], [1, 0], [2, 7]], np.float32)
    known = np.array([[True, False], [True, False], [True, True]])
    fitted = fit_aggregation(residual, known)
    np.testing.assert_allclose(fitted["median"], [2, 7])
    np.testing.assert_allclose(fitted["mad"], [1.4826, 0], rtol=1e-6)
    np.testing.assert_allclose(fitted["location"], [0, 7])
    assert {name: (a.shape, a.dtype.name) for name, a in fitted.items()} == {
        "median": ((2,), "float32"),
        "mad": ((2,), "float32"),
        "location": ((2,), "float32"),
        "precision": ((2, 2), "float32"),
    }


def test_the_precision_undoes_the_covariance():
    shape = np.array([[2.0, 0.8], [0.8, 1.0]])
    residual = RNG.multivariate_normal([1, -1], shape, 20_000).astype(np.float32)
    fitted = fit_aggregation(residual, np.ones(residual.shape, np.bool_))
    np.testing.assert_allclose(fitted["precision"] @ shape, np.eye(2), atol=0.05)


def test_nothing_left_over_still_gives_a_finite_precision():
    fitted = fit_aggregation(np.zeros((50, 3), np.float32), np.ones((50, 3), np.bool_))
    assert np.isfinite(fitted["precision"]).all()


def test_a_channel_that_was_never_known_does_not_spoil_the_others():
    residual = RNG.normal(size=(500, 3)).astype(np.float32)
    known = np.ones(residual.shape, np.bool_)
    known[:, 1] = False
    fitted = fit_aggregation(residual, known)
    assert (fitted["median"][1], fitted["mad"][1], fitted["location"][1]) == (0, 0, 0)
    assert np.isfinite(fitted["precision"]).all()


def shrunk_from_the_definition(deviation):
    """Ledoit & Wolf (2004), lemmas 3.2 to 3.5, one row at a time."""
    n, p = deviation.shape
    sample = sum(np.outer(row, row) for row in deviation) / n

    def norm2(matrix):
        return np.trace(matrix @ matrix.T) / p

    mu = np.trace(sample) / p
    d2 = norm2(sample - mu * np.eye(p))
    b2 = min(d2, sum(norm2(np.outer(row, row) - sample) for row in deviation) / n**2)
    return b2 / d2 * mu * np.eye(p) + (1 - b2 / d2) * sample


@pytest.mark.parametrize(("n", "p"), [(5, 8), (40, 6), (300, 3)])
def test_the_shrunk_covariance_follows_the_paper(n, p):
    deviation = RNG.normal(size=(n, p)) @ RNG.normal(size=(p, p))
    deviation -= deviation.mean(axis=0)
    np.testing.assert_allclose(ledoit_wolf(deviation), shrunk_from_the_definition(deviation), rtol=1e-9, atol=1e-12)


def test_fewer_rows_than_channels_still_give_a_covariance_that_can_be_inverted():
    deviation = RNG.normal(size=(5, 20))
    assert np.linalg.eigvalsh(ledoit_wolf(deviation)).min() > 0
