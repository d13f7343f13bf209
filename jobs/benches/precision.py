"""What the other serving profiles of the CPU give: int8, bfloat16, and single rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import torch

from jobs.benches import fleet
from jobs.benches.e2e import watch
from jobs.benches.floor import gemm, network_floor
from jobs.benches.measure import Result, Trial, against, result
from models.autoencoders import build_module
from models.engine import open_engine
from models.engine_products import graph_of, session_options
from models.fitted_members import fitted_affine
from models.profiles import Precision, Profile
from pipeline.bundle import MemberSpec
from pipeline.protocols import Engine
from pipeline.values import Float64, Rows

_LATENCY = Profile(priority="latency")
_TURNS = 8  # batches taken in turn


def dense_int8(trial: Trial) -> Result:
    """1,024 rows through the dense autoencoder in int8, against the fp32 GEMM floor."""
    return _to_floor("score.dense.int8", fleet.DENSE, fleet.DENSE_FLOP, "int8", trial)


def conv_bfloat16(trial: Trial) -> Result:
    """1,024 rows through the convolutional autoencoder in bfloat16, against the fp32 GEMM floor."""
    return _to_floor("score.conv.bf16", fleet.CONV, fleet.CONV_FLOP, "bfloat16", trial)


def dense_single(trial: Trial) -> Result:
    """One row through the dense autoencoder, its window kept by the engine, against ONNX Runtime's run of one window.

    Theirs is the network alone; ours puts the row into its window and says residuals and the error, too.
    """
    torch.set_num_threads(1)
    engine = open_engine(fleet.bundle(), *_LATENCY)
    slots = engine.allocate(fleet.asset_names(trial.size(fleet.ASSETS, 64)))
    engine.load(slots, fleet.full_windows(len(slots)))
    rows = [fleet.rows_of(slots[i : i + 1], seed=i) for i in range(64)]
    took = _each({"ours": _push(engine, rows), "theirs": _runtime(), "plain": _plain()}, trial.size(2000, 8))
    parts = {who: np.array_split(seconds, 8) for who, seconds in took.items()}
    theirs = np.array([np.median(part) for part in parts["theirs"]])
    lines = [
        against(
            f"ONNX Runtime's run, p50; ours p{q}", np.array([np.percentile(part, q) for part in parts["ours"]]) / theirs
        )
        for q in (50, 99)
    ]
    return result("score.dense.b1", lines, _figures(took), "lower")


def latency(trial: Trial) -> Result:
    """One JSON message to its decision through the dense autoencoder, against the plain module of one window."""
    count = trial.size(2000, 8)
    w = watch((fleet.DENSE,), trial, profile=_LATENCY, polls=count + 1, batch=1)
    return _percentiles("e2e.latency", _each({"ours": w.push, "plain": _plain()}, count))


def _to_floor(name: str, member: MemberSpec, flop: int, precision: Precision, trial: Trial) -> Result:
    torch.set_num_threads(1)
    size = trial.size(fleet.BATCH, 16)
    bundle, g = fleet.bundle((member,)), np.random.default_rng(size)
    contestants: dict[str, Callable[[int], object]] = {"gemm": gemm()}
    for served in (precision, "float32"):
        engine = open_engine(bundle, "cpu", served)
        slots = engine.allocate(fleet.asset_names(trial.size(fleet.ASSETS, 64)))
        engine.load(slots, fleet.full_windows(len(slots)))
        rows = [fleet.rows_of(slots[g.integers(0, len(slots), size)]) for _ in range(_TURNS)]
        contestants[served] = _push(engine, rows)
    taken = trial.rounds(contestants)
    ours = taken[precision]
    return result(
        name,
        [
            against("fp32 GEMM floor of the network", network_floor(flop, taken["gemm"]) * size / ours),
            against("the same engine in float32", taken["float32"] / ours),
        ],
        {"windows_per_s": size / float(np.median(ours))},
    )


def _push(engine: Engine, rows: Sequence[Rows]) -> Callable[[int], object]:
    return lambda i: engine.push([(rows[i % len(rows)], rows[i % len(rows)].asset)])


def _runtime() -> Callable[[int], object]:
    """Return a contestant: one window through the network in ONNX Runtime, by its usual way."""
    options = session_options()
    options.enable_cpu_mem_arena = True
    graph = graph_of(fitted_affine(fleet.bundle(), 0, 0, fleet.READINGS)).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(1, fleet.READINGS)).astype(np.float32)
    return lambda _: session.run(None, {"x": x})


def _plain() -> Callable[[int], object]:
    module = build_module(fleet.DENSE, fleet.CHANNELS).eval()
    x = torch.randn(1, fleet.WINDOW, fleet.CHANNELS)
    observed = torch.ones_like(x)

    def run(_: int) -> object:
        with torch.inference_mode():
            return (module(x, observed) - x).square_().mean()

    return run


def _each(contestants: dict[str, Callable[[int], object]], count: int) -> dict[str, Float64]:
    """Return the seconds of every call, (count,), contestants in turn: what is asked for is not a mean."""
    took = {name: np.empty(count) for name in contestants}
    for i in range(count):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(i)
            took[name][i] = time.perf_counter() - start
    return took


def _percentiles(name: str, took: dict[str, Float64]) -> Result:
    """Return the ratio of the medians; its spread is that of parts of the run."""
    parts = {who: [np.median(part) for part in np.array_split(seconds, 8)] for who, seconds in took.items()}
    line = against("the plain torch module of one window", np.array(parts["plain"]) / parts["ours"])
    return result(name, [line], _figures(took))


def _figures(took: dict[str, Float64]) -> dict[str, float]:
    p50, p99 = np.percentile(took["ours"], [50, 99]) * 1e6
    others = {f"{who}_p50_us": float(np.median(took[who]) * 1e6) for who in took if who != "ours"}
    return {"p50_us": float(p50), "p99_us": float(p99), **others}
