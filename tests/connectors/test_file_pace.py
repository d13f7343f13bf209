import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_cases import ARROW, HEADER, JSON, Clock, csv_file, good_line, json_line

from connectors.file_source import FileSource
from pipeline.errors import InputError
from pipeline.mapping import FieldMapping

# --- followed files


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_a_followed_file_gives_lines_when_they_are_finished_and_never_ends(tmp_path, kind):
    clock = Clock()
    path = tmp_path / f"rows.{kind}"
    line = {"csv": good_line, "ndjson": json_line}[kind]
    path.write_text((HEADER + "\n" if kind == "csv" else "") + line(0) + "\n" + line(1)[:9])
    mapping = ARROW if kind == "csv" else JSON
    source = FileSource(path, mapping, follow=True, clock=clock, sleep=clock.sleep)
    assert source.poll(100, 1.0)[0].position == 1
    assert source.poll(100, 1.0) == []
    assert clock.now == pytest.approx(101.0)
    assert not source.ended()
    with path.open("a") as file:
        file.write(line(1)[9:] + "\n" + line(2) + "\n")
    [polled] = source.poll(100, 1.0)
    assert (polled.offset[0], polled.position) == (1, 3)
    source.seek(source.topic, 0, 1)
    assert source.poll(100, 1.0)[0].value == polled.value
    source.close()


def test_a_followed_file_that_is_cut_short_is_an_error_and_no_guess(tmp_path):
    path = tmp_path / "rows.ndjson"
    path.write_text(f"{json_line(0)}\n{json_line(1)}\n")
    source = FileSource(path, JSON, follow=True)
    source.poll(100, 0.0)
    os.truncate(path, 10)
    with pytest.raises(InputError, match=r"cut short from \d+ to 10 bytes while followed"):
        source.poll(100, 0.0)


@pytest.mark.parametrize("how", ["replaced by another file", "removed"])
def test_a_followed_file_that_is_rotated_away_is_an_error(tmp_path, how):
    path = tmp_path / "rows.ndjson"
    path.write_text(f"{json_line(0)}\n")
    source = FileSource(path, JSON, follow=True)
    assert source.poll(1, 0.0)[0].position == 1
    with path.open("a") as file:
        file.write(f"{json_line(1)}\n")
    path.rename(tmp_path / "rows.1")
    if how != "removed":
        path.write_text(f"{json_line(5)}\n")
    assert source.poll(100, 0.0)[0].position == 2  # the old file is read to its end first
    with pytest.raises(InputError, match=how):
        source.poll(100, 0.0)


# --- pace


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
def test_rows_come_when_they_are_due_an_instant_at_a_time(tmp_path, kind):
    seconds = [0, 0, 1, 4, 2, 10]
    clock = Clock()
    if kind == "ndjson":
        path = tmp_path / "rows.ndjson"
        path.write_text("".join(json_line(s) + "\n" for s in seconds))
    elif kind == "csv":
        path = csv_file(tmp_path, map(good_line, seconds))
    else:
        path = tmp_path / "rows.parquet"
        times = pa.array(np.array(seconds) * 1000, pa.timestamp("ms", tz="UTC"))
        pq.write_table(pa.table({"ts": times, "asset": ["a"] * 6, "temp": [1.0] * 6, "vib": [1.0] * 6}), path)
    mapping = JSON if kind == "ndjson" else ARROW
    source = FileSource(path, mapping, speed=2.0, clock=clock, sleep=clock.sleep)
    seen = {}
    while not source.ended():
        for p in source.poll(100, 0.25):
            seen[p.position] = clock.now - 100.0
    # twice as fast; the row of second 2 came after that of second 4, and is due with it
    assert seen == pytest.approx({2: 0.0, 3: 0.5, 5: 2.0, 6: 5.0})


def test_a_poll_at_a_pace_never_waits_longer_than_it_may(tmp_path):
    clock = Clock()
    path = csv_file(tmp_path, [good_line(0), good_line(1000)])
    source = FileSource(path, ARROW, speed=1.0, clock=clock, sleep=clock.sleep)
    assert len(source.poll(100, 0.2)) == 1
    assert source.poll(100, 0.2) == []
    assert clock.now == pytest.approx(100.2)
    assert not source.ended()


def test_rows_without_a_time_are_due_with_the_row_before_them(tmp_path):
    clock = Clock()
    path = tmp_path / "rows.ndjson"
    path.write_text(f"nonsense\n{json_line(0)}\n[]\n" + '{"ts": "soon"}\n' + json_line(3) + "\n")
    source = FileSource(path, JSON, speed=1.0, clock=clock, sleep=clock.sleep)
    [polled] = source.poll(100, 0.0)
    assert polled.position == 4
    clock.sleep(3.0)
    assert source.poll(100, 0.0)[0].position == 5


@pytest.mark.parametrize(
    ("unit", "cell"),
    [
        ("iso", "2024-01-01T00:00:02Z"),
        ("s", "1704067202.0"),
        ("ms", "1704067202000"),
    ],
)
def test_a_pace_reads_times_as_decode_does(tmp_path, unit, cell):
    clock = Clock()
    mapping = FieldMapping(channels=("temp",), format="arrow", time_unit=unit)
    first = cell.replace("02Z", "00Z").replace("1704067202", "1704067200")
    path = csv_file(tmp_path, [f"{first},a,1", f"{cell},a,1"], header="ts,asset,temp")
    source = FileSource(path, mapping, speed=1.0, clock=clock, sleep=clock.sleep)
    source.poll(100, 0.0)
    source.poll(100, 10.0)
    assert clock.now == pytest.approx(102.0)
