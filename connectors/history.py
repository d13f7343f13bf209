"""The history: rows, scores and alerts as hive-partitioned Parquet, exactly once without a coordinator.

::

    rows/feed=<feed>/date=<day>/<log>-<partition>-<range>-<columns>.parquet      scores/...      alerts/...
    .open/<feed>/<log>-<partition>.journal

A Parquet file covers a fixed range of offsets of one partition of one log, `range` * N to (`range` + 1) * N. It is
written beside its name and renamed into place, and an open range is written again, under the same name, as it grows.
`date` is the day of the first record in it: a place to store it, never a filter. `columns` changes when the channels
of the feed do, so that every file has one set of them.

What a push brings goes to the journal first, and is on disk when `append` returns; the Parquet files follow when
enough has gathered. A push that comes again, after a crash, drops everything from its first offset on and takes its
place. The bytes of a file depend on its records alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.durable import sync_folder, write_beside
from connectors.history_journal import Journal
from connectors.history_tables import CHANNELS, Dataset, alerts_table, datasets, encodings, rows_table, scores_table
from pipeline.errors import SinkUnavailable, StateError
from pipeline.values import NS_PER_DAY, Alert, Bool, Rows, Verdicts

Step = Literal["journal", "publish", "published", "empty"]
_ROW_GROUP = 65_536


@dataclass(slots=True)
class _Log:
    """One partition of one log: what is in its journal and not yet in Parquet."""

    name: str  # in file names
    journal: Journal
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
    StateError : `append` found a file of this log that is damaged.
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
        self._feed = quote(feed, safe="")
        self._datasets = datasets(channels)
        self._n = offsets_per_file
        self._most = pending_rows
        self._reach = reach
        self._logs: dict[str, _Log] = {}

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
        """
        first, after = position
        log = self._log(f"{_file_name(topic)}-{partition:05d}")
        if first < log.next:
            self._drop_from(log, first)
        tables = self._tables(topic, partition, assets, rows, verdicts, alerts, position)
        self._reach("journal")
        log.journal.append(tables, after)
        _add(log.pending, tables)
        crossed = after // self._n > log.next // self._n
        log.next = after
        if crossed:
            self._publish(log, before=after // self._n * self._n)
        while sum(each.pending_rows() for each in self._logs.values()) > self._most:
            self._publish(max(self._logs.values(), key=_Log.pending_rows))

    def flush(self) -> None:
        """Put everything that waits into Parquet, for readers that look now."""
        self._take_up()
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
        partition: int,
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
            "alerts": alerts_table(topic, partition, alerts, push),
        }
        return {name: table for name, table in tables.items() if len(table)}

    def _take_up(self) -> None:
        """Open what processes that died left in journals of partitions from which nothing has come since."""
        for path in sorted((self._root / ".open" / self._feed).glob("*.journal")):
            with suppress(SinkUnavailable):  # another process has it, and will see to it
                self._log(path.stem)

    def _log(self, name: str) -> _Log:
        """Return a partition's log; the first time, with what an earlier process left in its journal."""
        if name not in self._logs:
            journal = Journal(self._root / ".open" / self._feed / f"{name}.journal")
            log = _Log(name, journal, 0)
            covered = {d.name: self._covered(d, name) for d in self._datasets.values()}
            log.next = max(covered.values())
            for tables, after in journal.read():
                kept = {d: _from(tables[d], self._datasets[d], covered[d]) for d in tables}
                _add(log.pending, {d: table for d, table in kept.items() if len(table)})
                log.next = max(log.next, after)
            schemas = {(d, t.schema) for d, kept in log.pending.items() for t in kept}
            if not all(schema.equals(self._datasets[d].schema, check_metadata=True) for d, schema in schemas):
                self._publish(log)  # what comes now has other channels
            self._logs[name] = log
        return self._logs[name]

    def _covered(self, dataset: Dataset, log_name: str) -> int:
        """Return the offset before which everything of a dataset is in Parquet already.

        All records with one key came with one push, and went into Parquet together.
        """
        files = list(self._files(dataset, log_name))
        newest = max((number for number, _ in files), default=0)
        return max((_largest(path, dataset.key) + 1 for number, path in files if number == newest), default=0)

    def _files(self, dataset: Dataset, log_name: str) -> Iterator[tuple[int, Path]]:
        """Yield (range, path) of a partition's files."""
        for path in (self._root / dataset.name / f"feed={self._feed}").glob(f"date=*/{log_name}-*.parquet"):
            yield int(path.stem.rsplit("-", 2)[1]), path

    def _drop_from(self, log: _Log, first: int) -> None:
        """Drop everything from an offset on: it is about to come again."""
        for dataset in self._datasets.values():
            for number, path in sorted(self._files(dataset, log.name), reverse=True):
                if (number + 1) * self._n <= first:
                    break
                self._write(path, _before(_read(path), dataset, first))
        log.pending = {
            name: [_before(table, self._datasets[name], first) for table in tables]
            for name, tables in log.pending.items()
        }
        log.journal.replace(_joined(log.pending), first)
        log.next = first

    def _publish(self, log: _Log, before: int | None = None) -> None:
        """Put what waits, up to an offset, into the Parquet files of its ranges; keep the rest in the journal."""
        if not log.pending:
            return
        stop = log.next if before is None else before
        rest: dict[str, pa.Table] = {}
        for name, table in _joined(log.pending).items():
            dataset = self._datasets[name]
            self._publish_dataset(log, dataset, _before(table, dataset, stop))
            later = _from(table, dataset, stop)
            if len(later):
                rest[name] = later
        self._reach("empty")
        log.journal.replace(rest, log.next)
        log.pending = {name: [table] for name, table in rest.items()}

    def _publish_dataset(self, log: _Log, dataset: Dataset, table: pa.Table) -> None:
        ranges = table[dataset.key].to_numpy() // self._n
        for number in np.unique(ranges).tolist():
            part = _where(table, ranges == number)
            path = self._path(log, dataset, number, part)
            if path.exists():
                part = pa.concat_tables([_read(path), part])
            self._reach("publish")
            self._write(path, part)
            self._reach("published")

    def _path(self, log: _Log, dataset: Dataset, number: int, table: pa.Table) -> Path:
        """Return the file of a range: the one that is there, else one on the day of the first record."""
        columns = hashlib.sha256((table.schema.metadata or {}).get(CHANNELS, b"")).hexdigest()[:8]
        name = f"{log.name}-{number:012d}-{columns}.parquet"
        feed = self._root / dataset.name / f"feed={self._feed}"
        for path in feed.glob(f"date=*/{name}"):
            return path
        day = np.datetime64(table["ts_ns"][0].as_py() // NS_PER_DAY, "D")
        return feed / f"date={day}" / name

    def _write(self, path: Path, table: pa.Table) -> None:
        """Put a table in place of a file, as a whole; an empty table removes the file."""
        try:
            if not len(table):
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            write_beside(path, parquet_bytes(table)).replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise SinkUnavailable(f"cannot write {path}: {error.strerror}; make room on the disk") from error


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """Return a table as a Parquet file. The bytes depend on its records and on nothing else."""
    out = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),
        out,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type) and f.name != "json"],
        column_encoding=encodings(table.schema),
    )
    return out.getvalue()


