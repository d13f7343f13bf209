import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import supervise
from jobs.console import Console
from jobs.settings import alone
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
WORKERS = """
import os, signal, sys, time
from jobs.console import Console
from jobs.supervise import Supervisor
from pipeline.errors import StateError

def work(slot):
    if slot == 1:
        raise StateError("a newer process holds the slot")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(drain(slot)))
    while True:
        time.sleep(0.01)

def drain(slot):
    os.write(1, f"slot {slot} drained\\n".encode())  # in one piece: several write to the same pipe

Supervisor(range(int(sys.argv[1]), int(sys.argv[2])), work, Console()).run()
"""


@pytest.fixture
def supervised():
    """Start supervisors; what is left of them is ended with the test."""
    started = []

    def start(first, end):
        command = [sys.executable, "-c", WORKERS, str(first), str(end)]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, **out, text=True, env=environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line_with(process, words):
    """Read what is told until a line has these words."""
    for line in process.stderr:
        if words in line:
            return line.strip()
    raise AssertionError(f"{words!r} was never told")


def pid_of(line):
    return int(line.rsplit(" ", 1)[1])


def test_a_worker_that_is_killed_is_started_again_at_once_and_the_others_stay(supervised):
    process = supervised(2, 4)
    first, other = (pid_of(line_with(process, f"slot {slot} runs as process")) for slot in (2, 3))
    os.kill(first, signal.SIGKILL)
    assert line_with(process, "slot 2, process") == f"slot 2, process {first}, was ended by signal 9"
    second = pid_of(line_with(process, "slot 2 runs as process"))
    assert second != first
    os.kill(other, 0)
    time.sleep(0.3)  # so that both have their own handler of SIGTERM
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert sorted(out.split("\n")) == ["", "slot 2 drained", "slot 3 drained"]


def test_a_worker_that_gives_up_says_why_and_is_started_again_after_longer_and_longer_pauses(supervised):
    process = supervised(1, 2)
    for _ in range(3):
        assert line_with(process, "midwatch: slot 1:") == "midwatch: slot 1: a newer process holds the slot"
        assert line_with(process, "ended with exit code 1")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_second_signal_ends_workers_that_do_not_drain(supervised):
    process = supervised(2, 3)
    worker = pid_of(line_with(process, "slot 2 runs as process"))
    os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_more_workers_than_slots_and_workers_on_a_file_are_refused():
    kafka = {"source.type": "kafka", "feed.channels": ["a"], "kafka.slots": 4}

    def settings(**flags):
        return lambda slot: alone({**flags, "kafka.slot": slot})

    with pytest.raises(ConfigError, match=r"kafka.slots = 4: must be at least 6 for slots 3 to 5"):
        supervise.run_workers(settings(**kafka), first=3, workers=3, console=Console())
    with pytest.raises(ConfigError, match=r"source\.type"):
        supervise.run_workers(settings(), first=0, workers=2, console=Console())


def test_what_is_loaded_before_the_fork_starts_no_thread_and_needs_no_champion(tmp_path):
    flags = {"source.type": "kafka", "feed.channels": ["a", "b"], "registry.root": str(tmp_path)}
    script = (
        "import threading\nfrom jobs.settings import alone\nfrom jobs.supervise import load_parts\n"
        f"load_parts(alone({flags!r}))\nprint(threading.active_count())"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=300)
    assert done.stdout == "1\n", done.stderr
