"""The streamed network of one group: hops in, reconstructions out, a few matrix products for many assets at once.

Layer after layer, not asset after asset: nothing recurs within a layer, so all hops of a chunk go through it together,
an asset's own hops one after the other in its kept rows. Batches have a few fixed shapes and rows of every buffer start
on a 64-byte boundary, as in `models.engine_members`; `StreamNetwork.settle` tries on the weights whether they keep a
row's bits.

Legend: A slots, B hops of a chunk; of one layer: n rows taken and m products in a step, K taps, F channels taken,
P = K * F rounded up to whole 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.engine_buffers import Workspace
from models.engine_scorer import cuts, fallbacks, keeps_bits
from models.stream_layers import Layer
from models.vector_product import RowProduct
from pipeline.kernels import copy_values, row_kernel, set_all
from pipeline.values import Bool, Float32, Int32, Int64

SHAPES = (8, 16, 32, 64, 128, 256)  # hops of a batch; more would not stay in the cache
_SEED = 0


class StreamNetwork:
    """One group's layers over buffers that all groups share.

    Parameters
    ----------
    layers : of the fitted module.
    space : where what lies between the layers is written.

    Attributes
    ----------
    shapes : batch sizes in use.
    runs : (B * m, P) float32, what the first layer multiplies: written by `models.stream_rings`.
    """

    def __init__(self, layers: Sequence[Layer], space: Workspace) -> None:
        self.shapes: tuple[int, ...] = SHAPES
        self._layers = layers
        self._products = [RowProduct(layer.weight.T, layer.bias) for layer in layers]
        rooms = [(SHAPES[-1] * layer.products, p) for layer, p in zip(layers, self._products, strict=True)]
        self._runs = [space.rows(f"runs {i}", n, p.takes) for i, (n, p) in enumerate(rooms)]
        self._out = [space.rows(f"out {i}", n, p.gives) for i, (n, p) in enumerate(rooms)]
        self.runs: Float32 = self._runs[0]
        self._tape = np.zeros(max((_tape_size(layer) for layer in layers[1:]), default=0), np.float32)

    @property
    def given(self) -> int:
        """Rows of reconstruction in each row of what `run` returns."""
        return self._layers[-1].given

    @property
    def widths(self) -> tuple[int, ...]:
        """Values that each layer but the first keeps of an asset, `StreamNetwork.run`'s `kept`."""
        return tuple(layer.kept * len(layer.weight) // layer.taps for layer in self._layers[1:])

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for networks that run the same code on arrays of the same shapes."""
        return tuple((layer.products, tuple(layer.weight.shape)) for layer in self._layers)

    @property
    def fell_back(self) -> bool:
        """Whether batch sizes are fewer than hoped for, because bits depended on them."""
        return self.shapes != SHAPES

    def run(self, slots: Int32, fresh: Bool, kept: Sequence[Float32]) -> Float32:
        """Take hops whose runs lie in `runs`, in order; return their reconstructions (rows, padded).

        Parameters
        ----------
        slots : (k,), whose hop each one is; a slot may come several times.
        fresh : (k,), whether nothing is kept for it.
        kept : for each layer but the first (A, kept * F) float32, taken and left for the next hop.
        """
        k = len(slots)
        for i, layer in enumerate(self._layers):
            if i:
                before = self._layers[i - 1]
                channels = len(layer.weight) // layer.taps
                size = (layer.taps, layer.stride, layer.taken, layer.products, channels)
                rows = self._out[i - 1], before.given, before.relu
                _join(slots, fresh, *rows, size, kept[i - 1], self._tape, self._runs[i])
            for at, shape in cuts(k, self.shapes):
                self._multiply(i, slice(at * layer.products, (at + shape) * layer.products))
        return self._out[-1]

    def settle(self) -> None:
        """Settle on batch sizes that keep a row's bits, in every layer."""
        self.shapes = next(s for s in fallbacks(SHAPES) if s == (1,) or self._keeps(s))

    def _keeps(self, shapes: tuple[int, ...]) -> bool:
        random = np.random.default_rng(_SEED)
        for i, layer in enumerate(self._layers):
            tried = random.standard_normal((shapes[-1], layer.products, len(layer.weight)), np.float32)

            def run(pick: Int64, i: int = i, m: int = layer.products, tried: Float32 = tried) -> Float32:
                rows = slice(0, len(pick) * m)
                self._runs[i][rows, : tried.shape[2]] = tried[pick].reshape(-1, tried.shape[2])
                return self._multiply(i, rows).reshape(1, len(pick), -1).copy()

            if not keeps_bits(run, shapes):
                return False
        return True

    def _multiply(self, i: int, rows: slice) -> Float32:
        return self._products[i].run(self._runs[i][rows], self._out[i][rows])


def _tape_size(layer: Layer) -> int:
    """Return how many values a layer keeps and takes in a step."""
    return (layer.kept + layer.taken) * (len(layer.weight) // layer.taps)


@row_kernel
def _join(
    slots: Int32,
    fresh: Bool,
    out: Float32,
    given: int,
    relu: bool,
    size: tuple[int, int, int, int, int],
    kept: Float32,
    tape: Float32,
    runs: Float32,
) -> None:
    """Join what the last layer gave of each hop to what is kept of its asset; write the runs that this layer takes.

    `tape` is where they are joined.
    """
    taps, stride, taken, products, channels = size
    width = kept.shape[1]
    least = np.float32(0.0) if relu else np.float32(-np.inf)
    for k in range(len(slots)):
        mine, front = kept[slots[k]], tape[:width]
        if fresh[k]:
            set_all(front, np.float32(0.0))
        else:
            copy_values(front, mine)
        for r in range(taken):
            first, to = (r % given) * channels, tape[width + r * channels : width + (r + 1) * channels]
            source = out[(k * taken + r) // given, first : first + channels]
            for c in range(channels):
                to[c] = source[c] if source[c] > least else least
        for m in range(products):
            begin, size_of_run = m * stride * channels, taps * channels
            copy_values(runs[k * products + m, :size_of_run], tape[begin : begin + size_of_run])
        copy_values(mine, tape[taken * channels :])
