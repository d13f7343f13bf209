"""The protocols of `connectors.kafka_client` over kafka-python: the default, plain Python."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    GroupIdNotFoundError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
)

from connectors.kafka_client import (
    MAX_RECORD_BYTES,
    Columns,
    Committed,
    Member,
    NewTopic,
    Told,
    gather,
    out_of_range,
)
from connectors.kafka_python_errors import connecting, told, translated
from connectors.kafka_python_producer import KafkaPythonProducer
from connectors.kafka_settings import KafkaSettings, for_kafka_python
from pipeline.errors import BrokerUnavailable, PipelineError
from pipeline.values import Place, Polled


class KafkaPythonClient:
    """`Client` over kafka-python."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        if settings.sasl:
            # At level DEBUG the client writes its settings and what it sends to the log, the password among them.
            for name in ("kafka.admin", "kafka.net", "kafka.protocol"):
                logging.getLogger(name).setLevel(logging.INFO)

    def consumer(self, group: str, *, fetch_wait_s: float = 0.1, member: Member | None = None) -> KafkaPythonConsumer:
        """Return a consumer of a group."""
        return KafkaPythonConsumer(self._words("consumer"), group, fetch_wait_s, member or Member())

    def producer(
        self,
        transactional_id: str = "",
        *,
        timeout_s: float = 15.0,
        client_id: str = "",
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> KafkaPythonProducer:
        """Return a producer; `timeout_s` is what one transaction, and one record, may take."""
        words = self._words("producer")
        if client_id:
            words["client_id"] = client_id
        return KafkaPythonProducer(words, transactional_id, timeout_s, max_record_bytes)

    def owners(self, group: str, timeout_s: float = 10.0) -> dict[str, list[Place]]:
        """Return the partitions of each static member of a group, by its name."""
        with self._admin(f"listing the members of group {group!r}", timeout_s) as admin:
            found = admin.describe_groups([group])[group]
        named = [member for member in found["members"] if member["group_instance_id"]]
        return {member["group_instance_id"]: _assigned(member["member_assignment"]) for member in named}

    def topics(self, timeout_s: float = 10.0) -> dict[str, int]:
        """Return the number of partitions of every topic we may see."""
        with self._admin("listing topics", timeout_s) as admin:
            return {t["name"]: len(t["partitions"]) for t in admin.describe_topics() if not t["error_code"]}

    def topic_id(self, topic: str, timeout_s: float = 10.0) -> str:
        """Return the id of a topic; "" from brokers that give none."""
        with self._admin(f"asking for the id of topic {topic!r}", timeout_s) as admin:
            (found,) = admin.describe_topics([topic])
        known = UUID(found["topic_id"]) if found.get("topic_id") else UUID(int=0)  # of older brokers: none, or zero
        return str(known) if known.int else ""

    def topic_settings(self, topic: str, timeout_s: float = 10.0) -> dict[str, str]:
        """Return the settings of a topic, defaults included."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        with self._admin(f"reading the settings of topic {topic!r}", timeout_s) as admin:
            found = admin.describe_configs([resource], config_filter=ConfigFilterType.ALL)
        return {name: entry["value"] for name, entry in found["topic"][topic].items()}

    def create_topics(self, topics: Sequence[NewTopic], timeout_s: float = 30.0) -> list[str]:
        """Create those that are not there, and wait until they can be used; return the names of those created."""
        created = []
        with self._admin("creating topics", timeout_s) as admin:
            for topic in topics:
                wanted = {
                    "num_partitions": topic.partitions,
                    "replication_factor": topic.replication,
                    "configs": dict(topic.settings),
                }
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics({topic.name: wanted}, timeout_ms=int(timeout_s * 1000))
                    created.append(topic.name)
            admin.wait_for_topics([topic.name for topic in topics], timeout_ms=int(timeout_s * 1000))
        return created

    def brokers(self, timeout_s: float = 10.0) -> set[str]:
        """Return host:port of every broker the cluster lists."""
        with self._admin("listing brokers", timeout_s) as admin:
            return {f"{broker['host']}:{broker['port']}" for broker in admin.describe_cluster()["brokers"]}

    def _words(self, role: str) -> dict[str, Any]:
        return {
            **for_kafka_python(self.settings),
            "client_id": f"{self.settings.client_id}-{role}",
            "reconnect_backoff_max_ms": 1000,
            "bootstrap_timeout_ms": 10_000,
        }

    @contextlib.contextmanager
    def _admin(self, doing: str, timeout_s: float) -> Iterator[Any]:
        words = {**self._words("admin"), "bootstrap_timeout_ms": int(timeout_s * 1000)}
        with connecting(doing):
            admin = KafkaAdminClient(**words, request_timeout_ms=int(timeout_s * 1000))
        try:
            with told(doing):
                yield admin
        finally:
            admin.close()


class KafkaPythonConsumer:
    """`Consumer` over kafka-python."""

    def __init__(self, words: Mapping[str, Any], group: str, fetch_wait_s: float, member: Member) -> None:
        self._group = group
        session_ms = int(member.session_s * 1000)
        named = {"group_instance_id": member.name} if member.name else {}
        self._failed: PipelineError | None = None
        with connecting("connecting a consumer"):
            self._consumer = KafkaConsumer(
                **words,
                **named,
                group_id=group,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                session_timeout_ms=session_ms,
                # Members hear of a rebalance with a heartbeat, and all of them wait for the last to hear of it.
                heartbeat_interval_ms=min(100, session_ms // 3),
                max_poll_interval_ms=300_000,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                # A third more rows a second than with the default of 1 MB.
                max_partition_fetch_bytes=8 << 20,
                fetch_max_wait_ms=int(fetch_wait_s * 1000),
                metrics_enabled=False,
            )

    def assign(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions, each from that offset on."""
        self._consumer.assign([TopicPartition(*place) for place in positions])
        for place, offset in positions.items():
            self.seek(*place, offset)

    def subscribe(self, topics: Sequence[str], given: Told, taken: Told) -> None:
        """Join the group."""
        with told("joining the group"):
            self._consumer.subscribe(list(topics), listener=_Listener(self._consumer, given, taken))
            # A leader that joins before it knows the topics gives nobody a partition, for minutes.
            for topic in topics:
                self._consumer.partitions_for_topic(topic)

    def begin(self, topic: str, partition: int, offset: int) -> None:
        """Deliver a partition that the group gave to this member."""
        self.seek(topic, partition, offset)
        self._consumer.resume(TopicPartition(topic, partition))

    def rejoin(self) -> None:
        """Have partitions shared out anew, with the next poll."""
        self._consumer._coordinator.request_rejoin()  # nothing public does it

    def poll(self, max_rows: int, max_bytes: int, timeout_s: float) -> list[Polled]:
        """Gather messages."""
        if self._failed is None:
            polled, self._failed = gather(self._take, _size, _columns, max_rows, max_bytes, timeout_s)
            if polled or self._failed is None:
                return polled
        failed, self._failed = self._failed, None
        raise failed

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another offset."""
        with told(f"seeking in topic {topic!r}"):
            self._consumer.seek(TopicPartition(topic, partition), offset)

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset to be read."""
        with told(f"asking for the position in topic {topic!r}"):
            position = self._consumer.position(TopicPartition(topic, partition), timeout_ms=10_000)
        if position is None:
            raise BrokerUnavailable(f"topic {topic!r}, partition {partition} has no position yet")
        return int(position)

    def committed(self, topic: str, partition: int, timeout_s: float) -> Committed | None:
        """Return the group's committed offset once no transaction over it is pending."""
        doing = f"reading the committed offset of group {self._group!r}, topic {topic!r}, partition {partition}"
        place = TopicPartition(topic, partition)
        with told(doing):
            try:
                found = self._consumer.committed(place, metadata=True, timeout_ms=int(timeout_s * 1000))
            except GroupIdNotFoundError:
                return None
        if found is None or found.offset < 0:
            return None
        return Committed(found.offset, (found.metadata or "").rstrip("\0"))

    def first_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the oldest offset that is still there."""
        with told("asking for the first offsets"):
            asked = [TopicPartition(*place) for place in places]
            found = self._consumer.beginning_offsets(asked, timeout_ms=int(timeout_s * 1000))
        return {(at.topic, at.partition): int(offset) for at, offset in found.items()}

    def end_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the last stable offset."""
        with told("asking for the end offsets"):
            asked = [TopicPartition(*place) for place in places]
            found = self._consumer.end_offsets(asked, timeout_ms=int(timeout_s * 1000))
        return {(at.topic, at.partition): int(offset) for at, offset in found.items()}

    def group_metadata(self) -> Any:
        """Return the group's metadata."""
        return self._consumer.group_metadata()

    def close(self) -> None:
        """Leave the group and let go of the connections."""
        self._consumer.close(autocommit=False, timeout_ms=5000)

    def _take(self, most: int, wait_s: float) -> tuple[dict[Place, list[Any]], PipelineError | None]:
        try:
            found = self._consumer.poll(timeout_ms=int(wait_s * 1000), max_records=most)
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as failed:
            return {}, self._range_error(failed)
        except KafkaError as failed:
            return {}, translated(failed, "reading messages")
        return {(at.topic, at.partition): records for at, records in found.items()}, None

    def _range_error(self, failed: KafkaError) -> PipelineError:
        where = failed.args[0] if failed.args else None
        if not isinstance(where, dict):
            return translated(failed, "reading messages")
        (at, offset) = next(iter(where.items()))
        place = (at.topic, at.partition)
        first, end = self.first_offsets([place], 10.0)[place], self.end_offsets([place], 10.0)[place]
        return out_of_range(*place, int(offset), first, end)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes on what the group does, and holds new partitions back."""

    def __init__(self, consumer: Any, given: Told, taken: Told) -> None:
        self._consumer = consumer
        self._given = given
        self._taken = taken

    def on_partitions_assigned(self, assigned: Sequence[Any]) -> None:
        """Hold new partitions back, at any offset that is not looked for: asking for one can block."""
        for at in assigned:
            self._consumer.seek(at, 0)
            self._consumer.pause(at)
        self._given([(at.topic, at.partition) for at in assigned])

    def on_partitions_revoked(self, revoked: Sequence[Any]) -> None:
        """Pass on what went away."""
        self._taken([(at.topic, at.partition) for at in revoked])

    def on_partitions_lost(self, lost: Sequence[Any]) -> None:
        """Pass on what went away without a word."""
        self._taken([(at.topic, at.partition) for at in lost])


def _size(record: Any) -> int:
    return max(int(record.serialized_value_size), 0)


def _columns(records: Sequence[Any]) -> Columns:
    return (
        [r.offset for r in records],
        [r.timestamp for r in records],
        [r.value for r in records],
        [r.key for r in records],
    )


def _assigned(assignment: Any) -> list[Place]:
    """Return the partitions of a member's assignment; nothing while a rebalance goes on."""
    listed = assignment["assigned_partitions"] if isinstance(assignment, dict) else ()
    return [(part["topic"], p) for part in listed for p in part["partitions"]]
