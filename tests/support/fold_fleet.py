"""A tiny feed with faults, and bundles of every kind fitted on its normal part: what the property tests run on."""

import functools
import json
from dataclasses import replace

import numpy as np
import torch

from models.calibration import CalibrationSpec, calibrate
from models.device_engine import DeviceEngine
from models.engine import open_engine
from models.fitting import fit_bundle
from models.profiles import FALLBACK
from models.series import Series
from models.train_spec import TrainSpec
from pipeline.alert import AlertSpec, LifeCycleSpec
from pipeline.align import AlignSpec
from pipeline.bundle import SmootherSpec
from pipeline.chain import Chain, ChainSpec
from pipeline.decode import FieldMapping
from pipeline.gate import GateSpec
from pipeline.values import NS_PER_S, Polled

CHANNELS = ("flow", "head", "power", "heat")
ASSETS = ("p0", "p1", "p2")
KINDS = {k: (k,) for k in ("pca", "dense", "conv", "stream")} | {"ensemble": ("pca", "dense")}
ON_A_DEVICE = "three with device rings"  # scored by the engine of a device, on the CPU
KINDS[ON_A_DEVICE] = ("pca", "dense", "conv")
SMOOTHER = SmootherSpec(memory=16, span_ns=400 * NS_PER_S, ewma_span=5)
START_S = 1_790_000_000


def readings(asset, rows, seed=0):
    """(rows, 4): channels that depend on one another."""
    g = np.random.default_rng([seed, ASSETS.index(asset)])
    t = np.arange(rows)
    load = np.sin(2 * np.pi * t / 50 + ASSETS.index(asset)) + 0.3 * np.sin(2 * np.pi * t / 17)
    clean = np.stack([load, 2 - load**2, load * 0.5 + 1, np.cumsum(load) * 0.05], 1)
    return (clean + g.normal(0, 0.05, clean.shape)).astype(np.float32)


@functools.cache
def bundle(kind):
    torch.set_num_threads(1)
    rows = 900
    series = [
        Series(
            asset=asset,
            ts_ns=(START_S - rows + np.arange(rows)) * NS_PER_S,
            x=readings(asset, rows, seed=1),
            observed=np.ones((rows, 4), np.bool_),
            continuity=np.array([2] + [0] * (rows - 1), np.uint8),
            normal=np.ones(rows, np.bool_),
        )
        for asset in ASSETS[:2]  # p2 is never trained on: it is scored as provisional
    ]
    spec = TrainSpec(
        channels=CHANNELS, period_ns=NS_PER_S, members=KINDS[kind], per_group="fleet", pca_window=8, dense_window=4,
        conv_window=8, dense_hidden=(16,), dense_latent=4, conv_hidden=(8,), conv_latent=2, steps=60, batch=64,
        smoother=SMOOTHER,
    )  # fmt: skip
    fit = [replace(s, normal=np.arange(rows) < 600) for s in series]
    fitted = fit_bundle(fit, spec)
    return calibrate(replace(fitted, id=kind), series, {s.asset: 620 for s in series}, CalibrationSpec(min_rows=100))


def chain_spec(lateness_s=0, mode="grid"):
    align = AlignSpec(
        mode=mode, period_ns=NS_PER_S, lateness_ns=lateness_s * NS_PER_S, max_gap_ns=5 * NS_PER_S,
        retire_after_ns=60 * NS_PER_S,
    )  # fmt: skip
    return ChainSpec(
        mapping=FieldMapping(channels=CHANNELS, time_unit="s"),
        align=align,
        gate=GateSpec(stuck_frames=(6,) * 4, max_step=(np.inf,) * 4, missing_frames=4),
        smoother=SMOOTHER,
        alert=AlertSpec("feed", "cfg", CHANNELS, LifeCycleSpec(merge_gap_ns=3 * NS_PER_S, update_every_ns=0)),
    )


def engine(kind):
    if kind == ON_A_DEVICE:
        return DeviceEngine(bundle(kind), FALLBACK, (8, 64))
    return open_engine(bundle(kind), "cpu")


def chain(kind, **options):
    out = Chain(chain_spec(**options), journal=True)
    out.serve(bundle(kind), engine(kind))
    return out


@functools.cache
def lines(rows=160):
    """(asset, second, JSON message) of all assets: a process fault, a stuck sensor, a lost one, gaps and poison."""
    out = []
    values = {asset: readings(asset, rows, seed=2) for asset in ASSETS}
    values["p0"][60:80, 1] += 3  # head no longer follows from flow
    values["p1"][100:120, 0] = values["p1"][100, 0]
    for t in range(rows):
        for asset in ASSETS:
            if asset == "p2" and (40 <= t < 43 or 90 <= t < 99):
                continue  # a gap that is bridged, and one that starts a new window
            x = {c: round(float(v), 4) for c, v in zip(CHANNELS, values[asset][t], strict=True)}
            if asset == "p2" and 120 <= t < 135:
                del x["heat"]
            at = t + (70 if asset == "p1" and t >= 140 else 0)  # long enough to retire
            out.append((asset, at, json.dumps({"asset": asset, "ts": START_S + at, **x}).encode()))
        if t == 50:
            out.append(("p0", t, b'{"asset": "p0", "ts": '))
    return out


def polled(messages, partition=0, first=0, topic="in"):
    n = len(messages)
    return Polled(topic, partition, np.arange(first, first + n, dtype=np.int64), np.zeros(n, np.int64), list(messages))
