"""Dense members in int8: weights of 7 bits, activations of 8, products summed in int32 by oneDNN, so exactly.

Weights have a step per output, activations one per row, taken from the row itself: what a window says does not depend
on its neighbours, and nothing has to be measured on data beforehand. 7 by 8 bits is the most that CPUs without VNNI
add up without overflow (two products in 16 bits): every CPU gets the same integers.

Legend: B windows of one batch, N inputs and M outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from models.engine_buffers import Workspace
from pipeline.values import Float32, Int32, UInt8

Layer = tuple[Tensor, Tensor, bool]

_WEIGHT_LIMIT = 63
_ZERO = 128  # the code of 0 among activations


class Int8Dense:
    """A chain of linear layers as a `models.engine_members.Member`.

    Parameters
    ----------
    layers : (weight (M, N), bias (M,), whether a ReLU follows), float32, of each layer.
    space : where codes are written.
    """

    def __init__(self, layers: Sequence[Layer], space: Workspace) -> None:
        self.shapes = space.batch_sizes()
        self._layers = [_Int8Layer(*layer, space) for layer in layers]

    def expect(self, x: Tensor) -> Tensor:
        """Reconstruct windows, (B, D)."""
        for layer in self._layers:
            x = layer.apply(x)
        return x


class _Int8Layer:
    def __init__(self, weight: Tensor, bias: Tensor, relu: bool, space: Workspace) -> None:
        self._step = (weight.abs().amax(1) / _WEIGHT_LIMIT).clamp_(min=torch.finfo(torch.float32).tiny)
        codes = (weight / self._step[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self._zero = torch.zeros(len(bias), dtype=torch.int64)
        self._bias, self._relu = bias.numpy().copy(), relu
        most = space.batch_sizes()[-1]
        self._codes = space.rows("codes", most, weight.shape[1], torch.uint8)
        self._scale = space.rows("scale", 1, most)[0].numpy()

    def apply(self, x: Tensor) -> Tensor:
        """Return what the layer makes of x, (B, N) -> (B, M)."""
        codes, scale, readings = self._codes[: len(x)], self._scale[: len(x)], x.numpy()
        _encode(readings, readings.view(np.int32), codes.numpy(), scale, scale.view(np.int32))
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, _ZERO, self._packed, self._step, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        _decode(out.numpy(), scale, self._bias, self._relu)
        return out


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
def _decode(out: Float32, scale: Float32, bias: Float32, relu: bool) -> None:
    """Turn sums of codes into activations, in place: times the row's scale, plus the bias, cut off at 0 if `relu`."""
    floor = np.float32(0.0) if relu else np.float32(-np.inf)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = max(out[i, j] * scale[i] + bias[j], floor)
