"""Messages to rows: nothing is lost, every message gives rows or dead letters.

JSON goes two ways with one result: `pipeline.scan_json` reads the common shapes straight into columns, and
`pipeline.decode_json` reads what that leaves. Arrow goes column by column (`pipeline.decode_arrow`). Both end in the
same stateless checks, which packed records (`pipeline.decode_records`) go through as they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline import json_tokens, scan_json
from pipeline.asset_names import asset_codes
from pipeline.checks import Checked, Unchecked, check_readings, latest_ts_ns
from pipeline.decode_arrow import decode_arrow
from pipeline.decode_json import Row, read_message
from pipeline.decode_records import decode_records
from pipeline.faults import Fault
from pipeline.mapping import MESSAGE_KEY, UNIT_DIGITS, FieldMapping, mapping_problem
from pipeline.state import AssetTable
from pipeline.values import Bool, DeadLetter, Float32, Int32, Int64, Polled, Rows, UInt8

__all__ = ["Decoded", "FieldMapping", "decode", "mapping_problem"]

_FEW = 4  # messages that are read sooner than a scan of them is set up


@dataclass(frozen=True, slots=True)
class Decoded:
    """What messages gave: rows and dead letters, each in log order."""

    rows: Rows
    dead: list[DeadLetter]


def decode(polled: Polled, mapping: FieldMapping, table: AssetTable) -> Decoded:
    """Read the messages of one partition.

    How messages are cut into polls changes nothing: not the rows, not the dead letters, not the codes.

    Parameters
    ----------
    polled : n messages, in log order.
    mapping : where asset, time and channels are in them.
    table : gives assets their codes; unknown ones are added in the order of their first good row.

    Returns
    -------
    Rows that went through the stateless checks, `continuity` 0; and the messages and rows that could not be used.

    Raises
    ------
    ConfigError : the table takes no more assets.
    """
    if mapping.format == "records":
        checked, dead = decode_records(polled, mapping, table)
    else:
        read = _decode_json if mapping.format == "json" else decode_arrow
        found, dead = read(polled, mapping, table)
        readings = check_readings(found.x, found.given, mapping.low, mapping.high)
        checked = Checked(found.offset, found.row, found.asset, found.ts_ns, *readings)
    continuity = np.zeros(len(checked.row), np.uint8)
    return Decoded(Rows(partition=polled.partition, continuity=continuity, **checked._asdict()), dead)


class _Block(NamedTuple):
    """Rows of JSON messages before their assets have codes: row i is of text[name_start[i]:name_end[i]]."""

    message: Int64  # (n,), index of the message in the poll
    row: Int32  # (n,)
    ts_ns: Int64  # (n,)
    name_start: Int64  # (n,)
    name_end: Int64  # (n,)
    x: Float32  # (n, C)
    given: Bool  # (n, C)


def _decode_json(polled: Polled, mapping: FieldMapping, table: AssetTable) -> tuple[Unchecked, list[DeadLetter]]:
    latest_ns = latest_ts_ns(polled.log_ts_ns, mapping.max_ahead_ns)
    names, rules = _plan(mapping)
    if names is None or len(polled) <= _FEW:
        left, dead = _read_exactly(polled, mapping, latest_ns, np.arange(len(polled)))
        codes = np.array([table.code(row.asset) for _, row in left], np.int32)
        message, row, ts_ns, x, given = _columns(left, len(mapping.channels))
        return Unchecked(polled.offset[message], row, codes, ts_ns, x, given), dead
    text, taken, block = _scan(polled, mapping, latest_ns, names, rules)
    left, dead = _read_exactly(polled, mapping, latest_ns, np.flatnonzero(~taken))
    if left:
        text, block = _merge(text, block, left)
    codes = asset_codes(text, block.name_start, block.name_end, table)
    return Unchecked(polled.offset[block.message], block.row, codes, block.ts_ns, block.x, block.given), dead


def _scan(
    polled: Polled, mapping: FieldMapping, latest_ns: Int64, names: scan_json.Names, rules: scan_json.Rules
) -> tuple[UInt8, Bool, _Block]:
    """Return the text of all messages, which of them the scanner took, and their rows."""
    n = len(polled)
    text, start, end, name_start, name_end = _joined(polled, mapping)
    width = 1 if mapping.layout == "long" else len(mapping.channels)
    out = scan_json.Columns(
        taken=np.zeros(n, np.bool_),
        ts_ns=np.zeros(n, np.int64),
        name_start=name_start,
        name_end=name_end,
        sensor=np.zeros(n, np.int64),
        x=np.zeros((n, width), np.float32),
        given=np.zeros((n, width), np.bool_),
    )
    scan_json.scan(text, start, end, latest_ns, names, rules, out)
    rows = slice(None) if out.taken.all() else np.flatnonzero(out.taken)
    x, given = out.x[rows], out.given[rows]
    if mapping.layout == "long":
        one_sensor = out.sensor[rows, np.newaxis] == np.arange(len(mapping.channels))
        x, given = np.where(one_sensor, x, np.float32(0.0)), one_sensor & given
    message = np.arange(n)[rows]
    row = np.zeros(len(message), np.int32)
    return text.bytes, out.taken, _Block(message, row, out.ts_ns[rows], name_start[rows], name_end[rows], x, given)


@lru_cache(maxsize=64)
def _plan(mapping: FieldMapping) -> tuple[scan_json.Names | None, scan_json.Rules]:
    """Return what the scanner looks for; None where a name has characters that messages write as escapes."""
    channels = {name: channel for channel, name in enumerate(mapping.names)}
    top = {mapping.time: scan_json.TIME}
    if mapping.asset not in ("", MESSAGE_KEY):
        top[mapping.asset] = scan_json.ASSET
    if mapping.layout == "long":
        top |= {mapping.sensor: scan_json.SENSOR, mapping.value: 0}
    elif mapping.values:
        top[mapping.values] = scan_json.VALUES
    else:
        top |= channels
    inner = channels if mapping.layout == "long" or mapping.values else {}
    needed = sum(1 << -kind for kind in top.values() if kind < 0 or mapping.layout == "long")
    digits = scan_json.ISO if mapping.time_unit == "iso" else UNIT_DIGITS[mapping.time_unit]
    escaped = any(c < " " or c in '"\\' for name in (*top, *inner) for c in name)
    names = None if escaped else scan_json.names_of(top, inner)
    return names, scan_json.Rules(needed, digits, mapping.time_origin_ns)


def _joined(polled: Polled, mapping: FieldMapping) -> tuple[json_tokens.Text, Int64, Int64, Int64, Int64]:
    """Return one text of all messages, and where each begins and ends; then the same for assets named outside them."""
    n = len(polled)
    bodies = [message or b"" for message in polled.value]
    sizes = np.fromiter(map(len, bodies), np.int64, n)
    if n and sizes.max() > mapping.max_bytes:
        bodies = [message if len(message) <= mapping.max_bytes else b"" for message in bodies]
    parts = bodies + _outer_names(polled, mapping)
    sizes = np.fromiter(map(len, parts), np.int64, len(parts))
    end = np.cumsum(sizes + 1) - 1
    start = end - sizes
    text = json_tokens.text_of(parts)
    if len(parts) > n:
        return text, start[:n], end[:n], start[n:], end[n:]
    return text, start, end, np.zeros(n, np.int64), np.zeros(n, np.int64)


def _outer_names(polled: Polled, mapping: FieldMapping) -> list[bytes]:
    """Return the asset of each message where it is not in the message; b"" where there is none."""
    if not mapping.asset:
        return [mapping.asset_value.encode()] * len(polled)
    if mapping.asset != MESSAGE_KEY:
        return []
    keys = [key or b"" for key in polled.key or [None] * len(polled)]
    if b"".join(keys).isascii():
        return keys
    return [key if _is_utf8(key) else b"" for key in keys]


def _is_utf8(name: bytes) -> bool:
    return bool(json_tokens.valid_utf8(np.frombuffer(name, np.uint8), 0, len(name)))


def _read_exactly(
    polled: Polled, mapping: FieldMapping, latest_ns: Int64, messages: Int64
) -> tuple[list[tuple[int, Row]], list[DeadLetter]]:
    """Read messages exactly, one by one: rows with the index of their message, and dead letters."""
    rows: list[tuple[int, Row]] = []
    dead: list[DeadLetter] = []
    for i in messages.tolist():
        key = polled.key[i] if polled.key is not None else None
        for item in read_message(polled.value[i], key, int(latest_ns[i]), mapping):
            if isinstance(item, Fault):
                dead.append(DeadLetter(polled.topic, polled.partition, int(polled.offset[i]), *item))
            else:
                rows.append((i, item))
    return rows, dead


def _columns(rows: Sequence[tuple[int, Row]], channels: int) -> tuple[Int64, Int32, Int64, Float32, Bool]:
    """Return message, row, ts_ns, x and given of rows."""
    values = np.array([row.values for _, row in rows], np.float64).reshape(len(rows), channels)  # None becomes NaN
    given = np.array([[value is not None for value in row.values] for _, row in rows], np.bool_).reshape(values.shape)
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    message = np.array([i for i, _ in rows], np.int64)
    row = np.array([row.row for _, row in rows], np.int32)
    return message, row, np.array([row.ts_ns for _, row in rows], np.int64), x, given


def _merge(text: UInt8, block: _Block, left: Sequence[tuple[int, Row]]) -> tuple[UInt8, _Block]:
    """Put exactly read rows between the scanned ones, in log order; return the text with their assets' names too."""
    names = [row.asset.encode() for _, row in left]
    sizes = np.array([len(name) for name in names], np.int64)
    end = len(text) + np.cumsum(sizes)
    message, row, ts_ns, x, given = _columns(left, block.x.shape[1])
    added = _Block(message, row, ts_ns, end - sizes, end, x, given)
    order = np.argsort(np.concatenate([block.message, message]), kind="stable")
    pairs: Any = zip(block, added, strict=True)
    merged = _Block(*(np.concatenate(pair)[order] for pair in pairs))
    return np.concatenate([text, np.frombuffer(b"".join(names), np.uint8)]), merged
