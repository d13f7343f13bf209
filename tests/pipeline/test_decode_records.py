import struct

import numpy as np
import pytest
from decode_cases import bits, dead_of, one, polled_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import FieldMapping, decode
from pipeline.errors import ConfigError
from pipeline.state import AssetTable
from pipeline.values import Quality

OK, ABSENT, NON_FINITE, OUT_OF_RANGE = (
    int(q) for q in (Quality.OK, Quality.ABSENT, Quality.NON_FINITE, Quality.OUT_OF_RANGE)
)
NAN, INF = float("nan"), float("inf")
T0_MS = 1_790_000_000_000
PACKED = FieldMapping(("a", "b"), format="records", time_unit="ms", low=(-10.0, -10.0), high=(10.0, 1e300))


def records(*rows, head="i"):
    return b"".join(struct.pack(f"<{head}q{len(row) - 1 - len(head)}f", *row) for row in rows)


def test_a_message_gives_a_row_for_each_of_its_records():
    message = records((7, T0_MS, 1.5, NAN), (-2, T0_MS + 1, 11.0, -0.0), (7, T0_MS + 2, -INF, 3e38))
    rows, dead = one(message, PACKED)
    assert dead == []
    assert rows == [
        (100, 0, "7", T0_MS * 10**6, [1.5, 0.0], [OK, ABSENT]),
        (100, 1, "-2", (T0_MS + 1) * 10**6, [0.0, 0.0], [OUT_OF_RANGE, OK]),
        (100, 2, "7", (T0_MS + 2) * 10**6, [0.0, float(np.float32(3e38))], [NON_FINITE, OK]),
    ]
    assert not np.signbit(rows[1][4][1])


def test_records_without_a_number_are_of_the_asset_that_the_key_or_the_mapping_names():
    message = records((T0_MS, 1.0, 2.0), (T0_MS, 3.0, 4.0), head="")
    by_key = FieldMapping(("a", "b"), format="records", time_unit="ms", asset="@key")
    rows, dead = one(message, by_key, key=b"pump-1")
    assert [row[2] for row in rows] == ["pump-1", "pump-1"]
    assert dead == []
    fixed = FieldMapping(("a", "b"), format="records", time_unit="ms", asset="", asset_value="press")
    assert [row[2] for row in one(message, fixed)[0]] == ["press", "press"]
    rows, dead = one(message, by_key, key=b"\xff")
    assert rows == []
    assert [(d.row, d.reason, d.value) for d in dead] == [(-1, "no_asset", message)]


def test_a_time_that_cannot_be_is_a_dead_letter_with_the_bytes_of_its_record():
    early, late, good = (1, 1 << 62, 1.0, 2.0), (2, T0_MS + 5000, 1.0, 2.0), (3, T0_MS, 1.0, 2.0)
    mapping = FieldMapping(("a", "b"), format="records", time_unit="ms", max_ahead_ns=10**9)
    rows, dead = one(records(early, late, good), mapping, log_ns=T0_MS * 10**6)
    assert [(row[1], row[2]) for row in rows] == [(2, "3")]
    assert [(d.row, d.reason, d.value) for d in dead] == [
        (0, "bad_time", records(early)),
        (1, "future", records(late)),
    ]
    assert "4611686018427387904" in dead[0].detail


@pytest.mark.parametrize("message", [None, b"", b"1234567", bytes(21)])
def test_a_message_that_is_no_whole_number_of_records_is_a_dead_letter(message):
    rows, dead = one(message, PACKED)
    assert rows == []
    reason = "not_records" if message else "empty"
    assert [(d.row, d.reason, d.value) for d in dead] == [(-1, reason, message or b"")]


def test_dead_letters_come_in_the_order_of_the_log():
    bad = (1, 1 << 62, 1.0, 2.0)
    polled = polled_of([records(bad, bad), b"x", records((1, 0, 0.0, 0.0), bad)])
    dead = decode(polled, PACKED, AssetTable({})).dead
    assert [(d.offset, d.row) for d in dead] == [(100, 0), (100, 1), (101, -1), (102, 1)]


def naive(message, mapping):
    """What each record says, one by one: rows without offset, and the rows that cannot be used."""
    rows, bad = [], []
    for row, at in enumerate(range(0, len(message), 20)):
        number, time, *values = struct.unpack_from("<iq2f", message, at)
        ns = time * 10**6
        if abs(ns) > 1 << 62:
            bad.append(row)
            continue
        quality = [
            ABSENT if np.isnan(v) else NON_FINITE if np.isinf(v) else OK if low <= v <= high else OUT_OF_RANGE
            for v, low, high in zip(values, mapping.low, mapping.high, strict=True)
        ]
        x = [v if q == OK else 0.0 for v, q in zip(values, quality, strict=True)]
        rows.append((row, str(number), ns, x, quality))
    return rows, bad


RECORD = st.tuples(
    st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]) | st.integers(-50, 50),
    st.integers(T0_MS, T0_MS + 99) | st.sampled_from([1 << 62, -(1 << 63), -1, (1 << 62) // 10**6 + 1]),
    st.floats(width=32),
    st.floats(width=32),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(RECORD, min_size=1, max_size=6) | st.none(), max_size=6), st.booleans(), st.data())
def test_a_poll_says_what_its_records_say_one_by_one_however_it_is_cut(messages, long, data):
    if long and messages:
        messages = [message and message * 800 for message in messages]  # more than one block
    bodies = [None if message is None else records(*message) for message in messages]
    table, again = AssetTable({}), AssetTable({})
    table.code("not a number")  # as from a restored state
    again.code("not a number")
    whole = decode(polled_of(bodies), PACKED, table)
    said = [naive(body or b"", PACKED) for body in bodies]
    rows = [(100 + i, *row) for i, (found, _) in enumerate(said) for row in found]
    assert rows_of(whole, table) == rows
    dead = [(100 + i, row) for i, (_, bad) in enumerate(said) for row in (bad if bodies[i] else [-1])]
    assert [(d.offset, d.row) for d in whole.dead] == dead
    cut = data.draw(st.integers(0, len(bodies)))
    parts = [
        decode(polled_of(some, first_offset=100 + at), PACKED, again)
        for at, some in ((0, bodies[:cut]), (cut, bodies[cut:]))
    ]
    assert [row for part in parts for row in rows_of(part, again)] == rows
    assert [d for part in parts for d in dead_of(part)] == dead_of(whole)
    assert again.names == table.names
    if cut == 0:
        assert bits(parts[1]) == bits(whole)


@pytest.mark.parametrize("wrong", [{"layout": "long"}, {"time_unit": "iso"}, {"values": "values"}])
def test_options_that_records_have_no_place_for_are_refused(wrong):
    with pytest.raises(ConfigError):
        FieldMapping(**{"channels": ("a",), "format": "records", "time_unit": "ms", **wrong})
