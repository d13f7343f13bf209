"""Scores and calibrations to try the stages right of the engine with."""

from __future__ import annotations

import numpy as np

from pipeline.bundle import Calibration
from pipeline.values import Scores


def scores_of(asset, ts_ns, score, continuity=None, channels=1):
    n = len(ts_ns)
    empty = np.zeros((n, channels), np.float32)
    return Scores(
        partition=0,
        asset=np.broadcast_to(np.array(asset, np.int32), n).copy(),
        ts_ns=np.array(ts_ns, np.int64),
        offset=np.arange(n, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8) if continuity is None else np.array(continuity, np.uint8),
        score=np.array(score, np.float32),
        by_channel=empty,
        expected=empty,
        actual=empty,
        coverage=np.ones(n, np.float32),
        status=np.full(n, 2, np.uint8),
    )


def calibration_of(start, median=(0.0,), mad=(1.0,), threshold=(1.0,)):
    start = np.array(start, np.float32)
    return Calibration(
        assets=tuple(f"a{k}" for k in range(1, len(start))),
        median=np.array(median, np.float32),
        mad=np.array(mad, np.float32),
        start=start,
        threshold=np.array(threshold, np.float32),
    )
