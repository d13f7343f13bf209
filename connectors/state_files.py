"""The state of all assets in one append-only file: the newest record of an asset counts, compaction drops the others.

What the file holds is what its owner says: `size` bytes of it, named in the commit. Bytes beyond that are left over
from a commit that never happened, and are cut off on opening.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from connectors.durable import GrowingFile
from pipeline.errors import StateError
from pipeline.protocols import AssetState

_HEAD = struct.Struct("<4sI")  # magic, crc of all that follows
_LENGTHS = struct.Struct("<iIIII")  # partition; lengths of topic, asset, columns, window
_FRONT = _HEAD.size + _LENGTHS.size
_MAGIC = b"mwa1"
_DEAD_PER_LIVE = 3  # compaction copies a quarter of the file, so that writing costs a third more at most
_COPY = 8 << 20
Key = tuple[str, int, str]  # topic, partition, asset


class _Place(NamedTuple):
    start: int
    size: int


class StateFile:
    """Newest states by (topic, partition, asset), kept on disk; in memory is where each record lies.

    Parameters
    ----------
    path : the file; a new one if it does not exist.
    size : how many of its bytes are committed; the rest is cut off.
    slack : compaction is due when dead bytes exceed this, and three times the live ones.

    Raises
    ------
    StateError : the file is shorter than `size`, or a record in it is damaged.
    """

    def __init__(self, path: Path, size: int, slack: int) -> None:
        self._file = GrowingFile(path)
        self._slack = slack
        self._places: dict[Key, _Place] = {}
        self._pending: list[tuple[Key, _Place]] = []
        self._live = 0
        if self._file.size < size:
            self._file.close()
            raise StateError(f"{path} has {self._file.size} bytes, {size} were committed: restore it from a copy")
        self._file.truncate(size)
        for key, place in self._scan():
            self._put(key, place)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.size

    def append(self, states: Mapping[tuple[str, int], Sequence[AssetState]]) -> None:
        """Add records, and wait until they are on disk. They count after `accept`."""
        packed = [((*key, s.asset), _pack(*key, s)) for key, several in states.items() for s in several]
        if not packed:
            return
        at = self._file.size
        self._file.append(b"".join(record for _, record in packed))
        self._file.sync()
        for key, record in packed:
            self._pending.append((key, _Place(at, len(record))))
            at += len(record)

    def accept(self) -> None:
        """Let what was appended count: it was committed."""
        for key, place in self._pending:
            self._put(key, place)
        self._pending = []

    def roll_back(self, size: int) -> None:
        """Forget what was appended beyond `size`."""
        self._pending = []
        self._file.truncate(size)

    def states(self, topic: str, partition: int) -> list[AssetState]:
        """Return the newest state of each asset of a partition, in the order in which they first came."""
        places = [place for key, place in self._places.items() if key[:2] == (topic, partition)]
        return [_unpack(self._file.read(*place), self.path)[1] for place in places]

    def wasteful(self) -> bool:
        """Return whether compaction is due."""
        dead = self._file.size - self._live
        return dead > self._slack and dead > _DEAD_PER_LIVE * self._live

    def compact(self, path: Path) -> StateFile:
        """Write the newest records alone to a new file, on disk, and return it. This one stays as it is."""
        path.unlink(missing_ok=True)
        new = StateFile(path, 0, self._slack)
        try:
            for records, keys in self._in_blocks():
                at = new._file.size
                new._file.append(b"".join(records))
                for record, key in zip(records, keys, strict=True):
                    new._put(key, _Place(at, len(record)))
                    at += len(record)
            new._file.sync()
        except BaseException:
            new.close()
            raise
        return new

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, key: Key, place: _Place) -> None:
        old = self._places.get(key)
        self._live += place.size - (old.size if old else 0)
        self._places[key] = place

    def _in_blocks(self) -> Iterator[tuple[list[bytes], list[Key]]]:
        records: list[bytes] = []
        keys: list[Key] = []
        held = 0
        for key, place in self._places.items():
            records.append(self._file.read(*place))
            keys.append(key)
            held += place.size
            if held >= _COPY:
                yield records, keys
                records, keys, held = [], [], 0
        yield records, keys

    def _scan(self) -> Iterator[tuple[Key, _Place]]:
        at = 0
        while at < self._file.size:
            place = _Place(at, _record_size(self._file.read(at, _FRONT), self.path))
            yield _unpack(self._file.read(*place), self.path)[0], place
            at += place.size


def _pack(topic: str, partition: int, state: AssetState) -> bytes:
    parts = (topic.encode(), state.asset.encode(), state.columns, state.window)
    body = b"".join((_LENGTHS.pack(partition, *map(len, parts)), *parts))
    return _HEAD.pack(_MAGIC, zlib.crc32(body)) + body


def _record_size(front: bytes, path: Path) -> int:
    if len(front) < _FRONT or front[:4] != _MAGIC:
        raise _damaged(path)
    _, topic, asset, columns, window = _LENGTHS.unpack_from(front, _HEAD.size)
    return _FRONT + int(topic + asset + columns + window)


def _unpack(record: bytes, path: Path) -> tuple[Key, AssetState]:
    size = _record_size(record, path)
    if len(record) != size or zlib.crc32(memoryview(record)[_HEAD.size :]) != _HEAD.unpack_from(record)[1]:
        raise _damaged(path)
    partition, *lengths = _LENGTHS.unpack_from(record, _HEAD.size)
    parts, at = [], _FRONT
    for length in lengths:
        parts.append(record[at : at + length])
        at += length
    topic, asset, columns, window = parts
    return (topic.decode(), partition, asset.decode()), AssetState(asset.decode(), columns, window)


def _damaged(path: Path) -> StateError:
    return StateError(f"{path} is damaged: put its folder back from a copy, or start from the beginning of the log")
