"""Faults injected into held-out normal rows, for the gate: what a candidate must find, at known places.

Every fault is on one channel, because one sensor or one loop is what usually goes wrong first, and its size is in
units of that channel's scale (`models.scaling`). The same seed and rows give the same faults, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.errors import InputError, ShapeError, TooLittleHistory
from pipeline.values import Bool, Float32, Float64, Int64

_TRIES = 16  # places and channels tried before a fault is skipped
_SPIKE_SHARE = 0.2  # of the rows of a spike train
_LEAST_CHANGE = 0.5  # scales, on average: a copy that looks the same is no fault


class Kind(StrEnum):
    """What goes wrong."""

    LEVEL_SHIFT = "level_shift"
    DRIFT = "drift"
    NOISE = "noise"
    CORRELATION_BREAK = "correlation_break"
    SPIKES = "spikes"


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault: rows [start, stop) of one channel. `size` is the mean absolute change, in scales."""

    kind: Kind
    channel: int
    start: int
    stop: int
    size: float


@dataclass(frozen=True, slots=True)
class Injected:
    """Rows with faults in them.

    `x` has the readings that were not observed as they were (0.0). `faults` are in time order. `skipped` counts, by
    kind, the faults for which no place was found.
    """

    x: Float32  # (n, C), a copy
    faults: tuple[Fault, ...]
    skipped: Mapping[Kind, int]

    @property
    def intervals(self) -> Int64:
        """Return the rows of the faults, (k, 2) as [start, stop)."""
        return np.array([(f.start, f.stop) for f in self.faults], np.int64).reshape(-1, 2)

    @property
    def label(self) -> Bool:
        """Return (n,), True in the rows of any fault."""
        label = np.zeros(len(self.x), np.bool_)
        for f in self.faults:
            label[f.start : f.stop] = True
        return label


def inject(
    x: Float32,
    observed: Bool,
    scale: Float64,
    seed: int,
    kinds: Sequence[Kind] = tuple(Kind),
    times: int = 1,
    magnitude: float = 4.0,
    rows: int = 60,
    quiet_rows: int = 60,
    usable: Bool | None = None,
    donor: tuple[Float32, Bool] | None = None,
) -> Injected:
    """Inject `times` faults of every kind, in seeded order, at seeded places, one in each of as many equal stretches.

    Parameters
    ----------
    x, observed : (n, C), held-out normal rows of one asset, in input units.
    scale : (C,), what one unit of `magnitude` is in each channel; channels whose scale is not positive are left alone.
    magnitude : size of shifts, drifts (at their end) and spikes, and standard deviation of the noise, in scales.
    rows : length of a fault.
    quiet_rows : rows without a fault before each: at least a window, better the time the smoother takes to settle.
    usable : (n,), False where no fault may be (not normal, not scored); None: everywhere.
    donor : x and observed of another asset, of which a broken channel takes rows; None: it takes its own, from
        another time.

    Raises
    ------
    ShapeError : arrays that do not fit one another.
    InputError : counts or sizes that are not positive.
    TooLittleHistory : too few rows for that many faults and the quiet between them.
    """
    usable = np.ones(len(x), np.bool_) if usable is None else usable
    _check(x, observed, scale, usable, donor)
    if min(times, rows, magnitude) <= 0 or quiet_rows < 0 or not kinds:
        raise InputError(
            f"times = {times}, rows = {rows}, magnitude = {magnitude}, quiet_rows = {quiet_rows}, {len(kinds)} kinds: "
            "all must be positive (quiet_rows: 0 or more)"
        )
    order = [kinds[i] for i in np.random.default_rng(seed).permutation(np.repeat(np.arange(len(kinds)), times))]
    if len(x) < len(order) * (rows + quiet_rows):
        raise TooLittleHistory(len(x), len(order) * (rows + quiet_rows), f"held-out rows for {len(order)} faults")
    source = (x, observed) if donor is None else donor
    out, faults, skipped = x.copy(), [], dict.fromkeys(kinds, 0)
    bounds = np.linspace(0, len(x), len(order) + 1).astype(np.int64)
    for i, kind in enumerate(order):
        rng = np.random.default_rng((seed, i))  # of its own: a skipped fault changes no other
        starts = (int(bounds[i]) + quiet_rows, int(bounds[i + 1]) - rows)
        for _ in range(_TRIES):
            start, channel = int(rng.integers(*starts, endpoint=True)), int(rng.integers(x.shape[1]))
            where = slice(start, start + rows)
            seen = observed[where, channel]
            if not (usable[where].all() and scale[channel] > 0 and 2 * np.count_nonzero(seen) > rows):
                continue
            before = x[where, channel].astype(np.float64)
            after = _faulty(kind, before, magnitude * float(scale[channel]), source, channel, rng)
            if after is None:
                continue
            size = float(np.abs(after - before)[seen].mean() / scale[channel])
            if kind != Kind.CORRELATION_BREAK or size >= _LEAST_CHANGE:
                out[where, channel] = np.where(seen, after, before)
                faults.append(Fault(kind, channel, start, start + rows, size))
                break
        else:
            skipped[kind] += 1
    return Injected(out, tuple(faults), skipped)


