"""Workers of one consumer group: partitions move, and nothing is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import confluent_kafka
import pytest
from fold_fleet import bundle, chain, lines, polled
from kafka_fixture import LIBRARIES, FeedTopics, an_alert, until

from connectors import kafka_group_source
from connectors.alert_json import decode_alert
from connectors.kafka_client import Committed, Member, NewTopic, Producer
from connectors.kafka_commit import transactional_id
from connectors.kafka_group_source import KafkaGroupSource
from pipeline.errors import BrokerUnavailable, Rebalanced, StateError
from pipeline.protocols import AssetState, Batch
from pipeline.runner import Runner
from pipeline.values import Alert

pytestmark = pytest.mark.kafka

A_STATE = AssetState("a", b"1", b"")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Worker:
    """One slot of two, with a real chain, stepped by the test."""

    def __init__(self, feed: FeedTopics, library: str, slot: int) -> None:
        name = transactional_id(feed.group, slot)
        self.source = KafkaGroupSource(feed.client(library), [feed.input], feed.group, member=Member(name, 2.0))
        self.committer = feed.committer(
            library, slot=slot, slots=2, group_metadata=self.source.group_metadata, snapshot_every=4
        )
        self.rows = 0
        self.runner = Runner(chain("pca"), self.source, self.committer, max_rows=60, commit_interval_s=0.05)

    def step(self) -> None:
        done = self.runner.step()
        self.rows += done.output.counts["messages"] if done else 0

    def close(self) -> None:
        self.source.close()
        self.committer.close()


@pytest.fixture
def worker(feed: FeedTopics, library: str) -> Iterator[Callable[[int], Worker]]:
    held: list[Worker] = []

    def start(slot: int) -> Worker:
        held.append(Worker(feed, library, slot))
        return held[-1]

    yield start
    for one in held:
        one.close()


def step_until(workers: list[Worker], enough: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not enough():
        assert time.monotonic() < deadline, [w.source.partitions() for w in workers]
        for one in workers:
            one.step()


def alone() -> list[list[Alert]]:
    """What one chain says of each partition, undisturbed."""
    return [list(chain("pca").push([polled(values, p, 0)]).alerts) for p, values in enumerate(shared_out())]


def shared_out() -> list[list[bytes]]:
    """The feed's messages, by partition."""
    return [[v for asset, _, v in lines() if (asset == "p2") == bool(p)] for p in (0, 1)]


def published(feed: FeedTopics) -> dict[str, list[tuple[int, str, float]]]:
    told: dict[str, list[tuple[int, str, float]]] = {}
    for _, value in feed.read(feed.alerts):
        alert = decode_alert(value or b"")
        told.setdefault(alert.id, []).append((alert.seq, alert.state, alert.peak_ratio))
    return told


def expected() -> dict[str, list[tuple[int, str, float]]]:
    told: dict[str, list[tuple[int, str, float]]] = {}
    for alert in (a for alerts in alone() for a in alerts):
        told.setdefault(alert.id, []).append((alert.seq, alert.state, alert.peak_ratio))
    return told


