"""What one commit changed in a partition: enough to bring an older snapshot up to date without deciding anything again.

A worker that takes a partition over must not score its input a second time: another host's low bits, or a newer model,
could decide otherwise than what was published. So a commit logs its outcome, not its cause: the bytes of the table
that changed, and the rows that went into the windows. State that a stage adds to the table is logged with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import StateError
from pipeline.state import AssetTable
from pipeline.values import Bool, Float32, Int32, Int64, Rows, UInt8


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed in k assets, n rows of theirs among it. C channels, S bytes of packed columns."""

    model_id: str  # that served; "" while nothing did
    assets: Sequence[str]  # k names
    whole: Bool  # (k,), columns are as they stand; else the difference to those of the last commit
    columns: UInt8  # (k, S), packed columns, or old XOR new
    asset: Int32  # (n,), of each row, as an index into `assets`
    ts_ns: Int64  # (n,)
    x: Float32  # (n, C)
    observed: Bool  # (n, C)
    continuity: UInt8  # (n,)

    def only(self, keep: Bool) -> Delta:
        """Return what concerns the assets where `keep` (k,) is True."""
        index = np.cumsum(keep, dtype=np.int32) - np.int32(1)
        rows = keep[self.asset]
        return Delta(
            model_id=self.model_id,
            assets=[name for name, kept in zip(self.assets, keep.tolist(), strict=True) if kept],
            whole=self.whole[keep],
            columns=self.columns[keep],
            asset=index[self.asset[rows]],
            ts_ns=self.ts_ns[rows],
            x=self.x[rows],
            observed=self.observed[rows],
            continuity=self.continuity[rows],
        )

    def between(self, start: int, stop: int) -> Delta:
        """Return it with the rows from `start` up to `stop` only."""
        cut = slice(start, stop)
        return replace(
            self,
            asset=self.asset[cut],
            ts_ns=self.ts_ns[cut],
            x=self.x[cut],
            observed=self.observed[cut],
            continuity=self.continuity[cut],
        )

    def rows(self, partition: int, codes: Int32) -> Rows:
        """Return the rows as windows take them; `codes` (k,) are the assets' codes. Quality is not kept."""
        n, channels = self.x.shape
        return Rows(
            partition=partition,
            asset=codes[self.asset],
            ts_ns=self.ts_ns,
            x=self.x,
            observed=self.observed,
            quality=np.zeros((n, channels), np.uint8),
            offset=np.zeros(n, np.int64),
            row=np.zeros(n, np.int32),
            continuity=self.continuity,
        )


class Journal:
    """Notes what changes in one partition between two commits.

    It keeps a copy of the packed columns as they were last committed: the difference to them is mostly zeros, which
    a codec makes small.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._base = np.zeros((0, 0), np.uint8)  # (capacity, S)
        self._based = np.zeros(0, np.bool_)  # (capacity,), there is a copy
        self._rows: list[Rows] = []

    def note(self, rows: Rows) -> None:
        """Keep rows that went into the windows."""
        self._rows.append(rows)

    def take(self, model_id: str, table: AssetTable, codes: Int32) -> Delta:
        """Return what changed since the last call in the assets `codes` (k,), rising."""
        now = table.pack_all(codes)
        self._make_room(len(table), now.shape[1])
        base, whole = self._base[codes], ~self._based[codes]
        self._base[codes], self._based[codes] = now, True
        rows, self._rows = self._rows or [Rows.empty(0, self._channels)], []
        asset = np.concatenate([r.asset for r in rows])
        return Delta(
            model_id=model_id,
            assets=[table.names[code] for code in codes.tolist()],
            whole=whole,
            columns=np.where(whole[:, None], now, now ^ base),
            asset=np.searchsorted(codes, asset).astype(np.int32),
            ts_ns=np.concatenate([r.ts_ns for r in rows]),
            x=np.concatenate([r.x for r in rows]),
            observed=np.concatenate([r.observed for r in rows]),
            continuity=np.concatenate([r.continuity for r in rows]),
        )

    def forget(self) -> None:
        """Start again from nothing: everything that changed was saved in full."""
        self._rows = []
        self._based[:] = False

    def _make_room(self, assets: int, size: int) -> None:
        """Widths that have grown make all copies useless; more assets need more room."""
        if size != self._base.shape[1]:
            self._base, self._based = np.zeros((assets, size), np.uint8), np.zeros(assets, np.bool_)
        elif assets > len(self._based):
            more = max(assets, 2 * len(self._based)) - len(self._based)
            self._base = np.concatenate([self._base, np.zeros((more, size), np.uint8)])
            self._based = np.concatenate([self._based, np.zeros(more, np.bool_)])


def patched(columns: Mapping[str, bytes], deltas: Sequence[Delta]) -> dict[str, bytes]:
    """Return every asset's packed columns with the changes of `deltas` made, in order.

    Raises
    ------
    StateError : a difference to columns that are not there.
    """
    out = {name: np.frombuffer(packed, np.uint8) for name, packed in columns.items()}
    for delta in deltas:
        for name, whole, change in zip(delta.assets, delta.whole.tolist(), delta.columns, strict=True):
            if whole:
                out[name] = change
                continue
            old = out.get(name)
            if old is None or len(old) != len(change):
                raise StateError(f"asset {name!r}: a change of {len(change)} bytes to a state that is not there")
            out[name] = old ^ change
    return {name: packed.tobytes() for name, packed in out.items()}
