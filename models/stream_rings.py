"""What the streaming engine keeps per asset: the last R raw rows (the state), and what derives from them.

Derived are a short ring of scaled rows, from which the first layer reads and against which reconstructions are held,
and the results of the last hop, which the frames up to the next one take in turn. Rows are taken in order: an asset may
appear many times in one batch.

Legend: n rows, A slots, G groups, R rows kept, C channels, S rows of a hop, Q scaled rows kept, B hops of one chunk,
W row errors averaged. The frame of row u carries the score of row v = u - lag.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.engine_rings import MIN_OBSERVED
from models.scaling import scale_scalar, unscale_scalar
from models.stream_layers import Layer, Span
from pipeline.errors import ShapeError, StateError
from pipeline.protocols import RawWindows
from pipeline.values import Bool, Continuity, Float32, Float64, Int32, Int64, Status, UInt8

_FIRST_SLOTS = 16
_CONTINUES = int(Continuity.CONTINUES)
_WARMING = np.uint8(Status.WARMING)
_CALIBRATED = np.uint8(Status.CALIBRATED)
_ABSTAINED = np.uint8(Status.ABSTAINED)
_HEAD = np.dtype(
    [
        ("next", np.int64),  # the grid slot that the next row is to have
        ("group", np.int32),  # -1: never scored, only collected
        ("at", np.int32),  # where the next raw row goes
        ("scaled_at", np.int32),  # where the next scaled row goes
        ("count", np.int32),  # rows since the window started, at most R
        ("missing", np.int32),  # unobserved readings of those rows
        ("derived", np.int32),  # 0: only the raw rows are there, what derives from them is to be made
        ("fresh", np.int32),  # 1 until the first hop of a window
    ]
)


class Taken(NamedTuple):
    """Rows of several batches, one after the other."""

    x: Float32  # (n, C)
    observed: Bool  # (n, C)
    continuity: UInt8  # (n,)
    ts_ns: Int64  # (n,)
    slots: Int32  # (n,)


class Found(NamedTuple):
    """What is found out about each of n rows; NaN and 0 until then."""

    status: UInt8  # (n,)
    coverage: Float32  # (n,)
    score: Float32  # (n,)
    by_channel: Float32  # (n, C)
    expected: Float32  # (n, C), in input units
    actual: Float32  # (n, C), in input units
    ends: Int32  # (n,), the hop of the chunk that the row ends; -1: none

    @staticmethod
    def nothing(n: int, channels: int) -> Found:
        """Return nothing about n rows."""
        wide = (n, channels)
        return Found(
            status=np.zeros(n, np.uint8),
            coverage=np.zeros(n, np.float32),
            score=np.full(n, np.nan, np.float32),
            by_channel=np.zeros(wide, np.float32),
            expected=np.full(wide, np.nan, np.float32),
            actual=np.full(wide, np.nan, np.float32),
            ends=np.full(n, -1, np.int32),
        )


class Hops(NamedTuple):
    """Hops on their way through the network; reused, so only the first k of the last `take` mean anything."""

    slots: Int32  # (B,)
    fresh: Bool  # (B,), the first one of a window: layers have nothing kept for it
    late: Float32  # (B, S, C), the scaled rows that are reconstructed by this hop; NaN where not observed
    runs: Float32  # (B * products, P), what the first layer multiplies


class _Slots(NamedTuple):
    """Arrays with a leading slot axis."""

    head: NDArray[Any]  # (A,) of _HEAD
    raw: Float32  # (A, R, C), ring
    seen: Bool  # (A, R, C), ring
    scaled: Float32  # (A, Q, C), ring; NaN where not observed
    expected: Float32  # (A, S * C), reconstructions of the last hop, scaled
    errors: Float64  # (A, W - 1 + S), row errors, oldest first; NaN where nothing was observed
    score: Float32  # (A, S), of the last hop's reconstructed rows


class _Scaler(NamedTuple):
    """Scalers of all groups."""

    loc: Float32  # (G, C)
    scale: Float32  # (G, C)
    limit: float


class _Shape(NamedTuple):
    """Figures that kernels need, in rows except for the period."""

    period_ns: int
    hop: int
    delay: int
    lag: int
    averaged: int  # W
    taps: int  # of the first layer
    stride: int
    kept: int


class StreamRings:
    """Rows of all assets of a streaming engine.

    Parameters
    ----------
    span : of the network.
    first : the network's first layer.
    averaged : W, row errors that make a score.
    period_ns : of the grid that rows lie on.
    loc, scale : (G, C) float32, the scaler of each group.
    soft_clip : scales up to which scaled values stay linear.
    """

    def __init__(
        self, span: Span, first: Layer, averaged: int, period_ns: int, loc: Float32, scale: Float32, soft_clip: float
    ) -> None:
        self.rows, self.channels = span.rows(averaged), int(loc.shape[1])
        self._shape = _Shape(period_ns, span.hop, span.delay, span.lag, averaged, first.taps, first.stride, first.kept)
        self._scaler = _Scaler(np.ascontiguousarray(loc), np.ascontiguousarray(scale), float(soft_clip))
        self._slots = self._new_slots(0)
        self._used = np.zeros(0, np.bool_)
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._used)

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
        self.check(slots)
        self._used[slots] = False
        self._free.extend(np.unique(slots)[::-1].tolist())

    def group_of(self, slots: Int32) -> Int32:
        """Return the group that scores each slot."""
        group: Int32 = self._slots.head["group"][slots]
        return group

    def store(self, rows: Taken) -> None:
        """Take rows as raw state, in order; what derives from them is left to be made when scores are asked for."""
        _store(rows, self._slots)

    def take(self, rows: Taken, order: Int64, hops: Hops, found: Found) -> tuple[int, int]:
        """Take the rows at `order`, one after the other, until `hops` is full.

        Written for each row that was taken: status, coverage, which hop it ends, and, where it will have a score, what
        came (`actual`) and, for `settle`, the same scaled (`by_channel`).

        Returns
        -------
        (taken, k) : how many of `order` were taken; how many hops lie in `hops`.
        """
        taken: tuple[int, int] = _take(rows, order, self._slots, self._scaler, self._shape, hops, found)
        return taken

    def settle(
        self, rows: Taken, order: Int64, hops: Hops, expected: Float32, given: int, errors: Float64, found: Found
    ) -> None:
        """Finish the rows that `take` took: each hop's results go to its asset, each frame gets its own of them.

        Parameters
        ----------
        expected : (B * S / given, padded), reconstructions of the hops, `given` rows of C in each row.
        errors : (B, S), of the reconstructed rows.
        """
        _settle(rows, order, self._slots, self._scaler, self._shape, hops, expected, given, errors, found)

    def stale(self, rows: Taken) -> tuple[Int32, Int64]:
        """Return the slots whose derived state these rows need and that have raw rows only, and the grid slots of the
        rows that follow them. All slots of `rows` count as derived from then on.
        """
        where, follows = _stale(rows, self._slots.head, self._shape.period_ns)
        return where, follows

    def restart(self, slots: Int32) -> None:
        """Empty the windows of slots."""
        self._slots.head["count"][slots] = 0

    def dump(self, slots: Int32) -> RawWindows:
        """Return the raw rows of slots, oldest first, right-aligned."""
        head = self._slots.head[slots]
        ring = (head["at"][:, None] + np.arange(self.rows)) % self.rows
        real = np.arange(self.rows) >= self.rows - head["count"][:, None]
        at = slots[:, None]
        return RawWindows(
            x=np.where(real[..., None], self._slots.raw[at, ring], np.float32(0)),
            observed=self._slots.seen[at, ring] & real[..., None],
            count=np.ascontiguousarray(head["count"]),
        )

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put raw rows back; what derives from them is made when the next row says where on the grid they lie.

        Raises
        ------
        ShapeError : other rows or channels than these rings'.
        """
        shape = (len(slots), self.rows, self.channels)
        if raw.x.shape != shape or raw.observed.shape != shape or raw.count.shape != shape[:1]:
            raise ShapeError(f"windows of shape {raw.x.shape} do not fit {shape}: slots, rows kept, channels")
        self._slots.raw[slots], self._slots.seen[slots] = raw.x, raw.observed
        head = self._slots.head
        head["count"][slots], head["at"][slots], head["derived"][slots] = raw.count, 0, 0
        gaps = (~raw.observed).sum(axis=(1, 2)) - (self.rows - raw.count) * self.channels
        head["missing"][slots] = gaps

    def check(self, slots: Int32) -> None:
        """Raise StateError unless all slots are allocated."""
        if len(slots) and (slots.min() < 0 or slots.max() >= len(self._used) or not self._used[slots].all()):
            wrong = next(s for s in slots.tolist() if not 0 <= s < len(self._used) or not self._used[s])
            raise StateError(f"slot {wrong} was never allocated, or was dropped: allocate it first")

    def _grow(self) -> None:
        had = len(self._used)
        grown = self._new_slots(max(_FIRST_SLOTS, 2 * had))
        for new, old in zip(grown, self._slots, strict=True):
            new[:had] = old
        self._slots = grown
        self._used = np.concatenate([self._used, np.zeros(len(grown.head) - had, np.bool_)])
        self._free[:0] = range(len(grown.head) - 1, had - 1, -1)

    def _new_slots(self, size: int) -> _Slots:
        shape, c = self._shape, self.channels
        scaled = max(shape.delay, shape.kept) + shape.hop
        return _Slots(
            head=np.zeros(size, _HEAD),
            raw=np.zeros((size, self.rows, c), np.float32),
            seen=np.zeros((size, self.rows, c), np.bool_),
            scaled=np.zeros((size, scaled, c), np.float32),
            expected=np.zeros((size, shape.hop * c), np.float32),
            errors=np.zeros((size, shape.averaged - 1 + shape.hop), np.float64),
            score=np.zeros((size, shape.hop), np.float32),
        )


