"""Dense members for one window at a time: what a matrix library costs before it multiplies is more than the product.

A product by one row reads every weight once and is bound by that; plain loops over outputs, which the compiler turns
into vector code, reach it. Sums have one order, that of the inputs.

Legend: N inputs and M outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from models.engine_buffers import Workspace
from models.networks import Affine
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
