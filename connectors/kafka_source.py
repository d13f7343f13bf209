"""Messages from Kafka topics, by fixed slots: `slot` of `slots` reads the partitions p with p mod slots = slot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from connectors.kafka_client import Client, Consumer, missing_topic, out_of_range
from pipeline.errors import ConfigError, StateError
from pipeline.values import Place, Polled

_CHECK_S: Final = 30.0  # how often the cluster is asked for the topics' partitions
_ANSWER_S: Final = 10.0  # how long an answer may take


class KafkaSource:
    """`Source` over Kafka. Committed messages only; offsets are committed by nobody but the `KafkaCommitter`.

    Parameters
    ----------
    client : the library and the cluster, see `connectors.kafka_client.connect`.
    topics : read side by side; partition p of every topic belongs to the same slot.
    group : consumer group.
    slot, slots : this worker's number, from 0, and how many there are.
    start : `earliest` or `latest`: where a partition starts that is not sought to.
    max_bytes : about how much one poll may hold.

    Raises
    ------
    ConfigError : a topic that is not there, or a slot that has no partition.
    BrokerUnavailable : no broker answers.
    """

    def __init__(
        self,
        client: Client,
        topics: Sequence[str],
        group: str,
        *,
        slot: int = 0,
        slots: int = 1,
        start: str = "earliest",
        max_bytes: int = 32 << 20,
    ) -> None:
        if not 0 <= slot < slots:
            raise ConfigError("kafka.slot", slot, f"from 0 to {slots - 1}, because kafka.slots = {slots}")
        self._start = checked_start(start)
        self._max_bytes = max_bytes
        self._known = KnownPartitions(client, topics)
        counts = self._known.counts
        self._places = [(t, p) for t in topics for p in range(counts[t]) if p % slots == slot]
        if not self._places:
            fix = f"no partition is left for it: the topics have {max(counts.values())}; use fewer slots"
            raise ConfigError("kafka.slot", slot, fix)
        self._sought: dict[Place, int] = {}
        self._assigned = False
        self._consumer = client.consumer(group)

    def partitions(self) -> Sequence[Place]:
        """Return the (topic, partition) pairs of this slot."""
        return list(self._places)

    def lost(self) -> Sequence[Place]:
        """Return nothing: a slot keeps its partitions."""
        return ()

    def seek(self, topic: str, partition: int, offset: int | None) -> int | None:
        """Go on at an offset; None: where `start` says.

        Returns the offset where `latest` is now: the next process would not find it there again.

        Raises
        ------
        StateError : the log does not reach back (or on) to it; names the earliest that is there.
        """
        place = (topic, partition)
        if place not in self._places:
            raise StateError(f"topic {topic!r}, partition {partition} is not read by this slot")
        if offset is None:
            self._go_on(place, offset := start_offset(self._consumer, place, self._start))
            return offset if self._start == "latest" else None
        first = self._consumer.first_offsets([place], _ANSWER_S)[place]
        end = self._consumer.end_offsets([place], _ANSWER_S)[place]
        if not first <= offset <= end:
            raise out_of_range(topic, partition, offset, first, end)
        self._go_on(place, offset)
        return None

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Gather messages until there are `max_rows`, `max_bytes`, or `timeout_s` has passed.

        Raises
        ------
        StateError : the position has aged out, or the topic has other partitions than at the start.
        BrokerUnavailable : no broker answers any more.
        """
        if not self._assigned:
            self._assign()
        self._known.check()
        return self._consumer.poll(max_rows, self._max_bytes, timeout_s)

    def lag(self) -> dict[Place, int]:
        """Return how many messages of each partition are still to be read."""
        if not self._assigned:
            self._assign()
        ends = self._consumer.end_offsets(self._places, _ANSWER_S)
        return {place: max(ends[place] - self._consumer.position(*place), 0) for place in self._places}

    def ended(self) -> bool:
        """A topic never ends."""
        return False

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _go_on(self, place: Place, offset: int) -> None:
        if self._assigned:
            self._consumer.seek(*place, offset)
        else:
            self._sought[place] = offset

    def _assign(self) -> None:
        """Assign all partitions at once, when the first poll knows where each of them goes on."""
        for place in self._places:
            if place not in self._sought:
                self._sought[place] = start_offset(self._consumer, place, self._start)
        self._consumer.assign(self._sought)
        self._assigned = True


def checked_start(start: str) -> str:
    """Return `start` if it is one.

    Raises
    ------
    ConfigError : it is neither `earliest` nor `latest`.
    """
    if start not in ("earliest", "latest"):
        raise ConfigError("kafka.start", start, "earliest or latest")
    return start


def start_offset(consumer: Consumer, place: Place, start: str) -> int:
    """Return where a partition starts that was never committed."""
    ask = consumer.first_offsets if start == "earliest" else consumer.end_offsets
    return ask([place], _ANSWER_S)[place]


class KnownPartitions:
    """How many partitions topics had at the start. `check` asks again now and then.

    Clients wait for a lost broker without a word, and nothing else would tell silence from a broken connection.

    Raises
    ------
    ConfigError : a topic that is not there.
    """

    def __init__(self, client: Client, topics: Sequence[str]) -> None:
        self._client = client
        self._topics = list(topics)
        self.counts = self._ask()
        self._again_at = time.monotonic() + _CHECK_S

    def check(self) -> None:
        """Ask the cluster, if it is time to.

        Raises
        ------
        StateError : a topic has other partitions than at the start.
        BrokerUnavailable : no broker answers any more.
        """
        if time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + _CHECK_S
        for topic, count in self._ask().items():
            if count != self.counts[topic]:
                raise StateError(
                    f"topic {topic!r} has {count} partitions now, and had {self.counts[topic]}: assets have moved "
                    "between them, away from their state. Drain the feed, then start it again under a new group, with "
                    "a state topic of as many partitions"
                )

    def _ask(self) -> dict[str, int]:
        known = self._client.topics(_ANSWER_S)
        for topic in self._topics:
            if topic not in known:
                raise missing_topic("kafka.topic", topic)
        return {topic: known[topic] for topic in self._topics}
