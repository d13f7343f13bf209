"""Principal components of windows with gaps: the components given the observed readings, window by window.

With loadings V (k, D), V V' = I, and the readings h that are hidden, the posterior mean of `models.pca.scores` is

    t = (I + R - U'U)^-1 V (x - mean),   U = V_h', R = diag(noise / variance), (x - mean) 0 where hidden.

Few readings are hidden as a rule, so the system that is solved is the smaller one of two: that one, k by k (with
V_o V_o' of the observed readings in place of I - U'U where those are the fewer), or, with one row per hidden reading,

    t = y + A^-1 U' (I - U A^-1 U')^-1 U y,   A = I + R, y = A^-1 V (x - mean)     (Sherman-Morrison-Woodbury).

All in float64: where little is observed, these are close to singular. Every window is worked on by itself, so its bits
do not depend on the batch; those that follow one another with one mask share its factor.

Legend: n windows, D readings a window, k components.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.cholesky import add_scaled, factorise, substitute
from pipeline.values import Bool, Float32, Float64


@njit(nogil=True, cache=True)
def reconstruct_holed(
    x: Float32, observed: Bool, mean: Float32, loadings: Float32, ridge: Float64, last: int, out: Float32
) -> None:
    """Reconstruct the last readings of windows from what was observed of them.

    Parameters
    ----------
    x : (n, D), scaled.
    observed : (n, D)
    mean : (D,)
    loadings : (D, k), orthonormal columns.
    ridge : (k,) float64, noise / variance.
    last : how many readings to reconstruct, counted from the end.
    out : (n, last), written.
    """
    first, k = len(loadings) - last, loadings.shape[1]
    components = np.ascontiguousarray(loadings[first:].T)
    found, rebuilt = np.empty(k), np.empty(last)
    for i in range(len(x)):
        _project(x[i], observed[i], mean, loadings, found)
        if i == 0 or not _same(observed[i], observed[i - 1]):
            system = _system(observed[i], loadings, ridge)
        _solve(system, ridge, found)
        for j in range(last):
            rebuilt[j] = mean[first + j]
        for c in range(k):
            add_scaled(rebuilt, found[c], components[c])
        for j in range(last):
            out[i, j] = np.float32(rebuilt[j])


@njit(nogil=True, cache=True)
def solve_scores(x: Float32, observed: Bool, mean: Float32, loadings: Float32, ridge: Float64, found: Float64) -> None:
    """Write the scores (k,) of one window with gaps, (D,), into `found`; `loadings` is (D, k)."""
    _project(x, observed, mean, loadings, found)
    _solve(_system(observed, loadings, ridge), ridge, found)


@njit(nogil=True, cache=True)
def _project(x: Float32, observed: Bool, mean: Float32, loadings: Float32, found: Float64) -> None:
    """Write V (x - mean), hidden readings left out, into `found` (k,): added up reading by reading, four in a pass."""
    readings, k = loadings.shape
    found[:] = 0.0
    whole = readings - readings % 4
    for j in range(0, whole, 4):
        a, b = _centred(x, observed, mean, j), _centred(x, observed, mean, j + 1)
        c, d = _centred(x, observed, mean, j + 2), _centred(x, observed, mean, j + 3)
        for t in range(k):
            found[t] = (
                found[t] + a * loadings[j, t] + b * loadings[j + 1, t] + c * loadings[j + 2, t] + d * loadings[j + 3, t]
            )
    for j in range(whole, readings):
        add_scaled(found, _centred(x, observed, mean, j), loadings[j])


@njit(nogil=True, cache=True)
def _centred(x: Float32, observed: Bool, mean: Float32, j: int) -> float:
    return np.float64(x[j]) - np.float64(mean[j]) if observed[j] else 0.0


@njit(nogil=True, cache=True)
def _same(mask: Bool, other: Bool) -> bool:
    unlike = 0
    for j in range(len(mask)):
        unlike += mask[j] != other[j]
    return unlike == 0


@njit(nogil=True, cache=True)
def _system(observed: Bool, loadings: Float32, ridge: Float64) -> tuple[Float64, Float64]:
    """Return what solves windows with this mask: U' (k, h) or, where components are solved for, nothing; a factor."""
    readings, k = loadings.shape
    hidden = np.flatnonzero(~observed)
    if len(hidden) < k:
        across = np.ascontiguousarray(loadings[hidden].astype(np.float64).T)
        square = np.eye(len(hidden))
        for c in range(k):
            for p in range(len(hidden)):
                add_scaled(square[p, p:], -across[c, p] / (1.0 + ridge[c]), across[c, p:])
    else:
        few = 2 * len(hidden) < readings
        rows, sign = loadings[hidden if few else np.flatnonzero(observed)].astype(np.float64), -1.0 if few else 1.0
        across, square = np.empty((k, 0)), np.diag(1.0 + ridge if few else ridge)
        for p in range(len(rows)):
            for c in range(k):
                add_scaled(square[c, c:], sign * rows[p, c], rows[p, c:])
    factorise(square)
    return across, square


@njit(nogil=True, cache=True)
def _solve(system: tuple[Float64, Float64], ridge: Float64, found: Float64) -> None:
    """Solve for t, (k,), in place of V (x - mean)."""
    across, factor = system
    k, h = across.shape
    if len(factor) == k:
        substitute(factor, found)
        return
    z = np.zeros(h, np.float64)
    for c in range(k):
        found[c] /= 1.0 + ridge[c]
        add_scaled(z, found[c], across[c])
    substitute(factor, z)
    for c in range(k):
        for p in range(h):
            found[c] += across[c, p] * z[p] / (1.0 + ridge[c])
