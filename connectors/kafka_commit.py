"""One Kafka transaction per commit: alerts, dead letters, changed state and input offsets, all of it or nothing.

A partition goes on where the group's committed offset says, with the state of the same commit: the offset carries the
commit's number, the state partition carries it too, and the two must agree before anything is read (`restore`).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from connectors.alert_json import cloud_event_headers, dead_letter_headers, encode_alert
from connectors.kafka_client import Client, Committed, Place, Producer
from connectors.kafka_state import (
    MARKER_KEY,
    CommitMarker,
    StatePartition,
    encode_marker,
    pack_state,
    read_state_partition,
    state_key,
)
from connectors.kafka_topics import check_topics
from connectors.scores_topic import ScoresTopic
from pipeline.errors import ConfigError, PipelineError, StateError, Unavailable
from pipeline.protocols import AssetState, Batch, Restored
from pipeline.values import Alert, DeadLetter, Scored

log = logging.getLogger(__name__)

_RECORD_OVERHEAD: Final = 128  # of one record and its batch, rounded up


class OffsetNote(msgspec.Struct, frozen=True):
    """What is kept beside a committed offset: the commit's number, and the configuration that made it."""

    n: int
    config: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record to be sent. `partition` -1: by the hash of the key."""

    topic: str
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int = -1


class KafkaCommitter:
    """`Committer` over Kafka transactions. Opening it ends and fences off what the slot's last process left open.

    Parameters
    ----------
    client : the library and the cluster, see `connectors.kafka_client.connect`.
    group : consumer group; its committed offsets are the positions.
    slot : this worker's number; its transactional id is `<group>-<slot>`.
    state_topics : input topic -> compacted topic of at least as many partitions; partition p keeps p's state.
    config_id : of the running configuration, noted beside every offset.
    scores : where the verdicts of each batch go, if anywhere.
    max_record_bytes : records above this are refused (state, alerts) or cut (dead letters).
    commit_timeout_s : what a commit may take; some seconds later the process is ended.
    restore_timeout_s : what waiting for the last commit may take; longer than a transaction of a lost process, which
        the broker aborts after its timeout and up to 10 s more.
    at_step : called with `after_produce`, `after_send_offsets`, `after_commit`: for tests that end the process there.

    Raises
    ------
    ConfigError : a topic is missing, too small, or not compacted; with the command that helps.
    BrokerUnavailable : no broker answers.
    """

    def __init__(
        self,
        client: Client,
        *,
        group: str,
        slot: int,
        alerts_topic: str,
        dead_topic: str,
        state_topics: Mapping[str, str],
        config_id: str = "",
        scores: ScoresTopic | None = None,
        max_record_bytes: int = 1_000_000,
        commit_timeout_s: float = 15.0,
        restore_timeout_s: float = 60.0,
        at_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._client = client
        self._group = group
        self._alerts_topic = alerts_topic
        self._dead_topic = dead_topic
        self._state_topics = dict(state_topics)
        self._config_id = config_id
        self._scores = scores
        self._max_record_bytes = max_record_bytes
        self._commit_timeout_s = commit_timeout_s
        self._restore_timeout_s = restore_timeout_s
        self._at_step = at_step
        self._transactional_id = f"{group}-{slot}"
        self._owner = f"group {group!r}, slot {slot}, host {socket.gethostname()}, pid {os.getpid()}"
        self._numbers: dict[Place, int] = {}  # of the last commit
        self._over: PipelineError | None = None  # why this committer takes no more commits
        check_topics(client, alerts_topic, dead_topic, state_topics, scores.name if scores else "")
        self._reader = client.consumer(group, fetch_wait_s=0.01)
        self._producer = self._open_producer()

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return where the partition goes on and the state of its assets; None if it was never committed.

        After a commit that failed as unavailable it also makes the committer usable again.

        Raises
        ------
        StateError : the committed offset and the state do not belong together.
        BrokerUnavailable : the last commit is still pending, or no broker answers.
        """
        self._reopen()
        place = (topic, partition)
        deadline = time.monotonic() + self._restore_timeout_s
        at = self._reader.committed(topic, partition, self._restore_timeout_s)
        n = self._note(place, at).n if at is not None else 0
        state_topic = self._state_topic(topic)
        while True:
            state = read_state_partition(self._reader, state_topic, partition, self._restore_timeout_s)
            # Kafka marks a commit in each partition by itself: the offset may be there before the state.
            if state.newest.n >= n:
                break
            if time.monotonic() > deadline:
                raise StateError(
                    f"state topic {state_topic!r}, partition {partition} has commit {state.newest.n} as its newest, "
                    f"the offsets of group {self._group!r} have {n}: its records were lost (see the topic's "
                    "cleanup.policy and retention), or it was created again"
                )
            time.sleep(0.05)
        self._require_same_commit(place, at, n, state)
        self._numbers[place] = n
        return None if at is None else Restored(at.offset, state.assets)

    def commit(self, batch: Batch) -> None:
        """Publish a batch in one transaction.

        Raises
        ------
        StateError : a newer process holds the slot (this one is of no more use), or a record is too large.
        Unavailable : the broker does not answer. `restore` tells what it has and makes the committer usable again.
        """
        if self._over is not None:
            raise self._over
        numbers = {place: self._last_number(place) + 1 for place in batch.positions}
        records = self._records(batch, numbers)
        offsets = {
            place: Committed(position, msgspec.json.encode(OffsetNote(numbers[place], self._config_id)).decode())
            for place, position in batch.positions.items()
        }
        if not records and not offsets:
            return
        try:
            self._send(records, offsets)
        except PipelineError as failed:
            raise self._aborted(failed) from failed
        try:
            self._producer.commit()
        except PipelineError as failed:
            # It may have been taken for all we know: only what a restore finds can tell.
            self._aborted(failed)
            self._over = self._named(failed)
            raise self._over from failed
        self._at_step("after_commit")
        self._numbers.update(numbers)

    def close(self) -> None:
        """Let go of the connections."""
        self._producer.close()
        self._reader.close()

    def _send(self, records: Sequence[Record], offsets: Mapping[Place, Committed]) -> None:
        self._producer.begin()
        for record in records:
            self._producer.send(record.topic, record.value, record.key, record.headers, record.partition)
        self._producer.flush()
        self._at_step("after_produce")
        if offsets:
            self._producer.send_offsets(offsets, self._reader.group_metadata())
        self._at_step("after_send_offsets")

    def _aborted(self, failed: PipelineError) -> PipelineError:
        """Abort the transaction; return the error to raise. Where even that fails, nothing more is taken."""
        named = self._named(failed)
        try:
            self._producer.abort()
        except PipelineError as also:
            log.warning("could not abort the transaction: %s", also)
            self._over = named
        if isinstance(failed, StateError):
            self._over = named
        return named

    def _named(self, failed: PipelineError) -> PipelineError:
        kind = type(failed)
        return failed if kind is ConfigError else kind(f"{failed} ({self._owner})")

    def _open_producer(self) -> Producer:
        label = self._owner.replace(", ", "-").replace(" ", "-").replace("'", "")
        producer = self._client.producer(
            self._transactional_id, timeout_s=self._commit_timeout_s, client_id=f"midwatch-{label}"
        )
        try:
            producer.init_transactions()
        except BaseException:
            producer.close()
            raise
        return producer

    def _reopen(self) -> None:
        """After an unavailable broker: a new producer, which settles what the old one left undecided."""
        if self._over is None:
            return
        if not isinstance(self._over, Unavailable):
            raise self._over
        broken, self._producer = self._producer, self._open_producer()
        self._numbers.clear()
        self._over = None
        broken.close()

    def _last_number(self, place: Place) -> int:
        if place not in self._numbers:
            self.restore(*place)
        return self._numbers[place]

    def _state_topic(self, topic: str) -> str:
        if topic not in self._state_topics:
            known = ", ".join(sorted(self._state_topics))
            raise StateError(f"no state topic for input topic {topic!r}; there is one for: {known}")
        return self._state_topics[topic]

    def _note(self, place: Place, at: Committed) -> OffsetNote:
        try:
            return msgspec.json.decode(at.metadata, type=OffsetNote)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StateError(
                f"topic {place[0]!r}, partition {place[1]}: offset {at.offset} of group {self._group!r} was not "
                f"committed by midwatch (its note is {at.metadata!r}), and says nothing about the state. Start under a "
                "new group, or delete the group's offsets and the state topic's records"
            ) from None

    def _require_same_commit(self, place: Place, at: Committed | None, n: int, state: StatePartition) -> None:
        topic, partition = place
        newest = state.newest
        if newest.n == n and (at is None or newest.position == at.offset):
            return
        has = "no committed offset" if at is None else f"offset {at.offset} of commit {n}"
        raise StateError(
            f"topic {topic!r}, partition {partition}: group {self._group!r} has {has}, but its state is of commit "
            f"{newest.n} at offset {newest.position}. Its offsets were reset, deleted, or have expired "
            "(offsets.retention.minutes), or another process commits at the same time. Start under a new group and "
            "a new state topic"
        )

    def _records(self, batch: Batch, numbers: Mapping[Place, int]) -> list[Record]:
        records = [self._alert_record(alert) for alert in batch.alerts]
        records += [self._dead_record(dead) for dead in batch.dead]
        records += [record for scored in batch.scored for record in self._score_records(scored)]
        for place, states in batch.states.items():
            if place not in batch.positions:
                raise StateError(f"state of topic {place[0]!r}, partition {place[1]} without its position")
            records += [self._state_record(place, state) for state in states]
        for (topic, partition), n in numbers.items():
            marker = encode_marker(CommitMarker(n, batch.positions[topic, partition]))
            records.append(Record(self._state_topic(topic), MARKER_KEY, marker, partition=partition))
        return records

    def _alert_record(self, alert: Alert) -> Record:
        record = Record(self._alerts_topic, alert.asset.encode(), encode_alert(alert), cloud_event_headers(alert))
        return self._fitting(record, f"alert {alert.id}:{alert.seq} of asset {alert.asset!r}")

    def _dead_record(self, dead: DeadLetter) -> Record:
        """Return the message as it came; what is too long for a record is cut, and the headers say so."""
        headers = dead_letter_headers(dead)
        key = f"{dead.topic}/{dead.partition}".encode()
        room = self._max_record_bytes - _RECORD_OVERHEAD - len(key) - sum(len(k) + len(v) for k, v in headers)
        if len(dead.value) <= room:
            return Record(self._dead_topic, key, dead.value, headers)
        note = ("midwatch_cut_from", str(len(dead.value)).encode())
        kept = dead.value[: max(room - len(note[0]) - len(note[1]), 0)]
        return self._fitting(Record(self._dead_topic, key, kept, [*headers, note]), f"dead letter ({dead.reason})")

    def _score_records(self, scored: Scored) -> list[Record]:
        if self._scores is None:
            return []
        key = f"{scored.topic}/{scored.partition}".encode()
        bodies = self._scores.encode(scored, self._max_record_bytes - _RECORD_OVERHEAD - len(key))
        what = f"one row's score of topic {scored.topic!r}"
        records = [Record(self._scores.name, key, body, partition=scored.partition) for body in bodies]
        return [self._fitting(record, what) for record in records]

    def _state_record(self, place: Place, state: AssetState) -> Record:
        topic, partition = place
        record = Record(self._state_topic(topic), state_key(state.asset), pack_state(state), partition=partition)
        return self._fitting(record, f"state of asset {state.asset!r}")

    def _fitting(self, record: Record, what: str) -> Record:
        size = len(record.key) + len(record.value) + sum(len(k) + len(v) for k, v in record.headers)
        if size + _RECORD_OVERHEAD > self._max_record_bytes:
            raise StateError(
                f"{what} takes {size} bytes, more than {self._max_record_bytes} fit into a record of topic "
                f"{record.topic!r}. Raise kafka.max_record_bytes and the topic's max.message.bytes, or make it smaller "
                "(a shorter window, fewer channels)"
            )
        return record
