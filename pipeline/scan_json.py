"""JSON rows straight into columns: the fast path of `pipeline.decode`. One pass, no Python object per value.

The scanner takes the shapes that feeds really send: one flat object per message, its fields in any order, with
numbers of up to 18 or 19 significant digits. Whatever else there is (an escape, an array of rows, an odd number,
anything wrong) it leaves to the exact path, message by message. So it need not be right about errors, only
about what it takes; there both paths agree bit by bit. As in `pipeline.json_tokens`, -1 says "leave it".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pipeline.event_time import scan_iso_ns, scan_number_ns
from pipeline.json_tokens import (
    CLOSE,
    CLOSE_ARRAY,
    COMMA,
    MAX_DIGITS,
    NINE,
    OPEN,
    OPEN_ARRAY,
    POINT,
    QUOTE,
    SMALL_E,
    ZERO,
    Text,
    UInt64,
    after_colon,
    after_space,
    any_number,
    inlined,
    reading,
    skip_value,
    string_end,
)
from pipeline.kernels import row_kernel
from pipeline.mapping import MAX_TS_NS
from pipeline.values import Bool, Float32, Int64, UInt8

# What a field of the message is, where it is no channel (those are 0 and up). Bit -kind of `seen` says it was there,
# bit 0 that a channel was.
ASSET, TIME, VALUES, SENSOR, OTHER = -1, -2, -3, -4, -5
ISO = -1  # as `digits` of a time: text, not a number


class Names(NamedTuple):
    """The names to look for, each with its closing quote, in words: name i is word[first[i]:first[i + 1]].

    The first `tops` names are fields of the message; the others are those of channels in its values field, or of
    sensors.
    """

    word: UInt64
    mask: UInt64
    first: Int64
    size: Int64  # bytes of name i, quote included
    kind: Int64  # what name i stands for: a channel, or `ASSET` and so on
    tops: int


class Rules(NamedTuple):
    """What a message must have (bits of `seen`) and how its time is written."""

    needed: int
    digits: int  # a unit of time is 10**digits ns; or ISO
    origin_ns: int


class Columns(NamedTuple):
    """What is read, a row per message. `name_start:name_end` is the asset; `sensor` is for the long layout only."""

    taken: Bool  # (n,), the message is one good row; elsewhere its row is void
    ts_ns: Int64  # (n,)
    name_start: Int64  # (n,)
    name_end: Int64  # (n,)
    sensor: Int64  # (n,)
    x: Float32  # (n, C)
    given: Bool  # (n, C)


def names_of(top: Mapping[str, int], inner: Mapping[str, int]) -> Names:
    """Return the names to look for, from what each stands for."""
    quoted = [name.encode() + b'"' for name in (*top, *inner)]
    padded = [name.ljust(-(-len(name) // 8) * 8, b"\0") for name in quoted]
    masked = [(b"\xff" * len(name)).ljust(-(-len(name) // 8) * 8, b"\0") for name in quoted]
    return Names(
        word=np.frombuffer(b"".join(padded), np.uint64),
        mask=np.frombuffer(b"".join(masked), np.uint64),
        first=np.cumsum([0, *(len(name) // 8 for name in padded)]),
        size=np.array([len(name) for name in quoted], np.int64),
        kind=np.array([*top.values(), *inner.values()], np.int64),
        tops=len(top),
    )


def scan(text: Text, start: Int64, end: Int64, latest_ns: Int64, names: Names, rules: Rules, out: Columns) -> None:
    """Read messages into `out`.

    Parameters
    ----------
    text : the messages.
    start, end : (n,) where they begin and end.
    latest_ns : (n,) the latest time a row of each message may have.
    out : x and given must be zero. `name_start`, `name_end` are kept where no field holds the asset.
    """
    # Which name came after which: a feed writes its fields in one order. The last two entries are the first name of
    # the message and the first one inside its values.
    after = np.array([*range(1, len(names.kind) + 1), 0, names.tops])
    _scan(text, start, end, latest_ns, names, after, rules, out)


@row_kernel
def _scan(
    text: Text, start: Int64, end: Int64, latest_ns: Int64, names: Names, after: Int64, rules: Rules, out: Columns
) -> None:
    for i in range(len(start)):
        at = _message(text, start[i], names, after, rules, out, i)
        whole = at >= 0 and after_space(text.bytes, at) == end[i]
        out.taken[i] = whole and out.name_end[i] > out.name_start[i] and out.ts_ns[i] <= latest_ns[i]


@row_kernel
def _message(text: Text, at: int, names: Names, after: Int64, rules: Rules, out: Columns, i: int) -> int:
    """Read one message: one loop for its fields and for those of the object inside it, if it has one."""
    at = after_space(text.bytes, at)
    if text.bytes[at] != OPEN:
        return -1
    at = after_space(text.bytes, at + 1)
    start, inside = len(names.kind), len(names.kind) + 1  # in `after`
    last, last_top, depth, seen = start, start, 1, 0
    while text.bytes[at] == QUOTE:
        field, at = _field(text, at + 1, names, after[last], depth)
        kind = OTHER if field < 0 else names.kind[field]
        if at < 0 or (kind == VALUES and seen & (1 << -VALUES)):  # twice: the later counts, but the first was read
            return -1
        if field >= 0:
            after[last] = field
            last = field
            seen |= 1 << -min(kind, 0)
        if kind >= 0:
            at, out.x[i, kind], out.given[i, kind] = reading(text, at)
        elif kind == VALUES and text.bytes[at] == OPEN:
            last, last_top, depth = inside, last, 2
            at = after_space(text.bytes, at + 1)
            if text.bytes[at] != CLOSE:
                continue
        else:
            at = _special(text, at, kind, names, rules, out, i)
        if at < 0:
            return -1
        at = after_space(text.bytes, at)
        if depth == 2 and text.bytes[at] == CLOSE:
            last, depth = last_top, 1
            at = after_space(text.bytes, at + 1)
        if depth == 1 and text.bytes[at] == CLOSE:
            return at + 1 if seen & rules.needed == rules.needed else -1
        if text.bytes[at] != COMMA:
            return -1
        at = after_space(text.bytes, at + 1)
    return -1


@row_kernel
def _special(text: Text, at: int, kind: int, names: Names, rules: Rules, out: Columns, i: int) -> int:
    if kind == TIME:
        at, out.ts_ns[i] = _time(text, at, rules)
    elif kind == ASSET:
        at, out.name_start[i], out.name_end[i] = _asset(text.bytes, at)
    elif kind == VALUES:
        at = _array(text, at, out.x, out.given, i)
    elif kind == SENSOR:
        at, out.sensor[i] = _sensor(text, at, names)
    else:
        at = skip_value(text, at)
    return at


@row_kernel
def _array(text: Text, at: int, x: Float32, given: Bool, i: int) -> int:
    """Read an array of one number per channel."""
    channels = x.shape[1]
    for channel in range(channels):
        if text.bytes[at] != (COMMA if channel else OPEN_ARRAY):
            return -1
        at = after_space(text.bytes, at + 1)
        at, x[i, channel], given[i, channel] = reading(text, at)
        if at < 0:
            return -1
        at = after_space(text.bytes, at)
    return at + 1 if text.bytes[at] == CLOSE_ARRAY else -1


@inlined
def _field(text: Text, at: int, names: Names, guess: int, depth: int) -> tuple[int, int]:
    """Return which name the string from `at` is (-1: none of them), and where the field's value begins."""
    if guess < len(names.kind) and same(text.words, at, names, guess) and (guess < names.tops) == (depth == 1):
        return guess, after_colon(text.bytes, at + names.size[guess])
    return _search(text, at, names, depth)  # type: ignore[no-any-return]


