"""The history: rows, scores and alerts as hive-partitioned Parquet, exactly once without a coordinator.

::

    rows/feed=<feed>/date=<day>/<log>-<partition>-<range>-<columns>.parquet      scores/...      alerts/...
    .open/<feed>/<log>-<partition>.journal

The files are those of `history_files`. What a push brings goes to the journal first, and is on disk when `append`
returns; the Parquet files follow when enough has gathered. A push that comes again, after a crash, drops everything
from its first offset on and takes its place.

A journal is locked by the process that has the partition. One that loses it lets go of the journal as it is, pushes
that were not committed among them: the next owner, on the same root, begins where the last commit ended and puts its
own in their place.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pyarrow as pa

from connectors.history_files import RangeFiles, Step, before, feed_folder, from_, log_name
from connectors.history_journal import Journal
from connectors.history_tables import alerts_table, datasets, rows_table, scores_table
from pipeline.errors import InUse, PipelineError
from pipeline.values import Alert, Rows, Verdicts

_logger = logging.getLogger(__name__)

_TOLD_AFTER: Final = 50  # refusals: an owner that is alive lets go within a few


@dataclass(slots=True)
class _Log:
    """One partition of one log: what is in its journal and not yet in Parquet."""

    journal: Journal
    files: dict[str, RangeFiles]  # by dataset
    next: int  # everything before this offset was appended
    pending: dict[str, list[pa.Table]] = field(default_factory=dict)  # dataset -> tables

    def pending_rows(self) -> int:
        return sum(len(table) for tables in self.pending.values() for table in tables)


class ParquetHistory:
    """Writes the history of one feed.

    Parameters
    ----------
    root : the folder of all feeds.
    feed, channels : the feed's name, and its channels in the order of `Rows.x`.
    offsets_per_file : N. Choose it so that a file comes to some 100,000 rows; never change it under a history.
    pending_rows : how many records may wait for Parquet, over all partitions together.
    reach : called before each step; tests let it raise.

    Raises
    ------
    ConfigError : a channel has the name of another column.
    SinkUnavailable : the folder cannot be written to.
    StateError : `take` or `append` found a file of this log that is damaged.
    """

    def __init__(
        self,
        root: Path,
        feed: str,
        channels: Sequence[str],
        *,
        offsets_per_file: int = 131_072,
        pending_rows: int = 524_288,
        reach: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self._root = root
        self._feed = feed
        self._datasets = datasets(channels)
        self._n = offsets_per_file
        self._most = pending_rows
        self._reach = reach
        self._logs: dict[str, _Log] = {}
        self._refused: Counter[str] = Counter()  # log -> how often in a row another process had it

    def take(self, topic: str, partition: int) -> None:
        """Open a partition's journal, with what an earlier owner left in it.

        Raises
        ------
        InUse : its last owner has not let go of it yet.
        """
        name = log_name(topic, partition)
        try:
            self._log(name)
        except InUse as error:
            self._refused[name] += 1
            if self._refused[name] == _TOLD_AFTER:
                _logger.warning("%s[%d] waits: %s", topic, partition, error)
            raise
        self._refused.pop(name, None)

    def drop(self, topic: str, partition: int) -> None:
        """Let go of a partition's journal; its next owner goes on with what is in it."""
        name = log_name(topic, partition)
        self._refused.pop(name, None)
        gone = self._logs.pop(name, None)
        if gone is not None:
            gone.journal.close()

    def append(
        self,
        topic: str,
        partition: int,
        assets: Sequence[str],
        rows: Sequence[Rows],
        verdicts: Sequence[Verdicts],
        alerts: Sequence[Alert],
        position: tuple[int, int],
    ) -> None:
        """Add one push; on disk when this returns.

        Raises
        ------
        SinkUnavailable : the disk did not take it; the same push can be tried again.
        InUse : another process has the partition.
        """
        first, after = position
        log = self._log(log_name(topic, partition))
        if first < log.next:
            self._drop_from(log, first)
        tables = self._tables(topic, assets, rows, verdicts, alerts, position)
        self._reach("journal")
        log.journal.append(tables, after)
        _add(log.pending, tables)
        crossed = after // self._n > log.next // self._n
        log.next = after
        if crossed:
            self._publish(log, after // self._n * self._n)
        while sum(each.pending_rows() for each in self._logs.values()) > self._most:
            self._publish(max(self._logs.values(), key=_Log.pending_rows))

    def flush(self) -> None:
        """Put everything that waits into Parquet, for readers that look now."""
        self._publish_left_over()
        for log in self._logs.values():
            self._publish(log)

    def close(self) -> None:
        """Put everything into Parquet and close the journals."""
        self.flush()
        for log in self._logs.values():
            log.journal.close()
        self._logs = {}

    def _tables(
        self,
        topic: str,
        assets: Sequence[str],
        rows: Sequence[Rows],
        verdicts: Sequence[Verdicts],
        alerts: Sequence[Alert],
        push: tuple[int, int],
    ) -> dict[str, pa.Table]:
        row_schema, score_schema = self._datasets["rows"].schema, self._datasets["scores"].schema
        tables = {
            "rows": pa.concat_tables(
                [row_schema.empty_table(), *(rows_table(topic, assets, r, row_schema) for r in rows)]
            ),
            "scores": pa.concat_tables(
                [score_schema.empty_table(), *(scores_table(topic, assets, v, push, score_schema) for v in verdicts)]
            ),
            "alerts": alerts_table(alerts, [min(max(a.evidence.offset, push[0]), push[1] - 1) for a in alerts]),
        }
        return {name: table for name, table in tables.items() if len(table)}

    def _publish_left_over(self) -> None:
        """Publish what is in journals that nobody has, and let go of them: their next owners may be about to come."""
        for path in sorted(self._journals().glob("*.journal")):
            if path.stem not in self._logs:
                with suppress(InUse):  # another process has it, and will see to it
                    left = self._open(path.stem)
                    try:
                        self._publish(left)
                    finally:
                        left.journal.close()

    def _journals(self) -> Path:
        return self._root / ".open" / quote(self._feed, safe="")

    def _log(self, name: str) -> _Log:
        if name not in self._logs:
            self._logs[name] = self._open(name)
        return self._logs[name]

    def _open(self, name: str) -> _Log:
        """Return a partition's log, with what an earlier process left in its journal."""
        log = _Log(Journal(self._journals() / f"{name}.journal"), self._files(name), 0)
        try:
            self._read(log)
        except PipelineError:
            log.journal.close()
            raise
        return log

    def _files(self, name: str) -> dict[str, RangeFiles]:
        return {
            d.name: RangeFiles(feed_folder(self._root, d.name, self._feed), name, d, self._n, self._reach)
            for d in self._datasets.values()
        }

    def _read(self, log: _Log) -> None:
        covered = {d: of.covered() for d, of in log.files.items()}
        log.next = max(covered.values())
        for tables, after in log.journal.read():
            kept = {d: from_(tables[d], self._datasets[d].key, covered[d]) for d in tables}
            _add(log.pending, {d: table for d, table in kept.items() if len(table)})
            log.next = max(log.next, after)
        schemas = {(d, t.schema) for d, kept in log.pending.items() for t in kept}
        if not all(schema.equals(self._datasets[d].schema, check_metadata=True) for d, schema in schemas):
            self._publish(log)  # what comes now has other channels

    def _drop_from(self, log: _Log, first: int) -> None:
        """Drop everything from an offset on: it is about to come again."""
        for files in log.files.values():
            files.drop_from(first)
        log.pending = {
            name: [before(table, self._datasets[name].key, first) for table in tables]
            for name, tables in log.pending.items()
        }
        log.journal.replace(_joined(log.pending), first)
        log.next = first

    def _publish(self, log: _Log, stop: int | None = None) -> None:
        """Put what waits, up to an offset, into the Parquet files of its ranges; keep the rest in the journal."""
        if not log.pending:
            return
        stop = log.next if stop is None else stop
        rest: dict[str, pa.Table] = {}
        for name, table in _joined(log.pending).items():
            key = self._datasets[name].key
            if len(now := before(table, key, stop)):
                log.files[name].replace(now, int(now[key].to_numpy().min()), stop)
            if len(later := from_(table, key, stop)):
                rest[name] = later
        self._reach("empty")
        log.journal.replace(rest, log.next)
        log.pending = {name: [table] for name, table in rest.items()}


def _add(pending: dict[str, list[pa.Table]], tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        pending.setdefault(name, []).append(table)


def _joined(pending: dict[str, list[pa.Table]]) -> dict[str, pa.Table]:
    joined = {name: pa.concat_tables(tables) for name, tables in pending.items()}
    return {name: table for name, table in joined.items() if len(table)}
