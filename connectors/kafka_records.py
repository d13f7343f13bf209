"""What a commit sends, as records that fit: alerts, dead letters, and assets' state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.alert_json import cloud_event_headers, dead_letter_headers, encode_alert
from connectors.kafka_state import delta_records, pack_state, state_key
from connectors.scores_topic import ScoresTopic
from pipeline.delta import Delta
from pipeline.errors import StateError
from pipeline.protocols import AssetState
from pipeline.values import Alert, DeadLetter, Scored

RECORD_OVERHEAD: Final = 128  # of one record and its batch, rounded up
_NAME_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Record:
    """One record to be sent. `partition` -1: by the hash of the key."""

    topic: str
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int = -1


@dataclass(frozen=True, slots=True)
class Count:
    """Where the commits of one partition are. `n`: the number of the last; the others as in `CommitHead`."""

    n: int = 0
    every: int = 0
    since: int = 1

    def rotation(self, every: int) -> tuple[int, int]:
        """Return (K, turn) of the next commit. One that is the first of another K saves everything."""
        return (1, 0) if self.n and self.every != every else (every, (self.n + 1) % every)

    def next(self, every: int) -> Count:
        """Return where the commits are after the next one."""
        n = self.n + 1
        whole = self.rotation(every)[0] == 1
        return Count(n, every, n if whole else max(self.since, n - every + 1))


def alert_record(alert: Alert, topic: str, most_bytes: int) -> Record:
    """Return an alert as a CloudEvent, keyed by its asset.

    Raises
    ------
    StateError : it does not fit into a record.
    """
    record = Record(topic, alert.asset.encode(), encode_alert(alert), cloud_event_headers(alert))
    return _fitting(record, most_bytes, f"alert {alert.id}:{alert.seq} of asset {alert.asset!r}")


def dead_record(dead: DeadLetter, topic: str, most_bytes: int) -> Record:
    """Return the message as it came; what is too long for a record is cut, and the headers say so."""
    headers = dead_letter_headers(dead)
    key = f"{dead.topic}/{dead.partition}".encode()
    room = most_bytes - RECORD_OVERHEAD - len(key) - sum(len(k) + len(v) for k, v in headers)
    if len(dead.value) <= room:
        return Record(topic, key, dead.value, headers)
    note = ("midwatch_cut_from", str(len(dead.value)).encode())
    kept = dead.value[: max(room - len(note[0]) - len(note[1]), 0)]
    return _fitting(Record(topic, key, kept, [*headers, note]), most_bytes, f"dead letter ({dead.reason})")


def state_records(
    topic: str,
    partition: int,
    count: Count,
    position: int,
    assets: Sequence[AssetState],
    delta: Delta | None,
    most_bytes: int,
    topic_id: str = "",
) -> Iterator[Record]:
    """Yield what commit `count.n` writes of one partition's state. `topic_id` is that of the input topic.

    Raises
    ------
    StateError : an asset's state does not fit into a record.
    """
    for asset in assets:
        record = Record(topic, state_key(asset.asset), pack_state(asset, count.n), partition=partition)
        yield _fitting(record, most_bytes, f"state of asset {asset.asset!r}")
    room = most_bytes - RECORD_OVERHEAD
    for key, value in delta_records(delta, count.n, position, count.every, count.since, room, topic_id):
        yield Record(topic, key, value, partition=partition)


def asset_record_bytes(state_bytes: int) -> int:
    """Return the most that the record of an asset with so large a state takes, with a name of up to 256 bytes."""
    return RECORD_OVERHEAD + _NAME_BYTES + len(pack_state(AssetState("", b"", b""), 0)) + state_bytes


def score_records(scored: Scored, topic: ScoresTopic, most_bytes: int) -> list[Record]:
    """Return the verdicts of one push, in the partition of their input, in as many records as they need.

    Raises
    ------
    StateError : one row's score does not fit into a record.
    """
    key = f"{scored.topic}/{scored.partition}".encode()
    bodies = topic.encode(scored, most_bytes - RECORD_OVERHEAD - len(key))
    records = [Record(topic.name, key, body, partition=scored.partition) for body in bodies]
    return [_fitting(record, most_bytes, f"one row's score of topic {scored.topic!r}") for record in records]


def _fitting(record: Record, most_bytes: int, what: str) -> Record:
    size = len(record.key) + len(record.value) + sum(len(k) + len(v) for k, v in record.headers)
    if size + RECORD_OVERHEAD > most_bytes:
        raise StateError(
            f"{what} takes {size} bytes, more than {most_bytes} fit into a record of topic {record.topic!r}. Raise "
            "kafka.max_record_bytes and the topic's max.message.bytes to it, or make it smaller (a shorter window, "
            "fewer channels)"
        )
    return record
