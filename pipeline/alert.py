"""The alert life cycle: verdicts and quality codes in; open, updated and resolved out.

One state machine per asset and kind, all of it columns of the asset table, stepped in log order by one kernel::

    idle ──ratio > open_at──▶ pending ──held for min_duration, k of n frames over by themselves──▶ open
     ▲                          │ ratio <= open_at                                                  │
     └──────────────────────────┘◀──────────── ratio < close_at for merge_gap: resolved ◀───────────┘

Every rule is one of event time: nothing depends on how the input was cut. A frame without a score holds everything
where it is. Merging is a delayed resolution: an alert that comes back within `merge_gap` never went away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.kernels import copy_values, row_kernel, row_part, set_all
from pipeline.state import AssetTable, Column
from pipeline.values import (
    NS_PER_S,
    Alert,
    Continuity,
    Float32,
    Position,
    Quality,
    Rows,
    TopChannel,
    UInt8,
    Verdicts,
)

ANOMALY = "anomaly"
# Data-quality kinds, by the quality code that raises them. GAP and ABSENT raise nothing: a silent asset is a matter
# of liveness, and a short absence is what masks are for.
QUALITY_KINDS: Mapping[str, Quality] = {
    "stuck": Quality.STUCK,
    "missing": Quality.MISSING,
    "out_of_range": Quality.OUT_OF_RANGE,
    "jump": Quality.JUMP,
    "non_finite": Quality.NON_FINITE,
}
KINDS: tuple[str, ...] = (ANOMALY, *QUALITY_KINDS)

_COLUMNS = tuple(f"alert.{c}" for c in ("machine", "share", "expected", "actual", "last_ns", "resting"))
_CODES = np.array([*QUALITY_KINDS.values()], np.uint8)

_IDLE, _PENDING, _OPEN = 0, 1, 2
_STATES = ("", "open", "updated", "resolved")
_OPENED, _UPDATED, _RESOLVED = 1, 2, 3
_REASONS = ("", "over_threshold", "severity", "still_open", "below_threshold", "retired")
_OVER, _SEVERITY, _STILL, _BELOW, _RETIRED = 1, 2, 3, 4, 5
_NEVER = np.iinfo(np.int64).min
_EVENTS_PER_CALL = 256
_MOST_FRAMES = 32
_GAP = int(Quality.GAP)
_FRESH = int(Continuity.FRESH)


@dataclass(frozen=True, slots=True)
class LifeCycleSpec:
    """When an alert opens, rises and resolves. Ratios are in units of the threshold, times in ns of event time.

    Attributes
    ----------
    open_at, close_at : a breach is ratio > open_at; an open alert clears while ratio < close_at (hysteresis).
    min_duration_ns : how long the breach has held when the alert opens.
    frames, of : at least `frames` of the last `of` scored frames (at most 32) are over the threshold by themselves.
    merge_gap_ns : how long the ratio stays below close_at before the alert is resolved; a return within it merges.
    cooldown_ns : how long after a resolution nothing of this kind opens on this asset.
    update_every_ns : an open alert is published again after this long; 0: only when its severity rises.
    severities : rising (peak ratio, name) pairs; the first begins at open_at.
    top : how many channels an alert names.
    """

    open_at: float = 1.0
    close_at: float = 0.8
    min_duration_ns: int = 0
    frames: int = 2
    of: int = 5
    merge_gap_ns: int = 60 * NS_PER_S
    cooldown_ns: int = 0
    update_every_ns: int = 3600 * NS_PER_S
    severities: tuple[tuple[float, str], ...] = ((1.0, "warning"), (2.0, "error"), (4.0, "critical"))
    top: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.close_at <= self.open_at:
            raise ConfigError("alert.close_at", self.close_at, f"must be over 0 and at most open_at ({self.open_at})")
        if not 1 <= self.frames <= self.of <= _MOST_FRAMES:
            raise ConfigError("alert.frames", (self.frames, self.of), f"needs 1 <= frames <= of <= {_MOST_FRAMES}")
        levels = [level for level, _ in self.severities]
        if not levels or levels != sorted(levels):
            raise ConfigError("alert.severity", self.severities, "needs at least one level, rising")
        for name in ("min_duration", "merge_gap", "cooldown", "update_every"):
            if (time_ns := getattr(self, f"{name}_ns")) < 0:
                raise ConfigError(f"alert.{name}_s", time_ns / NS_PER_S, "must not be negative")


# A quality fault is told once, by the gate: one frame opens it, and it has one severity.
QUALITY_LIFE_CYCLE = LifeCycleSpec(frames=1, of=1, severities=((1.0, "warning"),))


# One life cycle. Times are event time in ns, _NEVER where there is none; `hits` holds one bit per scored frame, the
# newest lowest: over the threshold by itself.
_MACHINE = np.dtype(
    [("state", "u1"), ("level", "u1"), ("seq", "i4"), ("hits", "u4"), ("peak", "f4")]
    + [(name, "i8") for name in ("pending", "onset", "opened", "clear", "resolved", "published")],
    align=True,
)
_CYCLE = np.dtype(
    [("open_at", "f4"), ("close_at", "f4"), ("frames", "i4"), ("recent", "u4")]
    + [(name, "i8") for name in ("min_duration", "merge_gap", "cooldown", "update_every")],
    align=True,
)


def alert_columns(channels: int) -> dict[str, Column]:
    """Return the life cycle's columns of the asset table."""
    kinds = len(KINDS)
    return {
        "alert.machine": Column(_MACHINE, (kinds,), (_IDLE, 0, 0, 0, 0.0) + (_NEVER,) * 6),
        "alert.share": Column(np.float32, (kinds, channels)),
        "alert.expected": Column(np.float32, (channels,), np.nan),  # at the peak of the anomaly
        "alert.actual": Column(np.float32, (channels,), np.nan),
        "alert.last_ns": Column(np.int64, (), _NEVER),
        "alert.resting": Column(np.uint8),  # bit k: of kind k nothing is kept that a frame without a breach changes
    }


