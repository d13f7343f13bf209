"""Errors -> calibrated errors: how far an error is from what is usual for its asset, given what was observed.

An error says something only beside the errors of normal rows, and with a channel missing these are others: one residual
fewer, a worse reconstruction of the rest. So the error of a row without some channels is first put to what it would
have been among rows with all of them, on a logarithmic scale because errors of members are multiplied:

    log e' = log m + g (log e - log m - d),    d = sum of d_j, g = product of g_j over the channels j that are missing
    c = (e' - m) / mad                         m, mad: median and MAD (times 1.4826) of the asset's calibration errors

d_j and g_j were measured with channel j alone hidden (`models.missing_channels`): d_j puts the median right, g_j the
tail that thresholds cut. That several channels add up is an assumption, good for two; g is kept within 1/2 to 2.

What is missing is read off the row that is scored. Holes elsewhere in its window matter far less while the error is
that of the last row; where it is the window's (`error = "window"`), the correction runs ahead by up to a window when
a channel goes or comes back.
"""

from __future__ import annotations

import numpy as np

from pipeline.bundle import Calibration
from pipeline.errors import BundleError, ShapeError
from pipeline.kernels import first_outside, row_kernel, row_part
from pipeline.values import Float32, Float64, Int32, Scores

GAIN_LIMIT = 2.0  # g and 1/g at most: what many missing channels multiply to was never measured


def calibrated_errors(scores: Scores, cal_row: Int32, calibration: Calibration) -> Float64:
    """Return c (n,) float64; NaN where the score is.

    Every row is worked on by itself. A calibration without `missing_shift` takes every error as it is.

    Parameters
    ----------
    scores : `actual` says which channels are missing: it is NaN there.
    cal_row : (n,) int32, the row of `calibration` for each score.

    Raises
    ------
    ShapeError : a row that is not in the calibration, or scores of other channels than it was made for.
    BundleError : a calibration that cannot be divided by.
    """
    n = len(scores)
    if first_outside(cal_row, len(calibration.mad)) < n:
        raise ShapeError(f"calibration rows must be 0 to {len(calibration.mad) - 1}, found {cal_row.max()}")
    channels = calibration.missing_shift.shape[1]
    if n and channels and scores.actual.shape[1] != channels:
        raise ShapeError(f"scores have {scores.actual.shape[1]} channels, the calibration was made for {channels}")
    out = np.empty(n, np.float64)
    figures = (calibration.median, calibration.mad, calibration.missing_shift, calibration.missing_gain)
    if not _standardise(scores.score, scores.actual, cal_row, *figures, out):
        raise BundleError("calibration has a MAD that is not above 0: calibrate again")
    return out


@row_kernel
def _standardise(
    score: Float32,
    actual: Float32,
    cal_row: Int32,
    median: Float32,
    mad: Float32,
    shift: Float32,
    gain: Float32,
    out: Float64,
) -> bool:
    """Return whether every MAD that was asked for is above 0."""
    measured, sound = shift.shape[1] > 0, True
    for i in range(len(score)):
        k = cal_row[i]
        sound &= mad[k] > 0
        error = np.float64(score[i])
        if measured and median[k] > 0 and _any_missing(actual[i]):
            away, stretch = 0.0, 1.0
            for j in range(shift.shape[1]):
                if np.isnan(actual[i, j]):
                    away += np.float64(shift[k, j])
                    stretch *= np.float64(gain[k, j])
            stretch = min(max(stretch, 1.0 / GAIN_LIMIT), GAIN_LIMIT)
            usual = np.log(np.float64(median[k]))
            error = np.exp(usual + stretch * (np.log(error) - usual - away))
        out[i] = (error - median[k]) / mad[k]
    return sound


@row_part
def _any_missing(actual: Float32) -> bool:
    missing = False
    for j in range(len(actual)):
        missing |= np.isnan(actual[j])
    return missing
