"""Codes of assets by the bytes of their names, or by their numbers, without a Python string per row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.state import AssetTable
from pipeline.values import Int32, Int64, UInt8


def asset_codes(text: UInt8, start: Int64, end: Int64, table: AssetTable) -> Int32:
    """Return the codes of the assets named text[start:end] (UTF-8); unknown names get their codes in row order.

    Raises
    ------
    ConfigError : the table takes no more assets.
    """
    index = _INDEXES.get(table)
    if index is None:
        index = _INDEXES[table] = _NameIndex()
    index.add(table.names[index.count :])  # those that came another way, as from a restored state
    text = text.view()
    text.flags.writeable = False  # as some are: kernels are compiled for each kind
    codes = np.empty(len(start), np.int32)
    row = 0
    while (row := _look_up(text, start, end, row, index.slots, index.text, index.first, codes)) < len(start):
        name = text[start[row] : end[row]].tobytes().decode()
        table.code(name)
        index.add([name])
    return codes


def number_codes(numbers: Int32, table: AssetTable) -> Int32:
    """Return the codes of the assets whose names are these numbers; unknown ones get their codes in row order.

    Raises
    ------
    ConfigError : the table takes no more assets.
    """
    index = _NUMBERS.get(table)
    if index is None:
        index = _NUMBERS[table] = _NumberIndex()
    index.add(table.names[index.count :])
    codes = np.empty(len(numbers), np.int32)
    row = 0
    while (row := _look_up_numbers(numbers, row, index.slots, codes)) < len(numbers):
        name = str(numbers[row])
        table.code(name)
        index.add([name])
    return codes


class _NumberIndex:
    """The names of one table that are numbers, as a hash table: `slots` hold number << 32 | code, or -1."""

    def __init__(self) -> None:
        self.count = 0
        self.slots: Int64 = np.full(64, -1, np.int64)

    def add(self, names: Sequence[str]) -> None:
        """Take the next names, in the order of their codes."""
        for name in names:
            if _NUMBER.fullmatch(name) and -(1 << 31) <= int(name) < 1 << 31:
                _put(int(name) << 32 | self.count, self.slots)
            self.count += 1
            if 2 * self.count > len(self.slots):
                known = self.slots[self.slots != -1]
                self.slots = np.full(2 * len(self.slots), -1, np.int64)
                for entry in known.tolist():
                    _put(entry, self.slots)


class _NameIndex:
    """The names of one table as a hash table with open addressing: `slots` hold codes, or -1."""

    def __init__(self) -> None:
        self.count = 0
        self.slots: Int32 = np.full(64, -1, np.int32)
        self.text: UInt8 = np.empty(1024, np.uint8)
        self.first: Int64 = np.zeros(64, np.int64)  # name i is text[first[i]:first[i + 1]]

    def add(self, names: Sequence[str]) -> None:
        """Take the next names, in the order of their codes."""
        for name in names:
            encoded = np.frombuffer(name.encode(), np.uint8)
            begin = self.first[self.count]
            end = begin + len(encoded)
            self.text = _grown(self.text, end)
            self.text[begin:end] = encoded
            self.first = _grown(self.first, self.count + 2)
            self.first[self.count + 1] = end
            self.count += 1
            if 2 * self.count > len(self.slots):
                self.slots = np.full(2 * len(self.slots), -1, np.int32)
                _insert(0, self.count, self.slots, self.text, self.first)
            else:
                _insert(self.count - 1, self.count, self.slots, self.text, self.first)


_T = TypeVar("_T", bound=np.generic)

# What the tables' names say anyway, in another form: dropping it would cost time and change nothing.
_INDEXES: WeakKeyDictionary[AssetTable, _NameIndex] = WeakKeyDictionary()
_NUMBERS: WeakKeyDictionary[AssetTable, _NumberIndex] = WeakKeyDictionary()
_NUMBER = re.compile("0|-?[1-9][0-9]*", re.ASCII)  # as it is written in one way only


def _grown(array: NDArray[_T], size: int) -> NDArray[_T]:
    return array if size <= len(array) else np.resize(array, max(size, 2 * len(array)))


@njit(nogil=True, cache=True)
def _look_up(
    text: UInt8, start: Int64, end: Int64, row: int, slots: Int32, known: UInt8, first: Int64, codes: Int32
) -> int:
    """Fill in codes from `row` on; return the first row whose name is unknown, or the number of rows."""
    for i in range(row, len(start)):
        slot = _hash(text, start[i], end[i]) & (len(slots) - 1)
        while slots[slot] >= 0 and not _equal(text, start[i], end[i], known, first, slots[slot]):
            slot = (slot + 1) & (len(slots) - 1)
        if slots[slot] < 0:
            return i
        codes[i] = slots[slot]
    return len(start)


@njit(nogil=True, cache=True)
def _look_up_numbers(numbers: Int32, row: int, slots: Int64, codes: Int32) -> int:
    """Fill in codes from `row` on; return the first row whose number is unknown, or how many rows there are."""
    for i in range(row, len(numbers)):
        number = np.int64(numbers[i])
        slot = _spread(number) & (len(slots) - 1)
        while slots[slot] != -1 and slots[slot] >> 32 != number:
            slot = (slot + 1) & (len(slots) - 1)
        if slots[slot] == -1:
            return i
        codes[i] = slots[slot] & 0xFFFFFFFF
    return len(numbers)


@njit(nogil=True, cache=True)
def _put(entry: int, slots: Int64) -> None:
    slot = _spread(entry >> 32) & (len(slots) - 1)
    while slots[slot] != -1:
        slot = (slot + 1) & (len(slots) - 1)
    slots[slot] = entry


@njit(nogil=True, cache=True)
def _spread(number: int) -> int:
    """Return the high half of a product with 2**64 / golden ratio: neighbours come far apart."""
    return int((np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33))


@njit(nogil=True, cache=True)
def _insert(code: int, stop: int, slots: Int32, known: UInt8, first: Int64) -> None:
    for c in range(code, stop):
        slot = _hash(known, first[c], first[c + 1]) & (len(slots) - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = c


@njit(nogil=True, cache=True)
def _equal(text: UInt8, start: int, end: int, known: UInt8, first: Int64, code: int) -> bool:
    begin = first[code]
    if first[code + 1] - begin != end - start:
        return False
    for k in range(end - start):  # noqa: SIM110 - numba has no generators here
        if text[start + k] != known[begin + k]:
            return False
    return True


@njit(nogil=True, cache=True)
def _hash(text: UInt8, start: int, end: int) -> int:
    """FNV-1a, 64 bits, folded: its high bits are the better ones."""
    value = np.uint64(0xCBF29CE484222325)
    for k in range(start, end):
        value = (value ^ np.uint64(text[k])) * np.uint64(0x100000001B3)
    return int(np.int64((value ^ (value >> np.uint64(32))) & np.uint64(0x7FFFFFFF)))
