"""Time-ordered splits: what is fitted on, what thresholds come from, and what a candidate is judged on.

Per asset, its normal windows in time order: the first ones fit, the following ones calibrate, the newest ones (if a
share is asked for) test. The embargo between two parts is one window: a part's first scored row comes that many rows
after the part before it, so that no row is in windows of two parts. Fitting and calibrating an autoencoder on the same
400 rows gave a false-alarm rate near 1.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.series import Series, window_ends
from pipeline.errors import ConfigError, LeakageError, TooLittleHistory
from pipeline.values import Int64

OWN_ROWS = 600  # an asset with fewer normal rows has no figures of its own: it counts in the pooled ones only


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of one asset in time order, as row ranges [start, stop); a part without a window in it is empty.

    The rows just before a part are its warm-up: its first window of `window` rows ends at its first row. The counts
    are of the normal windows that end in each part.

    Raises
    ------
    LeakageError : a row is in windows of two parts, or a part comes before the one it must follow.
    """

    asset: str
    window: int
    fit: slice
    calibration: slice
    test: slice
    fit_windows: int
    calibration_windows: int
    test_windows: int
    pooled: bool  # too few normal rows for a calibration of its own

    def __post_init__(self) -> None:
        used, by = 0, ""
        for name in ("fit", "calibration", "test"):
            part: slice = getattr(self, name)
            if part.start == part.stop:
                continue
            first = part.start - self.window + 1
            if by and first < used:
                raise LeakageError(
                    f"asset {self.asset!r}: the first window of the {name} part is rows {first} to {part.start}, but "
                    f"rows up to {used - 1} are in the {by} part: leave a whole window between them"
                )
            used, by = part.stop, name


def split(
    series: Sequence[Series],
    window: int,
    holdout_share: float = 0.2,
    test_share: float = 0.0,
    min_windows: int = 200,
    own_rows: int = OWN_ROWS,
) -> tuple[Split, ...]:
    """Split every asset in time, one `Split` for each series, in their order.

    An asset that is too short to be cut (a part would hold no window) is fitted on and takes no part in calibration
    or test. An asset with fewer than `own_rows` normal rows is cut, and marked `pooled`.

    Parameters
    ----------
    window : rows, the longest of any member.
    holdout_share, test_share : of the asset's normal windows, for calibration and test; the rest is fitted on.
    min_windows : that the fit, the calibration and (if asked for) the test part must have, all assets together. A
        99.5 percentile of fewer than 200 values rests on none of them.

    Raises
    ------
    ConfigError : shares that leave nothing to fit on.
    LeakageError : an asset that is in `series` twice.
    TooLittleHistory : a part has fewer than `min_windows` windows.
    """
    if holdout_share <= 0 or test_share < 0 or holdout_share + test_share >= 1:
        fix = f"must be above 0, and with train.test_share ({test_share}) below 1"
        raise ConfigError("train.holdout_share", holdout_share, fix)
    for asset, times in Counter(s.asset for s in series).items():
        if times > 1:
            raise LeakageError(f"asset {asset!r} is there {times} times: join its rows before they are split")
    splits = tuple(_split_one(s, window, holdout_share, test_share, own_rows) for s in series)
    parts = ["fit", "calibration"] + (["test"] if test_share else [])
    for part in parts:
        have = sum(getattr(s, f"{part}_windows") for s in splits)
        if have < min_windows:
            raise TooLittleHistory(have, min_windows, f"normal windows of {window} rows in the {part} part")
    return splits


def fit_part(series: Sequence[Series], splits: Sequence[Split]) -> list[Series]:
    """Return the rows to fit on, of every asset that has any."""
    return [_cut(s, part.fit) for s, part in zip(series, splits, strict=True) if part.fit_windows]


def holdout(splits: Sequence[Split]) -> dict[str, slice]:
    """Return the rows to calibrate on by asset, for `models.calibration`; assets without any are left out."""
    return {s.asset: s.calibration for s in splits if s.calibration_windows}


def to_judge(splits: Sequence[Split]) -> dict[str, slice]:
    """Return the rows to judge a candidate on by asset; assets without any are left out."""
    return {s.asset: s.test for s in splits if s.test_windows}


def _split_one(series: Series, window: int, holdout_share: float, test_share: float, own_rows: int) -> Split:
    ends = window_ends(series, window)
    pooled = int(series.normal.sum()) < own_rows
    after_fit = int(len(ends) * (1 - holdout_share - test_share))
    after_calibration = int(len(ends) * (1 - test_share))
    fit = ends[:after_fit]
    calibration = _from(ends[after_fit:after_calibration], fit, window)
    test = _from(ends[after_calibration:], calibration, window)
    n = len(series)
    if 0 in (len(fit), len(calibration)) or (test_share and len(test) == 0):
        return Split(series.asset, window, slice(0, n), slice(n, n), slice(n, n), len(ends), 0, 0, pooled=True)
    return Split(
        series.asset,
        window,
        fit=slice(0, int(fit[-1]) + 1),
        calibration=_rows(calibration, fit, window),
        test=_rows(test, calibration, window) if len(test) else slice(n, n),
        fit_windows=len(fit),
        calibration_windows=len(calibration),
        test_windows=len(test),
        pooled=pooled,
    )


def _from(ends: Int64, before: Int64, window: int) -> Int64:
    """Return those of `ends` that come a whole window after the last of `before`."""
    return ends[ends > before[-1] + window] if len(before) else ends[:0]


def _rows(ends: Int64, before: Int64, window: int) -> slice:
    return slice(int(before[-1]) + 1 + window, int(ends[-1]) + 1)


def _cut(series: Series, rows: slice) -> Series:
    names = ("ts_ns", "x", "observed", "continuity", "normal")
    return replace(series, **{name: getattr(series, name)[rows] for name in names})
