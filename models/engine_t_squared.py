"""Hotelling's T² of windows as the error of a `pca` member, alone or beside Q, and each channel's part in it.

With the scores t of a window (n: projected; with gaps: the posterior mean, `models.engine_gaps`), components P (k, D)
and their variances v:

    T² = sum_c t_c² / v_c = sum_j y_j²,    y = P' (t / sqrt(v))          y_j² is what reading j contributes [1]
    phi = Q / Q_lim + T² / T²_lim                                       the combined index [2]

The limits are 99th percentiles on the windows that were fitted on: they put both on one scale, thresholds are
calibrated as for any error. On the host in float64, window by window, so that bits do not depend on the batch.

References
----------
[1] Alcala & Qin, "Analysis and generalization of fault diagnosis methods for process monitoring", Journal of Process
    Control 21 (2011): complete decomposition contributions.
[2] Yue & Qin, "Reconstruction-based fault identification using a combined index", Industrial & Engineering Chemistry
    Research 40 (2001).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.engine_gaps import solve_scores
from models.engine_rings import Chunk
from models.fitted_members import principal
from pipeline.bundle import Bundle, MemberSpec
from pipeline.errors import BundleError
from pipeline.values import Bool, Float32, Float64, Int32

STATISTICS = ("q", "t2", "combined")


def statistic_of(spec: MemberSpec) -> str:
    """Return which statistic of a `pca` member is its error; bundles that do not say use Q."""
    return str(spec.params.get("statistic", "q")) if spec.kind == "pca" else "q"


def need_q(spec: MemberSpec, where: str) -> None:
    """Raise BundleError where only Q can be computed."""
    if statistic_of(spec) != "q":
        raise BundleError(f"{where} knows the Q of a pca member, not {statistic_of(spec)!r}: serve it on the CPU")


class TSquared:
    """Turns the Q of windows into T², or into the combined index.

    Parameters
    ----------
    bundle : with the tensors of the member's components, and `limit` (2,) of Q and T².
    first : reading of a bundle's window with which the member's begins.

    Raises
    ------
    BundleError : an unknown statistic, or no limits.
    """

    def __init__(self, bundle: Bundle, group: int, index: int, first: int) -> None:
        spec = bundle.members[index]
        statistic, limit = statistic_of(spec), np.asarray(bundle.tensors.get(f"g{group}.m{index}.limit"), np.float64)
        if statistic not in STATISTICS or limit.shape != (2,):
            raise BundleError(f"a pca member with statistic {statistic!r} needs one of {STATISTICS} and limit (2,)")
        q_limit, t_limit = limit.tolist()
        self._share_of_q = 0.0 if statistic == "t2" else 1.0 / q_limit
        self._share_of_t = 1.0 if statistic == "t2" else 1.0 / t_limit
        self._first, self._rows = first, spec.window
        found = principal(bundle, group, index)
        mean, loadings, ridge = found.on_host()
        self._model = (mean, loadings, found.variance, ridge)

    def errors(self, chunk: Chunk, k: int, q: Float64, residual: Float32, weight: Float32) -> Float64:
        """Return the errors (k,) of the first k windows, and write each channel's part of them into `residual`.

        Parameters
        ----------
        q : (k,), the mean squared residual.
        residual, weight : (k, C), of Q; afterwards weight * residual² is a channel's part of the error.
        """
        out = np.empty(k, np.float64)
        where = (self._first, self._rows)
        _apply(
            chunk.x,
            chunk.observed,
            chunk.age,
            where,
            self._model,
            (self._share_of_q, self._share_of_t),
            q,
            residual,
            weight,
            out,
        )
        return out


@njit(nogil=True, cache=True)
def _apply(
    x: Float32,
    observed: Bool,
    age: Int32,
    where: tuple[int, int],
    model: tuple[Float32, Float32, Float64, Float64],
    shares: tuple[float, float],
    q: Float64,
    residual: Float32,
    weight: Float32,
    out: Float64,
) -> None:
    first, rows = where
    mean, loadings, variance, ridge = model
    readings, channels = len(mean), residual.shape[1]
    k = len(variance)
    t = np.empty(k, np.float64)
    part = np.empty(channels, np.float64)
    for i in range(len(out)):
        window = x[i, first : first + readings]
        if age[i] < rows:
            solve_scores(window, observed[i, first : first + readings], mean, loadings, ridge, t)
        else:
            t[:] = 0.0
            for j in range(readings):
                off = np.float64(window[j]) - np.float64(mean[j])
                for c in range(k):
                    t[c] += off * loadings[j, c]
        square = 0.0
        for c in range(k):
            square += t[c] * t[c] / variance[c]
            t[c] /= np.sqrt(variance[c])
        part[:] = 0.0
        for j in range(readings):
            y = 0.0
            for c in range(k):
                y += loadings[j, c] * t[c]
            part[j % channels] += y * y
        out[i] = shares[0] * q[i] + shares[1] * square
        count = 0.0
        for c in range(channels):
            count += weight[i, c]
        for c in range(channels):
            w = np.float64(weight[i, c])
            if w > 0:
                r = np.float64(residual[i, c])
                residual[i, c] = np.float32(np.sqrt(shares[0] * r * r / count + shares[1] * part[c] / w))
