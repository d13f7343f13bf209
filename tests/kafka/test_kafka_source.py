from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka.admin
import pytest
from confluent_kafka import TopicPartition
from fold_fleet import chain
from kafka_fixture import LIBRARIES, Broker, FeedTopics, until

from connectors.kafka_client import Member, NewTopic
from connectors.kafka_commit import transactional_id
from connectors.kafka_group_source import KafkaGroupSource
from connectors.kafka_source import KafkaSource
from pipeline.errors import BrokerUnavailable, ConfigError, StateError
from pipeline.protocols import Source
from pipeline.runner import Runner, Step
from pipeline.values import Place, Polled

pytestmark = pytest.mark.kafka

Open = Callable[..., KafkaSource]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Where the client makes no difference: both keep the same contract (tests/contracts).
once = pytest.mark.parametrize("library", ["kafka-python"], indirect=True)


@pytest.fixture
def opened(library: str, feed: FeedTopics) -> Iterator[Open]:
    held: list[KafkaSource] = []

    def one(**options: Any) -> KafkaSource:
        topics = options.pop("topics", [feed.input])
        held.append(KafkaSource(feed.client(library), topics, feed.group, **options))
        return held[-1]

    yield one
    for source in held:
        source.close()


def bodies(source: Source, count: int) -> list[bytes | None]:
    found: list[Polled] = []
    until(lambda: bool(found.extend(source.poll(1000, 0.1))) or sum(map(len, found)) >= count)
    return [value for polled in found for value in polled.value]


def some(count: int, mark: str = "m") -> list[bytes]:
    return [f"{mark}{i}".encode() for i in range(count)]


def test_a_source_reads_all_partitions_from_the_earliest_message_on(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(5), 0)
    feed.feed(some(5, "n"), 1)
    source: Source = opened()
    assert source.partitions() == [(feed.input, 0), (feed.input, 1)]
    assert sorted(bodies(source, 10)) == sorted(some(5) + some(5, "n"))  # type: ignore[type-var]
    assert not source.ended()


@once
def test_slots_share_the_partitions_by_their_number(feed: FeedTopics, opened: Open) -> None:
    wide = f"wide-{feed.mark}"
    feed.client().create_topics([NewTopic(wide, 5)])
    shares = [opened(topics=[wide], slot=i, slots=2).partitions() for i in range(2)]
    assert shares == [[(wide, 0), (wide, 2), (wide, 4)], [(wide, 1), (wide, 3)]]


@once
def test_a_slot_reads_its_own_partitions_only(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(5), 0)
    feed.feed(some(5, "n"), 1)
    source = opened(slot=1, slots=2)
    assert bodies(source, 5) == some(5, "n")
    assert source.poll(100, 0.2) == []
    with pytest.raises(StateError, match="not read by this slot"):
        source.seek(feed.input, 0, 0)


def test_a_source_goes_on_where_it_was_sought_to_before_or_after_its_first_poll(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(8), 0)
    source = opened()
    source.seek(feed.input, 0, 6)
    assert bodies(source, 2) == some(8)[6:]
    source.seek(feed.input, 0, 3)
    assert bodies(source, 5) == some(8)[3:]


def test_from_the_latest_only_new_messages_are_read(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(3, "old"), 0)
    source = opened(start="latest")
    assert source.poll(100, 0.2) == []
    feed.feed(some(2, "new"), 0)
    assert bodies(source, 2) == some(2, "new")


@once
@pytest.mark.parametrize("assignment", ["group", "fixed"])
def test_what_comes_to_a_partition_that_was_quiet_is_read_after_a_restart_from_the_latest(
    assignment: str, feed: FeedTopics, library: str
) -> None:
    feed.feed(some(3, "old"), 0)
    _, quiet = quietly(feed, library, assignment)
    assert quiet == []
    feed.feed(some(2, "new"), 0)
    positions, read = quietly(feed, library, assignment)
    assert (positions[feed.input, 0], read) == (5, some(2, "new"))


