"""`midwatch run --workers n`: the workers of one machine, each a process, and each started again when it ends.

Loading Python's modules and the kernels takes seconds, in which a dead worker's partitions would wait. So this process
loads them once and forks a worker wherever one is missing. It opens no connection and no device and starts no thread
of its own, which is what makes forking it safe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Final

import numpy as np

from jobs import build, exits
from jobs.config import specs
from pipeline.chain import Chain
from pipeline.errors import ConfigError, PipelineError
from pipeline.mapping import FieldMapping
from pipeline.values import Polled

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

_LOOK_S: Final = 0.02
_DRAIN_S: Final = 10.0  # what a worker may take to commit what it has, after SIGTERM
_PAUSES_S: Final = (0.0, 0.2, 1.0, 5.0)  # before a start, by how often in a row the worker gave up by itself
_ROWS_TO_LOAD: Final = 256  # more than a window: enough that every kernel was called
_SETTLED_S: Final = 30.0  # a worker that lived longer than this begins with no pause again


class Supervisor:
    """Keeps one process running for each of its slots, until it is told to stop.

    Parameters
    ----------
    slots : the workers' numbers.
    work : what a worker does, given its slot; called in a process of its own.
    console : where every start and end is told.
    """

    def __init__(self, slots: range, work: Callable[[int], None], console: Console) -> None:
        self._work, self._console = work, console
        self._running: dict[int, int] = {}  # process -> slot
        self._failures = dict.fromkeys(slots, 0)
        self._due = dict.fromkeys(slots, 0.0)  # slot that has no process -> when it gets one
        self._began: dict[int, float] = {}
        self._signals = 0

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, which the workers get too; a second one ends them at once."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._signals:
                self._start_due()
                self._reap()
                time.sleep(_LOOK_S)
            self._drain()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self._signals += 1

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in [slot for slot, due in self._due.items() if due <= now]:
            del self._due[slot]
            pid = self._fork(slot)
            self._running[pid], self._began[slot] = slot, now
            self._console.say(f"slot {slot} runs as process {pid}")

    def _reap(self) -> None:
        """Note the ends of workers. One that was killed is replaced at once, one that gave up after a pause."""
        for pid in list(self._running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            slot, code = self._running.pop(pid), os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if code <= 0 or now - self._began[slot] > _SETTLED_S:
                self._failures[slot] = 0
            pause = _PAUSES_S[min(self._failures[slot], len(_PAUSES_S) - 1)]
            self._failures[slot] += code > 0
            self._due[slot] = now + pause
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._console.say(f"slot {slot}, process {pid}, {how}")

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_S
        self._send(signal.SIGTERM)
        while self._running:
            self._reap()
            if self._signals > 1 or time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(_LOOK_S)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._running:
            os.kill(pid, number)  # ours until it is waited for

    def _fork(self, slot: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = exits.FAILED
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            self._work(slot)
            code = exits.OK
        except PipelineError as error:
            self._console.warn(f"midwatch: slot {slot}: {error}")
            code = exits.exit_code(error)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def run_workers(settings: Callable[[int], Settings], first: int, workers: int, console: Console) -> None:
    """Run the watch in the slots `first` to `first + workers - 1` until told to stop.

    Parameters
    ----------
    settings : slot -> the settings of its worker.

    Raises
    ------
    ConfigError : there are not so many slots, or the source is a file, which only one worker can read.
    """
    own = settings(first)
    if own.source.type != "kafka":
        raise ConfigError("source.type", own.source.type, "several workers share a feed by its partitions: use kafka")
    if first + workers > own.kafka.slots:
        fix = f"must be at least {first + workers} for slots {first} to {first + workers - 1}, and the same everywhere"
        raise ConfigError("kafka.slots", own.kafka.slots, fix)
    load_parts(own)

    from jobs.run import run

    def work(slot: int) -> None:
        run(settings(slot), console)

    Supervisor(range(first, first + workers), work, console).run()


def load_parts(settings: Settings) -> None:
    """Import what a worker needs and score a little with the champion, so that forks find everything loaded.

    Nothing is opened that a fork could not take along: no connection, no history, no GPU.
    """
    library = "python" if settings.kafka.client == "kafka-python" else "confluent"
    for name in (f"kafka_via_{library}", "kafka_commit", "kafka_source", "kafka_group_source", "history"):
        import_module(f"connectors.{name}")
    spec = specs.chain_spec(settings, "json")
    channels = spec.mapping.channels
    chain = Chain(replace(spec, mapping=FieldMapping(channels)), journal=True)
    with suppress(PipelineError):  # what is wrong with the champion is told by the workers
        bundle = build.champion(settings)
        if bundle is not None:
            on_cpu = settings.run.model_copy(update={"device": "cpu"})
            chain.serve(bundle, build.engine_of(bundle, settings.model_copy(update={"run": on_cpu})))
    n, period = _ROWS_TO_LOAD, spec.align.period_ns
    # Every third row lacks its last channel: windows with holes are scored by kernels of their own.
    kept = [channels[: len(channels) - (i % 3 == 0)] for i in range(n)]
    rows = [{"asset": "a", "ts": i * period} | dict.fromkeys(kept[i], i % 7) for i in range(n)]
    chain.push([Polled("", 0, np.arange(n), np.zeros(n, np.int64), [json.dumps(row).encode() for row in rows])])
    chain.take_states({("", 0): (2, 0)})
