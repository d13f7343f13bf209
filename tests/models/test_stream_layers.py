import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import convolutions_of

from models.autoencoders import ConvAutoencoder
from models.stream_layers import span_of, stream_layers

torch.set_num_threads(1)
layers = st.lists(
    st.tuples(st.sampled_from([1, 3, 5, 7]), st.integers(1, 3)).filter(lambda both: both[0] >= both[1]),
    min_size=1,
    max_size=3,
)


def streamed(module, x):
    """Hop by hop, with tensors that grow: what the layers say of a series whose length is whole hops."""
    steps = stream_layers(convolutions_of(module))
    kept = [torch.zeros(step.kept, len(step.weight) // step.taps) for step in steps]
    out = []
    for at in range(0, len(x), module.total_stride):
        rows = x[at : at + module.total_stride]
        for i, step in enumerate(steps):
            tape = torch.cat([kept[i], rows])
            kept[i] = tape[len(tape) - step.kept :]
            assert len(rows) == step.taken
            runs = [tape[m * step.stride : m * step.stride + step.taps].flatten() for m in range(step.products)]
            rows = (torch.stack(runs) @ torch.from_numpy(step.weight) + torch.from_numpy(step.bias)).view(
                step.products * step.given, -1
            )
            rows = rows.relu() if step.relu else rows
        out.append(rows)
    return torch.cat(out)


@settings(deadline=None, max_examples=30)
@given(layers, st.integers(0, 1000))
@torch.inference_mode()
def test_streamed_layers_equal_the_network_over_the_whole_series(sizes, seed):
    torch.manual_seed(seed)
    kernels, strides = zip(*sizes, strict=True)
    span = span_of(kernels, strides)
    n = span.hop * (20 + 2 * span.rows(1) // span.hop)
    module = ConvAutoencoder(n, 3, [4] * (len(sizes) - 1), 2, kernels, strides).eval()
    x = torch.randn(n, 3)
    want = module(x[None], torch.ones(1, n, 3))[0]
    got = streamed(module, x)[span.delay :]
    assert span.hop == module.total_stride
    torch.testing.assert_close(got[span.back :], want[span.back : n - span.delay], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((5, 5), (2, 2)), ((7, 5, 3), (2, 2, 2)), ((3,), (3,)), ((9, 7), (2, 3)), ((3, 3), (1, 1))]
)
def test_the_span_is_enough_and_the_lag_waits_for_all_that_a_row_reads(kernels, strides):
    span = span_of(kernels, strides)
    module = ConvAutoencoder(64, 2, [3] * (len(kernels) - 1), 2, kernels, strides)
    assert span.back + span.lag + 1 >= module.receptive_field
    assert module.delay <= span.lag <= module.delay + 2 * span.hop
    assert span.rows(8) == span.lag + 8 + span.back


@torch.inference_mode()
def test_nothing_outside_the_span_reaches_a_row():
    kernels, strides = (7, 5), (2, 2)
    span, n = span_of(kernels, strides), 96
    module = ConvAutoencoder(n, 2, [3], 2, kernels, strides).eval()
    x, ones = torch.randn(1, n, 2), torch.ones(1, n, 2)
    want = module(x, ones)[0].numpy()
    for row in range(40, 40 + span.hop):
        for outside in (slice(0, row - span.back), slice(row + span.lag + 1, None)):
            other = x.clone()
            other[:, outside] += 9
            np.testing.assert_array_equal(module(other, ones)[0, row].numpy(), want[row])
