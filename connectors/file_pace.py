"""Replay at the pace of event time: when each row of a block is due."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa

from connectors.file_blocks import Block
from pipeline.event_time import floats_ns, integers_ns, iso_ns, number_ns
from pipeline.mapping import UNIT_DIGITS, FieldMapping
from pipeline.values import NS_PER_S, Bool, Int64

_NEVER = np.iinfo(np.int64).min


class Pace:
    """Says when rows are due.

    Event time runs at `speed` times the clock, from the first row that has a time. A row whose time lies behind one
    before it is due with that one; a row without a time with the row before it.

    Parameters
    ----------
    clock : monotonic seconds.
    """

    def __init__(self, speed: float, mapping: FieldMapping, clock: Callable[[], float]) -> None:
        self._speed = speed
        self._mapping = mapping
        self._clock = clock
        self._start: tuple[float, int] | None = None  # of the clock, and of event time
        self._latest = _NEVER

    def times(self, block: Block) -> Int64:
        """Return the event time that each row of the next block waits for: (n,), never falling."""
        times = np.maximum.accumulate(np.append(self._latest, _times_ns(block, self._mapping)))[1:]
        self._latest = int(times[-1])
        if self._start is None and self._latest != _NEVER:
            self._start = (self._clock(), int(times[times != _NEVER][0]))
        return times

    def wait_s(self, time_ns: int) -> float:
        """Return how long it is until an event time that `times` gave, in seconds; 0: it has come."""
        if self._start is None or time_ns == _NEVER:
            return 0.0
        clock, first = self._start
        return max(0.0, clock + (time_ns - first) / NS_PER_S / self._speed - self._clock())


def _times_ns(block: Block, mapping: FieldMapping) -> Int64:
    """Return each row's event time in ns, the least int64 where it has none."""
    if block.batch is None:
        return np.array([_line_time(line, mapping) for line in block.lines], np.int64)
    column = block.batch.column(mapping.time)
    if pa.types.is_timestamp(column.type):
        ns, valid = column.cast(pa.timestamp("ns")).cast(pa.int64()), None
        return np.where(_valid(column), ns.fill_null(0).to_numpy(), _NEVER)
    digits = UNIT_DIGITS.get(mapping.time_unit, 0)
    if pa.types.is_integer(column.type):
        values = column.cast(pa.int64(), safe=False).fill_null(0).to_numpy()
        ns, valid = integers_ns(values, digits, mapping.time_origin_ns)
    elif pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        ns, valid = floats_ns(values, digits, mapping.time_origin_ns)
    else:
        return np.array([_written_time(text, mapping) for text in column.to_pylist()], np.int64)
    return np.where(valid & _valid(column), ns, _NEVER)


def _valid(column: pa.Array) -> Bool:
    valid: Bool = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _line_time(line: bytes, mapping: FieldMapping) -> int:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _NEVER
    return _written_time(record.get(mapping.time), mapping) if isinstance(record, dict) else _NEVER


def _written_time(value: object, mapping: FieldMapping) -> int:
    """Return the time that a JSON value or a cell stands for."""
    if mapping.time_unit == "iso":
        ns = iso_ns(value) if isinstance(value, str) else None
    elif isinstance(value, (int, float, str)):
        ns = number_ns(str(value), UNIT_DIGITS[mapping.time_unit])
        ns = None if ns is None else ns + mapping.time_origin_ns
    else:
        ns = None
    return _NEVER if ns is None else int(np.clip(ns, _NEVER, np.iinfo(np.int64).max))
