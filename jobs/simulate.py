"""A fleet of centrifugal pumps to try midwatch on: enough physics that the channels depend on one another.

Speed follows an operating mode and a daily load; flow and head are where the pump curve (affinity laws) meets the
system curve of the valve; power, current and the temperatures follow from them through efficiency and thermal lags;
vibration grows with speed and has a resonance. Every sensor has its own noise. Faults act on the physics, not on the
score: a leak takes flow away behind the pump, cavitation shakes it, a worn bearing heats and vibrates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from pipeline.values import NS_PER_DAY, NS_PER_S, Bool, Float32, Float64, Int64

CHANNELS = (
    "speed_rpm", "valve_pct", "flow_m3h", "suction_bar", "discharge_bar", "current_a",
    "power_kw", "temp_de_c", "temp_nde_c", "temp_winding_c", "vib_x_mms", "vib_y_mms",
)  # fmt: skip
_NOISE = np.array([2.0, 0.3, 0.9, 0.01, 0.02, 0.25, 0.15, 0.15, 0.15, 0.2, 0.06, 0.06])
_SPEED_OF_MODE = np.array([0.45, 0.72, 0.95])  # recirculating, economy, full: share of the rated 2,950 rpm
_KINDS = ("bearing_wear", "leak", "cavitation", "stuck_sensor", "lost_channel")
_EVENT_OF = {"stuck_sensor": "stuck", "lost_channel": "missing"}
# How long after its beginning a fault may be found at the latest. Wear grows over its first 90 minutes.
_DELAY_S = {"bearing_wear": 5400, "leak": 1800, "cavitation": 900, "stuck_sensor": 900, "lost_channel": 900}


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault: what, where, when; and what counts as having found it."""

    kind: str
    pump: int
    start_s: float
    end_s: float
    channel: int  # of stuck_sensor and lost_channel

    @property
    def asset(self) -> str:
        """The asset it is on."""
        return asset_name(self.pump)

    @property
    def event(self) -> str:
        """The kind of alert that finds it."""
        return _EVENT_OF.get(self.kind, "anomaly")

    @property
    def within_s(self) -> float:
        """The stated delay."""
        return float(_DELAY_S[self.kind])


@dataclass(frozen=True, slots=True)
class Fleet:
    """Simulated readings: p pumps, n rows each, C channels."""

    ts_ns: Int64  # (n,)
    x: Float32  # (p, n, C)
    observed: Bool  # (p, n, C)


def asset_name(pump: int) -> str:
    """Return the name of pump 0, 1, ..."""
    return f"pump-{pump + 1:02d}"


def plan_faults(pumps: int, begin_s: float, end_s: float, seed: int) -> list[Fault]:
    """Choose one fault of each kind, on different pumps, in the first three quarters of a stretch of time."""
    rng = np.random.default_rng([seed, 1])
    where = rng.permutation(pumps)
    starts = begin_s + (end_s - begin_s) * rng.uniform(0.15, 0.7, len(_KINDS))
    measured = rng.choice([2, 4, 5, 7, 10], len(_KINDS))  # channels that move all the time, so that stuck is stuck
    lasts = {"bearing_wear": 3 * 3600.0, "leak": 2 * 3600.0, "cavitation": 3600.0}
    return [
        Fault(
            kind, int(where[i % pumps]), float(starts[i]), float(starts[i]) + lasts.get(kind, 2400.0), int(measured[i])
        )
        for i, kind in enumerate(_KINDS)
    ]


def simulate(pumps: int, rows: int, period_s: float, start_ns: int, seed: int, faults: Sequence[Fault] = ()) -> Fleet:
    """Run the fleet for `rows` steps of `period_s`. Times of faults are seconds after `start_ns`.

    The same arguments give the same readings, bit by bit.
    """
    t: Float64 = np.arange(rows, dtype=np.float64) * period_s
    x = np.stack([_pump(p, t, period_s, seed, [f for f in faults if f.pump == p]) for p in range(pumps)])
    observed = np.ones(x.shape, np.bool_)
    for fault in faults:
        during = (t >= fault.start_s) & (t < fault.end_s)
        if fault.kind == "stuck_sensor":
            x[fault.pump, during, fault.channel] = x[fault.pump, np.argmax(during), fault.channel]
        elif fault.kind == "lost_channel":
            observed[fault.pump, during, fault.channel] = False
    ts_ns = start_ns + np.round(t * NS_PER_S).astype(np.int64)
    return Fleet(ts_ns, np.where(observed, x, 0).astype(np.float32), observed)


