"""What every Source does. To add one: a builder that fills it and says what is in it, and a line in `SOURCES`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.file_source import FileSource
from connectors.memory import Fault, MemorySource, messages
from pipeline.mapping import FieldMapping
from pipeline.protocols import Source


@dataclass(frozen=True)
class SourceCase:
    """A finite log, a way to open it from its start, and how to see the rows of a message."""

    open: Callable[[], Source]
    rows: Mapping[tuple[str, int], Sequence[object]]  # (topic, partition) -> what `unpack` gives of the whole log
    unpack: Callable[[bytes], Sequence[object]] = lambda value: [value]


def memory(tmp_path: Path) -> SourceCase:
    logs = {("a", 0): [b"%d" % i for i in range(23)], ("a", 1): [], ("b", 0): [b"x", b"y"]}

    def open_source():
        return MemorySource(
            {
                ("a", 0): [
                    messages("a", 0, logs["a", 0][:9]),
                    Fault.PAUSE,
                    messages("a", 0, logs["a", 0][9:], first=9),
                ],
                ("a", 1): [],
                ("b", 0): [messages("b", 0, logs["b", 0])],
            }
        )

    return SourceCase(open_source, logs)


ARROW = FieldMapping(channels=("x",), format="arrow")


def arrow_rows(value: bytes) -> list[object]:
    try:
        return [row["x"] for row in pa.ipc.open_stream(value).read_all().to_pylist()]
    except (pa.ArrowInvalid, OSError):
        return [value]


def csv_file(tmp_path: Path) -> SourceCase:
    lines = [f"{i},a,{i}" for i in range(12)]
    lines[5] = "no row"
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["ts,asset,x", *lines, ""]))
    rows = [b"no row" if i == 5 else float(i) for i in range(12)]
    return SourceCase(
        lambda: FileSource(path, ARROW, name="a", sleep=lambda _: None), {("file:a", 0): rows}, arrow_rows
    )


def parquet_folder(tmp_path: Path) -> SourceCase:
    for name, first in (("a", 0), ("b", 5)):
        numbers = np.arange(first, first + 5)
        table = pa.table({"ts": numbers, "asset": ["p"] * 5, "x": numbers.astype(np.float32)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
    return SourceCase(
        lambda: FileSource(tmp_path, ARROW, name="a"), {("file:a", 0): [float(i) for i in range(10)]}, arrow_rows
    )


def ndjson_file(tmp_path: Path) -> SourceCase:
    lines = [b'{"ts":%d,"asset":"p","x":1}' % i for i in range(20)]
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"\n".join(lines))
    return SourceCase(lambda: FileSource(path, FieldMapping(channels=("x",)), name="a"), {("file:a", 0): lines})


def ndjson_at_a_pace(tmp_path: Path) -> SourceCase:
    case = ndjson_file(tmp_path)
    mapping = FieldMapping(channels=("x",), time_unit="s")
    return replace(case, open=lambda: FileSource(tmp_path / "rows.ndjson", mapping, name="a", speed=10_000.0))


SOURCES = [memory, csv_file, parquet_folder, ndjson_file, ndjson_at_a_pace]


@pytest.fixture(params=SOURCES, ids=lambda build: build.__name__)
def case(request, tmp_path) -> SourceCase:
    return request.param(tmp_path)


def drain(source, unpack, max_rows=1000, most=10_000):
    """Read a source to its end: (topic, partition) -> rows, and the positions after each poll."""
    rows = {key: [] for key in source.partitions()}
    positions = {key: [0] for key in rows}
    for _ in range(most):
        polled = source.poll(max_rows, 0.05)
        for p in polled:
            rows[p.topic, p.partition] += [row for value in p.value for row in unpack(value)]
            assert len(p.value) == len(p.offset) == len(p.log_ts_ns)
            assert (p.offset[1:] > p.offset[:-1]).all()
            assert int(p.offset[0]) >= positions[p.topic, p.partition][-1]
            assert p.position > int(p.offset[-1])
            positions[p.topic, p.partition].append(p.position)
        if not polled and source.ended():
            return rows, positions
    raise AssertionError("the source did not end")


@pytest.mark.parametrize("max_rows", [1, 7, 1000])
def test_every_row_comes_once_and_in_order_however_much_is_asked_for(case, max_rows):
    source = case.open()
    rows, _ = drain(source, case.unpack, max_rows)
    assert rows == {key: list(values) for key, values in case.rows.items()}
    assert source.poll(max_rows, 0) == []
    assert source.ended()
    source.close()


def test_it_has_not_ended_before_its_rows_were_handed_over(case):
    source = case.open()
    assert not source.ended()
    source.close()


def test_going_on_from_any_position_gives_the_rest(case):
    first = case.open()
    rows, positions = drain(first, case.unpack, max_rows=3)
    first.close()
    for key, stops in positions.items():
        for position in stops:
            source = case.open()
            before = _rows_up_to(case, key, position)
            source.seek(*key, position)
            rest, _ = drain(source, case.unpack)
            assert before + rest[key] == rows[key], f"from {position} of {key}"
            source.close()


def test_going_back_to_the_start_gives_everything_again(case):
    source = case.open()
    rows, _ = drain(source, case.unpack)
    for key in source.partitions():
        source.seek(*key, 0)
    again, _ = drain(source, case.unpack)
    assert again == rows
    source.close()


def _rows_up_to(case, key, position):
    source = case.open()
    out = []
    while True:
        polled = source.poll(1, 0.05)
        if not polled and source.ended():
            break
        for p in polled:
            if (p.topic, p.partition) == key and p.position <= position:
                out += [row for value in p.value for row in case.unpack(value)]
    source.close()
    return out
