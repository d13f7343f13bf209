import pytest
from io_cases import a_batch, an_alert

from connectors.memory import Crash, Fault, ListSink, MemoryCommitter, MemoryHistory, MemorySource, messages
from pipeline.errors import BrokerUnavailable, SinkUnavailable

LOG = ("t", 0)


def values(polled):
    return [value for p in polled for value in p.value]


def a_source(*items):
    return MemorySource({LOG: list(items)})


def test_a_crash_hands_over_what_was_read_then_forgets_everything():
    source = a_source(messages("t", 0, [b"0", b"1"]), Fault.CRASH, messages("t", 0, [b"2"], first=2))
    assert values(source.poll(10, 0)) == [b"0", b"1"]
    with pytest.raises(Crash):
        source.poll(10, 0)
    source.seek(*LOG, 1)
    assert values(source.poll(10, 0)) == [b"1", b"2"]
    assert source.ended()


def test_a_pause_is_a_poll_with_nothing_in_it_and_no_end():
    source = a_source(Fault.PAUSE, messages("t", 0, [b"0"]))
    assert source.poll(10, 0) == []
    assert not source.ended()
    assert values(source.poll(10, 0)) == [b"0"]


def test_a_pause_of_one_partition_does_not_hold_back_another():
    source = MemorySource({LOG: [Fault.PAUSE, messages("t", 0, [b"0"])], ("t", 1): [messages("t", 1, [b"x"])]})
    assert values(source.poll(10, 0)) == [b"x"]
    assert values(source.poll(10, 0)) == [b"0"]


def test_an_error_comes_once_and_loses_nothing():
    source = a_source(Fault.ERROR, messages("t", 0, [b"0"]))
    with pytest.raises(BrokerUnavailable):
        source.poll(10, 0)
    assert values(source.poll(10, 0)) == [b"0"]


def test_messages_keep_their_keys_and_log_times_through_cuts():
    source = a_source(messages("t", 0, [b"0", b"1", b"2"], first=5, log_ts_ns=7, keys=[b"k0", None, b"k2"]))
    first, second = source.poll(2, 0) + source.poll(2, 0)
    assert (first.offset.tolist(), first.key, first.position) == ([5, 6], [b"k0", None], 7)
    assert (second.offset.tolist(), second.key, second.log_ts_ns.tolist()) == ([7], [b"k2"], [7])


def test_seeking_past_the_end_ends():
    source = a_source(messages("t", 0, [b"0"]))
    source.seek(*LOG, 99)
    assert source.ended()


def test_a_committer_fails_as_often_as_it_was_told_and_changes_nothing():
    committer = MemoryCommitter()
    committer.fail_next(2, SinkUnavailable("full"))
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="full"):
            committer.commit(a_batch(1))
    assert committer.restore("sensors", 0) is None
    committer.commit(a_batch(1))
    assert committer.restore("sensors", 0).position == 10


def test_a_crash_before_the_commit_leaves_nothing_and_one_after_it_leaves_all():
    committer = MemoryCommitter()
    committer.crash_next("before")
    with pytest.raises(Crash):
        committer.commit(a_batch(1))
    assert committer.alerts == []
    committer.crash_next("after")
    with pytest.raises(Crash):
        committer.commit(a_batch(1))
    assert [a.id for a in committer.alerts] == ["id1"]
    assert len(committer.dead) == 1


def test_a_sink_fails_as_often_as_it_was_told():
    sink = ListSink()
    sink.fail_next(1, SinkUnavailable("no"))
    with pytest.raises(SinkUnavailable):
        sink.write([an_alert()], [])
    sink.write([an_alert()], [])
    assert sink.alerts == [an_alert()]


def test_a_push_that_comes_again_replaces_itself_and_what_came_after():
    history = MemoryHistory()
    for position in [(0, 10), (10, 20), (20, 30), (10, 25)]:
        history.append("t", 0, ["a"], [], [], [], position)
    assert [p.position for p in history.pushes[LOG]] == [(0, 10), (10, 25)]
