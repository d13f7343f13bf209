import csv as stdlib_csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_cases import ARROW, HEADER, JSON, csv_file, drain, good_line, good_row, json_line, parquet_file, unpack
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.file_source import FileSource, message_format
from pipeline.decode import decode
from pipeline.errors import ConfigError, SchemaError, StateError
from pipeline.mapping import FieldMapping
from pipeline.state import AssetTable

# --- CSV


def test_csv_rows_come_in_batches_with_the_number_of_their_first_row(tmp_path):
    source = FileSource(csv_file(tmp_path, map(good_line, range(10_000))), ARROW)
    polled = source.poll(10_000, 0.0)
    assert [p.offset.tolist() for p in polled] == [[0, 4096, 8192]]
    assert polled[0].position == 10_000
    assert polled[0].log_ts_ns.tolist() == [0, 0, 0]
    assert drain(FileSource(tmp_path / "rows.csv", ARROW)) == [(i, good_row(i)) for i in range(10_000)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_either_line_end_and_none_after_the_last_line_will_do(tmp_path, end):
    path = csv_file(tmp_path, map(good_line, range(3)), end=end)
    path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    assert drain(FileSource(path, ARROW)) == [(i, good_row(i)) for i in range(3)]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = csv_file(tmp_path, [good_line(0)], header="\ufeff" + HEADER)
    assert drain(FileSource(path, ARROW)) == [(0, good_row(0))]


def test_cells_without_a_value_are_null_and_those_that_are_not_a_number_stay_so(tmp_path):
    lines = ["1,a,,x,NA", "2,a,NaN,x,-inf", '3,"a, b"," 1.5 ",x,+2e3', "4,,null,x,0"]
    rows = [row for _, row in drain(FileSource(csv_file(tmp_path, lines), ARROW))]
    assert [(r["temp"], r["vib"]) for r in rows[::2]] == [(None, None), (1.5, 2000.0)]
    assert math.isnan(rows[1]["temp"])
    assert rows[1]["vib"] == -math.inf
    assert [r["asset"] for r in rows] == ["a", "a", "a, b", ""]
    assert rows[3]["temp"] is None


BAD_LINES = [
    b"1,a,2",  # too few cells
    b"1,a,2,x,3,4",
    b"yesterday,a,2,x,3",
    b"1,a,Bad Input,x,3",
    b"1,a,2,x,0x1F",
    b'1,"a,2,x,3',  # a quote that is never closed
    b"1,\xff\xfe,2,x,3",
    b" ",
    b"99999999999999999999,a,2,x,3",
]


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_line_that_is_no_row_goes_on_as_it_came_and_shifts_nothing(tmp_path, bad, at):
    lines = [good_line(i).encode() for i in range(10)]
    lines[at] = bad
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), *lines, b""]))
    expected = [(i, good_row(i)) for i in range(10)]
    expected[at] = (at, bad)
    assert drain(FileSource(path, ARROW)) == expected


def test_a_blank_line_counts_but_is_nothing(tmp_path):
    lines = [good_line(0), "", "", good_line(3), ""]
    assert drain(FileSource(csv_file(tmp_path, lines), ARROW)) == [(0, good_row(0)), (3, good_row(3))]


def test_a_line_longer_than_a_message_may_be_comes_cut_by_itself(tmp_path):
    mapping = FieldMapping(channels=("temp", "vib"), format="arrow", max_bytes=2000)
    lines = [good_line(0), "1," + "a" * 3_000_000 + ",1,x,2", good_line(2)]
    rows = drain(FileSource(csv_file(tmp_path, lines), mapping))
    assert rows == [(0, good_row(0)), (1, lines[1].encode()[:2001]), (2, good_row(2))]


CELL = st.sampled_from(
    ["1", "-2.5", "", "NA", "nan", " 7 ", '"3"', "x", '"', "1;2", "1,2", "1e999", "é", "0x", "+4", "\t5"]
)


