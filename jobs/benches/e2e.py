"""JSON messages to alerts through the very chain that `run` drives: decode, windows, models, smoother, life cycle.

Micro-batches of 1,024 messages, one thread; every row ends a full window and is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch

from jobs.benches import fleet
from jobs.benches.floor import gemm, network_floor
from jobs.benches.measure import Result, Trial, against, result
from models.engine import open_engine
from models.engine_rings import Chunk, Rings
from models.profiles import FALLBACK, Profile
from pipeline.alert import alert_columns
from pipeline.bundle import Bundle, MemberSpec
from pipeline.chain import Chain
from pipeline.decode import decode
from pipeline.protocols import Engine
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.values import Int32, Polled, Rows, Scores

_POLLS = 400  # more than any count of rounds uses up


class Line(msgspec.Struct):
    """A message as msgspec decodes it: the yardstick of everything that starts from JSON."""

    asset: str
    ts: int
    values: list[float]


@dataclass(slots=True)
class Recorder:
    """An engine that keeps the last scores it gave, so that the smoother can be measured on them alone."""

    engine: Engine
    scores: Sequence[Scores] = ()

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Push, and remember what came back."""
        out = self.engine.push(batches)
        self.scores = out
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class _Unscored:
    """An engine that keeps windows and copies them out as scoring would need them, then says what was said before.

    What a chain takes with it is what a chain takes outside the scorer.
    """

    def __init__(self, engine: Recorder, bundle: Bundle) -> None:
        self._engine, self._bundle = engine, bundle
        loc, scale = np.zeros((1, fleet.CHANNELS), np.float32), np.ones((1, fleet.CHANNELS), np.float32)
        self._rings = Rings(bundle.window, loc, scale, bundle.soft_clip)
        self._chunk = chunk_of(fleet.BATCH, bundle.window)

    def allocate(self, assets: Sequence[str]) -> Int32:
        slots = self._rings.allocate(np.zeros(len(assets), np.int32))
        self._rings.load(slots, fleet.full_windows(len(assets), self._bundle.window))
        return slots

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        (rows, slots), n = batches[0], len(batches[0][0])
        order = np.arange(n)
        status, coverage = np.zeros(n, np.uint8), np.zeros(n, np.float32)
        self._rings.take(rows.x, rows.observed, rows.continuity, slots, order, self._chunk, status, coverage)
        said = {f: getattr(rows, f) for f in ("asset", "ts_ns", "offset", "row", "continuity")}
        return [replace(self._engine.scores[0], status=status, coverage=coverage, **said)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.engine, name)


@dataclass(slots=True)
class Watch:
    """A chain with full windows of every asset, and the polls it has not seen yet."""

    chain: Chain
    engine: Recorder
    bundle: Bundle
    polls: list[Polled]

    def push(self, turn: int) -> None:
        """Push the next poll; the first one was for warming up."""
        push_all_scored(self.chain, self.polls[turn + 1])

    @property
    def lines(self) -> list[bytes]:
        """The messages of one poll."""
        return [line for line in self.polls[0].value if line is not None]


def watch(
    members: Sequence[MemberSpec],
    trial: Trial,
    steady: bool = False,
    profile: Profile = FALLBACK,
    polls: int = _POLLS,
    batch: int = fleet.BATCH,
) -> Watch:
    """Return a chain over these members, warm: every window is full and every kernel compiled.

    Rows are of random assets and taken as they come; `steady`: every asset sends once a second, on a grid, so that a
    row is released, and scored, by the one after it.
    """
    torch.set_num_threads(1)
    bundle = fleet.bundle(members)
    engine = Recorder(open_engine(bundle, *profile))
    assets = trial.size(fleet.ASSETS, 200)
    chain = warm_chain(bundle, engine, assets, steady)
    engine.load(np.arange(assets, dtype=np.int32), fleet.full_windows(assets, bundle.window))
    make = fleet.steady_batches if steady else fleet.batches
    made = make(trial.size(polls, min(polls, 10)), trial.size(batch, min(batch, 64)), assets)
    push_all_scored(chain, made[0])
    return Watch(chain, engine, bundle, made)


def warm_chain(bundle: Bundle, engine: Any, assets: int, steady: bool = False) -> Chain:
    """Return a chain in which every asset has begun: its first frame has been released."""
    chain = Chain(fleet.chain_spec(grid=steady))
    readings = np.zeros((assets, fleet.CHANNELS))
    for second in (0, 1) if steady else (None,):
        at = None if second is None else np.full(assets, second)
        chain.push([fleet.messages(np.arange(assets), 0, readings, at)])
    chain.serve(bundle, engine)
    return chain


def push_all_scored(chain: Chain, poll: Polled) -> None:
    """Push a poll every row of which must be scored: a bench whose rows are late or warming would flatter.

    Raises
    ------
    RuntimeError : some were not.
    """
    counts = chain.push([poll]).counts
    if counts["scored"] != len(poll):
        raise RuntimeError(f"{counts['scored']} of {len(poll)} rows were scored: {dict(counts)}")


