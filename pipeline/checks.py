"""The stateless quality checks: a reading is judged by itself, before alignment, whatever format it came in."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.mapping import MAX_TS_NS
from pipeline.values import Bool, Float32, Int32, Int64, Quality, UInt8

OK = np.uint8(Quality.OK)
_ABSENT = np.uint8(Quality.ABSENT)
_NON_FINITE = np.uint8(Quality.NON_FINITE)
_OUT_OF_RANGE = np.uint8(Quality.OUT_OF_RANGE)
_LARGEST = np.finfo(np.float32).max


class Unchecked(NamedTuple):
    """Rows as they came: what decoding hands to the checks."""

    offset: Int64  # (n,)
    row: Int32  # (n,)
    asset: Int32  # (n,), codes of the partition's table
    ts_ns: Int64  # (n,)
    x: Float32  # (n, C), anything where not given
    given: Bool  # (n, C), the message had a value here


class Checked(NamedTuple):
    """Rows whose readings have been judged."""

    offset: Int64  # (n,)
    row: Int32  # (n,)
    asset: Int32  # (n,), codes of the partition's table
    ts_ns: Int64  # (n,)
    x: Float32  # (n, C), 0.0 where not observed
    observed: Bool  # (n, C)
    quality: UInt8  # (n, C)


def check_readings(
    x: Float32, given: Bool, low: tuple[float, ...] = (), high: tuple[float, ...] = ()
) -> tuple[Float32, Bool, UInt8]:
    """Judge readings: absent, not finite, out of range, or good.

    Parameters
    ----------
    x : (n, C) float32, input units; anything where `given` is False.
    given : (n, C) bool, the message had a value here.
    low, high : C limits each, inclusive, or () for none. They are compared in float32, like the readings: 0.1 is
        not above a limit of 0.1.

    Returns
    -------
    x, observed, quality : (n, C) each, new arrays. x is 0.0 where not observed, and a negative zero is 0.0, so that
        equal readings have equal bits.
    """
    return _check(x, given, *limits(low, high, x.shape[1]))  # type: ignore[no-any-return]


def limits(low: tuple[float, ...], high: tuple[float, ...], channels: int) -> tuple[Float32, Float32]:
    """Return the limits of each channel, as they are compared; () stands for none. What is finite is within those."""
    return _float32(low or (-np.inf,) * channels), _float32(high or (np.inf,) * channels)


def latest_ts_ns(log_ts_ns: Int64, max_ahead_ns: int | None) -> Int64:
    """Return the latest event time that each message may carry, given when the log took it.

    Parameters
    ----------
    log_ts_ns : (n,) int64, 0 where the log has no time.
    max_ahead_ns : how far ahead of the log a row may be; None for any.

    Returns
    -------
    (n,) int64, the end of the time range where there is nothing to compare with.
    """
    if max_ahead_ns is None:
        return np.full(len(log_ts_ns), MAX_TS_NS, np.int64)
    ahead = np.clip(log_ts_ns, -MAX_TS_NS, MAX_TS_NS) + min(max_ahead_ns, MAX_TS_NS - 1)
    return np.where(log_ts_ns == 0, MAX_TS_NS, np.minimum(ahead, MAX_TS_NS))


@lru_cache(maxsize=128)
def _float32(limits: tuple[float, ...]) -> Float32:
    with np.errstate(over="ignore"):
        return np.array(limits, np.float64).astype(np.float32).clip(-_LARGEST, _LARGEST)


@njit(nogil=True, cache=True)
def judge(value: float, given: bool, low: float, high: float) -> np.uint8:
    """Return the quality of one reading. For kernels: without a branch, so that they judge many readings at a time.

    `low` and `high` are of `limits`: finite.
    """
    if given & (value >= low) & (value <= high):
        return OK
    if not given:
        return _ABSENT
    return _OUT_OF_RANGE if abs(value) <= _LARGEST else _NON_FINITE


@njit(nogil=True, cache=True)
def _check(x: Float32, given: Bool, low: Float32, high: Float32) -> tuple[Float32, Bool, UInt8]:
    checked = np.empty_like(x)
    observed = np.empty(x.shape, np.bool_)
    quality = np.empty(x.shape, np.uint8)
    zero = np.float32(0.0)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            found = judge(x[i, c], given[i, c], low[c], high[c])
            quality[i, c] = found
            observed[i, c] = found == OK
            checked[i, c] = x[i, c] + zero if found == OK else zero  # -0.0 + 0.0 is 0.0
    return checked, observed, quality
