"""Several processes write one history: a partition moves from one to another, and its records are there once."""

import fcntl
import os
import subprocess
import sys
from contextlib import closing

import pytest
from io_cases import a_push

from connectors.durable import GrowingFile
from connectors.history import ParquetHistory
from connectors.history_views import open_history
from pipeline.errors import InUse, SinkUnavailable

CHANNELS = ("temp", "vib_x", "vib_y")
OTHER = """
import sys
from pathlib import Path
from test_history_handover import a_history, push
history = a_history(Path(sys.argv[1]))
for line in sys.stdin:
    command, *numbers = line.split()
    if command == "push":
        push(history, *map(int, numbers))
    else:
        getattr(history, command)("t", *map(int, numbers))
    print("done", flush=True)
"""


def a_history(root):
    return ParquetHistory(root, "north", CHANNELS, offsets_per_file=16)


def push(history, partition, first, after):
    rows, verdicts = a_push(range(first, after), partition=partition)
    history.append("t", partition, ("a0", "a1"), [rows], [verdicts], [], (first, after))


class Other:
    """A history in another process, which does what it is told."""

    def __init__(self, root):
        path = os.pathsep.join([*sys.path, os.path.dirname(__file__)])  # noqa: PTH120 - as PYTHONPATH wants it
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def does(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self):
        """Kill it: nothing is closed in an orderly way."""
        self._process.kill()
        self._process.communicate()


def offsets(root, name):
    found = open_history(root).execute(f'SELECT partition, "offset" FROM {name} ORDER BY ALL').fetchall()
    return [tuple(one) for one in found]


def test_a_partition_moves_to_another_process_and_back_and_its_records_are_there_once(tmp_path):
    with closing(a_history(tmp_path)) as mine, closing(Other(tmp_path)) as other:
        for push_of in ("push 0 0 10", "push 0 10 20", "push 1 0 8"):
            other.does(push_of)
        with pytest.raises(InUse, match=r"00000\.journal is in use by another process"):
            mine.take("t", 0)
        other.does("drop 0")
        mine.take("t", 0)
        push(mine, 0, 10, 40)  # what the other one pushed last was never committed
        mine.drop("t", 0)
        other.does("take 0")
        with pytest.raises(SinkUnavailable, match="in use"):
            push(mine, 0, 40, 50)
        other.does("push 0 40 44")
        other.close()
        mine.take("t", 0)
        push(mine, 0, 44, 50)
        mine.take("t", 1)
    for name in ("rows", "scores"):
        assert offsets(tmp_path, name) == [(0, at) for at in range(50)] + [(1, at) for at in range(8)]
    assert not list(tmp_path.rglob("*.journal"))


def test_a_flush_publishes_what_a_dead_process_left_and_leaves_it_to_the_next_owner(tmp_path):
    with closing(a_history(tmp_path)) as mine:
        with closing(Other(tmp_path)) as dead:
            dead.does("push 0 0 10")
        mine.flush()
        assert offsets(tmp_path, "rows") == [(0, at) for at in range(10)]
        with closing(Other(tmp_path)) as restarted:
            restarted.does("push 0 5 20")
            mine.flush()
            restarted.does("push 0 20 30")
    mine.flush()
    assert offsets(tmp_path, "rows") == [(0, at) for at in range(30)]


def test_what_keeps_another_process_from_a_partition_for_long_is_told_once(tmp_path, caplog):
    with closing(a_history(tmp_path)) as mine, closing(Other(tmp_path)) as other:
        other.does("take 0")
        for _ in range(200):
            with pytest.raises(InUse):
                mine.take("t", 0)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("t[0] waits: ")


@pytest.mark.parametrize("change", ["unlinked", "replaced"])
def test_a_file_that_loses_its_name_while_it_is_opened_is_not_taken_for_the_one_that_has_it(
    tmp_path, monkeypatch, change
):
    path, lockf = tmp_path / "journal", fcntl.lockf

    def late(fd, how):
        path.unlink()
        if change == "replaced":
            path.write_bytes(b"the new one")
        lockf(fd, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    with pytest.raises(InUse):
        GrowingFile(path)