def _pump(pump: int, t: Float64, period_s: float, seed: int, faults: Sequence[Fault]) -> Float64:
    """Return (n, C) readings of one pump, with its faults in the physics."""
    rng = np.random.default_rng([seed, 2, pump])
    make = rng.normal(1.0, 0.02, 6)  # no two pumps are the same
    wear, leak, cavitation = (_severity(t, faults, kind) for kind in _KINDS[:3])
    load = 0.7 + 0.2 * np.sin(2 * np.pi * (t / 86_400 + rng.uniform())) + _wander(rng, t, period_s, 3600, 0.04)
    speed = _lag(_lag(_SPEED_OF_MODE[_modes(rng, t)], period_s, 240), period_s, 240) * (0.85 + 0.2 * load) * make[0]
    valve = np.clip(35 + 60 * load + _wander(rng, t, period_s, 1800, 2.0), 10, 100)
    shake = cavitation * rng.normal(0, 1, len(t))
    gush = leak * rng.normal(0, 1, len(t))  # a torn pipe whips: flow and pressure behind it surge

    resistance = 9e-4 * make[1] * (60 / valve) ** 2
    through = np.sqrt(np.maximum(62 * make[2] * speed**2 - 6, 0.5) / (1.1e-3 + resistance)) * (1 - 0.05 * cavitation)
    head = 62 * make[2] * speed**2 - 1.1e-3 * through**2
    flow = through * (1 - 0.6 * leak) * (1 + 0.08 * shake) + 65 * gush
    best = 190 * speed
    efficiency = 0.78 - 0.35 * ((through - best) / np.maximum(best, 1)) ** 2 - 0.08 * cavitation
    power = through * head * 9.81 / 3600 / np.maximum(efficiency, 0.2) * (1 + 0.25 * leak)
    power += 2.5 * speed**3 * (1 + 0.25 * wear)
    current = power / (np.sqrt(3) * 0.4 * 0.86) * make[3] + 3
    level = 1.6 + 0.15 * np.sin(2 * np.pi * (t / 43_200 + rng.uniform()))
    suction = level - 6e-6 * through**2 - 0.6 * cavitation
    discharge = suction + head * 0.0981 * (1 - 0.4 * leak) * (1 + 0.05 * shake) + 1.2 * gush
    ambient = 21 + 5 * np.sin(2 * np.pi * (t / 86_400 - 0.3))
    temp_de = _lag(ambient + 22 * speed**2 * make[4] + 0.12 * power + 16 * wear, period_s, 900)
    temp_nde = _lag(ambient + 19 * speed**2 * make[4] + 0.10 * power + 4 * wear, period_s, 900)
    winding = _lag(ambient + 0.010 * current**2 / 10 + 18 * speed, period_s, 1200)
    resonance = 0.8 * np.exp(-(((speed - 0.8 * make[5]) / 0.05) ** 2))
    vib_x = 0.6 + 1.7 * speed**2 + resonance + 3.2 * wear + np.abs(1.6 * shake)
    vib_y = 0.5 + 1.4 * speed**2 + 0.7 * resonance + 2.4 * wear + np.abs(1.2 * shake)
    clean = np.stack(
        [2950 * speed, valve, flow, suction, discharge, current, power, temp_de, temp_nde, winding, vib_x, vib_y],
        axis=1,
    )
    return np.asarray(clean + rng.normal(0, 1, clean.shape) * _NOISE, np.float64)


def _modes(rng: np.random.Generator, t: Float64) -> NDArray[np.int64]:
    """Return the operating mode at each time: each lasts one to four hours, and never follows itself."""
    out = np.empty(len(t), np.int64)
    at, mode = -rng.uniform(0, 4 * 3600), int(rng.integers(3))
    while at <= t[-1]:
        until = at + rng.uniform(3600, 4 * 3600)
        out[(t >= at) & (t < until)] = mode
        at, mode = until, int((mode + rng.integers(1, 3)) % 3)
    return out


def _severity(t: Float64, faults: Sequence[Fault], kind: str) -> Float64:
    """Return 0..1: wear grows over 90 minutes, the others over one."""
    out = np.zeros(len(t))
    for f in faults:
        if f.kind == kind:
            grow_s = 5400.0 if kind == "bearing_wear" else 60.0
            during = (t >= f.start_s) & (t < f.end_s)
            out[during] = np.minimum((t[during] - f.start_s) / grow_s, 1)
    return out


def _lag(target: Float64, period_s: float, tau_s: float) -> Float64:
    """Return the first-order response to `target`, settled at its beginning."""
    a = float(np.exp(-period_s / tau_s))
    settled = [a * target[0]]
    response, _ = lfilter([1 - a], [1, -a], target, zi=settled)
    return np.array(response, np.float64)


def _wander(rng: np.random.Generator, t: Float64, period_s: float, tau_s: float, std: float) -> Float64:
    """Return an Ornstein-Uhlenbeck process: slow, mean 0, standard deviation `std`."""
    a = np.exp(-period_s / tau_s)
    steps = rng.normal(0, std * np.sqrt(1 - a * a), len(t))
    steps[0] = rng.normal(0, std)
    return np.asarray(lfilter([1.0], [1, -a], steps), np.float64)


def day_start_ns(days_before: int, now_ns: int) -> int:
    """Return the midnight (UTC) `days_before` days before `now_ns`."""
    return (now_ns // NS_PER_DAY - days_before) * NS_PER_DAY


def write_parquet(path: Path, fleet: Fleet, rows: int) -> None:
    """Write the first rows of every pump, in time order, as a historian would export them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pumps = len(fleet.x)
    columns: dict[str, Any] = {
        "ts": np.repeat(fleet.ts_ns[:rows], pumps),
        "asset": np.tile([asset_name(p) for p in range(pumps)], rows),
    }
    for c, name in enumerate(CHANNELS):
        columns[name] = np.ascontiguousarray(fleet.x[:, :rows, c].T).reshape(-1)
    pq.write_table(pa.table(columns), path, compression="zstd")
