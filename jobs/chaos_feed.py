"""The input of a chaos run: a fleet of pumps with faults, and everything else that a real feed brings.

Messages come late, twice and in bad shape; some assets report seldom; clocks jump. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from jobs.simulate import CHANNELS, Fault, Fleet, asset_name, simulate
from models.series import Series
from pipeline.values import NS_PER_S, Continuity

PERIOD_S: Final = 20.0
START_NS: Final = 1_750_000_000 * NS_PER_S
MAX_MESSAGE_BYTES: Final = 4000
_SLOW_EVERY: Final = 8  # one pump in so many reports seldom: one of its rows for so many of the others'
_KINDS: Final = ("leak", "cavitation", "stuck_sensor", "lost_channel", "bearing_wear")
_MOVING: Final = (2, 4, 5, 7, 10)  # channels that move all the time, so that stuck is stuck
_BAD: Final = (
    b"{broken",
    b"",
    b"\xff\xfe\x00",
    b"[1, 2, 3]",
    b'{"ts": 1750000000000000000, "flow_m3h": 1}',
    b'{"asset": "pump-01", "flow_m3h": 1}',
    b'{"asset": "pump-01", "ts": "soon", "flow_m3h": 1}',
    b'{"asset": "pump-01", "ts": 4102444800000000000, "flow_m3h": 1}',  # a clock in the year 2100
    b'{"asset": "pump-01", "note": "' + b"x" * MAX_MESSAGE_BYTES + b'"}',
)


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """How large the input is.

    Attributes
    ----------
    rows : about how many messages there are.
    pumps : assets.
    start_ns : time stamp of the first rows.
    """

    rows: int
    pumps: int = 40
    seed: int = 0
    start_ns: int = START_NS

    @property
    def ticks(self) -> int:
        """Periods of the fleet that the rows are spread over."""
        slow = self.pumps // _SLOW_EVERY
        return max(round(self.rows / (self.pumps - slow + slow / _SLOW_EVERY)), 200)


def normal_series(plan: FeedPlan, pumps: int = 3, rows: int = 3000) -> list[Series]:
    """Return a stretch without faults, from before the feed begins, to fit a model on."""
    start_ns = plan.start_ns - round(rows * PERIOD_S) * NS_PER_S
    fleet = simulate(pumps, rows, PERIOD_S, start_ns, plan.seed)
    continuity = np.zeros(rows, np.uint8)
    continuity[0] = Continuity.FRESH
    return [
        Series(
            asset=asset_name(p),
            ts_ns=fleet.ts_ns,
            x=fleet.x[p],
            observed=fleet.observed[p],
            continuity=continuity,
            normal=np.ones(rows, np.bool_),
        )
        for p in range(pumps)
    ]


def endless(plan: FeedPlan) -> Iterator[tuple[bytes, bytes]]:
    """Yield the messages of a plan, of the same again right after it, and so on."""
    while True:
        yield from messages(plan)
        plan = replace(plan, start_ns=plan.start_ns + round(plan.ticks * PERIOD_S) * NS_PER_S)


def messages(plan: FeedPlan) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of every message, in the order in which they are sent."""
    fleet = simulate(plan.pumps, plan.ticks, PERIOD_S, plan.start_ns, plan.seed, _faults(plan))
    rng = np.random.default_rng([plan.seed, 11])
    at = [0] * plan.pumps  # the next row of each pump
    for tick in range(plan.ticks):
        for pump in rng.permutation(plan.pumps).tolist():
            slow = pump % _SLOW_EVERY == _SLOW_EVERY - 1
            if slow and tick % _SLOW_EVERY:
                continue
            yield from _sent(fleet, pump, at[pump], rng)
            at[pump] += 1 if rng.random() > 0.001 else 15  # a clock that jumps ahead, or rows that never came


def _sent(fleet: Fleet, pump: int, row: int, rng: np.random.Generator) -> Iterator[tuple[bytes, bytes]]:
    """Yield one row's message, and now and then what goes wrong beside it."""
    if row >= len(fleet.ts_ns):
        return
    key = asset_name(pump).encode()
    chance = rng.random()
    yield key, _body(fleet, pump, row)
    if chance < 0.004:
        yield key, _body(fleet, pump, row)  # twice
    elif chance < 0.010:
        yield key, _body(fleet, pump, max(row - int(rng.integers(1, 40)), 0))  # late
    elif chance < 0.015:
        yield key, _BAD[int(rng.integers(len(_BAD)))]


def _body(fleet: Fleet, pump: int, row: int) -> bytes:
    seen = zip(CHANNELS, fleet.x[pump, row].tolist(), fleet.observed[pump, row].tolist(), strict=True)
    values = {name: round(value, 4) for name, value, there in seen if there}
    return json.dumps({"asset": asset_name(pump), "ts": int(fleet.ts_ns[row]), **values}).encode()


def _faults(plan: FeedPlan) -> list[Fault]:
    """Return faults one after the other on every pump, so that alerts open and resolve all the time."""
    faults = []
    for pump in range(plan.pumps):
        rng = np.random.default_rng([plan.seed, 12, pump])
        row = int(rng.integers(60, 160))
        while row < plan.ticks:
            end = row + int(rng.integers(30, 90))
            kind, channel = _KINDS[int(rng.integers(len(_KINDS)))], _MOVING[int(rng.integers(len(_MOVING)))]
            faults.append(Fault(kind, pump, row * PERIOD_S, end * PERIOD_S, channel))
            row = end + int(rng.integers(60, 160))
    return faults
