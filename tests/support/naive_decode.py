"""What decoding must give, the slow and obvious way: one message at a time, stdlib only."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np

from pipeline.values import Quality

LIMIT = 1 << 62
UNITS = {"ns": 0, "us": 3, "ms": 6, "s": 9}


def naive_decode(polled, mapping):
    """Return good rows as (offset, row, asset, ts_ns, values, quality) and faults as (offset, row, reason, bytes)."""
    rows, dead = [], []
    for i, message in enumerate(polled.value):
        key = polled.key[i] if polled.key else None
        log_ns = int(polled.log_ts_ns[i])
        for row, reason, text, good in _rows_of(message, key, log_ns, mapping):
            if reason:
                dead.append((int(polled.offset[i]), row, reason, text))
            else:
                asset, ts_ns, values = good
                judged = [_judge(v, c, mapping) for c, v in enumerate(values)]
                x, quality = [j[0] for j in judged], [j[1] for j in judged]
                rows.append((int(polled.offset[i]), max(row, 0), asset, ts_ns, x, quality))
    return rows, dead


def _rows_of(message, key, log_ns, mapping):
    if not message:
        return [(-1, "empty", b"", None)]
    if len(message) > mapping.max_bytes:
        return [(-1, "too_large", message, None)]
    try:
        text = message.decode()
        found = json.loads(text, parse_float=Decimal, parse_constant=Decimal)
    except ValueError:
        return [(-1, "not_json", message, None)]
    if not isinstance(found, list):
        return [_row(-1, found, message, key, log_ns, mapping)]
    if not found:
        return [(-1, "empty", message, None)]
    parts = _elements(text)
    return [_row(i, item, part, key, log_ns, mapping) for i, (item, part) in enumerate(zip(found, parts, strict=True))]


def _elements(text):
    """The bytes of each element of a JSON array: cut at the commas that are in no string and no bracket."""
    depth, quoted, escaped, begin, parts = 0, False, False, 0, []
    for at, c in enumerate(text):
        if quoted:
            quoted = escaped or c != '"'
            escaped = c == "\\" and not escaped
        elif c == '"':
            quoted = True
        elif c in "[{":
            depth += 1
            begin = at + 1 if depth == 1 else begin
        elif c in "]}" or (c == "," and depth == 1):
            depth -= c != ","
            if depth == (1 if c == "," else 0):
                parts.append(text[begin:at].strip(" \t\r\n").encode())
                begin = at + 1
    return parts


def _row(row, found, text, key, log_ns, mapping):
    try:
        return row, "", text, _good(found, key, log_ns, mapping)
    except _Bad as bad:
        return row, str(bad), text, None


class _Bad(Exception):
    pass


def _good(found, key, log_ns, mapping):
    if not isinstance(found, dict):
        raise _Bad("not_json")
    asset = _asset(found, key, mapping)
    ts_ns = _time(found, mapping)
    if mapping.max_ahead_ns is not None and log_ns and ts_ns - log_ns > mapping.max_ahead_ns:
        raise _Bad("future")
    names = mapping.fields or mapping.channels
    if mapping.layout == "long":
        sensor = found.get(mapping.sensor)
        sensor = str(sensor) if type(sensor) is int else sensor
        if sensor not in names:
            raise _Bad("unknown_sensor")
        if mapping.value not in found:
            raise _Bad("bad_value")
        values = [found[mapping.value] if name == sensor else None for name in names]
    else:
        holder = found.get(mapping.values) if mapping.values else found
        if isinstance(holder, dict):
            values = [holder.get(name) for name in names]
        elif isinstance(holder, list) and len(holder) == len(names):
            values = holder
        else:
            raise _Bad("bad_value")
    if any(v is not None and type(v) not in (int, Decimal) for v in values):
        raise _Bad("bad_value")
    return asset, ts_ns, values


def _asset(found, key, mapping):
    if not mapping.asset:
        return mapping.asset_value
    if mapping.asset == "@key":
        try:
            name = (key or b"").decode()
        except UnicodeDecodeError:
            raise _Bad("no_asset") from None
    else:
        name = found.get(mapping.asset)
        if type(name) is int:
            name = str(name)
        elif type(name) is Decimal:
            # The text as it stands is not to be had from here: tests write floats as Decimal does.
            name = str(name) if math.isfinite(float(name)) else None
    try:
        if isinstance(name, str) and name.encode():
            return name
    except UnicodeEncodeError:
        pass
    raise _Bad("no_asset")


def _time(found, mapping):
    value = found.get(mapping.time)
    if value is None:
        raise _Bad("no_time")
    if mapping.time_unit == "iso":
        ns = naive_iso(value) if isinstance(value, str) else None
    elif type(value) is int:
        ns = value * 10 ** UNITS[mapping.time_unit]
    elif type(value) is Decimal and value.is_finite():
        if value and value.adjusted() > 30:
            ns = None
        else:
            with localcontext() as context:
                context.prec = 400
                scaled = value * 10 ** UNITS[mapping.time_unit] if value and value.adjusted() > -40 else Decimal(0)
                ns = int(scaled.quantize(Decimal(1), ROUND_HALF_EVEN))
    else:
        ns = None
    if ns is None or abs(ns + mapping.time_origin_ns) > LIMIT:
        raise _Bad("bad_time")
    return ns + mapping.time_origin_ns


def naive_iso(text):
    try:
        if len(text) < 19 or text[10] not in "Tt " or not text.isascii():
            return None
        date = datetime.strptime(text[:10] + " " + text[11:19], "%Y-%m-%d %H:%M:%S")
        if date.strftime("%m-%d %H:%M:%S") != text[5:10] + " " + text[11:19]:
            return None  # strptime takes " 1" for "01"
        rest = text[19:]
        fraction = Decimal(0)
        if rest.startswith("."):
            digits = ""
            for c in rest[1:]:
                if not c.isdigit():
                    break
                digits += c
            if not 1 <= len(digits) <= 18:
                return None
            fraction, rest = Decimal("0." + digits), rest[1 + len(digits) :]
        offset = timedelta(0)
        if rest not in ("", "Z", "z"):
            if len(rest) != 6 or rest[0] not in "+-" or rest[3] != ":" or not (rest[1:3] + rest[4:]).isdigit():
                return None
            if int(rest[1:3]) > 23 or int(rest[4:]) > 59:
                return None
            offset = timedelta(hours=int(rest[1:3]), minutes=int(rest[4:])) * (1 if rest[0] == "+" else -1)
        whole = (date - datetime(1970, 1, 1)) // timedelta(seconds=1) - offset // timedelta(seconds=1)
        return whole * 10**9 + int((fraction * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))
    except ValueError:
        return None


def _judge(value, channel, mapping):
    if value is None:
        return 0.0, Quality.ABSENT
    try:
        with np.errstate(over="ignore"):
            x = float(np.float32(float(value)))
    except OverflowError:
        x = math.inf
    if not math.isfinite(x):
        return 0.0, Quality.NON_FINITE
    with np.errstate(over="ignore"):
        low = float(np.float32(mapping.low[channel])) if mapping.low else -math.inf
        high = float(np.float32(mapping.high[channel])) if mapping.high else math.inf
    if not low <= x <= high:
        return 0.0, Quality.OUT_OF_RANGE
    return x + 0.0, Quality.OK
