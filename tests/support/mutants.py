"""Our own code, broken on purpose: what the fault suite must notice; and two changes of its surroundings.

Only workers of the suite ever call these.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition

from connectors import kafka_confluent_producer, kafka_restore, kafka_source
from connectors.kafka_client import Committed
from pipeline.delta import Delta
from pipeline.values import Place, Rows


def offsets_outside_the_transaction(kafka: Any) -> None:
    """The input offsets are committed by themselves, a moment before the alerts and the state."""

    made = confluent_kafka.Consumer

    def send_offsets(self: Any, offsets: Mapping[Place, Committed], group: Any) -> None:
        listed = [TopicPartition(*place, at.offset, at.metadata) for place, at in offsets.items()]
        outside = made({"bootstrap.servers": ",".join(kafka.bootstrap), "group.id": kafka.group})
        outside.commit(offsets=listed, asynchronous=False)
        outside.close()

    kafka_confluent_producer.ConfluentProducer.send_offsets = send_offsets  # type: ignore[method-assign]


def state_read_uncommitted(kafka: Any) -> None:
    """A restore takes what a transaction wrote that was never committed."""
    made = confluent_kafka.Consumer

    def consumer(words: dict[str, Any], *more: Any, **options: Any) -> Any:
        return made({**words, "isolation.level": "read_uncommitted"}, *more, **options)

    confluent_kafka.Consumer = consumer  # type: ignore[misc,assignment]


def no_replay(_: Any) -> None:
    """A restore leaves out the rows that came into the windows after they were saved."""
    Delta.rows = lambda self, partition, codes: Rows.empty(partition, self.x.shape[1])  # type: ignore[method-assign]


def deltas_ignored(_: Any) -> None:
    """A restore takes assets as they were last saved in full."""
    read = kafka_restore.read_state_partition

    def without(*arguments: Any) -> Any:
        return replace(read(*arguments), deltas=[])

    kafka_restore.read_state_partition = without


def partitions_looked_at_often(_: Any) -> None:
    """No mutant: the source looks every half second for partitions that were added."""
    kafka_source._CHECK_S = 0.5  # type: ignore[misc]


def files_end_at_200_kb(_: Any) -> None:
    """No mutant: the disk takes no more of a file, as one that is full would not; needs no rights."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


MUTANTS: Mapping[str, Callable[[Any], None]] = {
    made.__name__: made
    for made in (
        offsets_outside_the_transaction,
        state_read_uncommitted,
        no_replay,
        deltas_ignored,
        partitions_looked_at_often,
        files_end_at_200_kb,
    )
}
