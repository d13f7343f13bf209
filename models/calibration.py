"""Calibration: what errors are usual for each asset, and above which smoothed score an alert is due.

Everything is measured on held-out normal rows, pushed through the very engine and smoother that will serve, and kept
in the bundle under that engine's profile. Row 0 stands for assets that have no row of their own.

The percentile of an own calibration is trusted from `min_rows` windows on: fitting and calibrating on 400 rows gave a
false-alarm rate near 1.0 on SKAB. With fewer, an asset still has its own median and MAD, but its threshold is the
larger one of its own and the pooled. With fewer than `least_rows` it has no row at all.

Legend: n held-out rows, K rows of the calibration, M errors that the smoother remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from models.engine import open_engine
from models.profiles import FALLBACK, Profile
from models.series import Series, thinned, window_ends
from pipeline.bundle import POOLED, Bundle, Calibration, SmootherSpec
from pipeline.errors import ConfigError, InputError, TooLittleHistory
from pipeline.protocols import Engine
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.threshold import percentile_threshold
from pipeline.values import Bool, Float32, Float64, Int32, Int64, Rows, Scores, UInt8

MAD_TO_STD = 1.4826
KEPT_SHARE = 0.5  # of its last threshold that an asset keeps at least, whatever a quiet night says
_MAD_SHARE = 0.01  # of the pooled MAD: an asset that is reconstructed all but perfectly is not stretched further
_LEAST_MAD = 1e-6  # in units of the error, where even the pooled MAD is 0
_PUSHED = 8192  # rows that go through the engine at a time


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """How thresholds are taken from held-out smoothed scores.

    Parameters
    ----------
    percentile : of an asset's smoothed scores: its threshold.
    threshold_floor : least threshold, in MADs above the median error.
    min_rows : windows from which an asset's own percentile is trusted by itself.
    least_rows : windows below which an asset has no row of its own.
    provisional_margin : factor on the pooled percentile, for assets of which nothing is known.

    Raises
    ------
    ConfigError : values that make no sense.
    """

    percentile: float = 99.5
    threshold_floor: float = 1.0
    min_rows: int = 600
    least_rows: int = 100
    provisional_margin: float = 4 / 3

    def __post_init__(self) -> None:
        if not 1 <= self.least_rows <= self.min_rows:
            raise ConfigError("least_rows", self.least_rows, f"use 1 to min_rows, which is {self.min_rows}")
        if not self.provisional_margin >= 1:
            raise ConfigError("provisional_margin", self.provisional_margin, "use 1 or more")


@dataclass(frozen=True, slots=True)
class _Held:
    """The held-out errors of one asset in event-time order; NaN where a row does not count."""

    asset: str
    ts_ns: Int64  # (n,)
    continuity: UInt8  # (n,)
    error: Float32  # (n,)

    @property
    def counts(self) -> Bool:
        """(n,), which rows count."""
        return np.isfinite(self.error)


def calibrate(
    bundle: Bundle,
    series: Sequence[Series],
    holdout: Mapping[str, slice | int],
    spec: CalibrationSpec | None = None,
    profile: Profile = FALLBACK,
) -> Bundle:
    """Calibrate a bundle through the engine of a profile; return it with that profile's calibration set.

    A row counts if its whole window is normal and the engine scores it. What comes out does not depend on the order of
    `series`, and an asset's own figures not on other assets, apart from the floor of its MAD and the pooled threshold
    where it has too few rows.

    Parameters
    ----------
    bundle : fitted; its other calibrations stay.
    series : one for each asset.
    holdout : by asset, the rows to calibrate on, or the first of them; the rows before fill the window. Assets that it
        does not name are left out.

    Raises
    ------
    TooLittleHistory : fewer than `spec.least_rows` windows count, all assets together.
    InputError : an asset that comes twice.
    ConfigError, BundleError, Unavailable : as `models.engine.open_engine`.
    """
    engine = open_engine(bundle, *profile)
    spec = spec or CalibrationSpec()
    held = _held_out(engine, series, holdout)
    made = _calibration(held, bundle.smoother, spec, bundle.window)
    return replace(bundle, calibrations={**bundle.calibrations, engine.profile: made})


def recalibrate(
    bundle: Bundle, series: Sequence[Series], spec: CalibrationSpec | None = None, profile: Profile = FALLBACK
) -> Bundle:
    """Calibrate again on newer rows, as `calibrate` does; what nights with faults or without data say is bounded.

    Faults cannot raise a threshold, because only normal rows count. An asset keeps at least `KEPT_SHARE` of its last
    threshold, so that a quiet stretch does not make it nervous, and all of its last row where it has too few new rows
    for one; the same holds for row 0.

    Parameters
    ----------
    series : newer rows, one series for each asset; all of them count that end a normal window.

    Raises
    ------
    As `calibrate`.
    """
    engine = open_engine(bundle, *profile)
    held = _held_out(engine, series, {one.asset: 0 for one in series})
    made = _calibration(held, bundle.smoother, spec or CalibrationSpec(), bundle.window)
    last = bundle.calibrations.get(engine.profile)
    kept = made if last is None else _merged(made, last)
    return replace(bundle, calibrations={**bundle.calibrations, engine.profile: kept})


def _held_out(engine: Engine, series: Sequence[Series], holdout: Mapping[str, slice | int]) -> list[_Held]:
    """Score the held-out rows of each asset, assets by name; rows that do not count become NaN."""
    ordered = sorted((one for one in series if one.asset in holdout), key=lambda one: one.asset)
    for one, other in pairwise(ordered):
        if one.asset == other.asset:
            raise InputError(f"asset {one.asset!r} comes in two series: join its rows before calibration")
    held = []
    for one in ordered:
        rows = holdout[one.asset]
        rows = slice(*(rows if isinstance(rows, slice) else slice(rows, None)).indices(len(one)))
        error = _errors(engine, one, rows)
        normal = np.zeros(len(one), np.bool_)
        normal[window_ends(one, engine.rows_kept)] = True
        error = np.where(normal[rows] & np.isfinite(error), error, np.float32(np.nan))
        held.append(_Held(one.asset, one.ts_ns[rows], one.continuity[rows], error))
    return held


def _errors(engine: Engine, series: Series, rows: slice) -> Float32:
    """Return what the engine says of `rows`, once the rows before them have filled the window."""
    slots = engine.allocate([series.asset])
    before = slice(max(rows.start - engine.rows_kept + 1, 0), rows.start)
    engine.fill([(_rows(series, before), np.repeat(slots, before.stop - before.start))])
    parts = [np.empty(0, np.float32)]
    for at in range(rows.start, rows.stop, _PUSHED):
        part = _rows(series, slice(at, min(at + _PUSHED, rows.stop)))
        parts.append(engine.push([(part, np.repeat(slots, len(part)))])[0].score)
    engine.drop(slots)
    return np.concatenate(parts)


def _rows(series: Series, part: slice) -> Rows:
    n = part.stop - part.start
    return Rows(
        partition=0,
        asset=np.zeros(n, np.int32),
        ts_ns=series.ts_ns[part],
        x=series.x[part],
        observed=series.observed[part],
        quality=np.zeros((n, series.channels), np.uint8),
        offset=np.arange(part.start, part.stop, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=series.continuity[part],
    )


def _calibration(held: Sequence[_Held], smoother: SmootherSpec, spec: CalibrationSpec, window: int) -> Calibration:
    everything = np.concatenate([np.empty(0, np.float32)] + [h.error[h.counts] for h in held])
    if len(everything) < spec.least_rows:
        raise TooLittleHistory(len(everything), spec.least_rows, f"held-out normal windows of {window} rows")
    own = [h for h in held if h.counts.sum() >= spec.least_rows]
    median, mad = _centre_and_spread(everything, 0.0)
    figures = [(median, mad)] + [_centre_and_spread(h.error[h.counts], mad) for h in own]
    starts = [_start(h, centre, spread, smoother) for h, (centre, spread) in zip(own, figures[1:], strict=True)]
    unset = Calibration(
        assets=tuple(h.asset for h in own),
        median=np.array([centre for centre, _ in figures], np.float32),
        mad=np.array([spread for _, spread in figures], np.float32),
        start=np.stack([_pooled_start(starts, smoother.memory), *starts]),
        threshold=np.full(len(figures), np.nan, np.float32),
        percentile=spec.percentile,
        rows=len(everything),
    )
    return replace(unset, threshold=_thresholds(held, unset, smoother, spec))


def _thresholds(held: Sequence[_Held], unset: Calibration, smoother: SmootherSpec, spec: CalibrationSpec) -> Float32:
    """Return the threshold of each row: percentiles of what the smoother makes of the held-out errors."""
    row_of = unset.row_of()
    rows = [row_of.get(h.asset, POOLED) for h in held]
    smoothed = _smoothed(held, rows, unset, smoother)
    everything = np.concatenate(smoothed)
    pooled = percentile_threshold(everything, spec.percentile, spec.threshold_floor) * spec.provisional_margin
    thresholds = np.full(len(unset.mad), pooled)
    for h, row, values in zip(held, rows, smoothed, strict=True):
        if row != POOLED:
            own = percentile_threshold(values, spec.percentile, spec.threshold_floor)
            thresholds[row] = own if h.counts.sum() >= spec.min_rows else max(own, pooled)
    return thresholds.astype(np.float32)


def _smoothed(
    held: Sequence[_Held], rows: Sequence[int], calibration: Calibration, smoother: SmootherSpec
) -> list[Float32]:
    """Run the smoother over the errors of every asset, each by its row of the calibration."""
    table = AssetTable(smoother_columns(smoother))
    codes = [table.code(h.asset) for h in held]
    lengths = [len(h.error) for h in held]
    asset: Int32 = np.repeat(np.array(codes, np.int32), lengths)
    n = len(asset)
    nothing = np.zeros((n, 0), np.float32)
    scores = Scores(
        partition=0,
        asset=asset,
        ts_ns=np.concatenate([h.ts_ns for h in held]),
        offset=np.zeros(n, np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.concatenate([h.continuity for h in held]),
        score=np.concatenate([h.error for h in held]),
        by_channel=nothing,
        expected=nothing,
        actual=nothing,
        coverage=np.ones(n, np.float32),
        status=np.zeros(n, np.uint8),
    )
    smoothed, _ = smooth(scores, np.repeat(np.array(rows, np.int32), lengths), calibration, table, smoother)
    return np.split(smoothed, np.cumsum(lengths)[:-1])


def _centre_and_spread(errors: Float32, pooled_mad: float) -> tuple[float, float]:
    """Return the median and 1.4826 MAD of errors, the latter never 0."""
    values: Float64 = errors.astype(np.float64)
    centre = float(np.median(values))
    spread = MAD_TO_STD * float(np.median(np.abs(values - centre)))
    return centre, max(spread, _MAD_SHARE * pooled_mad, _LEAST_MAD)


def _start(held: _Held, centre: float, spread: float, smoother: SmootherSpec) -> Float32:
    """Return M calibrated errors spread evenly over the last span, oldest first; NaN at the end where fewer.

    What the smoother would not have admitted is left out.
    """
    calibrated = ((held.error.astype(np.float64) - centre) / spread).astype(np.float32)
    usual = np.flatnonzero(held.counts & (calibrated <= smoother.admit_z))
    recent = usual[held.ts_ns[usual] > held.ts_ns[usual[-1]] - smoother.span_ns]
    return _filled(calibrated[thinned(recent, smoother.memory)], smoother.memory)


def _pooled_start(starts: Sequence[Float32], memory: int) -> Float32:
    """Return M of the assets' own start values, all assets alike, oldest first."""
    values = np.concatenate([np.empty(0, np.float32), *(np.stack(starts).T if starts else ())])
    values = values[np.isfinite(values)]
    return _filled(values[thinned(np.arange(len(values)), memory)], memory)


def _filled(values: Float32, length: int) -> Float32:
    out = np.full(length, np.nan, np.float32)
    out[: len(values)] = values
    return out


def _merged(made: Calibration, last: Calibration) -> Calibration:
    """Return the new rows with thresholds kept up, and the last rows of assets that have no new one."""
    before = last.row_of()
    floor = np.array([last.threshold[before[name]] if name in before else 0 for name in made.assets], np.float32)
    floor = np.concatenate([last.threshold[:1], floor])
    stay = np.array([before[name] for name in last.assets if name not in made.assets], np.int64)
    return replace(
        made,
        assets=made.assets + tuple(last.assets[row - 1] for row in stay),
        median=np.concatenate([made.median, last.median[stay]]),
        mad=np.concatenate([made.mad, last.mad[stay]]),
        start=np.concatenate([made.start, last.start[stay]]),
        threshold=np.concatenate([np.maximum(made.threshold, np.float32(KEPT_SHARE) * floor), last.threshold[stay]]),
    )
