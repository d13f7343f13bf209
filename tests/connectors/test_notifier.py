import pytest
from follow_cases import MemoryFollower, Topics
from io_cases import an_alert

from connectors.alert_json import encode_alert
from connectors.memory import ListSink
from connectors.notifier import Notifier
from pipeline.errors import SchemaError, SinkUnavailable


class Taken:
    """A sink that keeps everything, what comes again too."""

    def __init__(self):
        self.keys = []

    def write(self, alerts, dead):
        self.keys += [(a.id, a.seq) for a in alerts]

    def close(self):
        pass


def topics(*keys):
    out = Topics()
    for key in keys:
        out.add("alerts", 0, [encode_alert(an_alert(*key))])
    return out


def test_alerts_are_handed_on_in_order_and_their_position_is_committed_after_that():
    log, sink = topics(("a", 0), ("b", 0), ("a", 1)), Taken()
    notifier = Notifier(MemoryFollower(log), sink)
    assert notifier.step(100, 0) == 3
    assert log.committed == {}
    notifier.commit()
    assert sink.keys == [("a", 0), ("b", 0), ("a", 1)]
    assert log.committed["alerts", 0].offset > 3


def test_what_comes_again_is_dropped_as_far_back_as_is_remembered():
    log, sink = topics(("a", 0), ("a", 0), ("b", 0), ("c", 0), ("b", 0), ("a", 0)), Taken()
    notifier = Notifier(MemoryFollower(log, cut=lambda: 1), sink, remembered=2)
    while notifier.step(1, 0) or notifier.counts["again"] < 2:
        pass
    notifier.step(1, 0)
    assert sink.keys == [("a", 0), ("b", 0), ("c", 0), ("a", 0)]
    assert notifier.counts == {"alerts": 4, "again": 2}


def test_what_a_sink_does_not_take_is_offered_again_and_not_committed_before():
    log, sink = topics(("a", 0), ("b", 0)), ListSink()
    notifier = Notifier(MemoryFollower(log), sink)
    sink.fail_next(2, SinkUnavailable("no room"))
    for _ in range(2):
        with pytest.raises(SinkUnavailable):
            notifier.step(100, 0)
        notifier.commit()
        assert log.committed == {}
    assert [notifier.step(100, 0) for _ in range(2)] == [2, 0]
    notifier.commit()
    assert [a.id for a in sink.alerts] == ["a", "b"]
    assert log.committed["alerts", 0].offset == log.ends["alerts", 0]


def test_the_next_process_goes_on_after_what_was_committed():
    log, first, second = topics(("a", 0), ("b", 0)), Taken(), Taken()
    one = Notifier(MemoryFollower(log, cut=lambda: 1), first)
    one.step(1, 0)
    one.commit()
    one.step(1, 0)  # taken, and the process is killed before it commits
    other = Notifier(MemoryFollower(log), second)
    other.step(100, 0)
    assert (first.keys, second.keys) == ([("a", 0), ("b", 0)], [("b", 0)])


def test_what_is_no_alert_is_named_with_its_place():
    log = topics(("a", 0))
    log.add("alerts", 0, [b"hello"])
    with pytest.raises(SchemaError, match="topic 'alerts', partition 0, offset 2: not an alert"):
        Notifier(MemoryFollower(log), Taken()).step(100, 0)
