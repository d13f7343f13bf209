"""The little of Kafka that midwatch uses, as protocols that both clients are put behind.

`connect` picks the client. Everything that goes wrong in either of them comes out as one of `pipeline.errors`. Readers
see committed records only; nothing is committed unless every record of the transaction was acknowledged; and a call
into a transaction that outlives its deadline ends the process, because neither client has a timeout that holds there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from connectors.kafka_settings import KafkaSettings
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, PipelineError, Rebalanced, StateError
from pipeline.values import Place, Polled

LIBRARIES: Final = ("kafka-python", "confluent")  # confluent: confluent-kafka
MAX_RECORD_BYTES: Final = 1_000_000  # what every topic takes that was not told otherwise
EXIT_UNAVAILABLE: Final = 75  # what a supervisor reads as: start again

Told = Callable[[Sequence[Place]], None]


@dataclass(frozen=True, slots=True)
class Committed:
    """A consumer group's committed offset of one partition: the next one to read, and the note beside it."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to create. `replication` -1 and settings that are not named are the broker's defaults."""

    name: str
    partitions: int
    settings: Mapping[str, str] = field(default_factory=dict)
    replication: int = -1


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group. One with a `name` of its own (static) that comes back finds its partitions again.

    Without a sign of life for `session_s` its partitions go to others; brokers allow 6 s and more by default.
    """

    name: str = ""
    session_s: float = 6.0


