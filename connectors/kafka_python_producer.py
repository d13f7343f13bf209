"""`Producer` of `connectors.kafka_client` over kafka-python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from connectors.kafka_client import Committed, watchdog
from connectors.kafka_python_errors import connecting, told
from pipeline.values import Place

# A call that has not ended this much after its timeout is not going to.
_GRACE: Final = 4 / 3


class KafkaPythonProducer:
    """`Producer` over kafka-python."""

    def __init__(
        self, words: Mapping[str, Any], transactional_id: str, timeout_s: float, max_record_bytes: int
    ) -> None:
        self._id = transactional_id
        self._timeout_s = timeout_s
        self._sent: list[Any] = []
        timeout_ms = int(timeout_s * 1000)
        own = {"transactional_id": transactional_id} if transactional_id else {}
        with connecting(f"connecting a producer{self._who()}"):
            self._producer = KafkaProducer(
                **words,
                **own,
                transaction_timeout_ms=timeout_ms,
                delivery_timeout_ms=timeout_ms,
                request_timeout_ms=min(10_000, timeout_ms // 2),
                max_block_ms=timeout_ms,
                # The default, 100 ms, is waited out by every transaction that follows close on another.
                retry_backoff_ms=5,
                linger_ms=2,
                batch_size=min(256 << 10, max_record_bytes),
                # Of requests of many records, too; sizes of records are checked before.
                max_request_size=max(64 << 20, max_record_bytes),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )

    def init_transactions(self) -> None:
        """Fence off earlier producers of this transactional id."""
        with self._guarded("init_transactions"):
            self._producer.init_transactions()

    def begin(self) -> None:
        """Begin a transaction."""
        self._sent = []
        with self._guarded("begin_transaction"):
            self._producer.begin_transaction()

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
    ) -> None:
        """Queue one record."""
        where = None if partition < 0 else partition
        with told(f"sending to topic {topic!r}{self._who()}"):
            self._sent.append(self._producer.send(topic, value, key=key, headers=list(headers), partition=where))

    def flush(self) -> None:
        """Return once every record sent was acknowledged.

        `commit_transaction` alone does not do: it succeeds although a record was given up.
        """
        deadline = time.monotonic() + self._timeout_s
        with told(f"sending{self._who()}"):
            self._producer.flush(self._timeout_s)
            for future in self._sent:
                future.get(max(deadline - time.monotonic(), 0.001))
        self._sent = []

    def send_offsets(self, offsets: Mapping[Place, Committed], group: Any) -> None:
        """Make offsets part of the transaction."""
        # confluent-kafka writes a zero after the note, and reads on into other memory where there is none.
        noted = {TopicPartition(*p): OffsetAndMetadata(at.offset, f"{at.metadata}\0", -1) for p, at in offsets.items()}
        with self._guarded("send_offsets_to_transaction"):
            self._producer.send_offsets_to_transaction(noted, group)

    def commit(self) -> None:
        """Commit; does not return unless the outcome is known."""
        with self._guarded("commit_transaction"):
            self._producer.commit_transaction()

    def abort(self) -> None:
        """Abort the transaction."""
        self._sent = []
        with self._guarded("abort_transaction"):
            self._producer.abort_transaction()

    def close(self) -> None:
        """Let go of the connections; what was not sent by then is given up."""
        with contextlib.suppress(KafkaError):
            self._producer.close(timeout=5)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        doing = f"{name}{self._who()}"
        with watchdog(self._timeout_s * _GRACE, doing), told(doing):
            yield

    def _who(self) -> str:
        return f" as {self._id!r}" if self._id else ""
