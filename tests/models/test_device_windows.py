import numpy as np
import pytest
import torch
from naive_engine import make_bundle, make_rows

from models.device_members import DeviceMember
from models.device_windows import WindowsEngine
from models.engine import HostEngine
from models.profiles import Profile
from pipeline.bundle import MemberSpec
from pipeline.errors import Unavailable

torch.set_num_threads(1)

MEMBERS = [MemberSpec("pca", 4), MemberSpec("dense", 3, error="window"), MemberSpec("pca", 5, error="window")]


def pushed(engine, rows):
    slots = engine.allocate(["a0", "a1", "a2"])
    return engine.push([(rows, slots[rows.asset])])[0]


def test_windows_that_cross_to_a_device_score_the_same():
    """The path of CUDA with CPU tensors in its place: windows and results are copies, not views."""
    bundle, rows = make_bundle(MEMBERS, groups=2), make_rows(700, 5, assets=3, missing=0.05)
    got, want = (pushed(engine, rows) for engine in (WindowsEngine(bundle, Profile("cpu")), HostEngine(bundle)))
    np.testing.assert_array_equal(got.status, want.status)
    np.testing.assert_allclose(got.score, want.score, rtol=1e-5)
    np.testing.assert_allclose(got.by_channel, want.by_channel, atol=1e-5)
    np.testing.assert_allclose(got.expected, want.expected, rtol=1e-5, atol=1e-5)


def test_a_device_that_fails_is_reported_as_unavailable(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    engine = WindowsEngine(make_bundle(MEMBERS), Profile("cpu"))
    monkeypatch.setattr(DeviceMember, "compare", full)
    with pytest.raises(Unavailable, match="device cpu failed"):
        pushed(engine, make_rows(20, 5, assets=3))