@settings(deadline=None, max_examples=40)
@given(lines=st.lists(st.tuples(CELL, CELL, CELL).map(",".join), max_size=8))
def test_bad_lines_change_no_other_line(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("csv")
    mapping = FieldMapping(channels=("temp",), format="arrow", time_unit="s")
    together = drain(FileSource(csv_file(folder, lines, "ts,asset,temp"), mapping))
    alone = [
        (i, row)
        for i, line in enumerate(lines)
        for _, row in drain(FileSource(csv_file(folder, [line], "ts,asset,temp"), mapping))
    ]
    assert str(together) == str(alone)
    for i, row in together:
        if isinstance(row, dict):
            cells = next(stdlib_csv.reader([lines[i]]))
            assert row["asset"] == cells[1]
            assert row["ts"] is None or str(row["ts"]) == str(float(cells[0]))


def test_missing_columns_are_named_with_those_that_were_found(tmp_path):
    path = csv_file(tmp_path, [], header="time,asset,temp")
    with pytest.raises(SchemaError, match=r"rows\.csv: no column 'ts', 'vib': found 'time', 'asset', 'temp'"):
        FileSource(path, ARROW)


def test_another_delimiter_is_guessed_in_the_message_and_used_when_told(tmp_path):
    path = csv_file(tmp_path, [good_line(0).replace(",", ";")], header=HEADER.replace(",", ";"))
    with pytest.raises(SchemaError, match="is the delimiter ';'"):
        FileSource(path, ARROW)
    assert drain(FileSource(path, ARROW, delimiter=";")) == [(0, good_row(0))]


def test_a_mapped_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="temp is there more than once"):
        FileSource(csv_file(tmp_path, [], header=HEADER + ",temp"), ARROW)


def test_long_csv_keeps_sensor_names_as_text(tmp_path):
    mapping = FieldMapping(
        channels=("temp",), format="arrow", layout="long", asset="", asset_value="p", time_unit="iso"
    )
    path = csv_file(tmp_path, ["2024-01-01T00:00:00Z,007,1.5"], header="ts,sensor,value")
    assert drain(FileSource(path, mapping)) == [(0, {"ts": "2024-01-01T00:00:00Z", "sensor": "007", "value": 1.5})]


# --- Parquet


def test_parquet_is_read_by_batches_of_the_mapped_columns(tmp_path):
    path = parquet_file(tmp_path / "rows.parquet", 0, 10_000, row_group_size=10_000)
    source = FileSource(path, ARROW)
    [polled] = source.poll(1, 0.0)
    assert len(unpack(polled.value[0])) == 4096
    assert list(unpack(polled.value[0])[0]) == ["asset", "ts", "temp", "vib"]
    assert drain(FileSource(path, ARROW)) == [(i, good_row(i)) for i in range(10_000)]


def test_a_folder_and_a_pattern_are_one_log_in_sorted_order(tmp_path):
    parquet_file(tmp_path / "log" / "date=2" / "a.parquet", 7, 5)
    parquet_file(tmp_path / "log" / "date=1" / "b.parquet", 0, 7)
    parquet_file(tmp_path / "log" / ".open" / "c.parquet", 0, 9)
    expected = [(i, good_row(i)) for i in range(12)]
    assert drain(FileSource(tmp_path / "log", ARROW)) == expected
    assert drain(FileSource(f"{tmp_path}/log/*/*.parquet", ARROW)) == expected


def test_every_file_of_a_folder_is_checked_before_anything_starts(tmp_path):
    parquet_file(tmp_path / "a.parquet", 0, 5)
    pq.write_table(pa.table({"ts": [1], "asset": ["a"], "temp": [1.0]}), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"b\.parquet: no column 'vib': found 'ts', 'asset', 'temp'"):
        FileSource(tmp_path, ARROW)


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(SchemaError, match=r"a\.parquet cannot be read as Parquet"):
        FileSource(tmp_path / "a.parquet", ARROW)


def test_dictionary_columns_come_as_their_values(tmp_path):
    names = pa.array(["p", "q", "p"]).dictionary_encode()
    path = parquet_file(tmp_path / "rows.parquet", 0, 3, asset=names)
    [polled] = FileSource(path, ARROW).poll(10, 0.0)
    assert pa.ipc.open_stream(polled.value[0]).schema.field("asset").type == pa.string()
    assert [row["asset"] for row in unpack(polled.value[0])] == ["p", "q", "p"]