@njit(nogil=True, cache=True)
def _put(s: int, rows: Any, i: int, slots: Any) -> int:
    """Take row `i` into the raw ring of slot `s`; return its unobserved readings."""
    head = slots.head[s]
    kept, channels = slots.raw.shape[1], slots.raw.shape[2]
    p = head.at
    left, gaps = 0, 0
    for c in range(channels):
        left += not slots.seen[s, p, c]
        gaps += not rows.observed[i, c]
        slots.seen[s, p, c] = rows.observed[i, c]
        slots.raw[s, p, c] = rows.x[i, c]
    head.missing += gaps - left if head.count == kept else gaps
    head.count += 0 if head.count == kept else 1
    head.at = p + 1 if p + 1 < kept else 0
    return gaps


@njit(nogil=True, cache=True)
def _store(rows: Any, slots: Any) -> None:
    for i in range(len(rows.slots)):
        s = rows.slots[i]
        head = slots.head[s]
        if rows.continuity[i] != _CONTINUES or head.count == 0:
            head.count = 0
            head.missing = 0
        head.derived = 0
        _put(s, rows, i, slots)


@njit(nogil=True, cache=True)
def _stale(rows: Any, head: Any, period_ns: int) -> tuple[Int32, Int64]:
    where = np.empty(len(rows.slots), np.int32)
    follows = np.empty(len(rows.slots), np.int64)
    k = 0
    for i in range(len(rows.slots)):
        s = rows.slots[i]
        if head[s].derived == 0:
            head[s].derived = 1
            if head[s].count > 0 and rows.continuity[i] == _CONTINUES and head[s].group >= 0:
                where[k] = s
                follows[k] = rows.ts_ns[i] // period_ns
                k += 1
    return where[:k].copy(), follows[:k].copy()


