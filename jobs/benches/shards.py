"""What a second worker on a second core adds. Work is split by process: partitions share nothing."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np

from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result

_POLLS = 25  # of 1,024 messages in one go, about a second


def two(trial: Trial) -> Result:
    """Two processes that run `e2e.json.dense`, together and alone in turn: rows a second of both to those of one.

    It needs two cores that nothing else uses; on a busy machine it tells how busy that is.
    """
    context = multiprocessing.get_context("spawn")
    ends, workers = [], []
    for _ in range(2):
        mine, theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(theirs, trial), daemon=True))
        workers[-1].start()
        ends.append(mine)
    try:
        for end in ends:
            end.recv()  # warm
        taken: dict[str, list[float]] = {"one": [], "both": []}
        for _ in range(trial.count):
            taken["one"].append(_seconds(ends[:1]))
            taken["both"].append(_seconds(ends))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    one, both = np.array(taken["one"]), np.array(taken["both"])
    rows = trial.size(_POLLS, 1) * trial.size(fleet.BATCH, 64)
    return result(
        "scale.shards", [against("one shard", 2 * one / both)], {"rows_per_s": 2 * rows / float(np.median(both))}
    )


def work(end: Connection, trial: Trial) -> None:
    """Push so many polls each time the other end asks; what a shard's process runs."""
    from jobs.benches.e2e import watch

    w = watch((fleet.DENSE,), trial)
    count = trial.size(_POLLS, 1)
    end.send("ready")
    turn = 0
    while True:
        end.recv()
        for _ in range(count):
            w.push(turn)
            turn += 1
        end.send("done")


def _seconds(ends: list[Connection]) -> float:
    start = time.perf_counter()
    for end in ends:
        end.send("go")
    for end in ends:
        end.recv()
    return time.perf_counter() - start