def test_a_batch_larger_than_a_message_may_be_is_cut(tmp_path):
    mapping = FieldMapping(channels=("temp", "vib"), format="arrow", max_bytes=20_000)
    path = parquet_file(tmp_path / "rows.parquet", 0, 4_000)
    [polled] = FileSource(path, mapping).poll(4_000, 0.0)
    assert len(polled) > 1
    assert max(map(len, polled.value)) <= 20_000
    assert drain(FileSource(path, mapping)) == [(i, good_row(i)) for i in range(4_000)]


# --- NDJSON


def test_ndjson_lines_are_messages_numbered_from_0_with_blank_ones_left_out(tmp_path):
    path = tmp_path / "rows.ndjson"
    path.write_text(f"{json_line(0)}\nnot json\r\n\n{json_line(3)}")
    [polled] = FileSource(path, JSON).poll(100, 0.0)
    assert polled.offset.tolist() == [0, 1, 3]
    assert polled.value == [json_line(0).encode(), b"not json", json_line(3).encode()]
    assert polled.position == 4


def test_ndjson_without_the_mapped_fields_is_refused_with_those_found(tmp_path):
    path = tmp_path / "rows.ndjson"
    path.write_text('{"time": 1, "asset": "p", "temp": 1}\n{"pressure": 2}\n')
    with pytest.raises(SchemaError, match="no field ts in its first lines, only asset, pressure, temp, time"):
        FileSource(path, JSON)
    path.write_text('{"ts": 1, "asset": "p", "pressure": 2}\n')
    with pytest.raises(SchemaError, match="no field temp, vib"):
        FileSource(path, JSON)


def test_ndjson_may_leave_channels_out_of_single_lines(tmp_path):
    path = tmp_path / "rows.ndjson"
    path.write_text('{"ts": 1, "asset": "p", "vib": 1}\n')
    assert len(drain(FileSource(path, JSON))) == 1


# --- where reading goes on


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 4097, 8999, 9000])
@pytest.mark.parametrize("kind", ["csv", "parquet", "ndjson"])
def test_reading_goes_on_at_any_row(tmp_path, kind, at):
    if kind == "csv":
        source = FileSource(csv_file(tmp_path, map(good_line, range(9000))), ARROW)
    elif kind == "parquet":
        source = FileSource(parquet_file(tmp_path / "rows.parquet", 0, 9000, row_group_size=700), ARROW)
    else:
        path = tmp_path / "rows.ndjson"
        path.write_text("\n".join(map(json_line, range(9000))))
        source = FileSource(path, JSON)
    everything = drain(source)
    source.seek(source.topic, 0, at)
    assert drain(source) == everything[at:]
    assert len(everything) == 9000


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_is_shorter_than_the_saved_position_is_not_the_file_it_was(tmp_path, kind):
    path = csv_file(tmp_path, [good_line(0)]) if kind == "csv" else parquet_file(tmp_path / "a.parquet", 0, 1)
    source = FileSource(path, ARROW)
    source.seek(source.topic, 0, 2)
    with pytest.raises(StateError, match="1 rows, the saved position is 2"):
        source.poll(10, 0.0)


def test_another_topic_is_another_file(tmp_path):
    source = FileSource(csv_file(tmp_path, [good_line(0)]), ARROW)
    with pytest.raises(StateError, match="this is another file"):
        source.seek("file:other", 0, 0)


def test_a_file_is_known_by_what_it_holds_and_one_that_grows_by_its_path(tmp_path):
    path = csv_file(tmp_path, [good_line(0)])
    source = FileSource(path, ARROW)
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    assert FileSource(copy, ARROW).topic == source.topic == f"file:{source.source_id[:16]}"
    copy.write_bytes(path.read_bytes() + b"\n")
    assert FileSource(copy, ARROW).topic != source.topic
    assert FileSource(path, ARROW, follow=True).topic == f"file:{path.resolve()}"
    assert FileSource(path, ARROW, name="line 1").partitions() == [("file:line 1", 0)]


# --- what cannot be