@njit(nogil=True, cache=True)
def _start(s: int, slots: Any) -> None:
    """Empty slot `s`. What layers and averages keep of it is left to its first hop, which comes after older ones."""
    head = slots.head[s]
    head.count = 0
    head.missing = 0
    head.scaled_at = 0
    head.fresh = 1
    slots.scaled[s] = 0.0


@njit(nogil=True, cache=True)
def _take(rows: Any, order: Int64, slots: Any, scaler: Any, shape: Any, hops: Any, found: Any) -> tuple[int, int]:
    kept, channels = slots.raw.shape[1], slots.raw.shape[2]
    readings, ring = kept * channels, slots.scaled.shape[1]
    k = 0
    for j in range(len(order)):
        i = order[j]
        s = rows.slots[i]
        head = slots.head[s]
        grid = rows.ts_ns[i] // shape.period_ns
        if rows.continuity[i] != _CONTINUES or head.count == 0 or grid != head.next:
            _start(s, slots)
        gaps = _put(s, rows, i, slots)
        head.next = grid + 1
        head.derived = 1
        found.ends[i] = -1
        found.coverage[i] = np.float32(1.0) - np.float32(head.missing) / np.float32(head.count * channels)
        found.status[i] = _WARMING
        if head.group < 0:
            continue
        _scale_row(s, rows, i, gaps, slots, scaler)
        if head.count == kept:
            found.status[i] = _ABSTAINED
            if readings - head.missing >= MIN_OBSERVED * readings and _recall(s, i, slots, shape.lag, found):
                found.status[i] = _CALIBRATED
        if grid % shape.hop == shape.hop - 1:
            found.ends[i] = k
            hops.slots[k] = s
            hops.fresh[k] = head.fresh == 1
            head.fresh = 0
            newest = head.scaled_at - 1 + ring
            for r in range(shape.hop):
                at = (newest - shape.delay - shape.hop + 1 + r) % ring
                hops.late[k, r] = slots.scaled[s, at]
            _gather(s, newest - shape.kept - shape.hop + 1, k, slots.scaled, shape, hops.runs)
            k += 1
            if k == len(hops.slots):
                return j + 1, k
    return len(order), k


