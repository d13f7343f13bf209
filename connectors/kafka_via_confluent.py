"""The protocols of `connectors.kafka_client` over confluent-kafka (librdkafka): for high rates."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, but not listed for export
    AdminClient,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.admin import NewTopic as ConfluentTopic  # type: ignore[attr-defined]

from connectors.kafka_client import (
    Columns,
    Committed,
    NewTopic,
    Place,
    gather,
    kafka_error,
    out_of_range,
    watchdog,
)
from connectors.kafka_settings import KafkaSettings, for_confluent
from pipeline.errors import BrokerUnavailable, PipelineError, StateError
from pipeline.values import Polled

log = logging.getLogger(__name__)

# consume() waits out its timeout for a full batch, so it is asked for short ones.
_SHORT_WAIT_S: Final = 0.02
# A call that has not ended this much after its timeout is not going to.
_GRACE: Final = 4 / 3
# Errors that only librdkafka has, as the broker's error they come down to.
_LOCAL: Final = {
    KafkaError._FENCED: KafkaError.PRODUCER_FENCED,
    KafkaError._AUTHENTICATION: KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._UNKNOWN_TOPIC: KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION: KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_TRANSIENT: Final = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._RESOLVE,
    KafkaError._WAIT_COORD,
    KafkaError._SSL,
    KafkaError._QUEUE_FULL,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
}


class ConfluentClient:
    """`Client` over confluent-kafka."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings

    def consumer(self, group: str, *, fetch_wait_s: float = 0.1) -> ConfluentConsumer:
        """Return a consumer of a group."""
        return ConfluentConsumer(self._words("consumer"), group, fetch_wait_s)

    def producer(
        self, transactional_id: str = "", *, timeout_s: float = 15.0, client_id: str = ""
    ) -> ConfluentProducer:
        """Return a producer; `timeout_s` is what one transaction, and one record, may take."""
        words = self._words("producer")
        if client_id:
            words["client.id"] = client_id
        return ConfluentProducer(words, transactional_id, timeout_s)

    def topics(self, timeout_s: float = 10.0) -> dict[str, int]:
        """Return the number of partitions of every topic we may see."""
        listed = self._ask(lambda admin: admin.list_topics(timeout=timeout_s), "listing topics")
        return {name: len(topic.partitions) for name, topic in listed.topics.items() if topic.error is None}

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
        words: dict[str, Any] = {**self._words("admin"), "error_cb": heard.append}
        admin = AdminClient(words)
        try:
            return question(admin)
        except KafkaException as failed:
            # "Timed out" is all the call itself says; why (a name, a certificate, a password) came by the callback.
            admin.poll(0)
            denied = [e for e in heard if e.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)]
            raise translated((denied or heard or [failed.args[0]])[0], doing) from failed


