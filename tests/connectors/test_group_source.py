from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from connectors import kafka_group_source
from connectors.kafka_client import Member
from connectors.kafka_group_source import KafkaGroupSource, Unread
from connectors.memory import messages
from pipeline.errors import BrokerUnavailable

ONE, TWO = ("in", 0), ("in", 1)


class Consumer:
    """Hands over what the test puts into `polls`, and notes what it is told."""

    def __init__(self):
        self.polls, self.begun, self.sought, self.joined = [], [], [], 0

    def subscribe(self, topics, given, taken):
        self.given, self.taken = given, taken
        self.joined += 1

    def begin(self, topic, partition, offset):
        self.begun.append((topic, partition, offset))

    def seek(self, topic, partition, offset):
        self.sought.append((topic, partition, offset))

    def first_offsets(self, places, timeout_s):
        return dict.fromkeys(places, 3)

    def end_offsets(self, places, timeout_s):
        return dict.fromkeys(places, 8)

    def poll(self, max_rows, max_bytes, timeout_s):
        return self.polls.pop(0) if self.polls else []


def opened(start="earliest"):
    consumer = Consumer()
    client = SimpleNamespace(consumer=lambda group, member: consumer, topics=lambda timeout_s: {"in": 2})
    source = KafkaGroupSource(client, ["in"], "group", member=Member("slot-0"), start=start)
    assert consumer.joined == 0
    assert source.poll(10, 0.0) == []
    return consumer, source


def test_the_group_is_joined_once_with_the_first_poll():
    consumer, source = opened()
    source.poll(10, 0.0)
    assert consumer.joined == 1


def test_nothing_is_delivered_of_a_partition_that_was_not_begun():
    consumer, source = opened()
    consumer.given([ONE, TWO])
    source.seek(*ONE, 5)
    consumer.polls = [[messages(*ONE, [b"5"], first=5), messages(*TWO, [b"0"])]]
    assert [(p.partition, p.value) for p in source.poll(10, 0.0)] == [(0, [b"5"])]
    assert consumer.begun == [("in", 0, 5)]


def test_a_partition_that_was_taken_is_lost_once_and_delivers_nothing_though_it_came_back():
    consumer, source = opened()
    consumer.given([ONE])
    source.seek(*ONE, 0)
    consumer.taken([ONE])
    consumer.given([ONE])
    consumer.polls = [[messages(*ONE, [b"0"])]]
    assert source.poll(10, 0.0) == []
    assert (source.lost(), source.lost(), source.partitions()) == ([ONE], [], [ONE])


def test_a_partition_that_was_taken_meanwhile_is_not_begun():
    consumer, source = opened()
    source.seek(*ONE, 7)
    assert consumer.begun == []


@pytest.mark.parametrize(("start", "begins", "to_note"), [("earliest", 3, None), ("latest", 8, 8)])
def test_only_a_start_that_moves_is_to_be_noted(start, begins, to_note):
    consumer, source = opened(start)
    consumer.given([ONE])
    assert source.seek(*ONE, None) == to_note
    assert source.seek(*TWO, None) is None
    assert consumer.begun == [("in", 0, begins)]
    assert source.seek(*ONE, 5) is None


def test_what_a_client_reads_again_is_left_out_and_it_is_told_where_to_go_on():
    consumer, source = opened()
    consumer.given([ONE])
    source.seek(*ONE, 3)
    consumer.polls = [
        [messages(*ONE, [b"0", b"1"], first=0)],
        [messages(*ONE, [b"2", b"3", b"4"], first=2)],
        [messages(*ONE, [b"4", b"5"], first=4)],
    ]
    assert source.poll(10, 0.0) == []
    assert consumer.sought == [("in", 0, 3)]
    assert [p.value for p in source.poll(10, 0.0)] == [[b"3", b"4"]]
    (again,) = source.poll(10, 0.0)
    assert (again.value, again.offset.tolist(), again.position) == ([b"5"], [5], 6)


def test_what_is_all_new_is_handed_on_as_it_came():
    consumer, source = opened()
    consumer.given([ONE])
    source.seek(*ONE, 3)
    came = messages(*ONE, [b"3", b"4"], first=3)
    consumer.polls = [[came], [messages(*ONE, [b"4"], first=4)]]
    (polled,) = source.poll(10, 0.0)
    assert polled is came
    assert source.poll(10, 0.0) == []


ALL, NOT_TWO = {"slot-0": [ONE], "slot-1": [TWO]}, {"slot-0": [ONE], "slot-1": []}


def looks(monkeypatch, answers, name="slot-0"):
    """What a member makes of what it is told of the owners, look by look."""
    clock, told = [0.0], iter(answers)

    def owners(group):
        answer = next(told)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(kafka_group_source, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    unread = Unread(SimpleNamespace(owners=owners), "group", name, {"in": 2})
    found = []
    for _ in answers:
        clock[0] += kafka_group_source._OWNERS_S
        found.append(unread.look())
        until_answered(unread)
    clock[0] += kafka_group_source._OWNERS_S
    monkeypatch.setattr(unread, "_client", SimpleNamespace(owners=lambda group: ALL))
    return [*found, unread.look()][1:]


def until_answered(unread):
    deadline = time.monotonic() + 10.0
    while unread._asking.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_members_take_turns_to_have_a_partition_shared_out_anew_that_nobody_reads(monkeypatch):
    answers = [NOT_TWO] * 5
    assert looks(monkeypatch, answers, "slot-0") == [False, True, False, True, False]
    assert looks(monkeypatch, answers, "slot-1") == [False, False, True, False, True]


def test_a_partition_that_is_between_two_owners_for_one_look_is_left_alone(monkeypatch):
    assert not any(looks(monkeypatch, [ALL, NOT_TWO, ALL, NOT_TWO, ALL]))


def test_while_partitions_are_shared_out_nobody_asks_for_it(monkeypatch):
    assert not any(looks(monkeypatch, [{"slot-0": [], "slot-1": []}] * 5))
    assert not any(looks(monkeypatch, [{}] * 5))


def test_an_answer_that_does_not_come_says_nothing_about_owners(monkeypatch):
    assert looks(monkeypatch, [NOT_TWO, BrokerUnavailable("away"), NOT_TWO]) == [False, False, True]


def test_a_member_that_the_group_does_not_know_leaves_it_to_the_others(monkeypatch):
    assert not any(looks(monkeypatch, [NOT_TWO] * 5, "slot-7"))


def test_a_source_that_is_to_have_partitions_shared_out_anew_tells_its_consumer(monkeypatch):
    consumer, source = opened()
    consumer.rejoined = 0
    consumer.rejoin = lambda: setattr(consumer, "rejoined", consumer.rejoined + 1)
    monkeypatch.setattr(source._unread, "look", lambda: True)
    source.poll(10, 0.0)
    assert consumer.rejoined == 1