def test_partitions_that_move_to_a_second_worker_and_back_tell_what_one_worker_would(
    feed: FeedTopics, worker: Callable[[int], Worker]
) -> None:
    halves = [(v[: len(v) // 3], v[len(v) // 3 : 2 * len(v) // 3], v[2 * len(v) // 3 :]) for v in shared_out()]
    count = lambda i: sum(len(h[i]) for h in halves)  # noqa: E731
    first = worker(0)
    for p in (0, 1):
        feed.feed(halves[p][0], p)
    step_until([first], lambda: first.rows == count(0))
    second = worker(1)
    step_until([first, second], lambda: len(first.source.partitions()) == len(second.source.partitions()) == 1)
    for p in (0, 1):
        feed.feed(halves[p][1], p)
    step_until([first, second], lambda: first.rows + second.rows == count(0) + count(1))
    assert second.rows > 0
    first.close()  # says nothing to the group: its partition is free when the session is over
    for p in (0, 1):
        feed.feed(halves[p][2], p)
    before = second.rows
    step_until([second], lambda: second.rows == before + count(2))
    assert published(feed) == expected()
    assert expected()


def test_a_member_that_has_partitions_shared_out_anew_loses_and_doubles_nothing(
    feed: FeedTopics, worker: Callable[[int], Worker]
) -> None:
    halves = [(v[: len(v) // 2], v[len(v) // 2 :]) for v in shared_out()]
    count = lambda i: sum(len(h[i]) for h in halves)  # noqa: E731
    both = [worker(0), worker(1)]
    step_until(both, lambda: all(len(w.source.partitions()) == 1 for w in both))
    for p in (0, 1):
        feed.feed(halves[p][0], p)
    step_until(both, lambda: sum(w.rows for w in both) == count(0))
    for one in both:
        one.source._consumer.rejoin()
        one.step()
    for p in (0, 1):
        feed.feed(halves[p][1], p)
    step_until(both, lambda: sum(w.rows for w in both) == count(0) + count(1))
    assert published(feed) == expected()


def test_a_partition_that_its_group_has_forgotten_is_read_again(
    feed: FeedTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [Worker(feed, "kafka-python", slot) for slot in (0, 1)]
    assignor = import_module("kafka.coordinator.assignors.cooperative_sticky").CooperativeStickyAssignor
    shared_out_by = assignor.assign
    forgets = [True]

    def assign(self: Any, cluster: Any, subscriptions: Any) -> Any:
        found = shared_out_by(self, cluster, subscriptions)
        for assignment in found.values() if forgets[0] else ():
            for _, partitions in assignment.assigned_partitions:
                partitions[:] = [p for p in partitions if p != 1]
        return found

    monkeypatch.setattr(assignor, "assign", assign)
    monkeypatch.setattr(kafka_group_source, "_OWNERS_S", 0.5)
    feed.feed([b"."] * 30, 0)
    feed.feed([b"."] * 20, 1)
    try:
        step_until(both, lambda: sum(w.rows for w in both) == 30)
        for _ in range(10):
            for one in both:
                one.step()
        assert sum(w.rows for w in both) == 30
        forgets[0] = False
        step_until(both, lambda: sum(w.rows for w in both) == 50)
    finally:
        for one in both:
            one.close()


def test_what_a_dead_worker_left_open_is_ended_by_the_next_owner(feed: FeedTopics, library: str) -> None:
    place, dead = left_in_a_commit(feed, library)
    reader = feed.client(library).consumer(feed.group)
    dead.send_offsets({place: Committed(20, '{"n":2,"config":""}')}, reader.group_metadata())
    with pytest.raises(BrokerUnavailable):
        reader.committed(*place, 1.0)
    # Its transaction lasts 60 s, and the broker looks for those that are over every 10 s.
    nobody_else = feed.committer(library, slot=0, restore_timeout_s=1.0)
    with pytest.raises(BrokerUnavailable):
        nobody_else.restore(*place)
    second = feed.committer(library, slot=0, slots=2, group_metadata=reader.group_metadata, restore_timeout_s=20.0)
    restored = second.restore(*place)
    assert restored is not None
    assert restored.position == 10
    assert feed.read(feed.alerts) == []
    for one in (nobody_else, second, reader, dead):
        one.close()


def test_what_a_dead_worker_left_open_before_it_sent_offsets_holds_readers_of_alerts_until_the_next_owner_comes(
    feed: FeedTopics, library: str
) -> None:
    place, dead = left_in_a_commit(feed, library)
    reader = feed.client(library).consumer(feed.group)
    alerts = [(feed.alerts, partition) for partition in (0, 1)]
    readable = reader.end_offsets(alerts, 5.0)
    second = feed.committer(library, slot=0, slots=2, group_metadata=reader.group_metadata)
    restored = second.restore(*place)
    assert restored is not None
    assert restored.position == 10
    until(lambda: reader.end_offsets(alerts, 5.0) != readable)
    assert feed.read(feed.alerts) == []
    for one in (second, reader, dead):
        one.close()


def test_a_slot_that_is_no_member_of_the_group_ends_nobody_s_transaction(feed: FeedTopics, library: str) -> None:
    place = (feed.input, 0)
    feed.feed([b"."] * 30)
    client = feed.client(library)
    reader = client.consumer(feed.group)
    working = client.producer(transactional_id(feed.group, 1))
    working.init_transactions()
    working.begin()
    working.send_offsets({place: Committed(20, '{"n":1}')}, reader.group_metadata())
    waiting = feed.committer(library, slot=0, slots=2, restore_timeout_s=1.0)
    with pytest.raises(BrokerUnavailable):
        waiting.restore(*place)
    working.commit()
    assert reader.committed(*place, 10.0) == Committed(20, '{"n":1}')
    for one in (waiting, reader, working):
        one.close()


def test_a_commit_of_a_generation_that_is_over_publishes_nothing_and_can_be_made_again(
    feed: FeedTopics, library: str, worker: Callable[[int], Worker]
) -> None:
    feed.feed([b"."] * 30)
    first = worker(0)
    step_until([first], lambda: len(first.source.partitions()) == 2 and first.rows == 30)
    stale = first.source.group_metadata()
    second = worker(1)
    step_until([first, second], lambda: len(second.source.partitions()) == 1)
    (mine,) = first.source.partitions()
    now: list[object] = [stale]
    committer = feed.committer(library, slot=0, slots=2, group_metadata=lambda: now[0])
    committer.restore(*mine)
    batch = Batch({mine: 31}, [an_alert()])
    with pytest.raises(Rebalanced):
        committer.commit(batch)
    assert feed.read(feed.alerts) == []
    now[0] = first.source.group_metadata()
    committer.commit(batch)
    assert len(feed.read(feed.alerts)) == 1
    committer.close()


def left_at_ten(feed: FeedTopics, library: str, slot: int = 0) -> tuple[str, int]:
    """Let a worker end that has committed 10 of 30 messages; return their partition."""
    place = (feed.input, 0)
    feed.feed([b"."] * 30)
    ended = feed.committer(library, slot=slot)
    ended.commit(Batch({place: 10}, states={place: [A_STATE]}))
    ended.close()
    return place


def left_in_a_commit(feed: FeedTopics, library: str) -> tuple[tuple[str, int], Producer]:
    """Let slot 1 stop after it has committed 10 messages and published of the next; return partition and producer."""
    place = left_at_ten(feed, library, slot=1)
    dead = feed.client(library).producer(transactional_id(feed.group, 1), timeout_s=60.0)
    dead.init_transactions()
    dead.begin()
    dead.send(feed.alerts, b"{}", b"never")
    dead.flush()
    return place, dead


def test_messages_that_expired_unread_stop_the_feed_or_are_counted_and_left_out(feed: FeedTopics, library: str) -> None:
    place = left_at_ten(feed, library)
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    at = confluent_kafka.TopicPartition(feed.input, 0, 25)
    admin.delete_records([at])[at].result(10)
    stops = feed.committer(library)
    with pytest.raises(StateError, match=r"offset 10 has aged out, the earliest available is 25; the 15 messages"):
        stops.restore(*place)
    stops.close()
    goes_on = feed.committer(library, resume=True)
    restored = goes_on.restore(*place)
    assert restored is not None
    assert (restored.position, restored.missed, restored.assets) == (25, 15, [A_STATE])
    goes_on.close()


def test_an_input_topic_that_was_made_anew_and_filled_is_not_taken_for_the_old_one(
    feed: FeedTopics, library: str
) -> None:
    place = left_at_ten(feed, library)
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    admin.delete_topics([feed.input])[feed.input].result(10)
    client = feed.client(library)
    until(lambda: feed.input not in client.topics())
    client.create_topics([NewTopic(feed.input, 2)])
    feed.feed([b"."] * 30)
    for resume in (False, True):
        other = feed.committer(library, resume=resume)
        with pytest.raises(StateError, match=r"deleted and created again .* so that offset 10 means another message"):
            other.restore(*place)
        other.close()


def test_both_clients_tell_the_same_id_of_a_topic(feed: FeedTopics) -> None:
    one, other = (feed.client(library).topic_id(feed.input) for library in LIBRARIES)
    assert one == other
    assert one != feed.client().topic_id(feed.alerts)


def test_offsets_that_expired_are_made_up_from_the_state(feed: FeedTopics, library: str) -> None:
    place = left_at_ten(feed, library)
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    admin.delete_consumer_groups([feed.group])[feed.group].result(10)
    goes_on = feed.committer(library, resume=True)
    restored = goes_on.restore(*place)
    assert restored is not None
    assert (restored.position, restored.missed) == (10, 0)
    goes_on.commit(Batch({place: 20}))
    assert goes_on.restore(*place) is not None
    goes_on.close()


def test_the_bundle_of_the_fleet_is_what_the_workers_serve() -> None:
    assert bundle("pca").id == chain("pca").model_id
