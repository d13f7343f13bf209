"""What every Sink does. To add one: a builder, and a line in `STREAMS` or `STORES`."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from io_cases import a_letter, an_alert

from connectors.alert_json import decode_alert, decode_dead_letter
from connectors.memory import ListSink
from connectors.sinks import NdjsonSink, TeeSink, TextSink
from pipeline.protocols import Sink
from pipeline.values import Alert, DeadLetter


@dataclass(frozen=True)
class SinkCase:
    """A place that outlives a process: how one opens it, and what is in it."""

    open: Callable[[], Sink]
    alerts: Callable[[], Sequence[Alert]]
    dead: Callable[[], Sequence[DeadLetter]]


def memory(tmp_path: Path) -> SinkCase:
    sink = ListSink()
    return SinkCase(lambda: sink, lambda: sink.alerts, lambda: sink.dead)


def ndjson(tmp_path: Path) -> SinkCase:
    alerts, dead = tmp_path / "a" / "alerts.ndjson", tmp_path / "a" / "dead.ndjson"
    return SinkCase(
        lambda: NdjsonSink(alerts, dead),
        lambda: [decode_alert(line) for line in alerts.read_bytes().splitlines()],
        lambda: [decode_dead_letter(line) for line in dead.read_bytes().splitlines()],
    )


def text_json(tmp_path: Path) -> SinkCase:
    out, errors = io.StringIO(), io.StringIO()
    return SinkCase(
        lambda: TextSink(out, errors, as_json=True),
        lambda: [decode_alert(line.encode()) for line in out.getvalue().splitlines()],
        lambda: [decode_dead_letter(line.encode()) for line in errors.getvalue().splitlines()],
    )


def tee(tmp_path: Path) -> SinkCase:
    inner, other = ndjson(tmp_path), ListSink()
    return SinkCase(lambda: TeeSink([other, inner.open()]), inner.alerts, inner.dead)


STREAMS = [text_json]  # keep nothing to compare with
STORES = [memory, ndjson, tee]


@pytest.fixture(params=STREAMS + STORES, ids=lambda build: build.__name__)
def case(request, tmp_path) -> SinkCase:
    return request.param(tmp_path)


@pytest.fixture(params=STORES, ids=lambda build: build.__name__)
def store(request, tmp_path) -> SinkCase:
    return request.param(tmp_path)


def test_what_is_written_is_there_in_order(case):
    alerts = [an_alert("one", 0), an_alert("two", 0), an_alert("one", 1, state="resolved", end_ns=5)]
    letters = [a_letter(1), a_letter(2, row=0), a_letter(2, row=1)]
    sink = case.open()
    sink.write(alerts[:2], letters[:1])
    sink.write(alerts[2:], letters[1:])
    sink.write([], [])
    sink.close()
    assert list(case.alerts()) == alerts
    assert list(case.dead()) == letters


def test_the_next_process_adds_to_what_is_there(case):
    first = case.open()
    first.write([an_alert("one", 0)], [a_letter(1)])
    first.close()
    second = case.open()
    second.write([an_alert("one", 1)], [a_letter(2)])
    second.close()
    assert [(a.id, a.seq) for a in case.alerts()] == [("one", 0), ("one", 1)]
    assert [d.offset for d in case.dead()] == [1, 2]


def test_what_comes_again_after_a_restart_is_kept_once(store):
    first = store.open()
    first.write([an_alert("one", 0), an_alert("two", 0)], [a_letter(1), a_letter(1, row=2)])
    first.close()
    second = store.open()
    second.write([an_alert("two", 0), an_alert("two", 1), an_alert("two", 1)], [a_letter(1), a_letter(3)])
    second.write([an_alert("one", 0)], [a_letter(3)])
    second.close()
    assert [(a.id, a.seq) for a in store.alerts()] == [("one", 0), ("two", 0), ("two", 1)]
    assert [(d.offset, d.row) for d in store.dead()] == [(1, -1), (1, 2), (3, -1)]
