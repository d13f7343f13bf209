"""The history, written from what is committed: input rows, scores and alerts, each topic followed by itself.

Nothing is in a file that readers of committed messages do not see, and rows only as far as the scores topic says that
they have been scored: whoever reads rows finds the alerts on them. Every file covers a fixed range: rows and scores
of offsets of the input, alerts of offsets of their own topic. Positions are committed when the files are on disk;
what comes again after a crash is put in the place of itself, so that the same files follow, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from connectors.alert_json import decode_polled, message_place
from connectors.history_files import RangeFiles, Step, before, feed_folder, from_, log_name
from connectors.history_tables import ALERTS, Dataset, alerts_table, datasets, rows_table, scores_table
from connectors.kafka_client import Committed
from connectors.kafka_follow import Follower
from connectors.scores_topic import ScoresRecord, decode_scores
from pipeline.decode import FieldMapping, decode
from pipeline.errors import SchemaError, StateError
from pipeline.state import AssetTable
from pipeline.values import Place, Polled

_ALERTS_PER_FILE: Final = 8192


class ScoredNote(msgspec.Struct, frozen=True):
    """What is kept beside the position in a scores topic: the input offset before which everything is scored."""

    next: int


@dataclass(frozen=True, slots=True)
class FeedLogs:
    """The logs of one feed: where its rows, scores and alerts come from, and how its messages are read."""

    feed: str
    input: str
    scores: str
    alerts: str
    mapping: FieldMapping
    max_assets: int = 1_000_000


@dataclass(slots=True)
class _Waiting:
    """What was read of one log and is in no file yet: tables, each with the key before which all was read."""

    files: RangeFiles
    start: int = -1  # everything from here to `next` takes the place of what is in the files; -1: nothing was read
    next: int = -1
    tables: list[tuple[int, pa.Table]] = field(default_factory=list)

    def add(self, table: pa.Table, first: int, after: int) -> None:
        if self.next < 0 or first < self.next:
            self.tables = [(end, before(t, self.files.dataset.key, first)) for end, t in self.tables]
            self.start = first if self.start < 0 else min(self.start, first)
        self.next = after
        self.tables.append((after, table))

    def rows_from(self, offset: int) -> int:
        """Return how many records wait that were read at an offset or later."""
        return sum(len(table) for end, table in self.tables if end > offset)

    def write(self, stop: int) -> None:
        """Put what waits, up to a key, into the files."""
        stop = min(stop, self.next)
        if stop <= self.start:
            return
        dataset = self.files.dataset
        whole = pa.concat_tables([dataset.schema.empty_table(), *(table for _, table in self.tables)])
        self.files.replace(before(whole, dataset.key, stop), self.start, stop)
        rest = from_(whole, dataset.key, stop)
        self.start, self.tables = stop, [(self.next, rest)] if len(rest) else []


class Historian:
    """Writes the history of one feed.

    Parameters
    ----------
    follower : of the feed's three topics.
    root : the folder of all feeds.
    offsets_per_file : N, see `ParquetHistory`.
    waiting_rows : how many records may wait for their files, over all partitions together.
    reach : called before each step; tests let it raise.
    """

    def __init__(
        self,
        follower: Follower,
        logs: FeedLogs,
        root: Path,
        *,
        offsets_per_file: int = 131_072,
        waiting_rows: int = 524_288,
        reach: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._follower = follower
        self._logs = logs
        self._root = root
        self._n = offsets_per_file
        self._most = waiting_rows
        self._reach = reach
        self._waiting: dict[Place, _Waiting] = {}
        self._scored: dict[int, int] = {}  # partition -> input offset before which everything is scored
        self._held: set[Place] = set()
        self._whole: dict[Place, int] = {}  # a scores log in the middle of a push -> where that push begins
        for topic, partition in follower.places():
            if topic == logs.scores:
                self._frontier(partition)

    def step(self, max_rows: int, timeout_s: float) -> int:
        """Read what is there; return how many messages. Files are written when much waits, or by `flush`."""
        polled = self._follower.poll(max_rows, timeout_s)
        for one in polled:
            take = {self._logs.scores: self._take_scores, self._logs.alerts: self._take_alerts}
            take.get(one.topic, self._take_rows)(one)
        ahead = self._ahead()
        self._hold(ahead)
        waiting = sum(one.rows_from(0) for one in self._waiting.values())
        if waiting - sum(ahead.values()) > self._most // 2:
            self.flush()
        return sum(map(len, polled))

    def flush(self) -> None:
        """Write everything that may be read by now, then commit how far that is.

        Raises
        ------
        SinkUnavailable : the disk did not take it; nothing is lost, it can be tried again.
        """
        order = {self._logs.alerts: 0, self._logs.scores: 1, self._logs.input: 2}
        for place in sorted(self._waiting, key=lambda place: (order[place[0]], place[1])):
            waiting = self._waiting[place]
            rows = place[0] == self._logs.input
            waiting.write(self._frontier(place[1]) if rows else waiting.next)
        self._reach("commit")
        self._follower.commit({place: self._safe(place) for place in self._follower.places()})

    def caught_up(self, ends: Mapping[Place, int]) -> bool:
        """Return whether everything before these ends was read that can be written."""
        for (topic, partition), end in ends.items():
            stop = min(end, self._frontier(partition)) if topic == self._logs.input else end
            if self._follower.position((topic, partition)) < stop:
                return False
        return True

    def _take_scores(self, polled: Polled) -> None:
        place = (polled.topic, polled.partition)
        for offset, value in zip(polled.offset.tolist(), polled.value, strict=True):
            record = self._record(place, offset, value)
            scored = record.scored
            begins = record.part == 0 or place not in self._whole
            self._whole[place] = self._whole.get(place, offset)
            self._add_scores(place, record, scored.first if begins else scored.next)
            if record.last:
                del self._whole[place]
                self._scored[polled.partition] = scored.next
                self.counts["pushes"] += 1

    def _add_scores(self, place: Place, record: ScoresRecord, first: int) -> None:
        scored, verdicts = record.scored, record.scored.verdicts
        schema = datasets(record.channels)["scores"].schema
        waiting = self._waiting.get(place)
        if waiting is not None and not waiting.files.dataset.schema.equals(schema, check_metadata=True):
            waiting.write(waiting.next)  # what comes now is about other channels
            del self._waiting[place]
        table = schema.empty_table()
        if verdicts is not None:
            push = (scored.first, scored.next)
            table = scores_table(scored.topic, scored.assets, verdicts, push, schema)
        files = log_name(scored.topic, scored.partition)
        dataset = Dataset("scores", schema, "position")
        after = scored.next if record.last else scored.first  # a push is written when all its parts have come
        self._wait(place, files, dataset, self._n).add(table, first, after)
        self.counts["scores"] += len(table)

    def _take_alerts(self, polled: Polled) -> None:
        place = (polled.topic, polled.partition)
        read = zip(polled.offset.tolist(), decode_polled(polled), strict=True)
        found = [(offset, alert) for offset, alert in read if alert.feed == self._logs.feed]
        table = alerts_table([alert for _, alert in found], [offset for offset, _ in found])
        waiting = self._wait(place, log_name(*place), Dataset("alerts", ALERTS, "position"), _ALERTS_PER_FILE)
        waiting.add(table, int(polled.offset[0]), polled.position)
        self.counts["alerts"] += len(table)

    def _take_rows(self, polled: Polled) -> None:
        place = (polled.topic, polled.partition)
        mapping = self._logs.mapping
        assets = AssetTable({}, self._logs.max_assets)
        rows = decode(polled, mapping, assets).rows
        dataset = datasets(mapping.channels)["rows"]
        table = rows_table(polled.topic, assets.names, rows, dataset.schema)
        self._wait(place, log_name(*place), dataset, self._n).add(table, int(polled.offset[0]), polled.position)
        self.counts["rows"] += len(table)

    def _wait(self, place: Place, log: str, dataset: Dataset, per_file: int) -> _Waiting:
        if place not in self._waiting:
            folder = feed_folder(self._root, dataset.name, self._logs.feed)
            files = RangeFiles(folder, log, dataset, per_file, self._reach)
            self._waiting[place] = _Waiting(files)
        return self._waiting[place]

    def _record(self, place: Place, offset: int, value: bytes | None) -> ScoresRecord:
        try:
            record = decode_scores(value or b"")
        except SchemaError as error:
            raise SchemaError(f"{message_place(place, offset)}: {error}") from None
        theirs = (record.feed, record.scored.topic, record.scored.partition)
        ours = (self._logs.feed, self._logs.input, place[1])
        if theirs != ours:
            raise StateError(
                f"{message_place(place, offset)}: scores of feed {theirs[0]!r}, topic {theirs[1]!r}, partition "
                f"{theirs[2]}: this is the historian of feed {ours[0]!r}, topic {ours[1]!r}. Give each feed a "
                "kafka.scores_topic of its own"
            )
        return record

    def _frontier(self, partition: int) -> int:
        """Return the input offset before which everything is scored, as far as the scores topic was read."""
        if partition not in self._scored:
            place = (self._logs.scores, partition)
            note = self._follower.taken_up(place).metadata if place in self._follower.places() else ""
            self._scored[partition] = _next(note) if note else 0
        return self._scored[partition]

    def _safe(self, place: Place) -> Committed:
        """Return the position before which everything of a log is in files."""
        at = self._follower.position(place)
        if place[0] == self._logs.input:
            return Committed(max(min(at, self._frontier(place[1])), self._follower.taken_up(place).offset))
        if place[0] == self._logs.alerts:
            return Committed(at)
        note = msgspec.json.encode(ScoredNote(self._frontier(place[1]))).decode()
        return Committed(self._whole.get(place, at), note)

    def _ahead(self) -> dict[Place, int]:
        """Return how many rows of each partition wait because their scores have not come."""
        rows = {place: one for place, one in self._waiting.items() if place[0] == self._logs.input}
        return {place: one.rows_from(self._frontier(place[1])) for place, one in rows.items()}

    def _hold(self, ahead: Mapping[Place, int]) -> None:
        """Read no further in partitions whose scores lie far behind: rows would only gather in memory."""
        if not ahead:
            return
        share = self._most // (2 * len(ahead))
        held = {place for place, rows in ahead.items() if rows > (share // 2 if place in self._held else share)}
        self.counts["held"] += len(held - self._held)
        if held != self._held:
            self._held = held
            self._follower.hold(held)


def _next(note: str) -> int:
    try:
        return msgspec.json.decode(note, type=ScoredNote).next
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StateError(
            f"the position in the scores topic was not committed by midwatch (its note is {note!r}): delete the "
            "group's offsets; what is there is then read again, and put in the place of itself"
        ) from None
