"""The streaming engine: against recomputing windows as often as it steps, and from JSON messages to alerts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from jobs.benches import fleet
from jobs.benches.e2e import Line, Recorder, push_all_scored
from jobs.benches.measure import Result, Trial, against, result
from models.engine import open_engine
from models.engine_buffers import Workspace, aligned
from models.engine_members import build_member
from models.fitted_members import fitted_convolutions
from models.profiles import FALLBACK
from models.stream_layers import member_span, stream_layers
from models.stream_network import SHAPES, StreamNetwork
from pipeline.bundle import MemberSpec
from pipeline.chain import Chain, ChainSpec, front_columns
from pipeline.decode import decode
from pipeline.protocols import Engine
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.values import NS_PER_S, Float64, Int32, Int64, Polled, Rows, Scores

_ASSETS = 8192
_CHUNK = 16  # windows that are recomputed at a time: of the sizes there are, the fastest
_POLLS = 400  # more than any count of rounds uses up
_FIRST_S = fleet.FIRST_MS // 1000


def conv(trial: Trial) -> Result:
    """The network of `score.conv.fp32` over 8,192 series, its 64 newest row errors averaged, a hop of 4 rows.

    A call of ours is four pushes with one row of every asset: rings, network, errors, shares and expected values of
    every row. The yardstick has its windows ready and reconstructs the 64 rows of each once, in chunks.
    """
    assets, member = trial.size(_ASSETS, 64), streaming(fleet.CONV)
    hop = member_span(member).hop
    engine = open_engine(fleet.bundle((member,)), "cpu")
    slots = engine.allocate(fleet.asset_names(assets))
    rows = [replace(fleet.rows_of(slots, seed), ts_ns=np.zeros(assets, np.int64)) for seed in range(hop)]
    push = _pushes(engine, rows, slots)
    for turn in range(-(engine.rows_kept // hop), 0):
        push(turn)
    if not np.isfinite(push(0)[-1].score).all():
        raise RuntimeError("rows were not scored that have all that they rest on")
    recompute = build_member(fleet.bundle((fleet.CONV,)), 0, 0, Workspace(FALLBACK))
    windows = aligned(assets, fleet.READINGS)
    windows[:] = np.random.default_rng(2).normal(size=windows.shape)

    def recomputed(_: int) -> object:
        chunks = [windows[at : at + _CHUNK] for at in range(0, assets, _CHUNK)]
        return [np.square(recompute.expect(chunk) - chunk).mean(1) for chunk in chunks]

    taken = trial.rounds({"ours": lambda i: push(i + 1), "recomputed": recomputed})
    return result(
        "stream.conv",
        [against("chunked recompute at the same hop", taken["recomputed"] / taken["ours"])],
        {"rows_per_s": hop * assets / float(np.median(taken["ours"]))},
    )


def encoder(trial: Trial) -> tuple[Callable[[int], object], int]:
    """Return the encoder's layers alone over a hop of 8,192 series, and how many rows a call takes.

    What libraries without transposed convolutions can be held against; the rows of the first layer are laid out, and
    copied to where it reads them.
    """
    assets, member = trial.size(_ASSETS, 64), streaming(fleet.CONV)
    layers = stream_layers(fitted_convolutions(fleet.bundle((member,)), 0, 0))
    network = StreamNetwork(layers[: len(layers) // 2], Workspace(FALLBACK))
    kept = [np.zeros((assets, width), np.float32) for width in network.widths]
    slots, fresh = np.arange(assets, dtype=np.int32), np.zeros(assets, np.bool_)
    products, most = layers[0].products, SHAPES[-1]
    rows = np.random.default_rng(3).standard_normal((assets * products, network.runs.shape[1]), np.float32)

    def run(_: int) -> None:
        for at in range(0, assets, most):
            part = rows[at * products : (at + most) * products]
            network.runs[: len(part)] = part
            network.run(slots[at : at + most], fresh[at : at + most], kept)

    return run, assets * member_span(member).hop


def _pushes(engine: Engine, rows: list[Rows], slots: Int32) -> Callable[[int], list[Scores]]:
    """Return a function that pushes one hop of every asset, the one of that number."""

    def push(turn: int) -> list[Scores]:
        out = []
        for i, one in enumerate(rows):
            ts = np.full(len(slots), (_FIRST_S // 4 * 4 + len(rows) * turn + i) * NS_PER_S)
            out += engine.push([(replace(one, ts_ns=ts), slots)])
        return out

    return push


def json(trial: Trial) -> Result:
    """JSON messages to alerts through the chain on a grid, one of each of 1,024 assets in a poll of one period.

    The yardstick is msgspec's bare decoding of the same lines into a struct. A call is a hop of polls, so that each
    one holds the same work.
    """
    member = streaming(fleet.CONV)
    bundle, hop = fleet.bundle((member,)), member_span(member).hop
    assets = np.arange(trial.size(fleet.BATCH, 32))
    values = np.random.default_rng(1).normal(size=(8, len(assets), fleet.CHANNELS)).round(4)
    chain, engine = Chain(_on_a_grid()), Recorder(open_engine(bundle, "cpu"))
    chain.serve(bundle, engine)
    warm = member.window // hop + 2
    polls = [_poll(assets, turn, values[turn % len(values)]) for turn in range(hop * (warm + trial.size(_POLLS, 3)))]
    for poll in polls[: hop * warm]:
        chain.push([poll])

    def pushed(i: int) -> None:
        for poll in polls[hop * (warm + i) : hop * (warm + i + 1)]:
            push_all_scored(chain, poll)

    lines = [line for poll in polls[:hop] for line in poll.value if line is not None]
    bare = msgspec.json.Decoder(Line)
    spec, (scores,) = chain.spec, engine.scores
    table = AssetTable({**front_columns(spec), **smoother_columns(spec.smoother)})
    for name in chain.assets("bench", 0):
        table.code(name)
    pooled, calibration = np.zeros(len(scores), np.int32), bundle.calibration(engine.profile)
    apart = open_engine(bundle, "cpu")  # pushed by itself, so that the chain's series are left alone
    slots = apart.allocate(chain.assets("bench", 0))
    push = _pushes(apart, [fleet.rows_of(slots, seed) for seed in range(hop)], slots)
    for turn in range(-warm, 0):
        push(turn)
    taken = trial.rounds(
        {
            "chain": pushed,
            "msgspec": lambda _: [bare.decode(line) for line in lines],
            "decode": lambda i: [decode(poll, spec.mapping, table) for poll in polls[:hop]],
            "smooth": lambda _: [smooth(scores, pooled, calibration, table, spec.smoother) for _ in range(hop)],
            "engine": lambda i: push(i),
        }
    )
    share = {f"share_{s}": float(np.median(taken[s] / taken["chain"])) for s in ("decode", "engine", "smooth")}
    return result(
        "e2e.stream",
        [against("msgspec decode of the same lines", taken["msgspec"] / taken["chain"])],
        {
            "rows_per_s": len(lines) / float(np.median(taken["chain"])),
            **share,
            "share_rest": 1 - sum(share.values()),
        },
    )


def _on_a_grid() -> ChainSpec:
    spec = fleet.chain_spec()
    return replace(spec, align=replace(spec.align, mode="grid", max_gap_ns=10 * NS_PER_S))


def _poll(assets: Int64, turn: int, values: Float64) -> Polled:
    """Return one message of each asset, all of one period."""
    ts = fleet.FIRST_MS // 4000 * 4000 + 1000 * turn
    lines = [
        msgspec.json.encode({"asset": f"pump-{a:05d}", "ts": ts, "values": v})
        for a, v in zip(assets.tolist(), values.tolist(), strict=True)
    ]
    return fleet.polled(lines, turn * len(assets))


def streaming(member: MemberSpec) -> MemberSpec:
    """Return a convolutional member as a streaming one that averages as many row errors as that one has rows."""
    one = replace(member, kind="stream", error="last")
    return replace(one, window=member_span(one).rows(member.window))
