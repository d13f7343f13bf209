"""A convolutional autoencoder as a chain of steps over an endless series: every row goes through each layer once.

A step takes the rows of one hop (the product of the strides). Each layer keeps the last rows it was given, joins the
new ones to them, and multiplies runs of `taps` rows with one matrix; a transposed convolution is a run too, whose
product holds `given` rows of output. What a layer gives lies back in time by what its taps reach ahead, so the
reconstruction of a row is there `delay` rows after it: the same values as the network over the whole series.

Legend: S rows of a hop; of one layer: n rows taken and m products in a step, K taps, F channels taken, G given.

References
----------
Hedegaard & Iosifidis, "Continual inference networks", arXiv:2204.03418: convolutions that keep what they were given.
Here strided and transposed ones too, by running whole hops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.networks import Convolution, Convolutions
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError
from pipeline.values import Float32


@dataclass(frozen=True, slots=True)
class Span:
    """How a streamed network lies in time, all in rows.

    Attributes
    ----------
    hop : rows of a step, S.
    delay : from the end of a hop to the newest row that is reconstructed by then.
    back : most rows before a row that its reconstruction reads.
    """

    hop: int
    delay: int
    back: int

    @property
    def lag(self) -> int:
        """From a row to the frame that carries its score: the delay, and what a hop may have to wait for its end.

        One number for all rows, so that every frame has a score of its own, however long a hop is.
        """
        return self.delay + self.hop - 1

    def rows(self, averaged: int) -> int:
        """Rows that a score rests on which averages the errors of so many rows."""
        return self.lag + averaged + self.back


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as runs of rows and a matrix.

    Attributes
    ----------
    taps, stride : K rows of a run, and rows from one run to the next.
    kept : rows that are kept from step to step, in front of the new ones; the first run starts with them.
    taken, products : n, m.
    given : rows of output in each product.
    relu : whether its output is cut off at 0.
    weight, bias : (K * F, given * G) and (given * G,).
    """

    taps: int
    stride: int
    kept: int
    taken: int
    products: int
    given: int
    relu: bool
    weight: Float32
    bias: Float32


def span_of(kernels: Sequence[int], strides: Sequence[int]) -> Span:
    """Return how a network of these encoder layers, mirrored, lies in time."""
    layers = list(zip(kernels, strides, strict=True))
    hop, behind = 1, 0
    for kernel, stride in layers:
        hop, behind = hop * stride, _behind_encoder(behind, kernel, stride)
    for kernel, stride in reversed(layers):
        behind = behind * stride + kernel // 2
    back = 0
    for row in range(hop):
        first = row
        for kernel, stride in layers:
            first = (first + kernel // 2) // stride - (_taps(kernel, stride) - 1)
        for kernel, stride in reversed(layers):
            first = first * stride - kernel // 2
        back = max(back, row - first)
    return Span(hop, behind, back)


def member_span(member: MemberSpec) -> Span:
    """Return how a streaming member lies in time."""
    return span_of(member.params["kernels"], member.params["strides"])


def averaged(member: MemberSpec) -> int:
    """Return W: how many row errors make a score. A streaming member's window is all rows that a score rests on.

    Raises
    ------
    BundleError : a window that is too short for its network.
    """
    rows = member.window - member_span(member).rows(0)
    if rows < 1:
        raise BundleError(
            f"a streaming member needs a window of {member_span(member).rows(1)} rows, not {member.window}"
        )
    return rows


def stream_layers(net: Convolutions) -> tuple[Layer, ...]:
    """Return the layers of a fitted network in order, as runs and matrices."""
    rows, behind = net.total_stride, 0
    layers: list[Layer] = []
    for part in net.layers:
        if part.transposed:
            layers.append(_transposed(part, rows))
            rows *= part.stride
            continue
        kernel, inputs, outputs = part.weight.shape
        behind, before = _behind_encoder(behind, kernel, part.stride), behind
        kept = behind * part.stride + kernel // 2 - before
        weight = part.weight.reshape(kernel * inputs, outputs)
        layers.append(Layer(kernel, part.stride, kept, rows, rows // part.stride, 1, part.relu, weight, part.bias))
        rows //= part.stride
    return tuple(layers)


def _behind_encoder(behind: int, kernel: int, stride: int) -> int:
    """Return how many of its rows a convolution lacks at the end of a hop, where it is given `behind` too few.

    Output o reads inputs o * stride - kernel // 2 to o * stride + kernel // 2.
    """
    return -(-(behind + kernel // 2 + 1 - stride) // stride)


def _taps(kernel: int, stride: int) -> int:
    """Return how many inputs one output of a transposed convolution may read."""
    return -(-kernel // stride)


def _transposed(part: Convolution, rows: int) -> Layer:
    """Return a transposed convolution as runs of inputs: tap r + stride * q of the kernel, for output r, reads the
    q-th last input of the run.
    """
    (kernel, inputs, outputs), stride = part.weight.shape, part.stride
    taps = _taps(kernel, stride)
    weight = np.zeros((taps, inputs, stride, outputs), np.float32)
    for tap in range(kernel):
        weight[taps - 1 - tap // stride, :, tap % stride] = part.weight[tap]
    bias = np.tile(part.bias, stride)
    return Layer(taps, 1, taps - 1, rows, rows, stride, part.relu, weight.reshape(taps * inputs, -1), bias)
