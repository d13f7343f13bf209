"""The watch that chaos is done to: `midwatch run` as anybody starts it, its processes told from what it says.

Only processes started here, and those that they say they started, are ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STARTED = re.compile(rb"^slot (\d+) runs as process (\d+)$")
_ENDED = re.compile(rb"^slot (\d+), process (\d+), (?:was ended by signal|ended with exit code) (\d+)$")
_KILLED = re.compile(rb"was ended by signal 9$")
_PROGRAM = (sys.executable, "-c", "from jobs.cli import main; main()")
_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that was killed: in which slot, and when (monotonic, s)."""

    slot: int
    at: float


def watch_command(config: Path, *arguments: str) -> list[str]:
    """Return the command line of `midwatch run` in this very installation."""
    return [*_PROGRAM, "run", "-c", str(config), *arguments]


@dataclass(slots=True)
class Workers:
    """One `midwatch run`, or another program that tells of its workers in the same words.

    Attributes
    ----------
    command : with its arguments.
    log : file that what it says on standard error is added to, each line with the time (monotonic, s).
    environ : over this process's environment.
    deaths : of workers by SIGKILL, whoever sent it.
    given_up : workers that ended by themselves with an error, which some faults are meant to lead to.
    """

    command: Sequence[str]
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    deaths: list[Death] = field(default_factory=list)
    given_up: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _running: dict[int, int] = field(default_factory=dict)  # slot -> process
    _reader: threading.Thread | None = None

    def start(self) -> None:
        """Start it."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **self.environ}
        # In a session of its own, so that an interrupt at the terminal does not reach it.
        self._process = subprocess.Popen(  # noqa: S603
            self.command, stderr=subprocess.PIPE, env=environ, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    @property
    def slots(self) -> Sequence[int]:
        """The slots that have a process now."""
        return sorted(self._running)

    @property
    def alive(self) -> bool:
        """Whether the program that was started still runs."""
        return self._process is not None and self._process.poll() is None

    def send(self, slot: int, number: signal.Signals) -> int:
        """Signal the worker of a slot; return its process id, 0 if there is none now."""
        pid = self._running.get(slot, 0)
        if pid:
            self.send_to(pid, number)
        return pid

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """Signal a worker that `send` named before, if it still is one."""
        if pid in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> int:
        """Ask it to end and wait; return its exit code. What does not end in time is killed."""
        if self._process is None or self._reader is None:
            return 0
        for pid in list(self._running.values()):
            self.send_to(pid, signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(_DRAIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join()
        return self._process.wait()

    def kill(self) -> None:
        """End all of it at once."""
        for pid in list(self._running.values()):
            self.send_to(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.kill()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep what the program says, and learn from it which process is in which slot."""
        stream = process.stderr
        with self.log.open("ab") as log:
            for line in stream or ():
                log.write(b"%.2f " % time.monotonic() + line)
                log.flush()
                self._learn(line.rstrip())

    def _learn(self, line: bytes) -> None:
        if started := _STARTED.match(line):
            self._running[int(started[1])] = int(started[2])
        elif ended := _ENDED.match(line):
            slot = int(ended[1])
            self._running.pop(slot, None)
            if _KILLED.search(line):
                self.deaths.append(Death(slot, time.monotonic()))
            elif ended[3] != b"0":
                self.given_up += 1
