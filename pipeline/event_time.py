"""Event times to int64 nanoseconds UTC, exactly: what was written is what it means.

Numbers are decimals: 1790000000.1234567 in seconds is that instant to the last digit, not the nearest double, and
what is finer than a nanosecond rounds half to even. Each rule stands twice: in Python for the exact path, which has
all the digits it wants, and as a numba kernel that says when a time needs it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

import numpy as np
from numba import njit

from pipeline.mapping import MAX_TS_NS
from pipeline.values import Bool, Float64, Int64, UInt8

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,18}))?(?:[Zz]|([+-])(\d\d):(\d\d))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POW10 = 10 ** np.arange(19, dtype=np.int64)
_TOO_FAR = 20  # power of ten that is past MAX_TS_NS for certain


def number_ns(text: str, digits: int) -> int | None:
    """Return the number that `text` names, in units of 10**`digits` ns, as ns rounded half to even.

    None where it is no finite number, or one so far from 0 that it is no time.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    sign, figures, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    ns = Decimal((sign, figures, exponent + digits))  # built, not computed: no context rounds it
    if number and ns.adjusted() > _TOO_FAR:
        return None
    return int(ns.to_integral_value(ROUND_HALF_EVEN)) if number else 0


def iso_ns(text: str) -> int | None:
    """Return the time that an RFC 3339 text names, in ns; without an offset it is UTC. None where it is no such text.

    A blank may stand for the T. Fractions beyond nanoseconds round half to even.
    """
    found = _ISO.fullmatch(text)
    if found is None:
        return None
    *civil, fraction, sign, hours, minutes = found.groups()
    try:
        year, month, day, hour, minute, second = map(int, civil)
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    except ValueError:
        return None
    ns = (whole.days * 86_400 + whole.seconds) * 10**9
    if fraction:
        ns += number_ns(f"0.{fraction}", 9) or 0
    if sign is None:
        return ns
    if int(hours) > 23 or int(minutes) > 59:
        return None
    ahead = (int(hours) * 60 + int(minutes)) * 60 * 10**9
    return ns - ahead if sign == "+" else ns + ahead


def integers_ns(value: Int64, digits: int, origin_ns: int) -> tuple[Int64, Bool]:
    """Return int64 numbers of units of 10**`digits` ns since `origin_ns` in ns, and which of them are in range."""
    return _integers_ns(value, 10**digits, origin_ns)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True)
def integer_ns(value: int, factor: int, origin_ns: int) -> tuple[int, bool]:
    """Return a number of units of `factor` ns since `origin_ns` in ns, and whether it is in range. For kernels."""
    room = MAX_TS_NS // factor
    fits = -room <= value <= room
    ns = (value if fits else 0) * factor + origin_ns
    return ns, fits and -MAX_TS_NS <= ns <= MAX_TS_NS


@njit(nogil=True, cache=True)
def _integers_ns(value: Int64, factor: int, origin_ns: int) -> tuple[Int64, Bool]:
    ns = np.empty(len(value), np.int64)
    known = np.empty(len(value), np.bool_)
    for i in range(len(value)):
        ns[i], known[i] = integer_ns(value[i], factor, origin_ns)
    return ns, known


