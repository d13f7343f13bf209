"""Series -> ratios through the serving path: the engine, the smoother and the thresholds of one bundle.

For judging a bundle on history. The bits are those of the live watch, whatever the slices: an engine's scores do not
depend on what else is in a batch, the smoother takes one row after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.engine import open_engine
from models.profiles import FALLBACK, Profile
from models.series import Series
from pipeline.bundle import POOLED, Bundle, Calibration, SmootherSpec
from pipeline.errors import ShapeError
from pipeline.protocols import Engine
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.threshold import hold
from pipeline.values import Float32, Int32, Rows, Status, UInt8, Verdicts

_PUSHED = 8192  # rows that go through the engine at a time, of all series together


@dataclass(frozen=True, slots=True)
class Scored:
    """What a bundle says of the n rows of one series; NaN where there is no score."""

    score: Float32  # (n,)
    ratio: Float32  # (n,)
    own_ratio: Float32  # (n,)
    status: UInt8  # (n,), Status codes


def ratios(
    bundle: Bundle, series: Sequence[Series], profile: Profile = FALLBACK, x: Sequence[Float32] | None = None
) -> list[Scored]:
    """Score series side by side, each from an empty window and its asset's start values.

    Parameters
    ----------
    bundle : calibrated for the profile.
    series : rows of one asset each; an asset may come several times, and one that the bundle does not know is scored
        as it would be live.
    x : (n, C) float32 for each series: readings to score instead of its own, such as ones with faults.

    Raises
    ------
    BundleError : the bundle has no calibration for the profile.
    ShapeError : readings of another shape than the series'.
    ConfigError, Unavailable : as `models.engine.open_engine`.
    """
    readings = [one.x for one in series] if x is None else list(x)
    for one, values in zip(series, readings, strict=True):
        if values.shape != one.x.shape or values.dtype != np.float32:
            raise ShapeError(f"readings for asset {one.asset!r} are {values.dtype} {values.shape}: not {one.x.shape}")
    engine = open_engine(bundle, *profile)
    calibration = bundle.calibration(engine.profile)
    known = calibration.row_of()
    cal_row = np.array([known.get(one.asset, POOLED) for one in series], np.int32)
    slots = engine.allocate([one.asset for one in series])
    table = AssetTable(smoother_columns(bundle.smoother))
    for i in range(len(series)):
        table.code(str(i))  # not the asset's name: it may come several times, each with a memory of its own
    said = [
        _judged(engine, rows, slots, cal_row, calibration, table, bundle.smoother) for rows in _slices(series, readings)
    ]
    return [_of_series(said, i, len(one)) for i, one in enumerate(series)]


def _slices(series: Sequence[Series], readings: Sequence[Float32]) -> Iterator[Rows]:
    """Yield the rows of all series, slice of time after slice of time; the asset code is the series' number."""
    step = max(_PUSHED // max(len(series), 1), 1)
    for at in range(0, max((len(one) for one in series), default=0), step):
        parts = [(i, slice(at, min(at + step, len(one)))) for i, one in enumerate(series) if at < len(one)]
        n = sum(part.stop - part.start for _, part in parts)
        yield Rows(
            partition=0,
            asset=np.repeat(np.array([i for i, _ in parts], np.int32), [p.stop - p.start for _, p in parts]),
            ts_ns=np.concatenate([series[i].ts_ns[p] for i, p in parts]),
            x=np.concatenate([readings[i][p] for i, p in parts]),
            observed=np.concatenate([series[i].observed[p] for i, p in parts]),
            quality=np.zeros((n, series[0].channels), np.uint8),
            offset=np.concatenate([np.arange(p.start, p.stop, dtype=np.int64) for _, p in parts]),
            row=np.zeros(n, np.int32),
            continuity=np.concatenate([series[i].continuity[p] for i, p in parts]),
        )


def _judged(
    engine: Engine,
    rows: Rows,
    slots: Int32,
    cal_row: Int32,
    calibration: Calibration,
    table: AssetTable,
    smoother: SmootherSpec,
) -> Verdicts:
    scores = engine.push([(rows, slots[rows.asset])])[0]
    own_row = cal_row[rows.asset]
    pooled = (own_row == POOLED) & (scores.status == Status.CALIBRATED)
    scores = replace(scores, status=np.where(pooled, np.uint8(Status.PROVISIONAL), scores.status))
    smoothed, own = smooth(scores, own_row, calibration, table, smoother)
    return hold(scores, smoothed, own, own_row, calibration)


def _of_series(said: Sequence[Verdicts], code: int, rows: int) -> Scored:
    """Gather what was said of one series, in its order of rows."""
    out = Scored(
        score=np.full(rows, np.nan, np.float32),
        ratio=np.full(rows, np.nan, np.float32),
        own_ratio=np.full(rows, np.nan, np.float32),
        status=np.full(rows, Status.WARMING, np.uint8),
    )
    at = 0
    for verdicts in said:
        mine = slice(*np.searchsorted(verdicts.scores.asset, (code, code + 1)).tolist())  # slices are sorted by code
        to = slice(at, at + mine.stop - mine.start)
        out.score[to], out.status[to] = verdicts.scores.score[mine], verdicts.scores.status[mine]
        out.ratio[to], out.own_ratio[to] = verdicts.ratio[mine], verdicts.own_ratio[mine]
        at = to.stop
    return out
