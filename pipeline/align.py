"""Rows as decoded -> frames in event time: slots of a common grid, or the rows' own time stamps.

Everything is decided per asset, from its own rows alone. Its watermark is the greatest time stamp seen, less the
lateness. A frame collects rows until its end is at or below the watermark; then it is released and never changes.
A row that comes for a frame that was due before it is late: handed back, counted, and without any effect.

Nothing depends on the order of arrival within the lateness: of two readings of a channel in one frame the one with
the greater (time stamp, value) stays, and an observed one always beats an unobserved one. Nothing depends on how the
input was cut: the pending rows are columns of the table. Nothing is flushed when the input ends: its end is no event.

Times must lie within 2^62 ns of 1970 (1823 to 2116), so that no sum overflows; -0.0 becomes 0.0, so that ties are ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShapeError
from pipeline.kernels import AHEAD, copy_values, fetch, first_outside, row_kernel, row_part, set_all
from pipeline.state import AssetTable, Column
from pipeline.values import NS_PER_S, Bool, Continuity, Int32, Int64, Quality, Rows

_NO_TIME = np.iinfo(np.int64).min  # no row yet
_LONGEST_NS = 1 << 60
_CONTINUES, _NEW_WINDOW, _FRESH = (int(c) for c in Continuity)
_GAP = int(Quality.GAP)

# Pending frames, sorted by key. `slot` is a permutation: entry k of the sorted list lies in place slot[k] of the
# columns after it, so that only two numbers move when a frame is put in or taken out. -1: its own number, unused yet.
_PENDING = tuple(f"align_{c}" for c in ("key", "slot", "reading_ts", "x", "observed", "quality", "offset", "row"))
_CLOCK = ("align_max_ts", "align_released", "align_held")
_DONE, _OUTPUT_FULL, _PENDING_FULL = 0, 1, 2
_NO_ROOM, _ADDED, _MERGED, _DUPLICATE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignSpec:
    """How rows become frames.

    Parameters
    ----------
    mode : `grid`: one frame per slot of `period_ns`; `none`: one frame per time stamp, as it is.
    period_ns : the grid's period; not used by `none`.
    rounding : which time stamps slot k, whose frame time is k * period, takes in: `nearest` those in
        [(k - 1/2) period, (k + 1/2) period), `floor` those in [k * period, (k + 1) period).
    lateness_ns : how far a row may lie behind its asset's newest one and still be taken.
    max_gap_ns : a longer gap between two frames starts a NEW_WINDOW; on the grid a shorter one is filled with GAP rows.
    retire_after_ns : after a longer gap the asset is FRESH.

    Raises
    ------
    ConfigError : a value that makes no sense, or does not go with another.
    """

    mode: Literal["grid", "none"]
    period_ns: int
    rounding: Literal["nearest", "floor"] = "nearest"
    lateness_ns: int = 0
    max_gap_ns: int
    retire_after_ns: int

    def __post_init__(self) -> None:
        if self.mode not in ("grid", "none"):
            raise ConfigError("align.mode", self.mode, "use 'grid' or 'none'")
        if self.rounding not in ("nearest", "floor"):
            raise ConfigError("align.rounding", self.rounding, "use 'nearest' or 'floor'")
        if self.mode == "grid" and not 0 < self.period_ns < _LONGEST_NS:
            raise ConfigError(
                "feed.period_s", self.period_ns / NS_PER_S, "the grid needs a period above 0, under 36 years"
            )
        if not 0 <= self.lateness_ns < _LONGEST_NS:
            raise ConfigError("align.lateness_s", self.lateness_ns / NS_PER_S, "use 0 or more, under 36 years")
        shortest = self.period_ns if self.mode == "grid" else 1
        if not shortest <= self.max_gap_ns:
            fix = f"use at least {shortest / NS_PER_S}, or every frame starts a window"
            raise ConfigError("align.max_gap_s", self.max_gap_ns / NS_PER_S, fix)
        if not self.max_gap_ns <= self.retire_after_ns < _LONGEST_NS:
            fix = f"use at least align.max_gap_s ({self.max_gap_ns / NS_PER_S}), under 36 years"
            raise ConfigError("align.retire_after_s", self.retire_after_ns / NS_PER_S, fix)


@dataclass(frozen=True, slots=True)
class Aligned:
    """What alignment made of some rows.

    `rows` are the frames that were released: per asset in event time, among assets by the row that released them.
    A frame's `offset` and `row` are those of the last row in it; a GAP row has those of the frame after it. `late`
    are the rows that came too late, unchanged. `counts`: `late`; `merged`, rows that joined a pending frame;
    `duplicate`, those of them that brought nothing but readings whose channel had one of the same time stamp in the
    frame; `frames`, the length of `rows`; `bridged`, the GAP rows among them.
    """

    rows: Rows
    late: Rows
    counts: dict[str, int]


def align_columns(spec: AlignSpec, channels: int) -> dict[str, Column]:
    """Return the columns alignment needs in the table, the same for every `spec`; they grow with what is pending."""
    return {
        "align_max_ts": Column(np.int64, fill=_NO_TIME),
        "align_released": Column(np.int64, fill=_NO_TIME),
        "align_held": Column(np.int32),
        "align_key": Column(np.int64, (-1,)),
        "align_slot": Column(np.int32, (-1,), fill=-1),
        "align_reading_ts": Column(np.int64, (-1, channels)),
        "align_x": Column(np.float32, (-1, channels)),
        "align_observed": Column(np.bool_, (-1, channels)),
        "align_quality": Column(np.uint8, (-1, channels)),
        "align_offset": Column(np.int64, (-1,)),
        "align_row": Column(np.int32, (-1,)),
    }


def align(rows: Rows, table: AssetTable, spec: AlignSpec) -> Aligned:
    """Take rows in log order; return the frames that they complete.

    Parameters
    ----------
    rows : as decoded; `continuity` is not read.
    table : holds `align_columns(spec, C)`; what is pending is kept there.

    Raises
    ------
    ShapeError : C differs from the table's, or an asset code is not in the table.
    """
    _check(rows, table)
    n = len(rows)
    times = _times(spec)
    taken = (rows.asset, rows.ts_ns, rows.x, rows.observed, rows.quality, rows.offset, rows.row)
    clock = tuple(table[name] for name in _CLOCK)
    late = np.zeros(n, np.bool_)
    tally = np.zeros(4, np.int64)
    parts = []
    at, entered, room, stop = 0, False, n + 16, _OUTPUT_FULL
    while stop != _DONE:
        pending = tuple(table[name] for name in _PENDING)
        out = _room_for(room, rows.channels)
        at, entered, written, stop = _take(taken, at, entered, clock, pending, out, late, tally, times)
        parts.append([column[:written] for column in out])
        if stop == _PENDING_FULL:
            for name in _PENDING:
                table.widen(name)
        room *= 2
    released = parts[0] if len(parts) == 1 else [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    merged, duplicate, bridged, too_late = tally.tolist()
    late_rows = rows.take(late) if too_late else _no_rows(rows.partition, rows.channels)
    counts = {
        "late": too_late,
        "merged": merged,
        "duplicate": duplicate,
        "frames": len(released[0]),
        "bridged": bridged,
    }
    return Aligned(Rows(rows.partition, *released), late_rows, counts)


@lru_cache(maxsize=64)
def _times(spec: AlignSpec) -> tuple[int, bool, int, int, int, int]:
    """Return what the kernel needs to know of a spec; a period of 0 stands for rows as they come."""
    grid, nearest = spec.mode == "grid", spec.rounding == "nearest"
    span = ((spec.period_ns + 1) // 2 if nearest else spec.period_ns) if grid else 0  # from a frame's time to its end
    return spec.period_ns if grid else 0, nearest, span, spec.lateness_ns, spec.max_gap_ns, spec.retire_after_ns


_no_rows = lru_cache(maxsize=64)(Rows.empty)


def _check(rows: Rows, table: AssetTable) -> None:
    channels = table["align_x"].shape[2]
    if rows.channels != channels:
        raise ShapeError(f"rows have {rows.channels} channels, the table was made for {channels}")
    if first_outside(rows.asset, len(table)) < len(rows):
        raise ShapeError(f"asset codes must be 0 to {len(table) - 1}, found {rows.asset.min()} to {rows.asset.max()}")


def _room_for(n: int, channels: int) -> tuple[NDArray[Any], ...]:
    """Return uninitialised columns of n rows, in the order of the fields of `Rows`."""
    return (
        np.empty(n, np.int32),
        np.empty(n, np.int64),
        np.empty((n, channels), np.float32),
        np.empty((n, channels), np.bool_),
        np.empty((n, channels), np.uint8),
        np.empty(n, np.int64),
        np.empty(n, np.int32),
        np.empty(n, np.uint8),
    )


@row_kernel
def _take(
    rows: Any,
    at: int,
    entered: bool,
    clock: Any,
    pending: Any,
    out: Any,
    late: Bool,
    tally: Int64,
    times: tuple[int, bool, int, int, int, int],
) -> tuple[int, bool, int, int]:
    """Go on at row `at`, which is pending already if `entered`; return the same two, rows written and why it stopped.

    An array cannot grow here: when the output or the pending columns are full, the caller makes room and calls again.
    """
    asset, ts = rows[0], rows[1]
    max_ts, held = clock[0], clock[2]
    key = pending[0]
    period, nearest, span, lateness, max_gap, retire_after = times
    at_once = period == 0 and lateness == 0  # a row is due when it comes
    written = 0
    while at < len(ts):
        if at + AHEAD < len(ts):
            _fetch_clock(asset[at + AHEAD], clock, pending, at_once)
        if not at_once and at + AHEAD // 2 < len(ts):
            _fetch_pending(asset[at + AHEAD // 2], held, pending)
        a = asset[at]
        if not entered:
            frame = _frame_time(ts[at], period, nearest)
            if max_ts[a] != _NO_TIME and frame + span <= max_ts[a] - lateness:
                late[at] = True
                tally[3] += 1
                at += 1
                continue
            if at_once and held[a] == 0 and written < len(out[0]):
                _pass_on(rows, at, clock, out, written, max_gap, retire_after)
                written += 1
                at += 1
                continue
            what = _enter(rows, at, frame, held, pending)
            if what == _NO_ROOM:
                return at, False, written, _PENDING_FULL
            tally[0] += what >= _MERGED
            tally[1] += what == _DUPLICATE
            max_ts[a] = max(max_ts[a], ts[at])
        due = max_ts[a] - lateness - span
        while held[a] > 0 and key[a, 0] <= due:
            if written == len(out[0]):
                return at, True, written, _OUTPUT_FULL
            tally[2] += _release(a, clock, pending, out, written, period, max_gap, retire_after)
            written += 1
        entered = False
        at += 1
    return at, False, written, _DONE


@row_part
def _fetch_clock(a: int, clock: Any, pending: Any, at_once: bool) -> None:
    """Ask for the times of an asset and, unless its rows pass at once, for where its pending rows lie."""
    max_ts, released, held = clock
    fetch(max_ts.ctypes.data + 8 * a, 8)
    fetch(released.ctypes.data + 8 * a, 8)
    fetch(held.ctypes.data + 4 * a, 4)
    if not at_once:
        key, slot = pending[0], pending[1]
        width = key.shape[1]
        fetch(key.ctypes.data + 8 * a * width, 8 * width)
        fetch(slot.ctypes.data + 4 * a * width, 4 * width)


@row_part
def _fetch_pending(a: int, held: Int32, pending: Any) -> None:
    """Ask for the pending row that is most likely released next, and for the place that a new one is put in."""
    key, slot = pending[0], pending[1]
    width, n = key.shape[1], held[a]
    if n > 0:
        _fetch_place(a * width + slot[a, 0], pending)
    if n < width:
        place = a * width + (slot[a, n] if slot[a, n] >= 0 else n)
        channels = pending[2].shape[2]
        _fetch_place(place, pending)
        fetch(pending[2].ctypes.data + 8 * channels * place, 8 * channels)


@row_part
def _fetch_place(place: int, pending: Any) -> None:
    _, _, _, p_x, p_observed, p_quality, p_offset, p_row = pending
    channels = p_x.shape[2]
    fetch(p_x.ctypes.data + 4 * channels * place, 4 * channels)
    fetch(p_observed.ctypes.data + channels * place, channels)
    fetch(p_quality.ctypes.data + channels * place, channels)
    fetch(p_offset.ctypes.data + 8 * place, 8)
    fetch(p_row.ctypes.data + 4 * place, 4)


@row_part
def _pass_on(rows: Any, i: int, clock: Any, out: Any, to: int, max_gap: int, retire_after: int) -> None:
    """Write row i to `out` as if it had been pending: it is due, and nothing else of its asset is pending."""
    asset, ts, x, observed, quality, offset, row = rows
    max_ts, released, _ = clock
    o_asset, o_ts, o_x, o_observed, o_quality, o_offset, o_row, o_continuity = out
    a = asset[i]
    _add_zero(o_x[to], x[i])
    copy_values(o_observed[to], observed[i])
    copy_values(o_quality[to], quality[i])
    o_asset[to] = a
    o_ts[to] = ts[i]
    o_offset[to] = offset[i]
    o_row[to] = row[i]
    o_continuity[to] = _continuity(ts[i], released[a], max_gap, retire_after)
    max_ts[a] = released[a] = ts[i]


@row_part
def _continuity(frame: int, last: int, max_gap: int, retire_after: int) -> int:
    """Return what a frame is to the one that was released last."""
    if last == _NO_TIME or frame - last > retire_after:
        return _FRESH
    return _NEW_WINDOW if frame - last > max_gap else _CONTINUES


@row_part
def _frame_time(ts: int, period: int, nearest: bool) -> int:
    """Return the time of the frame that takes in `ts`; // rounds down, for times before 1970 too."""
    if period == 0:
        return ts
    k = ts // period
    if nearest and 2 * (ts - k * period) >= period:
        k += 1
    return k * period