@row_kernel
def _search(text: Text, at: int, names: Names, depth: int) -> tuple[int, int]:
    first, end = (0, names.tops) if depth == 1 else (names.tops, len(names.kind))
    for i in range(first, end):
        if same(text.words, at, names, i):
            return i, after_colon(text.bytes, at + names.size[i])
    close = string_end(text.bytes, at)
    return -1, (after_colon(text.bytes, close + 1) if close >= 0 else -1)


@inlined
def same(words: UInt64, at: int, names: Names, i: int) -> bool:
    """Whether name i stands at `at`, closing quote and all; a message that ends earlier differs where it ends."""
    for k in range(names.first[i], names.first[i + 1]):
        if (words[at] ^ names.word[k]) & names.mask[k] != 0:
            return False
        at += 8
    return True


@row_kernel
def _sensor(text: Text, at: int, names: Names) -> tuple[int, int]:
    """Return the position after the string at `at`, and which channel's sensor it names."""
    if text.bytes[at] == QUOTE:
        for i in range(names.tops, len(names.kind)):
            if same(text.words, at + 1, names, i):
                return at + 1 + names.size[i], names.kind[i]
    return -1, -1


@row_kernel
def _asset(text: UInt8, at: int) -> tuple[int, int, int]:
    """Return the position after the asset, and where its name begins and ends: a string, or a whole number."""
    if text[at] == QUOTE:
        end = string_end(text, at + 1)
        return (end + 1 if end >= 0 else -1), at + 1, end
    end = at
    while ZERO <= text[end] <= NINE:
        end += 1
    c = text[end]
    odd = end == at or (end - at > 1 and text[at] == ZERO) or c == POINT or (c | 32) == SMALL_E
    return (-1 if odd or end - at > MAX_DIGITS else end), at, end


@row_kernel
def _time(text: Text, at: int, rules: Rules) -> tuple[int, int]:
    if rules.digits != ISO:
        at, mantissa, exponent = any_number(text, at)
        ns, known = scan_number_ns(mantissa, exponent, rules.digits)
        ns += rules.origin_ns
    elif text.bytes[at] == QUOTE:
        end = string_end(text.bytes, at + 1)
        ns, known = scan_iso_ns(text.bytes, at + 1, end)
        at = end + 1
    else:
        return -1, 0
    return (at if known and -MAX_TS_NS <= ns <= MAX_TS_NS else -1), ns
