"""Held-out normal rows through the engine and the smoother that will serve: what calibration rests on.

Legend: n held-out rows of one asset, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np

from models.series import Series, window_ends
from pipeline.bundle import Calibration, SmootherSpec
from pipeline.errors import InputError
from pipeline.protocols import Engine
from pipeline.smooth import smooth, smoother_columns
from pipeline.standardise import calibrated_errors
from pipeline.state import AssetTable
from pipeline.values import Bool, Float32, Int32, Int64, Rows, Scores, UInt8

_PUSHED = 8192  # rows that go through the engine at a time


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out errors of one asset in event-time order; NaN where a row does not count."""

    asset: str
    row: Int64  # (n,), of the asset's series
    ts_ns: Int64  # (n,)
    continuity: UInt8  # (n,)
    observed: Bool  # (n, C)
    error: Float32  # (n,)

    @property
    def counts(self) -> Bool:
        """(n,), which rows count."""
        return np.isfinite(self.error)

    def take(self, index: Bool) -> Held:
        """Return the rows at `index` (n,)."""
        cut = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "asset"}
        return replace(self, **cut)


def held_out(engine: Engine, series: Sequence[Series], holdout: Mapping[str, slice | int]) -> list[Held]:
    """Score the held-out rows of each asset, assets by name; rows that do not count become NaN.

    Raises
    ------
    InputError : an asset that comes twice.
    """
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
        number = np.arange(rows.start, rows.stop)
        held.append(Held(one.asset, number, one.ts_ns[rows], one.continuity[rows], one.observed[rows], error))
    return held


def rows_of(series: Series, part: slice) -> Rows:
    """Return rows of a series as the engine takes them."""
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


class Smoothing:
    """The smoother over errors of held-out rows, asset after asset, each by its row of the calibration."""

    def __init__(
        self, held: Sequence[Held], cal_row: Sequence[int], calibration: Calibration, spec: SmootherSpec
    ) -> None:
        self._table = AssetTable(smoother_columns(spec))
        codes = np.array([self._table.code(h.asset) for h in held], np.int32)
        self._rows = np.repeat(np.array(cal_row, np.int32), [len(h.error) for h in held])
        self._scores, self._calibration, self._spec = _scores(held, codes), calibration, spec

    def run(self, errors: Float32 | None = None) -> Float32:
        """Return the smoothed scores (n,) of all assets, each from its start; of other errors (n,) where given."""
        self._table["smoother_started"][:] = False
        scores = self._scores if errors is None else replace(self._scores, score=errors)
        return smooth(scores, self._rows, self._calibration, self._table, self._spec)[0]


def standardised(held: Held, cal_row: int, calibration: Calibration) -> Float32:
    """Return the calibrated errors (n,) of one asset."""
    scores = _scores([held], np.zeros(1, np.int32))
    return calibrated_errors(scores, np.full(len(scores), cal_row, np.int32), calibration).astype(np.float32)


def _scores(held: Sequence[Held], codes: Int32) -> Scores:
    asset = np.repeat(codes, [len(h.error) for h in held])
    n, observed = len(asset), np.concatenate([h.observed for h in held])
    nothing = np.zeros((n, 0), np.float32)
    return Scores(
        partition=0,
        asset=asset,
        ts_ns=np.concatenate([h.ts_ns for h in held]),
        offset=np.zeros(n, np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.concatenate([h.continuity for h in held]),
        score=np.concatenate([h.error for h in held]),
        by_channel=nothing,
        expected=nothing,
        actual=np.where(observed, np.float32(0), np.float32(np.nan)),
        coverage=np.ones(n, np.float32),
        status=np.zeros(n, np.uint8),
    )


def _errors(engine: Engine, series: Series, rows: slice) -> Float32:
    """Return what the engine says of `rows`, once the rows before them have filled the window."""
    slots = engine.allocate([series.asset])
    before = slice(max(rows.start - engine.rows_kept + 1, 0), rows.start)
    engine.fill([(rows_of(series, before), np.repeat(slots, before.stop - before.start))])
    parts = [np.empty(0, np.float32)]
    for at in range(rows.start, rows.stop, _PUSHED):
        part = rows_of(series, slice(at, min(at + _PUSHED, rows.stop)))
        parts.append(engine.push([(part, np.repeat(slots, len(part)))])[0].score)
    engine.drop(slots)
    return np.concatenate(parts)
