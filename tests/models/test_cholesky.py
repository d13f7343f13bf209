import numpy as np
import pytest

from models.cholesky import solve_positive


@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
def test_it_solves_what_numpy_solves(n):
    random = np.random.default_rng(n)
    root = random.normal(size=(n, n))
    a, b = root @ root.T + 0.1 * np.eye(n), random.normal(size=n)
    want = np.linalg.solve(a, b)
    solve_positive(a.copy(), b)
    np.testing.assert_allclose(b, want, rtol=1e-8, atol=1e-10)


def test_only_the_upper_triangle_is_read():
    a = np.array([[4.0, 1.0], [np.nan, 3.0]])
    b = np.array([1.0, 2.0])
    solve_positive(a, b)
    np.testing.assert_allclose(b, np.linalg.solve([[4, 1], [1, 3]], [1, 2]))


def test_a_matrix_that_is_singular_by_rounding_gives_finite_numbers():
    a = np.array([[1.0, 1.0], [1.0, 1.0 - 1e-16]])
    b = np.array([1.0, 1.0])
    solve_positive(a, b)
    assert np.isfinite(b).all()
