"""From the residuals of C channels to one error, from the errors of several members to one score. High = anomalous.

A residual is what came less what was expected: signed and of the window's last row where the member's error is `last`;
the root mean square over the window's observed rows, never negative, where it is `window`. Its weight is the number of
readings it rests on: what was not observed weighs 0 and counts nowhere.

Legend: n rows, C channels. `residual`, `weight` : (n, C) float32. Every row is worked on by itself, so that its bits
do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.cholesky import solve_positive
from pipeline.errors import BundleError
from pipeline.values import Bool, Float32, Float64, Int64

ZTOP_SHARE = 8  # the mean goes over the largest eighth of the observed channels,
ZTOP_LEAST = 2  # but over no fewer than two
Z_LIMIT = 100.0  # one channel's say
MAD_FLOOR = 0.02  # in scaled units: a channel that is reconstructed perfectly must not divide by nothing
TINY = 1e-30  # error below which a member's logarithm is cut off

FITTED: Mapping[str, tuple[str, ...]] = {
    "mse": (),
    "ztop": ("median", "mad"),
    "mahalanobis": ("location", "precision"),
}


def aggregate(kind: str, residual: Float32, weight: Float32, fitted: Mapping[str, NDArray[Any]]) -> Float64:
    """Return one error >= 0 per row, (n,) float64.

    Parameters
    ----------
    kind : `mse`: mean square over all observed readings. `ztop`: mean of the largest eighth of
        z = (|residual| - median) / mad, each within 0..100. `mahalanobis`: distance of the observed residuals from
        their location under their own (marginal) covariance, times sqrt(C / observed channels).
    residual, weight : (n, C) float32; each row has a weight above 0.
    fitted : on residuals of normal windows: `median`, `mad` of |residual| (C,), or `location` (C,) of the residuals and
        `precision` (C, C), the inverse of their covariance.

    Raises
    ------
    BundleError : an unknown kind, or one of its fitted tensors is missing or of another shape.
    """
    return aggregation(kind, residual.shape[1], fitted)(residual, weight)


def aggregation(kind: str, channels: int, fitted: Mapping[str, NDArray[Any]]) -> Callable[[Float32, Float32], Float64]:
    """Return `aggregate` for what it was fitted to: a function of residual and weight. Raises as that does."""
    check_fitted(kind, channels, fitted)
    kernel, given = _KERNELS[kind], [np.ascontiguousarray(fitted[name], np.float64) for name in FITTED[kind]]

    def errors_of(residual: Float32, weight: Float32) -> Float64:
        errors = np.empty(len(residual), np.float64)
        kernel(residual, weight, *given, errors)
        return errors

    return errors_of


def check_fitted(kind: str, channels: int, fitted: Mapping[str, NDArray[Any]]) -> None:
    """Raise BundleError unless `fitted` has what an aggregation needs."""
    if kind not in FITTED:
        raise BundleError(f"unknown aggregate {kind!r}: this program knows {', '.join(sorted(FITTED))}")
    for name in FITTED[kind]:
        shape = (channels, channels) if name == "precision" else (channels,)
        if name not in fitted or fitted[name].shape != shape:
            found = fitted[name].shape if name in fitted else "nothing"
            raise BundleError(f"aggregate {kind!r} needs agg.{name} of shape {shape}, the bundle has {found}")


def combine(errors: Sequence[Float64]) -> Float32:
    """Return the geometric mean of the members' errors, (n,) float32: for two, sqrt(e_1 * e_2)."""
    if len(errors) == 1:
        return errors[0].astype(np.float32)
    logs = [np.log(np.maximum(e, TINY)) for e in errors]
    return np.exp(sum(logs[1:], start=logs[0]) / len(logs)).astype(np.float32)


