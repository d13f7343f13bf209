"""`python -m jobs.warm`: let numba compile what training and the watch call, so that no first run waits for it.

A kernel is compiled where it is first called, and kept in numba's cache: `NUMBA_CACHE_DIR`, or beside the source. So
they are called here the way they always are: a model of made-up pumps is trained for one step, and scores a little.
"""

from __future__ import annotations

import json
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from jobs import build
from jobs.console import Console
from jobs.settings import alone
from jobs.simulate import CHANNELS, simulate, write_parquet
from jobs.supervise import load_parts

_PUMPS: Final = 2
_ROWS: Final = 1500  # of each: enough for every part of a training
_PERIOD_S: Final = 20.0


def warm(folder: Path) -> None:
    """Compile the kernels in two processes; `folder` holds what is trained meanwhile."""
    settings = alone(
        {
            "feed.name": "pumps",
            "feed.period_s": _PERIOD_S,
            "feed.channels": json.dumps(CHANNELS),
            "mapping.asset": "asset",
            "mapping.time": "ts",
            "mapping.time_unit": "ns",
            "train.steps": 1,
            "train.per_group": "fleet",
            "registry.root": str(folder / "models"),
            "run.device": "cpu",
        },
    )
    # The scanner of JSON is a third of the work. This process forks before it has threads.
    reading = get_context("fork").Process(target=load_parts, args=(settings,))
    reading.start()

    from jobs.train import fit_candidate, read_files

    console = Console(quiet=True)
    write_parquet(folder / "normal.parquet", simulate(_PUMPS, _ROWS, _PERIOD_S, 0, 0), _ROWS)
    series, told = read_files(settings, [folder / "normal.parquet"], console)
    registry = build.registry(settings)
    registry.promote(registry.add(fit_candidate(settings, series, (), told, console).bundle, 0).id, "the only one", 0)
    reading.join()
    if reading.exitcode:
        raise SystemExit(f"the process that compiles the scanner ended with {reading.exitcode}")
    load_parts(settings)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        warm(Path(made))