@dataclass(frozen=True, slots=True)
class AlertSpec:
    """Everything the life cycle needs to know besides the verdicts."""

    feed: str
    config_id: str
    channels: tuple[str, ...]
    anomaly: LifeCycleSpec
    quality: LifeCycleSpec = QUALITY_LIFE_CYCLE


def decide(rows: Rows, verdicts: Verdicts, topic: str, table: AssetTable, spec: AlertSpec) -> list[Alert]:
    """Step every asset's life cycles over aligned, gated rows and their verdicts; return what is to be published.

    Parameters
    ----------
    rows : (n, C), with quality codes and continuity.
    verdicts : of the same n rows, in the same order.
    topic : of the log they came from, for the evidence.
    """
    events = _events(len(spec.channels))
    cycles, levels = _cycles(spec.anomaly, spec.quality)
    scores = verdicts.scores
    state = tuple(table[name] for name in _COLUMNS)
    seen = (rows.asset, rows.ts_ns, rows.continuity, rows.quality)
    judged = (verdicts.ratio, verdicts.own_ratio, scores.by_channel, scores.expected, scores.actual)
    alerts: list[Alert] = []
    at, total = 0, len(rows) * len(KINDS)
    while at < total:
        at, count = _step(at, seen, judged, _CODES, cycles, levels, state, events)
        alerts += [_alert(e, events, rows, verdicts, topic, table, spec) for e in range(count)]
    return alerts


