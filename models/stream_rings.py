"""What the streaming engine keeps per asset: the last R raw rows (the state), and what derives from them.

Derived are a short ring of scaled rows, from which the first layer reads and against which reconstructions are held,
and the results of the last hop, which the frames up to the next one take in turn. Rows are taken in order: an asset may
appear many times in one batch.

Legend: n rows, A slots, G groups, R rows kept, C channels, S rows of a hop, Q scaled rows kept, B hops of one chunk,
W row errors averaged. The frame of row u carries the score of row v = u - lag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.engine_rings import first_unused
from models.stream_kernels import settle_rows, stale_slots, store_rows, take_rows
from models.stream_layers import Layer, Span
from pipeline.errors import ShapeError, StateError
from pipeline.protocols import RawWindows
from pipeline.values import Bool, Float32, Float64, Int32, Int64, UInt8

_FIRST_SLOTS = 16
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
    """What is found out about each of n rows: NaN, and 0 for `by_channel`, where there is no score."""

    status: UInt8  # (n,)
    coverage: Float32  # (n,)
    score: Float32  # (n,)
    by_channel: Float32  # (n, C)
    expected: Float32  # (n, C), in input units
    actual: Float32  # (n, C), in input units
    ends: Int32  # (n,), the hop of the chunk that the row ends; -1: none

    @staticmethod
    def room(n: int, channels: int) -> Found:
        """Return where it goes, with anything in it: `take` and `settle` between them write all of every row."""
        wide = (n, channels)
        return Found(
            status=np.empty(n, np.uint8),
            coverage=np.empty(n, np.float32),
            score=np.empty(n, np.float32),
            by_channel=np.empty(wide, np.float32),
            expected=np.empty(wide, np.float32),
            actual=np.empty(wide, np.float32),
            ends=np.empty(n, np.int32),
        )


class Hops(NamedTuple):
    """Hops on their way through the network; reused, so only the first k of the last `take` mean anything."""

    slots: Int32  # (B,)
    fresh: Bool  # (B,), the first one of a window: layers have nothing kept for it
    late: Float32  # (B, S, C), the scaled rows that are reconstructed by this hop; NaN where not observed
    runs: Float32  # (B * products, P), what the first layer multiplies


class _Slots(NamedTuple):
    """What is kept of each slot.

    Rings have the slots of one row side by side: assets that are in step, as most are, are taken one after the other,
    and memory that is gone through in order is there before it is asked for.
    """

    head: NDArray[Any]  # (A,) of _HEAD
    raw: Float32  # (R, A, C), ring
    seen: Bool  # (R, A, C), ring
    scaled: Float32  # (Q, A, C), ring; NaN where not observed
    expected: Float32  # (A, S * C), reconstructions of the last hop, scaled
    errors: Float64  # (A, W - 1 + S), row errors, oldest first; NaN where nothing was observed
    score: Float32  # (A, S), of the last hop's reconstructed rows


class _Scaler(NamedTuple):
    """Scalers of all groups."""

    loc: Float64  # (G, C)
    scale: Float64  # (G, C)
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
        self._scaler = _Scaler(loc.astype(np.float64), scale.astype(np.float64), float(soft_clip))
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
        store_rows(rows, self._slots)

    def take(self, rows: Taken, order: Int64, hops: Hops, found: Found) -> tuple[int, int]:
        """Take the rows at `order`, one after the other, until `hops` is full.

        Written for each row that was taken: status, coverage, which hop it ends, and, where it will have a score, what
        came (`actual`) and, for `settle`, the same scaled (`by_channel`).

        Returns
        -------
        (taken, k) : how many of `order` were taken; how many hops lie in `hops`.
        """
        taken: tuple[int, int] = take_rows(rows, order, self._slots, self._scaler, self._shape, hops, found)
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
        settle_rows(rows, order, self._slots, self._scaler, self._shape, hops, expected, given, errors, found)

    def stale(self, rows: Taken) -> tuple[Int32, Int64]:
        """Return the slots whose derived state these rows need and that have raw rows only, and the grid slots of the
        rows that follow them. All slots of `rows` count as derived from then on.
        """
        where, follows = stale_slots(rows, self._slots.head, self._shape.period_ns)
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
            x=np.where(real[..., None], self._slots.raw[ring, at], np.float32(0)),
            observed=self._slots.seen[ring, at] & real[..., None],
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
        self._slots.raw[:, slots], self._slots.seen[:, slots] = raw.x.swapaxes(0, 1), raw.observed.swapaxes(0, 1)
        head = self._slots.head
        head["count"][slots], head["at"][slots], head["derived"][slots] = raw.count, 0, 0
        gaps = (~raw.observed).sum(axis=(1, 2)) - (self.rows - raw.count) * self.channels
        head["missing"][slots] = gaps

    def check(self, slots: Int32) -> None:
        """Raise StateError unless all slots are allocated."""
        wrong = first_unused(slots, self._used)
        if wrong < len(slots):
            raise StateError(f"slot {slots[wrong]} was never allocated, or was dropped: allocate it first")

    def _grow(self) -> None:
        had = len(self._used)
        grown = self._new_slots(max(_FIRST_SLOTS, 2 * had))
        arrays: Sequence[Any] = grown
        for new, old in zip(arrays, self._slots, strict=True):
            new[(slice(None), slice(had)) if new.ndim == 3 else slice(had)] = old
        self._slots = grown
        self._used = np.concatenate([self._used, np.zeros(len(grown.head) - had, np.bool_)])
        self._free[:0] = range(len(grown.head) - 1, had - 1, -1)

    def _new_slots(self, size: int) -> _Slots:
        shape, c = self._shape, self.channels
        scaled = max(shape.delay, shape.kept) + shape.hop
        return _Slots(
            head=np.zeros(size, _HEAD),
            raw=np.zeros((self.rows, size, c), np.float32),
            seen=np.zeros((self.rows, size, c), np.bool_),
            scaled=np.zeros((scaled, size, c), np.float32),
            expected=np.zeros((size, shape.hop * c), np.float32),
            errors=np.zeros((size, shape.averaged - 1 + shape.hop), np.float64),
            score=np.zeros((size, shape.hop), np.float32),
        )
