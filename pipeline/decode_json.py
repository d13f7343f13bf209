"""One JSON message, read exactly: what the scanner leaves, and the reference for what it takes.

Whatever is wrong is found here and gets its reason. What JSON itself has no room for but senders write anyway, NaN
and Infinity, is read and becomes a reading that is not finite, rather than a lost row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from pipeline.event_time import iso_ns, number_ns
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
from pipeline.mapping import MAX_TS_NS, MESSAGE_KEY, UNIT_DIGITS, FieldMapping, is_text

_BLANK = re.compile(r"[ \t\r\n]*")
_FIELDS_SHOWN = 240  # characters of the fields found that a detail repeats
_any_value = msgspec.json.Decoder()
_floats_as_text = msgspec.json.Decoder(float_hook=str)
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_lenient = json.JSONDecoder()


class Row(NamedTuple):
    """One good row; a value is None where the message has none."""

    row: int
    ts_ns: int
    asset: str
    values: list[float | None]


def read_message(message: bytes | None, key: bytes | None, latest_ns: int, mapping: FieldMapping) -> list[Row | Fault]:
    """Return the rows and faults of one message, in order: one for an object, one per element for an array.

    Parameters
    ----------
    message, key : as the log has them.
    latest_ns : a row with a later time is a fault.
    """
    try:
        text = body(message, mapping)
        if text.lstrip(b" \t\r\n")[:1] != b"[":
            return [_row_or_fault(text, -1, key, latest_ns, mapping)]
        elements = _split(text)
    except Unusable as error:
        return [error.fault(-1, message or b"")]
    return [_row_or_fault(element, i, key, latest_ns, mapping) for i, element in enumerate(elements)]


def _row_or_fault(text: bytes, row: int, key: bytes | None, latest_ns: int, mapping: FieldMapping) -> Row | Fault:
    try:
        found = _parse(text)
        if not isinstance(found, dict):
            raise Unusable("not_json", f"{shown(found)} is no JSON object: send one with asset, time and values")
        asset = _asset(text, found, key, mapping)
        ts_ns = _ts_ns(text, found, latest_ns, mapping)
        values = _long_values(found, mapping) if mapping.layout == "long" else _wide_values(found, mapping)
        return Row(max(row, 0), ts_ns, asset, values)
    except Unusable as error:
        return error.fault(row, text)


def _parse(text: bytes) -> Any:
    try:
        return _any_value.decode(text)
    except (ValueError, RecursionError) as error:
        try:
            return json.loads(text.decode())
        except (ValueError, RecursionError):
            raise Unusable("not_json", f"{error}: send UTF-8 JSON") from None


def _split(message: bytes) -> list[bytes]:
    """Return the elements of an array as they came.

    Raises
    ------
    Unusable : it is no JSON array, or an empty one.
    """
    try:
        text = message.decode()  # the decoder of elements does not look into strings
        try:
            elements = [bytes(element) for element in _elements.decode(message)]
        except (ValueError, RecursionError):
            elements = _split_leniently(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("not_json", f"{error}: send UTF-8 JSON") from None
    if not elements:
        raise no_rows()
    return elements


def _split_leniently(text: str) -> list[bytes]:
    elements = []
    separator = "["
    at = _after_blank(text, 0)
    while text[at : at + 1] == separator:
        begin = _after_blank(text, at + 1)
        _, end = _lenient.raw_decode(text, begin)
        elements.append(text[begin:end].encode())
        at = _after_blank(text, end)
        separator = ","
    if text[at : at + 1] != "]" or _after_blank(text, at + 1) != len(text):
        raise ValueError("not an array")
    return elements


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _number_text(text: bytes, field: str) -> str:
    """Return a float field of a message as it was written."""
    try:
        found = _floats_as_text.decode(text)
    except (ValueError, RecursionError):
        found = json.loads(text.decode(), parse_float=str, parse_constant=str)
    return str(found[field])


def _asset(text: bytes, found: Mapping[str, Any], key: bytes | None, mapping: FieldMapping) -> str:
    if not mapping.asset:
        return mapping.asset_value
    if mapping.asset == MESSAGE_KEY:
        return key_asset(key)
    value = found.get(mapping.asset)
    if isinstance(value, float) and math.isfinite(value):
        value = _number_text(text, mapping.asset)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value and is_text(value):
        return value
    what = _missing(found, mapping.asset) if value is None else f"{mapping.asset!r} is {shown(value)}"
    raise no_asset(what)


def _ts_ns(text: bytes, found: Mapping[str, Any], latest_ns: int, mapping: FieldMapping) -> int:
    value = found.get(mapping.time)
    if value is None:
        raise no_time(_missing(found, mapping.time))
    ns: int | None = None
    if mapping.time_unit == "iso":
        if isinstance(value, str):
            ns = iso_ns(value)
    elif isinstance(value, float):
        ns = number_ns(_number_text(text, mapping.time), UNIT_DIGITS[mapping.time_unit])
    elif isinstance(value, int) and not isinstance(value, bool):
        ns = value * 10 ** UNIT_DIGITS[mapping.time_unit]
    if ns is None or abs(ns + mapping.time_origin_ns) > MAX_TS_NS:
        raise bad_time(f"{mapping.time!r} is {shown(value)}", mapping)
    ns += mapping.time_origin_ns
    if ns > latest_ns:
        raise future(ns, latest_ns, mapping)
    return ns


def _wide_values(found: Mapping[str, Any], mapping: FieldMapping) -> list[float | None]:
    if not mapping.values:
        return [_reading(name, found.get(name)) for name in mapping.names]
    values = found.get(mapping.values)
    if isinstance(values, dict):
        return [_reading(name, values.get(name)) for name in mapping.names]
    if isinstance(values, list) and len(values) == len(mapping.names):
        return [_reading(name, value) for name, value in zip(mapping.names, values, strict=True)]
    if values is None:
        what = _missing(found, mapping.values)
    elif isinstance(values, list):
        what = f"{mapping.values!r} has {len(values)} values for {len(mapping.names)} channels"
    else:
        what = f"{mapping.values!r} is {shown(values)}"
    raise Unusable("bad_value", f"{what}: send an object of name -> number, or one number per channel")


def _long_values(found: Mapping[str, Any], mapping: FieldMapping) -> list[float | None]:
    sensor = found.get(mapping.sensor)
    if isinstance(sensor, int) and not isinstance(sensor, bool):
        sensor = str(sensor)
    if sensor not in mapping.names:
        what = _missing(found, mapping.sensor) if sensor is None else f"sensor {shown(sensor)} is not mapped"
        raise unknown_sensor(what)
    if mapping.value not in found:
        raise Unusable("bad_value", f"{_missing(found, mapping.value)}: send the sensor's value, or null")
    values: list[float | None] = [None] * len(mapping.names)
    values[mapping.names.index(sensor)] = _reading(sensor, found[mapping.value])
    return values


def _reading(name: str, value: Any) -> float | None:
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    raise Unusable("bad_value", f"channel {name!r} is {shown(value)}, not a number: send a number or null")


def _missing(found: Mapping[str, Any], field: str) -> str:
    names = ", ".join(map(repr, found)) or "none"
    state = "is null" if field in found else "is missing"
    return f"field {field!r} {state} (fields found: {names[:_FIELDS_SHOWN]})"