def _alert(
    e: int, events: _Events, rows: Rows, verdicts: Verdicts, topic: str, table: AssetTable, spec: AlertSpec
) -> Alert:
    event = events.event[e]
    i, kind = int(event["row"]), KINDS[event["kind"]]
    anomaly = kind == ANOMALY
    cycle = spec.anomaly if anomaly else spec.quality
    lag = verdicts.scores.lag_ns if anomaly else 0  # what was over the threshold lies that long before the frame
    asset, opened = table.names[rows.asset[i]], int(event["opened"])
    return Alert(
        id=alert_id(spec.feed, asset, kind, opened),
        seq=int(event["seq"]),
        feed=spec.feed,
        asset=asset,
        kind=kind,
        state=_STATES[event["state"]],
        reason=_REASONS[event["reason"]],
        severity=cycle.severities[event["level"]][1],
        ts_ns=int(event["ts"]),
        opened_ns=opened,
        start_ns=int(event["start"]),
        onset_ns=int(event["onset"]) - lag,
        end_ns=None if event["end"] == _NEVER else int(event["end"]),
        ratio=float(event["ratio"]),
        peak_ratio=float(event["peak"]),
        threshold=float(verdicts.threshold[i]) if anomaly else 1.0,
        coverage=float(verdicts.scores.coverage[i]),
        top_channels=_top_channels(events, e, spec.channels, cycle.top),
        model_id=verdicts.scores.model_id if anomaly else "",
        config_id=spec.config_id,
        evidence=Position(topic, rows.partition, int(rows.offset[i]), int(rows.row[i])),
    )


def alert_id(feed: str, asset: str, kind: str, opened_ns: int) -> str:
    """Return the id of an alert: the same from Kafka, from a file, in a replay, after any restart."""
    text = "\x1f".join((feed, asset, kind, str(opened_ns)))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _top_channels(events: _Events, e: int, channels: Sequence[str], top: int) -> tuple[TopChannel, ...]:
    share, anomaly = events.share[e], KINDS[events.event[e]["kind"]] == ANOMALY
    total = share.sum(dtype=np.float64)
    order = np.argsort(-share, kind="stable")[:top]
    return tuple(
        TopChannel(
            channels[c],
            float(share[c] / total),
            _known(events.expected[e, c]) if anomaly else None,  # a sensor fault has no expected value
            _known(events.actual[e, c]) if anomaly else None,
        )
        for c in order
        if share[c] > 0
    )