@row_part
def _enter(rows: Any, i: int, frame: int, held: Int32, pending: Any) -> int:
    """Put row i into its asset's pending frame, a new one if there is none; return what became of it."""
    key, slot = pending[0], pending[1]
    a = rows[0][i]
    n = held[a]
    k = n
    while k > 0 and key[a, k - 1] > frame:
        k -= 1
    if k > 0 and key[a, k - 1] == frame:
        return _DUPLICATE if _merge(rows, i, slot[a, k - 1], pending) else _MERGED
    if n == key.shape[1]:
        return _NO_ROOM
    place = slot[a, n] if slot[a, n] >= 0 else n
    for j in range(n, k, -1):
        key[a, j] = key[a, j - 1]
        slot[a, j] = slot[a, j - 1]
    key[a, k] = frame
    slot[a, k] = place
    held[a] = n + 1
    _fill(rows, i, place, pending)
    return _ADDED


@row_part
def _fill(rows: Any, i: int, place: int, pending: Any) -> None:
    asset, ts, x, observed, quality, offset, row = rows
    _, _, p_ts, p_x, p_observed, p_quality, p_offset, p_row = pending
    a = asset[i]
    set_all(p_ts[a, place], ts[i])
    _add_zero(p_x[a, place], x[i])
    copy_values(p_observed[a, place], observed[i])
    copy_values(p_quality[a, place], quality[i])
    p_offset[a, place] = offset[i]
    p_row[a, place] = row[i]