def retire(root: Path, before_ns: int, names: Sequence[str] = ("rows", "scores")) -> list[Path]:
    """Remove the files of these datasets in which every record is older than an event time; return their paths.

    A file that may still grow, the newest of its partition, stays.
    """
    gone = []
    for name in names:
        newest: dict[str, Path] = {}
        for path in sorted((root / name).glob("feed=*/date=*/*.parquet"), key=lambda p: p.stem.rsplit("-", 2)[1]):
            newest[f"{path.parts[-3]}/{path.stem.rsplit('-', 2)[0]}"] = path
        for path in (root / name).glob("feed=*/date=*/*.parquet"):
            if path not in newest.values() and _largest(path, "ts_ns") < before_ns:
                path.unlink()
                gone.append(path)
    return sorted(gone)


def _read(path: Path) -> pa.Table:
    with _opened(path) as file:
        return file.read()


def _largest(path: Path, column: str) -> int:
    """Return the largest value of an int64 column of a Parquet file."""
    with _opened(path) as file:
        index = file.metadata.schema.names.index(column)
        groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
        return max(int(group.column(index).statistics.max) for group in groups)


@contextmanager
def _opened(path: Path) -> Generator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise StateError(f"{path} is damaged ({error}): put it back from a copy, or move it away") from error


def _file_name(topic: str) -> str:
    """Return a file name for a topic: readable, and different for different topics."""
    return f"{quote(topic, safe='')[:80]}-{hashlib.sha256(topic.encode()).hexdigest()[:8]}"


def _before(table: pa.Table, dataset: Dataset, offset: int) -> pa.Table:
    return _where(table, table[dataset.key].to_numpy() < offset)


def _from(table: pa.Table, dataset: Dataset, offset: int) -> pa.Table:
    return _where(table, table[dataset.key].to_numpy() >= offset)


def _where(table: pa.Table, chosen: Bool) -> pa.Table:
    return table if chosen.all() else table.filter(pa.array(chosen))


def _add(pending: dict[str, list[pa.Table]], tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        pending.setdefault(name, []).append(table)


def _joined(pending: dict[str, list[pa.Table]]) -> dict[str, pa.Table]:
    joined = {name: pa.concat_tables(tables) for name, tables in pending.items()}
    return {name: table for name, table in joined.items() if len(table)}
