"""The smoother's equation with numpy's own medians over a plain list of the admitted errors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipeline.values import Continuity


def median_mad(window):
    """Return (median, median absolute deviation) of float32 errors, in float64."""
    window = np.array(window, np.float32).astype(np.float64)
    median = np.median(window)
    return median, np.median(np.abs(window - median))


def naive_calibrated(score, actual, k, calibration):
    """Return the calibrated error of one row; `actual` is NaN where a channel is missing."""
    median, mad = float(calibration.median[k]), float(calibration.mad[k])
    error = float(score)
    missing = [j for j in range(calibration.missing_shift.shape[1]) if np.isnan(actual[j])]
    if missing and median > 0:
        shift = sum(float(calibration.missing_shift[k, j]) for j in missing)
        gain = np.prod([float(calibration.missing_gain[k, j]) for j in missing])
        with np.errstate(divide="ignore"):
            error = np.exp(np.log(median) + np.clip(gain, 0.5, 2.0) * (np.log(error) - np.log(median) - shift))
    return (error - median) / mad


def naive_smooth(scores, cal_row, calibration, spec):
    """Return (smoothed, own) as float32."""
    state = {}
    smoothed, own = [], []
    alpha = 2.0 / (spec.ewma_span + 1)
    for i in range(len(scores)):
        asset, k = int(scores.asset[i]), cal_row[i]
        if scores.continuity[i] == Continuity.FRESH:
            state.pop(asset, None)
        if not np.isfinite(scores.score[i]):
            smoothed.append(np.nan)
            own.append(np.nan)
            continue
        start = calibration.start[k]
        mine = state.setdefault(asset, {"window": list(start[np.isfinite(start)]), "buckets": set(), "s": 0.0})
        c = naive_calibrated(scores.score[i], scores.actual[i], k, calibration)
        z = c
        if len(mine["window"]) >= 8:
            median, mad = median_mad(mine["window"])
            z = (c - median) / max(1.4826 * mad, spec.mad_floor)
        value = min(c, z) if spec.yardstick else c
        bucket = Fraction(int(scores.ts_ns[i])) // Fraction(spec.span_ns, spec.memory)
        if z <= spec.admit_z and bucket not in mine["buckets"]:
            mine["buckets"].add(bucket)
            mine["window"] = [*mine["window"], np.float32(c)][-spec.memory :]
        mine["s"] = (1.0 - alpha) * mine["s"] + alpha * value
        smoothed.append(mine["s"])
        own.append(value)
    return np.array(smoothed, np.float32), np.array(own, np.float32)