class ConfluentConsumer:
    """`Consumer` over confluent-kafka."""

    def __init__(self, words: Mapping[str, Any], group: str, fetch_wait_s: float) -> None:
        self._group = group
        self._failed: PipelineError | None = None
        self._next: dict[Place, int] = {}
        self._consumer = confluent_kafka.Consumer(
            {
                **words,
                "error_cb": _heard,
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                # Says how far a reader has got where the log ends in records it does not get to see.
                "enable.partition.eof": True,
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 2000,
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

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self._consumer.subscribe(list(topics))

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
        try:
            return self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=timeout_s)
        except KafkaException as failed:
            doing = f"asking for the offsets of topic {place[0]!r}, partition {place[1]}"
            raise translated(failed.args[0], doing) from failed

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


class ConfluentProducer:
    """`Producer` over confluent-kafka."""

    def __init__(self, words: Mapping[str, Any], transactional_id: str, timeout_s: float) -> None:
        self._id = transactional_id
        self._timeout_s = timeout_s
        self._sent = 0
        self._acknowledged = 0
        self._undelivered: KafkaError | None = None
        timeout_ms = int(timeout_s * 1000)
        own = {"transactional.id": transactional_id, "transaction.timeout.ms": timeout_ms} if transactional_id else {}
        self._producer = confluent_kafka.Producer(
            {
                **words,
                **own,
                "error_cb": _heard,
                "enable.idempotence": True,
                "message.timeout.ms": timeout_ms,
                # The default, 100 ms, is waited out by every transaction that follows close on another.
                "retry.backoff.ms": 5,
                "linger.ms": 5,
                # Java's hash, and kafka-python's: a change of client moves no asset to another partition.
                "partitioner": "murmur2_random",
            }
        )

    def init_transactions(self) -> None:
        """Fence off earlier producers of this transactional id."""
        self._transact("init_transactions", self._producer.init_transactions)

    def begin(self) -> None:
        """Begin a transaction."""
        self._sent = self._acknowledged = 0
        self._undelivered = None
        self._transact("begin_transaction", lambda _: self._producer.begin_transaction())

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
    ) -> None:
        """Queue one record."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition, on_delivery=self._delivered, headers=list(headers) or None
                )
            except BufferError:
                self._serve(lambda: self._producer.poll(0.05))
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"sending to topic {topic!r}: the queue stays full") from None
            except KafkaException as failed:
                raise translated(failed.args[0], f"sending to topic {topic!r}") from failed
            else:
                self._sent += 1
                return

    def flush(self) -> None:
        """Return once every record sent was acknowledged."""
        waiting = self._serve(lambda: self._producer.flush(self._timeout_s))
        if self._undelivered is not None:
            raise translated(self._undelivered, f"sending{self._who()}")
        if waiting or self._acknowledged != self._sent:
            lacking = self._sent - self._acknowledged
            raise BrokerUnavailable(f"sending{self._who()}: {lacking} of {self._sent} records were not acknowledged")

    def send_offsets(self, offsets: Mapping[Place, Committed], group: Any) -> None:
        """Make offsets part of the transaction."""
        listed = [TopicPartition(*place, at.offset, at.metadata) for place, at in offsets.items()]
        self._transact(
            "send_offsets_to_transaction",
            lambda left_s: self._producer.send_offsets_to_transaction(listed, group, left_s),
        )

    def commit(self) -> None:
        """Commit; does not return unless the outcome is known."""
        self._transact("commit_transaction", self._producer.commit_transaction, give_up=False)

    def abort(self) -> None:
        """Abort the transaction."""
        self._transact("abort_transaction", self._producer.abort_transaction)

    def close(self) -> None:
        """Let go of the connections."""
        # It aborts what is open, and complains where that fails: a newer producer has done so already.
        with warnings.catch_warnings(), contextlib.suppress(KafkaException):
            warnings.simplefilter("ignore", RuntimeWarning)
            self._producer.close()

    def _serve(self, call: Callable[[], int]) -> int:
        """Make a call within which librdkafka reports deliveries and fatal errors.

        With deliveries to report, confluent-kafka 2.16 raises a fatal error as a `KafkaError`, which is no exception
        and passes every `except` that names a class, or as a SystemError.
        """
        try:
            return call()
        except:  # noqa: E722
            error: object = sys.exc_info()[1]
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            if isinstance(error, KafkaException):
                error = error.args[0]
        doing = f"sending{self._who()}"
        if isinstance(error, KafkaError):
            raise translated(error, doing)
        try:
            self._producer.begin_transaction()  # does nothing after a fatal error but to name it
        except KafkaException as failed:
            raise translated(failed.args[0], doing) from failed
        raise StateError(f"{doing}: {error}")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._acknowledged += 1
        elif self._undelivered is None:
            self._undelivered = error

    def _transact(self, name: str, call: Callable[[float], None], give_up: bool = True) -> None:
        """Make one transactional call, again while it fails in a way that allows it.

        `give_up=False` goes on until it succeeds, fails for good, or the watchdog ends the process.
        """
        doing = f"{name}{self._who()}"
        deadline = time.monotonic() + self._timeout_s
        with watchdog(self._timeout_s * _GRACE, doing):
            while True:
                try:
                    call(max(deadline - time.monotonic(), 0.1))
                except KafkaException as failed:
                    error: KafkaError = failed.args[0]
                    again = error.retriable() and not error.txn_requires_abort()
                    if not again or (give_up and time.monotonic() > deadline):
                        raise translated(error, doing) from failed
                    time.sleep(0.005)
                else:
                    return

    def _who(self) -> str:
        return f" as {self._id!r}" if self._id else ""


def _heard(error: KafkaError) -> None:
    """Take what librdkafka says on its own. Without this, it comes up as an exception within some other call."""
    log.warning("%s: %s", error.name(), error.str())


def translated(error: KafkaError, doing: str) -> PipelineError:
    """Return the error of ours for one of librdkafka's."""
    code = _LOCAL.get(error.code(), error.code())
    retriable = error.retriable() or error.code() in _TRANSIENT
    if error.code() == KafkaError._STATE:
        return StateError(f"{doing}: {error.str()}")
    return kafka_error(code, f"{error.name()}: {error.str()}", retriable, doing)


def _columns(messages: Sequence[Message]) -> Columns:
    return (
        [m.offset() or 0 for m in messages],
        [m.timestamp()[1] for m in messages],
        [m.value() for m in messages],
        [m.key() for m in messages],
    )
