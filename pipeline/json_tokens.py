"""The tokens of JSON as kernels: space, strings, literals and numbers, for `pipeline.scan_json`.

A text is messages that are each followed by a NUL byte, which is no space, no part of a number and not allowed in a
string: every loop ends there by itself, and none needs a bound. Positions are those after what was read; -1 means
"not this, or not for certain".

`Text.words` overlaps: words[i] is the eight bytes from i, so that a run of digits is read at once (little-endian
machines). Numbers are read as in [1], section 3: mantissa and power of ten are exact doubles, so one operation rounds
once. Readings are float32, though, and that takes longer mantissas too: where two doubles on either side of the true
one become the same float32, so does the true one.

References
----------
[1] W. D. Clinger, How to read floating point numbers accurately, PLDI 1990.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.kernels import row_kernel
from pipeline.values import UInt8

UInt64 = NDArray[np.uint64]

# A row kernel's part that numba itself puts in the place of its calls: tokens are small.
inlined = njit(nogil=True, cache=True, _nrt=False, inline="always")

QUOTE, PLUS, COMMA, MINUS, POINT, ZERO, NINE, COLON = 34, 43, 44, 45, 46, 48, 57, 58
OPEN_ARRAY, BACKSLASH, CLOSE_ARRAY, SMALL_E, SMALL_N, OPEN, CLOSE = 91, 92, 93, 101, 110, 123, 125
MAX_DIGITS = 19  # what more than fits in an int64 comes out negative
_EXACT = 1 << 53  # integers up to here are exact doubles
_MARGIN = 2.0**-50  # more than three roundings can be off
_TEN = 10 ** np.arange(MAX_DIGITS)
_TEN_EXACT = 10.0 ** np.arange(23)  # exact doubles


class Text(NamedTuple):
    """Messages, each followed by a NUL, as bytes and as the eight bytes from each position on."""

    bytes: UInt8  # (b + 7,), b >= 2
    words: UInt64  # (b,)


def text_of(messages: Sequence[bytes]) -> Text:
    """Return messages, each followed by a NUL, as the kernels read them."""
    padded = b"\0".join([*messages, bytes(9)])  # two words at least: numpy takes one for another kind of array
    words = np.ndarray(len(padded) - 7, np.uint64, padded, strides=(1,))
    return Text(np.frombuffer(padded, np.uint8), words)


@row_kernel
def after_colon(text: UInt8, at: int) -> int:
    """Pass over a colon and the space around it."""
    at = after_space(text, at)
    return after_space(text, at + 1) if text[at] == COLON else -1


@row_kernel
def after_space(text: UInt8, at: int) -> int:
    """Pass over space, if there is any."""
    while text[at] <= 32 and (text[at] == 32 or text[at] == 10 or text[at] == 13 or text[at] == 9):
        at += 1
    return at


@row_kernel
def skip_value(text: Text, at: int) -> int:
    """Pass over a value that no one asked for, with up to 60 brackets open."""
    nest = 1  # a bit per open bracket, the innermost last: 1 for an object, 0 for an array; the first bit is none
    while True:
        c = text.bytes[at]
        if c in (OPEN, OPEN_ARRAY):
            nest = 2 * nest + int(c == OPEN)
            at = after_space(text.bytes, at + 1)
            if text.bytes[at] not in (CLOSE, CLOSE_ARRAY):
                at = _member(text.bytes, at, nest)
                if at < 0 or nest >> 60:
                    return -1
                continue
        else:
            at = _simple(text, at)
        while at >= 0 and nest > 1:
            at = after_space(text.bytes, at)
            if text.bytes[at] == COMMA:
                at = _member(text.bytes, after_space(text.bytes, at + 1), nest)
                break
            at = at + 1 if text.bytes[at] == (CLOSE if nest & 1 else CLOSE_ARRAY) else -1
            nest >>= 1
        if at < 0 or nest == 1:
            return at


@row_kernel
def _member(text: UInt8, at: int, nest: int) -> int:
    """Return where the value of the next member begins, after its name if it is an object's."""
    if not nest & 1:
        return at
    end = string_end(text, at + 1) if text[at] == QUOTE else -1
    return after_colon(text, end + 1) if end >= 0 else -1


@row_kernel
def _simple(text: Text, at: int) -> int:
    """Pass over a string, a number or a literal."""
    c = text.bytes[at]
    if c == QUOTE:
        end = string_end(text.bytes, at + 1)
        return end + 1 if end >= 0 else -1
    if c == MINUS or ZERO <= c <= NINE:
        at, _, _ = any_number(text, at)
        return at
    return _literal(text.bytes, at)  # type: ignore[no-any-return]


@row_kernel
def _literal(text: UInt8, at: int) -> int:
    """Pass over null, true or false; a NUL ends the comparison before the text does."""
    if text[at] == 110 and text[at + 1] == 117 and text[at + 2] == 108 and text[at + 3] == 108:
        return at + 4
    if text[at] == 116 and text[at + 1] == 114 and text[at + 2] == 117 and text[at + 3] == 101:
        return at + 4
    if text[at] == 102 and text[at + 1] == 97 and text[at + 2] == 108 and text[at + 3] == 115 and text[at + 4] == 101:
        return at + 5
    return -1


@inlined
def reading(text: Text, at: int) -> tuple[int, np.float32, bool]:
    """Return the position after a number or null, its value, and whether it is a number."""
    if text.bytes[at] == SMALL_N:
        return _literal(text.bytes, at), np.float32(0.0), False
    at, mantissa, exponent = _number(text, at)
    value, exact = _float32(mantissa, exponent)
    return (at if exact else -1), value, True


