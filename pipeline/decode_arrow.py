"""Arrow messages to rows: a message is one IPC stream, read column by column; only distinct names touch Python."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from pyarrow import types

from pipeline.asset_names import asset_codes
from pipeline.checks import Unchecked, latest_ts_ns
from pipeline.event_time import floats_ns, integers_ns, texts_ns
from pipeline.faults import (
    Fault,
    Unusable,
    bad_time,
    body,
    future,
    key_asset,
    no_asset,
    no_rows,
    no_time,
    shown,
    unknown_sensor,
)
from pipeline.mapping import MESSAGE_KEY, UNIT_DIGITS, FieldMapping
from pipeline.state import AssetTable
from pipeline.values import Bool, DeadLetter, Float32, Int32, Int64, Polled, UInt8

_TURNED = 64  # rows turned at once: a few lines of the cache for every column
_OK, _NO_ASSET, _NO_TIME, _BAD_TIME, _FUTURE, _UNKNOWN_SENSOR = range(6)


def decode_arrow(polled: Polled, mapping: FieldMapping, table: AssetTable) -> tuple[Unchecked, list[DeadLetter]]:
    """Read Arrow messages.

    Raises
    ------
    ConfigError : the table takes no more assets.
    """
    blocks: list[Unchecked] = []
    dead: list[DeadLetter] = []
    latest_ns = latest_ts_ns(polled.log_ts_ns, mapping.max_ahead_ns)
    for i, message in enumerate(polled.value):
        key = polled.key[i] if polled.key is not None else None
        offset = int(polled.offset[i])
        try:
            block, faults = _read_message(message, key, offset, int(latest_ns[i]), mapping, table)
            blocks.append(block)
        except Unusable as error:
            faults = [error.fault(-1, message or b"")]
        dead += [DeadLetter(polled.topic, polled.partition, offset, *fault) for fault in faults]
    if len(blocks) == 1:
        return blocks[0], dead
    blocks = blocks or [_no_rows(len(mapping.channels))]
    return Unchecked(*(np.concatenate(parts) for parts in zip(*blocks, strict=True))), dead


def _no_rows(channels: int) -> Unchecked:
    codes, times, readings = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros((0, channels), np.float32)
    return Unchecked(times, codes, codes, times, readings, readings.astype(np.bool_))


def _read_message(
    message: bytes | None, key: bytes | None, offset: int, latest_ns: int, mapping: FieldMapping, table: AssetTable
) -> tuple[Unchecked, list[Fault]]:
    """Return the good rows of one message, and the faults of the others.

    Raises
    ------
    Unusable : none of it can be used.
    """
    text = body(message, mapping)
    found = _open(text)
    _check_columns(found, mapping)
    n = found.num_rows
    assets = _assets(found, key, mapping)
    ts_ns, known, timed = _times(found, mapping)
    sensors = _sensors(found, mapping)
    reason = np.full(n, _OK, np.int8)  # a later line is the earlier check, and wins
    reason[sensors < 0] = _UNKNOWN_SENSOR
    reason[ts_ns > latest_ns] = _FUTURE
    reason[~known] = _BAD_TIME
    reason[~timed] = _NO_TIME
    reason[assets.end == assets.start] = _NO_ASSET
    x, given = _long(found, sensors, mapping) if mapping.layout == "long" else _wide(found, text, mapping)
    row = np.arange(n, dtype=np.int32)
    bad = reason.any()
    if bad:
        row = row[reason == _OK]
        x, given = x[row], given[row]
    block = Unchecked(
        offset=np.full(len(row), offset, np.int64),
        row=row,
        asset=asset_codes(assets.text, assets.start[row], assets.end[row], table),
        ts_ns=ts_ns[row],
        x=x,
        given=given,
    )
    return block, _faults(found, reason, ts_ns, latest_ns, mapping) if bad else []


def _open(message: bytes) -> Any:
    try:
        with pa.ipc.open_stream(message) as stream:
            found = stream.read_all()
        found.validate(full=True)  # what a sender says about its own buffers is not believed
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unusable("not_arrow", f"{error}: send one Arrow IPC stream per message") from None
    if not found.num_rows and found.num_columns:
        raise no_rows()
    return found


def _check_columns(found: Any, mapping: FieldMapping) -> None:
    wide = mapping.layout == "wide"
    count = Counter(found.column_names)
    channels = mapping.names if wide else ()
    needed = [name for name in mapping.columns if name not in channels]
    missing = [name for name in needed if count[name] != 1]
    if not missing and wide and not any(name in count for name in channels):
        missing = list(channels)
    if missing:
        raise _wrong_columns(f"no single column {', '.join(map(repr, missing))}", found)
    twice = [name for name in channels if count[name] > 1]
    if twice:
        raise _wrong_columns(f"more than one column {', '.join(map(repr, twice))}", found)


def _wrong_columns(what: str, found: Any) -> Unusable:
    columns = ", ".join(f"{field.name!r} ({field.type})" for field in found.schema)
    return Unusable("wrong_columns", f"{what}; columns found: {columns or 'none'}: correct the mapping or the sender")


class _Names(NamedTuple):
    """The asset of row i: text[start[i]:end[i]], empty where there is none."""

    text: UInt8
    start: Int64  # (n,)
    end: Int64  # (n,)


def _assets(found: Any, key: bytes | None, mapping: FieldMapping) -> _Names:
    if mapping.asset in ("", MESSAGE_KEY):
        name = (key_asset(key) if mapping.asset else mapping.asset_value).encode()
        start = np.zeros(found.num_rows, np.int64)
        return _Names(np.frombuffer(name, np.uint8), start, start + len(name))
    column = _plain(found.column(mapping.asset))
    if not (_is_text(column.type) or types.is_integer(column.type)):
        raise _wrong_columns(f"asset column {mapping.asset!r} must hold text or integers", found)
    text, first = _texts(column)
    start, end = first[:-1], first[1:]
    if column.null_count:
        end = np.where(_to_numpy(column.is_null()), start, end)
    return _Names(text, start, end)


def _times(found: Any, mapping: FieldMapping) -> tuple[Int64, Bool, Bool]:
    """Return event times, which of them are good, and which are there at all."""
    column = _plain(found.column(mapping.time))
    given = _to_numpy(column.is_valid()) if column.null_count else np.ones(len(column), np.bool_)
    kind = column.type
    digits = UNIT_DIGITS.get(mapping.time_unit)
    if types.is_date(kind):
        column = column.cast(pa.timestamp("ms"))
        kind = column.type
    if types.is_timestamp(kind):
        ns, known = integers_ns(_filled(column.cast(pa.int64())), UNIT_DIGITS[kind.unit], 0)
    elif types.is_integer(kind) and digits is not None:
        ns, known = integers_ns(_int64(_filled(column)), digits, mapping.time_origin_ns)
    elif types.is_floating(kind) and digits is not None:
        ns, known = floats_ns(_filled(column).astype(np.float64), digits, mapping.time_origin_ns)
    elif _is_text(kind) and digits is None:
        ns, known = _text_times(column, given)
    else:
        raise _wrong_columns(f"time column {mapping.time!r} does not go with time_unit {mapping.time_unit}", found)
    return ns, known, given


def _text_times(column: Any, given: Bool) -> tuple[Int64, Bool]:
    text, first = _texts(column)
    return texts_ns(text, first, given)


def _texts(column: Any) -> tuple[UInt8, Int64]:
    """Return a column as text: value i is text[first[i]:first[i + 1]]; what is null may have any."""
    text = column.cast(pa.large_string()).combine_chunks()
    if not len(text):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, characters = text.buffers()
    first = np.frombuffer(offsets, np.int64, len(text) + 1, 8 * text.offset)
    return np.frombuffer(characters or b"", np.uint8), first


def _sensors(found: Any, mapping: FieldMapping) -> Int32:
    """Return which channel each row of a long message is of, -1 for none; zeros for a wide one."""
    if mapping.layout == "wide":
        return np.zeros(found.num_rows, np.int32)
    column = _plain(found.column(mapping.sensor))
    if not (_is_text(column.type) or types.is_integer(column.type)):
        raise _wrong_columns(f"sensor column {mapping.sensor!r} must hold text or integers", found)
    names = pa.array(mapping.names, pa.large_string())
    return _to_numpy(pc.fill_null(pc.index_in(column.cast(pa.large_string()), value_set=names), -1))  # type: ignore[no-any-return]


def _long(found: Any, sensors: Int32, mapping: FieldMapping) -> tuple[Float32, Bool]:
    value, given = _readings(found, mapping.value)
    one_sensor = sensors[:, np.newaxis] == np.arange(len(mapping.channels))
    x = np.where(one_sensor, value[:, np.newaxis], np.float32(0.0))
    return x, one_sensor & given[:, np.newaxis]


def _wide(found: Any, message: bytes, mapping: FieldMapping) -> tuple[Float32, Bool]:
    shape = (found.num_rows, len(mapping.names))
    first = _where_floats_are(found, message, mapping)
    if first is not None:
        x = np.empty(shape, np.float32)
        _turn(np.frombuffer(message, np.uint8), first, x)
        return x, np.ones(shape, np.bool_)
    x, given = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    for channel, name in enumerate(mapping.names):
        if name in found.column_names:
            x[:, channel], given[:, channel] = _readings(found, name)
    return x, given


def _where_floats_are(found: Any, message: bytes, mapping: FieldMapping) -> Int64 | None:
    """Return where in the message each channel's values begin, (C,); None unless all are plain float32 without nulls.

    That is how most senders write them, uncompressed in one batch: then one pass turns columns into rows.
    """
    batches = found.to_batches()
    if len(batches) != 1:
        return None
    batch = batches[0]
    at = {name: i for i, name in enumerate(batch.schema.names)}
    base = np.frombuffer(message, np.uint8).ctypes.data
    first = np.empty(len(mapping.names), np.int64)
    for channel, name in enumerate(mapping.names):
        column = batch.column(at[name]) if name in at else None
        if column is None or column.type != pa.float32() or column.null_count:
            return None
        first[channel] = column.buffers()[1].address + 4 * column.offset - base
    inside = (first >= 0) & (first + 4 * batch.num_rows <= len(message))  # a compressed buffer is elsewhere
    return first if inside.all() else None


@njit(nogil=True, cache=True)
def _turn(message: UInt8, first: Int64, out: Float32) -> None:
    """Write columns that begin at message[first[c]] as rows, a few at a time so that both stay in the cache."""
    rows, channels = out.shape
    for begin in range(0, rows, _TURNED):
        end = min(begin + _TURNED, rows)
        for c in range(channels):
            column = message[first[c] + 4 * begin : first[c] + 4 * end].view(np.float32)
            for i in range(begin, end):
                out[i, c] = column[i - begin]


def _readings(found: Any, name: str) -> tuple[Float32, Bool]:
    column = found.column(name)
    if types.is_null(column.type):
        return np.zeros(found.num_rows, np.float32), np.zeros(found.num_rows, np.bool_)
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        raise _wrong_columns(f"channel column {name!r} must hold numbers", found)
    with np.errstate(over="ignore"):  # by way of double, as in JSON: an integer rounds twice in both
        return _filled(column).astype(np.float64).astype(np.float32), _to_numpy(column.is_valid())


def _faults(found: Any, reason: Any, ts_ns: Int64, latest_ns: int, mapping: FieldMapping) -> list[Fault]:
    bad = np.flatnonzero(reason != _OK)
    rows = _readable(found.take(pa.array(bad)))
    faults = []
    for row, i in zip(rows, bad.tolist(), strict=True):
        error = _unusable(int(reason[i]), row, int(ts_ns[i]), latest_ns, mapping)
        faults.append(error.fault(i, json.dumps(row, ensure_ascii=False, default=str).encode()))
    return faults


def _unusable(reason: int, row: dict[str, Any], ts_ns: int, latest_ns: int, mapping: FieldMapping) -> Unusable:
    if reason == _NO_ASSET:
        return no_asset(f"column {mapping.asset!r} is {shown(row[mapping.asset])}")
    if reason == _NO_TIME:
        return no_time(f"column {mapping.time!r} is null")
    if reason == _BAD_TIME:
        return bad_time(f"column {mapping.time!r} is {shown(row[mapping.time])}", mapping)
    if reason == _FUTURE:
        return future(ts_ns, latest_ns, mapping)
    return unknown_sensor(f"sensor {shown(row[mapping.sensor])} is not mapped")


def _readable(found: Any) -> list[dict[str, Any]]:
    """Return rows as JSON can hold them; times as text, whatever their unit."""
    for i, field in enumerate(found.schema):
        column = found.column(i)
        if types.is_timestamp(field.type):
            column = column.cast(pa.int64()).cast(pa.timestamp(field.type.unit))
        if types.is_temporal(field.type):
            column = (column.cast(pa.int64()) if types.is_duration(field.type) else column).cast(pa.string())
            found = found.set_column(i, field.name, column)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _plain(column: Any) -> Any:
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def _is_text(kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _filled(column: Any) -> Any:
    """Return a numeric column as an array, 0 where it is null."""
    if types.is_float16(column.type):
        column = column.cast(pa.float32())
    return _to_numpy(pc.fill_null(column, 0) if column.null_count else column)


def _int64(values: Any) -> Int64:
    """Return integers as int64; those beyond it as its largest, which is no time."""
    return np.minimum(values, np.iinfo(np.int64).max).astype(np.int64)  # type: ignore[no-any-return]


def _to_numpy(column: Any) -> Any:
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
