import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from modules import convolutions_of

from models.autoencoders import build_module
from models.engine_buffers import Workspace
from models.engine_conv import DirectConv
from models.profiles import FALLBACK
from models.vector_tiles import FUSED
from pipeline.bundle import MemberSpec

torch.set_num_threads(1)

CASES = [  # window, channels, hidden, kernels, strides
    (16, 16, (16,), (7, 5), (2, 2)),
    (6, 5, (7,), (7, 5), (2, 2)),
    (13, 3, (8, 9), (3, 5, 7), (1, 2, 3)),
    (9, 1, (4,), (5, 3), (3, 1)),
    (7, 2, (4,), (5, 9), (2, 4)),
    (3, 2, (4,), (9, 5), (4, 3)),  # steps that look at nothing of a window but what is before it
    (11, 19, (48, 70), (3, 5, 3), (1, 2, 3)),  # vectors of outputs by twos, and one more
    (40, 33, (32,), (7, 5), (2, 2)),
]


def member_of(window, channels, hidden, kernels, strides, last=None):
    params = {"hidden": hidden, "latent": 3, "kernels": kernels, "strides": strides}
    torch.manual_seed(0)
    module = build_module(MemberSpec("conv", window, params=params), channels).eval()
    return module, DirectConv(convolutions_of(module), last or window * channels, Workspace(FALLBACK))


def normal(rows, columns):
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [1, 4, 7, 8, 25, 32, 64])
def test_it_reconstructs_what_the_module_does(case, n):
    window, channels = case[:2]
    module, member = member_of(*case)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(n, window, channels)).astype(np.float32))
    with torch.inference_mode():
        want = module(x, torch.ones_like(x)).flatten(1)
        for _ in range(2):  # what the first call left behind is not read
            np.testing.assert_allclose(member.expect(x.flatten(1).numpy()), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [1, 8, 30])
def test_only_the_last_readings_are_given_where_no_others_are_asked_for(case, n):
    readings = case[0] * case[1]
    x = normal(n, readings)
    whole = member_of(*case)[1].expect(x).copy()
    for last in (1, case[1], readings // 2 + 1, readings):
        found = member_of(*case, last=last)[1].expect(x)
        assert found.tobytes() == whole[:, -last:].tobytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_how_many_windows_there_are_and_where_one_stands_changes_no_bit(case):
    _, member = member_of(*case)
    x = normal(61, case[0] * case[1])
    want = member.expect(x).copy()
    for n in (1, 2, 5, 24, 25, 60):
        order = np.random.default_rng(n).permutation(61)[:n]
        assert member.expect(x[order]).tobytes() == want[order].tobytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_window_with_a_value_that_is_not_finite_spoils_itself_alone(case):
    module, member = member_of(*case)
    x = normal(26, case[0] * case[1])
    want = member.expect(x).copy()
    x[3], x[25] = np.nan, np.inf
    with torch.inference_mode():
        windows = torch.from_numpy(x).reshape(26, case[0], case[1])
        there = np.isfinite(module(windows, torch.ones_like(windows)).flatten(1).numpy())
    found = member.expect(x)
    assert not np.isfinite(found[~there]).any()
    whole = np.delete(np.arange(26), [3, 25])
    assert found[whole].tobytes() == want[whole].tobytes()


PLAIN = """
import llvmlite.binding as llvm
found = llvm.get_host_cpu_features()
found.update({name: False for name in found if name.startswith("avx512") or name in MISSING})
llvm.get_host_cpu_features = lambda: found
import numpy as np
from test_engine_conv import CASES, member_of, normal
from models.vector_tiles import LANES
assert LANES == 8
for case in CASES:
    member, x = member_of(*case)[1], normal(29, case[0] * case[1])
    np.save(f"{FOLDER}/{CASES.index(case)}.npy", member.expect(x))
"""


def on_a_lesser_cpu(folder, missing):
    paths = [str(Path(__file__).parent), *sys.path]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "kernels"), "PYTHONPATH": os.pathsep.join(paths)}
    setting = f"MISSING, FOLDER = {missing!r}, {str(folder)!r}"
    subprocess.run([sys.executable, "-c", setting + PLAIN], env=env, check=True)
    for i, case in enumerate(CASES):
        yield np.load(folder / f"{i}.npy"), member_of(*case)[1].expect(normal(29, case[0] * case[1]))


def test_shorter_vectors_change_no_bit(tmp_path):
    if not FUSED:
        pytest.skip("this CPU rounds products before it adds them")
    for there, here in on_a_lesser_cpu(tmp_path, []):
        assert there.tobytes() == here.tobytes()


def test_a_cpu_that_cannot_multiply_and_add_at_once_gives_the_same_but_for_rounding(tmp_path):
    for there, here in on_a_lesser_cpu(tmp_path, ["fma", "avx2", "avx"]):
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)


def test_where_a_window_lies_in_memory_changes_no_bit():
    _, member = member_of(*CASES[1])
    x = normal(8, 30)
    apart = np.zeros((8, 37), np.float32)[:, 3:33]
    apart[:] = x
    np.testing.assert_array_equal(member.expect(apart).copy(), member.expect(x))


@pytest.mark.parametrize(
    "x", [normal(65, 30), normal(8, 29), normal(8, 30).astype(float)], ids=["many", "short", "double"]
)
def test_windows_that_it_has_no_room_for_are_refused(x):
    with pytest.raises(AssertionError):
        member_of(*CASES[1])[1].expect(x)


def test_a_network_that_overflows_does_not_look_finite():
    module, member = member_of(*CASES[1])
    x = np.full((8, 30), 3e38, np.float32)
    x[:, ::2] *= -1
    with torch.inference_mode():
        for p in module.parameters():
            p.mul_(1e30)
    assert not np.isfinite(DirectConv(convolutions_of(module), 30, Workspace(FALLBACK)).expect(x)).any()
    assert np.isfinite(member.expect(np.ones((8, 30), np.float32))).all()
