"""What benches are run on: 10,000 assets of 32 channels, windows of 64 rows, and networks of a known cost.

The networks have fresh weights: how long a product takes does not depend on what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from models.autoencoders import build_module
from models.profiles import all_profiles
from pipeline.alert import AlertSpec, LifeCycleSpec
from pipeline.align import AlignSpec
from pipeline.bundle import Bundle, Calibration, MemberSpec, SmootherSpec
from pipeline.chain import ChainSpec
from pipeline.gate import GateSpec
from pipeline.mapping import FieldMapping
from pipeline.protocols import RawWindows
from pipeline.values import NS_PER_DAY, NS_PER_S, Float64, Int32, Int64, Polled, Rows

WINDOW, CHANNELS, ASSETS, BATCH = 64, 32, 10_000, 1024
READINGS = WINDOW * CHANNELS
CHANNEL_NAMES = tuple(f"c{i:02d}" for i in range(CHANNELS))
FIRST_MS = 1_790_000_000_000

# Every output of the first two counts (`error = "window"`), so that a matrix product is asked for the same arithmetic.
DENSE = MemberSpec("dense", WINDOW, "window", "mse", {"hidden": (256,), "latent": 32})
DENSE_FLOP = 2 * 2 * (READINGS * 256 + 256 * 32)
CONV = MemberSpec(
    "conv", WINDOW, "window", "mse", {"hidden": (32,), "latent": 16, "kernels": (7, 5), "strides": (2, 2)}
)
CONV_FLOP = 2 * 2 * (WINDOW // 2 * 32 * CHANNELS * 7 + WINDOW // 4 * 16 * 32 * 5)
# The default recipe: both judge the last row only.
PCA_RANK = 128
DEFAULT = (
    MemberSpec("pca", 32, "last", "mse", {"rank": PCA_RANK}),
    MemberSpec("dense", 16, "last", "mse", {"hidden": (128, 64), "latent": 16}),
)
DEFAULT_FLOP = 2 * (32 * CHANNELS + CHANNELS) * PCA_RANK + 2 * (
    16 * CHANNELS * 128 + 2 * 128 * 64 + 2 * 64 * 16 + 128 * CHANNELS
)


def chain_spec(smoother: SmootherSpec | None = None, values: str = "values", grid: bool = False) -> ChainSpec:
    """Return the rules of the feed: rows as they come, or put on a grid of a second; every check on."""
    mapping = FieldMapping(channels=CHANNEL_NAMES, asset="asset", time="ts", time_unit="ms", values=values)
    align = AlignSpec(
        mode="grid" if grid else "none",
        period_ns=NS_PER_S,
        max_gap_ns=30 * NS_PER_DAY,
        retire_after_ns=365 * NS_PER_DAY,
    )
    gate = GateSpec(stuck_frames=(50,) * CHANNELS, max_step=(np.inf,) * CHANNELS, missing_frames=10)
    alert = AlertSpec("bench", "bench", CHANNEL_NAMES, LifeCycleSpec())
    return ChainSpec(mapping, align, gate, smoother or SmootherSpec(), alert)


def bundle(members: Sequence[MemberSpec] = (DENSE,), groups: int = 1) -> Bundle:
    """Return a bundle of these members with fresh weights; of several groups, asset i is of group i % groups."""
    torch.manual_seed(0)
    tensors: dict[str, np.ndarray] = {}
    for g in range(groups):
        tensors[f"g{g}.scaler.loc"] = np.zeros(CHANNELS, np.float32)
        tensors[f"g{g}.scaler.scale"] = np.ones(CHANNELS, np.float32)
        for m, member in enumerate(members):
            tensors |= {f"g{g}.m{m}.{name}": value for name, value in _weights(member).items()}
    one = np.ones(1, np.float32)
    start = np.zeros((1, SmootherSpec().memory), np.float32)
    return Bundle(
        id="bench",
        channels=CHANNEL_NAMES,
        period_ns=NS_PER_S,
        members=tuple(members),
        groups=tuple(f"group-{g}" for g in range(groups)),
        asset_group={name: i % groups for i, name in enumerate(asset_names(ASSETS))} if groups > 1 else {},
        default_group=0,
        soft_clip=3.0,
        smoother=SmootherSpec(),
        calibrations=dict.fromkeys((p.name for p in all_profiles()), Calibration((), one, 0.1 * one, start, 50 * one)),
        stuck_frames=(0,) * CHANNELS,
        provenance={},
        tensors=tensors,
    )


def asset_names(count: int) -> list[str]:
    """Return the names of the assets."""
    return [f"pump-{i:05d}" for i in range(count)]


def batches(count: int, size: int, assets: int = ASSETS) -> list[Polled]:
    """Return polls of `size` messages each, in time order, of assets drawn at random, repeats among them.

    They come after one message of each asset, and are made beforehand: writing JSON is no part of what is measured.
    """
    g = np.random.default_rng(1)
    return [
        messages(g.integers(0, assets, size), assets + turn * size, g.normal(size=(size, CHANNELS)).round(4))
        for turn in range(count)
    ]


def steady_batches(count: int, size: int, assets: int) -> list[Polled]:
    """Return polls of `size` messages each from assets that all send once a second, each time in another order.

    They come after two messages of each asset.
    """
    g = np.random.default_rng(1)
    seconds = -(-count * size // assets)
    order = np.concatenate([g.permutation(assets) for _ in range(seconds)])
    seconds_in = 2 + np.arange(len(order)) // assets
    cuts = [slice(turn * size, (turn + 1) * size) for turn in range(count)]
    return [
        messages(order[cut], 2 * assets + cut.start, g.normal(size=(size, CHANNELS)).round(4), seconds_in[cut])
        for cut in cuts
    ]


def messages(assets: Int64, offset: int, values: Float64, second: Int64 | None = None) -> Polled:
    """Return one poll of JSON messages, the readings in an array; a second apart unless `second` says when."""
    seconds = offset + np.arange(len(assets)) if second is None else second
    lines = [
        msgspec.json.encode({"asset": f"pump-{a:05d}", "ts": FIRST_MS + 1000 * s, "values": v})
        for a, s, v in zip(assets.tolist(), seconds.tolist(), values.tolist(), strict=True)
    ]
    return polled(lines, offset)


def polled(lines: Sequence[bytes], offset: int = 0) -> Polled:
    """Return message bodies as one poll."""
    n = len(lines)
    return Polled("bench", 0, np.arange(offset, offset + n, dtype=np.int64), np.zeros(n, np.int64), list(lines))


def rows_of(assets: Int32, seed: int = 0) -> Rows:
    """Return one fully observed row for each entry, as alignment hands them on."""
    n = len(assets)
    return Rows(
        partition=0,
        asset=assets,
        ts_ns=NS_PER_S * np.arange(n, dtype=np.int64),
        x=np.random.default_rng(seed).standard_normal((n, CHANNELS), np.float32),
        observed=np.ones((n, CHANNELS), np.bool_),
        quality=np.zeros((n, CHANNELS), np.uint8),
        offset=np.arange(n, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8),
    )


def full_windows(count: int, rows: int = WINDOW) -> RawWindows:
    """Return complete windows without a gap."""
    values = np.random.default_rng(2).standard_normal((count, rows, CHANNELS), np.float32)
    return RawWindows(values, np.ones(values.shape, np.bool_), np.full(count, rows, np.int32))


def _weights(member: MemberSpec) -> dict[str, np.ndarray]:
    if member.kind != "pca":
        return {name: value.numpy() for name, value in build_module(member, CHANNELS).state_dict().items()}
    readings, rank = member.window * CHANNELS, member.params["rank"]
    components, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((readings, rank)))
    return {
        "mean": np.zeros(readings, np.float32),
        "components": np.ascontiguousarray(components.T, np.float32),
        "variance": np.ones(rank, np.float32),
        "noise": np.full((), 0.1, np.float32),
    }
