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

import numpy as np

from models.engine import open_engine
from models.held_out import Held, Smoothing, held_out, standardised
from models.missing_channels import missing_channels
from models.profiles import FALLBACK, Profile
from models.series import Series, thinned
from pipeline.bundle import POOLED, Bundle, Calibration, SmootherSpec
from pipeline.errors import ConfigError, TooLittleHistory
from pipeline.protocols import Engine
from pipeline.threshold import percentile_threshold
from pipeline.values import Float32, Float64, Int64

MAD_TO_STD = 1.4826
KEPT_SHARE = 0.5  # of its last threshold that an asset keeps at least, whatever a quiet night says
_MAD_SHARE = 0.01  # of the pooled MAD: an asset that is reconstructed all but perfectly is not stretched further
_LEAST_MAD = 1e-6  # in units of the error, where even the pooled MAD is 0


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


def calibrate(
    bundle: Bundle,
    series: Sequence[Series],
    holdout: Mapping[str, slice | int],
    spec: CalibrationSpec | None = None,
    profile: Profile = FALLBACK,
) -> Bundle:
    """Calibrate a bundle through the engine of a profile; return it with that profile's calibration set.

    A row counts if its whole window is normal and the engine scores it. What comes out does not depend on the order of
    `series`, and an asset's own figures not on other assets, apart from the floor of its MAD, the pooled threshold
    where it has too few rows, and what missing channels do to errors, which assets of one model share.

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
    made = _made(engine, bundle, series, holdout, spec or CalibrationSpec())
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
    made = _made(engine, bundle, series, {one.asset: 0 for one in series}, spec or CalibrationSpec())
    last = bundle.calibrations.get(engine.profile)
    kept = made if last is None else _merged(made, last)
    return replace(bundle, calibrations={**bundle.calibrations, engine.profile: kept})


def _made(
    engine: Engine, bundle: Bundle, series: Sequence[Series], holdout: Mapping[str, slice | int], spec: CalibrationSpec
) -> Calibration:
    """Calibrate twice: with errors as they are, and as they were if no channel had been missing."""
    held = held_out(engine, series, holdout)
    counted = [h.error[h.counts] for h in held]
    everything = np.concatenate([np.empty(0, np.float32), *counted])
    if len(everything) < spec.least_rows:
        raise TooLittleHistory(len(everything), spec.least_rows, f"held-out normal windows of {bundle.window} rows")
    own = [(h.asset, errors) for h, errors in zip(held, counted, strict=True) if len(errors) >= spec.least_rows]
    median, mad = _centre_and_spread(everything, 0.0)
    figures = np.array([(median, mad)] + [_centre_and_spread(errors, mad) for _, errors in own], np.float32)
    bare = Calibration(
        assets=tuple(asset for asset, _ in own),
        median=np.ascontiguousarray(figures[:, 0]),
        mad=np.ascontiguousarray(figures[:, 1]),
        start=np.full((len(figures), bundle.smoother.memory), np.nan, np.float32),
        threshold=np.full(len(figures), np.nan, np.float32),
        percentile=spec.percentile,
        rows=len(everything),
    )
    bare = _finished(held, bare, bundle.smoother, spec)
    shift, gain = missing_channels(engine, bundle, series, held, bare)
    return _finished(held, replace(bare, missing_shift=shift, missing_gain=gain), bundle.smoother, spec)


def _finished(held: Sequence[Held], made: Calibration, smoother: SmootherSpec, spec: CalibrationSpec) -> Calibration:
    """Return the calibration with its start values and thresholds."""
    row_of = made.row_of()
    starts = [_start(h, standardised(h, row_of[h.asset], made), smoother) for h in held if h.asset in row_of]
    made = replace(made, start=np.stack([_pooled_start(starts, smoother.memory), *starts]))
    return replace(made, threshold=_thresholds(held, made, smoother, spec))


def _thresholds(held: Sequence[Held], unset: Calibration, smoother: SmootherSpec, spec: CalibrationSpec) -> Float32:
    """Return the threshold of each row: percentiles of what the smoother makes of the held-out errors."""
    row_of = unset.row_of()
    rows = [row_of.get(h.asset, POOLED) for h in held]
    found = [Smoothing([h], [row], unset, smoother).run() for h, row in zip(held, rows, strict=True)]
    pooled = percentile_threshold(np.concatenate(found), spec.percentile, spec.threshold_floor)
    pooled *= spec.provisional_margin
    thresholds = np.full(len(unset.mad), pooled)
    for h, row, values in zip(held, rows, found, strict=True):
        if row != POOLED:
            own = percentile_threshold(values, spec.percentile, spec.threshold_floor)
            thresholds[row] = own if h.counts.sum() >= spec.min_rows else max(own, pooled)
    return thresholds.astype(np.float32)


def _centre_and_spread(errors: Float32, pooled_mad: float) -> tuple[float, float]:
    """Return the median and 1.4826 MAD of errors, the latter never 0."""
    values: Float64 = errors.astype(np.float64)
    centre = float(np.median(values))
    spread = MAD_TO_STD * float(np.median(np.abs(values - centre)))
    return centre, max(spread, _MAD_SHARE * pooled_mad, _LEAST_MAD)


def _start(held: Held, calibrated: Float32, smoother: SmootherSpec) -> Float32:
    """Return M calibrated errors spread evenly over the last span, oldest first; NaN at the end where fewer.

    What the smoother would not have admitted is left out.
    """
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
        missing_shift=np.concatenate([made.missing_shift, _figures_of(last.missing_shift, stay, made.missing_shift)]),
        missing_gain=np.concatenate([made.missing_gain, _figures_of(last.missing_gain, stay, made.missing_gain)]),
    )


def _figures_of(last: Float32, stay: Int64, made: Float32) -> Float32:
    """Return rows of the last figures; where there are none yet, the pooled new ones: the weights are the same."""
    return last[stay] if len(last) else np.repeat(made[:1], len(stay), axis=0)
