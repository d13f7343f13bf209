"""Small CSV, NDJSON and Parquet files, and a clock that a test moves."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.mapping import FieldMapping

ARROW = FieldMapping(channels=("temp", "vib"), format="arrow")
JSON = FieldMapping(channels=("temp", "vib"))
HEADER = "ts,asset,temp,note,vib"


class Clock:
    """A clock that moves only while somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def unpack(value):
    """The rows of an Arrow message as dicts, or the line that was no row."""
    try:
        return pa.ipc.open_stream(value).read_all().to_pylist()
    except (pa.ArrowInvalid, OSError):
        return [value]


def drain(source, max_rows=10_000):
    """Read to the end: (row number, row) of everything."""
    rows = []
    while True:
        polled = source.poll(max_rows, 0.0)
        if not polled and source.ended():
            return rows
        for p in polled:
            for offset, value in zip(p.offset.tolist(), p.value, strict=True):
                rows += [(offset + i, row) for i, row in enumerate(unpack(value))]


def csv_file(folder, lines, header=HEADER, end="\n"):
    path = folder / "rows.csv"
    path.write_bytes(end.join([header, *lines, ""]).encode())
    return path


def good_line(i):
    return f"{i * 1_000_000_000},pump-{i % 3},{i / 8},x,{-i}"


def good_row(i):
    return {"asset": f"pump-{i % 3}", "ts": i * 1_000_000_000, "temp": i / 8, "vib": float(-i)}


def parquet_file(path, first, count, row_group_size=1000, **columns):
    numbers = np.arange(first, first + count)
    table = pa.table(
        {
            "ts": pa.array(numbers * 1_000_000_000),
            "asset": pa.array([f"pump-{i % 3}" for i in numbers]),
            "note": pa.array(["x"] * count),
            "temp": pa.array(numbers / 8),
            "vib": pa.array(-numbers.astype(np.float32)),
            **columns,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def json_line(i):
    return json.dumps({"ts": i * 1_000_000_000, "asset": "p", "temp": i, "vib": -i})
