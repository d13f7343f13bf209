"""Dense members in int8: weights of 7 bits, activations of 8, products summed in int32, so exactly.

Weights have a step per output, activations one per row, taken from the row itself: what a window says does not depend
on its neighbours, and nothing has to be measured on data beforehand. Sums are ONNX Runtime's, of codes from 0 to 255
for activations: 7 by 8 bits is the most that CPUs without VNNI add up without overflow (two products in 16 bits), so
every CPU gets the same integers. That 0 has the code 128 is taken off afterwards, the same for every row.

Legend: B windows of one batch, N inputs and M outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numba import njit
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.engine_buffers import Workspace
from models.engine_products import InPlace, model_of
from models.networks import Affine
from pipeline.values import Float32, Int32, UInt8

_WEIGHT_LIMIT = 63
_ZERO = 128  # the code of 0 among activations


class Int8Dense:
    """A chain of linear layers as a `models.engine_members.Member`.

    Parameters
    ----------
    layers : of the network, in order.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, layers: Sequence[Affine], space: Workspace) -> None:
        self.shapes = space.batch_sizes()
        self._layers = [_Int8Layer(layer, space, f"int8 {i}") for i, layer in enumerate(layers)]

    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        for layer in self._layers:
            x = layer.apply(x)
        return x


class _Int8Layer:
    def __init__(self, layer: Affine, space: Workspace, name: str) -> None:
        outputs, inputs = layer.weight.shape
        least = np.finfo(np.float32).tiny
        self._step = np.maximum(np.abs(layer.weight).max(axis=1) / np.float32(_WEIGHT_LIMIT), least)
        codes = np.rint(layer.weight / self._step[:, None]).astype(np.int8)
        self._off = _ZERO * codes.sum(axis=1, dtype=np.int32)
        self._bias, self._relu = layer.bias, layer.relu
        self._sum = InPlace(_sums(codes))
        most = space.batch_sizes()[-1]
        self._codes = np.zeros((most, inputs), np.uint8)
        self._sums = np.zeros((most, outputs), np.int32)
        self._scale = space.rows("scale", 1, most)[0]
        self._out = space.rows(name, most, outputs)

    def apply(self, x: Float32) -> Float32:
        """Return what the layer makes of x, (B, N) -> (B, M)."""
        n = len(x)
        codes, sums, scale, out = self._codes[:n], self._sums[:n], self._scale[:n], self._out[:n]
        _encode(x, x.view(np.int32), codes, scale, scale.view(np.int32))
        self._sum.run(codes, sums)
        _decode(sums, scale, self._step, self._off, self._bias, self._relu, out)
        return out


def _sums(codes: NDArray[np.int8]) -> onnx.ModelProto:
    """Return sums of codes (B, N) of activations times those of weights, (M, N), as a graph."""
    outputs, inputs = codes.shape
    weight = numpy_helper.from_array(np.ascontiguousarray(codes.T), "weight")
    node = helper.make_node("MatMulInteger", ["x", "weight"], ["y"])
    return model_of([node], [weight], (inputs, outputs), (TensorProto.UINT8, TensorProto.INT32))


@njit(nogil=True, cache=True)
def _encode(x: Float32, x_bits: Int32, codes: UInt8, scale: Float32, scale_bits: Int32) -> None:
    """Write rows of x as codes, x = (code - 128) * scale; `x_bits` and `scale_bits` are the same memory as int32.

    The largest size of a row is found among the bits: integers are compared many at a time, floats are not.
    """
    for i in range(x.shape[0]):
        largest = np.int32(0)
        for j in range(x.shape[1]):
            largest = max(largest, x_bits[i, j] & np.int32(0x7FFFFFFF))
        scale_bits[i] = largest
        scale[i] /= np.float32(_ZERO - 1)
        inverse = np.float32(1.0) / scale[i] if scale[i] > 0 else np.float32(0.0)
        if not np.isfinite(inverse):  # a row of all but nothing
            inverse = np.float32(0.0)
        for j in range(x.shape[1]):
            codes[i, j] = np.uint8(np.int32(x[i, j] * inverse + np.float32(_ZERO + 0.5)))


@njit(nogil=True, cache=True)
def _decode(sums: Int32, scale: Float32, step: Float32, off: Int32, bias: Float32, relu: bool, out: Float32) -> None:
    """Turn sums of codes into activations: times both steps, plus the bias, cut off at 0 if `relu`."""
    floor = np.float32(0.0) if relu else np.float32(-np.inf)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            value = np.float32(sums[i, j] - off[j]) * (scale[i] * step[j]) + bias[j]
            out[i, j] = max(value, floor)