def chunk_of(size: int, window: int) -> Chunk:
    """Return room for `size` windows."""
    readings = window * fleet.CHANNELS
    return Chunk(
        x=np.zeros((size, readings), np.float32),
        observed=np.ones((size, readings), np.bool_),
        ends=np.zeros(size, np.int64),
        age=np.zeros(size, np.int32),
    )


def json_dense(trial: Trial) -> Result:
    """The 2048-256-32-256-2048 autoencoder, every output of which counts, against the fp32 GEMM floor."""
    return _to_floor("e2e.json.dense", (fleet.DENSE,), fleet.DENSE_FLOP, trial)


def json_conv(trial: Trial) -> Result:
    """The convolutional autoencoder (32-32-16, kernels 7 and 5, strides 2) against the fp32 GEMM floor."""
    return _to_floor("e2e.json.conv", (fleet.CONV,), fleet.CONV_FLOP, trial)


def json_int8(trial: Trial) -> Result:
    """The same dense autoencoder in int8, against the fp32 GEMM floor."""
    return _to_floor("e2e.json.int8", (fleet.DENSE,), fleet.DENSE_FLOP, trial, Profile("cpu", "int8"))


def _to_floor(name: str, members: Sequence[MemberSpec], flop: int, trial: Trial, profile: Profile = FALLBACK) -> Result:
    w = watch(members, trial, profile=profile)
    taken = trial.rounds({**_whole(w), **_stages(w)})
    floor = network_floor(flop, taken["gemm"])
    batch = len(w.polls[0])
    per_row = taken["chain"] / batch
    return result(
        name,
        [
            against("fp32 GEMM floor of the network", floor / per_row),
            against("msgspec decode of the same lines", taken["msgspec"] / taken["chain"]),
        ],
        {
            "rows_per_s": float(np.median(1 / per_row)),
            "floor_rows_per_s": float(np.median(1 / floor)),
            **_shares(taken),
        },
    )


def default(trial: Trial) -> Result:
    """The default recipe: principal components of 32 rows (rank 128) and a dense 512-128-64-16 autoencoder.

    Every asset sends once a second and rows are put on a grid, as the configuration does by default. No network of it
    is large, so the bar is what merely parsing the messages takes; the floor of both members is there too.
    """
    w = watch(fleet.DEFAULT, trial, steady=True)
    taken = trial.rounds({**_whole(w), **_stages(w)})
    floor = network_floor(fleet.DEFAULT_FLOP, taken["gemm"])
    per_row = taken["chain"] / len(w.polls[0])
    return result(
        "e2e.default",
        [
            against("msgspec decode of the same lines", taken["msgspec"] / taken["chain"]),
            against("fp32 GEMM floor of both members", floor / per_row),
        ],
        {"rows_per_s": float(np.median(1 / per_row)), **_shares(taken)},
    )


def overhead(trial: Trial) -> Result:
    """The share of `e2e.json.dense` outside the scorer.

    The same chain is run on the same messages with an engine that does all but scoring: it keeps the windows and copies
    them out. What that takes is the overhead.
    """
    w = watch((fleet.DENSE,), trial)
    assets = trial.size(fleet.ASSETS, 200)
    bare = warm_chain(w.bundle, _Unscored(w.engine, w.bundle), assets)
    push_all_scored(bare, w.polls[0])
    taken = trial.rounds(
        {
            "chain": w.push,
            "bare": lambda i: push_all_scored(bare, w.polls[i + 1]),
        }
    )
    return result(
        "e2e.overhead",
        [against("the whole of e2e.json.dense", taken["bare"] / taken["chain"])],
        {"us_per_row": float(np.median(taken["bare"]) / len(w.polls[0]) * 1e6)},
        "lower",
    )


def _whole(w: Watch) -> dict[str, Callable[[int], object]]:
    bare, lines = msgspec.json.Decoder(Line), w.lines
    return {
        "chain": w.push,
        "gemm": gemm(),
        "msgspec": lambda _: [bare.decode(line) for line in lines],
    }


def _stages(w: Watch) -> dict[str, Callable[[int], object]]:
    """Return the costly stages by themselves, on what the chain gave them last."""
    spec = w.chain.spec
    table = AssetTable({**smoother_columns(spec.smoother), **alert_columns(fleet.CHANNELS)})
    for name in w.chain.assets("bench", 0):
        table.code(name)
    rows = decode(w.polls[0], spec.mapping, table).rows
    pooled, calibration = np.zeros(len(rows), np.int32), w.bundle.calibration(w.engine.profile)
    return {
        "decode": lambda i: decode(w.polls[i % len(w.polls)], spec.mapping, table),
        "engine": lambda _: w.engine.engine.push([(rows, rows.asset)]),
        "smooth": lambda _: smooth(w.engine.scores[0], pooled, calibration, table, spec.smoother),
    }


def _shares(taken: dict[str, np.ndarray]) -> dict[str, float]:
    share = {f"share_{s}": float(np.median(taken[s] / taken["chain"])) for s in ("decode", "engine", "smooth")}
    return {**share, "share_rest": 1 - sum(share.values())}
