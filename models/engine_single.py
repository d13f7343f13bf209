"""Members for one window at a time: what a matrix library costs before it multiplies is more than the product itself.

A product by one row reads every weight once and is bound by that; plain loops over outputs, which the compiler turns
into vector code, reach it. Sums have one order, that of the inputs.

Legend: N inputs and M outputs of a layer, T time steps, D = W * C readings of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from models.engine_buffers import Workspace
from models.networks import Affine, Convolutions
from pipeline.values import Float32


class SingleDense:
    """A chain of linear layers as a `models.engine_members.Member` that takes one window.

    Parameters
    ----------
    layers : of the network, in order.
    space : where what it returns, and what lies between, is written.
    """

    shapes: tuple[int, ...] = (1,)

    def __init__(self, layers: Sequence[Affine], space: Workspace) -> None:
        self._layers = [
            (np.ascontiguousarray(weight.T), bias, relu, space.rows(f"single {i}", 1, len(bias)))
            for i, (weight, bias, relu) in enumerate(layers)
        ]
        self._into = [room[0] for *_, room in self._layers]

    def expect(self, x: Float32) -> Float32:
        """Reconstruct a window, (1, D)."""
        row = x[0]
        for (weight, bias, relu, _), into in zip(self._layers, self._into, strict=True):
            _affine(row, weight, bias, relu, into)
            row = into
        return self._layers[-1][3]


class _Convolution(NamedTuple):
    weight: Float32  # (kernel, inputs, outputs)
    bias: Float32  # (outputs,)
    stride: int
    padding: int
    relu: bool
    transposed: bool
    out: Float32  # (T, outputs), written


class SingleConv:
    """A convolutional autoencoder as a `models.engine_members.Member` that takes one window.

    Parameters
    ----------
    net : fitted.
    last : readings to reconstruct, counted from the end; all rows are decoded, then cut.
    space : as in SingleDense.
    """

    shapes: tuple[int, ...] = (1,)

    def __init__(self, net: Convolutions, last: int, space: Workspace) -> None:
        self._layers: list[_Convolution] = []
        steps = net.window + net.before
        for i, (weight, bias, stride, padding, relu, transposed) in enumerate(net.layers):
            steps = steps * stride if transposed else -(-steps // stride)
            room = space.rows(f"single {i}", 1, steps * len(bias))
            out = room[0].reshape(steps, -1)
            self._layers.append(_Convolution(weight, bias, stride, padding, relu, transposed, out))
        self._window = space.rows("window", 1, (net.window + net.before) * net.channels)[0]
        self._rows = self._window.reshape(-1, net.channels)
        self._start = net.before * net.channels
        self._out = room[:, room.shape[1] - last :]

    def expect(self, x: Float32) -> Float32:
        """Reconstruct a window, (1, D)."""
        self._window[self._start :] = x[0]  # what lies before the window stays 0, unobserved
        rows = self._rows
        for layer in self._layers:
            _convolve(rows, *layer)
            rows = layer.out
        return self._out


@njit(nogil=True, cache=True)
def _affine(x: Float32, weight: Float32, bias: Float32, relu: bool, out: Float32) -> None:
    """Write x W + b, (M,), of x (N,) and weight (N, M); cut off at 0 if `relu`."""
    out[:] = bias
    _add_product(x, weight, out)
    if relu:
        for m in range(len(out)):
            out[m] = max(out[m], np.float32(0.0))


@njit(nogil=True, cache=True)
def _add_product(x: Float32, weight: Float32, out: Float32) -> None:
    """Add x W to `out`. Four inputs at a time: a sum is read and written a quarter as often."""
    inputs, outputs = weight.shape
    whole = inputs - inputs % 4
    for n in range(0, whole, 4):
        a, b, c, d = x[n], x[n + 1], x[n + 2], x[n + 3]
        for m in range(outputs):
            out[m] = out[m] + (a * weight[n, m] + b * weight[n + 1, m]) + (c * weight[n + 2, m] + d * weight[n + 3, m])
    for n in range(whole, inputs):
        for m in range(outputs):
            out[m] += x[n] * weight[n, m]


@njit(nogil=True, cache=True)
def _convolve(
    x: Float32, weight: Float32, bias: Float32, stride: int, padding: int, relu: bool, transposed: bool, out: Float32
) -> None:
    """Write a (transposed) convolution over time, (T, M), of x (T', N); rows beyond the ends of x are 0."""
    steps, kernel = x.shape[0], weight.shape[0]
    for t in range(out.shape[0]):
        out[t] = bias
        for tap in range(kernel):
            if transposed:
                at = (t + padding - tap) // stride
                there = (t + padding - tap) % stride == 0
            else:
                at, there = t * stride - padding + tap, True
            if there and 0 <= at < steps:
                _add_product(x[at], weight[tap], out[t])
        if relu:
            for m in range(out.shape[1]):
                out[t, m] = max(out[t, m], np.float32(0.0))
