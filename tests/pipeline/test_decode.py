import json

import numpy as np
import pytest
from decode_cases import dead_of, one, polled_of, rows_of

from pipeline.decode import FieldMapping, decode
from pipeline.errors import ConfigError
from pipeline.state import AssetTable
from pipeline.values import Quality

OK, ABSENT, NON_FINITE, OUT_OF_RANGE = 0, int(Quality.ABSENT), int(Quality.NON_FINITE), int(Quality.OUT_OF_RANGE)
WIDE = FieldMapping(("a", "b"), values="values", time_unit="ms", low=(-100.0, -100.0), high=(100.0, 100.0))
TOP = FieldMapping(("a", "b"), fields=("A", "B"), time_unit="s")
LONG = FieldMapping(("a", "b"), layout="long", time_unit="ns")


def message(**fields):
    return json.dumps({"asset": "p1", "ts": 1000, **fields}).encode()


def dead(text, mapping=WIDE, **options):
    """The one dead letter of a message that gives nothing else; it holds the message as it came."""
    rows, letters = one(text, mapping, **options)
    assert rows == []
    assert [(d.row, d.value) for d in letters] == [(-1, text or b"")]
    assert (letters[0].topic, letters[0].partition, letters[0].offset) == ("feed", 3, 100)
    assert len(letters[0].detail) > 20
    return letters[0]


def test_wide_values_may_be_an_object_an_array_or_fields_of_the_message():
    expected = [(100, 0, "p1", 10**9, [1.5, -2.0], [OK, OK])]
    assert one(message(values={"b": -2, "a": 1.5, "c": 9}), WIDE) == (expected, [])
    assert one(message(values=[1.5, -2]), WIDE) == (expected, [])
    assert one(message(ts=1, B=-2, A=1.5, b=7), TOP) == (expected, [])


def test_a_long_message_is_a_row_of_one_channel():
    assert one(message(sensor="b", value=2.5), LONG)[0] == [(100, 0, "p1", 1000, [0.0, 2.5], [ABSENT, OK])]
    assert one(message(sensor="b", value=None), LONG)[0] == [(100, 0, "p1", 1000, [0.0, 0.0], [ABSENT, ABSENT])]


def test_what_is_not_a_good_reading_is_masked_with_its_reason_and_zero():
    cases = {"null": ABSENT, "NaN": NON_FINITE, "-Infinity": NON_FINITE, "1e39": NON_FINITE, "1e999": NON_FINITE}
    cases |= {"100.01": OUT_OF_RANGE, "-1000": OUT_OF_RANGE, "1" + "0" * 400: NON_FINITE}
    for text, reason in cases.items():
        for values in (f'{{"a":{text},"b":1}}', f"[{text},1]"):
            rows, letters = one(f'{{"asset":"p1","ts":1,"values":{values}}}'.encode(), WIDE)
            assert rows == [(100, 0, "p1", 10**6, [0.0, 1.0], [reason, OK])]
            assert letters == []
    assert one(message(values={}), WIDE)[0][0][5] == [ABSENT, ABSENT]


@pytest.mark.parametrize("value", ["1.5", True, {}, [1]])
def test_a_reading_that_is_no_number_costs_the_row_and_names_the_channel(value):
    assert dead(message(values={"a": 1, "b": value})).reason == "bad_value"
    letter = dead(message(values=[1, value]))
    assert letter.reason == "bad_value"
    assert "'b'" in letter.detail


@pytest.mark.parametrize("values", [[1], [1, 2, 3], [], "x", 5, None])
def test_values_of_another_shape_cost_the_row(values):
    assert dead(message(values=values)).reason == "bad_value"
    assert "'values'" in dead(message()).detail