def channel_shares(
    residuals: Sequence[Float32], weights: Sequence[Float32], observed: Bool, at: Int64, out: Float32
) -> None:
    """Write each channel's part in the error: mean over members of its share of squared residuals.

    A row's parts sum to 1. A channel that is not observed in the row itself has no part; where nothing observed is off
    at all, every observed channel has the same.

    Parameters
    ----------
    observed, out : (n, C), zeros of float32 where it is written: at the rows `at` (k,), which residuals and weights are
        of.
    """
    for residual, weight in zip(residuals, weights, strict=True):
        _add_shares(residual, weight, observed, at, 1.0 / len(residuals), out)


@njit(nogil=True, cache=True)
def _mse(residual: Float32, weight: Float32, out: Float64) -> None:
    for i in range(residual.shape[0]):
        total, count = 0.0, 0.0
        for c in range(residual.shape[1]):
            r, w = np.float64(residual[i, c]), np.float64(weight[i, c])
            total += w * r * r
            count += w
        out[i] = total / count


@njit(nogil=True, cache=True)
def _ztop(residual: Float32, weight: Float32, median: Float64, mad: Float64, out: Float64) -> None:
    channels = residual.shape[1]
    z = np.empty(channels, np.float64)
    for i in range(residual.shape[0]):
        seen = 0
        for c in range(channels):
            if weight[i, c] > 0:
                off = (abs(np.float64(residual[i, c])) - median[c]) / max(mad[c], MAD_FLOOR)
                z[seen] = min(max(off, 0.0), Z_LIMIT)
                seen += 1
        top = min(seen, max(ZTOP_LEAST, seen // ZTOP_SHARE))
        largest = np.sort(z[:seen])
        total = 0.0
        for j in range(seen - top, seen):
            total += largest[j]
        out[i] = total / top


@njit(nogil=True, cache=True)
def _mahalanobis(residual: Float32, weight: Float32, location: Float64, precision: Float64, out: Float64) -> None:
    channels = residual.shape[1]
    d = np.empty(channels, np.float64)
    for i in range(residual.shape[0]):
        seen = 0
        for c in range(channels):
            d[c] = np.float64(residual[i, c]) - location[c] if weight[i, c] > 0 else 0.0
            seen += weight[i, c] > 0
        if seen < channels:
            _fill_expected(d, weight[i], precision)
        square = 0.0
        for a in range(channels):
            row = 0.0
            for b in range(channels):
                row += precision[a, b] * d[b]
            square += d[a] * row
        out[i] = np.sqrt(max(square, 0.0) * channels / seen)


@njit(nogil=True, cache=True)
def _fill_expected(d: Float64, weight: Float32, precision: Float64) -> None:
    """Put in what the observed deviations let expect of the others: the distance is then that of the marginal.

    Minimises d' P d over the hidden ones: P_hh d_h = -P_ho d_o.
    """
    hidden = np.flatnonzero(weight == 0)
    h = len(hidden)
    inner = np.empty((h, h), np.float64)
    pull = np.zeros(h, np.float64)
    for p in range(h):
        for c in range(len(d)):
            pull[p] -= precision[hidden[p], c] * d[c]
        for q in range(p, h):
            inner[p, q] = precision[hidden[p], hidden[q]]
    solve_positive(inner, pull)
    for p in range(h):
        d[hidden[p]] = pull[p]


@njit(nogil=True, cache=True)
def _add_shares(residual: Float32, weight: Float32, observed: Bool, at: Int64, part: float, shares: Float32) -> None:
    channels = residual.shape[1]
    square = np.empty(channels, np.float64)
    for i in range(residual.shape[0]):
        seen, share = observed[at[i]], shares[at[i]]
        total, count = 0.0, 0
        for c in range(channels):
            square[c] = 0.0
            if seen[c]:
                square[c] = np.float64(weight[i, c]) * np.float64(residual[i, c]) * np.float64(residual[i, c])
                count += 1
            total += square[c]
        if total > 0:
            factor = part / total
            for c in range(channels):
                share[c] += np.float32(factor * square[c])
        else:
            for c in range(channels):
                share[c] += np.float32(part / count if seen[c] else 0.0)


_KERNELS: Mapping[str, Callable[..., None]] = {"mse": _mse, "ztop": _ztop, "mahalanobis": _mahalanobis}
