"""The protocols of `connectors.kafka_client` over confluent-kafka (librdkafka): for high rates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, but not listed for export
    AdminClient,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.admin import NewTopic as ConfluentTopic  # type: ignore[attr-defined]

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
from connectors.kafka_confluent_errors import heard, translated
from connectors.kafka_confluent_producer import ConfluentProducer
from connectors.kafka_settings import KafkaSettings, for_confluent
from pipeline.errors import BrokerUnavailable, PipelineError, StateError
from pipeline.values import Place, Polled

log = logging.getLogger(__name__)

# consume() waits out its timeout for a full batch, so it is asked for short ones.
_SHORT_WAIT_S: Final = 0.02
# Of a partition that is new, or that moves: the other client asks again by itself, librdkafka does not.
_NO_LEADER_YET: Final = (KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION)


class ConfluentClient:
    """`Client` over confluent-kafka."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings

    def consumer(self, group: str, *, fetch_wait_s: float = 0.1, member: Member | None = None) -> ConfluentConsumer:
        """Return a consumer of a group."""
        return ConfluentConsumer(self._words("consumer"), group, fetch_wait_s, member or Member())

    def producer(
        self,
        transactional_id: str = "",
        *,
        timeout_s: float = 15.0,
        client_id: str = "",
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> ConfluentProducer:
        """Return a producer; `timeout_s` is what one transaction, and one record, may take."""
        words = self._words("producer")
        if client_id:
            words["client.id"] = client_id
        return ConfluentProducer(words, transactional_id, timeout_s, max_record_bytes)

    def owners(self, group: str, timeout_s: float = 10.0) -> dict[str, list[Place]]:
        """Return the partitions of each static member of a group, by its name."""

        def describe(admin: AdminClient) -> Any:
            return admin.describe_consumer_groups([group], request_timeout=timeout_s)[group].result(timeout_s + 1)

        found = self._ask(describe, f"listing the members of group {group!r}")
        named = [member for member in found.members if member.group_instance_id]
        return {m.group_instance_id: [(p.topic, p.partition) for p in m.assignment.topic_partitions] for m in named}

    def topics(self, timeout_s: float = 10.0) -> dict[str, int]:
        """Return the number of partitions of every topic we may see."""
        listed = self._ask(lambda admin: admin.list_topics(timeout=timeout_s), "listing topics")
        return {name: len(topic.partitions) for name, topic in listed.topics.items() if topic.error is None}

    def topic_id(self, topic: str, timeout_s: float = 10.0) -> str:
        """Return the id of a topic; "" from brokers that give none."""

        def describe(admin: AdminClient) -> Any:
            asked = TopicCollection([topic])
            return admin.describe_topics(asked, request_timeout=timeout_s)[topic].result(timeout_s + 1)

        known = self._ask(describe, f"asking for the id of topic {topic!r}").topic_id
        high, low = known.get_most_significant_bits(), known.get_least_significant_bits()  # signed
        number = (high % (1 << 64)) << 64 | low % (1 << 64)
        return str(UUID(int=number)) if number else ""

    def topic_settings(self, topic: str, timeout_s: float = 10.0) -> dict[str, str]:
        """Return the settings of a topic, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, topic)

        def describe(admin: AdminClient) -> Any:
            return admin.describe_configs([resource], request_timeout=timeout_s)[resource].result(timeout_s + 1)

        found = self._ask(describe, f"reading the settings of topic {topic!r}")
        return {name: entry.value for name, entry in found.items()}

    def create_topics(self, topics: Sequence[NewTopic], timeout_s: float = 30.0) -> list[str]:
        """Create those that are not there, and wait until they can be used; return the names of those created."""
        wanted = [ConfluentTopic(t.name, t.partitions, t.replication, config=dict(t.settings)) for t in topics]

        def create(admin: AdminClient) -> list[str]:
            made = []
            for name, done in admin.create_topics(wanted, operation_timeout=timeout_s).items():
                try:
                    done.result(timeout_s + 1)
                    made.append(name)
                except KafkaException as failed:
                    if failed.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
            return made

        created: list[str] = self._ask(create, "creating topics") if wanted else []
        deadline = time.monotonic() + timeout_s
        while not {t.name for t in topics} <= self.topics(timeout_s).keys():
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"topics {created} were created, but are not listed after {timeout_s:.0f} s")
            time.sleep(0.05)
        return created

    def brokers(self, timeout_s: float = 10.0) -> set[str]:
        """Return host:port of every broker the cluster lists."""
        listed = self._ask(lambda admin: admin.list_topics(timeout=timeout_s), "listing brokers")
        return {f"{broker.host}:{broker.port}" for broker in listed.brokers.values()}

    def _words(self, role: str) -> dict[str, Any]:
        return {
            **for_confluent(self.settings),
            "client.id": f"{self.settings.client_id}-{role}",
            "reconnect.backoff.max.ms": 1000,
            "log_level": 4,
            "logger": log,  # else librdkafka writes to standard error by itself
        }

    def _ask(self, question: Callable[[AdminClient], Any], doing: str) -> Any:
        heard: list[KafkaError] = []
        words: dict[str, Any] = {**self._words("admin"), "error_cb": heard.append, "log_level": 0}
        with AdminClient(words) as admin:
            try:
                return question(admin)
            except KafkaException as failed:
                # "Timed out" is all the call itself says; why (a certificate, a password) came by the callback.
                admin.poll(0)
                denied = [e for e in heard if e.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)]
                raise translated((denied or heard or [failed.args[0]])[0], doing) from failed


class ConfluentConsumer:
    """`Consumer` over confluent-kafka."""

    def __init__(self, words: Mapping[str, Any], group: str, fetch_wait_s: float, member: Member) -> None:
        self._group = group
        session_ms = int(member.session_s * 1000)
        named = {"group.instance.id": member.name} if member.name else {}
        self._failed: PipelineError | None = None
        self._next: dict[Place, int] = {}
        self._held: set[Place] = set()
        self._join: Callable[[], None] = lambda: None
        self._consumer = confluent_kafka.Consumer(
            {
                **words,
                **named,
                "error_cb": heard,
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                # Says how far a reader has got where the log ends in records it does not get to see.
                "enable.partition.eof": True,
                "session.timeout.ms": session_ms,
                # Members hear of a rebalance with a heartbeat, and all of them wait for the last to hear of it.
                "heartbeat.interval.ms": min(100, session_ms // 3),
                "max.poll.interval.ms": 300_000,
                "partition.assignment.strategy": "cooperative-sticky",
                "fetch.wait.max.ms": int(fetch_wait_s * 1000),
                "max.partition.fetch.bytes": 8 << 20,
                "queued.max.messages.kbytes": 32 << 10,
                "fetch.queue.backoff.ms": 10,
                "check.crcs": True,
            }
        )

    def assign(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions, each from that offset on."""
        self._next = dict(positions)
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in positions.items()])

    def subscribe(self, topics: Sequence[str], given: Told, taken: Told) -> None:
        """Join the group."""

        def assigned(consumer: Any, parts: Sequence[TopicPartition]) -> None:
            """Hold new partitions back, where their logs begin.

            A fetch of an offset that has expired would stop the fetcher, which no `seek` starts again; the question
            where a log begins is asked in the background, as asking here can block. Its answer may come after `begin`
            and set the partition back: whoever polls leaves out what it was told not to begin with.
            """
            held = [TopicPartition(at.topic, at.partition, confluent_kafka.OFFSET_BEGINNING) for at in parts]
            self._held.update((at.topic, at.partition) for at in parts)
            consumer.incremental_assign(held)
            consumer.pause(held)
            given([(at.topic, at.partition) for at in parts])

        def gone(_: Any, parts: Sequence[TopicPartition]) -> None:
            taken([(at.topic, at.partition) for at in parts])

        self._join = lambda: self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=gone, on_lost=gone)
        self._join()

    def rejoin(self) -> None:
        """Leave and join: as a member without partitions, for whom the broker has them shared out again."""
        self._consumer.unsubscribe()
        self._join()

    def begin(self, topic: str, partition: int, offset: int) -> None:
        """Deliver a partition that the group gave to this member.

        A fetcher that has nothing else to do sees only after up to a second that a partition is resumed; that it is
        moved, it sees at once.
        """
        self.seek(topic, partition, offset)
        self._held.discard((topic, partition))
        self._consumer.resume([TopicPartition(topic, partition)])
        self.seek(topic, partition, offset)

    def poll(self, max_rows: int, max_bytes: int, timeout_s: float) -> list[Polled]:
        """Gather messages."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        polled, self._failed = gather(self._take, len, _columns, max_rows, max_bytes, timeout_s)
        if self._failed is not None and not polled:
            failed, self._failed = self._failed, None
            raise failed
        return polled

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another offset."""
        self._next[topic, partition] = offset
        deadline = time.monotonic() + 10.0
        while True:
            try:
                self._consumer.seek(TopicPartition(topic, partition, offset))
            except KafkaException as failed:
                # Until the fetcher of a partition that was just assigned runs, it cannot be moved.
                if failed.args[0].code() != KafkaError._STATE or time.monotonic() > deadline:
                    raise translated(failed.args[0], f"seeking in topic {topic!r}") from failed
                time.sleep(0.01)
            else:
                return

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset to be read."""
        return self._next[topic, partition]

    def committed(self, topic: str, partition: int, timeout_s: float) -> Committed | None:
        """Return the group's committed offset once no transaction over it is pending."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._committed(topic, partition, max(deadline - time.monotonic(), 0.1))
            except BrokerUnavailable:
                # A coordinator that is being elected, or a pending transaction, is not always waited for inside.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def first_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the oldest offset that is still there."""
        return {place: self._watermarks(place, timeout_s)[0] for place in places}

    def end_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the last stable offset."""
        return {place: self._watermarks(place, timeout_s)[1] for place in places}

    def group_metadata(self) -> Any:
        """Return the group's metadata."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Leave the group and let go of the connections."""
        self._consumer.close()

    def _committed(self, topic: str, partition: int, timeout_s: float) -> Committed | None:
        doing = f"reading the committed offset of group {self._group!r}, topic {topic!r}, partition {partition}"
        try:
            (found,) = self._consumer.committed([TopicPartition(topic, partition)], timeout=timeout_s)
        except KafkaException as failed:
            if failed.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return None
            raise translated(failed.args[0], doing) from failed
        except UnicodeDecodeError:
            # It reads past a note that has no zero at its end: only what midwatch itself wrote is sure to have one.
            raise StateError(f"{doing}: the note beside it was written by another tool, and cannot be read") from None
        if found.error is not None:
            raise translated(found.error, doing)
        return Committed(found.offset, (found.metadata or "").rstrip("\0")) if found.offset >= 0 else None

    def _watermarks(self, place: Place, timeout_s: float) -> tuple[int, int]:
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(deadline - time.monotonic(), _SHORT_WAIT_S)
            try:
                return self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=left)
            except KafkaException as failed:
                if failed.args[0].code() not in _NO_LEADER_YET or time.monotonic() >= deadline:
                    doing = f"asking for the offsets of topic {place[0]!r}, partition {place[1]}"
                    raise translated(failed.args[0], doing) from failed
            time.sleep(_SHORT_WAIT_S)

    def _take(self, most: int, wait_s: float) -> tuple[dict[Place, list[Message]], PipelineError | None]:
        found: dict[Place, list[Message]] = {}
        failed = None
        try:
            messages = self._consumer.consume(most, min(wait_s, _SHORT_WAIT_S))
        except KafkaException as error:
            return {}, translated(error.args[0], "reading messages")
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            trouble = message.error()
            if place in self._held:
                continue  # fetched before it was paused
            if trouble is None:
                found.setdefault(place, []).append(message)
                self._next[place] = (message.offset() or 0) + 1
            elif trouble.code() == KafkaError._PARTITION_EOF:
                self._next[place] = message.offset() or 0
            else:
                failed = failed or self._read_error(place, trouble)
        return found, failed

    def _read_error(self, place: Place, error: KafkaError) -> PipelineError:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            first, end = self._watermarks(place, 10.0)
            return out_of_range(*place, self._next[place], first, end)
        return translated(error, f"reading topic {place[0]!r}, partition {place[1]}")


def _columns(messages: Sequence[Message]) -> Columns:
    return (
        [m.offset() or 0 for m in messages],
        [m.timestamp()[1] for m in messages],
        [m.value() for m in messages],
        [m.key() for m in messages],
    )