def quietly(feed: FeedTopics, library: str, assignment: str) -> tuple[dict[Place, int], list[bytes | None]]:
    """Let a worker run until it has begun and nothing more comes; return where it got to and what it read."""
    client, steps = feed.client(library), list[Step]()
    source: KafkaSource | KafkaGroupSource
    if assignment == "group":
        name = transactional_id(feed.group, 0)
        source = KafkaGroupSource(client, [feed.input], feed.group, member=Member(name, 2.0), start="latest")
        committer = feed.committer(library, group_metadata=source.group_metadata)
    else:
        source = KafkaSource(client, [feed.input], feed.group, start="latest")
        committer = feed.committer(library)
    runner = Runner(chain("pca"), source, committer, commit_interval_s=0.1, observe=steps.append)
    until(lambda: runner.step() is None and len(runner._going) == 2, 30.0)
    for _ in range(5):
        runner.step()
    places = source.partitions()
    positions = {place: restored.position for place in places if (restored := committer.restore(*place)) is not None}
    source.close()
    committer.close()
    return positions, [value for step in steps for polled in step.polled for value in polled.value]


@once
def test_the_lag_is_what_is_still_to_be_read(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(4), 1)
    source = opened()
    assert source.lag() == {(feed.input, 0): 0, (feed.input, 1): 4}
    bodies(source, 4)
    assert source.lag() == {(feed.input, 0): 0, (feed.input, 1): 0}


def test_an_offset_that_has_aged_out_is_an_error_that_says_what_is_left(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(10), 0)
    age_out(feed, 6)
    source = opened()
    message = rf"topic '{feed.input}', partition 0: offset 2 has aged out, the earliest available is 6; the 4 messages"
    with pytest.raises(StateError, match=message):
        source.seek(feed.input, 0, 2)
    with pytest.raises(StateError, match="offset 11 is past the end, 10"):
        source.seek(feed.input, 0, 11)
    assert bodies(source, 4) == some(10)[6:]


def test_messages_that_age_out_under_a_slow_reader_are_an_error_not_a_gap(feed: FeedTopics, opened: Open) -> None:
    feed.feed(some(10), 0)
    source = opened()
    source.seek(feed.input, 0, 2)
    age_out(feed, 6)
    with pytest.raises(StateError, match="offset 2 has aged out, the earliest available is 6"):
        bodies(source, 99)


def age_out(feed: FeedTopics, first: int) -> None:
    """Let partition 0 start at `first`, as retention would."""
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    place = TopicPartition(feed.input, 0, first)
    admin.delete_records([place])[place].result(10)


@once
def test_partitions_that_are_added_stop_the_feed(
    feed: FeedTopics, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka_source._CHECK_S", 0.0)
    source = opened()
    source.poll(1, 0.0)
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    admin.create_partitions([confluent_kafka.admin.NewPartitions(feed.input, 3)])[feed.input].result(10)
    with pytest.raises(StateError, match="has 3 partitions now, and had 2"):
        until(lambda: bool(source.poll(1, 0.05)))


def test_a_broker_that_stops_answering_is_an_error_not_silence(
    opened: Open, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened()
    source.poll(1, 0.0)
    monkeypatch.setattr("connectors.kafka_source._CHECK_S", 0.0)
    monkeypatch.setattr("connectors.kafka_source._ANSWER_S", 1.0)
    monkeypatch.setattr(source._known, "_again_at", 0.0)
    broker.cluster.pause(1)
    try:
        with pytest.raises(BrokerUnavailable, match="listing topics"):
            source.poll(1, 0.1)
    finally:
        broker.cluster.resume(1)


@once
def test_a_source_that_cannot_be_opened_says_which_setting_is_wrong(opened: Open, broker: Broker) -> None:
    for options, key in (
        ({"topics": ["no-such-topic"]}, "kafka.topic"),
        ({"slot": 2, "slots": 2}, "kafka.slot"),
        ({"slot": 2, "slots": 3}, "kafka.slot"),
        ({"start": "yesterday"}, "kafka.start"),
    ):
        with pytest.raises(ConfigError) as refused:
            opened(**options)
        assert refused.value.key == key
