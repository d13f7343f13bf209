"""river 0.26.1: half-space trees behind a quantile filter, scored and learned row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from river import anomaly

from jobs.benches.peers.turns import take_turns

_CHANNELS, _ROWS = 32, 4096


def main() -> None:
    """Warm the model up, then take turns."""
    values = np.random.default_rng(0).random((_ROWS, _CHANNELS))
    rows = [{f"c{i:02d}": float(v) for i, v in enumerate(row)} for row in values]
    model: Any = anomaly.QuantileFilter(anomaly.HalfSpaceTrees(n_trees=25, seed=0), q=0.995)

    def run(i: int) -> None:
        row = rows[i % _ROWS]
        model.classify(model.score_one(row))
        model.learn_one(row)

    for i in range(512):
        run(i)
    take_turns({"trees": (run, 1)})


if __name__ == "__main__":
    main()
