from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoencoders import ConvAutoencoder
from models.engine_buffers import Workspace
from models.engine_single import SingleConv, SingleDense
from models.profiles import Profile

torch.set_num_threads(1)

LATENCY = Profile(priority="latency")


def window(readings, seed):
    room = torch.zeros(1, -(-readings // 16) * 16)[:, :readings]
    return room.copy_(torch.from_numpy(np.random.default_rng(seed).normal(size=(1, readings)).astype(np.float32)))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 23), min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_a_chain_of_layers_is_a_chain_of_matrix_products(sizes, relu, seed):
    g = torch.Generator().manual_seed(seed)
    pairs = list(pairwise(sizes))
    layers = [(torch.randn(m, n, generator=g), torch.randn(m, generator=g), relu) for n, m in pairs]
    x = window(sizes[0], seed)
    want = x.double()
    for weight, bias, _ in layers:
        want = want @ weight.double().t() + bias.double()
        want = want.clamp(min=0) if relu else want
    got = SingleDense(layers, Workspace(LATENCY)).expect(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((5, 5), (2, 2)), ((7, 3), (2, 1)), ((3, 1), (1, 1)), ((5, 7), (3, 2)), ((1, 9), (1, 4))]
)
@pytest.mark.parametrize("rows", [12, 13, 5])
def test_a_convolutional_autoencoder_is_its_module(kernels, strides, rows):
    torch.manual_seed(rows)
    module = ConvAutoencoder(rows, 5, (7,), 3, kernels, strides).eval()
    space = Workspace(LATENCY)
    whole, last = SingleConv(module, rows * 5, space), SingleConv(module, 5, Workspace(LATENCY))
    for seed in range(3):  # nothing is left over from one window to the next
        x = window(rows * 5, seed)
        with torch.no_grad():
            want = module(x.reshape(1, rows, 5), torch.ones(1, rows, 5)).reshape(1, -1)
        torch.testing.assert_close(whole.expect(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last.expect(x), want[:, -5:], rtol=1e-4, atol=1e-5)


def test_members_of_one_workspace_take_turns_without_disturbing_one_another():
    torch.manual_seed(0)
    space = Workspace(LATENCY)
    first, second = (SingleConv(ConvAutoencoder(9, 4).eval(), 36, space) for _ in range(2))
    x = window(36, 1)
    want = first.expect(x).clone()
    second.expect(window(36, 2))
    assert torch.equal(first.expect(x), want)
