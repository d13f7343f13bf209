"""What both Kafka clients do the same way, against a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kafka_fixture import LIBRARIES, FeedTopics, shared_broker, until

from connectors.kafka_client import Client, Committed, Consumer, Member, NewTopic, Producer
from pipeline.errors import ConfigError, StateError
from pipeline.values import Polled

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics() -> FeedTopics:
    return FeedTopics(shared_broker().bootstrap).create()


@pytest.fixture(params=LIBRARIES)
def client(request: pytest.FixtureRequest, topics: FeedTopics) -> Client:
    return topics.client(request.param)


@pytest.fixture
def consumer(client: Client, topics: FeedTopics) -> Iterator[Consumer]:
    consumer = client.consumer(topics.group)
    yield consumer
    consumer.close()


@pytest.fixture
def producer(client: Client, topics: FeedTopics) -> Iterator[Producer]:
    producer = client.producer(f"{topics.group}-0", timeout_s=10)
    producer.init_transactions()
    yield producer
    producer.close()


def gathered(consumer: Consumer, count: int, timeout_s: float = 10.0) -> dict[int, list[Polled]]:
    """Poll until `count` messages are there; by partition."""
    found: dict[int, list[Polled]] = {}

    def enough() -> bool:
        for polled in consumer.poll(count, 1 << 25, 0.1):
            found.setdefault(polled.partition, []).append(polled)
        return sum(len(p) for polls in found.values() for p in polls) >= count

    until(enough, timeout_s)
    return found


def test_bytes_keys_offsets_and_times_come_back_as_they_went_in(
    client: Client, consumer: Consumer, topics: FeedTopics
) -> None:
    bodies: list[bytes | None] = [b"", b"\x00\xff", b"x" * 900_000, None, "grün".encode()]
    keys: list[bytes | None] = [b"", None, b"k", b"gone", b"\xfe"]
    before = time.time_ns()
    producer = client.producer()
    for body, key in zip(bodies, keys, strict=True):
        producer.send(topics.input, body, key, partition=1)
    producer.flush()
    producer.close()
    consumer.assign({(topics.input, 1): 0})
    polls = gathered(consumer, len(bodies))[1]
    assert [v for p in polls for v in p.value] == bodies
    assert [k for p in polls for k in p.key or ()] == keys
    assert np.concatenate([p.offset for p in polls]).tolist() == [0, 1, 2, 3, 4]
    times = np.concatenate([p.log_ts_ns for p in polls])
    assert polls[0].offset.dtype == times.dtype == np.int64
    assert ((times >= before - 1_000_000) & (times <= time.time_ns())).all()


def test_headers_come_back_in_order(client: Client, topics: FeedTopics) -> None:
    import confluent_kafka

    producer = client.producer()
    producer.send(topics.input, b"v", b"k", [("ce_id", b"a:0"), ("twice", b"1"), ("twice", b"2")], 0)
    producer.flush()
    producer.close()
    reader = confluent_kafka.Consumer({"bootstrap.servers": topics.bootstrap, "group.id": "headers"})
    reader.assign([confluent_kafka.TopicPartition(topics.input, 0, 0)])
    message = reader.poll(10)
    reader.close()
    assert message is not None
    assert message.headers() == [("ce_id", b"a:0"), ("twice", b"1"), ("twice", b"2")]


def test_the_records_of_an_aborted_or_open_transaction_are_never_seen(
    consumer: Consumer, producer: Producer, topics: FeedTopics
) -> None:
    for body, finish in ((b"taken", producer.commit), (b"aborted", producer.abort), (b"taken too", producer.commit)):
        producer.begin()
        producer.send(topics.input, body, partition=0)
        producer.flush()
        finish()
    producer.begin()
    producer.send(topics.input, b"open", partition=0)
    producer.flush()
    consumer.assign({(topics.input, 0): 0})
    polls = gathered(consumer, 2)[0]
    assert [v for p in polls for v in p.value] == [b"taken", b"taken too"]
    assert consumer.poll(10, 1 << 20, 0.3) == []
    producer.abort()


def test_the_end_is_where_everything_is_decided_and_the_position_reaches_it(
    consumer: Consumer, producer: Producer, topics: FeedTopics
) -> None:
    place = (topics.input, 0)
    producer.begin()
    producer.send(topics.input, b"a", partition=0)
    producer.flush()
    producer.commit()
    producer.begin()
    producer.send(topics.input, b"open", partition=0)
    producer.flush()
    assert consumer.first_offsets([place], 5) == {place: 0}
    until(lambda: consumer.end_offsets([place], 5) == {place: 2})  # the record, and the marker of its commit
    consumer.assign({place: 0})
    assert gathered(consumer, 1)[0][0].value == [b"a"]
    until(lambda: consumer.poll(10, 1 << 20, 0.1) == [] and consumer.position(*place) == 2)
    producer.abort()


def test_offsets_are_committed_with_the_transaction_or_not_at_all(
    consumer: Consumer, producer: Producer, topics: FeedTopics
) -> None:
    place = (topics.input, 1)
    assert consumer.committed(*place, 10) is None
    for offset, finish in ((3, producer.commit), (7, producer.abort)):
        producer.begin()
        producer.send(topics.input, b"v", partition=1)
        producer.flush()
        producer.send_offsets({place: Committed(offset, '{"n":1}')}, consumer.group_metadata())
        finish()
    assert consumer.committed(*place, 10) == Committed(3, '{"n":1}')


@pytest.mark.parametrize("writer", LIBRARIES)
def test_the_note_beside_an_offset_is_the_same_whichever_client_wrote_it(
    writer: str, consumer: Consumer, topics: FeedTopics
) -> None:
    note = '{"n":12345,"config":"größe"}'
    client = topics.client(writer)
    producer, of_group = client.producer(f"{topics.group}-9"), client.consumer(topics.group)
    producer.init_transactions()
    producer.begin()
    producer.send_offsets({(topics.input, 0): Committed(77, note)}, of_group.group_metadata())
    producer.commit()
    producer.close()
    of_group.close()
    assert [consumer.committed(topics.input, 0, 10) for _ in range(20)] == [Committed(77, note)] * 20


def test_a_newer_producer_of_the_same_id_fences_the_older_one(
    client: Client, producer: Producer, topics: FeedTopics
) -> None:
    producer.begin()
    producer.send(topics.input, b"of the old one", partition=0)
    producer.flush()
    newer = client.producer(f"{topics.group}-0", timeout_s=10)
    newer.init_transactions()
    with pytest.raises(StateError, match="newer process"):
        producer.commit()
    newer.begin()
    newer.send(topics.input, b"of the new one", partition=0)
    newer.flush()
    newer.commit()
    newer.close()
    assert [value for _, value in topics.read(topics.input)] == [b"of the new one"]


def test_a_record_that_the_broker_refuses_is_an_error_before_the_commit(
    client: Client, producer: Producer, topics: FeedTopics
) -> None:
    small = f"small-{topics.mark}"
    client.create_topics([NewTopic(small, 1, {"max.message.bytes": "1000"})])
    producer.begin()
    producer.send(topics.input, b"beside it", partition=0)
    with pytest.raises(StateError, match=r"max\.message\.bytes"):  # noqa: PT012 - which call says so differs
        producer.send(small, b"x" * 5000, b"k")
        producer.flush()
    producer.abort()
    assert topics.read(topics.input) == []


def test_a_poll_stops_at_the_rows_and_about_the_bytes_it_may_hold(consumer: Consumer, topics: FeedTopics) -> None:
    topics.feed([b"x" * 10_000] * 500)
    place = (topics.input, 0)
    consumer.assign({place: 0})
    until(lambda: sum(map(len, consumer.poll(7, 1 << 25, 1.0))) == 7)
    consumer.seek(*place, 0)
    polls = consumer.poll(10_000, 1_000_000, 5.0)
    assert 100 <= sum(len(v or b"") for p in polls for v in p.value) // 10_000 <= 200
    assert polls[0].offset[0] == 0


def test_after_a_seek_messages_come_from_there_on(consumer: Consumer, topics: FeedTopics) -> None:
    topics.feed([b"%d" % i for i in range(50)])
    consumer.assign({(topics.input, 0): 10})
    assert gathered(consumer, 40)[0][0].value[0] == b"10"
    consumer.seek(topics.input, 0, 45)
    polls = gathered(consumer, 5)[0]
    assert [v for p in polls for v in p.value] == [b"45", b"46", b"47", b"48", b"49"]
    assert consumer.position(topics.input, 0) == 50


def test_an_offset_that_the_log_does_not_have_is_an_error_that_names_it(consumer: Consumer, topics: FeedTopics) -> None:
    topics.feed([b"a", b"b"])
    consumer.assign({(topics.input, 0): 99})
    with pytest.raises(StateError, match=rf"'{topics.input}', partition 0: offset 99 is past the end, 2"):
        until(lambda: bool(consumer.poll(10, 1 << 20, 0.5)))


def test_a_member_of_the_group_reads_nothing_of_a_partition_before_it_begins_it(
    client: Client, topics: FeedTopics
) -> None:
    topics.feed([b"0", b"1", b"2"])
    given: list[tuple[str, int]] = []
    early: list[Polled] = []
    member = client.consumer(topics.group, member=Member("one"))
    member.subscribe([topics.input], given.extend, lambda places: None)

    def joined() -> bool:
        early.extend(member.poll(10, 1 << 20, 0.2))
        return len(given) == 2

    until(joined, 20)
    assert sorted(given) == [(topics.input, 0), (topics.input, 1)]
    assert early + member.poll(10, 1 << 20, 0.5) == []
    member.begin(topics.input, 0, 1)
    assert [v for p in gathered(member, 2, 20)[0] for v in p.value] == [b"1", b"2"]
    owned = client.owners(topics.group)
    assert {name: sorted(places) for name, places in owned.items()} == {"one": [(topics.input, 0), (topics.input, 1)]}
    member.close()


def test_a_key_lands_on_the_same_partition_through_either_client(topics: FeedTopics) -> None:
    wide = f"wide-{topics.mark}"
    topics.client().create_topics([NewTopic(wide, 8)])
    placed: list[dict[bytes | None, int]] = []
    for library in LIBRARIES:
        client = topics.client(library)
        producer = client.producer()
        for i in range(40):
            producer.send(wide, library.encode(), b"asset-%d" % i)
        producer.flush()
        producer.close()
    reader = topics.client().consumer(topics.group)
    reader.assign({(wide, p): 0 for p in range(8)})
    by_partition = gathered(reader, 80)
    reader.close()
    for library in LIBRARIES:
        mine: dict[bytes | None, int] = {}
        for partition, polls in by_partition.items():
            for polled in polls:
                pairs: Any = zip(polled.key or (), polled.value, strict=True)
                mine |= {key: partition for key, value in pairs if value == library.encode()}
        placed.append(mine)
    assert len(placed[0]) == 40
    assert placed[0] == placed[1]
    assert len(set(placed[0].values())) > 3


def test_topics_are_created_once_with_their_settings_and_listed(client: Client, topics: FeedTopics) -> None:
    name = f"new-{topics.mark}"
    wanted = [NewTopic(name, 3, {"cleanup.policy": "compact"})]
    assert client.create_topics(wanted) == [name]
    assert client.create_topics(wanted) == []
    assert client.topics()[name] == 3
    assert client.topic_settings(name)["cleanup.policy"] == "compact"


def test_the_brokers_are_listed_by_their_addresses(client: Client, topics: FeedTopics) -> None:
    assert client.brokers() == {topics.bootstrap}


def test_a_topic_name_that_kafka_does_not_allow_is_an_error(client: Client) -> None:
    with pytest.raises((StateError, ConfigError)):
        client.create_topics([NewTopic("no spaces", 1)])
