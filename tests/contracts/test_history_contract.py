"""What every History does. To add one: a builder, and a line in `HISTORIES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from io_cases import a_push, an_alert

from connectors.history import ParquetHistory
from connectors.history_views import open_history
from connectors.memory import MemoryHistory
from pipeline.protocols import History
from pipeline.values import Position

CHANNELS = ("temp", "vib_x", "vib_y")
ASSETS = ("a0", "a1")


@dataclass(frozen=True)
class HistoryCase:
    """A place that outlives a process: how one opens it, and what is in it once it was closed, in order.

    `read` gives (partition, offset, asset) of rows, (partition, offset, asset) of scores, and (id, seq) of alerts.
    """

    open: Callable[[], History]
    read: Callable[[], Mapping[str, list[tuple]]]


def memory(tmp_path: Path) -> HistoryCase:
    history = MemoryHistory()

    def read():
        pushes = [push for key in sorted(history.pushes) for push in history.pushes[key]]
        return {
            "rows": [
                (r.partition, int(offset), push.assets[code])
                for push in pushes
                for r in push.rows
                for offset, code in zip(r.offset, r.asset, strict=True)
            ],
            "scores": [
                (v.scores.partition, int(offset), push.assets[code])
                for push in pushes
                for v in push.verdicts
                for offset, code in zip(v.scores.offset, v.scores.asset, strict=True)
            ],
            "alerts": [(a.id, a.seq) for push in pushes for a in push.alerts],
        }

    return HistoryCase(lambda: history, read)


def parquet(tmp_path: Path) -> HistoryCase:
    def read():
        con = open_history(tmp_path)
        order = 'ORDER BY partition, "offset", "row"'
        found = {}
        for name in ("rows", "scores"):
            found[name] = con.execute(f'SELECT partition, "offset", asset FROM {name} {order}').fetchall()
        found["alerts"] = con.execute("SELECT id, seq FROM alerts ORDER BY partition, position").fetchall()
        con.close()
        return found

    return HistoryCase(lambda: ParquetHistory(tmp_path, "north", CHANNELS, offsets_per_file=16), read)


HISTORIES = [memory, parquet]


@pytest.fixture(params=HISTORIES, ids=lambda build: build.__name__)
def case(request, tmp_path) -> HistoryCase:
    return request.param(tmp_path)


def push(history, first, after, partition=0, delay=3):
    """Append the messages from `first` to `after`; verdicts come `delay` messages late, an alert at each tenth one."""
    rows, verdicts = a_push(range(first, after), delay=delay, partition=partition)
    alerts = [
        an_alert(f"p{partition}-{at}", evidence=Position("t", partition, at - delay))
        for at in range(first, after)
        if at % 10 == 9
    ]
    history.append("t", partition, ASSETS, [rows], [verdicts], alerts, (first, after))


def expected(stop, partition=0, delay=3):
    return {
        "rows": [(partition, at, ASSETS[at % 2]) for at in range(stop)],
        "scores": [(partition, at, ASSETS[at % 2]) for at in range(stop - delay)],
        "alerts": [(f"p{partition}-{at}", 0) for at in range(stop) if at % 10 == 9],
    }


def test_what_was_appended_is_there_in_log_order(case):
    history = case.open()
    for first in range(0, 60, 7):
        push(history, first, first + 7)
    history.close()
    assert case.read() == expected(63)


def test_the_same_positions_again_change_nothing(case):
    history = case.open()
    for first, after in [(0, 10), (10, 20), (10, 20), (20, 40), (10, 20), (20, 40)]:
        push(history, first, after)
    history.close()
    assert case.read() == expected(40)


def test_a_process_that_begins_at_an_older_position_takes_the_place_of_what_was_there(case):
    first = case.open()
    for at in range(0, 50, 10):
        push(first, at, at + 10)
    first.close()
    second = case.open()
    for at in range(20, 50, 5):  # the input is cut differently this time
        push(second, at, at + 5)
    second.close()
    assert case.read() == expected(50)


def test_what_is_beyond_the_new_push_is_dropped_until_it_comes_again(case):
    history = case.open()
    for at in (0, 20, 40):
        push(history, at, at + 20)
    push(history, 20, 30)
    history.close()
    assert case.read() == expected(30)


def test_partitions_know_nothing_of_one_another(case):
    history = case.open()
    push(history, 0, 30, partition=0)
    push(history, 0, 12, partition=1)
    push(history, 0, 30, partition=0)
    history.close()
    both = [expected(30), expected(12, partition=1)]
    assert case.read() == {name: both[0][name] + both[1][name] for name in both[0]}


def test_messages_without_rows_are_nothing_to_keep_but_move_on(case):
    history = case.open()
    history.append("t", 0, (), [], [], [], (0, 5))
    history.append("t", 0, (), [], [], [], (5, 40))
    history.close()
    assert case.read() == {"rows": [], "scores": [], "alerts": []}


def test_a_log_that_does_not_begin_at_its_first_offset_is_kept_as_it_is(case):
    history = case.open()
    push(history, 1_000, 1_003, delay=0)
    push(history, 2_000, 2_002, delay=0)
    history.close()
    assert [offset for _, offset, _ in case.read()["rows"]] == [1_000, 1_001, 1_002, 2_000, 2_001]
