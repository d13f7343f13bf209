"""`Producer` of `connectors.kafka_client` over confluent-kafka."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka_client import MAX_RECORD_BYTES, Committed, watchdog
from connectors.kafka_confluent_errors import heard, translated
from pipeline.errors import BrokerUnavailable, StateError
from pipeline.values import Place

# A call that has not ended this much after its timeout is not going to.
_GRACE: Final = 4 / 3


class ConfluentProducer:
    """`Producer` over confluent-kafka."""

    def __init__(
        self, words: Mapping[str, Any], transactional_id: str, timeout_s: float, max_record_bytes: int
    ) -> None:
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
                "error_cb": heard,
                "enable.idempotence": True,
                "message.timeout.ms": timeout_ms,
                # The default, 100 ms, is waited out by every transaction that follows close on another.
                "retry.backoff.ms": 5,
                "linger.ms": 5,
                # A larger record is sent by itself: `batch.size` stays what every topic takes.
                "message.max.bytes": max(max_record_bytes, MAX_RECORD_BYTES),
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
