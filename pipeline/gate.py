"""The second quality gate, after alignment: readings that are stuck, jump, or have been missing for long.

It looks back along each channel of each asset, so it runs where rows are in event time; what can be told from one
reading alone (finite, within range) was checked before alignment. It only ever masks: no reading is put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, ShapeError
from pipeline.kernels import AHEAD, fetch, first_outside, row_kernel, row_part
from pipeline.state import AssetTable, Column
from pipeline.values import Bool, Continuity, Float32, Float64, Int32, Int64, Quality, Rows, UInt8

_COLUMNS = tuple(f"gate_{c}" for c in ("last", "passed", "last_age", "passed_age", "run", "absent"))
_LONGEST = 1 << 30  # counts stop here
_AHEAD = AHEAD // 2  # rows: each is ten lines
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
    """Mask readings that a fault of the sensor explains; return the rows, new ones where a reading was masked.

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
    if first_outside(rows.asset, len(table)) < len(rows):
        raise ShapeError(f"asset codes must be 0 to {len(table) - 1}, found {rows.asset.min()} to {rows.asset.max()}")
    taken = (rows.asset, rows.continuity, rows.x, rows.observed, rows.quality)
    state = tuple(table[name] for name in _COLUMNS)
    place, code = np.empty(rows.x.size, np.int64), np.empty(rows.x.size, np.uint8)
    found = _judge(taken, state, _limits(spec.stuck_frames, spec.max_step), spec.missing_frames, place, code)
    return _masked(rows, place[:found], code[:found]) if found else rows


@lru_cache(maxsize=64)
def _limits(stuck_frames: tuple[int, ...], max_step: tuple[float, ...]) -> tuple[Int32, Float64]:
    """Return the runs that are stuck, more than any run can be for never, and the largest steps."""
    runs = [min(frames, _LONGEST + 1) if frames else _LONGEST + 1 for frames in stuck_frames]
    return np.array(runs, np.int32), np.array(max_step, np.float64)


def _masked(rows: Rows, place: Int64, code: UInt8) -> Rows:
    """Return the rows without the readings at `place`, which counts row by row, channel by channel."""
    x, observed, quality = rows.x.copy(), rows.observed.copy(), rows.quality.copy()
    x.flat[place] = 0.0
    observed.flat[place] = False
    quality.flat[place] = code
    return replace(rows, x=x, observed=observed, quality=quality)


@row_kernel
def _judge(rows: Any, state: Any, limits: tuple[Int32, Float64], missing_frames: int, place: Int64, code: UInt8) -> int:
    """Take in rows; write where they are not as they should be, and what is wrong there; return in how many places."""
    asset, continuity, x, observed, _ = rows
    found = 0
    for i in range(len(asset)):
        if i + _AHEAD < len(asset):
            _fetch_asset(asset[i + _AHEAD], state)
        a = asset[i]
        if continuity[i] == _CONTINUES and _is_whole(a, x[i], observed[i], state, limits):
            found = _take_whole(i, a, x[i], state, limits, place, code, found)
        else:
            found = _take(i, rows, state, limits, missing_frames, place, code, found)
    return found


@row_part
def _fetch_asset(a: int, state: Any) -> None:
    """Ask for what a whole row reads and writes."""
    last, passed, last_age, passed_age, run, _ = state
    size = 4 * last.shape[1]
    fetch(last.ctypes.data + a * size, size)
    fetch(passed.ctypes.data + a * size, size)
    fetch(last_age.ctypes.data + a * size, size)
    fetch(passed_age.ctypes.data + a * size, size)
    fetch(run.ctypes.data + a * size, size)


@row_part
def _is_whole(a: int, x: Float32, observed: Bool, state: Any, limits: tuple[Int32, Float64]) -> bool:
    """Return whether every channel has a reading, had one that passed in the row before, and made no jump since.

    Nearly all rows are, and such a row can be taken in for all channels at once: `absent` is 0 and the last reading is
    the last that passed. The loops are small and have no branch, so that they are turned into vector code.
    """
    last, _, last_age, passed_age, _, _ = state
    before, ages, passed_ages, max_step = last[a], last_age[a], passed_age[a], limits[1]
    complete, older, jumps = True, np.int32(0), np.int64(0)
    for c in range(len(x)):
        complete &= observed[c]
    for c in range(len(x)):
        older |= (ages[c] ^ np.int32(1)) | (passed_ages[c] ^ np.int32(1))
    for c in range(len(x)):
        jumps += abs(np.float64(x[c]) - np.float64(before[c])) > max_step[c]
    return bool(complete and older == 0 and jumps == 0)


@row_part
def _take_whole(
    i: int, a: int, x: Float32, state: Any, limits: tuple[Int32, Float64], place: Int64, code: UInt8, found: int
) -> int:
    """Take in row i, which is whole, as `_take` does."""
    last, passed, _, _, run, _ = state
    before, through, runs, stuck_frames = last[a], passed[a], run[a], limits[0]
    stuck = np.int32(0)
    for c in range(len(x)):
        longer = min(runs[c] + np.int32(1), np.int32(_LONGEST))
        runs[c] = longer if x[c] == before[c] else np.int32(1)
        stuck += runs[c] >= stuck_frames[c]
    for c in range(len(x)):
        before[c] = x[c]
    for c in range(len(x)):
        through[c] = x[c]
    if stuck:
        for c in range(len(x)):
            if runs[c] >= stuck_frames[c]:
                place[found], code[found] = i * len(x) + c, _STUCK
                found += 1
    return found


@row_kernel
def _take(
    i: int,
    rows: Any,
    state: Any,
    limits: tuple[Int32, Float64],
    missing_frames: int,
    place: Int64,
    code: UInt8,
    found: int,
) -> int:
    """Take in row i, channel by channel; return in how many places something is wrong so far."""
    asset, continuity, x, observed, quality = rows
    _, _, last_age, passed_age, _, absent = state
    a = asset[i]
    starts = continuity[i] != _CONTINUES
    for c in range(x.shape[1]):
        if starts:
            last_age[a, c] = passed_age[a, c] = absent[a, c] = 0
        if last_age[a, c] > 0:
            last_age[a, c] = min(last_age[a, c] + 1, _LONGEST)
            passed_age[a, c] = min(passed_age[a, c] + 1, _LONGEST)
        fault = _OK
        if observed[i, c]:
            absent[a, c] = 0
            fault = _take_reading(a, c, x[i, c], state, limits[0][c], limits[1][c])
        elif quality[i, c] == _ABSENT:
            absent[a, c] = min(absent[a, c] + 1, _LONGEST)
            fault = _MISSING if 0 < missing_frames < absent[a, c] else _OK
        elif quality[i, c] != _GAP:
            absent[a, c] = 0
        if fault != _OK:
            place[found], code[found] = i * x.shape[1] + c, fault
            found += 1
    return found


@row_part
def _take_reading(a: int, c: int, value: float, state: Any, stuck_frames: int, max_step: float) -> int:
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
    return _STUCK if stuck_frames <= run[a, c] else _OK
