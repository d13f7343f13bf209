"""Committed logs in memory, followed as Kafka's are: for historian and notifier, with a button for crashes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from connectors.kafka_client import Committed
from connectors.memory import messages
from pipeline.values import Place, Polled


class Topics:
    """What is committed in a few topics, and the positions of one consumer group: it outlives any process."""

    def __init__(self) -> None:
        self.logs: dict[Place, list[tuple[int, bytes]]] = {}
        self.ends: dict[Place, int] = {}
        self.committed: dict[Place, Committed] = {}

    def add(self, topic: str, partition: int, values: Sequence[bytes], marker: bool = True) -> None:
        """Append a transaction: its records, and the marker that no reader gets to see."""
        place = (topic, partition)
        log = self.logs.setdefault(place, [])
        for value in values:
            log.append((self.ends.get(place, 0), value))
            self.ends[place] = log[-1][0] + 1
        self.ends[place] = self.ends.get(place, 0) + marker

    def polled(self, place: Place, first: int, count: int) -> Polled | None:
        """Return up to `count` messages from an offset on."""
        found = [(at, value) for at, value in self.logs[place] if at >= first][:count]
        if not found:
            return None
        one = messages(*place, [value for _, value in found])
        return Polled(one.topic, one.partition, np.array([at for at, _ in found], np.int64), one.log_ts_ns, one.value)


class MemoryFollower:
    """`Follower` of topics in memory.

    Parameters
    ----------
    cut : how many messages of a log the next poll hands over.
    crash : called before positions are committed (`before`) and after it (`after`).
    """

    def __init__(
        self, topics: Topics, cut: Callable[[], int] = lambda: 1000, crash: Callable[[str], None] = lambda when: None
    ) -> None:
        self.topics = topics
        self.held: set[Place] = set()
        self._cut = cut
        self._crash = crash
        self._began = {place: topics.committed.get(place, Committed(0)) for place in topics.logs}
        self._at = {place: at.offset for place, at in self._began.items()}

    def places(self) -> Sequence[Place]:
        return list(self._began)

    def taken_up(self, place: Place) -> Committed:
        return self._began[place]

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        out = []
        for place in self._at:
            polled = None if place in self.held else self.topics.polled(place, self._at[place], self._cut())
            if polled is not None:
                self._at[place] = polled.position
                out.append(polled)
            elif place not in self.held and not any(at >= self._at[place] for at, _ in self.topics.logs[place]):
                self._at[place] = self.topics.ends[place]
        return out

    def position(self, place: Place) -> int:
        return self._at[place]

    def hold(self, places: Collection[Place]) -> None:
        self.held = set(places)

    def commit(self, positions: Mapping[Place, Committed]) -> None:
        self._crash("before")
        for place, at in positions.items():
            known = self.topics.committed.get(place)
            assert known is None or at.offset >= known.offset, f"{place} went back from {known} to {at}"
        self.topics.committed.update(positions)
        self._crash("after")
