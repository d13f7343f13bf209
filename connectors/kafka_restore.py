"""Where a partition goes on, and with what: the group's committed offset, and the state of the same commit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from connectors.kafka_client import Client, Committed, Consumer, out_of_range, watchdog
from connectors.kafka_records import Count
from connectors.kafka_state import CommitHead, StatePartition, read_state_partition
from pipeline.errors import BrokerUnavailable, PipelineError, StateError
from pipeline.protocols import Restored
from pipeline.values import Place

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 0.1  # for a pending transaction, before it is ended for its owner
_HUNG_S: Final = 8.0  # librdkafka never returns when the group's coordinator is lost under the question
_ENDING_S: Final = 10.0  # for a transaction to be ended
_ALIVE_S: Final = 1.0  # how long a live member is taken for one; a dead one keeps its partitions for longer


class OffsetNote(msgspec.Struct, frozen=True):
    """What is kept beside a committed offset: the commit's number, and the transactional id that it was made under."""

    n: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A partition's last commit. `restored` is None before the first; `at`: what the group's offsets say of it."""

    count: Count
    at: Committed | None
    restored: Restored | None


class Restorer:
    """Reads what commits left behind. Has connections of its own, so that it can work beside the watch.

    Parameters
    ----------
    topic_ids : input topic -> its id; "" where it is not known.
    transactional_ids : of all other slots, where they are members of the group; else none. A transaction left open by
        one that is no member any more is ended here, or its partitions, or the alerts after it, could not be read
        before the broker gives up on it: its timeout, and up to 10 s more.
    resume : go on with the state alone where the committed offset has expired, and at the oldest message there is
        where the next one has; else both are errors.
    timeout_s : what waiting for the last commit may take.
    at_step : called with `before_restore` and `after_read`: for tests that end the process there.
    """

    def __init__(
        self,
        client: Client,
        group: str,
        state_topics: Mapping[str, str],
        *,
        topic_ids: Mapping[str, str],
        transactional_ids: Sequence[str],
        resume: bool,
        timeout_s: float,
        at_step: Callable[[str], None],
    ) -> None:
        self._client = client
        self._group = group
        self._state_topics = state_topics
        self._topic_ids = topic_ids
        self._ids = transactional_ids
        self._resume = resume
        self._timeout_s = timeout_s
        self._at_step = at_step
        self._reader: Consumer | None = None
        self._looked: dict[str, float] = {}  # when a former owner was last found alive, or its transaction was ended
        self._lock = threading.RLock()  # one question at a time

    def find(self, place: Place) -> Found:
        """Return the last commit of a partition.

        Raises
        ------
        StateError : the committed offset and the state do not belong together, or not to this log.
        BrokerUnavailable : the last commit is still pending, or no broker answers.
        """
        self._at_step("before_restore")
        with self._lock:
            at = self.committed(place)
            note = note_of(place, at, self._group) if at is not None else OffsetNote(0)
            self._succeed(note.by)
            state = self._state_of(place, note.n)
            first = self._reading().first_offsets([place], self._timeout_s)[place]
            end = self._reading().end_offsets([place], self._timeout_s)[place]
        self._at_step("after_read")
        newest = state.newest
        # Whatever the offsets say: Kafka deletes them with the topic.
        if newest.position > end:
            raise out_of_range(*place, newest.position, first, end)
        self._require_same_topic(place, newest)
        self._require_same_commit(place, at, note.n, state)
        count = Count(newest.n, newest.every, newest.since)
        if not newest.n:
            return Found(Count(), at, None)
        missed = first - newest.position
        if missed > 0 and not self._resume:
            raise out_of_range(*place, newest.position, first, end)
        restored = Restored(newest.position, state.assets, state.deltas, newest.model_id)
        return Found(count, at, restored if missed <= 0 else replace(restored, position=first, missed=missed))

    def committed(self, place: Place) -> Committed | None:
        """Return the committed offset once no transaction over it is pending; end one whose owner is gone."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                with self._lock, watchdog(_HUNG_S, f"reading the committed offset of {place}"):
                    return self._reading().committed(*place, min(_PATIENCE_S, max(left, 0.1)))
            except BrokerUnavailable:
                if left <= 0:
                    raise
            self._end_left_open(self._ids)

    def close(self) -> None:
        """Let go of the connections."""
        if self._reader is not None:
            self._reader.close()

    def _reading(self) -> Consumer:
        if self._reader is None:
            self._reader = self._client.consumer(self._group, fetch_wait_s=0.01)
        return self._reader

    def _state_of(self, place: Place, n: int) -> StatePartition:
        """Read the state until it has commit `n`: Kafka marks a commit in each partition by itself."""
        deadline = time.monotonic() + self._timeout_s
        topic, partition = self._state_topics[place[0]], place[1]
        while True:
            state = read_state_partition(self._reading(), topic, partition, self._timeout_s)
            if state.newest.n >= n:
                return state
            if time.monotonic() > deadline:
                raise StateError(
                    f"state topic {topic!r}, partition {partition} has commit {state.newest.n} as its newest, the "
                    f"offsets of group {self._group!r} have {n}: its records were lost (see the topic's "
                    "cleanup.policy and retention), or it was created again"
                )
            time.sleep(0.02)

    def _succeed(self, owner: str) -> None:
        """End what the last owner of a partition may have left open before any offset was sent, beside the restore.

        Nothing of the input waits for that, but whoever reads the alerts does.
        """
        now = time.monotonic()
        if owner in self._ids and now - self._looked.get(owner, -_ALIVE_S) >= _ALIVE_S:
            self._looked[owner] = now
            threading.Thread(target=self._end_left_open, args=([owner],), daemon=True).start()

    def _end_left_open(self, slots: Sequence[str]) -> None:
        """End the transactions of those slots that nobody holds now."""
        if not slots:
            return
        try:
            alive = self._client.owners(self._group)
            for gone in set(slots) - alive.keys():
                producer = self._client.producer(gone, timeout_s=_ENDING_S)
                try:
                    producer.init_transactions()
                finally:
                    producer.close()
                log.info("ended what %s had left open", gone)
        except PipelineError as failed:
            log.warning("could not end the transactions of lost workers, waiting for the broker to: %s", failed)

    def _require_same_topic(self, place: Place, newest: CommitHead) -> None:
        was, now = newest.topic_id, self._topic_ids[place[0]]
        if was and now and was != now:
            raise StateError(
                f"topic {place[0]!r}, partition {place[1]}: the topic was deleted and created again (its id is {now}, "
                f"and was {was} at commit {newest.n}), so that offset {newest.position} means another message. Start "
                "the feed again under a new group and a new state topic"
            )

    def _require_same_commit(self, place: Place, at: Committed | None, n: int, state: StatePartition) -> None:
        newest = state.newest
        if newest.n == n and (at is None or newest.position == at.offset):
            return
        where = f"topic {place[0]!r}, partition {place[1]}: group {self._group!r}"
        if at is None and self._resume:
            log.warning(
                "%s has no committed offset any more; going on at %d, as its state says", where, newest.position
            )
            return
        has = "no committed offset" if at is None else f"offset {at.offset} of commit {n}"
        raise StateError(
            f"{where} has {has}, but its state is of commit {newest.n} at offset {newest.position}. Its offsets were "
            "reset, deleted, or have expired (offsets.retention.minutes), or another process commits at the same time. "
            "If they have expired, set kafka.aged_out = 'resume': the state says where to go on. Else start under a "
            "new group and a new state topic"
        )


def note_of(place: Place, at: Committed, group: str) -> OffsetNote:
    """Return the note beside a committed offset.

    Raises
    ------
    StateError : somebody else committed it.
    """
    try:
        return msgspec.json.decode(at.metadata, type=OffsetNote)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StateError(
            f"topic {place[0]!r}, partition {place[1]}: offset {at.offset} of group {group!r} was not committed by "
            f"midwatch (its note is {at.metadata!r}), and says nothing about the state. Start under a new group, or "
            "delete the group's offsets and the state topic's records"
        ) from None
