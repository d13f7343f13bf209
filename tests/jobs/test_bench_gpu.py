"""The benches of a GPU, run on the CPU so that no line of them is new to the machine that has one."""

import math

import pytest

from jobs.bench import bench
from jobs.benches import gpu
from jobs.benches.catalogue import BENCHES
from jobs.benches.measure import Trial
from jobs.console import Console
from models.profiles import Profile
from pipeline.errors import Unavailable

NAMES = [name for name in BENCHES if name.startswith("gpu.")]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_whatever_the_device(name, monkeypatch):
    monkeypatch.setattr(gpu, "cuda", lambda precision: Profile("cpu", precision))
    (result,) = bench([name], Trial(quick=True), Console(as_json=True))
    assert result.name == name
    assert 0 < result.low <= result.ratio <= result.high < math.inf
    assert result.better == ("lower" if name == "gpu.latency" else "higher")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="no CUDA device"):
        bench([NAMES[0]], Trial(quick=True), Console(as_json=True))
