import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_cases import SECOND, T0, a_push, an_alert

from connectors.history import ParquetHistory
from connectors.history_files import retire
from connectors.history_tables import as_rows
from connectors.history_views import open_history, rows_of
from connectors.memory import Crash
from pipeline.errors import ConfigError, SchemaError, SinkUnavailable, StateError
from pipeline.values import Position, Quality

CHANNELS = ("temp", "vib.x", 'odd "name"')
ASSETS = ("a0", "a1")
STEPS = ["journal", "publish", "published", "empty"]
N = 16


def a_history(root, channels=CHANNELS, **options):
    return ParquetHistory(root, "north", channels, offsets_per_file=N, **options)


def push(history, first, after, channels=3, delay=3):
    rows, verdicts = a_push(range(first, after), channels=channels, delay=delay)
    alerts = [an_alert(f"id{at}", evidence=Position("t", 0, at)) for at in range(first, after) if at % 10 == 9]
    history.append("t", 0, ASSETS, [rows], [verdicts], alerts, (first, after))


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}


def contents(root):
    """The records of each dataset, in the order of the files."""
    out = {}
    for path in sorted(root.rglob("*.parquet"), key=lambda p: (p.parts, p.name)):
        table = pq.ParquetFile(path).read()
        out.setdefault(path.relative_to(root).parts[0], []).extend(table.to_pylist())
    return out


def at_turn(step, turn):
    """Crash the `turn`-th time that a step is reached."""
    left = {step: turn}

    def reach(name):
        left[name] = left.get(name, -1) - 1
        if left[name] == 0:
            raise Crash

    return reach


@settings(deadline=None, max_examples=10)
@given(
    offsets=st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True).map(sorted), seed=st.integers(0, 99)
)
def test_rows_come_back_exactly_as_they_were(tmp_path_factory, offsets, seed):
    root = tmp_path_factory.mktemp("history")
    rows, verdicts = a_push(offsets, seed=seed)
    history = ParquetHistory(root, "north", CHANNELS, offsets_per_file=1000)
    history.append("t", 0, ASSETS, [rows], [verdicts], [], (offsets[0], offsets[-1] + 1))
    history.close()
    back = as_rows(rows_of(open_history(root), "north", CHANNELS), CHANNELS, {"a0": 0, "a1": 1})
    for name in ("asset", "ts_ns", "x", "observed", "quality", "offset", "row", "continuity"):
        wanted, got = getattr(rows, name), getattr(back, name)
        assert got.dtype == wanted.dtype, name
        np.testing.assert_array_equal(got, wanted, name)


def test_scores_come_back_with_null_where_there_is_no_number(tmp_path):
    rows, verdicts = a_push(range(10))
    history = a_history(tmp_path)
    history.append("t", 0, ASSETS, [rows], [verdicts], [], (0, 10))
    history.close()
    got = open_history(tmp_path).sql('SELECT * FROM scores ORDER BY "offset"').to_arrow_table().to_pydict()
    assert got["score"] == [None if np.isnan(s) else s for s in verdicts.scores.score.tolist()]
    assert got["ratio"] == [None if np.isnan(s) else s for s in verdicts.ratio.tolist()]
    assert got["breached"] == verdicts.breached.tolist()
    assert got["status"] == verdicts.scores.status.tolist()
    assert got["expected"] == verdicts.scores.expected.tolist()
    np.testing.assert_array_equal(np.array(got["by_channel"], np.float32), verdicts.scores.by_channel)
    assert set(got["model_id"]) == {"m1"}
    assert got["feed"] == ["north"] * 10


def test_a_file_covers_a_range_of_offsets_and_an_open_one_grows_under_its_name(tmp_path):
    history = a_history(tmp_path)
    push(history, 0, 20)
    history.flush()
    names = [name for name in files(tmp_path) if name.startswith("rows/")]
    assert [name.rsplit("-", 2)[1] for name in names] == ["000000000000", "000000000001"]
    before = files(tmp_path)
    push(history, 20, 30)
    history.flush()
    after = files(tmp_path)
    assert [name for name in after if name.startswith("rows/")] == names
    assert after[names[0]] == before[names[0]]
    assert len(pq.ParquetFile(tmp_path / names[1]).read()) == 14
    history.close()