@pytest.mark.parametrize(
    ("name", "mapping", "options", "key"),
    [
        ("rows.txt", ARROW, {}, "source.path"),
        ("absent.csv", ARROW, {}, "source.path"),
        ("rows.csv", ARROW, {"file_format": "xml"}, "source.format"),
        ("rows.csv", JSON, {}, "mapping.format"),
        ("rows.csv", FieldMapping(channels=("temp",), format="arrow", asset="@key"), {}, "mapping.asset"),
        ("rows.csv", ARROW, {"speed": -1.0}, "source.speed"),
        ("rows.csv", ARROW, {"speed": 1.0, "follow": True}, "source.speed"),
        ("rows.parquet", ARROW, {"follow": True}, "source.follow"),
    ],
)
def test_what_a_file_cannot_do_is_refused_with_the_key_and_the_fix(tmp_path, name, mapping, options, key):
    csv_file(tmp_path, [good_line(0)])
    with pytest.raises(ConfigError) as caught:
        FileSource(tmp_path / name, mapping, **options)
    assert caught.value.key == key


def test_the_format_of_the_messages_follows_from_the_file(tmp_path):
    assert message_format("a.jsonl") == message_format("a.csv", "ndjson") == "json"
    assert message_format("a.CSV") == message_format("a.pq") == message_format(tmp_path) == "arrow"


# --- together with decode


def decoded(source, mapping):
    table = AssetTable({})
    rows, dead = [], []
    while polled := source.poll(1000, 0.0):
        for p in polled:
            out = decode(p, mapping, table)
            rows.append(out.rows)
            dead += out.dead
    joined = {name: np.concatenate([getattr(r, name) for r in rows]) for name in ("asset", "ts_ns", "x", "observed")}
    number = np.concatenate([r.offset + r.row for r in rows])
    return [table.names[code] for code in joined.pop("asset")], number, joined, dead


def test_every_format_gives_the_same_rows(tmp_path):
    n = 5000
    records = [
        {"asset": f"pump-{i % 3}", "ts": i * 1_000_000_000, "temp": i / 7, "vib": None if i % 5 else -i}
        for i in range(n)
    ]
    ndjson = tmp_path / "rows.ndjson"
    ndjson.write_text("".join(json.dumps(r) + "\n" for r in records))
    lines = [f"{r['ts']},{r['asset']},{r['temp']!r},x,{'' if r['vib'] is None else r['vib']}" for r in records]
    table = pa.Table.from_pylist(records)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=999)
    results = [
        decoded(FileSource(ndjson, JSON), JSON),
        decoded(FileSource(csv_file(tmp_path, lines), ARROW), ARROW),
        decoded(FileSource(tmp_path / "rows.parquet", ARROW), ARROW),
    ]
    for names, number, columns, dead in results:
        assert dead == []
        assert names == results[0][0]
        np.testing.assert_array_equal(number, np.arange(n))
        for name, column in columns.items():
            np.testing.assert_array_equal(column, results[0][2][name], name)


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_csv_line_becomes_a_dead_letter_with_its_number_and_bytes(tmp_path, bad):
    lines = [good_line(i).encode() for i in range(10)]
    lines[7] = bad
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), *lines, b""]))
    _, number, _, dead = decoded(FileSource(path, ARROW), ARROW)
    assert [(d.offset, d.row, d.reason, d.value) for d in dead] == [(7, -1, "not_arrow", bad)]
    assert number.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_real_measurements_are_read_whole(tmp_path):
    path = Path(os.environ.get("MIDWATCH_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "skab.parquet"
    if not path.exists():
        assert "CI" not in os.environ, f"{path} is missing"
        pytest.skip(f"{path} is not there")
    columns = [c for c in pq.read_schema(path).names if c not in ("entity", "timestamp", "label", "changepoint")]
    mapping = FieldMapping(channels=tuple(columns), format="arrow", asset="entity", time="timestamp")
    names, number, got, dead = decoded(FileSource(path, mapping), mapping)
    table = pq.read_table(path)
    assert dead == []
    assert names == table["entity"].to_pylist()
    assert len(number) == 37_401
    np.testing.assert_array_equal(got["x"], np.stack([table[c].to_numpy() for c in columns], axis=1))
