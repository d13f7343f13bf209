import math
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_decode import naive_iso

from pipeline.event_time import floats_ns, integers_ns, iso_ns, number_ns, scan_iso_ns, scan_number_ns, texts_ns
from pipeline.mapping import MAX_TS_NS, UNIT_DIGITS

SOME = settings(deadline=None, max_examples=200)
digits_of_unit = st.sampled_from(sorted(UNIT_DIGITS.values()))


def rounded(exact):
    """Half to even, as Python rounds fractions."""
    return round(exact)


@SOME
@given(st.integers(-(10**18), 10**18), st.integers(-25, 25), digits_of_unit)
def test_a_number_is_rounded_once_from_all_its_digits(mantissa, exponent, digits):
    exact = Fraction(mantissa) * Fraction(10) ** (exponent + digits)
    found = number_ns(f"{mantissa}e{exponent}", digits)
    if abs(exact) <= MAX_TS_NS:
        assert found == rounded(exact)
    else:
        assert found is None or found == rounded(exact)
    ns, known = scan_number_ns(mantissa, exponent, digits)
    if known:
        assert ns == rounded(exact)
    elif abs(exact) < MAX_TS_NS:
        assert abs(exponent + digits) > 18


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e99999999999999999999", "1e400", "x", ""])
def test_what_is_no_time_is_none(text):
    assert number_ns(text, 9) is None


@pytest.mark.parametrize("text", ["0", "-0.0", "0e999999", "1e-999999", "1e-999999999999999999"])
def test_what_is_next_to_nothing_is_zero(text):
    assert number_ns(text, 9) == 0


@SOME
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), digits_of_unit, st.integers(-MAX_TS_NS, MAX_TS_NS))
def test_integers_are_exact_or_out_of_range(values, digits, origin):
    ns, fits = integers_ns(np.array(values, np.int64), digits, origin)
    for value, got, ok in zip(values, ns.tolist(), fits.tolist(), strict=True):
        exact = value * 10**digits + origin
        if ok:
            assert got == exact
        else:
            assert abs(exact) > MAX_TS_NS or abs(value * 10**digits) > MAX_TS_NS - 10**digits


@SOME
@given(st.integers(0, 4 * 10**15))
def test_seconds_as_doubles_come_out_in_whole_microseconds(us):
    ns, fits = floats_ns(np.array([us / 1e6, -(us / 1e6)]), 9, 0)
    assert fits.all()
    if us < 2 * 10**15:
        assert ns.tolist() == [us * 1000, -us * 1000]
    else:  # past 2033 a double holds seconds no finer than half a microsecond
        assert abs(ns[0] - us * 1000) <= 1000


@SOME
@given(st.floats())
def test_a_double_is_read_within_its_own_spacing(value):
    ns, fits = floats_ns(np.array([value]), 9, 0)
    if not math.isfinite(value) or abs(value) > MAX_TS_NS / 1e9:
        assert not fits[0]
    elif fits[0]:
        assert abs(Fraction(int(ns[0])) - Fraction(value) * 10**9) <= max(1, 10 * Fraction(math.ulp(value)) * 10**9)


def scanned(text):
    data = np.frombuffer(b"<" + text.encode() + b">", np.uint8)
    return scan_iso_ns(data, 1, len(data) - 1)


def both(text):
    """The exact reading, after a check that the scanner gives the same or passes."""
    exact = iso_ns(text)
    assert exact == naive_iso(text)
    ns, known = scanned(text)
    assert not known or ns == exact
    return exact


@SOME
@given(
    st.datetimes(),
    st.sampled_from("T t"),
    st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+05:30"]),
    st.integers(0, 999_999_999),
    st.integers(0, 9),
)
def test_iso_times_are_read_as_python_reads_them(when, between, zone, fraction, places):
    part = f".{fraction:09d}"[: 1 + places] if places else ""
    text = when.replace(microsecond=0).isoformat().replace("T", between) + part + zone
    ahead = timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[4:])) if len(zone) == 6 else timedelta(0)
    seconds = (when.replace(microsecond=0, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC) - ahead) // timedelta(
        seconds=1
    )
    ns = seconds * 10**9 + int(f"{part[1:]:0<9}")
    assert both(text) == ns
    if 1824 <= when.year <= 2115 and between != "t" and zone != "z":
        assert scanned(text) == (ns, True)


WHOLE = "2024-02-29T23:59:59.123456789+05:30"


@SOME
@given(st.integers(0, len(WHOLE)), st.text(st.sampled_from("0123456789:-+TZtz. ５"), max_size=2), st.integers(0, 2))
def test_a_damaged_iso_time_reads_the_same_both_ways(at, inserted, dropped):
    both(WHOLE[:at] + inserted + WHOLE[at + dropped :])


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-29T00:00:00Z",
        "1900-02-29T00:00:00",
        "2026-13-01T00:00:00",
        "2026-00-10T00:00:00",
        "2026-04-31T00:00:00",
        "2026-01-01T24:00:00",
        "2026-01-01T00:60:00",
        "2026-01-01T00:00:60",
        "2026-01-01",
        "2026-01-01T00:00",
        "now",
        "",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+00:60",
        "2026-01-01T00:00:00+0000",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00Z ",
        " 2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.1234567890123456789",
    ],
)
def test_what_is_no_rfc_3339_time_is_none(text):
    assert both(text) is None


def test_fractions_finer_than_a_nanosecond_round_half_to_even():
    ends = [both(f"1970-01-01T00:00:00.00000000{tail}Z") for tail in ("05", "15", "050000001", "149999999")]
    assert ends == [0, 2, 1, 1]


def test_texts_of_a_column_are_read_by_either_way():
    texts = ["1970-01-01T00:00:01Z", "1970-01-01t00:00:02z", "soon", "0001-01-01T00:00:00Z", "1970-01-01 00:00:03"]
    data = "".join(texts).encode()
    first = np.cumsum([0, *map(len, texts)])
    given_here = np.array([True, True, True, True, False])
    ns, known = texts_ns(np.frombuffer(data, np.uint8), first, given_here)
    assert known.tolist() == [True, True, False, False, False]
    assert ns[:2].tolist() == [10**9, 2 * 10**9]
