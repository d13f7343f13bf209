"""The loops over rows of `models.stream_rings`: its arrays, and their legend, are explained there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from models.engine_rings import MIN_OBSERVED
from models.scaling import scale_row, unscale_scalar
from pipeline.kernels import AHEAD, copy_values, fetch, row_kernel, row_part, set_all
from pipeline.values import Continuity, Float32, Float64, Int32, Int64, Status

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_CONTINUES = int(Continuity.CONTINUES)
_WARMING = np.uint8(Status.WARMING)
_CALIBRATED = np.uint8(Status.CALIBRATED)
_ABSTAINED = np.uint8(Status.ABSTAINED)


@row_part
def _put(s: int, rows: Any, i: int, slots: Any) -> int:
    """Take row `i` into the raw ring of slot `s`; return its unobserved readings."""
    head, x, observed = slots.head[s], rows.x[i], rows.observed[i]
    raw, seen, kept = slots.raw[head.at, s], slots.seen[head.at, s], slots.raw.shape[0]
    before = now = 0
    copy_values(raw, x)
    for c in range(len(x)):
        before += seen[c]
        now += observed[c]
        seen[c] = observed[c]
    head.missing += before - now if head.count == kept else len(x) - now
    head.count += 0 if head.count == kept else 1
    head.at = head.at + 1 if head.at + 1 < kept else 0
    return len(x) - now


@row_kernel
def store_rows(rows: Any, slots: Any) -> None:
    """Take rows as raw state, in order."""
    for i in range(len(rows.slots)):
        s = rows.slots[i]
        head = slots.head[s]
        if rows.continuity[i] != _CONTINUES or head.count == 0:
            head.count = 0
            head.missing = 0
        head.derived = 0
        _put(s, rows, i, slots)


@njit(nogil=True, cache=True)
def stale_slots(rows: Any, head: Any, period_ns: int) -> tuple[Int32, Int64]:
    """Return the slots that have raw rows only and go on, and the grid slots that follow; mark all as derived."""
    where = np.empty(len(rows.slots), np.int32)
    follows = np.empty(len(rows.slots), np.int64)
    k = 0
    for i in range(len(rows.slots)):
        s = rows.slots[i]
        if head[s].derived == 0:
            head[s].derived = 1
            if head[s].count > 0 and rows.continuity[i] == _CONTINUES and head[s].group >= 0:
                where[k] = s
                follows[k] = rows.ts_ns[i] // period_ns
                k += 1
    return where[:k].copy(), follows[:k].copy()


@row_part
def _start(s: int, slots: Any) -> None:
    """Empty slot `s`. What layers and averages keep of it is left to its first hop, which comes after older ones."""
    head = slots.head[s]
    head.count = 0
    head.missing = 0
    head.scaled_at = 0
    head.fresh = 1
    for q in range(len(slots.scaled)):
        set_all(slots.scaled[q, s], 0.0)


@row_kernel
def take_rows(rows: Any, order: Int64, slots: Any, scaler: Any, shape: Any, hops: Any, found: Any) -> tuple[int, int]:
    """Take rows in order until the hops are full, as `StreamRings.take` says; return (taken, hops)."""
    kept, channels = slots.raw.shape[0], slots.raw.shape[2]
    readings = kept * channels
    k = 0
    for j in range(len(order)):
        if j + AHEAD < len(order):
            _fetch_row(rows.slots[order[j + AHEAD]], slots, shape.lag)
        i = order[j]
        s = rows.slots[i]
        head = slots.head[s]
        grid = rows.ts_ns[i] // shape.period_ns
        if rows.continuity[i] != _CONTINUES or head.count == 0 or grid != head.next:
            _start(s, slots)
        gaps = _put(s, rows, i, slots)
        head.next = grid + 1
        head.derived = 1
        found.ends[i] = -1
        found.coverage[i] = np.float32(1.0) - np.float32(head.missing) / np.float32(head.count * channels)
        found.status[i] = _WARMING
        if head.group < 0:
            continue
        _scale_row(s, rows, i, gaps, slots, scaler)
        if head.count == kept:
            found.status[i] = _ABSTAINED
            if readings - head.missing >= MIN_OBSERVED * readings and _recall(s, i, slots, shape.lag, found):
                found.status[i] = _CALIBRATED
        if grid % shape.hop == shape.hop - 1:
            found.ends[i] = k
            hops.slots[k] = s
            hops.fresh[k] = head.fresh == 1
            head.fresh = 0
            _gather(s, k, slots, shape, hops)
            k += 1
            if k == len(hops.slots):
                return j + 1, k
    return len(order), k


@row_part
def _scale_row(s: int, rows: Any, i: int, gaps: int, slots: Any, scaler: Any) -> None:
    """Take row `i` into the scaled ring of slot `s`."""
    head, to = slots.head[s], slots.scaled[slots.head[s].scaled_at, s]
    loc, scale = scaler.loc[head.group], scaler.scale[head.group]
    scale_row(rows.x[i], rows.observed[i], gaps, loc, scale, scaler.limit, np.float32(np.nan), to)
    head.scaled_at = head.scaled_at + 1 if head.scaled_at + 1 < len(slots.scaled) else 0


@row_part
def _fetch_row(s: int, slots: Any, lag: int) -> None:
    """Ask for the memory that the next row of slot `s` is written to, and for what it recalls."""
    head, kept, scaled = slots.head[s], len(slots.raw), len(slots.scaled)
    _fetch_reading(head.at, s, slots)
    _fetch_reading((head.at + kept - 1 - lag) % kept, s, slots)
    _fetch_scaled(head.scaled_at, s, slots)
    _fetch_scaled((head.scaled_at + scaled - 1 - lag) % scaled, s, slots)


@row_part
def _fetch_reading(at: int, s: int, slots: Any) -> None:
    size, channels = slots.raw.shape[1], slots.raw.shape[2]
    place = (at * size + s) * channels
    fetch(slots.raw.ctypes.data + 4 * place, 4 * channels)
    fetch(slots.seen.ctypes.data + place, channels)


@row_part
def _fetch_scaled(at: int, s: int, slots: Any) -> None:
    size, channels = slots.scaled.shape[1], slots.scaled.shape[2]
    fetch(slots.scaled.ctypes.data + 4 * (at * size + s) * channels, 4 * channels)


@row_part
def _recall(s: int, i: int, slots: Any, lag: int, found: Any) -> bool:
    """Copy the row that is scored now, as it came and scaled; return whether anything of it was observed."""
    head = slots.head[s]
    p = (head.at - 1 - lag) % len(slots.raw)
    scaled, raw, seen = (
        slots.scaled[(head.scaled_at - 1 - lag) % len(slots.scaled), s],
        slots.raw[p, s],
        slots.seen[p, s],
    )
    to_scaled, to_raw, count = found.by_channel[i], found.actual[i], 0
    copy_values(to_scaled, scaled)
    copy_values(to_raw, raw)
    for c in range(len(raw)):
        count += seen[c]
    if count < len(raw):
        for c in range(len(raw)):
            if not seen[c]:
                to_raw[c] = np.nan
                if count == 0:
                    to_scaled[c] = 0.0
    return count > 0


@row_part
def _gather(s: int, k: int, slots: Any, shape: Any, hops: Any) -> None:
    """Write of hop `k` what the first layer multiplies, and the rows that will be held against what comes out."""
    ring, channels = slots.scaled.shape[0], slots.scaled.shape[2]
    newest = slots.head[s].scaled_at - 1 + ring
    at = (newest - shape.delay - shape.hop + 1) % ring
    for r in range(shape.hop):
        copy_values(hops.late[k, r], slots.scaled[at, s])
        at = at + 1 if at + 1 < ring else 0
    products = shape.hop // shape.stride
    for m in range(products):
        at = (newest - shape.kept - shape.hop + 1 + m * shape.stride) % ring
        runs = hops.runs[k * products + m]
        for t in range(shape.taps):
            source, to = slots.scaled[at, s], runs[t * channels : (t + 1) * channels]
            for c in range(channels):
                to[c] = source[c] if source[c] == source[c] else np.float32(0.0)
            at = at + 1 if at + 1 < ring else 0


@row_kernel
def settle_rows(
    rows: Any,
    order: Int64,
    slots: Any,
    scaler: Any,
    shape: Any,
    hops: Any,
    expected: Float32,
    given: int,
    errors: Float64,
    found: Any,
) -> None:
    """Hand each hop's results to its asset and each frame its own of them, as `StreamRings.settle` says."""
    channels, hop = slots.raw.shape[2], shape.hop
    for j in range(len(order)):
        if j + AHEAD < len(order):
            _fetch_results(rows.slots[order[j + AHEAD]], found.ends[order[j + AHEAD]] >= 0, slots)
        i = order[j]
        s, k = rows.slots[i], found.ends[i]
        if k >= 0:
            for r in range(hop):
                first = (r % given) * channels
                source = expected[(k * hop + r) // given, first : first + channels]
                copy_values(slots.expected[s, r * channels : (r + 1) * channels], source)
            if hops.fresh[k]:
                set_all(slots.errors[s], np.nan)
            _average(slots.errors[s], errors[k], slots.score[s])
        if found.status[i] == _CALIBRATED:
            r = (rows.ts_ns[i] // shape.period_ns + 1) % hop
            found.score[i] = slots.score[s, r]
            _tell(i, slots.expected[s, r * channels : (r + 1) * channels], slots.head[s].group, scaler, found)
        else:
            _tell_nothing(i, found)


@row_part
def _fetch_results(s: int, ends: bool, slots: Any) -> None:
    """Ask for what slot `s` keeps of its last hop, and where one ends, for its errors."""
    width = slots.expected.shape[1]
    fetch(slots.expected.ctypes.data + 4 * s * width, 4 * width)
    if ends:
        errors = 8 * slots.errors.shape[1]
        fetch(slots.errors.ctypes.data + s * errors, errors)


@row_part
def _average(tail: Float64, new: Float64, score: Float32) -> None:
    """Take the errors of a hop's reconstructed rows into an asset's last ones; average W of them for each, anew.

    What all these averages share is summed once, oldest first.
    """
    hop = len(new)
    averaged = len(tail) - hop + 1
    for t in range(averaged - 1):
        tail[t] = tail[t + hop]
    for r in range(hop):
        tail[averaged - 1 + r] = new[r]
    shared, known = 0.0, 0
    for t in range(hop - 1, averaged):
        shared += 0.0 if np.isnan(tail[t]) else tail[t]
        known += not np.isnan(tail[t])
    for r in range(hop):
        total, count = shared, known
        for t in range(r, r + averaged):
            if (t < hop - 1 or t >= averaged) and not np.isnan(tail[t]):
                total += tail[t]
                count += 1
        score[r] = np.float32(total / count) if count else np.float32(np.nan)


@row_part
def _tell_nothing(i: int, found: Any) -> None:
    found.score[i] = np.float32(np.nan)
    set_all(found.by_channel[i], 0.0)
    set_all(found.expected[i], np.nan)
    set_all(found.actual[i], np.nan)


@row_part
def _tell(i: int, expected: Float32, group: int, scaler: Any, found: Any) -> None:
    """Write what was expected of a scored row, in input units, and each channel's share of its squared residual."""
    share, actual, to = found.by_channel[i], found.actual[i], found.expected[i]
    loc, scale, limit = scaler.loc[group], scaler.scale[group], scaler.limit
    total, seen, far = 0.0, 0, 0
    for c in range(len(expected)):
        off = share[c] - expected[c]
        share[c] = off * off if off == off else np.float32(0.0)
    for c in range(len(expected)):
        total += np.float64(share[c])
    for c in range(len(expected)):
        far += abs(expected[c]) > limit
        seen += actual[c] == actual[c]
        to[c] = np.float32(np.float64(expected[c]) * scale[c] + loc[c])
    if far or seen < len(expected):
        for c in range(len(expected)):
            to[c] = unscale_scalar(expected[c], loc[c], scale[c], limit)
            if np.isnan(actual[c]):
                to[c] = np.nan
    if total > 0:
        factor = np.float32(1.0 / total)
        for c in range(len(expected)):
            share[c] *= factor
        return
    for c in range(len(expected)):
        share[c] = np.float32(0.0) if np.isnan(actual[c]) else np.float32(1.0 / seen)
