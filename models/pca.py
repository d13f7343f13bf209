"""Principal components of windows: the baseline every network must beat, and a fast production model.

Legend: n windows, W rows a window, C channels, D = W * C readings a window (row after row), k components.

What is missing is left out, not filled in: a window is projected on the loadings of the readings that were observed,
and its error is normalised by how many they are. Putting zeros there instead pulls the projection towards the mean and
biases both statistics.

References
----------
[1] Jackson & Mudholkar, "Control procedures for residuals associated with principal component analysis",
    Technometrics 21 (1979): Q.
[2] Hotelling, "Multivariate quality control" (1947): T².
[3] Tipping & Bishop, "Probabilistic principal component analysis", JRSS B 61 (1999): Eq. 8 (noise), Eq. 9 (posterior).
[4] Nelson, Taylor & MacGregor, "Missing data methods in PCA and PLS: score calculations with incomplete observations",
    Chemometrics and Intelligent Laboratory Systems 35 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.series import thinned, windows
from pipeline.errors import ConfigError, TooLittleHistory
from pipeline.values import Bool, Float32, Float64, Int64

_SMALLEST_VARIANCE = 1e-6  # in scaled units squared: below it a direction does not vary, it rounds
_FULL_SHARE = 0.5  # of the windows have no gap: enough to leave the others out
_CHUNK = 2048  # windows gathered at a time
_LIMIT_WINDOWS, _LIMIT_PERCENTILE = 4096, 99.0  # that limits rest on

Floats = Float32 | Float64


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """A fitted model. `variance` is that of the scores, `noise` the mean variance of what the components leave out.

    `windows` and `imputed` say what it was fitted on: how many windows, and whether readings missing from them were
    put at their channel's location, 0 (see `fit_pca`).
    """

    mean: Floats  # (D,)
    components: Floats  # (k, D), orthonormal rows
    variance: Floats  # (k,), falling, > 0
    noise: float  # > 0
    windows: int = 0
    imputed: bool = False

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """Return what a bundle stores: `mean`, `components`, `variance` and `noise` (), all float32."""
        named = {"mean": self.mean, "components": self.components, "variance": self.variance, "noise": self.noise}
        return {name: np.asarray(value, np.float32) for name, value in named.items()}


def fit_pca(
    scaled: Float32,
    observed: Bool,
    ends: Int64,
    window: int,
    share: float = 0.9,
    max_components: int = 512,
    max_windows: int = 20_000,
) -> PrincipalComponents:
    """Fit the fewest components that hold more than `share` of the variance of windows.

    Windows with a gap are left out while at least half of the windows have none. Otherwise all are used, with missing
    readings at their channel's location (0 in scaled units), and the result says so (`imputed`): variances come out
    too small by about the missing share then. Channels that were never observed count as no gap. At least one direction
    is always left to the residual.
    A series that never varies gets one component of zeros: all that it does later is residual.

    Parameters
    ----------
    scaled, observed : (rows, C), 0.0 where not observed.
    ends : rows that end the windows to fit on.
    share : of the total variance, between 0 and 1.
    max_components : cap on k.
    max_windows : more windows than these are thinned evenly.

    Raises
    ------
    ConfigError : `share` or a cap out of range.
    TooLittleHistory : fewer than two windows.
    """
    if not 0 < share < 1:
        raise ConfigError("train.pca_variance", share, "use a share between 0 and 1, such as 0.9")
    if max_components < 1:
        raise ConfigError("train.pca_max_components", max_components, "allow at least 1 component")
    full = ends[_without_gap(scaled, observed, ends, window)]
    imputed = len(full) < _FULL_SHARE * len(ends)
    chosen = thinned(ends if imputed else full, max_windows)
    if len(chosen) < 2:
        raise TooLittleHistory(len(chosen), 2, f"normal windows of {window} rows")
    mean, covariance = _moments(scaled, observed, chosen, window)
    values, vectors = np.linalg.eigh(covariance)
    components, variance = _leading(values[::-1], vectors[:, ::-1].T, share, max_components)
    left = float(values.sum() - variance.sum()) / max(len(values) - len(variance), 1)
    if len(variance) == 0:
        components, variance = np.zeros((1, len(mean))), np.ones(1)
    return PrincipalComponents(mean, components, variance, max(left, _SMALLEST_VARIANCE), len(chosen), imputed)


def scores(pca: PrincipalComponents, x: Floats, observed: Bool) -> Float64:
    """Return the scores (n, k) of windows on the components, from observed readings alone.

    A full window is projected: t = P (x - mean). Otherwise t is the posterior mean under normal scores and noise,

        t = argmin |x_o - mean_o - P_o' t|² / noise + sum t² / variance,

    least squares on the observed loadings P_o with the ridge that keeps it sound however little is observed ([3],
    Eq. 9, with `variance` as the prior of the scores where the paper has variance - noise; [4], section 3).

    Parameters
    ----------
    x : (n, D), scaled.
    observed : (n, D) bool.
    """
    loadings = pca.components.astype(np.float64)
    centred = np.where(observed, x - pca.mean.astype(np.float64), 0.0)
    found = centred @ loadings.T
    ridge = np.diag(pca.noise / pca.variance.astype(np.float64))
    gaps = np.flatnonzero(~observed.all(axis=1))
    patterns, which = np.unique(observed[gaps], axis=0, return_inverse=True)
    for i, seen in enumerate(patterns):
        rows = gaps[which.reshape(-1) == i]
        gram = loadings[:, seen] @ loadings[:, seen].T + ridge
        found[rows] = np.linalg.solve(gram, found[rows].T).T
    return found


def reconstruct(pca: PrincipalComponents, t: Float64) -> Float64:
    """Return the windows (n, D) that scores (n, k) stand for, missing readings included."""
    return t @ pca.components.astype(np.float64) + pca.mean.astype(np.float64)


def q_statistic(x: Floats, reconstruction: Float64, observed: Bool) -> Float64:
    """Return Q (n,): the mean squared residual over the observed readings [1]; NaN where nothing was observed."""
    squared = np.where(observed, np.square(x - reconstruction), 0.0).sum(axis=1)
    seen = observed.sum(axis=1)
    return np.where(seen > 0, squared / np.maximum(seen, 1), np.nan)


def t_squared(pca: PrincipalComponents, t: Float64) -> Float64:
    """Return Hotelling's T² (n,): how far the scores are from the mean, in their own variances [2]."""
    return np.asarray((np.square(t) / pca.variance.astype(np.float64)).sum(axis=1))