def test_the_folder_is_the_day_of_the_first_record_of_a_range(tmp_path):
    history = ParquetHistory(tmp_path, "a/b", CHANNELS, offsets_per_file=1_000_000)
    push(history, 0, 5)
    push(history, 200_000, 200_005)  # two days on, in the same range
    history.close()
    assert {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.parquet")} == {
        "rows/feed=a%2Fb/date=2023-11-14",
        "scores/feed=a%2Fb/date=2023-11-14",
    }


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("turn", [1, 2, 4])
def test_the_same_pushes_after_a_crash_give_the_same_bytes(tmp_path, step, turn):
    pushes = [(first, first + 6) for first in range(0, 60, 6)]
    undisturbed = a_history(tmp_path / "undisturbed")
    for first, after in pushes:
        push(undisturbed, first, after)
    undisturbed.close()
    done = 0
    history = a_history(tmp_path / "run", reach=at_turn(step, turn))
    try:
        for first, after in pushes:
            push(history, first, after)
            done += 1
        history.close()
        pytest.fail("it never came to this step")
    except Crash:
        pass
    history = a_history(tmp_path / "run")
    for first, after in pushes[max(0, done - 2) :]:  # the position that was committed lies a little behind
        push(history, first, after)
    history.close()
    assert files(tmp_path / "run") == files(tmp_path / "undisturbed")
    assert not list((tmp_path / "run").rglob("*.journal"))


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_any_cut_of_the_log_and_any_crashes_give_the_same_records(tmp_path_factory, data):
    root, plain = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("plain")
    end, committed, commits = 70, 0, [0]
    whole = a_history(plain)
    for first in range(0, end, 10):
        push(whole, first, first + 10)
    whole.close()
    for _ in range(4):
        reach = at_turn(data.draw(st.sampled_from(STEPS)), data.draw(st.integers(1, 6)))
        history = a_history(root, reach=reach)
        try:
            while committed < end:
                after = min(end, committed + data.draw(st.integers(1, 25)))
                push(history, committed, after)
                if data.draw(st.booleans()):
                    history.flush()
                committed = after
                commits.append(after)
        except Crash:
            pass
        committed = data.draw(st.sampled_from(commits))  # a commit comes after a push, and may be an older one
        commits = [c for c in commits if c <= committed]
    history = a_history(root)
    if committed < end:
        push(history, committed, end)
    history.close()
    assert _without_position(contents(root)) == _without_position(contents(plain))


def test_what_was_appended_outlives_a_process_that_never_closed_it(tmp_path):
    push(a_history(tmp_path), 0, 10)
    assert contents(tmp_path) == {}
    second = a_history(tmp_path)
    push(second, 10, 14)
    second.flush()
    assert [record["offset"] for record in contents(tmp_path)["rows"]] == list(range(14))


def test_a_journal_of_a_process_that_died_is_put_into_parquet_though_nothing_more_comes(tmp_path):
    push(a_history(tmp_path), 0, 10)
    later = a_history(tmp_path)
    later.flush()
    assert len(contents(tmp_path)["rows"]) == 10
    later.close()


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_push_that_a_crash_cut_in_two_is_as_if_it_had_never_come(tmp_path, cut):
    history = a_history(tmp_path)
    push(history, 0, 5)
    push(history, 5, 10)
    journal = next(tmp_path.rglob("*.journal"))
    os.truncate(journal, journal.stat().st_size - cut)
    again = a_history(tmp_path)
    push(again, 5, 10)
    again.close()
    assert [record["offset"] for record in contents(tmp_path)["rows"]] == list(range(10))


def test_bytes_that_never_reached_the_disk_are_as_if_they_had_never_come(tmp_path):
    push(a_history(tmp_path), 0, 5)
    with next(tmp_path.rglob("*.journal")).open("ab") as file:
        file.write(bytes(4000))
    again = a_history(tmp_path)
    push(again, 5, 10)
    again.close()
    assert [record["offset"] for record in contents(tmp_path)["rows"]] == list(range(10))


@pytest.mark.parametrize("at", [0, 100])
def test_a_journal_that_is_damaged_before_its_end_is_refused(tmp_path, at):
    history = a_history(tmp_path)
    push(history, 0, 5)
    push(history, 5, 10)
    _flip(next(tmp_path.rglob("*.journal")), at)
    with pytest.raises(StateError, match=r"\.journal is damaged at byte 0"):
        push(a_history(tmp_path), 10, 12)


