"""What a start costs, from the command line to the first score, the whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from models.registry import Registry

_ROWS = 40  # of one asset: the longest window of the default recipe has 32
_MIDWATCH = ("-c", "from jobs.cli import main; main()")


class _Cost(NamedTuple):
    """What a process took until it ended."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def cold(trial: Trial) -> Result:
    """`midwatch score` of a file of 40 rows with the default recipe, in CPU seconds, against `import torch`.

    Kernels are on disk already, as after the first start on a machine; `first_start_s` under `more` is one that has to
    compile them. `help_s` is the wall time of `midwatch --help`.
    """
    with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as name:
        folder = Path(name)
        _prepare(folder)
        command = (*_MIDWATCH, "score", "readings.ndjson", "--quiet")
        torch_only = ("-c", "import torch")
        if not trial.quick:
            _run(command, folder)
            _run(torch_only, folder)
        ours, theirs, helps = [], [], []
        for _ in range(trial.count):
            ours.append(_run(command, folder))
            theirs.append(_run(torch_only, folder))
            helps.append(_run((*_MIDWATCH, "--help"), folder))
        figures = {
            "cpu_s": _median(ours, "cpu_s"),
            "wall_s": _median(ours, "wall_s"),
            "peak_mib": _median(ours, "peak_mib"),
            "help_s": _median(helps, "wall_s"),
            "help_cpu_s": _median(helps, "cpu_s"),
        }
        if not trial.quick:
            figures["first_start_s"] = _run(command, folder, {"NUMBA_CACHE_DIR": str(folder / "kernels")}).wall_s
    return result(
        "cold.start",
        [
            against("import torch, CPU seconds", _each(ours, "cpu_s") / _each(theirs, "cpu_s")),
            against("import torch, peak memory", _each(ours, "peak_mib") / _each(theirs, "peak_mib")),
        ],
        figures,
        "lower",
    )


def _prepare(folder: Path) -> None:
    """Write a configuration, a champion and a file to score."""
    registry = Registry(folder / "models")
    registry.promote(registry.add(fleet.bundle(fleet.DEFAULT), 0).id, "bench", 0)
    lines = [
        'feed = { name = "bench", channels = ' + json.dumps(fleet.CHANNEL_NAMES) + " }",
        'mapping = { values = "values" }',
        'registry = { root = "models" }',
    ]
    (folder / "midwatch.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = np.random.default_rng(0).normal(size=(_ROWS, fleet.CHANNELS)).round(4)
    found = fleet.messages(np.zeros(_ROWS, np.int64), 0, values).value
    (folder / "readings.ndjson").write_bytes(b"\n".join(line for line in found if line is not None) + b"\n")


def _run(arguments: Sequence[str], folder: Path, more: dict[str, str] | None = None) -> _Cost:
    """Run Python with these arguments in a folder; return what the process cost.

    Raises
    ------
    ChildProcessError : it failed; its standard error is passed on.
    """
    start = time.perf_counter()
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(more or {})}
    child = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise ChildProcessError(f"{' '.join(arguments)} ended with {child.returncode}")
    return _Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024)


def _each(costs: Sequence[_Cost], name: str) -> np.ndarray:
    return np.array([getattr(cost, name) for cost in costs])


def _median(costs: Sequence[_Cost], name: str) -> float:
    return float(np.median(_each(costs, name)))
