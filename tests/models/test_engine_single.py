from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import convolutions_of

from models.autoencoders import ConvAutoencoder
from models.engine_buffers import Workspace, aligned
from models.engine_conv import DirectConv
from models.engine_single import SingleDense
from models.networks import Affine
from models.profiles import Profile

torch.set_num_threads(1)

LATENCY = Profile(priority="latency")


def window(readings, seed):
    room = aligned(1, readings)
    room[:] = np.random.default_rng(seed).normal(size=(1, readings))
    return room


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 23), min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_a_chain_of_layers_is_a_chain_of_matrix_products(sizes, relu, seed):
    normal = np.random.default_rng(seed).standard_normal
    layers = [Affine(normal((m, n), np.float32), normal(m, np.float32), relu) for n, m in pairwise(sizes)]
    x = window(sizes[0], seed)
    want = x.astype(np.float64)
    for weight, bias, _ in layers:
        want = want @ weight.T + bias
        want = np.maximum(want, 0) if relu else want
    got = SingleDense(layers, Workspace(LATENCY)).expect(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((5, 5), (2, 2)), ((7, 3), (2, 1)), ((3, 1), (1, 1)), ((5, 7), (3, 2)), ((1, 9), (1, 4))]
)
@pytest.mark.parametrize("rows", [12, 13, 5])
def test_a_convolutional_autoencoder_is_its_module(kernels, strides, rows):
    torch.manual_seed(rows)
    module = ConvAutoencoder(rows, 5, (7,), 3, kernels, strides).eval()
    space = Workspace(LATENCY)
    net = convolutions_of(module)
    whole, last = DirectConv(net, rows * 5, space), DirectConv(net, 5, Workspace(LATENCY))
    for seed in range(3):  # nothing is left over from one window to the next
        x = window(rows * 5, seed)
        with torch.no_grad():
            want = module(torch.tensor(x).reshape(1, rows, 5), torch.ones(1, rows, 5)).reshape(1, -1)
        np.testing.assert_allclose(whole.expect(x), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last.expect(x), want[:, -5:], rtol=1e-4, atol=1e-5)


def test_members_of_one_workspace_take_turns_without_disturbing_one_another():
    torch.manual_seed(0)
    space = Workspace(LATENCY)
    first, second = (DirectConv(convolutions_of(ConvAutoencoder(9, 4).eval()), 36, space) for _ in range(2))
    x = window(36, 1)
    want = first.expect(x).copy()
    second.expect(window(36, 2))
    np.testing.assert_array_equal(first.expect(x), want)