@row_kernel
def any_number(text: Text, at: int) -> tuple[int, int, int]:
    """`_number`, compiled once: it is inlined where readings are read, which is where the time goes."""
    return _number(text, at)  # type: ignore[no-any-return]


@inlined
def _number(text: Text, at: int) -> tuple[int, int, int]:
    """Return the position after the number at `at` (-1: none, or one for the exact path), mantissa and exponent."""
    sign = 1 - 2 * int(text.bytes[at] == MINUS)
    at += sign < 0
    digits, mantissa = _digits(text.words, at)
    if digits == 0 or digits > MAX_DIGITS or (digits > 1 and text.bytes[at] == ZERO):
        return -1, 0, 0
    at += digits
    exponent = 0
    if text.bytes[at] == POINT:
        places, part = _digits(text.words, at + 1)
        if places == 0:
            return -1, 0, 0
        if digits + places > MAX_DIGITS and (mantissa != 0 or places - _zeros(text.bytes, at + 1) > MAX_DIGITS):
            return -1, 0, 0
        mantissa = mantissa * _TEN[min(places, MAX_DIGITS - 1)] + part
        exponent = -places
        at += places + 1
    if mantissa < 0:
        return -1, 0, 0
    if text.bytes[at] | 32 == SMALL_E:
        at, power = _power(text.bytes, at + 1)
        exponent += power
    return at, sign * mantissa, exponent


@inlined
def _digits(words: UInt64, at: int) -> tuple[int, int]:
    """Return how many digits there are at `at`, and their value, modulo 2**64."""
    count, value = _eight_digits(words[at])
    more = count
    while more == 8:
        more, low = _eight_digits(words[at + count])
        value = value * _TEN[more] + low
        count += more
    return count, value


@inlined
def _eight_digits(word: np.uint64) -> tuple[np.int64, np.int64]:
    """Return how many of a word's bytes, from the first, are digits, and the value of these, without a branch."""
    value = word ^ np.uint64(0x3030303030303030)  # digits become 0 to 9
    over = value + np.uint64(0x7676767676767676)  # a byte above 9 gets its high bit, a carry spoils later bytes only
    other = ((over | value) & np.uint64(0x8080808080808080)) >> np.uint64(7)
    below = (other & (~other + np.uint64(1))) - np.uint64(1)  # ones in the bytes before the first other one
    count = ((below & np.uint64(0x0101010101010101)) * np.uint64(0x0101010101010101)) >> np.uint64(56)
    half = np.uint64(32) - (count << np.uint64(2))
    value = (value << half) << half  # zeros in front; a shift by all 64 bits would do nothing
    value = value * np.uint64(10) + (value >> np.uint64(8))  # pairs, in every second byte
    ends = (value & np.uint64(0x000000FF000000FF)) * np.uint64(0x000F424000000064)
    middle = ((value >> np.uint64(16)) & np.uint64(0x000000FF000000FF)) * np.uint64(0x0000271000000001)
    return np.int64(count), np.int64((ends + middle) >> np.uint64(32))


@row_kernel
def _zeros(text: UInt8, at: int) -> int:
    first = at
    while text[at] == ZERO:
        at += 1
    return at - first


@row_kernel
def _power(text: UInt8, at: int) -> tuple[int, int]:
    sign = text[at]
    at += int(sign in (MINUS, PLUS))
    first = at
    power = 0
    while ZERO <= text[at] <= NINE and at - first < 3:
        power = 10 * power + (text[at] - ZERO)
        at += 1
    if at == first or ZERO <= text[at] <= NINE:
        return -1, 0
    return at, (-power if sign == MINUS else power)


@inlined
def _float32(mantissa: int, exponent: int) -> tuple[np.float32, bool]:
    """Return mantissa * 10**exponent as float32, by way of the nearest double; False where that is not certain."""
    if exponent < -22 or exponent > 22:
        return np.float32(0.0), False
    value = mantissa / _TEN_EXACT[-exponent] if exponent < 0 else mantissa * _TEN_EXACT[exponent]
    if -_EXACT <= mantissa <= _EXACT:
        return np.float32(value), True
    nearest = np.float32(value * (1.0 - _MARGIN))
    return nearest, bool(nearest == np.float32(value * (1.0 + _MARGIN)))


@row_kernel
def string_end(text: UInt8, at: int) -> int:
    """Return where the string from `at` has its closing quote; -1 for one with escapes, or that is no good text."""
    first = at
    ascii_only = True
    while text[at] != QUOTE:
        if text[at] < 32 or text[at] == BACKSLASH:
            return -1
        ascii_only &= text[at] < 128
        at += 1
    return at if ascii_only or valid_utf8(text, first, at) else -1


@row_kernel
def valid_utf8(text: UInt8, at: int, end: int) -> bool:
    """Whether text[at:end] is UTF-8 (RFC 3629: shortest forms only, no surrogates, nothing past U+10FFFF)."""
    while at < end:
        c = text[at]
        if c < 0x80:
            at += 1
            continue
        if c < 0xC2 or c > 0xF4:
            return False
        more = 1 if c < 0xE0 else 2 if c < 0xF0 else 3
        if at + more >= end:
            return False
        second = text[at + 1]
        if (c == 0xE0 and second < 0xA0) or (c == 0xED and second > 0x9F):
            return False
        if (c == 0xF0 and second < 0x90) or (c == 0xF4 and second > 0x8F):
            return False
        for k in range(1, more + 1):
            if text[at + k] & 0xC0 != 0x80:
                return False
        at += more + 1
    return True
