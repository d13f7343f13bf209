"""Products with fixed weights in float32 on the CPU over rows that may lie anywhere: layers of convolutions.

Weights are packed as tiles read them (`models.vector_tiles`), layers are plans: what is multiplied by what, and where
the results go. One call carries out the plans of a whole network.

Legend: N inputs and M outputs of a layer, B rows; N', M': rounded up to whole 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.engine_buffers import aligned
from models.engine_rings import padded
from models.vector_tiles import LANES, PART, ROWS, multiply
from pipeline.kernels import fetch, row_kernel
from pipeline.values import Float32, Int64

_BYTES = 4  # of a float32
_MOST_VECTORS = 2  # of a tile
_ROWS_AT_ONCE = 8 * ROWS  # go through all outputs while the first cache holds them


class Step(NamedTuple):
    """Rows of each item (a window) that are multiplied by the same weights; places are counted in float32.

    Attributes
    ----------
    vectors : of outputs, 1 or 2.
    weights, bias : where they begin in the plan's weights.
    taps, inputs, between : a row's inputs are `taps` runs of `inputs` values, which begin `between` values apart.
    relu : whether what is below 0 becomes 0.
    source, source_item, source_row : where the first row's inputs begin (in `room`; of the first layer in the item),
        and how far the next item's and the next row's are.
    target, target_item, target_row : the same of its outputs (in `room`; of the last layer in `out`).
    rows : of each item.
    first, last : whether this is of the first layer, or of the last.
    """

    vectors: int
    weights: int
    bias: int
    taps: int
    inputs: int
    between: int
    relu: int
    source: int
    source_item: int
    source_row: int
    target: int
    target_item: int
    target_row: int
    rows: int
    first: int
    last: int


Plan = NDArray[np.void]  # (steps,) of `Step`
_PLAN = np.dtype([(name, np.int64) for name in Step._fields])


class Packed:
    """Weights as tiles read them, gathered piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[Float32] = []
        self._size = 0

    def add(self, piece: Float32) -> int:
        """Take an array; return where it begins."""
        at = self._size
        self._pieces.append(piece.ravel())
        self._size += piece.size
        return at

    def array(self) -> Float32:
        """Return all that was taken, (1, size), on a 64-byte boundary."""
        room: Float32 = aligned(1, self._size)
        room[0] = np.concatenate(self._pieces)
        return room


def blocks(outputs: int) -> list[slice]:
    """Return the outputs of each tile: M' in vectors by twos, and one that is left over."""
    step = _MOST_VECTORS * LANES
    return [slice(at, min(at + step, padded(outputs))) for at in range(0, padded(outputs), step)]


def plan_of(steps: Sequence[Step]) -> Plan:
    """Return steps as `run` takes them."""
    return np.array([tuple(step) for step in steps], _PLAN)


def new_places() -> Int64:
    """Return the room that `run` needs for addresses."""
    return np.zeros((2, ROWS), np.int64)


@row_kernel
def run(
    x: int,
    apart: int,
    items: int,
    at_once: int,
    ahead: int,
    plan: Plan,
    weights: Float32,
    room: Float32,
    out: Float32,
    places: Int64,
) -> None:
    """Carry out a plan for `items` items, so many at once.

    Parameters
    ----------
    x, apart : address of the first item, and bytes from one to the next.
    ahead : bytes of the following items to ask for with each tile: they may come out of memory.
    plan : what is carried out, in order.
    weights, room, out : float32, contiguous and on 64-byte boundaries; `room` for the items at once, `out` for all.
    places : (2, ROWS), overwritten.
    """
    sources, targets = places.ctypes.data, places.ctypes.data + 8 * ROWS
    for begin in range(0, items, at_once):
        now = min(at_once, items - begin)
        following = x + (begin + now) * apart
        for i in range(len(plan)):
            step = plan[i]
            source, source_item = room.ctypes.data, step.source_item * _BYTES
            if step.first:
                source, source_item = x + begin * apart, apart
            source += step.source * _BYTES
            target, target_item = room.ctypes.data, step.target_item * _BYTES
            if step.last:
                target = out.ctypes.data + begin * target_item
            target += step.target * _BYTES
            left, item, row = now * step.rows, 0, 0
            while left > 0:
                size = ROWS if left > 2 * PART else 2 * PART if left > PART else PART
                for r in range(size):
                    places[0, r] = source + item * source_item + row * step.source_row * _BYTES
                    places[1, r] = target + item * target_item + row * step.target_row * _BYTES
                    left -= 1
                    if left > 0:  # else the last row again, until the tile is full
                        row += 1
                        if row == step.rows:
                            item, row = item + 1, 0
                fetch(following, ahead)
                following += ahead
                multiply(
                    size,
                    step.vectors,
                    sources,
                    targets,
                    weights.ctypes.data + step.weights * _BYTES,
                    weights.ctypes.data + step.bias * _BYTES,
                    step.taps,
                    step.inputs,
                    step.between,
                    step.relu != 0,
                )


class RowProduct:
    """x W' + b over rows laid out one after the other.

    Parameters
    ----------
    weight, bias : (M, N) and (M,) float32; filled up with zeros.

    Attributes
    ----------
    takes, gives : N' and M', the widths of rows.
    """

    def __init__(self, weight: Float32, bias: Float32) -> None:
        outputs, inputs = weight.shape
        self.takes, self.gives = padded(inputs), padded(outputs)
        wide, long = np.pad(weight, ((0, self.gives - outputs), (0, 0))), np.pad(bias, (0, self.gives - outputs))
        packed, steps = Packed(), list[Step]()
        for block in blocks(outputs):
            used = np.flatnonzero(wide[block].any(axis=0))  # a transposed layer leaves out the first taps, or the last
            first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
            step = Step(
                vectors=(block.stop - block.start) // LANES,
                weights=packed.add(wide[block, first:end].T),
                bias=packed.add(long[block]),
                taps=1,
                inputs=end - first,
                between=0,
                relu=False,
                source=first,
                source_item=0,
                source_row=0,
                target=block.start,
                target_item=self.gives,
                target_row=0,
                rows=1,
                first=True,
                last=True,
            )
            steps.append(step)
        self._plan, self._weights, self._places = plan_of(steps), packed.array(), new_places()

    def run(self, x: Float32, out: Float32) -> Float32:
        """Multiply (B, N') float32; write to `out` (B, M'), and return it. Neither may have gaps between rows."""
        address: int = x.__array_interface__["data"][0]
        run(
            address, x.strides[0], len(x), _ROWS_AT_ONCE, 0, self._plan, self._weights, self._weights, out, self._places
        )
        return out
