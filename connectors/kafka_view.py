"""What anybody can see of a feed from outside: how far its group is, and what its topics hold. For tests and trials.

Nothing here takes part in the feed: no group is joined, no offset is committed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.kafka_confluent_errors import heard, translated
from connectors.kafka_settings import KafkaSettings, for_confluent, for_kafka_python
from pipeline.errors import BrokerUnavailable

with warnings.catch_warnings():
    # It reads the schemas of its messages in a way that Python 3.11 and 3.12 warn of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import TopicPartition as Place
    from kafka.admin import KafkaAdminClient, OffsetSpec
    from kafka.errors import KafkaError as PythonKafkaError

_ANSWER_S: Final = 2.0
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Record:
    """One committed record of a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class FeedView:
    """Looks at one group on one topic.

    Through kafka-python: when a broker dies, confluent-kafka 2.16 may wait for the answer to the same questions for
    ever (`Consumer.committed`), or end the process (`AdminClient.list_offsets`).

    Parameters
    ----------
    partitions : of the topic.
    """

    def __init__(self, settings: KafkaSettings, group: str, topic: str, partitions: int) -> None:
        self._settings, self._group = settings, group
        self._places = [Place(topic, p) for p in range(partitions)]
        self._admin: KafkaAdminClient | None = None

    def committed(self) -> list[int]:
        """Return the committed offset of every partition as it is, pending transactions or not; 0: none yet.

        Raises
        ------
        BrokerUnavailable : the group's coordinator does not answer now.
        """
        found = self._ask(lambda admin: admin.list_group_offsets({self._group: self._places}))[self._group]
        return [max(found[place].offset, 0) if place in found else 0 for place in self._places]

    def ends(self) -> list[int]:
        """Return the next offset to be written, of every partition.

        Raises
        ------
        BrokerUnavailable : a partition's leader does not answer now.
        """
        specs = dict.fromkeys(self._places, OffsetSpec.LATEST)
        found = self._ask(lambda admin: admin.list_partition_offsets(specs, timeout_ms=int(_ANSWER_S * 1000)))
        return [found[place].offset for place in self._places]

    def owners(self) -> dict[int, str]:
        """Return the static member that has each partition; {} while the group shares them out, or has no members.

        Raises
        ------
        BrokerUnavailable : the group's coordinator does not answer now.
        """
        found = self._ask(lambda admin: admin.describe_groups([self._group]))[self._group]
        if found["group_state"] != "Stable":
            return {}
        return {
            partition: member["group_instance_id"] or member["member_id"]
            for member in found["members"]
            for topic in member["member_assignment"]["assigned_partitions"]
            for partition in topic["partitions"]
        }

    def close(self) -> None:
        """Let go of the connections."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _ask(self, question: Callable[[KafkaAdminClient], R]) -> R:
        try:
            if self._admin is None:
                self._admin = _admin(self._settings, _ANSWER_S)
            return question(self._admin)
        except PythonKafkaError as failed:
            with suppress(PythonKafkaError):
                self.close()  # the next one asks anew who leads what
            self._admin = None
            raise BrokerUnavailable(f"looking at group {self._group!r}: {failed}") from failed


def _admin(settings: KafkaSettings, timeout_s: float) -> KafkaAdminClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return KafkaAdminClient(**for_kafka_python(settings), request_timeout_ms=int(timeout_s * 1000))


def committed_records(settings: KafkaSettings, topic: str, timeout_s: float = 60.0) -> list[Record]:
    """Return every record of a topic that is committed or was sent without a transaction, by partition and offset.

    Raises
    ------
    BrokerUnavailable : the ends of the log were not reached in time: a transaction is still open, or no broker answers.
    """
    words = {"group.id": "midwatch-view", "isolation.level": "read_committed", "enable.auto.commit": False}
    known = {**for_confluent(settings), "log_level": 0, "error_cb": heard}
    consumer = confluent_kafka.Consumer({**known, **words, "enable.partition.eof": True})
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    try:
        places = [TopicPartition(topic, p) for p in consumer.list_topics(topic, timeout_s).topics[topic].partitions]
        # The very end, which readers of committed records do not get to while a transaction is open.
        view = FeedView(settings, "midwatch-view", topic, len(places))
        ends = {p: end for p, end in enumerate(view.ends()) if end}
        view.close()
        consumer.assign([TopicPartition(topic, p, 0) for p in ends])
        while ends:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"topic {topic!r} was not read to its end: {ends} are left")
            _take(consumer.consume(1000, 0.2), found, ends)
    except KafkaException as failed:
        raise translated(failed.args[0], f"reading topic {topic!r}") from failed
    finally:
        consumer.close()
    return sorted(found, key=lambda record: (record.partition, record.offset))


def _take(messages: Sequence[Any], found: list[Record], ends: dict[int, int]) -> None:
    for message in messages:
        trouble = message.error()
        if trouble is None:
            headers = tuple((name, bytes(value or b"")) for name, value in message.headers() or ())
            found.append(Record(message.partition(), message.offset(), message.key(), message.value(), headers))
        elif trouble.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(trouble)
        elif message.offset() >= ends.get(message.partition(), 0):
            ends.pop(message.partition(), None)


def move_leaders(settings: KafkaSettings, topics: Sequence[str]) -> int:
    """Make the next replica of every partition its leader; return how many partitions have another one now.

    Raises
    ------
    BrokerUnavailable : the cluster does not answer now, or does not carry it out.
    """
    try:
        admin = _admin(settings, 10.0)  # confluent-kafka 2.16 cannot: its `elect_leaders` raises SystemError
    except PythonKafkaError as failed:
        raise BrokerUnavailable(f"moving leaders: {failed}") from failed
    try:
        wanted, led = {}, {}
        for topic in admin.describe_topics(list(topics)):
            for partition in topic["partitions"]:
                place = Place(topic["name"], partition["partition_index"])
                replicas = partition["replica_nodes"]
                at = replicas.index(partition["leader_id"])
                wanted[place], led[place] = [*replicas[at + 1 :], *replicas[: at + 1]], partition["leader_id"]
        admin.alter_partition_reassignments(wanted)
        admin.elect_leaders(0, raise_errors=False)
        now = admin.describe_topics(list(topics))
        return sum(led[Place(t["name"], p["partition_index"])] != p["leader_id"] for t in now for p in t["partitions"])
    except PythonKafkaError as failed:
        raise BrokerUnavailable(f"moving leaders: {failed}") from failed
    finally:
        admin.close()


def remove_feed(settings: KafkaSettings, topics: Sequence[str], groups: Sequence[str]) -> None:
    """Delete topics and groups, as far as they are there."""
    with AdminClient({**for_confluent(settings), "log_level": 0}) as admin:
        asked = [*admin.delete_topics(list(topics)).values()] if topics else []
        asked += admin.delete_consumer_groups(list(groups)).values() if groups else []
        for done in asked:
            done.exception(30)
