"""Small symmetric positive definite systems, solved inside kernels: the same bits whatever runs beside them."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.values import Float32, Float64

_LEAST_PIVOT = 1e-300  # where rounding takes the last bit of a matrix that is as good as singular


@njit(nogil=True, cache=True)
def add_scaled(row: Float64, factor: float, other: Float64 | Float32) -> None:
    """Add `factor` times `other` to `row`, element by element, in float64."""
    for i in range(len(row)):
        row[i] += factor * other[i]


@njit(nogil=True, cache=True)
def solve_positive(a: Float64, b: Float64) -> None:
    """Solve A x = b by Cholesky, A = U'U; x takes the place of b, U that of A.

    Parameters
    ----------
    a : (n, n), symmetric positive definite; only the upper triangle is read.
    b : (n,)
    """
    factorise(a)
    substitute(a, b)


@njit(nogil=True, cache=True)
def factorise(a: Float64) -> None:
    """Put U in the place of A = U'U, (n, n); only the upper triangles count."""
    n = len(a)
    for j in range(n):  # row by row: the inner loops run along rows, and from 0, so that they are vectorised
        row = a[j, j:]
        row /= np.sqrt(max(row[0], _LEAST_PIVOT))
        for i in range(j + 1, n):
            add_scaled(a[i, i:], -row[i - j], row[i - j :])


@njit(nogil=True, cache=True)
def substitute(u: Float64, b: Float64) -> None:
    """Solve U'U x = b for x, which takes the place of b, (n,)."""
    n = len(b)
    for j in range(n):
        b[j] /= u[j, j]
        add_scaled(b[j + 1 :], -b[j], u[j, j + 1 :])
    for j in range(n - 1, -1, -1):
        for k in range(j + 1, n):
            b[j] -= u[j, k] * b[k]
        b[j] /= u[j, j]
