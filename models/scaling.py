"""Soft-clipped scaling: location and scale per channel, linear to a limit, logarithmic beyond it.

One fault of hundreds of standard deviations would otherwise swamp every other channel, while a hard clip would throw
away how large it was. The logarithm keeps the order, and it can be undone.

Training and serving go through the same kernels (`scale_row`), so a scaled reading has the same bits in both.
Arithmetic is float64 inside with one rounding to float32 at the end: nothing that float32 can hold overflows, and the
bits do not hang on a float32 logarithm that differs between mathematics libraries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numba import njit

from pipeline.errors import ConfigError, ShapeError
from pipeline.kernels import row_kernel, row_part
from pipeline.values import Bool, Float32, Float64

ScalerKind = Literal["standard", "robust"]

_AT_REST = 0.01  # of the fleet's scale
_SAME = 4  # steps of float32, at the largest reading: what differs by no more is the same
_STILL = 16  # times that: the least scale of a channel that never moves, so that rounding stays small in it
MAD_TO_STD = 1.4826  # of a normal distribution

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def fit_scale(
    x: Float32, observed: Bool, kind: ScalerKind = "standard", fleet: Float32 | None = None
) -> tuple[Float32, Float32]:
    """Fit location and scale of each channel on its observed readings, by `fit_spread`.

    A channel at rest, which moves by less than a hundredth of `fleet`, takes the fleet's: how little it moved while it
    was watched says nothing of how far it may move, the same sensor on other assets does. Where that moves on no asset,
    the scale is 1 of its unit (or more, where that would stretch the rounding of float32). A channel that was never
    observed has location 0, and is at rest.

    Parameters
    ----------
    x : (n, C) float32, input units.
    observed : (n, C) bool.
    fleet : (C,) float32 of `fleet_spread`; None: `x` is from all assets that there are.

    Returns
    -------
    loc, scale : (C,) float32, scale > 0.

    Raises
    ------
    ShapeError : `x` and `observed` differ in shape.
    ConfigError : unknown `kind`.
    """
    loc, spread = fit_spread(x, observed, kind)
    usual = np.zeros_like(spread) if fleet is None else fleet
    scale = np.where(spread < _AT_REST * usual, usual, spread)
    for c in np.flatnonzero(scale == 0):
        values = x[observed[:, c], c]
        scale[c] = max(1.0, _STILL * _rounding(values)) if len(values) else 1.0
    return loc, scale


def fit_spread(x: Float32, observed: Bool, kind: ScalerKind = "standard") -> tuple[Float32, Float32]:
    """Return where each channel is, and how it moves.

    `standard`: mean and `deviation`. `robust`: median and 1.4826 MAD; a channel that moves in less than half of its
    rows has a MAD of 0 and takes its `deviation`. Nothing here knows a unit or a level: twice the readings have twice
    the spread.

    Returns
    -------
    loc, spread : (C,) float32; a spread of 0 is that of a channel that does not move. Both 0 if it was never observed.

    Raises
    ------
    ShapeError, ConfigError : as in `fit_scale`.
    """
    if x.ndim != 2 or x.shape != observed.shape:
        raise ShapeError(f"x is {x.shape} and observed {observed.shape}: both must be (n, C)")
    if kind not in ("standard", "robust"):
        raise ConfigError("train.scaler", kind, "choose 'standard' or 'robust'")
    loc, spread = np.zeros((2, x.shape[1]), np.float32)
    for c in range(x.shape[1]):
        values = x[observed[:, c], c].astype(np.float64)
        if len(values):
            loc[c], spread[c] = _location_and_spread(values, kind)
    return loc, spread


def fleet_spread(spreads: Sequence[Float32]) -> Float32:
    """Return how each channel moves on most assets: the median of its spreads where it moves; 0 where it never does.

    Levels that differ between assets are no movement, and one asset's wild reading does not make the others' small.

    Parameters
    ----------
    spreads : (C,) float32 of each asset, by `fit_spread`.
    """
    table = np.array(spreads)
    moving = [column[column > 0] for column in table.T]
    return np.array([np.median(found) if len(found) else 0 for found in moving], np.float32)


def deviation(values: Float64) -> float:
    """Return the standard deviation of a channel's readings; 0 if they differ by a few steps of float32 at most.

    Parameters
    ----------
    values : (n,) float64, n > 0, as float32 holds them.
    """
    std = float(values.std())
    return std if std > _rounding(values) else 0.0


def _rounding(values: Float32 | Float64) -> float:
    """Return how far apart two readings may be that are the same one."""
    return _SAME * float(np.spacing(np.float32(np.abs(values).max())))


def _location_and_spread(values: Float64, kind: ScalerKind) -> tuple[float, float]:
    """Return where a channel is and how it moves; 0: it does not."""
    if kind == "robust":
        center = float(np.median(values))
        mad = MAD_TO_STD * float(np.median(np.abs(values - center)))
        return center, mad if mad > _rounding(values) else deviation(values)
    return float(values.mean()), deviation(values)


@njit(nogil=True, cache=True)
def soft_clip_scalar(z: float, limit: float) -> float:
    """Return z up to +-limit, and sign(z) * limit * (1 + log(|z| / limit)) beyond, in float64. For kernels."""
    size = abs(z)
    if size <= limit:
        return z
    return math.copysign(limit * (1.0 + math.log(size / limit)), z)


@njit(nogil=True, cache=True)
def soft_unclip_scalar(v: float, limit: float) -> float:
    """Undo `soft_clip_scalar`, in float64; infinite where the answer is."""
    size = abs(v)
    if size <= limit:
        return v
    return math.copysign(limit * math.exp(size / limit - 1.0), v)


@njit(nogil=True, cache=True)
def scale_scalar(x: float, loc: float, scale: float, limit: float) -> np.float32:
    """Return one scaled reading as float32: what `scale_row` does to each."""
    return np.float32(soft_clip_scalar((np.float64(x) - np.float64(loc)) / np.float64(scale), np.float64(limit)))


@row_part
def scale_row(
    x: Float32, there: Bool, gaps: int, loc: Any, scale: Any, limit: float, missing: np.float32, out: Float32
) -> None:
    """Scale a row as `scale_scalar` does; nearly all readings are in its linear part, which is done for all at once.

    For kernels. `missing` is written where a reading is not `there`; `gaps` is how many are not.
    """
    far = np.int64(0)
    for c in range(len(out)):
        z = (np.float64(x[c]) - np.float64(loc[c])) / np.float64(scale[c])
        far += abs(z) > limit
        out[c] = np.float32(z)
    if far or gaps:
        _scale_each(x, there, loc, scale, limit, missing, out)


@row_kernel
def _scale_each(x: Float32, there: Bool, loc: Any, scale: Any, limit: float, missing: np.float32, out: Float32) -> None:
    for c in range(len(out)):
        out[c] = scale_scalar(x[c], loc[c], scale[c], limit) if there[c] else missing


@njit(nogil=True, cache=True)
def unscale_scalar(v: float, loc: float, scale: float, limit: float) -> np.float32:
    """Return one scaled value in input units as float32; what float32 cannot hold becomes its largest value."""
    x = soft_unclip_scalar(np.float64(v), np.float64(limit)) * np.float64(scale) + np.float64(loc)
    return np.float32(min(max(x, -_FLOAT32_MAX), _FLOAT32_MAX))


def check_soft_clip(limit: float) -> None:
    """Raise ConfigError unless a limit is positive and finite."""
    if not (limit > 0 and math.isfinite(limit)):
        raise ConfigError("train.soft_clip", limit, "give a positive number of scales, such as 3")


def scale(x: Float32, observed: Bool, loc: Float32, scale: Float32, limit: float) -> Float32:
    """Scale readings to the units models work in; 0.0 where not observed.

    Parameters
    ----------
    x : (n, C) float32, input units.
    observed : (n, C) bool.
    loc, scale : (C,) float32, from `fit_scale`.
    limit : linear to this many scales, logarithmic beyond.

    Returns
    -------
    (n, C) float32

    Raises
    ------
    ShapeError : shapes that do not belong together.
    ConfigError : `limit` is not positive and finite.
    """
    check_soft_clip(limit)
    if x.ndim != 2 or loc.shape != scale.shape or loc.shape != x.shape[1:]:
        raise ShapeError(f"x is {x.shape}, loc {loc.shape}, scale {scale.shape}: expected (n, C), (C,) and (C,)")
    if observed.shape != x.shape:
        raise ShapeError(f"x is {x.shape}, observed {observed.shape}: they must be equal")
    out = np.empty(x.shape, np.float32)
    _scale(x, observed, loc, scale, limit, out)
    return out


@row_kernel
def _scale(x: Float32, observed: Bool, loc: Float32, scale: Float32, limit: float, out: Float32) -> None:
    for i in range(x.shape[0]):
        gaps = np.int64(0)
        for c in range(x.shape[1]):
            gaps += not observed[i, c]
        scale_row(x[i], observed[i], gaps, loc, scale, limit, np.float32(0.0), out[i])
