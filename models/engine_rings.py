"""Where the engine keeps windows: per asset the last R raw rows (the state) and, derived from them, a scaled ring.

Rows are taken in order and each row's window is copied out at once: an asset may appear many times in one batch. A row
of a random asset waits for memory, so as little of it is touched as will do: a ring of masks is left alone as long as
every reading in it is observed, and what is touched is asked for some rows ahead.

Legend: n rows, S slots, G groups, R rows kept, C channels, B windows of one chunk, P = R * C rounded up to `LANES`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.scaling import scale_row
from pipeline.errors import ShapeError, StateError
from pipeline.kernels import AHEAD, LINE, PAGE, copy_values, fetch, row_kernel, row_part
from pipeline.protocols import RawWindows
from pipeline.values import Bool, Continuity, Float32, Int32, Int64, Status, UInt8

LANES = 16  # float32 in 64 bytes: rows that start at the same alignment go through the same vector code
MIN_OBSERVED = 0.5  # share of a window's readings below which nothing is said

_FIRST_SLOTS = 16
_CONTINUES = int(Continuity.CONTINUES)
_ZERO = np.float32(0.0)
_WARMING = np.uint8(Status.WARMING)
_CALIBRATED = np.uint8(Status.CALIBRATED)
_ABSTAINED = np.uint8(Status.ABSTAINED)
_HEAD = np.dtype(
    [
        ("group", np.int32),  # -1: never scored, only collected
        ("at", np.int32),  # where the next row goes
        ("count", np.int32),  # rows since the window started, at most R
        ("missing", np.int32),  # unobserved readings of those rows
        ("age", np.int32),  # as in Chunk
        ("whole", np.int32),  # rows since one with an unobserved reading, in whatever window, at most R: all is seen
    ]
)


def padded(values: int, itemsize: int = 4) -> int:
    """Return `values` rounded up so that they fill multiples of 64 bytes, `LANES` values of 4 bytes each."""
    lanes = 4 * LANES // itemsize
    return -(-values // lanes) * lanes


class Chunk(NamedTuple):
    """Windows on their way to the members; reused, so only the first k rows of the last `take` mean anything."""

    x: Float32  # (B, P), scaled, oldest row first, 0 where not observed and beyond R * C
    observed: Bool  # (B, R * C), written only where age < R: elsewhere all is observed
    ends: Int64  # (B,), the row each window ends with
    age: Int32  # (B,), rows since the newest one with an unobserved reading, at most R


class _Slots(NamedTuple):
    """Arrays with a leading slot axis."""

    head: NDArray[Any]  # (S,) of _HEAD
    raw: Float32  # (S, R, C), ring
    seen: Bool  # (S, R * C), ring
    scaled: Float32  # (S, R * C), ring; 0 where not observed, anything where no group scores the slot


class _Scaler(NamedTuple):
    """Scalers of all groups."""

    loc: Float32  # (G, C)
    scale: Float32  # (G, C)
    limit: float


class Rings:
    """Windows of all assets of an engine.

    Parameters
    ----------
    rows : R, rows kept per asset.
    loc, scale : (G, C) float32, the scaler of each group.
    soft_clip : scales up to which scaled values stay linear.
    """

    def __init__(self, rows: int, loc: Float32, scale: Float32, soft_clip: float) -> None:
        self.rows = rows
        self.channels = int(loc.shape[1])
        self._scaler = _Scaler(np.ascontiguousarray(loc), np.ascontiguousarray(scale), float(soft_clip))
        self._slots = _new_slots(0, rows, self.channels)
        self._used = np.zeros(0, np.bool_)
        self._free: list[int] = []

    def allocate(self, group: Int32) -> Int32:
        """Return an empty slot for each entry of `group` (-1: its rows are collected, never scored)."""
        while len(self._free) < len(group):
            self._grow()
        slots = np.array([self._free.pop() for _ in range(len(group))], np.int32)
        self._used[slots] = True
        self._slots.head["group"][slots] = group
        self._slots.head["count"][slots] = 0
        return slots

    def drop(self, slots: Int32) -> None:
        """Free slots; a later `allocate` may hand them out again."""
        self._check(slots)
        self._used[slots] = False
        self._free.extend(np.unique(slots)[::-1].tolist())

    def group_of(self, slots: Int32) -> Int32:
        """Return the group that scores each slot."""
        self._check(slots)
        group: Int32 = self._slots.head["group"][slots]
        return group

    def store(self, x: Float32, observed: Bool, continuity: UInt8, slots: Int32) -> None:
        """Take rows into the windows, in order, and nothing else."""
        self._check(slots)
        _store(x, observed, continuity, slots, self._slots, self._scaler)

    def take(
        self,
        x: Float32,
        observed: Bool,
        continuity: UInt8,
        slots: Int32,
        order: Int64,
        chunk: Chunk,
        status: UInt8,
        coverage: Float32,
    ) -> tuple[int, int]:
        """Take the rows at `order`, one after the other, until `chunk` is full of windows that can be scored.

        `status` and `coverage` (n,) are written for each row that was taken; coverage is that of the rows the window
        has so far. `slots` are those that `group_of` has checked.

        Returns
        -------
        (taken, k) : how many of `order` were taken; how many windows lie in the chunk.
        """
        taken: tuple[int, int] = _take(
            x, observed, continuity, slots, order, self._slots, self._scaler, chunk, status, coverage
        )
        return taken

    def dump(self, slots: Int32) -> RawWindows:
        """Return the raw windows of slots, oldest row first, right-aligned."""
        self._check(slots)
        head = self._slots.head[slots]
        ring = (head["at"][:, None] + np.arange(self.rows)) % self.rows
        real = np.arange(self.rows) >= self.rows - head["count"][:, None]
        at = slots[:, None]
        return RawWindows(
            x=np.where(real[..., None], self._slots.raw[at, ring], np.float32(0)),
            observed=self._slots.seen.reshape(self._slots.raw.shape)[at, ring] & real[..., None],
            count=np.ascontiguousarray(head["count"]),
        )

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put raw windows back; all that derives from them is rebuilt by the step that took the rows at first.

        Raises
        ------
        ShapeError : the windows have other rows or channels than these rings.
        """
        self._check(slots)
        shape = (len(slots), self.rows, self.channels)
        if raw.x.shape != shape or raw.observed.shape != shape or raw.count.shape != shape[:1]:
            raise ShapeError(f"windows of shape {raw.x.shape} do not fit {shape}: slots, rows kept, channels")
        x, observed = np.array(raw.x, np.float32), np.array(raw.observed, np.bool_)  # copies: writable for numba
        _load(x, observed, np.array(raw.count, np.int32), slots, self._slots, self._scaler)

    def _grow(self) -> None:
        had = len(self._used)
        grown = _new_slots(max(_FIRST_SLOTS, 2 * had), self.rows, self.channels)
        for new, old in zip(grown, self._slots, strict=True):
            new[:had] = old
        self._slots = grown
        self._used = np.concatenate([self._used, np.zeros(len(grown.head) - had, np.bool_)])
        self._free[:0] = range(len(grown.head) - 1, had - 1, -1)

    def _check(self, slots: Int32) -> None:
        wrong = first_unused(slots, self._used)
        if wrong < len(slots):
            raise StateError(f"slot {slots[wrong]} was never allocated, or was dropped: allocate it first")


