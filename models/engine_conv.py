"""Convolutional members in float32 on the CPU: each layer as products over the steps where they are.

What an output step looks at, `kernel` steps of all channels, lies side by side in a window, so it is multiplied without
being laid out first (`models.vector_product`). Steps that look beyond an end skip the taps there, and are multiplied
for many windows at a time. A transposed layer of stride s is s layers of stride 1, each with its own taps: step q s + r
is a sum over the inputs q + d of the tap r + padding - d s. Few windows go through all layers at a time, so that what
lies between these stays in the cache, and one call takes a batch through.

Legend: B windows, T steps that a layer gives of each, N inputs, M outputs, M' = M rounded up to whole 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from models.engine_buffers import Workspace
from models.engine_rings import padded
from models.networks import Convolution, Convolutions
from models.vector_product import Packed, Step, blocks, new_places, plan_of, run
from models.vector_tiles import LANES, ROWS
from pipeline.values import Float32

_BYTES = 4  # of a float32
_AT_ONCE = 16  # windows: what lies between their layers stays in the second cache
_FEW, _MOST = 4, 64  # windows of a batch: a group's share of a poll may be as small; results are read from a cache


class _Rows(NamedTuple):
    """Where the steps of a window lie, in float32."""

    at: int  # that of step 0
    width: int  # from one step to the next
    window: int  # from one window to the next
    begin: int  # steps `begin` to `end` are there; the others are 0
    end: int


class _Phase(NamedTuple):
    """Output steps first, first + apart, ... that share their taps: the one at place q looks at q * stride + ahead on.

    Of a transposed layer there is a phase for each step between two inputs.
    """

    first: int
    apart: int
    stride: int
    ahead: int
    taps: Float32  # (taps, N, M), in the order of the inputs


class DirectConv:
    """A convolutional autoencoder as a `models.engine_members.Member`.

    Parameters
    ----------
    net : fitted.
    last : readings to reconstruct, counted from the end: of each layer only the steps are computed that these rest on.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, net: Convolutions, last: int, space: Workspace) -> None:
        sizes = space.batch_sizes(convolutional=True)
        self.shapes = sizes if sizes == (1,) else (_FEW, *(n for n in sizes if n <= _MOST))
        self._last, self._channels, self._readings = last, net.channels, net.window * net.channels
        wanted = _wanted(net, last)
        source = _Rows(-net.before * net.channels, net.channels, 0, net.before, net.before + net.window)
        packed, steps, used = Packed(), list[Step](), 0
        for i, layer in enumerate(net.layers):
            final = i == len(net.layers) - 1
            given, width = _given(layer, source.end), padded(len(layer.bias))
            shown = given - wanted[i]  # steps that are written
            at = 0 if final else used * _AT_ONCE
            target = _Rows(at - wanted[i] * width, width, shown * width, wanted[i], given)
            steps += _steps(layer, source, target, packed, first=i == 0, last=final)
            used += 0 if final else shown * width
            source = target
        self._shown = (shown, width)
        self._plan, self._weights = plan_of(steps), packed.array()
        self._room = space.rows("between convolutions", 1, used * _AT_ONCE)
        self._out = space.rows("convolved", self.shapes[-1], shown * width)
        tiles = sum(-(-_AT_ONCE * step.rows // ROWS) for step in steps)
        self._ahead = _AT_ONCE * self._readings * _BYTES // tiles
        self._places = new_places()

    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        assert x.dtype == np.float32  # the kernel asks nothing: it would read and write beyond the ends
        assert x.shape[1] == self._readings
        assert len(x) <= len(self._out)
        if x.strides[1] != x.itemsize:
            x = np.ascontiguousarray(x)
        address: int = x.__array_interface__["data"][0]
        amounts = len(x), _AT_ONCE, self._ahead
        run(address, x.strides[0], *amounts, self._plan, self._weights, self._room, self._out, self._places)
        rows = self._out[: len(x)].reshape(len(x), *self._shown)[:, :, : self._channels]
        return rows.reshape(len(x), -1)[:, -self._last :]


def _wanted(net: Convolutions, last: int) -> list[int]:
    """Return the first step of each layer that the last readings rest on."""
    steps = net.window + net.before
    found = [steps - -(-last // net.channels)]
    for layer in net.layers[:0:-1]:
        at, (kernel, _, _) = found[-1], layer.weight.shape
        if layer.transposed:
            found.append(max(0, -(-(at + layer.padding - kernel + 1) // layer.stride)))
        else:
            found.append(max(0, at * layer.stride - layer.padding))
    return found[::-1]


def _given(layer: Convolution, steps: int) -> int:
    return steps * layer.stride if layer.transposed else -(-steps // layer.stride)


def _steps(layer: Convolution, source: _Rows, target: _Rows, packed: Packed, first: bool, last: bool) -> Iterator[Step]:
    """Yield what a layer is computed by, and pack its weights."""
    _, inputs, outputs = layer.weight.shape
    wide = np.pad(layer.bias, (0, target.width - outputs))
    bias = packed.add(wide)
    for phase in _phases(layer):
        taps = np.pad(phase.taps, ((0, 0), (0, 0), (0, target.width - outputs)))
        for block in blocks(outputs):
            across = block.stop - block.start
            weights = packed.add(taps[:, :, block])
            for (skipped, count), places in _alike(phase, source, target):
                begin = places.start * phase.stride + phase.ahead + skipped
                dense = source.width == inputs  # one run of all taps
                yield Step(
                    vectors=across // LANES,
                    weights=weights + skipped * inputs * across,
                    bias=bias + block.start,
                    taps=1 if dense else count,
                    inputs=inputs * count if dense else inputs,
                    between=source.width,
                    relu=layer.relu,
                    source=source.at + begin * source.width,
                    source_item=source.window,
                    source_row=phase.stride * source.width,
                    target=target.at + (phase.first + places.start * phase.apart) * target.width + block.start,
                    target_item=target.window,
                    target_row=phase.apart * target.width,
                    rows=len(places),
                    first=first,
                    last=last,
                )


def _phases(layer: Convolution) -> Iterator[_Phase]:
    weight, stride, padding = layer.weight, layer.stride, layer.padding
    if not layer.transposed:
        yield _Phase(0, 1, stride, -padding, weight)
        return
    for r in range(stride):
        own = range((r + padding) % stride, len(weight), stride)[::-1]  # a tap further on is an input further back
        yield _Phase(r, stride, 1, (r + padding - own[0]) // stride, weight[own])


def _alike(phase: _Phase, source: _Rows, target: _Rows) -> Iterator[tuple[tuple[int, int], range]]:
    """Yield (taps that lie before the first step there is, taps that follow until the last), and the places q."""

    def there(place: int) -> tuple[int, int]:
        begin = place * phase.stride + phase.ahead
        first = min(max(begin, source.begin), source.end)
        end = min(begin + len(phase.taps), source.end)
        return (first - begin, end - first) if end > first else (0, 0)

    first = max(0, -(-(target.begin - phase.first) // phase.apart))
    places = range(first, -(-(target.end - phase.first) // phase.apart))
    for taps, alike in groupby(places, there):
        found = list(alike)
        yield taps, range(found[0], found[-1] + 1)
