"""Packed records to rows: a message is a whole number of records of one size, one after the other, little endian.

A record is the asset's number (int32; left out where the mapping has the asset from elsewhere), the event time (int64,
in the mapping's unit) and a float32 for each channel, in channel order: 12 + 4 C bytes. A reading that is missing is
NaN. What is fixed beforehand need not be said, found or checked in each message: readings are judged as they are
copied out of the bytes of a poll.

Legend: n records of a poll, k messages with records, C channels, H words of four bytes ahead of the readings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.asset_names import number_codes
from pipeline.checks import OK, Checked, judge, latest_ts_ns, limits
from pipeline.event_time import integer_ns
from pipeline.faults import Fault, Unusable, bad_time, body, future, key_asset
from pipeline.mapping import MESSAGE_KEY, UNIT_DIGITS, FieldMapping
from pipeline.state import AssetTable
from pipeline.values import Bool, DeadLetter, Float32, Int32, Int64, Polled, UInt8

_GOOD, _BAD_TIME, _FUTURE = range(3)
_WORD = 4  # bytes
_BLOCK = 65_536  # bytes


class _Whole(NamedTuple):
    """The messages that hold whole records."""

    at: list[int]  # index of the message in the poll
    body: list[bytes]
    name: list[str]  # of the asset, where records do not number it


class _Layout(NamedTuple):
    """What the kernel must know of every record."""

    numbered: bool  # it begins with the asset's number
    unit_ns: int
    origin_ns: int
    low: Float32  # (C,)
    high: Float32  # (C,)


class _Columns(NamedTuple):
    """What the kernel writes, by record."""

    offset: Int64
    row: Int32
    number: Int32  # of the asset; where records have none, of the message among the k
    ts_ns: Int64
    reason: UInt8
    x: Float32  # (n, C)
    observed: Bool  # (n, C)
    quality: UInt8  # (n, C)


def decode_records(polled: Polled, mapping: FieldMapping, table: AssetTable) -> tuple[Checked, list[DeadLetter]]:
    """Read messages of packed records.

    Raises
    ------
    ConfigError : the table takes no more assets.
    """
    channels = len(mapping.channels)
    numbered = mapping.asset not in ("", MESSAGE_KEY)
    size = _WORD * (numbered + 2 + channels)
    whole, faults = _whole_messages(polled, mapping, size)
    first = np.cumsum([0, *(len(text) // size for text in whole.body)])
    sent = polled.offset[whole.at], latest_ts_ns(polled.log_ts_ns, mapping.max_ahead_ns)[whole.at]
    unit_ns = 10 ** UNIT_DIGITS[mapping.time_unit]
    layout = _Layout(numbered, unit_ns, mapping.time_origin_ns, *limits(mapping.low, mapping.high, channels))
    out, bad = _room(int(first[-1]), channels), 0
    for begin, end in _blocks(whole.body):
        words = np.frombuffer(b"".join(whole.body[begin:end]), np.int32).reshape(-1, size // _WORD)
        bad += _read(words, first, begin, end, *sent, layout, out)
    if bad:
        good = out.reason == _GOOD
        for i in np.flatnonzero(~good).tolist():
            m = int(np.searchsorted(first, i, "right")) - 1
            record = whole.body[m][size * int(out.row[i]) :][:size]
            error = _unusable(int(out.reason[i]), int(out.ts_ns[i]), record, int(sent[1][m]), mapping)
            faults.append((whole.at[m], error.fault(int(out.row[i]), record)))
        out = _Columns(*(column[good] for column in out))
    asset = number_codes(out.number, table) if numbered else _named(whole.name, out.number, table)
    faults.sort(key=lambda found: (found[0], found[1].row))
    dead = [DeadLetter(polled.topic, polled.partition, int(polled.offset[i]), *fault) for i, fault in faults]
    return Checked(out.offset, out.row, asset, out.ts_ns, out.x, out.observed, out.quality), dead


def _whole_messages(polled: Polled, mapping: FieldMapping, size: int) -> tuple[_Whole, list[tuple[int, Fault]]]:
    """Return the messages that are whole records of `size` bytes, and the faults of the others, with their index."""
    whole, faults = _Whole([], [], []), []
    for i, message in enumerate(polled.value):
        try:
            text = body(message, mapping)
            if len(text) % size:
                raise Unusable(
                    "not_records",
                    f"{len(text)} bytes are no whole number of records of {size} bytes (time, "
                    f"{len(mapping.channels)} readings and what the mapping has for the asset): correct the sender",
                )
            if mapping.asset == MESSAGE_KEY:
                whole.name.append(key_asset(polled.key[i] if polled.key is not None else None))
            whole.at.append(i)
            whole.body.append(text)
        except Unusable as error:
            faults.append((i, error.fault(-1, message or b"")))
    if not mapping.asset:
        whole.name.extend([mapping.asset_value] * len(whole.body))
    return whole, faults


def _room(n: int, channels: int) -> _Columns:
    return _Columns(
        offset=np.empty(n, np.int64),
        row=np.empty(n, np.int32),
        number=np.empty(n, np.int32),
        ts_ns=np.empty(n, np.int64),
        reason=np.empty(n, np.uint8),
        x=np.empty((n, channels), np.float32),
        observed=np.empty((n, channels), np.bool_),
        quality=np.empty((n, channels), np.uint8),
    )


def _blocks(bodies: list[bytes]) -> Iterator[tuple[int, int]]:
    """Cut messages into blocks that the cache holds: small ones are worth a call together, large ones no copy."""
    begin, held = 0, 0
    for end, text in enumerate(bodies, 1):
        held += len(text)
        if held >= _BLOCK or end == len(bodies):
            yield begin, end
            begin, held = end, 0


def _named(names: list[str], message: Int32, table: AssetTable) -> Int32:
    """Return the code of each record's asset, which its message names; one without a good record names none."""
    codes = np.zeros(len(names), np.int32)
    for m in np.unique(message).tolist():
        codes[m] = table.code(names[m])
    return codes[message]


