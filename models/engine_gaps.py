"""Principal components of windows with gaps: the components given the observed readings, window by window.

With loadings V (k, D), V V' = I, and the readings h that are hidden, the posterior mean of `models.pca.scores` is

    t = (I + R - U'U)^-1 V (x - mean),   U = V_h', R = diag(noise / variance), (x - mean) 0 where hidden.

Few readings are hidden as a rule, so the system that is solved is the smaller one of two: that one, k by k (with
V_o V_o' of the observed readings in place of I - U'U where those are the fewer), or, with one row per hidden reading,

    t = y + A^-1 U' (I - U A^-1 U')^-1 U y,   A = I + R, y = A^-1 V (x - mean)     (Sherman-Morrison-Woodbury).

All in float64: where little is observed, these are close to singular. Every window is solved by itself, so its bits do
not depend on the batch.

Legend: n windows, D readings a window, k components.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.cholesky import add_scaled, solve_positive
from pipeline.values import Bool, Float32, Float64


@njit(nogil=True, cache=True)
def reconstruct_holed(
    x: Float32, observed: Bool, mean: Float32, components: Float32, ridge: Float64, last: int, out: Float32
) -> None:
    """Reconstruct the last readings of windows from what was observed of them.

    Parameters
    ----------
    x : (n, D), scaled.
    observed : (n, D)
    mean : (D,)
    components : (k, D), orthonormal rows.
    ridge : (k,) float64, noise / variance.
    last : how many readings to reconstruct, counted from the end.
    out : (n, last), written.
    """
    k, readings = components.shape
    first = readings - last
    loadings = np.ascontiguousarray(components.T)
    found = np.empty(k, np.float64)
    rebuilt = np.empty(last, np.float64)
    for i in range(x.shape[0]):
        solve_scores(x[i], observed[i], mean, loadings, ridge, found)
        for j in range(last):
            rebuilt[j] = mean[first + j]
        for c in range(k):
            add_scaled(rebuilt, found[c], components[c, first:])
        for j in range(last):
            out[i, j] = np.float32(rebuilt[j])


@njit(nogil=True, cache=True)
def solve_scores(x: Float32, observed: Bool, mean: Float32, loadings: Float32, ridge: Float64, found: Float64) -> None:
    """Write the scores (k,) of one window with gaps, (D,), into `found`; `loadings` is (D, k)."""
    readings, k = loadings.shape
    found[:] = 0.0
    for j in range(readings):
        if observed[j]:
            add_scaled(found, np.float64(x[j]) - np.float64(mean[j]), loadings[j])
    hidden = np.flatnonzero(~observed)
    if len(hidden) < k:
        _solve_hidden(loadings[hidden].astype(np.float64), ridge, found)
    elif 2 * len(hidden) < readings:
        _solve_components(loadings[hidden].astype(np.float64), -1.0, 1.0 + ridge, found)
    else:
        _solve_components(loadings[observed].astype(np.float64), 1.0, ridge, found)


@njit(nogil=True, cache=True)
def _solve_components(rows: Float64, sign: float, diagonal: Float64, found: Float64) -> None:
    """Solve (diag(diagonal) + sign rows'rows) t = found for t (k,), in place; `rows` is (m, k)."""
    k = len(found)
    square = np.diag(diagonal)
    for p in range(len(rows)):
        for c in range(k):
            add_scaled(square[c, c:], sign * rows[p, c], rows[p, c:])
    solve_positive(square, found)


@njit(nogil=True, cache=True)
def _solve_hidden(hidden: Float64, ridge: Float64, found: Float64) -> None:
    """Solve the h by h system. `hidden` is U (h, k); `found` holds V (x - mean), then t."""
    h, k = hidden.shape
    across = np.ascontiguousarray(hidden.T)
    square = np.eye(h)
    z = np.zeros(h, np.float64)
    for c in range(k):
        found[c] /= 1.0 + ridge[c]
        add_scaled(z, found[c], across[c])
        for p in range(h):
            add_scaled(square[p, p:], -across[c, p] / (1.0 + ridge[c]), across[c, p:])
    solve_positive(square, z)
    for c in range(k):
        for p in range(h):
            found[c] += across[c, p] * z[p] / (1.0 + ridge[c])
