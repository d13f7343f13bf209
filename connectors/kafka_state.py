"""Assets' state in a compacted topic: what its records look like, and how a partition of it is read back.

Key = asset, value = its packed columns and window. Each commit also writes its number under a key of its own, so that
a reader can tell whether it has seen all of the commit whose offset it restores to.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from connectors.kafka_client import Consumer
from pipeline.errors import BrokerUnavailable, StateError
from pipeline.protocols import AssetState
from pipeline.values import Polled

# Small segments, because the newest is never compacted and a restore reads all of it.
STATE_TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
}
MARKER_KEY: Final = b"#commit"
_MAGIC: Final = b"mwa1"
_HEAD: Final = struct.Struct("<4sII")


class CommitMarker(msgspec.Struct, frozen=True):
    """The number of a commit of one partition, from 1, and the input position it committed."""

    n: int
    position: int


@dataclass(frozen=True, slots=True)
class StatePartition:
    """What a partition of a state topic holds: its newest commit (0, 0 before the first), and every asset's state."""

    newest: CommitMarker
    assets: list[AssetState]  # by name


def state_key(asset: str) -> bytes:
    """Return the key of an asset's record; no asset can have the marker's."""
    return (f"#{asset}" if asset.startswith("#") else asset).encode()


def pack_state(state: AssetState) -> bytes:
    """Return the value of an asset's record: magic, two lengths (little-endian), columns, window."""
    return _HEAD.pack(_MAGIC, len(state.columns), len(state.window)) + state.columns + state.window


def unpack_state(key: bytes, value: bytes) -> AssetState:
    """Return the state that `state_key` and `pack_state` wrote.

    Raises
    ------
    StateError : the value was written by something else.
    """
    name = key.decode()
    asset = name[1:] if name.startswith("##") else name
    if len(value) >= _HEAD.size:
        magic, columns, window = _HEAD.unpack_from(value)
        if magic == _MAGIC and len(value) == _HEAD.size + columns + window:
            start = _HEAD.size + columns
            return AssetState(asset, value[_HEAD.size : start], value[start:])
    raise StateError(f"state of asset {asset!r}: {len(value)} bytes, not written by this version of midwatch")


def read_state_partition(reader: Consumer, topic: str, partition: int, timeout_s: float) -> StatePartition:
    """Read a partition to its end: the newest record of each key.

    The end is where the reader's position is, not where its last record was: the last thing in a log that is written
    in transactions is a marker that no reader gets to see.

    Raises
    ------
    BrokerUnavailable : the end was not reached within `timeout_s`.
    StateError : a record that is not one of ours.
    """
    place = (topic, partition)
    deadline = time.monotonic() + timeout_s
    newest: dict[bytes, bytes] = {}
    end = reader.end_offsets([place], timeout_s)[place]
    reader.assign({place: reader.first_offsets([place], timeout_s)[place]})
    try:
        while (at := reader.position(topic, partition)) < end:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"state topic {topic!r}, partition {partition}: read to {at} of {end} only")
            for polled in reader.poll(10_000, 32 << 20, 0.02):
                newest.update(_records(polled))
    finally:
        reader.assign({})  # or it would go on fetching what is written there from now on
    marker = newest.pop(MARKER_KEY, None)
    assets = [unpack_state(key, value) for key, value in sorted(newest.items())]
    return StatePartition(decode_marker(marker, topic, partition) if marker else CommitMarker(0, 0), assets)


def _records(polled: Polled) -> Iterator[tuple[bytes, bytes]]:
    for key, value in zip(polled.key or (), polled.value, strict=True):
        if key is None or value is None:
            where = f"state topic {polled.topic!r}, partition {polled.partition}"
            raise StateError(f"{where}: a record without key or value, which midwatch does not write")
        yield key, value


def encode_marker(marker: CommitMarker) -> bytes:
    """Return a commit marker's value."""
    return msgspec.json.encode(marker)


def decode_marker(value: bytes, topic: str, partition: int) -> CommitMarker:
    """Return the commit marker of a value.

    Raises
    ------
    StateError : not a commit marker.
    """
    try:
        return msgspec.json.decode(value, type=CommitMarker)
    except (msgspec.MsgspecError, UnicodeDecodeError) as failed:
        raise StateError(f"state topic {topic!r}, partition {partition}: commit marker {value!r}: {failed}") from None
