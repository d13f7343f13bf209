"""Rows into windows, and windows out of them, against what moving the bytes costs."""

from __future__ import annotations

import numpy as np

from jobs.benches import fleet
from jobs.benches.e2e import chunk_of
from jobs.benches.measure import Result, Trial, against, result
from models.engine_rings import Chunk, Rings
from pipeline.values import Int32, Rows

_TURNS = 8  # batches taken in turn


def _rings(assets: int) -> tuple[Rings, Int32]:
    loc, scale = np.zeros((1, fleet.CHANNELS), np.float32), np.ones((1, fleet.CHANNELS), np.float32)
    rings = Rings(fleet.WINDOW, loc, scale, soft_clip=3.0)
    slots = rings.allocate(np.zeros(assets, np.int32))
    rings.load(slots, fleet.full_windows(assets))
    return rings, slots


def scatter(trial: Trial) -> Result:
    """10,000 rows, assets repeated and in order, against numpy writing the same bytes for assets that differ.

    A row is kept as it came, its mask is counted and kept, and it is kept scaled and clipped. The yardstick writes the
    three with fancy indices and computes nothing; under `more`, one write of one row.
    """
    n = trial.size(fleet.ASSETS, 200)
    rings, slots = _rings(n)
    g = np.random.default_rng(0)
    repeated = [fleet.rows_of(slots[g.integers(0, n, n)]) for _ in range(_TURNS)]
    unique = [fleet.rows_of(g.permutation(slots)) for _ in range(_TURNS)]
    raw = np.zeros((n, fleet.WINDOW, fleet.CHANNELS), np.float32)
    seen = np.zeros(raw.shape, np.bool_)
    scaled = np.zeros_like(raw)

    def ours(i: int) -> None:
        rows = repeated[i % _TURNS]
        rings.store(rows.x, rows.observed, rows.continuity, rows.asset)

    def three_writes(i: int) -> None:
        rows, at = unique[i % _TURNS], np.full(n, i % fleet.WINDOW)
        raw[rows.asset, at] = rows.x
        seen[rows.asset, at] = rows.observed
        scaled[rows.asset, at] = rows.x

    def one_write(i: int) -> None:
        rows = unique[i % _TURNS]
        raw[rows.asset, np.full(n, i % fleet.WINDOW)] = rows.x

    taken = trial.rounds({"ours": ours, "three": three_writes, "one": one_write})
    return result(
        "ring.scatter",
        [
            against("numpy fancy index, the same three writes", taken["three"] / taken["ours"]),
            against("numpy fancy index, one write", taken["one"] / taken["ours"]),
        ],
        {"rows_per_s": n / float(np.median(taken["ours"]))},
    )


def window(trial: Trial) -> Result:
    """8,192 assets in random order: each takes a row and gives its window, in chunks of 1,024.

    Against copying as many bytes, 8 KiB a window, in one piece that no cache holds.
    """
    assets, n = trial.size(fleet.ASSETS, 200), trial.size(8192, 128)
    rings, slots = _rings(assets)
    g = np.random.default_rng(0)
    batches = [fleet.rows_of(g.permutation(slots)[:n]) for _ in range(_TURNS)]
    chunk = chunk_of(1024, fleet.WINDOW)
    source = np.ones(n * fleet.READINGS, np.float32)
    target = np.zeros_like(source)

    taken = trial.rounds(
        {
            "ours": lambda i: _windows(rings, batches[i % _TURNS], chunk),
            "copy": lambda _: np.copyto(target, source),
        }
    )
    return result(
        "ring.window",
        [against("memcpy of the windows", taken["copy"] / taken["ours"])],
        {"windows_per_s": n / float(np.median(taken["ours"]))},
    )


def _windows(rings: Rings, rows: Rows, chunk: Chunk) -> None:
    n = len(rows)
    order = np.arange(n)
    status, coverage = np.zeros(n, np.uint8), np.zeros(n, np.float32)
    while len(order):
        taken, _ = rings.take(rows.x, rows.observed, rows.continuity, rows.asset, order, chunk, status, coverage)
        order = order[taken:]