def test_a_damaged_parquet_file_is_named(tmp_path):
    history = a_history(tmp_path)
    push(history, 0, 5)
    history.close()
    _flip(next(tmp_path.glob("rows/*/*/*.parquet")), -1)
    with pytest.raises(StateError, match=r"rows/.*\.parquet is damaged"):
        push(a_history(tmp_path), 5, 10)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_is_an_unavailable_sink_and_the_push_can_be_tried_again(tmp_path, monkeypatch, call):
    history = a_history(tmp_path)
    push(history, 0, 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _full)
        with pytest.raises(SinkUnavailable):
            push(history, 10, 40)
    push(history, 10, 40)
    history.close()
    assert [record["offset"] for record in contents(tmp_path)["rows"]] == list(range(40))


def test_memory_is_bounded_by_what_may_wait_over_all_partitions(tmp_path):
    history = ParquetHistory(tmp_path, "north", CHANNELS, pending_rows=50)
    for first in range(0, 100, 10):
        for partition in (0, 1):
            rows, _ = a_push(range(first, first + 10), partition=partition)
            history.append("t", partition, ASSETS, [rows], [], [], (first, first + 10))
    assert 150 <= len(contents(tmp_path)["rows"]) < 200
    history.close()
    assert len(contents(tmp_path)["rows"]) == 200


def test_new_channels_start_a_new_file_in_the_middle_of_a_range(tmp_path):
    history = a_history(tmp_path)
    push(history, 0, 4)
    more = a_history(tmp_path, channels=(*CHANNELS, "new"))  # the first one never closed: its journal is left over
    push(more, 4, 8, channels=4)
    more.close()
    assert len([name for name in files(tmp_path) if name.startswith("rows/")]) == 2
    table = rows_of(open_history(tmp_path), "north", [*CHANNELS, "new"])
    assert table["offset"].to_pylist() == list(range(8))
    rows = as_rows(table, [*CHANNELS, "new"], {"a0": 0, "a1": 1})
    assert (rows.quality[:4, 3] == Quality.ABSENT).all()
    np.testing.assert_array_equal(rows.x[4:], a_push(range(4, 8), channels=4)[0].x)


@pytest.mark.parametrize("channels", [("temp", "TEMP"), ("asset",), ("Offset",), ("date",)])
def test_a_channel_with_the_name_of_another_column_is_refused(tmp_path, channels):
    with pytest.raises(ConfigError, match="call the channel differently"):
        a_history(tmp_path, channels)


def test_retiring_removes_whole_files_that_are_old_and_never_the_newest(tmp_path):
    history = a_history(tmp_path)
    for first in range(0, 48, 8):
        push(history, first, first + 8)
    history.close()
    gone = retire(tmp_path, "north", T0 + 32 * SECOND, ["rows"])
    assert [path.name.rsplit("-", 2)[1] for path in gone] == ["000000000000", "000000000001"]
    assert [record["offset"] for record in contents(tmp_path)["rows"]] == list(range(32, 48))
    assert retire(tmp_path, "north", T0 + 10**18, ["rows"]) == []
    assert retire(tmp_path, "south", T0 + 10**18) == []
    assert len(contents(tmp_path)["scores"]) == 45


def test_rows_of_a_history_without_a_channel_say_which_it_has(tmp_path):
    history = a_history(tmp_path)
    push(history, 0, 4)
    history.close()
    table = rows_of(open_history(tmp_path), "north", ["temp"])
    with pytest.raises(SchemaError, match="no channel absent, only"):
        as_rows(table, ["absent"], {"a0": 0, "a1": 1})


def _without_position(datasets_found):
    """Sorted: which push brought a record depends on the cut, what it says does not."""
    return {
        name: sorted(
            ({k: str(v) for k, v in record.items() if k != "position"} for record in records),
            key=lambda r: (r["offset"], r["row"], r.get("id", "")),
        )
        for name, records in datasets_found.items()
    }


def _flip(path, at):
    body = bytearray(path.read_bytes())
    body[at] ^= 0xFF
    path.write_bytes(body)


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
