"""Messages from Kafka topics whose partitions a consumer group shares out among the workers, and moves as they change.

Rebalancing is cooperative: partitions that stay with a worker are read on. One that comes is held back until its state
is restored; of one that goes, what was read and not yet handed over is dropped, and its next owner reads it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from connectors.kafka_client import Client, Member
from connectors.kafka_source import KnownPartitions, checked_start, start_offset
from pipeline.errors import PipelineError
from pipeline.values import Place, Polled

log = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0  # how long an answer may take
_OWNERS_S: Final = 5.0  # from one look at who reads what to the next


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
        self._topics = list(topics)
        self._joined = False
        self._unread = Unread(client, group, member.name, self._known.counts)
        self._consumer = client.consumer(group, member=member)

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
        if not self._joined:
            # No sooner: until it polls, a member answers no rebalance, and keeps the whole group waiting.
            self._consumer.subscribe(self._topics, self._given, self._taken)
            self._joined = True
        self._known.check()
        if self._unread.look():
            self._consumer.rejoin()
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


class Unread:
    """Partitions that no member of the group reads, though nothing is being shared out.

    Cooperative assignors hold back what moves until its last owner has let go of it. Where that one never knew that it
    had it (it was started again meanwhile), nobody asks for the next rebalance, and the partition would stand still
    without a word until somebody joins or leaves.

    Parameters
    ----------
    name : this member's.
    counts : topic -> partitions.
    """

    def __init__(self, client: Client, group: str, name: str, counts: Mapping[str, int]) -> None:
        self._client, self._group, self._name = client, group, name
        self._places = {(topic, p) for topic, count in counts.items() for p in range(count)}
        self._again_at = time.monotonic() + _OWNERS_S
        self._asking: threading.Thread | None = None
        self._looks = 0  # in a row that found the same
        self._found: set[Place] = set()
        self._members: list[str] = []

    def look(self) -> bool:
        """Return whether this member is to have partitions shared out anew. Asks the cluster now and then, beside.

        A broker obeys the group's leader only, and nobody is told who that is: members take turns.
        """
        if time.monotonic() < self._again_at or (self._asking is not None and self._asking.is_alive()):
            return False
        self._again_at = time.monotonic() + _OWNERS_S
        ours = self._looks > 1 and self._members[self._looks % len(self._members)] == self._name
        if ours:
            listed = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(self._found))
            log.warning("no member of group %r reads %s: having partitions shared out anew", self._group, listed)
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()
        return ours

    def _ask(self) -> None:
        try:
            owners = self._client.owners(self._group)
        except PipelineError as failed:
            log.info("who reads what is not known: %s", failed)
            return
        read = {place for places in owners.values() for place in places}
        unread = self._places - read if read else set()  # while partitions are shared out nobody has any
        self._looks = self._looks + 1 if unread and unread == self._found else int(bool(unread))
        self._found, self._members = unread, sorted(owners)
