import numpy as np
import pytest
import torch
from modules import convolutions_of

from models.autoencoders import build_module
from models.engine_buffers import Workspace
from models.engine_conv import DirectConv
from models.profiles import FALLBACK
from pipeline.bundle import MemberSpec

torch.set_num_threads(1)

CASES = [  # window, channels, hidden, kernels, strides
    (16, 16, (16,), (7, 5), (2, 2)),
    (6, 5, (7,), (7, 5), (2, 2)),
    (13, 3, (8, 9), (3, 5, 7), (1, 2, 3)),
    (9, 1, (4,), (5, 3), (3, 1)),
    (7, 2, (4,), (5, 9), (2, 4)),
]


def member_of(window, channels, hidden, kernels, strides, last=None):
    params = {"hidden": hidden, "latent": 3, "kernels": kernels, "strides": strides}
    torch.manual_seed(0)
    module = build_module(MemberSpec("conv", window, params=params), channels).eval()
    return module, DirectConv(convolutions_of(module), last or window * channels, Workspace(FALLBACK))


def normal(rows, columns):
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [1, 8, 16, 32, 256])
def test_it_reconstructs_what_the_module_does(case, n):
    window, channels = case[:2]
    module, member = member_of(*case)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(n, window, channels)).astype(np.float32))
    with torch.inference_mode():
        want = module(x, torch.ones_like(x)).flatten(1)
        for _ in range(2):  # what the first call left behind is not read
            np.testing.assert_allclose(member.expect(x.flatten(1).numpy()), want, rtol=1e-5, atol=1e-6)


def test_only_the_last_readings_are_given_where_no_others_are_asked_for():
    _, whole = member_of(*CASES[1])
    _, member = member_of(*CASES[1], last=5)
    x = normal(8, 30)
    np.testing.assert_array_equal(member.expect(x), whole.expect(x)[:, -5:])


def test_where_a_window_lies_in_memory_changes_no_bit():
    _, member = member_of(*CASES[1])
    x = normal(8, 30)
    apart = np.zeros((8, 37), np.float32)[:, 3:33]
    apart[:] = x
    np.testing.assert_array_equal(member.expect(apart).copy(), member.expect(x))


def test_a_network_that_overflows_does_not_look_finite():
    module, member = member_of(*CASES[1])
    x = np.full((8, 30), 3e38, np.float32)
    x[:, ::2] *= -1
    with torch.inference_mode():
        for p in module.parameters():
            p.mul_(1e30)
    assert not np.isfinite(DirectConv(convolutions_of(module), 30, Workspace(FALLBACK)).expect(x)).any()
    assert np.isfinite(member.expect(np.ones((8, 30), np.float32))).all()
