"""Ours and a peer's work in turn, each in its own process: what the ratios to other libraries are.

A peer has an environment of its own, because what it pins does not go with what we use. Environments lie side by side
in one folder, are named as `PEERS` names them, and are made where they are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benches import fleet
from jobs.benches.measure import Ratio, Trial, against, each
from models.profiles import Profile
from pipeline.errors import Unavailable
from pipeline.values import Float64

_SHOWN = 400  # characters of what a peer said last


@dataclass(frozen=True, slots=True)
class Peer:
    """A library, the module that drives it, and what its environment needs."""

    module: str
    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison: a contestant of a peer, and what its seconds for a row to ours must and should be.

    `quantile`: of the single calls; None: their mean.
    """

    peer: str
    contestant: str
    what: str
    must: float | None = None
    goal: float | None = None
    quantile: float | None = None


PEERS: Mapping[str, Peer] = {
    "numalogic": Peer(
        "numalogic_udfs",
        (
            "numalogic[numaflow]==0.13.2",
            "numpy<2",
            "torch",
            "pytorch-lightning",
            "fakeredis",
            "orjson",
            "setuptools<81",
        ),
    ),
    "river": Peer("river_trees", ("river==0.26.1",)),
    "pysad": Peer("pysad_loda", ("pysad==0.7.0",)),
    "pyod": Peer("pyod_windows", ("pyod==3.6.7", "torch", "tqdm")),
    "continual": Peer("continual_encoder", ("continual-inference==1.2.4", "torch", "numpy")),
}

# By bench: what it is compared with besides its yardstick. river, pysad and pyod score by other methods (and river
# and pysad learn as they go, row by row): those ratios say what a user gets per core, not that the same is found.
PAIRS: Mapping[str, Sequence[Pair]] = {
    "e2e.json.dense": (
        Pair("numalogic", "chain", "numalogic 0.13.2, UDF chain", 100, 150),
        Pair("numalogic", "predict", "numalogic 0.13.2, Trainer.predict by 64", 1.4, 1.8),
        Pair("pyod", "autoencoder", "pyod 3.6.7 AutoEncoder by 1,024"),
    ),
    "e2e.json.conv": (
        Pair("numalogic", "conv_predict", "numalogic 0.13.2, convolutional, Trainer.predict by 64", 2, 3),
        Pair("numalogic", "conv_compute", "numalogic 0.13.2, convolutional, UDF compute", 25, 35),
    ),
    "e2e.json.int8": (
        Pair("numalogic", "chain", "numalogic 0.13.2, UDF chain", 220, 320),
        Pair("numalogic", "predict", "numalogic 0.13.2, Trainer.predict by 64", 3, 4.5),
        Pair("river", "trees", "river 0.26.1 HalfSpaceTrees + QuantileFilter", 5, 8),
    ),
    "e2e.latency": (
        Pair("numalogic", "chain", "numalogic 0.13.2, UDF chain, p50", 15, 35, 0.5),
        Pair("numalogic", "chain", "numalogic 0.13.2, UDF chain, p99", 12, 25, 0.99),
    ),
    "e2e.default": (
        Pair("river", "trees", "river 0.26.1 HalfSpaceTrees + QuantileFilter"),
        Pair("pysad", "loda", "pysad 0.7.0 LODA"),
        Pair("pysad", "trees", "pysad 0.7.0 HalfSpaceTrees"),
        Pair("pyod", "pca", "pyod 3.6.7 PCA by 1,024"),
    ),
    "stream.conv": (Pair("continual", "encoder", "continual-inference 1.2.4, the encoder of either alone", 4, 8),),
}

Ours = tuple[Callable[[int], object], int]  # what to call, with the number of the call, and how many rows it scores


def _watched(trial: Trial, **arguments: Any) -> Ours:
    """Return pushes of a watch; the arguments are those of `jobs.benches.e2e.watch`."""
    from jobs.benches.e2e import watch

    w = watch(trial=trial, **arguments)
    return w.push, len(w.polls[0])


def _streamed(trial: Trial) -> Ours:
    from jobs.benches.streaming import encoder

    return encoder(trial)


