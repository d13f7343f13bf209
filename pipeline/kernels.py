"""What kernels that take rows one by one are compiled with, and how they ask for memory ahead of its use."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

from pipeline.values import Int32

LINE, PAGE = 64, 4096  # bytes
AHEAD = 8  # rows: the lines of as many are on their way at once

# Without numba's reference counts: each slice of an array, and each array of a tuple, would cost a kernel two locked
# additions, some ten nanoseconds, and a row is a dozen slices. Such a kernel makes no arrays (numba refuses them), and
# divides by zero as numpy does: a check of each divisor keeps a loop from being turned into vector code.
row_kernel = njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
# The same for what a row kernel calls for each row: arrays are handed over in registers rather than on the stack.
row_part = njit(nogil=True, cache=True, error_model="numpy", _nrt=False, forceinline=True)


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin with a line of memory, so that what an asset keeps lies in as few lines as can be."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    room = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].view(kind).reshape(shape)


@row_part
def copy_values(to: Any, values: Any) -> None:
    """Copy values to an array of the same length."""
    for c in range(len(to)):
        to[c] = values[c]


@row_part
def set_all(to: Any, value: Any) -> None:
    """Set every value of an array."""
    for c in range(len(to)):
        to[c] = value


@row_part
def fetch(start: int, size: int) -> None:
    """Ask for the lines of `size` bytes from address `start` on (an array's `ctypes.data`, and what is added to it).

    A hint: nothing is read or written by it, and an address that turns out wrong costs a little time. What an asset
    keeps lies in lines that no cache holds, and a kernel knows which assets come next.
    """
    for at in range(start & -LINE, start + size, LINE):
        _fetch_line(at)


@row_kernel
def first_outside(codes: Int32, count: int) -> int:
    """Return the place of the first of `codes` that is not 0 to `count` - 1; as many as there are codes: none."""
    for i in range(len(codes)):
        if not 0 <= codes[i] < count:
            return i
    return len(codes)


@intrinsic
def _fetch_line(typingctx: Any, address: Any) -> Any:
    """Ask for the line of an address, to be written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_write, into_all_caches, data = flag(1), flag(3), flag(1)
        builder.call(hint, [pointer, to_write, into_all_caches, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate
