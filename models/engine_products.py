"""Products with fixed weights in float32 on the CPU, by ONNX Runtime.

Its matrix kernels (MLAS) pack the weights once, when they are given, and add up a row in one order whatever the batch
is; MKL, behind torch, packs them anew for every product, which takes as long again as multiplying 64 rows by them.

Legend: B rows, N inputs and M outputs; N', M': rounded up to whole 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.engine_buffers import Workspace
from models.engine_int8 import Layer
from models.engine_rings import padded

_OPSET, _IR = 13, 8  # the oldest that have what is used; any runtime of today reads them
_MOST_BOUND = 256  # places that are remembered; an engine has some dozens
_ERRORS_ONLY = 3


class Product:
    """x W' + b, and ReLU if asked for; NaN stays NaN.

    Parameters
    ----------
    weight, bias : (M, N) and (M,) float32; filled up with zeros.
    relu : whether what is below 0 becomes 0.

    Attributes
    ----------
    takes, gives : N' and M'.
    """

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool = False) -> None:
        outputs, inputs = weight.shape
        self.takes, self.gives = padded(inputs), padded(outputs)
        wide = nn.functional.pad(weight.detach(), (0, self.takes - inputs, 0, self.gives - outputs))
        long = nn.functional.pad(bias.detach(), (0, self.gives - outputs))
        self._session = onnxruntime.InferenceSession(
            graph_of([(wide, long, relu)]).SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )
        self._bound: dict[tuple[int, int, int], onnxruntime.IOBinding] = {}

    def run(self, x: Tensor, out: Tensor) -> Tensor:
        """Multiply (B, N') float32; write to `out` (B, M'), and return it. Neither may have gaps between rows."""
        place = (x.data_ptr(), out.data_ptr(), len(x))
        self._session.run_with_iobinding(self._bound.get(place) or self._bind(place, x, out))
        return out

    def _bind(self, place: tuple[int, int, int], x: Tensor, out: Tensor) -> onnxruntime.IOBinding:
        n = len(x)
        assert x.shape == (n, self.takes)
        assert out.shape == (n, self.gives)
        assert x.is_contiguous()
        assert out.is_contiguous()
        if len(self._bound) == _MOST_BOUND:
            self._bound.clear()
        bound = self._bound[place] = self._session.io_binding()
        bound.bind_input("x", "cpu", 0, TensorProto.FLOAT, tuple(x.shape), x.data_ptr())
        bound.bind_output("y", "cpu", 0, TensorProto.FLOAT, tuple(out.shape), out.data_ptr())
        return bound


class PackedDense:
    """A chain of linear layers as a `models.engine_members.Member`.

    Parameters
    ----------
    layers : as in `models.engine_int8.Int8Dense`.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, layers: Sequence[Layer], space: Workspace) -> None:
        self.shapes = space.batch_sizes()
        most = self.shapes[-1]
        products = [Product(*layer) for layer in layers]
        self._layers = [(p, space.rows(f"packed {i}", most, p.gives)) for i, p in enumerate(products)]
        self._x = space.rows("packed x", most, products[0].takes)
        self._outputs = len(layers[-1][1])

    def expect(self, x: Tensor) -> Tensor:
        """Reconstruct windows, (B, D)."""
        n, readings = x.shape
        if readings != self._x.shape[1] or not x.is_contiguous():
            self._x[:n, :readings] = x
            x = self._x[:n]
        for product, room in self._layers:
            x = product.run(x, room[:n])
        return x[:, : self._outputs]


def graph_of(layers: Sequence[Layer]) -> onnx.ModelProto:
    """Return linear layers, one after the other, as a graph from `x` (B, N) to `y` (B, M)."""
    nodes, weights, at = [], [], "x"
    for i, (weight, bias, relu) in enumerate(layers):
        weights.append(numpy_helper.from_array(np.ascontiguousarray(weight.detach().t().numpy()), f"weight{i}"))
        weights.append(numpy_helper.from_array(bias.detach().numpy(), f"bias{i}"))
        nodes.append(helper.make_node("Gemm", [at, f"weight{i}", f"bias{i}"], [f"sums{i}"]))
        at = f"sums{i}"
        if relu:
            nodes.append(helper.make_node("Relu", [at], [f"above{i}"]))
            at = f"above{i}"
    nodes[-1].output[0] = "y"
    ends = [("x", layers[0][0].shape[1]), ("y", layers[-1][0].shape[0])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name, width in ends)
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def session_options() -> onnxruntime.SessionOptions:
    """Return options for one thread, the caller's, and no memory of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # nothing is allocated: outputs are given
    options.log_severity_level = _ERRORS_ONLY
    return options
