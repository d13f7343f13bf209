"""Windows to errors, and rows to errors through the engine with its rings, against what the network has to compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from jobs.benches import fleet
from jobs.benches.floor import gemm, network_floor
from jobs.benches.measure import Ratio, Result, Trial, against, result, worst
from models.autoencoders import build_module
from models.engine import open_engine
from models.engine_buffers import Workspace, aligned
from models.engine_rings import Chunk
from models.engine_scorer import Scorer
from models.profiles import FALLBACK
from pipeline.bundle import MemberSpec
from pipeline.protocols import Engine

_TURNS = 8  # batches taken in turn
_SIZES = (64, 1024, 8192)
_LARGEST = 1024  # batch of any member
_GROUPS, _PER_GROUP = 64, 4


def dense(trial: Trial) -> Result:
    """64, 1,024 and 8,192 windows to errors with the dense autoencoder, against the GEMM floor.

    Under `more` the same from rows of random assets: `engine.push`, which finds and scales the windows itself.
    """
    ready, pushed, rate, _ = _at_sizes(fleet.DENSE, fleet.DENSE_FLOP, trial)
    return result("score.dense.fp32", [*worst(ready), *pushed], {"rows_per_s": rate})


def conv(trial: Trial) -> Result:
    """The same through the convolutional autoencoder; under `more` also against its plain module at 8,192."""
    ready, pushed, rate, eager = _at_sizes(fleet.CONV, fleet.CONV_FLOP, trial)
    return result("score.conv.fp32", [*worst(ready), eager, *pushed], {"rows_per_s": rate})


def _at_sizes(member: MemberSpec, flop: int, trial: Trial) -> tuple[list[Ratio], list[Ratio], float, Ratio]:
    """Return the ratios to the floor for each size, of windows and of rows; rows a second, and the ratio of windows to
    the plain module, at the last.
    """
    torch.set_num_threads(1)
    sizes = [trial.size(n, 16) for n in _SIZES]
    engine, assets = _engine(trial, (member,))
    contestants: dict[str, Callable[[int], object]] = {"gemm": gemm()}
    for n, size in zip(_SIZES, sizes, strict=True):
        contestants[f"ready {n}"] = _ready(member, size)
        contestants[f"pushed {n}"] = _push(engine, size, assets)
    module = build_module(member, fleet.CHANNELS).eval()
    x = torch.randn(sizes[-1], fleet.WINDOW, fleet.CHANNELS)
    observed = torch.ones_like(x)

    def plain(_: int) -> object:
        with torch.inference_mode():
            return (module(x, observed) - x).square_().mean((1, 2))

    contestants["plain"] = plain
    taken = trial.rounds(contestants)
    floor = network_floor(flop, taken["gemm"])

    def to_floor(what: str, said: str) -> list[Ratio]:
        return [
            against(f"fp32 GEMM floor of the network, {said}b={n}", floor * size / taken[f"{what} {n}"])
            for n, size in zip(_SIZES, sizes, strict=True)
        ]

    eager = against("the plain torch module, b=8192", taken["plain"] / taken[f"ready {_SIZES[-1]}"])
    rate = sizes[-1] / float(np.median(taken[f"pushed {_SIZES[-1]}"]))
    return to_floor("ready", ""), to_floor("pushed", "from rows, "), rate, eager


def group_conv(trial: Trial) -> Result:
    """64 groups with a convolutional autoencoder each, 4 windows of each, against a Python loop over their modules.

    The loop has its windows ready; the engine takes rows and keeps the windows itself.
    """
    torch.set_num_threads(1)
    groups = trial.size(_GROUPS, 2)
    bundle = fleet.bundle((fleet.CONV,), groups)
    engine = open_engine(bundle, "cpu")
    slots = engine.allocate(fleet.asset_names(_PER_GROUP * groups))
    engine.load(slots, fleet.full_windows(len(slots)))
    rows = fleet.rows_of(slots)
    modules = [build_module(fleet.CONV, fleet.CHANNELS).eval() for _ in range(groups)]
    x = torch.randn(groups, _PER_GROUP, fleet.WINDOW, fleet.CHANNELS)
    observed = torch.ones_like(x[0])

    def loop(_: int) -> object:
        with torch.inference_mode():
            return [(m(x[g], observed) - x[g]).square_().mean((1, 2)) for g, m in enumerate(modules)]

    taken = trial.rounds({"ours": lambda _: engine.push([(rows, slots)]), "loop": loop})
    return result(
        "group.conv",
        [against("a Python loop over the groups' modules", taken["loop"] / taken["ours"])],
        {"windows_per_s": len(slots) / float(np.median(taken["ours"]))},
    )


def _ready(member: MemberSpec, n: int) -> Callable[[int], object]:
    """Return a contestant that takes `n` windows, fully observed, to residuals by channel and errors."""
    scorer = Scorer(fleet.bundle((member,)), 0, 0, max(n, _LARGEST), Workspace(FALLBACK))
    windows = aligned(max(n, _LARGEST), fleet.READINGS)
    windows[:] = np.random.default_rng(0).normal(size=windows.shape)
    chunk = Chunk(
        x=windows,
        observed=np.ones(windows.shape, np.bool_),
        ends=np.arange(len(windows)),
        age=np.full(len(windows), fleet.WINDOW, np.int32),
    )
    return lambda _: scorer.score(chunk, n)


def _engine(trial: Trial, members: tuple[MemberSpec, ...]) -> tuple[Engine, np.ndarray]:
    bundle = fleet.bundle(members)
    engine = open_engine(bundle, "cpu")
    slots = engine.allocate(fleet.asset_names(trial.size(fleet.ASSETS, 64)))
    engine.load(slots, fleet.full_windows(len(slots)))
    return engine, slots


def _push(engine: Engine, n: int, slots: np.ndarray) -> Callable[[int], object]:
    g = np.random.default_rng(n)
    batches = [fleet.rows_of(slots[g.integers(0, len(slots), n)]) for _ in range(_TURNS)]
    return lambda i: engine.push([(batches[i % _TURNS], batches[i % _TURNS].asset)])