def test_times_are_exact_in_every_unit():
    ns = 1_790_000_000_123_456_789
    for unit, digits, text in (
        ("ns", 0, "1790000000123456789"),
        ("us", 3, "1790000000123456.789"),
        ("ms", 6, "1790000000123.456789"),
        ("s", 9, "1790000000.123456789"),
        ("s", 9, "1790000000123456789e-9"),
        ("s", 9, "1790000000.12345678900000000000"),
    ):
        mapping = FieldMapping(("a",), time_unit=unit)
        assert one(f'{{"asset":"p","ts":{text},"a":1}}'.encode(), mapping)[0][0][3] == ns
        shifted = FieldMapping(("a",), time_unit=unit, time_origin_ns=-ns)
        assert one(f'{{"asset":"p","ts":{text},"a":1}}'.encode(), shifted)[0][0][3] == 0
        assert digits == {"ns": 0, "us": 3, "ms": 6, "s": 9}[unit]


def test_iso_times_have_an_offset_or_are_utc():
    mapping = FieldMapping(("a",), time_unit="iso")
    for text in (
        "1970-01-02T00:00:00Z",
        "1970-01-02 01:30:00.000+01:30",
        "1970-01-01T19:00:00-05:00",
        "1970-01-02 00:00:00",
    ):
        assert one(json.dumps({"asset": "p", "ts": text, "a": 1}).encode(), mapping)[0][0][3] == 86_400 * 10**9


@pytest.mark.parametrize(
    ("unit", "time"),
    [
        ("ms", "1000"),
        ("ms", True),
        ("ms", {}),
        ("ms", 1e30),
        ("ns", 2**62 + 1),
        ("s", float("nan")),
        ("iso", 1000),
        ("iso", "soon"),
        ("iso", "2026-02-30T00:00:00Z"),
        ("iso", "9999-01-01T00:00:00Z"),
    ],
)
def test_a_time_that_cannot_be_read_says_what_it_should_have_been(unit, time):
    letter = dead(message(ts=time, values=[1, 2]), FieldMapping(("a", "b"), values="values", time_unit=unit))
    assert letter.reason == "bad_time"
    assert "RFC 3339" in letter.detail if unit == "iso" else f"number of {unit}" in letter.detail


def test_a_message_without_time_lists_the_fields_it_has():
    letter = dead(b'{"asset":"p","time":1,"values":[1,2]}')
    assert letter.reason == "no_time"
    assert "'asset', 'time', 'values'" in letter.detail
    assert dead(message(ts=None, values=[1, 2])).reason == "no_time"


@pytest.mark.parametrize(
    ("asset", "name"), [("p 1", "p 1"), (7, "7"), (-7, "-7"), (12345678901234567890, "12345678901234567890")]
)
def test_assets_are_names_or_numbers(asset, name):
    assert one(message(asset=asset, values=[1, 2]), WIDE)[0][0][2] == name


def test_a_number_as_asset_is_its_text():
    assert one(b'{"asset":7.50,"ts":1,"values":[1,2]}', WIDE)[0][0][2] == "7.50"


@pytest.mark.parametrize("asset", ["", None, True, [], {}, float("nan"), "\ud800"])
def test_a_row_without_asset_is_a_dead_letter(asset):
    assert dead(message(asset=asset, values=[1, 2])).reason == "no_asset"


def test_the_asset_may_be_the_message_key_or_one_for_all():
    by_key = FieldMapping(("a",), asset="@key")
    fixed = FieldMapping(("a",), asset="", asset_value="the pump")
    text = b'{"ts":1,"a":1}'
    assert one(text, by_key, key="pümp".encode())[0][0][2] == "pümp"
    assert one(text, fixed)[0][0][2] == "the pump"
    for key in (b"", b"\xff"):
        assert dead(text, by_key, key=key).reason == "no_asset"
    assert dead(text, by_key).reason == "no_asset"


@pytest.mark.parametrize("sensor", ["c", "", None, 7, []])
def test_a_sensor_that_is_not_mapped_is_a_dead_letter(sensor):
    assert dead(message(sensor=sensor, value=1), LONG).reason == "unknown_sensor"
    assert dead(message(value=1), LONG).reason == "unknown_sensor"
    assert dead(message(sensor="a"), LONG).reason == "bad_value"


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"{",
        b'{"asset":"p1"',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"a":01}',
        b"5",
        b'"p"',
        b"null",
        b"[1",
        b"[1,]",
        b'["\xff"]',
    ],
)
def test_what_is_no_json_object_is_a_dead_letter(text):
    assert dead(text).reason == "not_json"


