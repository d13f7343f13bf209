"""Windows that live on a device: the host keeps the state, the device the scaled ring, and only new rows cross.

The host's rings (`models.engine_rings`) stay what a snapshot and a window with gaps are read from. The device has one
table of scaled rows, N = 2 R of them for each slot and each written twice, at p and at p + N, so that a window is one
run of it and N - R + 1 rows of one asset may be written before the first of their windows is read. Slot 0 of the
table is ignored: rows and windows that only fill a batch up go there.

Legend: n rows, B rows of the largest piece, S slots, R rows kept, C channels, N rows of a device ring, H windows with
gaps of one piece, at most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.engine_rings import Rings, judge, put, unroll
from pipeline.kernels import copy_values, row_kernel
from pipeline.protocols import RawWindows
from pipeline.values import Bool, Continuity, Float32, Int32, Int64, Status, UInt8

HOLES = 1024  # H
_UPLOADED = 256  # slots whose windows are sent at a time
_CALIBRATED = np.uint8(Status.CALIBRATED)
_CONTINUES = int(Continuity.CONTINUES)


class Piece(NamedTuple):
    """Rows on their way to the device, and the windows that they end; reused."""

    rows: Float32  # (B, C), scaled
    target: Int64  # (B,), where in the table each row goes
    start: Int64  # (B,), where in the table each window starts
    last: Int64  # (B,), the row of the piece that ends each window
    ends: Int64  # (B,), the row of the batch that ends each window
    holed: Int64  # (H,), the windows with gaps, in order
    holed_x: Float32  # (H, R * C), scaled
    holed_seen: Bool  # (H, R * C)


class Planned(NamedTuple):
    """How much of a piece is filled."""

    taken: int  # of the rows asked for
    windows: int
    holes: int


class _Marks(NamedTuple):
    """What planning knows of each slot."""

    place: Int64  # (S,), where in its ring the next row goes
    piece: Int64  # (S,), the piece that took its last row
    rows: Int64  # (S,), rows that piece has of it


class DeviceRings(Rings):
    """Windows of all assets, with their scaled rows on a device.

    Parameters
    ----------
    rows, loc, scale, soft_clip : as in `models.engine_rings.Rings`.
    device : where the table of scaled rows is.

    Attributes
    ----------
    ring_rows : N.
    grown : how often the table moved: what was captured over an earlier one is void.
    """

    def __init__(self, rows: int, loc: Float32, scale: Float32, soft_clip: float, device: torch.device) -> None:
        super().__init__(rows, loc, scale, soft_clip)
        self.ring_rows, self.grown = 2 * rows, 0
        self._device = device
        self._turn = 0
        self._marks = _Marks(*(np.zeros(0, np.int64) for _ in _Marks._fields))
        self._table = torch.zeros(2 * self.ring_rows, self.channels, device=device)

    def plan(
        self,
        x: Float32,
        observed: Bool,
        continuity: UInt8,
        slots: Int32,
        order: Int64,
        piece: Piece,
        status: UInt8,
        coverage: Float32,
    ) -> Planned:
        """Take the rows at `order` into the host's state, one after the other, and note what the device has to do.

        It ends when the piece is full, or when a window would be overwritten before it is read. Arguments are those of
        `Rings.take`.
        """
        self._turn += 1
        most = self.ring_rows - self.rows + 1
        columns = (x, observed, continuity, slots, order)
        found = _plan(*columns, self._slots, self._scaler, self._marks, self._turn, most, piece, status, coverage)
        return Planned(*found)

    def scatter(self, target: Tensor, rows: Tensor) -> None:
        """Write scaled rows (b, C) to the table, each at its target (b,) and N rows after."""
        self._table.index_copy_(0, target, rows)
        self._table.index_copy_(0, target + self.ring_rows, rows)

    def gather(self, start: Tensor, out: Tensor) -> None:
        """Copy the windows that begin at `start` (b,) to `out` (b, R * C)."""
        readings = self.rows * self.channels
        runs = self._table.as_strided((len(self._table) - self.rows + 1, readings), (self.channels, 1))
        torch.index_select(runs, 0, start, out=out)

    def store(self, x: Float32, observed: Bool, continuity: UInt8, slots: Int32) -> None:
        """Take rows into the windows, in order, and nothing else."""
        super().store(x, observed, continuity, slots)
        self._upload(np.unique(slots))

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put raw windows back, here and on the device."""
        super().load(slots, raw)
        self._upload(np.unique(slots))

    def _grow(self) -> None:
        super()._grow()
        size, had = len(self._used), len(self._marks.place)
        self._marks = _Marks(*(np.concatenate([mark, np.zeros(size - had, np.int64)]) for mark in self._marks))
        table = torch.zeros((size + 1) * 2 * self.ring_rows, self.channels, device=self._device)
        table[: len(self._table)] = self._table
        self._table = table
        self.grown += 1
        self._settle()

    def _settle(self) -> None:
        """Wait for the table to be as it was left: pieces are worked on in a stream of their own."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _upload(self, slots: Int32) -> None:
        """Send the windows of slots as they are now."""
        for first in range(0, len(slots), _UPLOADED):
            part = slots[first : first + _UPLOADED].astype(np.int64)
            windows = torch.from_numpy(_scaled_windows(part, self._slots.head, self._slots.scaled, self.rows))
            at = ((part + 1) * 2 * self.ring_rows)[:, None] + np.arange(self.rows)
            self.scatter(
                torch.from_numpy(at.reshape(-1)).to(self._device),
                windows.view(-1, self.channels).to(self._device),
            )
        self._marks.place[slots] = self.rows
        self._settle()


def new_piece(size: int, rows: int, channels: int) -> Piece:
    """Return an empty piece."""
    return Piece(
        rows=np.zeros((size, channels), np.float32),
        target=np.zeros(size, np.int64),
        start=np.zeros(size, np.int64),
        last=np.zeros(size, np.int64),
        ends=np.zeros(size, np.int64),
        holed=np.zeros(HOLES, np.int64),
        holed_x=np.zeros((HOLES, rows * channels), np.float32),
        holed_seen=np.ones((HOLES, rows * channels), np.bool_),
    )


def _scaled_windows(slots: Int64, head: NDArray[Any], scaled: Float32, rows: int) -> Float32:
    """Return the scaled windows (k, R * C) of slots, oldest row first; what is before a window's first row is any."""
    readings = scaled.shape[1]
    oldest = head["at"][slots].astype(np.int64)[:, None] * (readings // rows)
    out: Float32 = scaled[slots[:, None], (oldest + np.arange(readings)) % readings]
    return out


@row_kernel
def _plan(
    x: Float32,
    observed: Bool,
    continuity: UInt8,
    where: Int32,
    order: Int64,
    slots: Any,
    scaler: Any,
    marks: _Marks,
    turn: int,
    most: int,
    piece: Piece,
    status: UInt8,
    coverage: Float32,
) -> tuple[int, int, int]:
    rows, channels = slots.raw.shape[1], slots.raw.shape[2]
    ring_rows = 2 * rows
    k, h = 0, 0
    for n in range(len(order)):
        i = order[n]
        s = where[i]
        if marks.piece[s] != turn:
            marks.piece[s] = turn
            marks.rows[s] = 0
        if n == len(piece.target) or h == len(piece.holed) or marks.rows[s] == most:
            return n, k, h
        marks.rows[s] += 1
        newest = slots.head[s].at
        gaps = put(s, x, observed, i, continuity[i] != _CONTINUES, slots, scaler)
        head = slots.head[s]
        status[i], coverage[i] = judge(head, gaps, rows, channels)
        place, base = marks.place[s], (s + 1) * 2 * ring_rows
        marks.place[s] = place + 1 if place + 1 < ring_rows else 0
        piece.target[n] = base + place
        copy_values(piece.rows[n], slots.scaled[s, newest * channels : (newest + 1) * channels])
        if status[i] == _CALIBRATED:
            first = place + 1 - rows
            piece.start[k] = base + (first if first >= 0 else first + ring_rows)
            piece.last[k] = n
            piece.ends[k] = i
            if head.age < rows:
                oldest = head.at * channels
                piece.holed[h] = k
                unroll(slots.scaled[s], oldest, piece.holed_x[h])
                unroll(slots.seen[s], oldest, piece.holed_seen[h])
                h += 1
            k += 1
    return len(order), k, h