@njit(nogil=True, cache=True)
def _scale_row(s: int, rows: Any, i: int, gaps: int, slots: Any, scaler: Any) -> None:
    head = slots.head[s]
    g, p = head.group, head.scaled_at
    for c in range(rows.x.shape[1]):
        slots.scaled[s, p, c] = scale_scalar(rows.x[i, c], scaler.loc[g, c], scaler.scale[g, c], scaler.limit)
    if gaps:
        for c in range(rows.x.shape[1]):
            if not rows.observed[i, c]:
                slots.scaled[s, p, c] = np.nan
    head.scaled_at = p + 1 if p + 1 < slots.scaled.shape[1] else 0


@njit(nogil=True, cache=True)
def _recall(s: int, i: int, slots: Any, lag: int, found: Any) -> bool:
    """Copy the row that is scored now, as it came and scaled; return whether anything of it was observed."""
    head = slots.head[s]
    kept, ring = slots.raw.shape[1], slots.scaled.shape[1]
    p, q = (head.at - 1 - lag) % kept, (head.scaled_at - 1 - lag) % ring
    any_seen = False
    for c in range(slots.raw.shape[2]):
        found.by_channel[i, c] = slots.scaled[s, q, c]
        if slots.seen[s, p, c]:
            any_seen = True
            found.actual[i, c] = slots.raw[s, p, c]
    if not any_seen:
        found.by_channel[i] = 0.0
    return any_seen


@njit(nogil=True, cache=True)
def _gather(s: int, first: int, k: int, scaled: Float32, shape: Any, runs: Float32) -> None:
    """Write the runs of hop `k` for the first layer; `first`: where the oldest row of them lies in the ring."""
    ring, channels = scaled.shape[1], scaled.shape[2]
    products = shape.hop // shape.stride
    for m in range(products):
        to = runs[k * products + m]
        for t in range(shape.taps):
            at = (first + m * shape.stride + t) % ring
            for c in range(channels):
                value = scaled[s, at, c]
                to[t * channels + c] = np.float32(0.0) if np.isnan(value) else value


@njit(nogil=True, cache=True)
def _settle(
    rows: Any,
    order: Int64,
    slots: Any,
    scaler: Any,
    shape: Any,
    hops: Any,
    expected: Float32,
    given: int,
    errors: Float64,
    found: Any,
) -> None:
    channels, hop = slots.raw.shape[2], shape.hop
    for j in range(len(order)):
        i = order[j]
        s, k = rows.slots[i], found.ends[i]
        if k >= 0:
            for r in range(hop):
                source = expected[(k * hop + r) // given]
                first = (r % given) * channels
                for c in range(channels):
                    slots.expected[s, r * channels + c] = source[first + c]
            if hops.fresh[k]:
                slots.errors[s] = np.nan
            _average(s, errors[k], slots, shape)
        if found.status[i] == _CALIBRATED:
            r = (rows.ts_ns[i] // shape.period_ns + 1) % hop
            found.score[i] = slots.score[s, r]
            _tell(i, slots.expected[s, r * channels : (r + 1) * channels], slots.head[s].group, scaler, found)


@njit(nogil=True, cache=True)
def _average(s: int, new: Float64, slots: Any, shape: Any) -> None:
    """Take the errors of a hop's reconstructed rows; average the last W for each of them, oldest first, anew."""
    tail, averaged, hop = slots.errors[s], shape.averaged, shape.hop
    for t in range(averaged - 1):
        tail[t] = tail[t + hop]
    for r in range(hop):
        tail[averaged - 1 + r] = new[r]
    for r in range(hop):
        total, count = 0.0, 0
        for t in range(averaged):
            error = tail[r + t]
            if not np.isnan(error):
                total += error
                count += 1
        slots.score[s, r] = np.float32(total / count) if count else np.float32(np.nan)


@njit(nogil=True, cache=True)
def _tell(i: int, expected: Float32, group: int, scaler: Any, found: Any) -> None:
    """Write what was expected of a scored row, and each channel's share of its squared residual."""
    total, seen = 0.0, 0
    for c in range(len(expected)):
        value = found.by_channel[i, c]
        if np.isnan(value):
            found.by_channel[i, c] = 0.0
            continue
        off = np.float64(value) - np.float64(expected[c])
        found.by_channel[i, c] = off * off
        found.expected[i, c] = unscale_scalar(expected[c], scaler.loc[group, c], scaler.scale[group, c], scaler.limit)
        total += off * off
        seen += 1
    if total > 0 and np.isfinite(total):
        for c in range(len(expected)):
            found.by_channel[i, c] = np.float32(found.by_channel[i, c] / total)
        return
    for c in range(len(expected)):
        found.by_channel[i, c] = np.float32(1.0 / seen) if not np.isnan(found.actual[i, c]) else np.float32(0.0)