@row_part
def _add_zero(to: Any, values: Any) -> None:
    for c in range(len(to)):
        to[c] = values[c] + np.float32(0.0)


@row_part
def _merge(rows: Any, i: int, place: int, pending: Any) -> bool:
    """Merge row i into a pending frame, channel by channel; return True if it was a duplicate."""
    asset, ts, x, observed, quality, offset, row = rows
    _, _, p_ts, p_x, p_observed, p_quality, p_offset, p_row = pending
    a, t = asset[i], ts[i]
    readings = repeated = 0
    for c in range(x.shape[1]):
        is_observed, was_observed = observed[i, c], p_observed[a, place, c]
        was_ts = p_ts[a, place, c]
        value = x[i, c] + np.float32(0.0)
        readings += is_observed
        repeated += is_observed and was_observed and t == was_ts
        if is_observed != was_observed:
            wins = is_observed
        elif t != was_ts:
            wins = t > was_ts
        elif is_observed:
            wins = value > p_x[a, place, c]
        else:
            wins = quality[i, c] > p_quality[a, place, c]
        if wins:
            p_ts[a, place, c] = t
            p_x[a, place, c] = value
            p_observed[a, place, c] = is_observed
            p_quality[a, place, c] = quality[i, c]
    before = p_offset[a, place]
    if offset[i] > before or (offset[i] == before and row[i] > p_row[a, place]):
        p_offset[a, place] = offset[i]
        p_row[a, place] = row[i]
    return 0 < readings == repeated


