"""The device engine on CUDA: products on data that is there, rows in and scores out, and what windows there win.

Every yardstick is measured on the same device in the same process: its own bfloat16 product and its own copies from
pinned memory. Not yet measured: the paper floors are in ARCHITECTURE.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from models.device_engine import BUCKETS, DeviceEngine
from models.device_members import DeviceMember
from models.device_windows import WindowsEngine
from models.profiles import Precision, Profile
from pipeline.bundle import MemberSpec
from pipeline.errors import Unavailable
from pipeline.protocols import Engine

_TURNS = 8  # batches taken in turn
_ROW_BYTES = 4 * fleet.CHANNELS + 4  # what a row has to cost on the bus: its readings and its slot
_SQUARE = 8192  # of the product that is the floor


def score_dense(trial: Trial) -> Result:
    """65,536 windows on the device through the dense autoencoder in bfloat16, against the rate of a large product."""
    return _scored("gpu.score.dense", fleet.DENSE, fleet.DENSE_FLOP, trial)


def score_conv(trial: Trial) -> Result:
    """The same through the convolutional one."""
    return _scored("gpu.score.conv", fleet.CONV, fleet.CONV_FLOP, trial)


def rows(trial: Trial) -> Result:
    """8,192 rows a push into the engine, scores on the host: against what bus or products alone would allow."""
    profile, n = cuda("bfloat16"), trial.size(8192, 16)
    engine = _device_engine(profile, trial)
    flop, product = _product(profile, trial)
    pinned = torch.zeros(trial.size(1 << 26, 1 << 12), pin_memory=profile.kind == "cuda")
    there = pinned.to(profile.device)
    contestants = {
        "push": _push(engine, n, trial),
        "product": _waited(product, profile),
        "copy": _waited(lambda: there.copy_(pinned, non_blocking=True), profile),
    }
    taken = trial.rounds(contestants, time.perf_counter)
    by_bus = taken["copy"] / (4 * len(pinned)) * _ROW_BYTES
    by_products = taken["product"] / flop * fleet.DENSE_FLOP
    per_row = taken["push"] / n
    return result(
        "gpu.e2e.rows",
        [against("the slower of bus and products", np.maximum(by_bus, by_products) / per_row)],
        {
            "rows_per_s": 1 / float(np.median(per_row)),
            "bus_rows_per_s": 1 / float(np.median(by_bus)),
            "products_rows_per_s": 1 / float(np.median(by_products)),
        },
    )


def rings(trial: Trial) -> Result:
    """Windows on the device against windows that cross the bus, 8,192 rows a push, float32."""
    profile, n = cuda("float32"), trial.size(8192, 16)
    across = _filled(WindowsEngine(fleet.bundle(), profile), trial)
    contestants = {"there": _push(_device_engine(profile, trial), n, trial), "across": _push(across, n, trial)}
    taken = trial.rounds(contestants, time.perf_counter)
    return result("gpu.rings.vs.windows", [against("windows made on the host", taken["across"] / taken["there"])])


def latency(trial: Trial) -> Result:
    """1,024 rows in, scores out, one push at a time: the median in microseconds; the distance of p99 under `more`."""
    n = trial.size(1024, 16)
    push = _push(_device_engine(cuda("bfloat16"), trial), n, trial)
    least = trial.size(100, 4)
    us = np.array([_wall_us(push, i) for i in range(21 * least)])[least:]  # the first ones capture graphs
    tail = float(np.quantile(us, 0.99) / np.median(us))
    return result("gpu.latency", [against("one microsecond", us)], {"p99_to_p50": tail}, better="lower")


def _wall_us(work: Callable[[int], object], turn: int) -> float:
    start = time.perf_counter()
    work(turn)
    return 1e6 * (time.perf_counter() - start)


def cuda(precision: Precision) -> Profile:
    """Return the profile that is measured.

    Raises
    ------
    Unavailable : there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device on this machine")
    return Profile("cuda", precision)


def _scored(name: str, member: MemberSpec, flop: int, trial: Trial) -> Result:
    profile, n = cuda("bfloat16"), trial.size(65536, 16)
    device = torch.device(profile.device)
    with torch.inference_mode():
        scorer = DeviceMember(fleet.bundle((member,)), 0, 0, device, torch.bfloat16)
        x = torch.randn(n, fleet.READINGS, device=device)
        last, out = x[:, -fleet.CHANNELS :], torch.empty(2, n, fleet.CHANNELS, device=device)
    product_flop, product = _product(profile, trial)
    taken = trial.rounds(
        {
            "score": _waited(lambda: scorer.compare(x, last, out), profile),
            "product": _waited(product, profile),
        },
        time.perf_counter,
    )
    floor = taken["product"] / product_flop * flop * n
    rate = n / float(np.median(taken["score"]))
    return result(name, [against("bfloat16 products alone", floor / taken["score"])], {"windows_per_s": rate})


def _product(profile: Profile, trial: Trial) -> tuple[int, Callable[[], Tensor]]:
    """Return a large bfloat16 product, and its operations."""
    size = trial.size(_SQUARE, 32)
    a, b = (torch.randn(size, size, device=profile.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3, lambda: a @ b


def _waited(work: Callable[[], object], profile: Profile) -> Callable[[int], object]:
    """Return a contestant that waits until the device has done the work."""

    def run(_: int) -> object:
        with torch.inference_mode():
            out = work()
        if profile.kind == "cuda":
            torch.cuda.synchronize(profile.device)
        return out

    return run


def _device_engine(profile: Profile, trial: Trial) -> Engine:
    return _filled(DeviceEngine(fleet.bundle(), profile, (8, 16) if trial.quick else BUCKETS), trial)


def _filled(engine: Engine, trial: Trial) -> Engine:
    """Return the engine with complete windows of all assets, in the slots that `_push` uses."""
    slots = engine.allocate(fleet.asset_names(trial.size(fleet.ASSETS, 64)))
    engine.load(slots, fleet.full_windows(len(slots)))
    return engine


def _push(engine: Engine, n: int, trial: Trial) -> Callable[[int], object]:
    """Return a contestant that pushes n rows of random assets: the first slots that an engine gives are 0, 1, ..."""
    g = np.random.default_rng(n)
    assets = trial.size(fleet.ASSETS, 64)
    batches = [fleet.rows_of(g.integers(0, assets, n).astype(np.int32)) for _ in range(_TURNS)]
    return lambda i: engine.push([(batches[i % _TURNS], batches[i % _TURNS].asset)])
