"""pysad 0.7.0: LODA and half-space trees with a running mean, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pysad.models import LODA, HalfSpaceTrees
from pysad.transform.postprocessing import RunningAveragePostprocessor

from jobs.benches.peers.turns import Contestants, take_turns

_CHANNELS, _ROWS = 32, 4096


def main() -> None:
    """Warm both models up, then take turns."""
    rows = np.random.default_rng(0).random((_ROWS, _CHANNELS))
    trees = HalfSpaceTrees(feature_mins=np.zeros(_CHANNELS), feature_maxes=np.ones(_CHANNELS))
    contestants: Contestants = {"loda": (_scored(LODA(), rows), 1), "trees": (_scored(trees, rows), 1)}
    for run, _ in contestants.values():
        for i in range(256):
            run(i)
    take_turns(contestants)


def _scored(model: Any, rows: np.ndarray) -> Callable[[int], object]:
    mean = RunningAveragePostprocessor(window_size=15)
    return lambda i: mean.fit_transform_partial(model.fit_score_partial(rows[i % _ROWS]))


if __name__ == "__main__":
    main()
