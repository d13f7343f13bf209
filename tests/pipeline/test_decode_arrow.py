import json
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from decode_cases import bits, dead_of, one, polled_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import FieldMapping, decode
from pipeline.state import AssetTable
from pipeline.values import Quality

OK, ABSENT, NON_FINITE, OUT_OF_RANGE = 0, int(Quality.ABSENT), int(Quality.NON_FINITE), int(Quality.OUT_OF_RANGE)
WIDE = FieldMapping(("a", "b"), format="arrow", time_unit="ms", low=(-10.0, -10.0), high=(10.0, 1e300))
LONG = FieldMapping(("a", "b"), format="arrow", layout="long", time_unit="s")
T0_NS = 1_790_000_000_000_000_000
T0_MS = T0_NS // 10**6


def stream(columns, rows_per_batch=None, **options):
    """An Arrow IPC stream of a table's columns."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows_per_batch)
    return sink.getvalue().to_pybytes()


def wide(**columns):
    return {"asset": ["p1", "p2"], "ts": [T0_MS, T0_MS + 1], "a": [1.5, None], "b": [float("nan"), 3.0], **columns}


def test_a_wide_table_gives_a_row_per_row_with_masks_for_what_is_not_there():
    rows, dead = one(stream(wide(extra=["x", "y"])), WIDE)
    assert dead == []
    assert rows == [
        (100, 0, "p1", T0_NS, [1.5, 0.0], [OK, NON_FINITE]),
        (100, 1, "p2", T0_NS + 10**6, [0.0, 3.0], [ABSENT, OK]),
    ]


def test_a_long_table_gives_rows_of_one_channel_each():
    columns = {"asset": [7, 7, 8], "ts": [1, 2, 3], "sensor": ["b", "a", "c"], "value": [1, None, 3]}
    rows, dead = one(stream(columns), LONG)
    assert rows == [
        (100, 0, "7", 10**9, [0.0, 1.0], [ABSENT, OK]),
        (100, 1, "7", 2 * 10**9, [0.0, 0.0], [ABSENT, ABSENT]),
    ]
    assert [(d.row, d.reason) for d in dead] == [(2, "unknown_sensor")]
    assert json.loads(dead[0].value) == {"asset": 8, "ts": 3, "sensor": "c", "value": 3}


@pytest.mark.parametrize(
    "times",
    [
        pa.array([T0_NS, T0_NS + 10**9]).cast(pa.timestamp("ns")),
        pa.array([T0_MS, T0_MS + 1000]).cast(pa.timestamp("ms", "Europe/Berlin")),
        pa.array([T0_MS, T0_MS + 1000]),
        pa.array([T0_MS, T0_MS + 1000], pa.uint64()),
        pa.array([float(T0_MS), T0_MS + 1000.0]),
    ],
    ids=lambda times: str(times.type),
)
def test_times_of_any_unit_and_zone_are_the_same_instants(times):
    rows, dead = one(stream(wide(ts=times)), WIDE)
    assert [row[3] for row in rows] == [T0_NS, T0_NS + 10**9]
    assert dead == []


def test_times_as_text_are_read_where_the_mapping_says_iso():
    mapping = FieldMapping(("a", "b"), format="arrow", time_unit="iso")
    texts = [
        "2026-09-21T14:13:20.000000001+02:00",
        "2026-09-21t12:13:20z",
        "yesterday",
        None,
        "2026-09-21 12:13:20.1234567895",
    ]
    table = pa.table(wide(asset=["p"] * 5, ts=texts, a=[1.0] * 5, b=[None] * 5))
    whole = datetime(2026, 9, 21, 12, 13, 20, tzinfo=UTC)
    ns = int(whole.timestamp()) * 10**9
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        cast = table.set_column(1, "ts", table.column("ts").cast(kind))
        rows, dead = one(stream(cast.slice(0, 5)), mapping)
        assert [row[3] for row in rows] == [ns + 1, ns, ns + 123_456_790]
        assert [(d.row, d.reason) for d in dead] == [(2, "bad_time"), (3, "no_time")]


def test_a_date_is_its_midnight():
    days = pa.array([date(2026, 9, 21), date(1970, 1, 2)])
    rows, _ = one(stream(wide(ts=days)), WIDE)
    assert rows[1][3] == 86_400 * 10**9
    assert rows[0][3] % (86_400 * 10**9) == 0


@pytest.mark.parametrize(
    "assets",
    [
        pa.array(["1", "2"]),
        pa.array(["1", "2"], pa.large_string()),
        pa.array(["1", "2"]).dictionary_encode(),
        pa.array([1, 2], pa.int8()),
        pa.array([1, 2], pa.uint64()),
        pa.array([1, 2]).dictionary_encode(),
    ],
    ids=lambda assets: str(assets.type),
)
def test_assets_are_text_or_whole_numbers(assets):
    rows, dead = one(stream(wide(asset=assets)), WIDE)
    assert [row[2] for row in rows] == ["1", "2"]
    assert dead == []


def test_rows_without_asset_or_time_are_dead_letters_of_their_own_as_json():
    columns = {
        "asset": [None, "", "p", "p", "p"],
        "ts": [T0_MS, T0_MS, None, 2**62, T0_MS],
        "a": [1.0, float("nan"), 3.0, 4.0, 5.0],
        "when": pa.array([0, 1, 2, 2**62, 4]).cast(pa.timestamp("ns", "UTC")),
        "raw": [b"x", None, None, None, None],
    }
    rows, dead = one(stream(columns), WIDE)
    assert [row[:2] for row in rows] == [(100, 4)]
    assert [(d.offset, d.row, d.reason) for d in dead] == [
        (100, 0, "no_asset"),
        (100, 1, "no_asset"),
        (100, 2, "no_time"),
        (100, 3, "bad_time"),
    ]
    first = json.loads(dead[0].value)
    assert (first["ts"], first["a"], first["when"]) == (T0_MS, 1.0, "1970-01-01 00:00:00.000000000")
    assert str(2**62) in dead[3].detail


def test_rows_ahead_of_the_log_are_dead_letters_unless_the_log_has_no_time():
    mapping = FieldMapping(("a",), format="arrow", time_unit="ms", max_ahead_ns=10**9)
    message = stream({"asset": ["p", "p"], "ts": [T0_MS + 1000, T0_MS + 1001], "a": [1, 2]})
    rows, dead = one(message, mapping, log_ns=T0_NS)
    assert [row[1] for row in rows] == [0]
    assert [(d.row, d.reason) for d in dead] == [(1, "future")]
    assert "1.001 s" in dead[0].detail
    assert len(one(message, mapping)[0]) == 2


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"asset": ["p"], "time": [1], "a": [1.0]}, "'ts'"),
        ({"asset": ["p"], "ts": [1], "c": [1.0]}, "'a', 'b'"),
        ({"asset": [1.5], "ts": [1], "a": [1.0]}, "text or integers"),
        ({"asset": ["p"], "ts": ["1"], "a": [1.0]}, "time_unit ms"),
        ({"asset": ["p"], "ts": [True], "a": [1.0]}, "time_unit ms"),
        ({"asset": ["p"], "ts": [1], "a": ["1.0"]}, "'a' must hold numbers"),
        ({"asset": ["p"], "ts": [1], "a": [True]}, "'a' must hold numbers"),
        (pa.table([["p"], ["q"], [1], [1.0]], names=["asset", "asset", "ts", "a"]), "'asset'"),
        (pa.table([["p"], [1], [1.0], [1.0]], names=["asset", "ts", "a", "a"]), "more than one column 'a'"),
    ],
)
def test_a_table_that_does_not_fit_is_one_dead_letter_that_lists_its_columns(columns, says):
    message = stream(columns)
    rows, dead = one(message, WIDE)
    assert rows == []
    assert [(d.row, d.reason, d.value) for d in dead] == [(-1, "wrong_columns", message)]
    assert says in dead[0].detail
    assert "'asset' (" in dead[0].detail


def test_a_channel_that_has_no_column_or_an_empty_one_is_absent():
    for columns in (wide(b=pa.nulls(2)), {k: v for k, v in wide().items() if k != "b"}):
        rows, dead = one(stream(columns), WIDE)
        assert [row[5] for row in rows] == [[OK, ABSENT], [ABSENT, ABSENT]]
        assert dead == []


def test_the_asset_may_be_the_message_key_or_one_for_all():
    columns = {k: v for k, v in wide().items() if k != "asset"}
    by_key = FieldMapping(("a", "b"), format="arrow", time_unit="ms", asset="@key")
    fixed = FieldMapping(("a", "b"), format="arrow", time_unit="ms", asset="", asset_value="pümp")
    assert [row[2] for row in one(stream(columns), by_key, key="kл".encode())[0]] == ["kл", "kл"]
    assert [row[2] for row in one(stream(columns), fixed)[0]] == ["pümp", "pümp"]
    assert [d.reason for d in one(stream(columns), by_key)[1]] == ["no_asset"]
    assert [d.reason for d in one(stream(columns), by_key, key=b"\xff")[1]] == ["no_asset"]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16(), pa.int8(), pa.int64(), pa.uint32()])
def test_channels_of_any_number_type_become_float32(kind):
    column = pa.array(np.array([1, 2], kind.to_pandas_dtype()))
    rows, _ = one(stream(wide(a=column)), WIDE)
    assert [row[4][0] for row in rows] == [1.0, 2.0]


def test_numbers_beyond_float32_are_not_finite_and_large_integers_round_as_in_json():
    mapping = FieldMapping(("a", "b"), format="arrow", time_unit="ms")
    odd = 9_007_199_791_611_905  # as double it lies between two floats, and rounds to even, up or down
    rows, _ = one(stream(wide(a=[1e39, -1e39], b=pa.array([odd, -odd]))), mapping)
    assert [row[5][0] for row in rows] == [NON_FINITE, NON_FINITE]
    assert rows[0][4][1] == float(np.float32(float(odd)))


@pytest.mark.parametrize("message", [b"", None, b"PAR1", b'{"asset":"p"}', b"\xff\xff\xff\xff"])
def test_a_message_that_is_no_arrow_stream_is_a_dead_letter(message):
    rows, dead = one(message, WIDE)
    assert rows == []
    assert [(d.row, d.reason, d.value) for d in dead] == [(-1, "not_arrow" if message else "empty", message or b"")]


def test_a_table_without_rows_is_empty_and_a_long_message_is_too_large():
    message = stream(wide())
    short = FieldMapping(("a", "b"), format="arrow", max_bytes=100)
    none = stream(pa.table(wide()).slice(0, 0))
    assert [d.reason for d in one(none, WIDE)[1]] == ["empty"]
    assert [(d.reason, d.value) for d in one(message, short)[1]] == [("too_large", message)]


def test_no_damage_to_a_message_goes_further_than_its_own_dead_letter():
    """Every cut, and a changed byte at every place, gives rows or dead letters and leaves the next message alone."""
    good = stream(wide())
    damaged = [good[:at] for at in range(0, len(good), 3)]
    damaged += [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in range(len(good))]
    table = AssetTable({})
    for message in damaged:
        decoded = decode(polled_of([message, good]), WIDE, table)
        last = [row[:2] for row in rows_of(decoded, table) if row[0] == 101]
        assert last == [(101, 0), (101, 1)]
        first = {row[1] for row in rows_of(decoded, table) if row[0] == 100} | {d.row for d in decoded.dead}
        assert first in ({0, 1}, {-1})


def test_batches_and_compression_change_nothing():
    columns = wide()
    plain = one(stream(columns), WIDE)
    assert one(stream(columns, rows_per_batch=1), WIDE) == plain
    assert one(stream(columns, compression="zstd"), WIDE) == plain


values = st.one_of(st.none(), st.floats(), st.floats(width=32), st.floats(-20, 20))
rows = st.tuples(
    st.sampled_from(["p1", "p2", "p3", "", None]),
    st.one_of(st.none(), st.integers(T0_MS - 5, T0_MS + 1005), st.just(2**62)),
    values,
    values,
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(rows, min_size=1, max_size=6), min_size=1, max_size=4))
def test_arrow_and_json_give_the_same_rows_and_reasons(batches):
    limits = {"low": (-10.0, -10.0), "high": (10.0, 1e300), "time_unit": "ms", "max_ahead_ns": 10**9}
    names = ("asset", "ts", "a", "b")
    types = (pa.string(), pa.int64(), pa.float64(), pa.float64())
    arrow, text = [], []
    for batch in batches:
        arrow.append(
            stream(pa.table([pa.array(c, t) for c, t in zip(zip(*batch, strict=True), types, strict=True)], names))
        )
        text.append(json.dumps([dict(zip(names, row, strict=True)) for row in batch]).encode())
    results = []
    for kind, messages in (("arrow", arrow), ("json", text)):
        table = AssetTable({})
        decoded = decode(polled_of(messages, log_ns=T0_NS), FieldMapping(("a", "b"), format=kind, **limits), table)
        results.append((bits(decoded)[0], table.names, [d[:3] for d in dead_of(decoded)]))
    assert results[0] == results[1]


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_plain_floats_are_read_in_one_pass_and_give_what_any_other_layout_of_them_gives(rows):
    g = np.random.default_rng(rows)
    columns = {"asset": [f"p{i % 7}" for i in range(rows)], "ts": T0_MS + np.arange(rows)}
    columns |= {name: g.normal(0, 6, rows).astype(np.float32) for name in ("b", "other", "a")}
    columns["a"][:: max(rows // 3, 1)] = [np.nan, -0.0, np.inf, 0.5][: len(columns["a"][:: max(rows // 3, 1)])]
    plain = pa.table(columns)
    expected, _ = one(stream(plain.set_column(2, "b", plain["b"].cast(pa.float64()))), WIDE)
    assert len(expected) == rows
    for laid_out in (stream(plain), stream(plain, compression="lz4"), stream(plain, rows_per_batch=5)):
        assert one(laid_out, WIDE) == (expected, [])
    damaged = plain.set_column(0, "asset", pa.array(["", *columns["asset"][1:]]))
    found, dead = one(stream(damaged), WIDE)
    assert (found, [d.row for d in dead]) == (expected[1:], [0])
