"""Serving on the CPU starts without torch, which takes a second and hundreds of megabytes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from naive_stream import stream_member

from jobs.benches import fleet
from models.registry import Registry
from pipeline.bundle import MemberSpec

ROOT = Path(__file__).parents[2]
WINDOWED = [MemberSpec("pca", 4, params={"rank": 3}), MemberSpec("dense", 4), MemberSpec("conv", 4)]
NOT_SERVING = {"torch", "duckdb", "river", "kafka", "confluent_kafka"}


@pytest.fixture
def feed(tmp_path):
    """Return a function that writes a configuration, a champion of these members and 40 rows, and says where."""

    def made(members):
        bundle = fleet.bundle(members)
        on_cpu = {name: found for name, found in bundle.calibrations.items() if name.startswith("cpu")}
        registry = Registry(tmp_path / "models")
        registry.promote(registry.add(replace(bundle, calibrations=on_cpu), 0).id, "test", 0)
        lines = [
            'feed = { name = "test", channels = ' + json.dumps(fleet.CHANNEL_NAMES) + " }",
            'mapping = { values = "values" }',
            'registry = { root = "models" }',
            'source = { type = "file", path = "readings.ndjson" }',
        ]
        (tmp_path / "midwatch.toml").write_text("\n".join(lines))
        values = np.random.default_rng(0).normal(size=(40, fleet.CHANNELS)).round(4)
        (tmp_path / "readings.ndjson").write_bytes(b"\n".join(fleet.messages(np.zeros(40, np.int64), 0, values).value))
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("members", "arguments"),
    [
        (WINDOWED, ("score", "readings.ndjson", "--json")),
        (WINDOWED, ("score", "readings.ndjson", "-s", "run.precision=int8")),
        (WINDOWED, ("score", "readings.ndjson", "-s", "run.priority=latency")),
        ([stream_member((5, 5), (2, 2))], ("score", "readings.ndjson", "-s", "align.mode=grid")),
        (WINDOWED, ("replay", "readings.ndjson")),
        (WINDOWED, ("run",)),
    ],
    ids=str,
)
def test_scoring_a_file_on_the_cpu_imports_no_torch(feed, members, arguments):
    code = f"import atexit, sys, jobs.cli; unwanted = {NOT_SERVING!r}\n"
    code += "atexit.register(lambda: print(sorted(unwanted & set(sys.modules)), 'models.engine' in sys.modules))\n"
    code += f"sys.argv = ['midwatch', *{arguments!r}]; jobs.cli.main()"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=feed(members), env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True"
