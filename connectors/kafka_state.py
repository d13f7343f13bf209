"""A partition's state in a compacted topic: what its records look like, and how they are read back.

Three kinds of records, all of one input partition in the state partition of the same number:

- of an asset, key = its name: its packed columns and window, and the number of the commit that saved it;
- of a commit, key = its number modulo K: what changed in it, in as many parts as its size asks for.

An asset is saved in one of K commits after it changed, so its newest record and the deltas of the last K commits make
its state of now. Numbers tell which of them belong together; compaction keeps the newest record of each key.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from connectors.kafka_client import Consumer
from pipeline.delta import Delta
from pipeline.errors import BrokerUnavailable, StateError
from pipeline.protocols import AssetState
from pipeline.values import Bool, Polled

# Small segments, because the newest is never compacted and a restore reads all of it.
STATE_TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
}
_DELTA_KEY: Final = b"#commit"
_ASSET: Final = struct.Struct("<4sQII")  # magic, commit, bytes of columns, bytes of window
_ASSET_MAGIC: Final = b"mwa2"
_DELTA: Final = struct.Struct("<4sII")  # magic, bytes of head, bytes of body before it was compressed
_DELTA_MAGIC: Final = b"mwd1"
_CODEC: Final = "zstd"


class CommitHead(msgspec.Struct, frozen=True):
    """What a part of a commit's record says about the commit. Numbers count from 1, by partition."""

    n: int
    position: int  # the next input offset
    every: int  # K
    since: int  # the first commit whose changes are needed besides what assets' own records hold
    part: int
    parts: int
    model_id: str
    assets: list[str]
    rows: int
    channels: int
    columns: int  # bytes of an asset's packed columns
    topic_id: str = ""  # of the input topic; "" where it is not known


NOTHING: Final = CommitHead(0, 0, 1, 1, 0, 1, "", [], 0, 0, 0)  # before the first commit


@dataclass(frozen=True, slots=True)
class StatePartition:
    """What a partition of a state topic holds: its newest commit, saved assets by name, and changes since."""

    newest: CommitHead
    assets: list[AssetState]
    deltas: list[Delta]


def state_key(asset: str) -> bytes:
    """Return the key of an asset's record; no asset can have a commit's."""
    return (f"#{asset}" if asset.startswith("#") else asset).encode()


def pack_state(state: AssetState, n: int) -> bytes:
    """Return the value of an asset's record, saved by commit `n`."""
    head = _ASSET.pack(_ASSET_MAGIC, n, len(state.columns), len(state.window))
    return head + state.columns + state.window


def unpack_state(key: bytes, value: bytes) -> tuple[AssetState, int]:
    """Return the state that `state_key` and `pack_state` wrote, and the number of its commit.

    Raises
    ------
    StateError : the value was written by something else.
    """
    name = key.decode()
    asset = name[1:] if name.startswith("##") else name
    if len(value) >= _ASSET.size:
        magic, n, columns, window = _ASSET.unpack_from(value)
        if magic == _ASSET_MAGIC and len(value) == _ASSET.size + columns + window:
            start = _ASSET.size + columns
            return AssetState(asset, value[_ASSET.size : start], value[start:]), n
    raise StateError(f"state of asset {asset!r}: {len(value)} bytes, not written by this version of midwatch")


def delta_records(
    delta: Delta | None, n: int, position: int, every: int, since: int, most_bytes: int, topic_id: str = ""
) -> list[tuple[bytes, bytes]]:
    """Return (key, value) of the records of commit `n`: one, or more where one would be larger than `most_bytes`.

    Raises
    ------
    StateError : what changed in one asset alone is larger.
    """
    pieces = [None] if delta is None else _pieces(delta, most_bytes)
    heads = [
        CommitHead(n, position, every, since, part, len(pieces), "", [], 0, 0, 0, topic_id)
        for part in range(len(pieces))
    ]
    return [
        (b"%s %d %d" % (_DELTA_KEY, n % every, head.part), _pack_delta(head, piece))
        for head, piece in zip(heads, pieces, strict=True)
    ]


def read_state_partition(reader: Consumer, topic: str, partition: int, timeout_s: float) -> StatePartition:
    """Read a partition to its end.

    The end is where the reader's position is, not where its last record was: the last thing in a log that is written
    in transactions is a marker that no reader gets to see.

    Raises
    ------
    BrokerUnavailable : the end was not reached within `timeout_s`.
    StateError : a record that is not one of ours, or records that are missing.
    """
    newest = _newest_records(reader, topic, partition, timeout_s)
    return assembled(newest, f"state topic {topic!r}, partition {partition}")


def assembled(newest: Mapping[bytes, bytes], where: str) -> StatePartition:
    """Return what the newest record of each key adds up to.

    Raises
    ------
    StateError : a record that is not one of ours, or records that are missing.
    """
    commits = [unpack_delta(value) for key, value in newest.items() if _is_delta(key)]
    saved = [unpack_state(key, value) for key, value in sorted(newest.items()) if not _is_delta(key)]
    if not commits:
        if saved:
            raise StateError(f"{where} has assets, but no commit: records were lost")
        return StatePartition(NOTHING, [], [])
    last = max((head for head, _ in commits), key=lambda head: head.n)
    deltas = _of_last_commits(last, commits, where)
    saved_at = {state.asset: n for state, n in saved}
    later = [delta.only(_is_later(delta, n, saved_at)) for n, delta in deltas]
    return StatePartition(last, [state for state, _ in saved], [delta for delta in later if delta.assets])


