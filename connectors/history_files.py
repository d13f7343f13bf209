"""The Parquet files of a history: each covers a fixed range of offsets, and is only ever replaced as a whole.

::

    <dataset>/feed=<feed>/date=<day>/<log>-<partition>-<range>-<columns>.parquet

A file covers the keys `range` * N to (`range` + 1) * N of one dataset of one log. It is written beside its name and
renamed into place, and an open range is written again, under the same name, as it grows. `date` is the day of the
first record in it: a place to store it, never a filter. `columns` changes when the channels of the feed do, so that
every file has one set of them. The bytes of a file depend on its records alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.durable import sync_folder, write_beside
from connectors.history_tables import CHANNELS, Dataset, encodings
from pipeline.errors import SinkUnavailable, StateError
from pipeline.values import NS_PER_DAY, Bool

Step = Literal["journal", "publish", "published", "empty", "commit"]
_ROW_GROUP = 65_536


class RangeFiles:
    """The files of one dataset of one log.

    Parameters
    ----------
    folder : of the feed in its dataset.
    log : `log_name` of the topic and partition.
    per_file : N, how many keys a file covers.
    reach : called before each step; tests let it raise.
    """

    def __init__(
        self, folder: Path, log: str, dataset: Dataset, per_file: int, reach: Callable[[Step], None] = lambda _: None
    ) -> None:
        self.dataset = dataset
        self._folder = folder
        self._log = log
        self._n = per_file
        self._reach = reach

    def covered(self) -> int:
        """Return the key before which everything is there already: all records with one key were added together."""
        files = list(self._files())
        newest = max((number for number, _ in files), default=0)
        return max((_largest(path, self.dataset.key) + 1 for number, path in files if number == newest), default=0)

    def drop_from(self, key: int) -> None:
        """Drop every record from a key on, the newest file first."""
        for number, path in sorted(self._files(), reverse=True):
            if (number + 1) * self._n <= key:
                break
            self._write(path, before(_read(path), self.dataset.key, key))

    def replace(self, table: pa.Table, first: int, after: int) -> None:
        """Put records, in order of their keys, in the place of all that are there with `first` <= key < `after`.

        Raises
        ------
        SinkUnavailable : the disk did not take it; the same can be tried again.
        StateError : a file is damaged.
        """
        ranges = table[self.dataset.key].to_numpy() // self._n
        parts = {number: where(table, ranges == number) for number in np.unique(ranges).tolist()}
        new = {self._path(number, part): part for number, part in parts.items()}
        touched = {
            path for number, path in self._files() if first < (number + 1) * self._n and number * self._n < after
        }
        for path in sorted({*new, *touched}):
            old = _read(path) if path.exists() else table.slice(0, 0)
            kept = [before(old, self.dataset.key, first), from_(old, self.dataset.key, after)]
            if path not in new and sum(map(len, kept)) == len(old):
                continue
            self._reach("publish")
            self._write(path, pa.concat_tables([kept[0], *([new[path]] if path in new else []), kept[1]]))
            self._reach("published")

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Yield (range, path)."""
        for path in self._folder.glob(f"date=*/{self._log}-*.parquet"):
            yield int(path.stem.rsplit("-", 2)[1]), path

    def _path(self, number: int, table: pa.Table) -> Path:
        """Return the file of a range: the one that is there, else one on the day of the first record."""
        columns = hashlib.sha256((table.schema.metadata or {}).get(CHANNELS, b"")).hexdigest()[:8]
        name = f"{self._log}-{number:012d}-{columns}.parquet"
        for path in self._folder.glob(f"date=*/{name}"):
            return path
        day = np.datetime64(table["ts_ns"][0].as_py() // NS_PER_DAY, "D")
        return self._folder / f"date={day}" / name

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


def log_name(topic: str, partition: int) -> str:
    """Return what files of a partition begin with: readable, and different for different topics."""
    return f"{quote(topic, safe='')[:80]}-{hashlib.sha256(topic.encode()).hexdigest()[:8]}-{partition:05d}"


def feed_folder(root: Path, dataset: str, feed: str) -> Path:
    """Return the folder of a feed in a dataset."""
    return root / dataset / f"feed={quote(feed, safe='')}"


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


def retire(root: Path, feed: str, before_ns: int, names: Sequence[str] = ("rows", "scores")) -> list[Path]:
    """Remove a feed's files of these datasets in which every record is older than an event time; return their paths.

    Files that may still grow, those of the newest range of their log, stay.

    Raises
    ------
    SinkUnavailable : a file cannot be removed.
    StateError : a file is damaged.
    """
    gone = []
    for name in names:
        files = sorted(feed_folder(root, name, feed).glob("date=*/*.parquet"))
        log_and_range = [path.stem.rsplit("-", 2)[:2] for path in files]
        newest = dict(sorted(log_and_range))
        for path, (log, number) in zip(files, log_and_range, strict=True):
            if number != newest[log] and _largest(path, "ts_ns") < before_ns:
                try:
                    path.unlink()
                except OSError as error:
                    raise SinkUnavailable(f"cannot remove {path}: {error.strerror}; mend its rights") from error
                gone.append(path)
    return gone


def before(table: pa.Table, key: str, stop: int) -> pa.Table:
    """Return the records of a table whose `key` is smaller."""
    return where(table, table[key].to_numpy() < stop)


def from_(table: pa.Table, key: str, start: int) -> pa.Table:
    """Return the records of a table whose `key` is not smaller."""
    return where(table, table[key].to_numpy() >= start)


def where(table: pa.Table, chosen: Bool) -> pa.Table:
    """Return the chosen records of a table."""
    return table if chosen.all() else table.filter(pa.array(chosen))


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
