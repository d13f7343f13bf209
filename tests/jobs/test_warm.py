"""Tests for `jobs.warm`: once it has run, nobody waits for a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def called(*arguments: str, cache: Path) -> str:
    """Run a module as a program; return its standard output."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_after_warming_a_demo_compiles_nothing(tmp_path):
    cache = tmp_path / "cache"
    called("jobs.warm", cache=cache)
    compiled = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    assert len(compiled) > 100
    told = called("jobs.cli", "demo", "--folder", str(tmp_path / "demo"), cache=cache)
    assert told.endswith("\n5/5 faults found\n")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == compiled
