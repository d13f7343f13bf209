"""Files as a `Source`: CSV, Parquet and NDJSON, read to the end, replayed at a pace, or followed as they grow."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from connectors.file_blocks import Block, FileLog, messages_of
from connectors.file_csv import CsvLog
from connectors.file_lines import NdjsonLog
from connectors.file_pace import Pace
from connectors.file_parquet import ParquetLog
from pipeline.errors import ConfigError, StateError
from pipeline.mapping import MESSAGE_KEY, FieldMapping
from pipeline.values import Int64, Polled

FileFormat = Literal["csv", "parquet", "ndjson"]
_SUFFIXES: dict[str, FileFormat] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
}
_LOOK_AGAIN_S = 0.05  # how often a file that is followed is looked at


class FileSource:
    """A file, or a folder of Parquet files, as partition 0 of the topic `file:<name>`.

    Offsets are row numbers from 0. CSV and Parquet rows come as Arrow batches of at most 4,096 rows, NDJSON as one
    message a line; at a pace, an Arrow batch holds the rows of one instant. Reading goes on at any row.

    Parameters
    ----------
    path : a file; for Parquet also a folder, or a pattern such as `logs/*.parquet`, read in sorted order as one log.
    mapping : which columns are needed, and the event time for a pace. Its format must be `message_format(path)`.
    file_format : "" takes it from the suffix.
    name : of the topic; "" means the source id, shortened: the log is what it holds, not what it is called.
    speed : 0: as fast as rows are taken; 1: as they happened, by event time; 60: sixty times as fast.
    follow : never end; wait for what is appended. A row comes when its line is finished.
    delimiter : of CSV.
    clock, sleep : monotonic seconds, and waiting.

    Raises
    ------
    ConfigError : something that this file cannot do.
    SchemaError : mapped columns are missing; lists those that were found.
    """

    def __init__(
        self,
        path: str | Path,
        mapping: FieldMapping,
        *,
        file_format: str = "",
        name: str = "",
        speed: float = 0.0,
        follow: bool = False,
        delimiter: str = ",",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        kind = _format_of(path, file_format)
        _check(kind, mapping, speed=speed, follow=follow)
        self._paths = _files(path, kind)
        self._follow = follow
        self._name = name
        self._mapping = mapping
        self._speed = speed
        self._clock, self._sleep = clock, sleep
        self._pace = Pace(speed, mapping, clock) if speed else None
        self._log = _open_log(kind, self._paths, mapping, delimiter=delimiter, follow=follow)
        self._blocks: Generator[Block | None] = self._log.read(0)
        self._next: tuple[Block, Int64 | None] | None = None  # what was read, with the times that its rows wait for
        self._ended = False

    @cached_property
    def source_id(self) -> str:
        """What the log is: the hash of its content, or its path when it is followed."""
        if self._follow:
            return self._paths[0].resolve().as_posix()
        digests = []
        for path in self._paths:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()

    @cached_property
    def topic(self) -> str:
        """`file:` and the name."""
        return f"file:{self._name or (self.source_id if self._follow else self.source_id[:16])}"

    def partitions(self) -> Sequence[tuple[str, int]]:
        """Return the one partition."""
        return [(self.topic, 0)]

    def lost(self) -> Sequence[tuple[str, int]]:
        """Return nothing: nobody takes a file away."""
        return ()

    def seek(self, topic: str, partition: int, offset: int | None) -> None:
        """Go on at a row; None: where it is.

        Raises
        ------
        StateError : another topic or partition; `poll` raises it too where the log is shorter than `offset`.
        """
        if (topic, partition) != (self.topic, 0):
            raise StateError(f"{topic}[{partition}] is not {self.topic}[0]: this is another file")
        if offset is None:
            return
        self.close()
        self._blocks, self._next, self._ended = self._log.read(offset), None, False
        if self._speed:
            self._pace = Pace(self._speed, self._mapping, self._clock)

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Return about `max_rows` rows, or what is there or due within `timeout_s`.

        Raises
        ------
        InputError : the file that is followed was cut short or replaced.
        StateError : the log is shorter than the offset that was sought.
        """
        deadline = self._clock() + timeout_s
        offsets: list[int] = []
        bodies: list[bytes] = []
        rows, end = 0, -1
        while rows < max_rows:
            block, wait_s = self._take(max_rows - rows)
            if block is not None:
                more_offsets, more_bodies = messages_of(block, self._mapping.max_bytes)
                offsets += more_offsets
                bodies += more_bodies
                rows, end = rows + len(block), block.first + len(block)
                continue
            left_s = deadline - self._clock()
            if bodies or self._ended or left_s <= 0:
                break
            self._sleep(min(wait_s, left_s))
        if not bodies:
            return []
        log_times = np.zeros(len(bodies), np.int64)
        return [Polled(self.topic, 0, np.array(offsets, np.int64), log_times, bodies, end=end)]

    def ended(self) -> bool:
        """Return whether everything was handed over; never, when the file is followed."""
        if not self._follow:
            self._read_on()
        return self._ended

    def close(self) -> None:
        """Close the file."""
        self._blocks.close()

    def _take(self, most: int) -> tuple[Block | None, float]:
        """Return rows that are due: up to `most` lines, or a batch; else None, and how long to wait for some."""
        self._read_on()
        if self._next is None:
            return None, _LOOK_AGAIN_S
        block, times = self._next
        count = len(block) if block.batch is not None else min(most, len(block))
        if times is not None and self._pace is not None:
            wait_s = self._pace.wait_s(int(times[0]))
            if wait_s > 0:
                return None, wait_s
            count = int(np.searchsorted(times, times[0], side="right"))
        taken, rest = block.cut(count)
        self._next = (rest, None if times is None else times[count:]) if len(rest) else None
        return taken, 0.0

    def _read_on(self) -> None:
        """Have a block at hand, if there is one now."""
        if self._next is not None or self._ended:
            return
        for block in self._blocks:
            if block is not None:
                self._next = (block, None if self._pace is None else self._pace.times(block))
            return
        self._ended = True


