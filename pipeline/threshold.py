"""Smoothed scores against a threshold: ratio 1.0 is the threshold, above it is a breach."""

from __future__ import annotations

import numpy as np

from pipeline.bundle import Calibration
from pipeline.errors import BundleError, ConfigError, ShapeError, TrainingError
from pipeline.kernels import first_outside, row_kernel
from pipeline.values import Bool, Float32, Int32, Scores, Verdicts


def hold(scores: Scores, smoothed: Float32, own: Float32, cal_row: Int32, calibration: Calibration) -> Verdicts:
    """Hold scores against the thresholds of their rows of the calibration.

    Parameters
    ----------
    smoothed, own : (n,) float32, as `pipeline.smooth.smooth` returns them; NaN where there is no score.
    cal_row : (n,) int32, the row of `calibration` for each score.

    Returns
    -------
    Verdicts : ratios are NaN and `breached` is False where there is no score. Exactly 1.0 is no breach.

    Raises
    ------
    ShapeError : the arrays differ in length, or a row is not in the calibration.
    BundleError : a threshold that is not a number above 0.
    """
    n = len(scores)
    if not len(smoothed) == len(own) == len(cal_row) == n:
        raise ShapeError(f"{n} scores, {len(smoothed)} smoothed, {len(own)} own, {len(cal_row)} calibration rows")
    if first_outside(cal_row, len(calibration.threshold)) < n:
        raise ShapeError(f"calibration rows must be 0 to {len(calibration.threshold) - 1}, found {cal_row.max()}")
    ratio, own_ratio, threshold = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    breached = np.empty(n, np.bool_)
    if not _hold(smoothed, own, cal_row, calibration.threshold, ratio, own_ratio, breached, threshold):
        raise BundleError("calibration has a threshold that is not a number above 0: calibrate again")
    return Verdicts(scores, smoothed, ratio, own_ratio, breached, threshold)


@row_kernel
def _hold(
    smoothed: Float32,
    own: Float32,
    cal_row: Int32,
    thresholds: Float32,
    ratio: Float32,
    own_ratio: Float32,
    breached: Bool,
    threshold: Float32,
) -> bool:
    """Return whether every threshold that was asked for is a number above 0."""
    sound = True
    for i in range(len(cal_row)):
        limit = thresholds[cal_row[i]]
        sound &= 0 < limit < np.inf
        threshold[i] = limit
        ratio[i] = smoothed[i] / limit
        own_ratio[i] = own[i] / limit
        breached[i] = ratio[i] > 1
    return sound


def percentile_threshold(smoothed: Float32, percentile: float, floor: float = 1.0) -> float:
    """Return the percentile of smoothed calibration scores, linear between two scores, and never below `floor`.

    The floor is in units of the smoothed score, that is in MADs above the median of the calibration errors: an error
    of less is never an anomaly, however little the calibration errors spread.

    Parameters
    ----------
    smoothed : (n,) float32; NaN and infinite ones are left out.
    percentile : above 0, at most 100.

    Raises
    ------
    ConfigError : a percentile or floor that makes no sense.
    TrainingError : no score is left.
    """
    if not 0 < percentile <= 100:
        raise ConfigError("train.percentile", percentile, "use a number above 0, at most 100")
    if not floor > 0:
        raise ConfigError("floor", floor, "use a number above 0")
    usable = smoothed[np.isfinite(smoothed)]
    if len(usable) == 0:
        raise TrainingError(f"no threshold: none of {len(smoothed)} calibration scores is a number")
    return max(float(np.percentile(usable.astype(np.float64), percentile)), floor)