def _known(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


@lru_cache(maxsize=64)
def _cycles(anomaly: LifeCycleSpec, quality: LifeCycleSpec) -> tuple[NDArray[np.void], Float32]:
    """Return the kinds' rules as records (kinds,), and their severity levels (kinds, most), padded with inf."""
    kinds = [anomaly, *[quality] * len(QUALITY_KINDS)]
    cycles = np.zeros(len(kinds), _CYCLE)
    levels = np.full((len(kinds), max(len(c.severities) for c in kinds)), np.inf, np.float32)
    for i, c in enumerate(kinds):
        recent = (1 << c.of) - 1
        times = (c.min_duration_ns, c.merge_gap_ns, c.cooldown_ns, c.update_every_ns)
        cycles[i] = (c.open_at, c.close_at, c.frames, recent, *times)
        levels[i, : len(c.severities)] = [level for level, _ in c.severities]
    return cycles, levels


_EVENT = np.dtype(
    [(name, "i8") for name in ("row", "ts", "opened", "start", "onset", "end", "seq")]
    + [("ratio", "f4"), ("peak", "f4"), ("kind", "u1"), ("state", "u1"), ("reason", "u1"), ("level", "u1")],
    align=True,
)


class _Events(NamedTuple):
    """What the kernel found, to be turned into alerts before it goes on."""

    event: NDArray[np.void]
    share: Float32
    expected: Float32
    actual: Float32


def _events(channels: int) -> _Events:
    share, expected, actual = (np.empty((_EVENTS_PER_CALL, channels), np.float32) for _ in range(3))
    return _Events(np.empty(_EVENTS_PER_CALL, _EVENT), share, expected, actual)


@row_part
def _quality_hits(quality: UInt8) -> np.uint32:
    """Return the set of quality codes that occur in a row, as bits. In nearly all rows it is OK alone."""
    others = np.uint8(0)
    for c in range(len(quality)):
        others |= quality[c]
    hit = np.uint32(1)
    if others:
        hit = np.uint32(0)
        for c in range(len(quality)):
            hit |= np.uint32(1) << np.uint32(quality[c])
    return hit


@row_kernel
def _affected_ratio(quality: UInt8, hit: np.uint32, code: np.uint8) -> np.float32:
    """Return 1 + the share of channels that carry `code`, 0 if none does, NaN for a gap row: it says nothing."""
    if hit >> np.uint32(_GAP) & np.uint32(1):
        return np.float32(np.nan)
    if not hit >> np.uint32(code) & np.uint32(1):
        return np.float32(0)
    affected = 0
    for c in range(len(quality)):
        affected += quality[c] == code
    return np.float32(1) + np.float32(affected) / np.float32(len(quality))


@row_kernel
def _recent_hits(m: Any, cycle: Any) -> int:
    bits, count = np.uint32(m.hits & cycle.recent), 0
    while bits:
        count += 1
        bits &= bits - np.uint32(1)
    return count


@row_kernel
def _note_own(m: Any, own: np.float32, ts: int, cycle: Any) -> None:
    """Remember whether the frame is over the threshold by itself, and when that began."""
    over = own > cycle.open_at
    m.hits = np.uint32(m.hits << np.uint32(1)) | np.uint32(over)
    if over and m.onset == _NEVER:
        m.onset = ts
    elif m.state == _IDLE and m.hits & cycle.recent == 0:
        m.onset = _NEVER


@row_kernel
def _may_open(m: Any, ratio: np.float32, ts: int, cycle: Any) -> bool:
    """Step an alert that is not open; return whether it opens on this frame."""
    if ratio <= cycle.open_at:
        m.state = _IDLE
        return False
    if m.state == _IDLE:
        m.state, m.pending, m.peak = _PENDING, ts, 0
    held = ts - m.pending >= cycle.min_duration
    cool = m.resolved == _NEVER or ts - m.resolved >= cycle.cooldown
    return bool(held and cool and _recent_hits(m, cycle) >= cycle.frames)


@row_kernel
def _follow(m: Any, ratio: np.float32, ts: int, cycle: Any, severity: int) -> tuple[int, int]:
    """Step an open alert; return (what to publish, why)."""
    if ratio < cycle.close_at:
        if m.clear == _NEVER:
            m.clear = ts
        if ts - m.clear >= cycle.merge_gap:
            return _RESOLVED, _BELOW
    else:
        m.clear = _NEVER
    if severity > m.level:
        return _UPDATED, _SEVERITY
    if cycle.update_every > 0 and ts - m.published >= cycle.update_every:
        return _UPDATED, _STILL
    return 0, 0


@row_kernel
def _severity(levels: Float32, peak: np.float32) -> int:
    level = 0
    while level + 1 < len(levels) and peak >= levels[level + 1]:
        level += 1
    return level


@row_kernel
def _close(m: Any, ts: int) -> None:
    m.state, m.hits, m.onset, m.pending, m.resolved = _IDLE, 0, _NEVER, _NEVER, ts


@row_kernel
def _put(event: Any, i: int, k: int, m: Any, published: int, reason: int, ts: int, end: int, ratio: np.float32) -> None:
    event.row, event.kind, event.state, event.reason, event.level = i, k, published, reason, m.level
    event.seq, event.ts, event.opened, event.start, event.end = m.seq, ts, m.opened, m.pending, end
    event.onset = m.pending if m.onset == _NEVER else min(m.onset, m.pending)
    event.ratio, event.peak = ratio, m.peak


@row_kernel
def _put_channels(events: Any, to: int, share: Float32, expected: Float32, actual: Float32) -> None:
    _, ev_share, ev_expected, ev_actual = events
    copy_values(ev_share[to], share)
    copy_values(ev_expected[to], expected)
    copy_values(ev_actual[to], actual)


@row_part
def _wakes(ratio: np.float32, own: np.float32, hit: np.uint32, codes: UInt8, open_at: np.float32) -> int:
    """Return the kinds, as bits, that this frame may be a breach of."""
    wakes = int(ratio > open_at or own > open_at)
    if hit != np.uint32(1):
        for k in range(len(codes)):
            wakes |= int(hit >> np.uint32(codes[k]) & np.uint32(1)) << (k + 1)
    return wakes


@row_kernel
def _step(
    at: int, rows: Any, judged: Any, codes: UInt8, cycles: Any, levels: Float32, state: Any, events: Any
) -> tuple[int, int]:
    """Step from `at` (row * kinds + kind) until the rows or the event buffer end; return (position, events).

    What a frame leaves as it is is not looked at: of nearly every asset that is all that is kept of any kind.
    """
    asset, ts_ns, continuity, quality = rows
    last_ns, resting = state[4], state[5]
    kinds, count = len(cycles), 0
    first = at % kinds
    for i in range(at // kinds, len(asset)):
        a = asset[i]
        hit = _quality_hits(quality[i])
        awake = ~np.int64(resting[a]) | _wakes(judged[0][i], judged[1][i], hit, codes, cycles[0].open_at)
        if continuity[i] == _FRESH:
            awake = np.int64(-1)
        if awake & ((1 << kinds) - 1):
            for k in range(first, kinds):
                if not awake >> k & 1:
                    continue
                if count + 2 > len(events[0]):
                    return i * kinds + k, count
                count = _step_kind(i, k, rows, judged, hit, codes, cycles, levels, state, events, count)
        first = 0
        last_ns[a] = ts_ns[i]
    return len(asset) * kinds, count


@row_kernel
def _step_kind(  # noqa: C901 - one pass; the rules themselves are the functions above
    i: int, k: int, rows: Any, judged: Any, hit: np.uint32, codes: UInt8, cycles: Any, levels: Float32,
    state: Any, events: Any, count: int,
) -> int:  # fmt: skip
    """Step one kind of row i's asset; return how many events there are now, up to two more."""
    asset, ts_ns, continuity, quality = rows
    ratio, own_ratio, by_channel, expected, actual = judged
    machine, share, peak_expected, peak_actual, last_ns, resting = state
    event = events[0]
    a, ts = asset[i], ts_ns[i]
    m, cycle = machine[a, k], cycles[k]
    if continuity[i] == _FRESH:
        if m.state == _OPEN:  # the asset starts afresh: what was open ends where it was last seen
            end = last_ns[a] if m.clear == _NEVER else m.clear
            _put(event[count], i, k, m, _RESOLVED, _RETIRED, last_ns[a], end, np.float32(0))
            _put_channels(events, count, share[a, k], peak_expected[a], peak_actual[a])
            count += 1
        _close(m, _NEVER)
    if k == 0:
        r, own = ratio[i], own_ratio[i]
    else:
        r = _affected_ratio(quality[i], hit, codes[k - 1])
        own = r
    if np.isnan(r):
        return count
    _note_own(m, own, ts, cycle)
    published, reason = 0, 0
    was = m.state
    if was != _OPEN and _may_open(m, r, ts, cycle):
        m.state, m.opened, m.clear, m.seq = _OPEN, ts, _NEVER, 0
        published, reason = _OPENED, _OVER
    if was == _IDLE:
        set_all(share[a, k], np.float32(0))
    if r > cycle.open_at:
        for c in range(quality.shape[1]):
            part = by_channel[i, c] if k == 0 else np.float32(quality[i, c] == codes[k - 1])
            share[a, k, c] += part * r
    if m.state != _IDLE and r > m.peak:
        m.peak = r
        if k == 0:
            copy_values(peak_expected[a], expected[i])
            copy_values(peak_actual[a], actual[i])
    if m.state == _OPEN:
        severity = _severity(levels[k], m.peak)
        if published == 0:
            published, reason = _follow(m, r, ts, cycle, severity)
        m.level = severity
    if published:
        end = m.clear if published == _RESOLVED else _NEVER
        _put(event[count], i, k, m, published, reason, ts, end, r)
        _put_channels(events, count, share[a, k], peak_expected[a], peak_actual[a])
        count += 1
        m.seq += 1
        m.published = ts
        if published == _RESOLVED:
            _close(m, ts)
    rests = was == _IDLE and m.state == _IDLE and m.hits == 0 and m.onset == _NEVER  # so its share is 0, too
    bit = np.uint8(1 << k)
    resting[a] = resting[a] | bit if rests else resting[a] & ~bit
    return count
