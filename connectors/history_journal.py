"""A journal of Arrow tables: what was appended is on disk; what a crash cut in two is as if it had never been."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from connectors.durable import GrowingFile, sync_folder, write_beside
from pipeline.errors import SinkUnavailable, StateError

_HEAD = struct.Struct("<4sIQq")  # magic, crc of the body, its size, the offset after the push
_PART = struct.Struct("<16sQ")  # dataset, size of its Arrow stream
_MAGIC = b"mwj1"


class Journal:
    """Pushes in order; each is tables by dataset, and the offset that follows it. One process has it at a time.

    Raises
    ------
    InUse : on opening, while another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GrowingFile(path)

    def append(self, tables: Mapping[str, pa.Table], after: int) -> None:
        """Add a push, and wait until it is on disk.

        Raises
        ------
        SinkUnavailable : the disk did not take it; nothing was added.
        """
        size = self._file.size
        try:
            for part in _frame(tables, after):
                self._file.append(part)
            self._file.sync()
        except SinkUnavailable:
            self._file.truncate(size)
            raise

    def read(self) -> Iterator[tuple[dict[str, pa.Table], int]]:
        """Yield the pushes; a last one that is not whole is cut off.

        Raises
        ------
        StateError : the journal is damaged elsewhere than at its end, where a crash leaves its mark.
        """
        at = 0
        while (frame := self._read_frame(at)) is not None:
            body, after = frame
            yield _tables(body), after
            at += _HEAD.size + len(body)
        self._file.truncate(at)

    def replace(self, tables: Mapping[str, pa.Table], after: int) -> None:
        """Put one push in the place of all others; without tables the journal is empty.

        Raises
        ------
        SinkUnavailable : the disk did not take it; nothing has changed.
        """
        if not tables:
            self._file.truncate(0)
            return
        try:
            new = GrowingFile(write_beside(self._path, b"".join(_frame(tables, after))))
            new.rename(self._path)  # it is locked before it has the name: no other process finds it free
            sync_folder(self._path.parent)
        except OSError as error:
            raise SinkUnavailable(f"cannot write {self._path}: {error.strerror}; make room on the disk") from error
        self._file.close()
        self._file = new

    def close(self) -> None:
        """Close the file; remove it if it is empty."""
        if not self._file.size:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _read_frame(self, at: int) -> tuple[bytes, int] | None:
        head = self._file.read(at, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        magic, crc, size, after = _HEAD.unpack(head)
        if magic == _MAGIC:
            end = at + _HEAD.size + size
            body = self._file.read(at + _HEAD.size, size) if end <= self._file.size else b""
            if len(body) == size and zlib.crc32(body) == crc:
                return body, after
            if end >= self._file.size:
                return None
        elif not any(self._file.read(at, self._file.size - at)):
            return None  # the size of the file reached the disk, its bytes did not
        raise StateError(f"{self._path} is damaged at byte {at}: put it back from a copy, or move it away")


def _frame(tables: Mapping[str, pa.Table], after: int) -> list[bytes]:
    parts = []
    for name, table in tables.items():
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        buffer = out.getvalue()
        parts += [_PART.pack(name.encode(), buffer.size), buffer]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [_HEAD.pack(_MAGIC, crc, sum(map(len, parts)), after), *parts]


def _tables(body: bytes) -> dict[str, pa.Table]:
    tables, at = {}, 0
    view = memoryview(body)
    while at < len(body):
        name, size = _PART.unpack_from(body, at)
        at += _PART.size
        with pa.ipc.open_stream(view[at : at + size]) as stream:
            tables[name.rstrip(b"\0").decode()] = stream.read_all()
        at += size
    return tables
