"""Alignment as one would do it on paper: a dictionary of rows per frame, sorted and merged when the frame is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pipeline.values import Continuity, Quality


@dataclass
class NaiveAsset:
    max_ts: int | None = None
    released: int | None = None
    pending: dict = field(default_factory=dict)  # frame time -> row numbers


def frame_of(ts, spec):
    """(frame time, end) of a time stamp."""
    if spec.mode == "none":
        return ts, ts
    p = spec.period_ns
    if spec.rounding == "floor":
        return ts // p * p, ts // p * p + p
    k = int((Fraction(ts, p) + Fraction(1, 2)) // 1)
    return k * p, k * p + Fraction(p, 2)


def winner(rows, numbers, channel):
    """The row number whose reading of `channel` stays."""
    return max(
        numbers,
        key=lambda i: (
            bool(rows.observed[i, channel]),
            int(rows.ts_ns[i]),
            float(rows.x[i, channel]) if rows.observed[i, channel] else int(rows.quality[i, channel]),
        ),
    )


def is_duplicate(rows, i, numbers):
    observed = [c for c in range(rows.channels) if rows.observed[i, c]]
    if not observed:
        return False
    kept = [winner(rows, numbers, c) for c in observed]
    return all(rows.observed[k, c] and rows.ts_ns[k] == rows.ts_ns[i] for k, c in zip(kept, observed, strict=True))


def merged_frame(rows, numbers, time, continuity):
    kept = [winner(rows, numbers, c) for c in range(rows.channels)]
    offset, row = max((int(rows.offset[i]), int(rows.row[i])) for i in numbers)
    return (
        int(rows.asset[numbers[0]]),
        time,
        [float(rows.x[k, c]) + 0.0 for c, k in enumerate(kept)],
        [bool(rows.observed[k, c]) for c, k in enumerate(kept)],
        [int(rows.quality[k, c]) for c, k in enumerate(kept)],
        offset,
        row,
        int(continuity),
    )


def naive_align(rows, spec):
    """Return (frames as tuples in the order of Rows' fields, numbers of late rows, counts)."""
    assets: dict[int, NaiveAsset] = {}
    frames, late = [], []
    counts = {"late": 0, "merged": 0, "duplicate": 0, "frames": 0, "bridged": 0}
    for i in range(len(rows)):
        asset = assets.setdefault(int(rows.asset[i]), NaiveAsset())
        ts = int(rows.ts_ns[i])
        time, end = frame_of(ts, spec)
        if asset.max_ts is not None and end <= asset.max_ts - spec.lateness_ns:
            late.append(i)
            continue
        asset.max_ts = ts if asset.max_ts is None else max(asset.max_ts, ts)
        if time in asset.pending:
            counts["merged"] += 1
            counts["duplicate"] += is_duplicate(rows, i, asset.pending[time])
        asset.pending.setdefault(time, []).append(i)
        for due in sorted(asset.pending):
            if frame_of(due, spec)[1] > asset.max_ts - spec.lateness_ns:
                continue
            numbers = asset.pending.pop(due)
            gap = None if asset.released is None else due - asset.released
            if gap is None or gap > spec.retire_after_ns:
                continuity = Continuity.FRESH
            elif gap > spec.max_gap_ns:
                continuity = Continuity.NEW_WINDOW
            else:
                continuity = Continuity.CONTINUES
            frame = merged_frame(rows, numbers, due, continuity)
            if spec.mode == "grid" and continuity == Continuity.CONTINUES:
                for time in range(asset.released + spec.period_ns, due, spec.period_ns):
                    c = rows.channels
                    empty = ([0.0] * c, [False] * c, [int(Quality.GAP)] * c)
                    frames.append((frame[0], time, *empty, frame[5], frame[6], int(Continuity.CONTINUES)))
                    counts["bridged"] += 1
            frames.append(frame)
            asset.released = due
    counts["late"] = len(late)
    counts["frames"] = len(frames)
    return frames, late, counts