def level_shift(values: Float64, amount: float) -> Float64:
    """Return the values moved by `amount`."""
    return values + amount


def drift(values: Float64, amount: float) -> Float64:
    """Return the values moved by a ramp that reaches `amount` in the last row."""
    return values + amount * np.arange(1, len(values) + 1) / len(values)


def noise(values: Float64, deviation: float, rng: np.random.Generator) -> Float64:
    """Return the values with Gaussian noise of this standard deviation on top."""
    return values + deviation * rng.standard_normal(len(values))


def spikes(values: Float64, amount: float, rng: np.random.Generator) -> Float64:
    """Return the values with lone spikes of `amount`, up or down, in a fifth of the rows (at least one)."""
    count = max(1, int(_SPIKE_SHARE * len(values)))
    at = rng.choice(len(values), count, replace=False)
    out = values.copy()
    out[at] += amount * rng.choice((-1.0, 1.0), count)
    return out


def correlation_break(
    values: Float64, source: tuple[Float32, Bool], channel: int, rng: np.random.Generator
) -> Float64 | None:
    """Return the channel's values of another time, or another asset; None if that stretch is not fully observed.

    Each value is one that the channel takes; what is broken is how it goes with the other channels.
    """
    x, observed = source
    if len(x) < len(values):
        return None
    start = int(rng.integers(len(x) - len(values), endpoint=True))
    where = slice(start, start + len(values))
    return x[where, channel].astype(np.float64) if observed[where, channel].all() else None


def _faulty(
    kind: Kind, before: Float64, amount: float, source: tuple[Float32, Bool], channel: int, rng: np.random.Generator
) -> Float64 | None:
    sign = 1.0 if rng.random() < 0.5 else -1.0
    if kind == Kind.LEVEL_SHIFT:
        return level_shift(before, sign * amount)
    if kind == Kind.DRIFT:
        return drift(before, sign * amount)
    if kind == Kind.NOISE:
        return noise(before, amount, rng)
    if kind == Kind.SPIKES:
        return spikes(before, amount, rng)
    return correlation_break(before, source, channel, rng)


def _check(x: Float32, observed: Bool, scale: Float64, usable: Bool, donor: tuple[Float32, Bool] | None) -> None:
    if x.ndim != 2 or x.dtype != np.float32 or observed.shape != x.shape or observed.dtype != np.bool_:
        raise ShapeError(
            f"x is {x.dtype} {x.shape} and observed {observed.dtype} {observed.shape}: expected float32 and bool (n, C)"
        )
    if scale.shape != x.shape[1:] or usable.shape != x.shape[:1]:
        raise ShapeError(f"scale is {scale.shape} and usable {usable.shape}: expected {x.shape[1:]} and {x.shape[:1]}")
    if donor is not None and (donor[0].shape[1:] != x.shape[1:] or donor[0].shape != donor[1].shape):
        raise ShapeError(f"donor is {donor[0].shape} and {donor[1].shape}: expected (m, {x.shape[1]}) twice")
