"""The history of one asset as models see it, and the windows in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.errors import ConfigError, InputError, ShapeError
from pipeline.values import Bool, Continuity, Float32, Int64, UInt8


@dataclass(frozen=True, slots=True)
class Series:
    """Aligned, gated rows of one asset in event-time order, in input units.

    n rows, C channels. `x` is 0.0 wherever `observed` is False. `normal` marks the rows that may be trained on; the
    others stay in place, because a window must not jump over them.

    Raises
    ------
    ShapeError : arrays of other shapes or dtypes than these.
    InputError : `ts_ns` does not increase from row to row.
    """

    asset: str
    ts_ns: Int64  # (n,), increasing
    x: Float32  # (n, C)
    observed: Bool  # (n, C)
    continuity: UInt8  # (n,), Continuity codes
    normal: Bool  # (n,)

    def __post_init__(self) -> None:
        rows, wide = self.ts_ns.shape, self.x.shape
        agreed = {"ts_ns": np.int64, "x": np.float32, "observed": np.bool_, "continuity": np.uint8, "normal": np.bool_}
        for name, dtype in agreed.items():
            array = getattr(self, name)
            shape = wide if name in ("x", "observed") else rows
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ShapeError(
                    f"series of asset {self.asset!r}: {name} is {array.dtype} {array.shape}, "
                    f"expected C-contiguous {np.dtype(dtype)} {shape}"
                )
        if len(rows) != 1 or len(wide) != 2 or wide[0] != rows[0]:
            raise ShapeError(f"series of asset {self.asset!r}: ts_ns {rows} and x {wide}, expected (n,) and (n, C)")
        backward = np.flatnonzero(np.diff(self.ts_ns) <= 0)
        if len(backward):
            raise InputError(
                f"series of asset {self.asset!r}: row {backward[0] + 1} is not later than the row before it; "
                "align the rows first (one row per time stamp, in event-time order)"
            )

    def __len__(self) -> int:
        return len(self.ts_ns)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return int(self.x.shape[1])


def window_ends(series: Series, window: int) -> Int64:
    """Return the indices of the rows that end a full, unbroken, normal window of `window` rows, in order.

    A window is unbroken when no row but its first starts a window anew (`NEW_WINDOW`, `FRESH`), and normal when all
    of its rows are.

    Raises
    ------
    ConfigError : `window` is less than one row.
    """
    if window < 1:
        raise ConfigError("window", window, "a window has at least one row")
    index = np.arange(len(series), dtype=np.int64)
    start = np.where(series.continuity != Continuity.CONTINUES, index, 0)
    after_abnormal = np.where(series.normal, 0, index + 1)
    earliest = np.maximum.accumulate(np.maximum(start, after_abnormal))
    return np.flatnonzero(index - window + 1 >= earliest)


def windows(scaled: Float32, observed: Bool, ends: Int64, window: int) -> tuple[Float32, Bool]:
    """Gather B windows of W rows that end at the rows `ends`: copies, nothing else is materialised.

    Parameters
    ----------
    scaled : (n, C) float32, 0.0 where not observed.
    observed : (n, C) bool.
    ends : (B,) int64, row indices >= window - 1, in any order.

    Returns
    -------
    (B, W, C) float32 and (B, W, C) bool, C-contiguous.

    Raises
    ------
    ShapeError : an end without `window` rows up to it.
    """
    rows, channels = scaled.shape
    if len(ends) and (int(ends.min()) < window - 1 or int(ends.max()) >= rows):
        raise ShapeError(f"window ends {ends.min()}..{ends.max()}: {rows} rows hold ends {window - 1}..{rows - 1} only")
    shape = (len(ends), window, channels)
    if 0 in shape:
        return np.empty(shape, np.float32), np.empty(shape, np.bool_)
    first, width = ends - (window - 1), window * channels
    # Rows are contiguous, so a window is one run of W * C values in the flat array: one copy per window.
    x = sliding_window_view(scaled.reshape(-1), width)[::channels][first]
    seen = sliding_window_view(observed.reshape(-1), width)[::channels][first]
    return x.reshape(shape), seen.reshape(shape)


def thinned(index: Int64, most: int) -> Int64:
    """Return at most `most` elements of `index`, evenly spread over it, first one included."""
    if len(index) <= most:
        return index
    return index[np.arange(most, dtype=np.int64) * len(index) // most]


def longest_runs(series: Series) -> Int64:
    """Return (C,) per channel the most rows in a row that brought the very same value, among normal rows.

    A row in which the channel is not observed neither ends nor lengthens its run; a row that is not normal, or that
    starts a window anew, ends it.
    """
    longest = np.zeros(series.channels, np.int64)
    _longest_runs(series.x, series.observed, series.normal, series.continuity, longest)
    return longest


@njit(nogil=True, cache=True)
def _longest_runs(x: Float32, observed: Bool, normal: Bool, continuity: UInt8, longest: Int64) -> None:
    for c in range(x.shape[1]):
        run = 0
        held = np.float32(0.0)
        for i in range(x.shape[0]):
            if continuity[i] != 0 or not normal[i]:
                run = 0
            if not normal[i] or not observed[i, c]:
                continue
            run = run + 1 if run > 0 and x[i, c] == held else 1
            held = x[i, c]
            longest[c] = max(longest[c], run)