def _unusable(reason: int, ts_ns: int, record: bytes, latest_ns: int, mapping: FieldMapping) -> Unusable:
    if reason == _FUTURE:
        return future(ts_ns, latest_ns, mapping)
    at = len(record) - _WORD * (2 + len(mapping.channels))
    return bad_time(f"the time is {int.from_bytes(record[at : at + 8], 'little', signed=True)}", mapping)


@njit(nogil=True, cache=True)
def _read(
    words: Int32, first: Int64, begin: int, end: int, offset: Int64, latest_ns: Int64, layout: _Layout, out: _Columns
) -> int:
    """Read and judge the records of the messages from `begin` to `end`; return how many cannot be used.

    Parameters
    ----------
    words : (r, H + C), the records of these messages.
    first : (k + 1,), the record each message begins with, and n.
    offset, latest_ns : (k,), of the messages.
    """
    here = slice(first[begin], first[end])
    head = words.shape[1] - len(layout.low)
    readings = words.view(np.float32)
    _judge(readings, head, layout.low, layout.high, out.x[here], out.observed[here], out.quality[here])
    bad = 0
    for m in range(begin, end):
        for i in range(first[m], first[m + 1]):
            record = words[i - first[begin]]
            time = np.int64(record[head - 2]) & np.int64(0xFFFFFFFF) | np.int64(record[head - 1]) << np.int64(32)
            ns, known = integer_ns(time, layout.unit_ns, layout.origin_ns)
            reason = _GOOD if known else _BAD_TIME
            if known and ns > latest_ns[m]:
                reason = _FUTURE
            bad += reason != _GOOD
            out.reason[i] = reason
            out.offset[i] = offset[m]
            out.row[i] = i - first[m]
            out.number[i] = record[0] if layout.numbered else m
            out.ts_ns[i] = ns
    return bad


@njit(nogil=True, cache=True)
def _judge(
    readings: Float32, head: int, low: Float32, high: Float32, x: Float32, observed: Bool, quality: UInt8
) -> None:
    """Copy readings, (r, H + C) from `head` on, to `x` as far as they are good, and say which are."""
    zero = np.float32(0.0)
    for i in range(len(x)):
        row = readings[i, head:]  # an index into it needs no check of its sign: that would be one a reading
        for c in range(len(low)):
            value = row[c]
            found = judge(value, value == value, low[c], high[c])
            quality[i, c] = found
            observed[i, c] = found == OK
            x[i, c] = value + zero if found == OK else zero  # -0.0 + 0.0 is 0.0
