"""JSON messages to alerts through the very chain that `run` drives: decode, windows, autoencoder, smoother, life cycle.

10,000 assets of 32 channels, windows of 64 rows, micro-batches of 1,024 messages, one thread. The network is the
2048-256-32-256-2048 autoencoder whose every output counts (`error = "window"`), so that the yardstick, the fp32 GEMM
rate of the same process, is asked for the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from jobs.benches.measure import Result, ratio, rounds
from models.autoencoders import build_module
from models.engine import open_engine
from pipeline.alert import AlertSpec, LifeCycleSpec, alert_columns
from pipeline.align import AlignSpec
from pipeline.bundle import Bundle, Calibration, MemberSpec, SmootherSpec
from pipeline.chain import Chain, ChainSpec
from pipeline.decode import decode
from pipeline.gate import GateSpec
from pipeline.mapping import FieldMapping
from pipeline.protocols import Engine, RawWindows
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.values import NS_PER_DAY, NS_PER_S, Float64, Int32, Int64, Polled, Rows, Scores

WINDOW, CHANNELS, ASSETS, BATCH = 64, 32, 10_000, 1024
BATCHES = 400  # more than any count of rounds uses up
_HIDDEN = (256,)
_LATENT = 32
_FLOP = 2 * 2 * (WINDOW * CHANNELS * _HIDDEN[0] + _HIDDEN[0] * _LATENT)


class _Line(msgspec.Struct):
    asset: str
    ts: int
    values: list[float]


@dataclass(slots=True)
class _Recorder:
    """An engine that keeps the last scores it gave, so that the smoother can be measured on them alone."""

    engine: Engine
    scores: Sequence[Scores] = ()

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        out = self.engine.push(batches)
        self.scores = out
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def json_dense(count: int = 7) -> Result:
    """Return rows a second against the fp32 GEMM floor; shares of the stages and msgspec's bare decode under `more`."""
    torch.set_num_threads(1)
    spec, bundle = _spec(), _bundle()
    engine = _Recorder(open_engine(bundle, "cpu"))
    chain = Chain(spec)
    chain.serve(bundle, engine)
    g = np.random.default_rng(1)
    chain.push([_messages(np.arange(ASSETS), 0, 0, g.normal(size=(ASSETS, CHANNELS)))])
    engine.load(np.arange(ASSETS, dtype=np.int32), _full_windows(g))
    batches = _batches(g)
    chain.push(batches[:1])  # compiles what is compiled on first use
    lines = [line for line in batches[0].value if line is not None]
    apart = AssetTable({**smoother_columns(spec.smoother), **alert_columns(CHANNELS)})
    for i in range(ASSETS):
        apart.code(f"pump-{i:05d}")
    rows = decode(batches[0], spec.mapping, apart).rows
    pooled, calibration = np.zeros(BATCH, np.int32), bundle.calibration(engine.profile)
    bare = msgspec.json.Decoder(_Line)
    a, w = torch.randn(1024, 2048), torch.randn(256, 2048).t()
    contestants: dict[str, Callable[[int], object]] = {
        "chain": lambda i: chain.push([batches[i + 1]]),
        "gemm": lambda _: torch.mm(a, w),
        "msgspec": lambda _: [bare.decode(line) for line in lines],
        "decode": lambda i: decode(batches[i % 8], spec.mapping, apart),
        "engine": lambda _: engine.engine.push([(rows, rows.asset)]),
        "smooth": lambda _: smooth(engine.scores[0], pooled, calibration, apart, spec.smoother),
    }
    with torch.inference_mode():
        taken = rounds(contestants, count)
    floor = _FLOP / (2 * 1024 * 2048 * 256 / taken["gemm"])
    per_row = taken["chain"] / BATCH
    share = {s: float(np.median(taken[s] / taken["chain"])) for s in ("decode", "engine", "smooth")}
    return ratio(
        "e2e.json.dense",
        "fp32 GEMM floor of the network",
        floor / per_row,
        "higher",
        rows_per_s=float(np.median(1 / per_row)),
        floor_rows_per_s=float(np.median(1 / floor)),
        to_msgspec_decode=float(np.median(taken["msgspec"] / taken["chain"])),
        msgspec_rows_per_s=float(np.median(BATCH / taken["msgspec"])),
        share_decode=share["decode"],
        share_engine=share["engine"],
        share_smooth=share["smooth"],
        share_rest=1 - sum(share.values()),
    )


def _batches(g: np.random.Generator) -> list[Polled]:
    """Return micro-batches in time order, made beforehand: writing JSON is no part of what is measured."""
    return [
        _messages(g.integers(0, ASSETS, BATCH), turn + 1, turn * BATCH, g.normal(size=(BATCH, CHANNELS)).round(4))
        for turn in range(BATCHES)
    ]


def _messages(assets: Int64, turn: int, offset: int, values: Float64) -> Polled:
    n = len(assets)
    first_ms = 1_790_000_000_000 + turn * BATCH * 1000
    lines = [
        msgspec.json.encode({"asset": f"pump-{a:05d}", "ts": first_ms + 1000 * i, "values": v})
        for i, (a, v) in enumerate(zip(assets.tolist(), values.tolist(), strict=True))
    ]
    return Polled("bench", 0, np.arange(offset, offset + n, dtype=np.int64), np.zeros(n, np.int64), lines)


def _full_windows(g: np.random.Generator) -> RawWindows:
    shape = (ASSETS, WINDOW, CHANNELS)
    values = g.normal(size=shape).astype(np.float32)
    return RawWindows(values, np.ones(shape, np.bool_), np.full(ASSETS, WINDOW, np.int32))


def _spec() -> ChainSpec:
    names = tuple(f"c{i:02d}" for i in range(CHANNELS))
    mapping = FieldMapping(channels=names, asset="asset", time="ts", time_unit="ms", values="values")
    align = AlignSpec(mode="none", period_ns=NS_PER_S, max_gap_ns=30 * NS_PER_DAY, retire_after_ns=365 * NS_PER_DAY)
    gate = GateSpec(stuck_frames=(50,) * CHANNELS, max_step=(np.inf,) * CHANNELS, missing_frames=10)
    return ChainSpec(mapping, align, gate, SmootherSpec(), AlertSpec("bench", "bench", names, LifeCycleSpec()))


def _bundle() -> Bundle:
    torch.manual_seed(0)
    member = MemberSpec("dense", WINDOW, "window", "mse", {"hidden": _HIDDEN, "latent": _LATENT})
    weights = build_module(member, CHANNELS).state_dict()
    tensors = {f"g0.m0.{name}": value.numpy() for name, value in weights.items()}
    tensors |= {"g0.scaler.loc": np.zeros(CHANNELS, np.float32), "g0.scaler.scale": np.ones(CHANNELS, np.float32)}
    one = np.ones(1, np.float32)
    start = np.zeros((1, SmootherSpec().memory), np.float32)
    calibration = Calibration((), one, 0.1 * one, start, 50 * one)
    return Bundle(
        id="bench", channels=_spec().mapping.channels, period_ns=NS_PER_S, members=(member,), groups=("*",),
        asset_group={}, default_group=0, soft_clip=3.0, smoother=SmootherSpec(),
        calibrations={"cpu-float32": calibration}, stuck_frames=(0,) * CHANNELS, provenance={}, tensors=tensors,
    )  # fmt: skip