def _new_slots(size: int, rows: int, channels: int) -> _Slots:
    return _Slots(
        head=np.zeros(size, _HEAD),
        raw=np.zeros((size, rows, channels), np.float32),
        seen=np.zeros((size, rows * channels), np.bool_),
        scaled=np.zeros((size, rows * channels), np.float32),
    )


@njit(nogil=True, cache=True)
def first_unused(slots: Int32, used: Bool) -> int:
    """Return the place of the first slot that is not in use; as many as there are slots: all are."""
    for i in range(len(slots)):
        if not 0 <= slots[i] < len(used) or not used[slots[i]]:
            return i
    return len(slots)


@row_part
def put(s: int, x: Float32, observed: Bool, i: int, starts: bool, slots: _Slots, scaler: _Scaler) -> int:
    """Take row `i` of `x` into slot `s`, as the first of a new window if `starts`; return its unobserved readings."""
    rows, channels = slots.raw.shape[1], slots.raw.shape[2]
    head = slots.head[s]
    if starts or head.count == 0:
        head.count = 0
        head.missing = 0
        head.age = rows
    p, group = head.at, head.group
    came, there, raw = x[i], observed[i], slots.raw[s, p]
    here = slice(p * channels, (p + 1) * channels)
    complete = True
    copy_values(raw, came)
    for c in range(channels):
        complete &= there[c]
    gaps, left = 0, 0
    if head.whole < rows or not complete:
        gaps, left = _replace(slots.seen[s, here], there)
    if group >= 0:
        scale_row(came, there, gaps, scaler.loc[group], scaler.scale[group], scaler.limit, _ZERO, slots.scaled[s, here])
    leaves = head.count == rows
    head.missing += gaps - left if leaves else gaps
    head.count += 0 if leaves else 1
    head.age = 0 if gaps else min(head.age + 1, rows)
    head.whole = 0 if gaps else min(head.whole + 1, rows)
    head.at = p + 1 if p + 1 < rows else 0
    return gaps


