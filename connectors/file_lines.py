"""Lines of a file, by number: read to the end, or followed as it grows; and NDJSON, which is no more than that."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec

from connectors.file_blocks import BLOCK_ROWS, Block
from pipeline.errors import InputError, SchemaError, StateError
from pipeline.mapping import FieldMapping

_CHUNK = 1 << 20
_LOOKED_AT = 100  # lines that are looked at for the mapped fields


class LineReader:
    """Reads lines in order, without their line ends.

    A line longer than `max_bytes` is cut at `max_bytes` + 1, so that decode sees that it is too long and memory
    stays bounded.

    Parameters
    ----------
    follow : the file grows: a last line without an end is not finished, and its end is not the file's.
    """

    def __init__(self, path: Path, max_bytes: int, *, follow: bool = False) -> None:
        self._path = path
        self._follow = follow
        self._max_bytes = max_bytes
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        self._read = 0  # bytes
        self._lines: deque[bytes] = deque()
        self._rest = b""  # of a line whose end was not read yet

    def take(self, most: int) -> list[bytes]:
        """Return up to `most` lines; none: nothing more is there now."""
        while len(self._lines) < most and self._read_chunk():
            pass
        return [self._lines.popleft() for _ in range(min(most, len(self._lines)))]

    def skip(self, lines: int) -> int:
        """Pass over lines; return how many there were."""
        passed = 0
        while passed < lines and (part := self.take(min(BLOCK_ROWS, lines - passed))):
            passed += len(part)
        return passed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_chunk(self) -> bool:
        chunk = self._file.read(_CHUNK)
        if not chunk:
            if self._rest and not self._follow:
                self._lines.append(self._line(self._rest))
                self._rest = b""
            return False
        self._read += len(chunk)
        *whole, rest = chunk.split(b"\n")
        if whole:
            self._lines.append(self._line(self._rest + whole[0]))
            self._lines.extend(map(self._line, whole[1:]))
            self._rest = rest
        else:
            self._rest += rest
        self._rest = self._rest[: self._max_bytes + 2]  # one over, and a carriage return
        return True

    def _line(self, line: bytes) -> bytes:
        return line.removesuffix(b"\r")[: self._max_bytes + 1]

    def check_same_file(self) -> None:
        """Make sure that the path still leads to the file that is read.

        Raises
        ------
        InputError : it was cut short, replaced or removed.
        """
        mine = os.fstat(self._file.fileno())
        fix = "start again with the new file, under another name"
        if mine.st_size < self._read:
            raise InputError(
                f"{self._path} was cut short from {self._read} to {mine.st_size} bytes while followed: {fix}"
            )
        try:
            there = self._path.stat()
        except FileNotFoundError:
            raise InputError(f"{self._path} was removed while it was followed: {fix}") from None
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise InputError(f"{self._path} was replaced by another file while it was followed: {fix}")


class NdjsonLog:
    """A file with a JSON object a line. Blank lines are numbered but are no messages.

    Raises
    ------
    SchemaError : none of the first lines has the mapped fields; lists those that they have.
    """

    def __init__(self, path: Path, mapping: FieldMapping, *, follow: bool = False) -> None:
        self._path = path
        self._max_bytes = mapping.max_bytes
        self._follow = follow
        self._check_fields(mapping)

    def read(self, start: int) -> Generator[Block | None]:
        """Yield lines from number `start` on; None: nothing more is there now."""
        reader = LineReader(self._path, self._max_bytes, follow=self._follow)
        try:
            skip_to(reader, start, self._path)
            while True:
                lines = reader.take(BLOCK_ROWS - start % BLOCK_ROWS)
                if not lines and not self._follow:
                    return
                yield from runs(lines, start)
                if not lines:
                    yield None  # what was read before is handed over before an error
                    reader.check_same_file()
                start += len(lines)
        finally:
            reader.close()

    def _check_fields(self, mapping: FieldMapping) -> None:
        reader = LineReader(self._path, self._max_bytes, follow=self._follow)
        lines = reader.take(_LOOKED_AT)
        reader.close()
        objects = [record for line in lines if isinstance(record := _json(line), dict)]
        found = {name for record in objects for name in record}
        asset_and_time = mapping.columns[: len(mapping.columns) - _channel_fields(mapping)]
        missing = [name for name in asset_and_time if name not in found]
        if objects and (missing or not found.intersection(mapping.columns[len(asset_and_time) :])):
            wanted = ", ".join(missing or mapping.columns[len(asset_and_time) :])
            raise SchemaError(
                f"{self._path}: no field {wanted} in its first lines, only {', '.join(sorted(found))}; "
                "put the names as they are there into the mapping (asset, time, channels or fields)"
            )


def runs(lines: list[bytes], first: int) -> Iterator[Block]:
    """Yield the runs of lines between blank ones; the first line has number `first`."""
    begin = 0
    blank = [i for i, line in enumerate(lines) if not line] if b"" in lines else []
    for stop in (*blank, len(lines)):
        if stop > begin:
            yield Block(first + begin, lines[begin:stop])
        begin = stop + 1


def skip_to(reader: LineReader, start: int, path: Path) -> None:
    """Pass over the first `start` rows.

    Raises
    ------
    StateError : there are fewer.
    """
    passed = reader.skip(start)
    if passed < start:
        raise StateError(f"{path} has {passed} rows, the saved position is {start}: this is not the file it was")


def _channel_fields(mapping: FieldMapping) -> int:
    if mapping.layout == "long":
        return 2
    return 1 if mapping.values else len(mapping.names)


def _json(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
