"""The fold: polled messages in; rows, verdicts, alerts and dead letters out. Live, replay, demo and bench run this.

`front` is the part before the engine (decode, align, gate); training reads history through the same function. What a
partition knows is one `AssetTable`; the engine owns the windows of all partitions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.alert import AlertSpec, alert_columns, decide
from pipeline.align import Aligned, AlignSpec, align, align_columns
from pipeline.bundle import Bundle, Calibration, SmootherSpec
from pipeline.decode import Decoded, FieldMapping, decode
from pipeline.errors import BundleError, StateError
from pipeline.gate import GateSpec, gate, gate_columns
from pipeline.protocols import AssetState, Engine, RawWindows, Restored
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable, Column
from pipeline.threshold import hold
from pipeline.values import Bool, Int32, Output, Polled, Rows, Scores, Status, Verdicts

_WINDOW_HEAD = struct.Struct("<III")  # rows kept, channels, count


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
    return decoded, replace(aligned, rows=gate(aligned.rows, table, spec.gate))


@dataclass(slots=True)
class _Partition:
    topic: str
    table: AssetTable
    slots: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # of the engine, by asset code
    cal_row: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # of the calibration, by asset code
    changed: set[int] = field(default_factory=set)  # codes whose state differs from the last snapshot


class Chain:
    """One worker's fold over the partitions it has.

    Without an engine it collects: rows are decoded, aligned and gated, data-quality alerts go out, nothing is scored.
    """

    def __init__(self, spec: ChainSpec) -> None:
        self.spec = spec
        self._gate = spec.gate
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
                engine.load(slots, _fit_windows(self._engine.dump(part.slots), engine.rows_kept))
                self._engine.drop(part.slots)
            part.slots = slots
        self._engine, self._calibration, self._rows = engine, calibration, calibration.row_of()
        self._gate = _stuck_from(self.spec, bundle)
        for part in self._partitions.values():
            part.cal_row = self._calibration_rows(part.table.names)

    def assets(self, topic: str, partition: int) -> Sequence[str]:
        """Return the names behind a partition's asset codes."""
        return self._partitions[topic, partition].table.names

    def push(self, polled: Sequence[Polled]) -> Output:
        """Take messages, in log order per partition; return everything they lead to."""
        spec = replace(self.spec, gate=self._gate)
        parts = [self._partition(p.topic, p.partition) for p in polled]
        fronts = [front(p, part.table, spec) for p, part in zip(polled, parts, strict=True)]
        frames = [aligned.rows for _, aligned in fronts]
        verdicts = self._judge(parts, frames)
        alerts = [
            alert
            for part, rows, verdict in zip(parts, frames, verdicts, strict=True)
            for alert in decide(rows, verdict, part.topic, part.table, self.spec.alert)
        ]
        for part, (decoded, _) in zip(parts, fronts, strict=True):
            part.changed.update(np.unique(decoded.rows.asset).tolist())
        dead = [letter for decoded, _ in fronts for letter in decoded.dead]
        return Output(
            rows=[decoded.rows for decoded, _ in fronts],
            verdicts=verdicts if self._engine else (),
            alerts=alerts,
            dead=dead,
            counts=_counts(polled, fronts, verdicts),
        )

    def take_states(self) -> dict[tuple[str, int], list[AssetState]]:
        """Return the state of every asset that changed since the last call."""
        out = {}
        for key, part in self._partitions.items():
            if part.changed:
                out[key] = self._states(part, np.array(sorted(part.changed), np.int32))
                part.changed = set()
        return out

    def restore(self, topic: str, partition: int, restored: Restored) -> None:
        """Put a partition back as it was when `restored` was committed.

        Raises
        ------
        StateError : the state was written by another program version or configuration.
        """
        part = self._partition(topic, partition)
        codes = np.array([part.table.unpack(s.asset, s.columns) for s in restored.assets], np.int32)
        part.changed = set()
        self._allot(part)
        if self._engine is None or not len(codes):
            return
        windows = [_unpack_window(s.asset, s.window) for s in restored.assets if s.window]
        kept = np.array([bool(s.window) for s in restored.assets])
        if windows:
            channels = len(self.spec.mapping.channels)
            raw = _join_windows(windows, self._engine.rows_kept, channels)
            self._engine.load(part.slots[codes[kept]], raw)

    def _partition(self, topic: str, partition: int) -> _Partition:
        key = (topic, partition)
        if key not in self._partitions:
            channels = len(self.spec.mapping.channels)
            columns = {**front_columns(self.spec), **smoother_columns(self.spec.smoother), **alert_columns(channels)}
            self._partitions[key] = _Partition(topic, AssetTable(columns, self.spec.max_assets))
        return self._partitions[key]

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
            scores = _provisional(scores, row == 0)
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
            windows = _pack_windows(self._engine.dump(part.slots[codes]))
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


def _provisional(scores: Scores, pooled: Bool) -> Scores:
    status = np.where(pooled & (scores.status == Status.CALIBRATED), np.uint8(Status.PROVISIONAL), scores.status)
    return replace(scores, status=status.astype(np.uint8))


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
        "frames": sum(len(v) for v in verdicts),
        "scored": sum(int(np.isfinite(v.ratio).sum()) for v in verdicts),
        "breached": sum(int(v.breached.sum()) for v in verdicts),
    }
    for _, aligned in fronts:
        for name, count in aligned.counts.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _pack_windows(raw: RawWindows) -> list[bytes]:
    k, kept, channels = raw.x.shape
    head = [_WINDOW_HEAD.pack(kept, channels, int(c)) for c in raw.count]
    return [head[i] + raw.x[i].tobytes() + np.packbits(raw.observed[i]).tobytes() for i in range(k)]


def _unpack_window(asset: str, packed: bytes) -> RawWindows:
    kept, channels, count = _WINDOW_HEAD.unpack_from(packed)
    values = kept * channels
    size = _WINDOW_HEAD.size + 4 * values + (values + 7) // 8
    if len(packed) != size:
        raise StateError(f"saved window of asset {asset!r} has {len(packed)} bytes, {size} expected")
    x = np.frombuffer(packed, np.float32, values, _WINDOW_HEAD.size).reshape(1, kept, channels)
    bits = np.frombuffer(packed, np.uint8, offset=_WINDOW_HEAD.size + 4 * values)
    observed = np.unpackbits(bits, count=values).astype(np.bool_).reshape(1, kept, channels)
    return RawWindows(x, observed, np.array([count], np.int32))


def _join_windows(windows: Sequence[RawWindows], kept: int, channels: int) -> RawWindows:
    if any(w.x.shape[2] != channels for w in windows):
        raise StateError(f"saved windows have other channels than the configured {channels}")
    fitted = [_fit_windows(w, kept) for w in windows]
    return RawWindows(
        np.concatenate([w.x for w in fitted]),
        np.concatenate([w.observed for w in fitted]),
        np.concatenate([w.count for w in fitted]),
    )


def _fit_windows(raw: RawWindows, kept: int) -> RawWindows:
    """Return the windows cut or padded at their old end, so that they hold `kept` rows."""
    k, had, channels = raw.x.shape
    take = min(had, kept)
    x = np.zeros((k, kept, channels), np.float32)
    observed = np.zeros((k, kept, channels), np.bool_)
    x[:, kept - take :], observed[:, kept - take :] = raw.x[:, had - take :], raw.observed[:, had - take :]
    return RawWindows(x, observed, np.minimum(raw.count, kept).astype(np.int32))
