"""Committed topics, followed by a program that keeps what it reads somewhere else, at least once.

Positions are the offsets of a consumer group, committed by `commit` once what was read is safe. They are committed in
a transaction, for the fence that comes with it: of two processes with the same group the newer one goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from connectors.kafka_client import Client, Committed, missing_topic, out_of_range
from pipeline.errors import StateError
from pipeline.values import Place, Polled

_CHECK_S: Final = 30.0  # how often the cluster is asked for the topics' partitions
_ANSWER_S: Final = 10.0


class Follower(Protocol):
    """Reads logs from where it was last told that everything before is safe."""

    def places(self) -> Sequence[Place]:
        """Return the partitions that are followed; there may be more of them later."""
        ...

    def taken_up(self, place: Place) -> Committed:
        """Return the position that reading a partition began at, and what was noted beside it."""
        ...

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Return what is there, waiting at most `timeout_s`."""
        ...

    def position(self, place: Place) -> int:
        """Return the next offset to be read."""
        ...

    def hold(self, places: Collection[Place]) -> None:
        """Read nothing from these partitions, and from all others again."""
        ...

    def commit(self, positions: Mapping[Place, Committed]) -> None:
        """Note that everything before these positions is safe."""
        ...


@dataclass(slots=True)
class _Log:
    began: Committed
    position: int  # to go on at; the consumer knows better while it reads the log
    committed: Committed | None
    held: bool = False


class KafkaFollower:
    """`Follower` over Kafka. Reads every partition of its topics; partitions added later are read from their start.

    Parameters
    ----------
    topics : option of the configuration -> topic.
    group : consumer group; also the transactional id of its commits.
    resume : go on at the oldest message where the group's position has aged out; else that is an error.
    max_bytes : about how much one poll may hold.

    Raises
    ------
    ConfigError : a topic is missing.
    StateError : a position has aged out, or lies past the end.
    BrokerUnavailable : no broker answers.
    """

    def __init__(
        self,
        client: Client,
        topics: Mapping[str, str],
        group: str,
        *,
        resume: bool = False,
        max_bytes: int = 32 << 20,
        commit_timeout_s: float = 15.0,
    ) -> None:
        self.counts: Counter[str] = Counter()  # `lost`: messages that had aged out; `added`: partitions
        self._client = client
        self._topics = dict(topics)
        self._group = group
        self._resume = resume
        self._max_bytes = max_bytes
        self._logs: dict[Place, _Log] = {}
        self._check_at = 0.0
        self._consumer = client.consumer(group)
        self._producer = client.producer(group, timeout_s=commit_timeout_s, client_id=f"midwatch-{group}")
        try:
            self._producer.init_transactions()
            self._take_up()
        except BaseException:
            self.close()
            raise

    def places(self) -> Sequence[Place]:
        """Return the partitions that are followed."""
        return list(self._logs)

    def taken_up(self, place: Place) -> Committed:
        """Return the position that reading a partition began at, and what was noted beside it."""
        return self._logs[place].began

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Gather messages until there are `max_rows`, `max_bytes`, or `timeout_s` has passed.

        Raises
        ------
        StateError : the position has aged out while it was followed.
        BrokerUnavailable : no broker answers any more.
        """
        if time.monotonic() > self._check_at:
            self._take_up()
        return self._consumer.poll(max_rows, self._max_bytes, timeout_s)

    def position(self, place: Place) -> int:
        """Return the next offset to be read, past what readers of committed messages do not get to see."""
        log = self._logs[place]
        return log.position if log.held else self._consumer.position(*place)

    def ends(self) -> dict[Place, int]:
        """Return the offset up to which everything is decided now."""
        return self._consumer.end_offsets(self.places(), _ANSWER_S)

    def hold(self, places: Collection[Place]) -> None:
        """Read nothing from these partitions, and from all others again."""
        if {p for p, log in self._logs.items() if log.held} == set(places):
            return
        self._note_positions()
        for place, log in self._logs.items():
            log.held = place in places
        self._assign()

    def commit(self, positions: Mapping[Place, Committed]) -> None:
        """Note that everything before these positions is safe.

        Raises
        ------
        StateError : a newer process follows in this group.
        BrokerUnavailable : no broker answers.
        """
        new = {place: at for place, at in positions.items() if self._logs[place].committed != at}
        if not new:
            return
        self._producer.begin()
        self._producer.send_offsets(new, self._consumer.group_metadata())
        self._producer.commit()
        for place, at in new.items():
            self._logs[place].committed = at

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()
        self._producer.close()

    def _take_up(self) -> None:
        """Find partitions that are not followed yet, and where to go on in them."""
        self._check_at = time.monotonic() + _CHECK_S
        known = self._client.topics(_ANSWER_S)
        for option, topic in self._topics.items():
            if topic not in known:
                raise missing_topic(option, topic)
        new = [(t, p) for t in self._topics.values() for p in range(known[t]) if (t, p) not in self._logs]
        if not new:
            return
        if self._logs:
            self.counts["added"] += len(new)
            self._note_positions()
            self._consumer.close()  # it may not ask for new partitions for minutes: another one does at once
            self._consumer = self._client.consumer(self._group)
        first, end = self._consumer.first_offsets(new, _ANSWER_S), self._consumer.end_offsets(new, _ANSWER_S)
        for place in new:
            committed = self._consumer.committed(*place, 3 * _ANSWER_S)
            at = committed or Committed(first[place])
            start = self._start(place, at.offset, first[place], end[place])
            self._logs[place] = _Log(Committed(start, at.metadata), start, committed)
        self._assign()

    def _start(self, place: Place, offset: int, first: int, end: int) -> int:
        if first <= offset <= end:
            return offset
        if offset < first and self._resume:
            self.counts["lost"] += first - offset
            return first
        wrong = out_of_range(*place, offset, first, end)
        if offset < first:
            raise wrong
        raise StateError(
            f"{wrong}. Its offsets begin again, and would take the place of older ones: delete the group's offsets and "
            "name another history.root"
        )

    def _note_positions(self) -> None:
        for place, log in self._logs.items():
            if not log.held:
                log.position = self._consumer.position(*place)

    def _assign(self) -> None:
        self._consumer.assign({place: log.position for place, log in self._logs.items() if not log.held})