def message_format(path: str | Path, file_format: str = "") -> Literal["json", "arrow"]:
    """Return the format that a mapping of this file must have.

    Raises
    ------
    ConfigError : a format that is not known.
    """
    return "json" if _format_of(path, file_format) == "ndjson" else "arrow"


def _format_of(path: str | Path, file_format: str) -> FileFormat:
    known: tuple[FileFormat, ...] = get_args(FileFormat)
    for name in known:
        if name == file_format:
            return name
    if file_format:
        raise ConfigError("source.format", file_format, f"must be one of {', '.join(known)}")
    if Path(path).is_dir():
        return "parquet"
    try:
        return _SUFFIXES[Path(path).suffix.lower()]
    except KeyError:
        fix = f"its suffix says no format: set source.format to one of {', '.join(known)}"
        raise ConfigError("source.path", str(path), fix) from None


def _check(kind: FileFormat, mapping: FieldMapping, *, speed: float, follow: bool) -> None:
    wanted = "json" if kind == "ndjson" else "arrow"
    if mapping.format != wanted:
        raise ConfigError(
            "mapping.format", mapping.format, f"rows of a {kind} file are read as {wanted}: set {wanted!r}"
        )
    if mapping.asset == MESSAGE_KEY:
        raise ConfigError(
            "mapping.asset", mapping.asset, "files have no message keys: name a column, or set asset_value"
        )
    if speed < 0:
        raise ConfigError("source.speed", speed, "must be 0 (as fast as possible) or more")
    if follow and speed:
        raise ConfigError("source.speed", speed, "a file that is followed has its own pace: leave it out")
    if follow and kind == "parquet":
        raise ConfigError("source.follow", follow, "a Parquet file does not grow: follow CSV or NDJSON")


def _files(path: str | Path, kind: FileFormat) -> list[Path]:
    """Return the files behind a path, a folder or a pattern, sorted."""
    if kind == "parquet" and Path(path).is_dir():
        found = Path(path).rglob("*.parquet")
        paths = sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(path).parts))
    elif kind == "parquet" and glob.has_magic(str(path)) and not Path(path).exists():
        paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 - any path, not one below a root
    else:
        paths = [Path(path)]
    if not paths or not all(p.is_file() for p in paths):
        raise ConfigError("source.path", str(path), "there is no such file")
    return paths


def _open_log(kind: FileFormat, paths: list[Path], mapping: FieldMapping, *, delimiter: str, follow: bool) -> FileLog:
    if kind == "parquet":
        return ParquetLog(paths, mapping)
    if kind == "csv":
        return CsvLog(paths[0], mapping, delimiter=delimiter, follow=follow)
    return NdjsonLog(paths[0], mapping, follow=follow)
