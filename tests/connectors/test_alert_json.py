import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_cases import an_alert

import connectors
from connectors.alert_json import (
    alert_schema,
    cloud_event_headers,
    dead_letter_headers,
    decode_alert,
    decode_dead_letter,
    encode_alert,
    encode_dead_letter,
    rfc3339,
    schema_text,
)
from pipeline.errors import SchemaError
from pipeline.values import Alert, DeadLetter, Position, TopChannel

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ALERTS = st.builds(
    Alert,
    id=TEXT,
    seq=st.integers(0, 2**31),
    feed=TEXT,
    asset=TEXT,
    kind=TEXT,
    state=st.sampled_from(["open", "updated", "resolved"]),
    reason=TEXT,
    severity=TEXT,
    ts_ns=INT64,
    opened_ns=INT64,
    start_ns=INT64,
    onset_ns=INT64,
    end_ns=st.none() | INT64,
    ratio=FINITE,
    peak_ratio=FINITE,
    threshold=FINITE,
    coverage=FINITE,
    top_channels=st.lists(st.builds(TopChannel, TEXT, FINITE, st.none() | FINITE, st.none() | FINITE), max_size=3).map(
        tuple
    ),
    model_id=TEXT,
    config_id=TEXT,
    evidence=st.builds(Position, TEXT, st.integers(0, 2**31 - 1), INT64, st.integers(0, 2**31 - 1)),
)
DEAD = st.builds(DeadLetter, TEXT, st.integers(0, 99), INT64, st.integers(-1, 9), TEXT, TEXT, st.binary(max_size=50))


@settings(deadline=None, max_examples=100)
@given(ALERTS)
def test_an_alert_comes_back_equal_and_encodes_to_the_same_bytes_again(alert):
    body = encode_alert(alert)
    assert decode_alert(body) == alert
    assert encode_alert(decode_alert(body)) == body
    assert b"\n" not in body


@settings(deadline=None, max_examples=50)
@given(DEAD)
def test_a_dead_letter_comes_back_equal(dead):
    body = encode_dead_letter(dead)
    assert decode_dead_letter(body) == dead
    assert b"\n" not in body


def test_what_is_not_a_number_is_null_on_the_wire_and_nan_again_for_the_reader():
    alert = an_alert(ratio=math.nan, peak_ratio=math.inf, top_channels=(TopChannel("a", math.nan, math.nan, 1.0),))
    record = json.loads(encode_alert(alert), parse_constant=pytest.fail)
    assert record["ratio"] is None
    assert record["peak_ratio"] is None
    back = decode_alert(encode_alert(alert))
    assert math.isnan(back.ratio)
    assert math.isnan(back.top_channels[0].share)
    assert back.top_channels[0].expected is None


def test_the_record_begins_with_its_version_and_says_times_twice():
    record = json.loads(encode_alert(an_alert()))
    assert list(record)[:8] == ["schema_version", "id", "seq", "feed", "asset", "kind", "state", "severity"]
    assert record["ts_ns"] == 1_700_000_000_123_456_789
    assert record["ts"] == "2023-11-14T22:13:20.123456789Z"
    assert record["end"] is None
    assert record["evidence"] == {"topic": "sensors", "partition": 2, "offset": 41, "row": 0}


def test_times_before_1970_are_written_too():
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"


def test_fields_of_a_later_minor_change_are_ignored():
    body = encode_alert(an_alert())
    assert decode_alert(body[:-1] + b',"hint":"new"}') == an_alert()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff{}",
        encode_alert(an_alert()).replace(b'"schema_version":1', b'"schema_version":2'),
        encode_alert(an_alert()).replace(b'"state":"open"', b'"state":"pending"'),
        encode_alert(an_alert()).replace(b'"seq":0,', b""),
    ],
)
def test_what_is_no_alert_of_this_version_is_refused_with_what_was_found(body):
    with pytest.raises(SchemaError, match="not an alert of schema version 1"):
        decode_alert(body)


def test_a_damaged_dead_letter_is_refused():
    with pytest.raises(SchemaError, match="not a dead letter"):
        decode_dead_letter(b'{"topic":1}')


def test_a_dead_letter_shows_text_where_the_bytes_are_utf8_and_bytes_always():
    record = json.loads(encode_dead_letter(DeadLetter("t", 0, 7, -1, "not_json", "why", "gr\u00fc\u00df".encode())))
    assert record["text"] == "gr\u00fc\u00df"
    assert json.loads(encode_dead_letter(DeadLetter("t", 0, 7, -1, "not_json", "why", b"\xff\x00")))["text"] is None


def test_the_headers_are_those_of_a_binary_cloud_event():
    headers = dict(cloud_event_headers(an_alert(state="resolved")))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"ab12:0",
        "ce_source": b"/midwatch/north%20line%2F1",
        "ce_type": b"io.midwatch.alert.resolved",
        "ce_subject": b"pump-7",
        "ce_time": b"2023-11-14T22:13:20.123456789Z",
        "content-type": b"application/json",
    }


def test_the_headers_of_a_dead_letter_say_where_it_came_from():
    headers = dict(dead_letter_headers(DeadLetter("sensors", 2, 41, -1, "not_json", "line 1: expected ...", b"x")))
    assert headers["midwatch_reason"] == b"not_json"
    assert headers["midwatch_offset"] == b"41"
    assert headers["midwatch_partition"] == b"2"


def test_the_committed_schema_is_the_one_that_the_code_writes():
    path = Path(connectors.__file__).parent / "schemas" / "alert.schema.json"
    assert path.read_bytes() == schema_text(), (
        "run: python -m connectors.alert_json > connectors/schemas/alert.schema.json"
    )


def test_the_schema_requires_every_field_that_is_written():
    record = json.loads(encode_alert(an_alert()))
    definition = alert_schema()["$defs"]["AlertRecord"]
    assert set(definition["required"]) == set(record) == set(definition["properties"])
