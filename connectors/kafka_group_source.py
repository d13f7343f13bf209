"""Messages from Kafka topics whose partitions a consumer group shares out among the workers, and moves as they change.

Rebalancing is cooperative: partitions that stay with a worker are read on. One that comes is held back until its state
is restored; of one that goes, what was read and not yet handed over is dropped, and its next owner reads it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from connectors.kafka_client import Client, Member
from connectors.kafka_source import KnownPartitions, checked_start, start_offset
from pipeline.values import Place, Polled

log = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0  # how long an answer may take


class KafkaGroupSource:
    """`Source` over Kafka, as a member of a group. Offsets are committed by nobody but the `KafkaCommitter`.

    Parameters
    ----------
    client : the library and the cluster, see `connectors.kafka_client.connect`.
    topics : read side by side.
    group : consumer group.
    member : this worker in it.
    start : `earliest` or `latest`: where a partition starts that was never committed.
    max_bytes : about how much one poll may hold.

    Raises
    ------
    ConfigError : a topic that is not there.
    BrokerUnavailable : no broker answers.
    """

    def __init__(
        self,
        client: Client,
        topics: Sequence[str],
        group: str,
        *,
        member: Member,
        start: str = "earliest",
        max_bytes: int = 32 << 20,
    ) -> None:
        self._start = checked_start(start)
        self._max_bytes = max_bytes
        self._known = KnownPartitions(client, topics)
        self._mine: set[Place] = set()
        self._next: dict[Place, int] = {}  # of partitions that have begun: the next offset that is new
        self._lost: list[Place] = []
        self._lock = threading.Lock()  # a client may tell of partitions in a thread of its own
        self._consumer = client.consumer(group, member=member)
        self._consumer.subscribe(list(topics), self._given, self._taken)

    def partitions(self) -> Sequence[Place]:
        """Return the (topic, partition) pairs that are this worker's now."""
        with self._lock:
            return sorted(self._mine)

    def lost(self) -> Sequence[Place]:
        """Return the partitions that were taken away since the last call, those that came back among them."""
        with self._lock:
            lost, self._lost = self._lost, []
            return lost

    def seek(self, topic: str, partition: int, offset: int | None) -> int | None:
        """Let a partition go on at an offset; None: where `start` says. One that was lost meanwhile stays lost.

        Returns the offset where `latest` is now: the next worker would not find it there again.
        """
        place = (topic, partition)
        to_note = offset is None and self._start == "latest"
        if offset is None:
            offset = start_offset(self._consumer, place, self._start)
        with self._lock:
            if place not in self._mine:
                return None
            self._consumer.begin(topic, partition, offset)
            self._next[place] = offset
        return offset if to_note else None

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Gather messages until there are `max_rows`, `max_bytes`, or `timeout_s` has passed.

        Raises
        ------
        StateError : a position has aged out, or a topic has other partitions than at the start.
        Fenced : a newer process holds the slot.
        BrokerUnavailable : no broker answers any more.
        """
        self._known.check()
        polled = self._consumer.poll(max_rows, self._max_bytes, timeout_s)
        with self._lock:
            going = [p for p in polled if (p.topic, p.partition) in self._next]
            return [p for p in map(self._not_again, going) if len(p)]

    def group_metadata(self) -> Any:
        """Return who this member is, for the commit: the broker refuses that of one that is no member any more."""
        return self._consumer.group_metadata()

    def lag(self) -> dict[Place, int]:
        """Return how many messages of each partition are still to be read."""
        with self._lock:
            begun = sorted(self._next)
        ends = self._consumer.end_offsets(begun, _ANSWER_S) if begun else {}
        return {place: max(ends[place] - self._consumer.position(*place), 0) for place in begun}

    def ended(self) -> bool:
        """A topic never ends."""
        return False

    def close(self) -> None:
        """Let go of the connections. The group keeps a static member's partitions for its session."""
        self._consumer.close()

    def _given(self, places: Sequence[Place]) -> None:
        with self._lock:
            self._mine.update(places)

    def _taken(self, places: Sequence[Place]) -> None:
        with self._lock:
            self._mine.difference_update(places)
            for place in places:
                self._next.pop(place, None)
            self._lost += places

    def _not_again(self, polled: Polled) -> Polled:
        """Leave out what was read before: a client that goes on from elsewhere than it was told must not say it twice.

        State would take rows that come again for late ones; a dead letter would be told again.
        """
        place = (polled.topic, polled.partition)
        known = int(np.searchsorted(polled.offset, self._next[place]))
        if not known:
            self._next[place] = polled.position
            return polled
        log.warning("%s[%d] was read again from %d on, at %d", *place, polled.offset[0], self._next[place])
        if known == len(polled):
            self._consumer.seek(*place, self._next[place])
        else:
            self._next[place] = polled.position
        return replace(
            polled,
            offset=polled.offset[known:],
            log_ts_ns=polled.log_ts_ns[known:],
            value=polled.value[known:],
            key=None if polled.key is None else polled.key[known:],
        )
