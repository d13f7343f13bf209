"""Convolutional members in float32 on the CPU: each layer as one matrix product over rows that are laid out for it.

What an output step looks at, `kernel` steps of all channels, is copied side by side into a row of its own (zeros beyond
the ends); a layer is then (rows, kernel * inputs) times (kernel * inputs, outputs). Few windows keep these rows in the
cache. A transposed layer with stride s gives s steps of its output at once: step q s + r is a sum over the inputs
q + d of the tap r + padding - d s, which is a layer of stride 1 with s times the outputs. oneDNN's convolutions take
half as long again for this, and three times as long for few windows.

Legend: B windows, T steps that a layer gives of each, N inputs, M outputs, K = kernel * N.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from models.engine_buffers import Workspace
from models.engine_products import Product
from models.networks import Convolution, Convolutions
from pipeline.values import Float32, Int64

_AT_ONCE = 32  # windows: fewer, and the calls take as long as the work; more, and the rows of a layer leave the caches
_FEW = 4  # windows of the smallest batch: a group's share of a poll may be as small
_NO_FLOOR = np.float32(-np.inf)


class _Layer(NamedTuple):
    product: Product  # K' to M': K and M rounded up, so that every row is aligned
    looks: tuple[Int64, int, int, int, int, np.float32]  # at what: arguments of `_lay_out`
    steps: int  # T
    side: Float32  # (B T, K'), the rows


class _Step(NamedTuple):
    """A layer for some windows."""

    layer: _Layer
    side: Float32
    out: Float32
    out_windows: Float32  # (B, T M'), the same memory


class UnfoldedConv:
    """A convolutional autoencoder as a `models.engine_members.Member`.

    Parameters
    ----------
    net : fitted.
    last : readings to reconstruct, counted from the end; all rows are decoded, then cut.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, net: Convolutions, last: int, space: Workspace) -> None:
        first = np.arange(-net.before, net.window) * net.channels  # negative: before the window
        below = _NO_FLOOR
        layers: list[_Layer] = []
        for i, part in enumerate(net.layers):
            layers.append(_layer(part, first, below, f"unfolded {i}", space))
            below, made = np.float32(0.0) if part.relu else _NO_FLOOR, layers[-1]
            together = part.stride if part.transposed else 1
            starts = np.arange(made.steps)[:, None] * made.product.gives
            first = (starts + np.arange(together) * len(part.bias)).ravel()
        self.shapes = (_FEW, *space.batch_sizes(convolutional=True))
        self._last, self._row = last, together * len(part.bias)  # readings in a row of the last product
        self._layers = layers
        windows = [*(_AT_ONCE for _ in layers[1:]), self.shapes[-1]]  # whose results are kept
        self._outs = [
            space.rows(f"unfolded {i} out", n * layer.steps, layer.product.gives)
            for i, (layer, n) in enumerate(zip(layers, windows, strict=True))
        ]
        self._known: dict[tuple[int, int], list[_Step]] = {}

    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        windows = np.ascontiguousarray(x)
        for at in range(0, len(x), _AT_ONCE):
            below = windows[at : at + _AT_ONCE]
            for layer, side, out, out_windows in self._steps(at, len(below)):
                _lay_out(below, *layer.looks, side)
                layer.product.run(side, out)
                below = out_windows
        rows = self._outs[-1][: len(x) * self._layers[-1].steps, : self._row]
        return rows.reshape(len(x), -1)[:, -self._last :]

    def _steps(self, at: int, n: int) -> list[_Step]:
        """Return what the layers read and write of `n` windows; the last one's results come to lie at window `at`."""
        if (at, n) not in self._known:
            firsts = [*(0 for _ in self._layers[1:]), at]
            self._known[at, n] = [_step(*place, n) for place in zip(self._layers, self._outs, firsts, strict=True)]
        return self._known[at, n]


def _layer(part: Convolution, first: Int64, floor: np.float32, name: str, space: Workspace) -> _Layer:
    taps, bias, stride, padding = part.weight, part.bias, part.stride, part.padding
    if part.transposed:
        taps, padding = _several_at_once(taps, stride, padding)
        bias, stride = np.tile(bias, stride), 1
    kernel, inputs, outputs = taps.shape
    product = Product(taps.reshape(-1, outputs).T, bias)
    steps = -(-len(first) // stride)
    return _Layer(
        product=product,
        looks=(first, kernel, inputs, stride, padding, floor),
        steps=steps,
        side=space.rows(f"{name} side", _AT_ONCE * steps, product.takes),
    )


def _step(layer: _Layer, room: Float32, at: int, n: int) -> _Step:
    side, out = layer.side[: n * layer.steps], room[at * layer.steps : (at + n) * layer.steps]
    return _Step(layer, side, out, out.reshape(n, -1))


def _several_at_once(weight: Float32, stride: int, padding: int) -> tuple[Float32, int]:
    """Return weights (kernel, N, M) of a transposed layer as (taps, N, stride * M), and the padding to go with it."""
    kernel, inputs, outputs = weight.shape
    ahead = (stride - 1 + padding) // stride  # the furthest input ahead that a step looks at
    behind = (kernel - 1 - padding) // stride if kernel - 1 > padding else 0
    taps = np.zeros((behind + 1 + ahead, inputs, stride, outputs), np.float32)
    for d in range(-behind, ahead + 1):
        for r in range(stride):
            tap = r + padding - d * stride
            if 0 <= tap < kernel:
                taps[d + behind, :, r] = weight[tap]
    return taps.reshape(len(taps), inputs, -1), behind


@njit(nogil=True, cache=True)
def _lay_out(
    x: Float32,
    first: Int64,
    kernel: int,
    inputs: int,
    stride: int,
    padding: int,
    floor: np.float32,
    side: Float32,
) -> None:
    """Write the steps that each output step looks at side by side, none below `floor`; beyond the ends they are 0.

    `x` (B, anything) holds the inputs of step t of a window from `first[t]` on; a negative one is before the window.
    """
    steps, width = len(side) // len(x), side.shape[1]
    before = 0
    while first[before] < 0:
        before += 1
    dense = first[-1] - first[before] == (len(first) - 1 - before) * inputs  # one step right after the other
    source, to = x.reshape(-1), side.reshape(-1)
    for b in range(len(x)):
        for t in range(steps):
            row, start = (b * steps + t) * width, t * stride - padding
            begin = min(max(start, before), start + kernel)
            end = max(min(start + kernel, len(first)), begin)
            _fill(to, row, (begin - start) * inputs)
            _fill(to, row + (end - start) * inputs, (start + kernel - end) * inputs)
            together = end - begin if dense else 1
            for at in range(begin, end, max(together, 1)):
                values = b * x.shape[1] + first[at]
                _copy(source, values, floor, to, row + (at - start) * inputs, together * inputs)


@njit(nogil=True, cache=True)
def _copy(source: Float32, first: int, floor: np.float32, to: Float32, at: int, count: int) -> None:
    """Copy values, none below `floor`. Indices are unsigned: signed ones would each be asked if they count back."""
    for i in range(np.uintp(count)):
        value = source[np.uintp(first) + i]
        to[np.uintp(at) + i] = floor if value < floor else value  # NaN stays; `max` would ask which it is


@njit(nogil=True, cache=True)
def _fill(to: Float32, at: int, count: int) -> None:
    for i in range(np.uintp(count)):
        to[np.uintp(at) + i] = np.float32(0.0)
