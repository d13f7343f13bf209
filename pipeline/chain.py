"""The fold: polled messages in; rows, verdicts, alerts and dead letters out. Live, replay, demo and bench run this.

`front` is the part before the engine (decode, align, gate); training reads history through the same function. What a
partition knows is one `AssetTable`; the engine owns the windows of all partitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from pipeline.alert import AlertSpec, alert_columns, decide
from pipeline.align import Aligned, AlignSpec, align, align_columns
from pipeline.bundle import POOLED, Bundle, Calibration, SmootherSpec
from pipeline.decode import Decoded, FieldMapping, decode
from pipeline.delta import Delta, Journal, patched
from pipeline.errors import BundleError
from pipeline.gate import GateSpec, gate, gate_columns
from pipeline.protocols import AssetState, Engine, Restored
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable, Column
from pipeline.threshold import hold
from pipeline.values import Bool, Int32, Output, Place, Polled, Rows, Scores, Status, UInt32, Verdicts
from pipeline.window_bytes import fit_windows, join_windows, pack_windows, unpack_window, window_bytes

_PROVISIONAL, _CALIBRATED = np.uint8(Status.PROVISIONAL), np.uint8(Status.CALIBRATED)


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """The rules of one feed, from its bytes to its alerts."""

    mapping: FieldMapping
    align: AlignSpec
    gate: GateSpec
    smoother: SmootherSpec
    alert: AlertSpec
    learned_stuck: tuple[bool, ...] = ()  # channels whose longest run is taken from the bundle; () = none
    max_assets: int = 1_000_000


def front_columns(spec: ChainSpec) -> dict[str, Column]:
    """Return the columns of the stages before the engine."""
    channels = len(spec.mapping.channels)
    return {**align_columns(spec.align, channels), **gate_columns(channels)}


def front(polled: Polled, table: AssetTable, spec: ChainSpec) -> tuple[Decoded, Aligned]:
    """Decode, align and gate the messages of one partition."""
    decoded = decode(polled, spec.mapping, table)
    aligned = align(decoded.rows, table, spec.align)
    return decoded, Aligned(gate(aligned.rows, table, spec.gate), aligned.late, aligned.counts)


@dataclass(slots=True)
class _Partition:
    """What a worker keeps of one partition. Arrays are by asset code."""

    topic: str
    table: AssetTable
    journal: Journal | None
    slots: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # of the engine
    cal_row: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # of the calibration
    changed: Bool = field(default_factory=lambda: np.empty(0, np.bool_))  # since the last commit
    unsaved: Bool = field(default_factory=lambda: np.empty(0, np.bool_))  # differs from the last snapshot
    share: UInt32 = field(default_factory=lambda: np.empty(0, np.uint32))  # hash that says when its snapshot is due
    save_all: bool = False  # a longer window cannot be made up from rows that were kept for a shorter one

    def grow(self) -> None:
        """Make room for assets that were seen for the first time."""
        new = self.table.names[len(self.share) :]
        if new:
            self.changed = np.concatenate([self.changed, np.zeros(len(new), np.bool_)])
            self.unsaved = np.concatenate([self.unsaved, np.zeros(len(new), np.bool_)])
            self.share = np.concatenate([self.share, np.array([crc32(name.encode()) for name in new], np.uint32)])

    def take_due(self, every: int, turn: int) -> Int32:
        """Return the codes of the assets that are to be saved now, rising."""
        due = self.unsaved if every == 1 or self.save_all else self.unsaved & (self.share % np.uint32(every) == turn)
        codes = np.flatnonzero(due).astype(np.int32)
        self.unsaved[codes] = False
        self.save_all = False
        return codes


class Chain:
    """One worker's fold over the partitions it has.

    Without an engine it collects: rows are decoded, aligned and gated, data-quality alerts go out, nothing is scored.

    Parameters
    ----------
    journal : note what changes from one `take_states` to the next; off, state can be saved in full only.
    """

    def __init__(self, spec: ChainSpec, *, journal: bool = False) -> None:
        self.spec = spec
        self._journals = journal
        self._front = spec  # with the gate as the bundle that serves has it
        self._engine: Engine | None = None
        self._calibration: Calibration | None = None
        self._rows: dict[str, int] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}

    @property
    def model_id(self) -> str:
        """The id of the bundle that is serving; empty while there is none."""
        return self._engine.model_id if self._engine else ""

    def serve(self, bundle: Bundle, engine: Engine) -> None:
        """Score with another bundle from now on. Windows, smoothers and open alerts carry over.

        Raises
        ------
        BundleError : the bundle was made for other channels, another period or smoother memory, or never calibrated
            through this engine's profile. What served before goes on.
        """
        self._check_fits(bundle)
        calibration = bundle.calibration(engine.profile)
        for part in self._partitions.values():
            slots = engine.allocate(part.table.names)
            if self._engine is not None and len(slots):
                engine.load(slots, fit_windows(self._engine.dump(part.slots), engine.rows_kept))
                self._engine.drop(part.slots)
                part.save_all |= engine.rows_kept > self._engine.rows_kept
            part.slots = slots
        self._engine, self._calibration, self._rows = engine, calibration, calibration.row_of()
        self._front = replace(self.spec, gate=_stuck_from(self.spec, bundle))
        for part in self._partitions.values():
            part.cal_row = self._calibration_rows(part.table.names)

    def state_bytes(self, rows_kept: int) -> int:
        """Return how many bytes the state of one asset would take now, with windows of so many rows."""
        none = np.empty(0, np.int32)
        tables = [self._table(), *(part.table for part in self._partitions.values())]
        columns: int = max(table.pack_all(none).shape[1] for table in tables)
        return columns + window_bytes(rows_kept, len(self.spec.mapping.channels))

    def assets(self, topic: str, partition: int) -> Sequence[str]:
        """Return the names behind a partition's asset codes."""
        return self._partitions[topic, partition].table.names

    def push(self, polled: Sequence[Polled]) -> Output:
        """Take messages, in log order per partition; return everything they lead to."""
        parts = [self._partition(p.topic, p.partition) for p in polled]
        fronts = [front(p, part.table, self._front) for p, part in zip(polled, parts, strict=True)]
        frames = [aligned.rows for _, aligned in fronts]
        verdicts = self._judge(parts, frames)
        alerts = [
            alert
            for part, rows, verdict in zip(parts, frames, verdicts, strict=True)
            for alert in decide(rows, verdict, part.topic, part.table, self.spec.alert)
        ]
        for part, (decoded, aligned) in zip(parts, fronts, strict=True):
            part.grow()
            part.changed[decoded.rows.asset] = True
            if part.journal is not None and self._engine is not None:
                part.journal.note(aligned.rows)
        dead = [letter for decoded, _ in fronts for letter in decoded.dead]
        return Output(
            rows=[decoded.rows for decoded, _ in fronts],
            verdicts=verdicts if self._engine else (),
            alerts=alerts,
            dead=dead,
            counts=_counts(polled, fronts, verdicts),
        )

    def take_states(
        self, rotations: Mapping[Place, tuple[int, int]]
    ) -> tuple[dict[Place, list[AssetState]], dict[Place, Delta]]:
        """Return what is to be saved of some partitions: assets in full, and what else changed since the last call.

        Parameters
        ----------
        rotations : (topic, partition) -> (K, turn): save the share `turn` of K of the assets that changed since they
            were last saved, so that K calls save them all. K = 1: all of them now, and no deltas.
        """
        states, deltas = {}, {}
        for key, (every, turn) in rotations.items():
            part = self._partition(*key)
            codes = np.flatnonzero(part.changed).astype(np.int32)
            part.unsaved |= part.changed
            part.changed[:] = False
            if part.journal is not None and every > 1:
                deltas[key] = part.journal.take(self.model_id, part.table, codes)
            elif part.journal is not None:
                part.journal.forget()
            due = part.take_due(every, turn)
            if len(due):
                states[key] = self._states(part, due)
        return states, deltas

    def restore(self, topic: str, partition: int, restored: Restored) -> None:
        """Put a partition back as it was when `restored` was committed. Nothing is scored or decided again.

        Raises
        ------
        StateError : the state was written by another program version or configuration, or is not whole.
        """
        self.drop(topic, partition)
        part = self._partition(topic, partition)
        columns = patched({s.asset: s.columns for s in restored.assets}, restored.deltas)
        for name, packed in columns.items():
            part.table.unpack(name, packed)
        part.grow()
        part.unsaved[[part.table.index[name] for delta in restored.deltas for name in delta.assets]] = True
        self._allot(part)
        if self._engine is None:
            return
        windows = {part.table.index[s.asset]: unpack_window(s.asset, s.window) for s in restored.assets if s.window}
        if windows:
            raw = join_windows(list(windows.values()), self._engine.rows_kept, len(self.spec.mapping.channels))
            self._engine.load(part.slots[list(windows)], raw)
        for delta in restored.deltas:
            codes = np.array([part.table.index[name] for name in delta.assets], np.int32)
            rows = delta.rows(partition, codes)
            self._engine.fill([(rows, part.slots[rows.asset])])

    def drop(self, topic: str, partition: int) -> None:
        """Forget a partition: another worker has it now."""
        part = self._partitions.pop((topic, partition), None)
        if part is not None and self._engine is not None and len(part.slots):
            self._engine.drop(part.slots)

    def _partition(self, topic: str, partition: int) -> _Partition:
        key = (topic, partition)
        if key not in self._partitions:
            journal = Journal(len(self.spec.mapping.channels)) if self._journals else None
            self._partitions[key] = _Partition(topic, self._table(), journal)
        return self._partitions[key]

    def _table(self) -> AssetTable:
        alerts = alert_columns(len(self.spec.mapping.channels))
        columns = {**front_columns(self.spec), **smoother_columns(self.spec.smoother), **alerts}
        return AssetTable(columns, self.spec.max_assets)

    def _judge(self, parts: Sequence[_Partition], frames: Sequence[Rows]) -> list[Verdicts]:
        """Score, smooth and hold against the threshold; without an engine every verdict is 'nothing to say'."""
        if self._engine is None or self._calibration is None:
            return [_no_verdicts(rows) for rows in frames]
        for part in parts:
            self._allot(part)
        scored = self._engine.push([(rows, part.slots[rows.asset]) for part, rows in zip(parts, frames, strict=True)])
        out = []
        for part, scores in zip(parts, scored, strict=True):
            row = part.cal_row[scores.asset]
            scores = _provisional(scores, row)
            smoothed, own = smooth(scores, row, self._calibration, part.table, self.spec.smoother)
            out.append(hold(scores, smoothed, own, row, self._calibration))
        return out

    def _allot(self, part: _Partition) -> None:
        """Give assets that were seen for the first time a slot and a row of the calibration."""
        new = part.table.names[len(part.slots) :]
        if self._engine is None or not new:
            return
        part.slots = np.concatenate([part.slots, self._engine.allocate(new)])
        part.cal_row = np.concatenate([part.cal_row, self._calibration_rows(new)])

    def _calibration_rows(self, names: Sequence[str]) -> Int32:
        return np.array([self._rows.get(name, 0) for name in names], np.int32)

    def _states(self, part: _Partition, codes: Int32) -> list[AssetState]:
        columns = [part.table.pack(code) for code in codes.tolist()]
        windows = [b""] * len(codes)
        if self._engine is not None:
            windows = pack_windows(self._engine.dump(part.slots[codes]))
        names = [part.table.names[code] for code in codes.tolist()]
        return [AssetState(*state) for state in zip(names, columns, windows, strict=True)]

    def _check_fits(self, bundle: Bundle) -> None:
        spec = self.spec
        if bundle.channels != spec.mapping.channels:
            raise BundleError(
                f"bundle {bundle.id} is for channels {bundle.channels}, this feed has {spec.mapping.channels}"
            )
        if bundle.smoother != spec.smoother:
            raise BundleError(
                f"bundle {bundle.id} was calibrated with {bundle.smoother}, the configuration says {spec.smoother}: "
                "set [smoother] back, or retrain"
            )
        if bundle.streaming and spec.align.mode != "grid":
            raise BundleError(
                f"bundle {bundle.id} is a streaming one, which needs rows on a grid, this feed has align.mode = "
                f'{spec.align.mode!r}: set [align] mode = "grid", or train with members = ["conv"]'
            )
        if spec.align.mode == "grid" and bundle.period_ns != spec.align.period_ns:
            raise BundleError(
                f"bundle {bundle.id} is for a period of {bundle.period_ns} ns, this feed has {spec.align.period_ns} ns"
            )


