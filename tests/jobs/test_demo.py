"""What the demo promises: whatever the seed, it finds every fault and cries wolf at most once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_finds_all_faults_with_at_most_one_false_alarm(seed, tmp_path):
    command = [sys.executable, "-m", "jobs.cli", "demo", "--seed", str(seed), "--folder", str(tmp_path / "demo")]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    false_alarms, found = done.stdout.splitlines()[-2:]
    assert found == "5/5 faults found", done.stderr
    assert int(re.fullmatch(r"(\d+) false alarms", false_alarms)[1]) <= 1, done.stderr
    assert (tmp_path / "demo" / "report.html").is_file()
