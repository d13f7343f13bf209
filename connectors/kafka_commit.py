"""One Kafka transaction per commit: alerts, dead letters, changed state and input offsets, all of it or nothing.

A partition goes on where the group's committed offset says, with the state of the same commit: the offset carries the
commit's number, the state partition carries it too, and the two must agree before anything is read. What is written
of the state is in `connectors.kafka_state`, how it is found again in `connectors.kafka_restore`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from connectors.kafka_client import MAX_RECORD_BYTES, Client, Committed, Consumer, Producer
from connectors.kafka_records import Count, Record, alert_record, dead_record, score_records, state_records
from connectors.kafka_restore import OffsetNote, Restorer
from connectors.kafka_topics import check_topics
from connectors.scores_topic import ScoresTopic
from pipeline.errors import ConfigError, Fenced, PipelineError, Rebalanced, StateError, Unavailable
from pipeline.protocols import Batch, Restored
from pipeline.values import Place

log = logging.getLogger(__name__)


class KafkaCommitter:
    """`Committer` over Kafka transactions. Opening it ends and fences off what the slot's last process left open.

    Parameters
    ----------
    client : the library and the cluster, see `connectors.kafka_client.connect`.
    group : consumer group; its committed offsets are the positions.
    slot : this worker's number; its transactional id is `<group>-<slot>`.
    slots : how many there are: transactions of those that are no members of the group are ended where they stand in
        the way. Without `group_metadata` nobody is a member, and nobody's are.
    group_metadata : of the consumer that reads as a member of the group, so that the broker refuses the commits of one
        that no longer is. None: partitions are not shared out by the group.
    state_topics : input topic -> compacted topic of at least as many partitions; partition p keeps p's state.
    snapshot_every : K; an asset is saved in full in one of K commits after it changed, and what changed in each commit
        is kept for K commits. 1: in full in every commit.
    resume : where the committed offset has expired, go on where the state says.
    scores : where the verdicts of each batch go, if anywhere.
    max_record_bytes : records above this are refused (state, alerts) or cut (dead letters, changes).
    commit_timeout_s : what a commit may take; some seconds later the process is ended.
    restore_timeout_s : what waiting for the last commit may take.
    at_step : called with `before_produce`, `after_produce`, `after_send_offsets`, `after_commit`, `before_restore`,
        `after_read`: for tests that end the process there.

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
        slots: int = 0,
        group_metadata: Callable[[], Any] | None = None,
        snapshot_every: int = 1,
        resume: bool = False,
        scores: ScoresTopic | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
        commit_timeout_s: float = 15.0,
        restore_timeout_s: float = 60.0,
        at_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._client = client
        self._group = group
        self._alerts_topic = alerts_topic
        self._dead_topic = dead_topic
        self._state_topics = dict(state_topics)
        self._every = snapshot_every
        self._scores = scores
        self._max_record_bytes = max_record_bytes
        self._commit_timeout_s = commit_timeout_s
        self._at_step = at_step
        self._transactional_id = transactional_id(group, slot)
        self._owner = f"group {group!r}, slot {slot}, host {socket.gethostname()}, pid {os.getpid()}"
        self._counts: dict[Place, Count] = {}
        self._last: dict[Place, Committed | None] = {}  # the group's offsets after our last commit, or restore
        self._over: PipelineError | None = None  # why this producer takes no more commits
        self._replaced = False  # this producer came after another one of ours, and what that left is not looked up yet
        # Whether this producer has committed. Without members nobody fences it off but a newer process of its slot.
        self._proven = group_metadata is None
        check_topics(client, alerts_topic, dead_topic, state_topics, scores.name if scores else "", max_record_bytes)
        self._topic_ids = {topic: client.topic_id(topic) for topic in state_topics}
        self._restorer = Restorer(
            client,
            group,
            self._state_topics,
            topic_ids=self._topic_ids,
            transactional_ids=[transactional_id(group, s) for s in range(slots) if s != slot] if group_metadata else [],
            resume=resume,
            timeout_s=restore_timeout_s,
            at_step=at_step,
        )
        self._alone: Consumer | None = None if group_metadata else client.consumer(group)
        self._group_metadata = group_metadata or self._alone.group_metadata  # type: ignore[union-attr]
        self._producer = self._open_producer()

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return where the partition goes on and what its assets' state is made of; None if it was never committed.

        Another thread may call it, one at a time, while this one commits.

        Raises
        ------
        StateError : the committed offset and the state do not belong together.
        BrokerUnavailable : the last commit is still pending, or no broker answers.
        """
        self._state_topic(topic)
        found = self._restorer.find((topic, partition))
        self._counts[topic, partition], self._last[topic, partition] = found.count, found.at
        return found.restored

    def rotation(self, topic: str, partition: int) -> tuple[int, int]:
        """Return (K, turn): the share of unsaved assets that the next commit must save."""
        return self._count(topic, partition).rotation(self._every)

    def commit(self, batch: Batch) -> None:
        """Publish a batch in one transaction. The same batch after an error that is retriable is published once.

        Raises
        ------
        Rebalanced : this worker's partitions may have changed; nothing was published.
        Unavailable : the broker does not answer; whether it was published, the next call finds out.
        Fenced : a newer process holds the slot: this one is of no more use.
        StateError : a record is too large.
        """
        if not (batch.positions or batch.alerts or batch.dead or batch.states):
            return
        self._reopen()
        counts = {place: self._count(*place).next(self._every) for place in batch.positions}
        offsets = {place: self._offset(position, counts[place]) for place, position in batch.positions.items()}
        if self._replaced and self._was_taken(offsets):
            self._done(counts, offsets)
            return
        records = self._records(batch, counts)
        try:
            self._send(records, offsets)
        except Fenced as failed:
            if self._proven:
                raise self._aborted(failed) from failed
            # A worker that looked for the owners of a dead one's transactions may have met us before we had joined.
            log.warning("fenced before the first commit, trying once more: %s", failed)
            self._replace_producer()
            self._proven = True
            self.commit(batch)
            return
        except PipelineError as failed:
            raise self._aborted(failed) from failed
        try:
            self._producer.commit()
        except PipelineError as failed:
            raise self._aborted(failed, broken=True) from failed
        self._at_step("after_commit")
        self._done(counts, offsets)

    def close(self) -> None:
        """Let go of the connections."""
        self._producer.close()
        self._restorer.close()
        if self._alone is not None:
            self._alone.close()

    def _send(self, records: Sequence[Record], offsets: Mapping[Place, Committed]) -> None:
        self._at_step("before_produce")
        self._producer.begin()
        for record in records:
            self._producer.send(record.topic, record.value, record.key, record.headers, record.partition)
        self._producer.flush()
        self._at_step("after_produce")
        if offsets:
            self._producer.send_offsets(offsets, self._group_metadata())
        self._at_step("after_send_offsets")

    def _done(self, counts: Mapping[Place, Count], offsets: Mapping[Place, Committed]) -> None:
        self._counts.update(counts)
        self._last.update(offsets)
        self._replaced, self._proven = False, True

    def _aborted(self, failed: PipelineError, broken: bool = False) -> PipelineError:
        """Abort the transaction; return the error to raise. Where even that fails, a new producer is needed."""
        named = self._named(failed)
        try:
            self._producer.abort()
        except PipelineError as also:
            log.warning("could not abort the transaction: %s", also)
            broken = True
        if broken or isinstance(failed, StateError):
            self._over = named
        return named

    def _named(self, failed: PipelineError) -> PipelineError:
        kind = type(failed)
        return failed if kind is ConfigError else kind(f"{failed} ({self._owner})")

    def _open_producer(self) -> Producer:
        label = self._owner.replace(", ", "-").replace(" ", "-").replace("'", "")
        producer = self._client.producer(
            self._transactional_id,
            timeout_s=self._commit_timeout_s,
            client_id=f"midwatch-{label}",
            max_record_bytes=self._max_record_bytes,
        )
        try:
            producer.init_transactions()
        except BaseException:
            producer.close()
            raise
        return producer

    def _replace_producer(self) -> None:
        broken, self._producer = self._producer, self._open_producer()
        self._over, self._replaced = None, True
        broken.close()

    def _reopen(self) -> None:
        """After an unavailable broker: a new producer, which settles what the old one left undecided."""
        if self._over is None:
            return
        if not isinstance(self._over, Unavailable):
            raise self._over
        self._replace_producer()

    def _was_taken(self, offsets: Mapping[Place, Committed]) -> bool:
        """Return whether a commit counts already: asked once a new producer has shut out all others of the slot.

        It has taken the slot from whoever held it. If that was a newer process which has committed meanwhile, nothing
        of ours may follow. Without a group to refuse us, that is asked of all our partitions.

        Raises
        ------
        Fenced : a newer process of the slot has committed.
        Rebalanced : another member of the group has; the poll will tell which partitions went away.
        """
        before = {place: self._last[place] for place in (self._last if self._alone is not None else offsets)}
        found = {place: self._restorer.committed(place) for place in before}
        if found == before:
            self._replaced = not offsets
            return False
        if offsets and found == {**before, **offsets}:
            return True
        others = ", ".join(f"{t}[{p}]" for t, p in found if found[t, p] not in (before[t, p], offsets.get((t, p))))
        said = f"{others or sorted(found)}: another process has committed meanwhile"
        if self._alone is None:
            raise Rebalanced(f"{said} ({self._owner})")
        self._over = Fenced(f"{said}, a newer process of the same slot ({self._owner})")
        raise self._over

    def _offset(self, position: int, count: Count) -> Committed:
        return Committed(position, msgspec.json.encode(OffsetNote(count.n, self._transactional_id)).decode())

    def _count(self, topic: str, partition: int) -> Count:
        if (topic, partition) not in self._counts:
            self.restore(topic, partition)
        return self._counts[topic, partition]

    def _state_topic(self, topic: str) -> str:
        if topic not in self._state_topics:
            known = ", ".join(sorted(self._state_topics))
            raise StateError(f"no state topic for input topic {topic!r}; there is one for: {known}")
        return self._state_topics[topic]

    def _records(self, batch: Batch, counts: Mapping[Place, Count]) -> list[Record]:
        most = self._max_record_bytes
        records = [alert_record(alert, self._alerts_topic, most) for alert in batch.alerts]
        records += [dead_record(dead, self._dead_topic, most) for dead in batch.dead]
        if self._scores is not None:
            records += [record for scored in batch.scored for record in score_records(scored, self._scores, most)]
        for place in (*batch.states, *batch.deltas):
            if place not in batch.positions:
                raise StateError(f"state of topic {place[0]!r}, partition {place[1]} without its position")
        for place, count in counts.items():
            topic, partition = place
            state, delta = batch.states.get(place, ()), batch.deltas.get(place)
            name, position, topic_id = self._state_topic(topic), batch.positions[place], self._topic_ids[topic]
            records += state_records(name, partition, count, position, state, delta, most, topic_id)
        return records


def transactional_id(group: str, slot: int) -> str:
    """Return a slot's transactional id, which is also its name as a static member of the group."""
    return f"{group}-{slot}"