class Consumer(Protocol):
    """Reads committed records, either of partitions it was told (`assign`) or as a member of its group."""

    def assign(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions, each from that offset on, and no others any more."""
        ...

    def subscribe(self, topics: Sequence[str], given: Told, taken: Told) -> None:
        """Join the group. `given` and `taken` are told of partitions that come and go, mostly within `poll`.

        Of a partition that came nothing is delivered before `begin`.
        """
        ...

    def begin(self, topic: str, partition: int, offset: int) -> None:
        """Deliver a partition that the group gave to this member, from an offset on."""
        ...

    def rejoin(self) -> None:
        """Have partitions shared out anew; those of this member may go and come back meanwhile.

        A broker does so for certain only where the group's leader asks, whichever member that is.
        """
        ...

    def poll(self, max_rows: int, max_bytes: int, timeout_s: float) -> list[Polled]:
        """Gather messages until there are `max_rows`, about `max_bytes`, or `timeout_s` has passed."""
        ...

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another offset."""
        ...

    def position(self, topic: str, partition: int) -> int:
        """Return the next offset to be read, past what readers of committed records do not get to see."""
        ...

    def committed(self, topic: str, partition: int, timeout_s: float) -> Committed | None:
        """Return the group's committed offset once no transaction over it is pending."""
        ...

    def first_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the oldest offset that is still there."""
        ...

    def end_offsets(self, places: Sequence[Place], timeout_s: float) -> dict[Place, int]:
        """Return the offset up to which everything is decided (the last stable offset)."""
        ...

    def group_metadata(self) -> Any:
        """Return what `Producer.send_offsets` of the same client needs to know about the group."""
        ...

    def close(self) -> None:
        """Let go of the connections."""
        ...


class Producer(Protocol):
    """Sends records; with a transactional id, in transactions that are seen as a whole or not at all."""

    def init_transactions(self) -> None:
        """End what an earlier producer of this transactional id left open, and fence that producer off."""
        ...

    def begin(self) -> None:
        """Begin a transaction."""
        ...

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
    ) -> None:
        """Queue one record; -1 leaves the partition to the hash of the key (the same in both clients)."""
        ...

    def flush(self) -> None:
        """Return once every record sent was acknowledged; raises for the first that was not."""
        ...

    def send_offsets(self, offsets: Mapping[Place, Committed], group: Any) -> None:
        """Make the offsets that were read part of the transaction."""
        ...

    def commit(self) -> None:
        """Commit; does not return unless the outcome is known."""
        ...

    def abort(self) -> None:
        """Abort the transaction: nobody gets to see its records."""
        ...

    def close(self) -> None:
        """Let go of the connections."""
        ...


class Client(Protocol):
    """One of the two client libraries, with the settings to connect by."""

    settings: KafkaSettings

    def consumer(self, group: str, *, fetch_wait_s: float = 0.1, member: Member | None = None) -> Consumer:
        """Return a consumer of a group; other questions to a broker wait behind a fetch at the end of a log."""
        ...

    def producer(
        self,
        transactional_id: str = "",
        *,
        timeout_s: float = 15.0,
        client_id: str = "",
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> Producer:
        """Return a producer; `timeout_s` is what one transaction, and one record, may take."""
        ...

    def owners(self, group: str, timeout_s: float = 10.0) -> dict[str, list[Place]]:
        """Return the partitions of each static member of a group, by its name."""
        ...

    def topics(self, timeout_s: float = 10.0) -> dict[str, int]:
        """Return the number of partitions of every topic we may see."""
        ...

    def topic_id(self, topic: str, timeout_s: float = 10.0) -> str:
        """Return the id of a topic, which one that is made anew does not have; "" from brokers that give none."""
        ...

    def topic_settings(self, topic: str, timeout_s: float = 10.0) -> dict[str, str]:
        """Return the settings of a topic, defaults included."""
        ...

    def create_topics(self, topics: Sequence[NewTopic], timeout_s: float = 30.0) -> list[str]:
        """Create those that are not there, and wait until they can be used; return the names of those created."""
        ...

    def brokers(self, timeout_s: float = 10.0) -> set[str]:
        """Return host:port of every broker the cluster lists."""
        ...


def connect(settings: KafkaSettings, library: str = "kafka-python") -> Client:
    """Return a client; nothing is connected to yet.

    Raises
    ------
    ConfigError : `library` is neither of the two.
    """
    if library == "kafka-python":
        with warnings.catch_warnings():
            # It reads the schemas of its messages in a way that Python 3.11 and 3.12 warn of.
            warnings.simplefilter("ignore", DeprecationWarning)
            from connectors.kafka_via_python import KafkaPythonClient

        return KafkaPythonClient(settings)
    if library == "confluent":
        from connectors.kafka_via_confluent import ConfluentClient

        return ConfluentClient(settings)
    raise ConfigError("kafka.client", library, f"one of {', '.join(LIBRARIES)}")


def has_crc32c() -> bool:
    """Return whether kafka-python checks records natively; without, it reads 5 to 20 times slower."""
    return importlib.util.find_spec("crc32c") is not None


# Kafka's error codes, which both clients keep. Those not named here are told apart by the client's retriable flag.
# LEADER_NOT_AVAILABLE, NOT_LEADER, REQUEST_TIMED_OUT, NETWORK_EXCEPTION, COORDINATOR_*, NOT_COORDINATOR,
# NOT_ENOUGH_REPLICAS*, CONCURRENT_TRANSACTIONS, UNSTABLE_OFFSET_COMMIT
_PASSING: Final = {5, 6, 7, 13, 14, 15, 16, 19, 20, 51, 88}
_FENCED: Final = {47, 82, 90}  # INVALID_PRODUCER_EPOCH, FENCED_INSTANCE_ID, PRODUCER_FENCED
_DENIED: Final = {29, 30, 31, 33, 34, 53, 58}  # *_AUTHORIZATION_FAILED, SASL mechanism, state and authentication
_NO_TOPIC: Final = {3}  # UNKNOWN_TOPIC_OR_PART
_TOO_LARGE: Final = {10, 18}  # MSG_SIZE_TOO_LARGE, RECORD_LIST_TOO_LARGE
_NOT_A_MEMBER: Final = {22, 25, 27}  # ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS


def kafka_error(code: int, text: str, retriable: bool, doing: str) -> PipelineError:
    """Return the error of ours for an error of Kafka's, met while `doing` something."""
    said = f"{doing}: {text}"
    if code in _FENCED:
        return Fenced(f"{said}. A newer process holds the same slot and has fenced this one off")
    if code in _DENIED:
        return ConfigError("kafka", doing, f"the broker refuses it: {text}; check user, password and access rights")
    if code in _NO_TOPIC:
        return ConfigError("kafka", doing, f"{text}; fix its name, or let `midwatch topics create` create it")
    if code in _TOO_LARGE:
        return StateError(f"{said}. Raise the topic's max.message.bytes")
    if code in _NOT_A_MEMBER:
        return Rebalanced(f"{said}. The group has other members, or this one was taken for dead")
    if retriable or code in _PASSING:
        return BrokerUnavailable(said)
    return StateError(said)


def missing_topic(option: str, topic: str) -> ConfigError:
    """Return the error for the topic of an option that is not there, with the command that creates it."""
    return ConfigError(option, topic, "no such topic: fix its name, or let `midwatch topics create` create it")


def out_of_range(topic: str, partition: int, offset: int, first: int, end: int) -> StateError:
    """Return the error for an offset that the log does not have, any more or at all."""
    here = f"topic {topic!r}, partition {partition}"
    if offset < first:
        return StateError(
            f"{here}: offset {offset} has aged out, the earliest available is {first}; the {first - offset} messages "
            "between are gone. Raise the topic's retention. To go on without them, with the state there is, set "
            "kafka.aged_out = 'resume'"
        )
    return StateError(
        f"{here}: offset {offset} is past the end, {end}: the topic was deleted and created again. "
        "Start the feed again under a new group"
    )


@contextlib.contextmanager
def watchdog(deadline_s: float, doing: str) -> Iterator[None]:
    """End the process with exit code 75 if the block takes longer than `deadline_s`.

    The transactional calls of both clients can block for ever (kafka-python has no timeout, librdkafka's does not
    always hold), and what a caller left waiting would do next could not be trusted. Recovery is the same as start.
    """

    def expire() -> None:
        sys.stderr.write(f"midwatch: {doing} has not returned after {deadline_s:.0f} s: ending the process\n")
        sys.stderr.flush()
        os._exit(EXIT_UNAVAILABLE)

    timer = threading.Timer(deadline_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


R = TypeVar("R")
Columns = tuple[Sequence[int], Sequence[int], Sequence[bytes | None], Sequence[bytes | None]]  # offset, ms, value, key
_MOST_AT_ONCE: Final = 2000
_FIRST_GUESS_BYTES: Final = 65_536


def gather(
    take: Callable[[int, float], tuple[Mapping[Place, Sequence[R]], PipelineError | None]],
    size: Callable[[R], int],
    columns: Callable[[Sequence[R]], Columns],
    max_rows: int,
    max_bytes: int,
    timeout_s: float,
) -> tuple[list[Polled], PipelineError | None]:
    """Take records until there are enough or the time is up; return one `Polled` per partition, and what went wrong.

    `take(n, wait_s)` returns at most n records by partition. Records that were taken before something went wrong are
    returned with it, because the client will not hand them out a second time.
    """
    found: dict[Place, list[R]] = {}
    rows = volume = 0
    mean = _FIRST_GUESS_BYTES
    deadline = time.monotonic() + timeout_s
    failed: PipelineError | None = None
    while rows < max_rows and volume < max_bytes and failed is None:
        left = deadline - time.monotonic()
        most = min(max_rows - rows, _MOST_AT_ONCE, 1 + (max_bytes - volume) // mean)
        taken, failed = take(most, max(left, 0.0))
        count = sum(map(len, taken.values()))
        if count:
            came = sum(size(record) for records in taken.values() for record in records)
            rows, volume, mean = rows + count, volume + came, max(1, came // count)
        for place, records in taken.items():
            found.setdefault(place, []).extend(records)
        if left <= 0.0:
            break
    return [_polled(place, columns(records)) for place, records in found.items() if records], failed


def _polled(place: Place, columns: Columns) -> Polled:
    offset, ts_ms, value, key = columns
    ms = np.asarray(ts_ms, np.int64)
    # A record without a time of its own has -1 (or, from old brokers, 0): both are "no time".
    return Polled(*place, np.asarray(offset, np.int64), np.where(ms > 0, ms, 0) * 1_000_000, value, key)
