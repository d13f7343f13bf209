"""The state of one partition: one growable table with a row per asset, in which every stage has its columns.

Because all state left and right of the engine is columns of one table, a snapshot is a slice of it, a new stage adds
its columns and nothing else, and asset codes never leave the partition. The raw rows of the window live in the
engine, which owns the rings.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import ConfigError, StateError
from pipeline.kernels import aligned_zeros
from pipeline.values import Int32, UInt8

_MAGIC = b"mws1"
_FIRST_CAPACITY = 16


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: `shape` per asset, `fill` for an asset that has no state yet.

    A -1 in `shape[0]` is an axis that grows on demand (see `AssetTable.widen`), the same length for all assets. A
    structured dtype takes a tuple as its `fill`.
    """

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    fill: float | tuple[float, ...] = 0


class AssetTable:
    """Columns with a leading asset axis, and the names of the assets by code.

    Parameters
    ----------
    columns : name -> Column, of all stages together.
    max_assets : the cap on assets of one partition; the next new one raises ConfigError.
    """

    def __init__(self, columns: Mapping[str, Column], max_assets: int = 1_000_000) -> None:
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.max_assets = max_assets
        self._columns = dict(columns)
        self._width = {name: 4 for name, c in columns.items() if c.shape and c.shape[0] == -1}
        self._arrays: dict[str, NDArray[Any]] = {name: self._new(name, 0) for name in columns}
        self._capacity = 0
        self.layout = self._layout_hash()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, column: str) -> NDArray[Any]:
        """Return the whole column, capacity included: (capacity, *shape). Write through it, never keep it."""
        return self._arrays[column]

    def code(self, name: str) -> int:
        """Return the code of an asset; a new asset gets the next one and columns filled with their defaults."""
        known = self.index.get(name)
        if known is not None:
            return known
        code = len(self.names)
        if code >= self.max_assets:
            raise ConfigError(
                "feed.max_assets",
                self.max_assets,
                f"asset {name!r} would be one more; raise it or fix the asset field",
            )
        if code >= self._capacity:
            self._grow(max(_FIRST_CAPACITY, 2 * self._capacity))
        self.names.append(name)
        self.index[name] = code
        return code

    def widen(self, column: str) -> None:
        """Double the growing axis of a column; what is there stays, the rest is filled."""
        spec = self._columns[column]
        old = self._arrays[column]
        self._width[column] = 2 * old.shape[1]
        self._arrays[column] = self._new(column, self._capacity)
        self._arrays[column][:, : old.shape[1]] = old
        assert spec.shape[0] == -1

    def pack(self, code: int) -> bytes:
        """Return one asset's state as bytes: layout hash, widths of growing axes, then the columns in order."""
        return self.pack_all(np.array([code], np.int32)).tobytes()

    def pack_all(self, codes: Int32) -> UInt8:
        """Return the packed state of k assets, (k, S); S grows with the widths."""
        widths = [self._width[name] for name in sorted(self._width)]
        head = np.frombuffer(_MAGIC + self.layout + struct.pack(f"<{len(widths)}I", *widths), np.uint8)
        parts = [np.broadcast_to(head, (len(codes), len(head)))]
        for column in self._arrays.values():
            taken = np.ascontiguousarray(column[codes])
            parts.append(taken.reshape(len(codes), int(np.prod(taken.shape[1:]))).view(np.uint8))
        return np.concatenate(parts, axis=1)

    def unpack(self, name: str, packed: bytes) -> int:
        """Put an asset's packed state back under its name; return its code.

        Raises
        ------
        StateError : the bytes were packed with other columns (another program version or configuration).
        """
        if packed[:4] != _MAGIC or packed[4:12] != self.layout:
            raise StateError(
                f"saved state of asset {name!r} has another layout than this program and configuration: "
                "start from the beginning of the log, or go back to the version that wrote it"
            )
        grown = sorted(self._width)
        widths = dict(zip(grown, struct.unpack_from(f"<{len(grown)}I", packed, 12), strict=True))
        for column, width in widths.items():
            while self._width[column] < width:
                self.widen(column)
        code = self.code(name)
        at = 12 + 4 * len(grown)
        for column, spec in self._columns.items():
            shape = (widths[column], *spec.shape[1:]) if column in widths else spec.shape
            count = int(np.prod(shape, dtype=np.int64))
            dtype = np.dtype(spec.dtype)
            value = np.frombuffer(packed, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize
            target = self._arrays[column]
            if column in widths:
                target[code, : widths[column]] = value
                target[code, widths[column] :] = spec.fill
            else:
                target[code] = value
        return code

    def _new(self, name: str, capacity: int) -> NDArray[Any]:
        spec = self._columns[name]
        shape = (self._width[name], *spec.shape[1:]) if name in self._width else spec.shape
        column = aligned_zeros((capacity, *shape), spec.dtype)
        fill = np.zeros(
            (), spec.dtype
        )  # between its fields too: that is packed as well, and equal states are equal bytes
        fill[()] = spec.fill
        column[...] = fill
        return column

    def _grow(self, capacity: int) -> None:
        for name, old in self._arrays.items():
            new = self._new(name, capacity)
            new[: self._capacity] = old
            self._arrays[name] = new
        self._capacity = capacity

    def _layout_hash(self) -> bytes:
        text = ";".join(f"{n}:{np.dtype(c.dtype).descr}:{c.shape}" for n, c in self._columns.items())
        return hashlib.sha256(text.encode()).digest()[:8]