def floats_ns(value: Float64, digits: int, origin_ns: int) -> tuple[Int64, Bool]:
    """Return float64 numbers of units of 10**`digits` ns since `origin_ns` in ns, and which of them are in range.

    A double is taken for the shortest decimal it can stand for, as in text: seconds of today come out in whole
    microseconds (doubles there are 0.24 µs apart), not with the nanoseconds of the double's own error.
    """
    fits = np.abs(value) <= float(MAX_TS_NS // 10**digits)  # False for NaN
    number = np.where(fits, value, 0.0)
    whole = np.floor(number)
    places = np.floor(-np.log10(np.spacing(np.abs(number)))).clip(0, digits).astype(np.int64)
    part = np.rint((number - whole) * 10.0**places).astype(np.int64) * _POW10[digits - places]
    ns = whole.astype(np.int64) * 10**digits + part + origin_ns
    return ns, fits & (np.abs(ns) <= MAX_TS_NS)


def texts_ns(text: UInt8, first: Int64, given: Bool) -> tuple[Int64, Bool]:
    """Return the times that RFC 3339 texts name in ns, and which of them do; text i is text[first[i]:first[i + 1]]."""
    ns, known = _scan_isos_ns(text, first, given)
    for i in np.flatnonzero(given & ~known):
        exact = iso_ns(text[first[i] : first[i + 1]].tobytes().decode())
        if exact is not None and abs(exact) <= MAX_TS_NS:
            ns[i], known[i] = exact, True
    return ns, known


@njit(nogil=True, cache=True)
def _scan_isos_ns(text: UInt8, first: Int64, given: Bool) -> tuple[Int64, Bool]:
    ns = np.zeros(len(given), np.int64)
    known = np.zeros(len(given), np.bool_)
    for i in range(len(given)):
        if given[i]:
            ns[i], known[i] = scan_iso_ns(text, first[i], first[i + 1])
    return ns, known


@njit(nogil=True, cache=True)
def scan_number_ns(mantissa: int, exponent: int, digits: int) -> tuple[int, bool]:
    """Return mantissa * 10**exponent units of 10**digits ns in ns; False where that needs the exact path."""
    shift = exponent + digits
    if shift > 18 or shift < -18:
        return 0, False
    if shift >= 0:
        if abs(mantissa) > MAX_TS_NS // _POW10[shift]:
            return 0, False
        return mantissa * _POW10[shift], True
    divisor = _POW10[-shift]
    whole = mantissa // divisor
    rest = mantissa - whole * divisor
    if 2 * rest > divisor or (2 * rest == divisor and whole & 1):
        whole += 1
    return whole, True


@njit(nogil=True, cache=True)
def scan_iso_ns(text: UInt8, at: int, end: int) -> tuple[int, bool]:
    """Return the time that text[at:end] names in ns; False where that needs the exact path."""
    if end - at < 19 or not _is_civil(text, at):
        return 0, False
    year = 100 * _two(text, at) + _two(text, at + 2)
    month, day = _two(text, at + 5), _two(text, at + 8)
    hour, minute, second = _two(text, at + 11), _two(text, at + 14), _two(text, at + 17)
    if year < 1824 or year > 2115 or month < 1 or month > 12 or day < 1 or day > _days_in(year, month):
        return 0, False
    if hour > 23 or minute > 59 or second > 59:
        return 0, False
    ns = (_day_number(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000_000_000
    at += 19
    if at < end and text[at] == 46:  # .
        point = at + 1
        at = point
        fraction = 0
        while at < end and at - point < 9 and 48 <= text[at] <= 57:
            fraction = 10 * fraction + text[at] - 48
            at += 1
        if at == point:
            return 0, False
        ns += fraction * _POW10[9 - (at - point)]
    ahead, known = _offset_ns(text, at, end)
    return ns - ahead, known


@njit(nogil=True, cache=True)
def _is_civil(text: UInt8, at: int) -> bool:
    """Whether the 19 bytes at `at` look like dddd-dd-dd?dd:dd:dd with a T or a blank."""
    for i in range(19):
        c = text[at + i]
        if i == 4 or i == 7:
            fits = c == 45
        elif i == 10:
            fits = c == 84 or c == 32
        elif i == 13 or i == 16:
            fits = c == 58
        else:
            fits = 48 <= c <= 57
        if not fits:
            return False
    return True


@njit(nogil=True, cache=True)
def _offset_ns(text: UInt8, at: int, end: int) -> tuple[int, bool]:
    """Return how far text[at:end] (nothing, Z, +hh:mm or -hh:mm) is ahead of UTC; False where it is none of these."""
    if at == end or (text[at] == 90 and at + 1 == end):
        return 0, True
    sign = text[at]
    if end - at != 6 or (sign != 43 and sign != 45) or text[at + 3] != 58:
        return 0, False
    for i in (1, 2, 4, 5):
        if not 48 <= text[at + i] <= 57:
            return 0, False
    hour, minute = _two(text, at + 1), _two(text, at + 4)
    if hour > 23 or minute > 59:
        return 0, False
    ahead = (hour * 60 + minute) * 60_000_000_000
    return (ahead if sign == 43 else -ahead), True


@njit(nogil=True, cache=True)
def _two(text: UInt8, at: int) -> int:
    return int(10 * (text[at] - 48) + (text[at + 1] - 48))


@njit(nogil=True, cache=True)
def _days_in(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@njit(nogil=True, cache=True)
def _day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar; the year is taken to start in March, so leap days end it."""
    y = year - (1 if month <= 2 else 0)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return 365 * y + y // 4 - y // 100 + y // 400 + day_of_year - 719_468
