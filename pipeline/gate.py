"""The second quality gate, after alignment: readings that are stuck, jump, or have been missing for long.

It looks back along each channel of each asset, so it runs where rows are in event time; what can be told from one
reading alone (finite, within range) was checked before alignment. It only ever masks: no reading is put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit

from pipeline.errors import ConfigError, ShapeError
from pipeline.state import AssetTable, Column
from pipeline.values import Bool, Continuity, Float32, Float64, Int32, Int64, Quality, Rows, UInt8

_COLUMNS = tuple(f"gate_{c}" for c in ("last", "passed", "last_age", "passed_age", "run", "absent"))
_LONGEST = 1 << 30  # counts stop here
_CONTINUES = int(Continuity.CONTINUES)
_OK, _ABSENT = int(Quality.OK), int(Quality.ABSENT)
_STUCK, _JUMP, _MISSING, _GAP = (int(q) for q in (Quality.STUCK, Quality.JUMP, Quality.MISSING, Quality.GAP))


@dataclass(frozen=True, slots=True)
class GateSpec:
    """What each channel may do; one entry per channel.

    Parameters
    ----------
    stuck_frames : the same value in this many observed rows running is stuck; 0: never.
    max_step : the largest step the channel can make from one row to the next, in its own units; inf: any.
    missing_frames : absent in more rows running than this is missing; 0: never.

    Raises
    ------
    ConfigError : a value that makes no sense, or tuples of different lengths.
    """

    stuck_frames: tuple[int, ...]
    max_step: tuple[float, ...]
    missing_frames: int = 0

    def __post_init__(self) -> None:
        if len(self.stuck_frames) != len(self.max_step):
            fix = f"give one for each of the {len(self.stuck_frames)} channels"
            raise ConfigError("feed.channels.max_step", self.max_step, fix)
        if any(k < 0 or k == 1 for k in self.stuck_frames):
            raise ConfigError("gate.stuck", self.stuck_frames, "use 0 (never) or at least 2 rows")
        if not all(step > 0 for step in self.max_step):
            fix = "use steps above 0, inf for a channel that may jump"
            raise ConfigError("feed.channels.max_step", self.max_step, fix)
        if self.missing_frames < 0:
            raise ConfigError("gate.missing_after_s", self.missing_frames, "use 0 rows (never) or more")


def gate_columns(channels: int) -> dict[str, Column]:
    """Return the columns the gate needs in the table."""
    return {
        "gate_last": Column(np.float32, (channels,)),
        "gate_passed": Column(np.float32, (channels,)),
        "gate_last_age": Column(np.int32, (channels,)),  # rows since; 0: there is none
        "gate_passed_age": Column(np.int32, (channels,)),
        "gate_run": Column(np.int32, (channels,)),
        "gate_absent": Column(np.int32, (channels,)),
    }


def gate(rows: Rows, table: AssetTable, spec: GateSpec) -> Rows:
    """Mask readings that a fault of the sensor explains; return new rows.

    STUCK: from the row that completes a run of `stuck_frames` equal values until the value changes. Unobserved rows
    neither break nor extend a run.

    JUMP: the reading is further than `max_step` times k from the last reading, k rows ago, *and* from the last one
    that did not jump. So a spike masks itself and not the row after it, and a shift to another level masks one row:
    after it, the new level is the last reading.

    MISSING, in place of ABSENT: absent in more than `missing_frames` rows running. GAP rows neither count nor break.

    NEW_WINDOW and FRESH start everything again.

    Parameters
    ----------
    rows : aligned, in log order.
    table : holds `gate_columns(C)`.

    Raises
    ------
    ShapeError : C differs from the table's or the spec's, or an asset code is not in the table.
    """
    channels = table["gate_run"].shape[1]
    if not rows.channels == channels == len(spec.max_step):
        raise ShapeError(
            f"rows have {rows.channels} channels, the table {channels}, the gate's settings {len(spec.max_step)}"
        )
    if len(rows) and not 0 <= rows.asset.min() <= rows.asset.max() < len(table):
        raise ShapeError(f"asset codes must be 0 to {len(table) - 1}, found {rows.asset.min()} to {rows.asset.max()}")
    gated = replace(rows, x=rows.x.copy(), observed=rows.observed.copy(), quality=rows.quality.copy())
    state = tuple(table[name] for name in _COLUMNS)
    stuck = np.array(spec.stuck_frames, np.int64)
    step = np.array(spec.max_step, np.float64)
    _mask(rows.asset, rows.continuity, gated.x, gated.observed, gated.quality, state, stuck, step, spec.missing_frames)
    return gated


@njit(nogil=True, cache=True)
def _mask(
    asset: Int32,
    continuity: UInt8,
    x: Float32,
    observed: Bool,
    quality: UInt8,
    state: Any,
    stuck_frames: Int64,
    max_step: Float64,
    missing_frames: int,
) -> None:
    _, _, last_age, passed_age, _, absent = state
    for i in range(len(asset)):
        a = asset[i]
        if continuity[i] != _CONTINUES:
            last_age[a] = 0
            passed_age[a] = 0
            absent[a] = 0
        for c in range(x.shape[1]):
            if last_age[a, c] > 0:
                last_age[a, c] = min(last_age[a, c] + 1, _LONGEST)
                passed_age[a, c] = min(passed_age[a, c] + 1, _LONGEST)
            if observed[i, c]:
                absent[a, c] = 0
                fault = _judge(a, c, x[i, c], state, stuck_frames[c], max_step[c])
                if fault != _OK:
                    x[i, c] = 0.0
                    observed[i, c] = False
                    quality[i, c] = fault
            elif quality[i, c] == _ABSENT:
                absent[a, c] = min(absent[a, c] + 1, _LONGEST)
                if 0 < missing_frames < absent[a, c]:
                    quality[i, c] = _MISSING
            elif quality[i, c] != _GAP:
                absent[a, c] = 0


@njit(nogil=True, cache=True, forceinline=True)
def _judge(a: int, c: int, value: float, state: Any, stuck_frames: int, max_step: float) -> int:
    """Take in one reading; return what is wrong with it. An age is one more than the rows since, and 0 for none."""
    last, passed, last_age, passed_age, run, _ = state
    known = last_age[a, c] > 0
    run[a, c] = min(run[a, c] + 1, _LONGEST) if known and value == last[a, c] else 1
    jumps = (
        known
        and abs(np.float64(value) - last[a, c]) > max_step * (last_age[a, c] - 1)
        and abs(np.float64(value) - passed[a, c]) > max_step * (passed_age[a, c] - 1)
    )
    last[a, c] = value
    last_age[a, c] = 1
    if jumps:
        return _JUMP
    passed[a, c] = value
    passed_age[a, c] = 1
    return _STUCK if 0 < stuck_frames <= run[a, c] else _OK