def unpack_delta(value: bytes) -> tuple[CommitHead, Delta]:
    """Return a part of a commit, as `delta_records` wrote it.

    Raises
    ------
    StateError : the value was written by something else.
    """
    try:
        magic, head_size, body_size = _DELTA.unpack_from(value)
        if magic != _DELTA_MAGIC:
            raise StateError(f"a commit's record begins with {magic!r}, not written by this version of midwatch")
        start = _DELTA.size + head_size
        head = msgspec.json.decode(value[_DELTA.size : start], type=CommitHead)
        body = pa.decompress(value[start:], body_size, _CODEC, asbytes=True) if body_size else b""
        return head, _unpack_body(head, body)
    except (struct.error, ValueError, OSError, msgspec.MsgspecError) as failed:
        raise StateError(f"a commit's record of {len(value)} bytes cannot be read: {failed}") from None


def _pieces(delta: Delta, most_bytes: int) -> list[Delta]:
    """Cut a delta, by assets and then by rows, until each piece fits by its size before compression."""
    k, n = len(delta.assets), len(delta.asset)
    names = sum(len(name.encode()) for name in delta.assets) + 4 * k
    size = names + delta.columns.nbytes + n * (14 + 5 * delta.x.shape[1]) + 512
    if size <= most_bytes:
        return [delta]
    if k > 1:
        first = np.arange(k) < k // 2
        parts = [delta.only(first), delta.only(~first)]
    elif n > 1:
        # The second piece is of rows alone: its columns differ in nothing.
        same = replace(delta, whole=np.zeros_like(delta.whole), columns=np.zeros_like(delta.columns))
        parts = [delta.between(0, n // 2), same.between(n // 2, n)]
    else:
        raise StateError(
            f"what changed in asset {(*delta.assets, '')[0]!r} takes {size} bytes, more than {most_bytes} fit into a "
            "record. Raise kafka.max_record_bytes and the topic's max.message.bytes to it"
        )
    return [piece for part in parts for piece in _pieces(part, most_bytes)]


def _pack_delta(head: CommitHead, delta: Delta | None) -> bytes:
    body = b""
    if delta is not None:
        k, size = delta.columns.shape
        rows, channels = delta.x.shape
        head = msgspec.structs.replace(
            head,
            model_id=delta.model_id,
            assets=list(delta.assets),
            rows=rows,
            channels=channels,
            columns=size if k else 0,
        )
        arrays = (delta.whole, delta.columns, delta.asset, delta.ts_ns, delta.continuity, delta.x)
        body = b"".join([*(np.ascontiguousarray(a).tobytes() for a in arrays), np.packbits(delta.observed).tobytes()])
    packed = pa.compress(body, _CODEC, asbytes=True) if body else b""
    text = msgspec.json.encode(head)
    return _DELTA.pack(_DELTA_MAGIC, len(text), len(body)) + text + packed


def _unpack_body(head: CommitHead, body: bytes) -> Delta:
    k, n, channels = len(head.assets), head.rows, head.channels
    at = 0

    def take(dtype: type[np.generic], count: int) -> Any:
        nonlocal at
        found = np.frombuffer(body, dtype, count, at)
        at += found.nbytes
        return found

    whole, columns = take(np.bool_, k), take(np.uint8, k * head.columns)
    asset, ts_ns, continuity = take(np.int32, n), take(np.int64, n), take(np.uint8, n)
    x = take(np.float32, n * channels)
    observed = np.unpackbits(take(np.uint8, (n * channels + 7) // 8), count=n * channels)
    return Delta(
        model_id=head.model_id,
        assets=head.assets,
        whole=whole,
        columns=columns.reshape(k, head.columns),
        asset=asset,
        ts_ns=ts_ns,
        x=x.reshape(n, channels),
        observed=observed.reshape(n, channels).astype(np.bool_),
        continuity=continuity,
    )


def _of_last_commits(
    last: CommitHead, commits: Sequence[tuple[CommitHead, Delta]], where: str
) -> list[tuple[int, Delta]]:
    """Return the changes of commits `last.since` to `last.n`, in order; what is left of older ones is left out."""
    out = []
    for n in range(last.since, last.n + 1):
        parts = {head.part: (head, delta) for head, delta in commits if head.n == n}
        count = max((head.parts for head, _ in parts.values()), default=1)
        if sorted(parts) != list(range(count)):
            raise StateError(
                f"{where}: of commit {n} of {last.n} {len(parts)} of {count} records are there, and all of them are "
                "needed: records were lost (see the topic's cleanup.policy and retention), or it was created again"
            )
        out += [(n, parts[part][1]) for part in range(count)]
    return out


def _is_later(delta: Delta, n: int, saved_at: Mapping[str, int]) -> Bool:
    return np.array([saved_at.get(name, 0) < n for name in delta.assets], np.bool_)


def _is_delta(key: bytes) -> bool:
    return key.startswith(_DELTA_KEY + b" ")


def _newest_records(reader: Consumer, topic: str, partition: int, timeout_s: float) -> dict[bytes, bytes]:
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
    return newest


def _records(polled: Polled) -> Iterator[tuple[bytes, bytes]]:
    for key, value in zip(polled.key or (), polled.value, strict=True):
        if key is None or value is None:
            where = f"state topic {polled.topic!r}, partition {polled.partition}"
            raise StateError(f"{where}: a record without key or value, which midwatch does not write")
        yield key, value
