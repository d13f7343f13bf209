import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import failpoints
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
COMMITS = """
import os
from jobs import failpoints
at_step = failpoints.read(os.environ)
for commit in range(100):
    for step in ("after_produce", "after_send_offsets", "after_commit"):
        print(commit, step, flush=True)
        at_step(step)
"""


def steps_until_death(points):
    environ = os.environ | {failpoints.VARIABLE: points, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", COMMITS], env=environ, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout.splitlines()


def test_a_worker_kills_itself_at_its_failpoint():
    code, steps = steps_until_death("after_send_offsets:1")
    assert code == -signal.SIGKILL
    assert steps == ["0 after_produce", "0 after_send_offsets"]


def test_a_failpoint_is_drawn_anew_at_every_commit_and_the_same_with_the_same_seed():
    code, steps = steps_until_death("elsewhere:1,after_commit:0.1:7")
    assert code == -signal.SIGKILL
    assert steps[-1].endswith("after_commit")
    assert len(steps) > 3
    assert steps_until_death("after_commit:0.1:7") == (code, steps)


def test_without_the_variable_nothing_happens_at_any_step():
    code, steps = steps_until_death("")
    assert code == 0
    assert len(steps) == 300


@pytest.mark.parametrize("text", ["after_commit", "after_commit:often", "after_commit:2", ":0.5", "a:0.1,b"])
def test_a_failpoint_that_is_not_step_and_probability_is_an_error(text):
    with pytest.raises(ConfigError, match="step:probability"):
        failpoints.read({failpoints.VARIABLE: text})