def control_limits(
    pca: PrincipalComponents, scaled: Float32, observed: Bool, ends: Int64, window: int, last: bool
) -> Float32:
    """Return the 99th percentiles of Q and T², (2,), on normal windows; Q of the last row alone if `last`.

    Windows in which nothing that counts was observed are left out; both are at least 1e-6.
    """
    found: list[Float64] = []
    chosen = thinned(ends, _LIMIT_WINDOWS)
    for i in range(0, len(chosen), _CHUNK):
        x, seen = windows(scaled, observed, chosen[i : i + _CHUNK], window)
        x, seen = x.reshape(len(x), -1), seen.reshape(len(x), -1)
        t = scores(pca, x, seen)
        part = slice(-scaled.shape[1] if last else None, None)
        q = q_statistic(x[:, part], reconstruct(pca, t)[:, part], seen[:, part])
        found.append(np.stack([q, t_squared(pca, t)]))
    both = np.concatenate(found, axis=1)
    limits = np.percentile(both[:, np.isfinite(both[0])], _LIMIT_PERCENTILE, axis=1)
    return np.maximum(limits, _SMALLEST_VARIANCE).astype(np.float32)


def _without_gap(scaled: Float32, observed: Bool, ends: Int64, window: int) -> Bool:
    """Return (len(ends),): no reading of the window is missing, channels that are never there aside."""
    known = observed.any(axis=0)
    gaps = np.concatenate([[0], np.cumsum(~observed[:, known].all(axis=1))])
    return np.asarray(gaps[ends + 1] == gaps[ends - window + 1])


def _moments(scaled: Float32, observed: Bool, ends: Int64, window: int) -> tuple[Float64, Float64]:
    """Return mean (D,) and covariance (D, D) of windows, in float64, a chunk of windows at a time."""
    width = window * scaled.shape[1]
    parts = [ends[i : i + _CHUNK] for i in range(0, len(ends), _CHUNK)]
    mean = np.zeros(width)
    for part in parts:
        mean += windows(scaled, observed, part, window)[0].reshape(len(part), width).sum(axis=0, dtype=np.float64)
    mean /= len(ends)
    covariance = np.zeros((width, width))
    for part in parts:
        centred = windows(scaled, observed, part, window)[0].reshape(len(part), width) - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(ends) - 1)


def _leading(values: Float64, vectors: Float64, share: float, most: int) -> tuple[Float64, Float64]:
    """Return the leading rows of `vectors` and their variances; `values` fall. Each row's largest entry is positive."""
    total = values.sum()
    varying = int((values > _SMALLEST_VARIANCE).sum())
    needed = int(np.searchsorted(np.cumsum(values) / total, share, side="right")) + 1 if varying else 0
    k = min(needed, varying, most, len(values) - 1)
    components = np.ascontiguousarray(vectors[:k])
    largest = components[np.arange(k), np.abs(components).argmax(axis=1)]
    return components * np.where(largest < 0, -1.0, 1.0)[:, None], values[:k].copy()
