"""The scores topic: what every commit scored, as Arrow record batches beside the alerts, in the same transaction.

The record of one push of input partition p lies in partition p. Its value is an Arrow IPC stream of one batch with a
row per verdict; the schema's metadata say which messages the push took, so that a reader knows how far the input has
been scored. A push that led to no verdict (nothing serves yet, or every row is held back) has a batch without rows.
A push that is too large for one record comes as several, in order; `last` is true in the last of them.

| column | type |
| --- | --- |
| `asset` | text, dictionary |
| `ts_ns`, `offset`, `row` | int64, int64, int32: of the last row used |
| `continuity`, `status` | uint8, codes of `pipeline.values` |
| `breached` | bool |
| `score`, `smoothed`, `ratio`, `own_ratio`, `threshold`, `coverage` | float32; null where there is none |
| `channel` | list of uint16, only where `kafka.scores_top` is set: which channels the next three are about |
| `by_channel`, `expected`, `actual` | lists of float32: share of the error, what was expected and what came |

Within a version (`midwatch.scores`) columns are only added, and readers ignore those they do not know. The bytes
depend on the verdicts alone: codes of assets, which a restart deals anew, are not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.values import Scored, Scores, Verdicts

SCHEMA_VERSION: Final = b"1"
_VERSION: Final = b"midwatch.scores"
_PUSH: Final = b"midwatch.push"
_CHANNELS: Final = b"midwatch.channels"
_MODEL: Final = b"midwatch.model"
_LAG: Final = b"midwatch.lag_ns"
_CODES: Final = ("continuity", "status")
_NUMBERS: Final = ("score", "smoothed", "ratio", "own_ratio", "threshold", "coverage")
_LISTS: Final = ("by_channel", "expected", "actual")
_ROW_BYTES: Final = 64  # of a row without its lists, about
_NAME = pa.dictionary(pa.int32(), pa.string())


class _Push(msgspec.Struct, frozen=True):
    """Which messages of which log a record is about, and which part of what was said of them it holds."""

    feed: str
    topic: str
    partition: int
    first: int
    next: int
    part: int
    last: bool


@dataclass(frozen=True, slots=True)
class ScoresRecord:
    """One record of a scores topic. `part` counts the records of a push from 0."""

    feed: str
    channels: tuple[str, ...]
    scored: Scored
    part: int
    last: bool


@dataclass(frozen=True, slots=True)
class ScoresTopic:
    """Where a feed's scores go, and how much each says.

    Parameters
    ----------
    name : of the topic; it has as many partitions as the input.
    channels : of the feed, in the order of `Rows.x`.
    top : how many channels each row tells about, those with the largest share of its error; 0: all of them.
    """

    name: str
    feed: str
    channels: tuple[str, ...]
    top: int = 0

    def encode(self, scored: Scored, max_bytes: int) -> list[bytes]:
        """Return the records of one push, each of at most `max_bytes` unless one row alone takes more."""
        n = 0 if scored.verdicts is None else len(scored.verdicts)
        most = max(1, max_bytes // (_ROW_BYTES + 14 * self._told))
        spans = [(start, min(start + most, n)) for start in range(0, n, most)][::-1] or [(0, 0)]
        bodies: list[bytes] = []
        while spans:
            start, stop = spans.pop()
            body = self._body(scored, start, stop, part=len(bodies), last=stop == n)
            if len(body) > max_bytes and stop - start > 1:
                middle = (start + stop) // 2
                spans += [(middle, stop), (start, middle)]
            else:
                bodies.append(body)
        return bodies

    @property
    def _told(self) -> int:
        return min(self.top, len(self.channels)) or len(self.channels)

    def _body(self, scored: Scored, start: int, stop: int, part: int, last: bool) -> bytes:
        push = _Push(self.feed, scored.topic, scored.partition, scored.first, scored.next, part, last)
        columns: dict[str, pa.Array] = {}
        if scored.verdicts is not None and stop > start:
            columns = self._columns(scored.verdicts, scored.assets, slice(start, stop))
        told = {
            _VERSION: SCHEMA_VERSION,
            _PUSH: msgspec.json.encode(push),
            _CHANNELS: msgspec.json.encode(self.channels),
            _MODEL: (scored.verdicts.scores.model_id if scored.verdicts is not None else "").encode(),
            _LAG: str(scored.verdicts.scores.lag_ns if scored.verdicts is not None else 0).encode(),
        }
        schema = self._schema().with_metadata(told)
        arrays = [columns.get(field.name, pa.array([], field.type)) for field in schema]
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, schema) as stream:
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return bytes(out.getvalue())

    def _schema(self) -> pa.Schema:
        shares = pa.list_(pa.float32(), self._told)
        return pa.schema(
            [
                ("asset", _NAME),
                ("ts_ns", pa.int64()),
                ("offset", pa.int64()),
                ("row", pa.int32()),
                *((name, pa.uint8()) for name in _CODES),
                ("breached", pa.bool_()),
                *((name, pa.float32()) for name in _NUMBERS),
                *([("channel", pa.list_(pa.uint16(), self._told))] if self.top else []),
                *((name, shares) for name in _LISTS),
            ]
        )

    def _columns(self, verdicts: Verdicts, assets: Sequence[str], rows: slice) -> dict[str, pa.Array]:
        s = verdicts.scores
        out = {
            "asset": _names(assets, s.asset[rows]),
            "breached": pa.array(verdicts.breached[rows]),
            **{name: pa.array(getattr(s, name)[rows]) for name in ("ts_ns", "offset", "row", *_CODES)},
        }
        for name in _NUMBERS:
            values = getattr(verdicts if hasattr(verdicts, name) else s, name)
            out[name] = pa.array(values[rows], from_pandas=True)
        lists = {name: getattr(s, name)[rows] for name in _LISTS}
        if self.top:
            channel = np.argsort(-lists["by_channel"], axis=1, kind="stable")[:, : self._told]
            lists = {name: np.take_along_axis(values, channel, axis=1) for name, values in lists.items()}
            lists["channel"] = channel.astype(np.uint16)
        for name, values in lists.items():
            out[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), from_pandas=True), self._told)
        return out


def decode_scores(body: bytes) -> ScoresRecord:
    """Return what `ScoresTopic.encode` wrote; a channel that is not told about has share 0, and NaN for the rest.

    Raises
    ------
    SchemaError : not a record of a scores topic, of another version, or damaged.
    """
    try:
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all().combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"not a record of a scores topic: {error}; starts with {body[:40]!r}") from None
    told = table.schema.metadata or {}
    if told.get(_VERSION) != SCHEMA_VERSION:
        raise SchemaError(
            f"scores of schema version {told.get(_VERSION, b'?').decode()!r}, this program reads "
            f"{SCHEMA_VERSION.decode()!r}: columns {', '.join(table.column_names)}"
        )
    try:
        push = msgspec.json.decode(told.get(_PUSH, b""), type=_Push)
        channels = msgspec.json.decode(told.get(_CHANNELS, b""), type=tuple[str, ...])
        model, lag_ns = told.get(_MODEL, b"").decode(), int(told.get(_LAG, b"0"))
        verdicts, assets = _verdicts(table, push.partition, len(channels), model, lag_ns)
    except (msgspec.MsgspecError, pa.ArrowException, KeyError, ValueError, IndexError, AttributeError) as error:
        raise SchemaError(f"a record of a scores topic that is damaged: {error!r}") from None
    scored = Scored(push.topic, push.partition, assets, verdicts, push.first, push.next)
    return ScoresRecord(push.feed, channels, scored, push.part, push.last)


def _verdicts(
    table: pa.Table, partition: int, channels: int, model_id: str, lag_ns: int
) -> tuple[Verdicts, tuple[str, ...]]:
    n = len(table)
    assets, codes = _decoded_names(table["asset"])
    number = {name: _floats(table[name]) for name in _NUMBERS}
    lists: dict[str, Any] = {name: _dense(table, name, n, channels) for name in _LISTS}
    plain: dict[str, Any] = {name: _numbers(table[name]) for name in ("ts_ns", "offset", "row", *_CODES)}
    scores = Scores(
        partition=partition,
        asset=codes,
        **plain,
        score=number["score"],
        **lists,
        coverage=number["coverage"],
        model_id=model_id,
        lag_ns=lag_ns,
    )
    breached = np.ascontiguousarray(table["breached"].to_numpy())
    own = {name: number[name] for name in ("smoothed", "ratio", "own_ratio", "threshold")}
    return Verdicts(scores=scores, breached=breached, **own), assets


def _dense(table: pa.Table, name: str, n: int, channels: int) -> NDArray[np.float32]:
    values = _floats(_flat(table[name])).reshape(n, table.schema.field(name).type.list_size)
    if "channel" not in table.column_names:
        return values.reshape(n, channels)
    out = np.full((n, channels), 0 if name == "by_channel" else np.nan, np.float32)
    channel = _numbers(_flat(table["channel"])).astype(np.int64).reshape(values.shape)
    np.put_along_axis(out, channel, values, axis=1)
    return out


def _names(assets: Sequence[str], codes: NDArray[np.int32]) -> pa.Array:
    """Return names as a dictionary in the order of their first appearance."""
    found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty(len(found), np.int32)
    place[order] = np.arange(len(found), dtype=np.int32)
    names = pa.array([assets[code] for code in found[order].tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(place[inverse]), names)


def _decoded_names(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    if not column.num_chunks:
        return (), np.empty(0, np.int32)
    names = column.combine_chunks()
    return tuple(names.dictionary.to_pylist()), _numbers(names.indices)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()


def _floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    return np.array(column.fill_null(np.nan).to_numpy(), np.float32)


def _numbers(column: Any) -> NDArray[Any]:
    return np.ascontiguousarray(column.to_numpy())
