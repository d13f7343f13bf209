"""The smoother: rolling median and MAD of every asset, against sorting them out anew each time."""

from __future__ import annotations

import numpy as np

from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from pipeline.bundle import Calibration, SmootherSpec
from pipeline.errors import Unavailable
from pipeline.smooth import smooth, smoother_columns
from pipeline.state import AssetTable
from pipeline.values import NS_PER_S, Scores, Status

_TURNS = 37  # sets of errors, taken in turn


def medmad(trial: Trial) -> Result:
    """One error for each of 10,000 assets, all admitted, 128 remembered; against bottleneck on the same history.

    The smoother holds thresholds, admits and averages besides. Under `more` the default as well, which admits one error
    in a 128th of a day, and the largest difference of its median and MAD to numpy's.
    """
    try:
        import bottleneck
    except ModuleNotFoundError:
        raise Unavailable("bottleneck, the yardstick, is not installed: ./dev setup installs it") from None
    assets = trial.size(fleet.ASSETS, 50)
    each = SmootherSpec(span_ns=SmootherSpec().memory * NS_PER_S, ewma_span=15)
    tables = {"each": _table(each, assets), "default": _table(SmootherSpec(), assets)}
    start = np.abs(np.random.default_rng(1).standard_normal((1, each.memory), np.float32))
    one = np.ones(1, np.float32)
    calibration = Calibration((), 0 * one, one, start, 50 * one)
    pooled = np.zeros(assets, np.int32)
    errors = [np.random.default_rng(t).gamma(2.0, 0.5, assets).astype(np.float32) for t in range(_TURNS)]

    def push(name: str, spec: SmootherSpec, turn: int) -> None:
        smooth(_scores(errors[turn % _TURNS], turn), pooled, calibration, tables[name], spec)

    for turn in range(trial.size(each.memory, 2)):
        push("each", each, turn)
        push("default", SmootherSpec(), turn)
    history = tables["each"]["smoother_order"][:assets].copy()

    def anew(_: int) -> None:
        median = bottleneck.median(history, 1)
        bottleneck.median(np.abs(history - median[:, None]), 1)

    first = each.memory
    taken = trial.rounds(
        {
            "each": lambda i: push("each", each, first + i),
            "anew": anew,
            "default": lambda i: push("default", SmootherSpec(), first + i),
        }
    )
    return result(
        "smooth.medmad",
        [
            against("bottleneck median and MAD of the same history", taken["anew"] / taken["each"]),
            against("bottleneck, with the default of one error in 1/128 day", taken["anew"] / taken["default"]),
        ],
        {
            "updates_per_s": assets / float(np.median(taken["each"])),
            "off_numpy": _off_numpy(tables["each"], assets),
        },
    )


def _table(spec: SmootherSpec, assets: int) -> AssetTable:
    table = AssetTable(smoother_columns(spec))
    for name in fleet.asset_names(assets):
        table.code(name)
    return table


def _off_numpy(table: AssetTable, assets: int) -> float:
    history = table["smoother_order"][:assets].astype(np.float64)
    median = np.median(history, 1)
    mad = np.median(np.abs(history - median[:, None]), 1)
    off = np.abs(table["smoother_median"][:assets] - median), np.abs(table["smoother_mad"][:assets] - mad)
    return float(np.max(off))


def _scores(errors: np.ndarray, turn: int) -> Scores:
    n = len(errors)
    none = np.zeros((n, 1), np.float32)
    return Scores(
        partition=0,
        asset=np.arange(n, dtype=np.int32),
        ts_ns=np.full(n, NS_PER_S * turn, np.int64),
        offset=np.arange(n, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8),
        score=errors,
        by_channel=none,
        expected=none,
        actual=none,
        coverage=np.ones(n, np.float32),
        status=np.full(n, Status.CALIBRATED, np.uint8),
    )
