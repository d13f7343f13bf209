"""The smoother: a rolling median + MAD that spans a day and lets no anomaly in, then an EWMA. High = anomalous.

For the error e_t of one asset, with the median and MAD (times 1.4826) of its calibration errors:

    c_t = (e_t - median_cal) / mad_cal                     calibrated error (`pipeline.standardise`: e_t as if all
                                                           channels had been there)
    z_t = (c_t - m_t) / max(1.4826 MAD_t, mad_floor)       m_t, MAD_t: of the M last admitted errors, e_t not among them
    s_t = (1 - alpha) s_(t-1) + alpha min(c_t, z_t)        alpha = 2 / (ewma_span + 1), s_0 = 0

c_t is admitted while z_t <= admit_z, and once in each span / M of event time, so that M errors span a day or so.
The window can explain a rise away and never create one. A spike is not admitted and moves nothing but s. Neither is a
shift of level by more than admit_z MADs, for however long: it stays an anomaly until the next calibration. A smaller
shift, or a slow rise, is taken for drift and followed within the span. c and z are those of other models too, as long
as each was calibrated: the window outlives a change of model.

The window is kept sorted as well as in order of admission, so one admission moves a few values, and the h + 1 smallest
deviations from the median are one run of the sorted window, which a bisection finds: O(log M), and exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.bundle import Calibration, SmootherSpec
from pipeline.errors import BundleError, ConfigError, ShapeError
from pipeline.kernels import AHEAD, fetch, first_outside, row_kernel, row_part, set_all
from pipeline.standardise import calibrated_errors
from pipeline.state import AssetTable, Column
from pipeline.values import NS_PER_S, Continuity, Float32, Int32, Scores

_COLUMNS = tuple(
    f"smoother_{c}" for c in ("started", "order", "sorted", "count", "oldest", "median", "mad", "bucket", "ewma")
)
_NO_BUCKET = np.iinfo(np.int64).min
_FRESH = int(Continuity.FRESH)
_FEWEST = 8  # errors that make a yardstick; with fewer z = c
_TO_SIGMA = 1.4826  # MAD times this is the standard deviation of a normal distribution


def smoother_columns(spec: SmootherSpec) -> dict[str, Column]:
    """Return the columns the smoother needs in the table: 8 M + 45 bytes an asset.

    Raises
    ------
    ConfigError : a value of `spec` that makes no sense.
    """
    m = spec.memory
    if m < _FEWEST:
        raise ConfigError("smoother.memory", m, f"use at least {_FEWEST} errors")
    if not m <= spec.span_ns < 2**62 // m:
        fix = f"use {m} ns (one per error) to {2**62 // m - 1} ns"
        raise ConfigError("smoother.span_s", spec.span_ns / NS_PER_S, fix)
    if not spec.mad_floor > 0:
        raise ConfigError("smoother.mad_floor", spec.mad_floor, "use a floor above 0")
    if spec.ewma_span < 1:
        raise ConfigError("smoother.ewma_span", spec.ewma_span, "use 1 (off) or more rows")
    return {
        "smoother_started": Column(np.bool_),
        "smoother_order": Column(np.float32, (m,), fill=np.inf),  # as admitted; a ring; inf where none was yet
        "smoother_sorted": Column(np.float32, (m,), fill=np.inf),
        "smoother_count": Column(np.int32),
        "smoother_oldest": Column(np.int32),  # where in the ring the next one goes
        "smoother_median": Column(np.float64),
        "smoother_mad": Column(np.float64),  # neither scaled nor floored
        "smoother_bucket": Column(np.int64, fill=_NO_BUCKET),  # of the last admission
        "smoother_ewma": Column(np.float64),
    }


def smooth(
    scores: Scores, cal_row: Int32, calibration: Calibration, table: AssetTable, spec: SmootherSpec
) -> tuple[Float32, Float32]:
    """Smooth scores in log order; return (smoothed, own).

    A FRESH asset, or one without state, starts with s = 0 and the calibration's start values as its window, NaN
    among them left out. A score that is NaN (or infinite) leaves the state as it is.

    Parameters
    ----------
    scores : of one partition.
    cal_row : (n,) int32, the row of `calibration` for each score.
    table : holds `smoother_columns(spec)`.

    Returns
    -------
    smoothed : (n,) float32, s. NaN where there is no score.
    own : (n,) float32, the frame by itself: min(c, z), or c where `spec.yardstick` is off. NaN where no score.

    Raises
    ------
    BundleError : a calibration that does not fit `spec`, or cannot be divided by.
    ShapeError : an asset code is not in the table, or a row not in the calibration.
    """
    n = len(scores)
    m = table["smoother_order"].shape[1]
    if calibration.start.shape[1] != m or spec.memory != m:
        raise BundleError(
            f"calibration has {calibration.start.shape[1]} start values, the smoother remembers {spec.memory} errors, "
            f"the table {m}: calibrate with the settings that serve"
        )
    if first_outside(scores.asset, len(table)) < n:
        raise ShapeError(f"asset codes must be 0 to {len(table) - 1}, found {scores.asset.min()} and up")
    calibrated = calibrated_errors(scores, cal_row, calibration)
    smoothed = np.empty(n, np.float32)
    own = np.empty(n, np.float32)
    _run(
        (scores.asset, scores.ts_ns, calibrated, scores.continuity),
        cal_row,
        calibration.start,
        tuple(table[name] for name in _COLUMNS),
        (spec.yardstick, spec.span_ns, float(spec.admit_z), float(spec.mad_floor), 2.0 / (spec.ewma_span + 1)),
        smoothed,
        own,
    )
    return smoothed, own


@row_kernel
def _run(
    scores: Any,
    cal_row: Int32,
    start: Float32,
    state: Any,
    spec: tuple[bool, int, float, float, float],
    smoothed: Float32,
    own: Float32,
) -> None:
    asset, ts, calibrated, continuity = scores
    started, order, window, count, _, median, mad, bucket, ewma = state
    yardstick, span, admit_z, mad_floor, alpha = spec
    for i in range(len(asset)):
        if i + AHEAD < len(asset):
            _fetch_figures(asset[i + AHEAD], state)
        if yardstick and i + AHEAD // 2 < len(asset):
            _fetch_window(asset[i + AHEAD // 2], ts[i + AHEAD // 2], span, state)
        a, k = asset[i], cal_row[i]
        if continuity[i] == _FRESH:
            started[a] = False
        c = calibrated[i]
        if not np.isfinite(c):
            smoothed[i] = own[i] = np.nan
            continue
        if not started[a]:
            _start(a, start[k], state)
        value = c
        if yardstick:
            z = c
            if count[a] >= _FEWEST:
                z = (c - median[a]) / max(_TO_SIGMA * mad[a], mad_floor)
            value = min(c, z)
            if z <= admit_z:
                now = _bucket(ts[i], span, order.shape[1])
                if now > bucket[a]:
                    bucket[a] = now
                    _admit(a, np.float32(c), state)
                    median[a], mad[a] = _median_mad(window[a], count[a])
        ewma[a] = (1.0 - alpha) * ewma[a] + alpha * value
        smoothed[i] = ewma[a]
        own[i] = value


@row_part
def _fetch_figures(a: int, state: Any) -> None:
    """Ask for what every score reads and writes."""
    _, _, _, count, oldest, median, mad, bucket, ewma = state
    fetch(count.ctypes.data + 4 * a, 4)
    fetch(oldest.ctypes.data + 4 * a, 4)
    fetch(median.ctypes.data + 8 * a, 8)
    fetch(mad.ctypes.data + 8 * a, 8)
    fetch(bucket.ctypes.data + 8 * a, 8)
    fetch(ewma.ctypes.data + 8 * a, 8)


@row_part
def _fetch_window(a: int, ts: int, span: int, state: Any) -> None:
    """Ask for what an admission moves, if it is time for one."""
    _, order, window, _, oldest, _, _, bucket, _ = state
    m = order.shape[1]
    if _bucket(ts, span, m) > bucket[a]:
        fetch(order.ctypes.data + 4 * (a * m + oldest[a]), 4)
        fetch(window.ctypes.data + 4 * a * m, 4 * m)


@row_part
def _start(a: int, values: Float32, state: Any) -> None:
    started, order, window, count, oldest, median, mad, bucket, ewma = state
    started[a] = True
    set_all(order[a], np.float32(np.inf))
    set_all(window[a], np.float32(np.inf))
    count[a] = oldest[a] = 0
    bucket[a] = _NO_BUCKET
    ewma[a] = median[a] = mad[a] = 0.0
    for value in values:
        if np.isfinite(value):
            _admit(a, value, state)
    if count[a] > 0:
        median[a], mad[a] = _median_mad(window[a], count[a])


@row_part
def _bucket(ts: int, span: int, m: int) -> int:
    """Return floor(ts m / span), in parts, because ts m does not fit in 64 bits."""
    spans = ts // span
    return spans * m + (ts - spans * span) * m // span


@row_part
def _admit(a: int, value: np.float32, state: Any) -> None:
    """Put a value in the place of the oldest one, and move those between the two; inf stands for none yet."""
    _, order, window, count, oldest, _, _, _, _ = state
    m = order.shape[1]
    s = window[a]
    at = oldest[a]
    to = _rank(s, m, order[a, at])
    order[a, at] = value
    oldest[a] = at + 1 if at + 1 < m else 0
    count[a] = min(count[a] + 1, m)
    while to + 1 < m and s[to + 1] < value:
        s[to] = s[to + 1]
        to += 1
    while to > 0 and s[to - 1] > value:
        s[to] = s[to - 1]
        to -= 1
    s[to] = value


@row_part
def _rank(s: Float32, n: int, value: np.float32) -> int:
    """Return how many of the first n values, ascending, are below `value`."""
    low, high = 0, n
    while low < high:
        mid = (low + high) >> 1
        if s[mid] < value:
            low = mid + 1
        else:
            high = mid
    return low


@row_part
def _median_mad(s: Float32, n: int) -> tuple[float, float]:
    """Return the median of the first n values, ascending, and the median of the absolute deviations from it."""
    h = n >> 1
    odd = n & 1 == 1
    median = np.float64(s[h]) if odd else 0.5 * (np.float64(s[h - 1]) + s[h])
    low, high = 0, n - h - 1
    while low < high:
        mid = (low + high) >> 1
        if median - s[mid] > s[mid + h + 1] - median:
            low = mid + 1
        else:
            high = mid
    last = low + h
    below, above = median - s[low], s[last] - median
    largest = max(below, above)
    if odd:
        return median, largest
    # even: the mean of the h + 1 smallest deviations' two largest; without its largest the run is one shorter
    second = max(median - s[low + 1], above) if below >= above else max(below, s[last - 1] - median)
    return median, 0.5 * (largest + second)