@row_kernel
def _replace(seen: Bool, there: Bool) -> tuple[int, int]:
    """Write the mask of a row in the place of another; return how many readings are unobserved in it, and were."""
    gaps, left = 0, 0
    for c in range(len(seen)):
        left += not seen[c]
        gaps += not there[c]
        seen[c] = there[c]
    return gaps, left


@row_part
def fetch_row(s: int, slots: _Slots) -> None:
    """Ask for the memory that the next row of slot `s` is written to."""
    rows, channels = slots.raw.shape[1], slots.raw.shape[2]
    size = 4 * channels
    at = (s * rows + slots.head[s].at) * size
    fetch(slots.raw.ctypes.data + at, size)
    fetch(slots.scaled.ctypes.data + at, size)


@row_part
def _fetch_window(s: int, slots: _Slots) -> None:
    """Ask for what every page of a scaled window begins with: after that the CPU runs ahead by itself."""
    size = 4 * slots.scaled.shape[1]
    for at in range(0, size, PAGE):
        fetch(slots.scaled.ctypes.data + s * size + at, min(size - at, 8 * LINE))


@row_part
def judge(head: Any, gaps: int, rows: int, channels: int) -> tuple[np.uint8, np.float32]:
    """Return the status of a row that was just taken, and the coverage of the rows its window has so far. For kernels.

    `head` is that of its slot, `gaps` its unobserved readings.
    """
    readings = rows * channels
    coverage = np.float32(1.0) - np.float32(head.missing) / np.float32(head.count * channels)
    if head.count < rows or head.group < 0:
        return _WARMING, coverage
    if gaps == channels or readings - head.missing < MIN_OBSERVED * readings:
        return _ABSTAINED, coverage
    return _CALIBRATED, coverage


@row_kernel
def _store(x: Float32, observed: Bool, continuity: UInt8, where: Int32, slots: _Slots, scaler: _Scaler) -> None:
    for i in range(len(where)):
        if i + AHEAD < len(where):
            fetch_row(where[i + AHEAD], slots)
        put(where[i], x, observed, i, continuity[i] != _CONTINUES, slots, scaler)


@row_kernel
def _load(x: Float32, observed: Bool, count: Int32, where: Int32, slots: _Slots, scaler: _Scaler) -> None:
    rows = x.shape[1]
    for k in range(len(where)):
        slots.head[where[k]].count = 0
        mine, seen = x[k], observed[k]
        for i in range(rows - count[k], rows):
            put(where[k], mine, seen, i, False, slots, scaler)


@row_kernel
def _take(
    x: Float32,
    observed: Bool,
    continuity: UInt8,
    where: Int32,
    order: Int64,
    slots: _Slots,
    scaler: _Scaler,
    chunk: Chunk,
    status: UInt8,
    coverage: Float32,
) -> tuple[int, int]:
    rows, channels = slots.raw.shape[1], slots.raw.shape[2]
    k = 0
    for j in range(len(order)):
        if j + AHEAD < len(order):
            fetch_row(where[order[j + AHEAD]], slots)
        if j + 1 < len(order):
            _fetch_window(where[order[j + 1]], slots)
        i = order[j]
        s = where[i]
        gaps = put(s, x, observed, i, continuity[i] != _CONTINUES, slots, scaler)
        head = slots.head[s]
        status[i], coverage[i] = judge(head, gaps, rows, channels)
        if status[i] == _CALIBRATED:
            oldest = head.at * channels
            unroll(slots.scaled[s], oldest, chunk.x[k])
            chunk.ends[k] = i
            chunk.age[k] = head.age
            if head.age < rows:
                unroll(slots.seen[s], oldest, chunk.observed[k])
            k += 1
            if k == len(chunk.ends):
                return j + 1, k
    return len(order), k


@row_kernel
def unroll(ring: Any, oldest: int, out: Any) -> None:
    """Copy one asset's ring (R * C,), of masks or of scaled rows, to `out`, from the place of its oldest row on."""
    before = len(ring) - oldest
    copy_values(out[:before], ring[oldest:])
    copy_values(out[before:], ring[:oldest])
