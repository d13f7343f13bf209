"""What an asset costs: as the arrays say, and as the operating system counts it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from pipeline.alert import alert_columns
from pipeline.chain import Chain, front_columns
from pipeline.protocols import Engine
from pipeline.smooth import smoother_columns
from pipeline.state import Column

_ASSETS = 100_000
_AT_ONCE = 2000
_GROWING = 4  # of an axis that grows on demand, as `AssetTable` begins


def assets(trial: Trial) -> Result:
    """100,000 assets of 32 channels and windows of 64 rows, every window full: resident bytes to stated bytes.

    Stated: a row of every column of the asset table; raw readings, their mask and the scaled ones in the engine. What
    is measured includes names, room to grow (arrays double) and the allocator.
    """
    context = multiprocessing.get_context("spawn")
    stated = stated_bytes()
    count = trial.size(_ASSETS, 500)
    grown = []
    for _ in range(1 if trial.quick else 3):
        mine, theirs = context.Pipe()
        worker = context.Process(target=work, args=(theirs, count), daemon=True)
        worker.start()
        theirs.close()
        grown.append(mine.recv())
        worker.join()
    measured = np.array(grown) / count
    return result(
        "memory.assets",
        [against("the bytes that its arrays have for an asset", measured / stated)],
        {"stated_bytes": stated, "measured_bytes": float(np.median(measured))},
        "lower",
    )


def stated_bytes(window: int = fleet.WINDOW) -> float:
    """Return the bytes of one asset in the arrays of table and engine."""
    spec = fleet.chain_spec()
    columns = {**front_columns(spec), **smoother_columns(spec.smoother), **alert_columns(fleet.CHANNELS)}
    readings = window * fleet.CHANNELS
    return float(sum(map(_column_bytes, columns.values())) + readings * (4 + 1 + 4))


def _column_bytes(column: Column) -> int:
    shape = tuple(_GROWING if n == -1 else n for n in column.shape)
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize


def work(end: Connection, count: int) -> None:
    """Fill a chain with assets; send by how many bytes this process grew."""
    from models.engine import open_engine

    bundle = fleet.bundle()
    engine = open_engine(bundle, "cpu")
    chain = Chain(fleet.chain_spec())
    chain.serve(bundle, engine)
    few = min(100, count // 2)
    _fill(chain, engine, 0, few)  # what is loaded and compiled on first use is no asset's
    before = _resident()
    _fill(chain, engine, few, count)
    end.send(_resident() - before)


def _fill(chain: Chain, engine: Engine, first: int, stop: int) -> None:
    """Give assets full windows and a score, some thousand at a time."""
    for begin in range(first, stop, _AT_ONCE):
        some = np.arange(begin, min(begin + _AT_ONCE, stop))
        readings = np.zeros((len(some), fleet.CHANNELS))
        chain.push([fleet.messages(some, 0, readings)])
        engine.load(some.astype(np.int32), fleet.full_windows(len(some)))
        chain.push([fleet.messages(some, stop, readings)])


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096