def test_what_is_empty_or_too_large_is_not_read():
    for text in (None, b""):
        assert dead(text).reason == "empty"
    assert dead(b"[]").reason == "empty"
    long = message(values=[1, 2])
    mapping = FieldMapping(("a", "b"), values="values", max_bytes=len(long) - 1)
    assert dead(long, mapping).reason == "too_large"
    assert len(one(long, FieldMapping(("a", "b"), values="values", max_bytes=len(long)))[0]) == 1


def test_an_array_is_several_rows_and_a_bad_one_costs_only_itself():
    bad = b'{"asset" : "p2", "ts":2, "values":["x",1]}'
    text = b' [ {"asset":"p1","ts":1,"values":[1,2]} , ' + bad + b', 5, {"asset":"p3","ts":3,"values":[3,4]}] '
    rows, letters = one(text, WIDE)
    assert [row[:4] for row in rows] == [(100, 0, "p1", 10**6), (100, 3, "p3", 3 * 10**6)]
    assert [(d.offset, d.row, d.reason, d.value) for d in letters] == [
        (100, 1, "bad_value", bad),
        (100, 2, "not_json", b"5"),
    ]
    nan = text.replace(b"[3,4]", b"[NaN,4]")
    assert [(d.row, d.value) for d in one(nan, WIDE)[1]] == [(1, bad), (2, b"5")]
    assert one(nan, WIDE)[0][1][5] == [NON_FINITE, OK]


def test_a_row_from_the_future_is_a_dead_letter_where_the_log_has_a_time():
    mapping = FieldMapping(("a", "b"), values="values", time_unit="ms", max_ahead_ns=2 * 10**9)
    text = message(ts=4001, values=[1, 2])
    letter = dead(text, mapping, log_ns=2 * 10**9)
    assert letter.reason == "future"
    assert "2.001 s" in letter.detail
    for log_ns in (0, 2 * 10**9 + 10**6):
        assert len(one(text, mapping, log_ns=log_ns)[0]) == 1
    rows, letters = one(b"[" + text + b"," + message(values=[1, 2]) + b"]", mapping, log_ns=2 * 10**9)
    assert [row[1] for row in rows] == [1]
    assert [(d.row, d.value) for d in letters] == [(0, text)]


def test_rows_and_dead_letters_stay_in_log_order():
    texts = [
        message(values=[1, 2]),
        b"x",
        b"[" + message(asset="q", values=[1, 2]) + b",1]",
        message(asset="r", values=[1, "x"]),
    ]
    texts.append(message(values=[3, 4]))
    table = AssetTable({})
    decoded = decode(polled_of(texts), WIDE, table)
    assert [row[:3] for row in rows_of(decoded, table)] == [(100, 0, "p1"), (102, 0, "q"), (104, 0, "p1")]
    assert [d[:3] for d in dead_of(decoded)] == [(101, -1, "not_json"), (102, 1, "not_json"), (103, -1, "bad_value")]
    assert table.names == ["p1", "q"]
    assert decoded.rows.continuity.tolist() == [0, 0, 0]


def test_nothing_polled_gives_nothing():
    for mapping in (WIDE, TOP, LONG, FieldMapping(("a",), format="arrow")):
        decoded = decode(polled_of([]), mapping, AssetTable({}))
        assert len(decoded.rows) == 0
        assert decoded.rows.x.shape == (0, len(mapping.channels))
        assert decoded.rows.asset.dtype == np.int32
        assert decoded.dead == []


def test_an_asset_too_many_stops_the_feed_with_the_key_to_change():
    table = AssetTable({}, max_assets=1)
    with pytest.raises(ConfigError, match="max_assets"):
        decode(polled_of([message(values=[1, 2]), message(asset="q", values=[1, 2])]), WIDE, table)


def test_deep_nesting_is_survived():
    assert dead(b"[" * 100_000).reason == "not_json"
    assert dead(b'{"x":' * 100_000).reason == "not_json"
    assert len(one(message(extra={"tags": [[{}]]}, values=[1, 2]), WIDE)[0]) == 1