def _stuck_from(spec: ChainSpec, bundle: Bundle) -> GateSpec:
    """Return the gate with the runs that the bundle learned where the configuration leaves them to it."""
    learned = spec.learned_stuck or (False,) * len(bundle.stuck_frames)
    both = zip(learned, bundle.stuck_frames, spec.gate.stuck_frames, strict=True)
    return replace(spec.gate, stuck_frames=tuple(b if auto else s for auto, b, s in both))


def _provisional(scores: Scores, cal_row: Int32) -> Scores:
    """Say of calibrated scores that went by the pooled row of the calibration that they are provisional."""
    pooled = cal_row == POOLED
    if not pooled.any():
        return scores
    pooled &= scores.status == _CALIBRATED
    return replace(scores, status=np.where(pooled, _PROVISIONAL, scores.status))


def _no_verdicts(rows: Rows) -> Verdicts:
    n, channels = rows.x.shape
    nothing = np.full(n, np.nan, np.float32)
    unknown = np.full((n, channels), np.nan, np.float32)
    scores = Scores(
        partition=rows.partition,
        asset=rows.asset,
        ts_ns=rows.ts_ns,
        offset=rows.offset,
        row=rows.row,
        continuity=rows.continuity,
        score=nothing,
        by_channel=np.zeros((n, channels), np.float32),
        expected=unknown,
        actual=unknown,
        coverage=rows.observed.mean(axis=1, dtype=np.float32),
        status=np.full(n, Status.WARMING, np.uint8),
    )
    return Verdicts(scores, nothing, nothing, nothing, np.zeros(n, np.bool_), nothing)


def _counts(
    polled: Sequence[Polled], fronts: Sequence[tuple[Decoded, Aligned]], verdicts: Sequence[Verdicts]
) -> dict[str, int]:
    counts = {
        "messages": sum(len(p) for p in polled),
        "rows": sum(len(decoded.rows) for decoded, _ in fronts),
        "dead": sum(len(decoded.dead) for decoded, _ in fronts),
        "scored": sum(int(np.count_nonzero(np.isfinite(v.ratio))) for v in verdicts),
        "breached": sum(int(np.count_nonzero(v.breached)) for v in verdicts),
    }
    for _, aligned in fronts:
        for name, count in aligned.counts.items():
            counts[name] = counts.get(name, 0) + count
    return counts