# What of ours the pairs of a bench are held against.
_OURS: Mapping[str, Callable[[Trial], Ours]] = {
    "e2e.json.dense": partial(_watched, members=(fleet.DENSE,)),
    "e2e.json.conv": partial(_watched, members=(fleet.CONV,)),
    "e2e.json.int8": partial(_watched, members=(fleet.DENSE,), profile=Profile("cpu", "int8")),
    "e2e.latency": partial(
        _watched, members=(fleet.DENSE,), profile=Profile(priority="latency"), polls=20_000, batch=1
    ),
    "e2e.default": partial(_watched, members=fleet.DEFAULT, steady=True),
    "stream.conv": _streamed,
}


def compare(name: str, folder: Path, trial: Trial) -> list[dict[str, Any]]:
    """Return the ratios of a bench to its peers, as `more` has them; none where it has no peer.

    Raises
    ------
    Unavailable : a peer's environment cannot be made, or the peer does not run in it.
    """
    pairs = PAIRS.get(name, ())
    return _measured(name, pairs, folder, trial) if pairs else []


def _measured(name: str, pairs: Sequence[Pair], folder: Path, trial: Trial) -> list[dict[str, Any]]:
    """Take turns: ours, then each peer's contestant; the first round warms up."""
    taken: dict[Pair, list[float]] = {pair: [] for pair in pairs}
    with ExitStack() as stack:
        ask = {peer: stack.enter_context(_standing_by(peer, folder)) for peer in dict.fromkeys(p.peer for p in pairs)}
        run, rows = _OURS[name](trial)
        calls = 0
        for turn in range(trial.count + 1):
            ours = each(run, calls, trial.least_s)
            calls += len(ours)
            ours /= rows
            for pair in pairs:
                theirs = ask[pair.peer](pair.contestant, trial.least_s)
                if turn:
                    taken[pair].append(_of(theirs, pair) / _of(ours, pair))
    return [entry for pair in pairs for entry in _entries(pair, against(pair.what, np.array(taken[pair])))]


def _of(seconds: Float64, pair: Pair) -> float:
    return float(np.mean(seconds) if pair.quantile is None else np.quantile(seconds, pair.quantile))


def _entries(pair: Pair, line: Ratio) -> list[dict[str, Any]]:
    levels = {key: value for key, value in (("must", pair.must), ("goal", pair.goal)) if value is not None}
    return [{"name": f"to {line.yardstick}", "ratio": line.ratio, "low": line.low, "high": line.high, **levels}]


@contextmanager
def _standing_by(name: str, folder: Path) -> Iterator[Callable[[str, float], Float64]]:
    """Start a peer; yield a function that has it run a contestant and returns its CPU seconds per row, call by call.

    Raises
    ------
    Unavailable : it does not start, or ends on the way.
    """
    command = [str(_environment(name, folder)), "-m", f"jobs.benches.peers.{PEERS[name].module}"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile(mode="w+") as said:
        pipes["stderr"] = said
        child = subprocess.Popen(command, env=environment, text=True, **pipes)  # noqa: S603

        def answer() -> Any:
            line = child.stdout.readline() if child.stdout else ""
            if not line:
                child.wait()
                said.seek(0)
                raise Unavailable(f"peer {name} ended with {child.returncode}: {said.read()[-_SHOWN:]}")
            return json.loads(line)

        def ask(contestant: str, least_s: float) -> Float64:
            assert child.stdin is not None
            child.stdin.write(json.dumps({"name": contestant, "least_s": least_s}) + "\n")
            child.stdin.flush()
            return np.array(answer(), np.float64)

        try:
            answer()  # it is ready
            yield ask
        finally:
            child.kill()
            child.communicate()


def _environment(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment; make it where there is none.

    Raises
    ------
    Unavailable : it cannot be made.
    """
    home = folder / name
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return python
    uv = shutil.which("uv")
    install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    if not python.exists():
        venv.create(home, with_pip=uv is None)
    done = subprocess.run([*install, "--quiet", *PEERS[name].requirements], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise Unavailable(f"the environment of {name} cannot be made: {done.stderr[-_SHOWN:]}")
    (home / "ready").touch()
    return python