@row_part
def _release(a: int, clock: Any, pending: Any, out: Any, to: int, period: int, max_gap: int, retire_after: int) -> bool:
    """Write one row to `out`: the asset's first pending frame, or (True) a GAP row for a slot missing before it."""
    _, released, held = clock
    key, slot, _, p_x, p_observed, p_quality, p_offset, p_row = pending
    o_asset, o_ts, o_x, o_observed, o_quality, o_offset, o_row, o_continuity = out
    frame, last = key[a, 0], released[a]
    place = slot[a, 0]
    continuity = _continuity(frame, last, max_gap, retire_after)
    bridge = bool(continuity == _CONTINUES and 0 < period < frame - last)
    if bridge:
        frame = last + period
        set_all(o_x[to], np.float32(0.0))
        set_all(o_observed[to], False)
        set_all(o_quality[to], _GAP)
    else:
        copy_values(o_x[to], p_x[a, place])
        copy_values(o_observed[to], p_observed[a, place])
        copy_values(o_quality[to], p_quality[a, place])
    o_asset[to] = a
    o_ts[to] = frame
    o_offset[to] = p_offset[a, place]
    o_row[to] = p_row[a, place]
    o_continuity[to] = continuity
    released[a] = frame
    if not bridge:
        held[a] -= 1
        for j in range(held[a]):
            key[a, j] = key[a, j + 1]
            slot[a, j] = slot[a, j + 1]
        slot[a, held[a]] = place
    return bridge
