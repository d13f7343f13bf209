"""Products with fixed weights in float32 on the CPU, by ONNX Runtime.

Its matrix kernels (MLAS) pack the weights once, when they are given, and add up a row in one order whatever the batch
is; MKL, behind torch, packs them anew for every product, which takes as long again as multiplying 64 rows by them.

Legend: B rows, N inputs and M outputs; N', M': rounded up to whole 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.engine_buffers import Workspace
from models.engine_rings import padded
from models.networks import Affine
from pipeline.values import Float32

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

    def __init__(self, weight: Float32, bias: Float32, relu: bool = False) -> None:
        outputs, inputs = weight.shape
        self.takes, self.gives = padded(inputs), padded(outputs)
        wide = np.pad(weight, ((0, self.gives - outputs), (0, self.takes - inputs)))
        long = np.pad(bias, (0, self.gives - outputs))
        self._graph = InPlace(graph_of([Affine(wide, long, relu)]))

    def run(self, x: Float32, out: Float32) -> Float32:
        """Multiply (B, N') float32; write to `out` (B, M'), and return it. Neither may have gaps between rows."""
        self._graph.run(x, out)
        return out


class InPlace:
    """A graph from `x` to `y` that reads and writes where it is told to, and remembers these places."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )
        self._run, self._bound = self._session.run_with_iobinding, dict[tuple[int, int, int], onnxruntime.IOBinding]()

    def run(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Run from `x` (B, N) to `out` (B, M), as wide as the graph says and without gaps between rows."""
        place = (_address(x), _address(out), len(x))
        self._run(self._bound.get(place) or self._bind(place, x, out))

    def _bind(self, place: tuple[int, int, int], x: NDArray[Any], out: NDArray[Any]) -> onnxruntime.IOBinding:
        ends = zip((*self._session.get_inputs(), *self._session.get_outputs()), (x, out), strict=True)
        for end, array in ends:
            assert array.shape[1:] == tuple(end.shape[1:])
            assert array.flags.c_contiguous
        assert len(x) == len(out)
        if len(self._bound) == _MOST_BOUND:
            self._bound.clear()
        bound = self._bound[place] = self._session.io_binding()
        bound.bind_input("x", "cpu", 0, x.dtype, x.shape, place[0])
        bound.bind_output("y", "cpu", 0, out.dtype, out.shape, place[1])
        return bound


class PackedDense:
    """A chain of linear layers as a `models.engine_members.Member`.

    Parameters
    ----------
    layers : of the network, in order.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, layers: Sequence[Affine], space: Workspace) -> None:
        self.shapes = space.batch_sizes()
        most = self.shapes[-1]
        products = [Product(*layer) for layer in layers]
        self._layers = [(p, space.rows(f"packed {i}", most, p.gives)) for i, p in enumerate(products)]
        self._x = space.rows("packed x", most, products[0].takes)
        self._outputs = len(layers[-1][1])

    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        n, readings = x.shape
        if readings != self._x.shape[1] or not x.flags.c_contiguous:
            self._x[:n, :readings] = x
            x = self._x[:n]
        for product, room in self._layers:
            x = product.run(x, room[:n])
        return x[:, : self._outputs]


def graph_of(layers: Sequence[Affine]) -> onnx.ModelProto:
    """Return linear layers, one after the other, as a graph from `x` (B, N) to `y` (B, M)."""
    nodes, weights, at = [], [], "x"
    for i, (weight, bias, relu) in enumerate(layers):
        weights.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"weight{i}"))
        weights.append(numpy_helper.from_array(bias, f"bias{i}"))
        nodes.append(helper.make_node("Gemm", [at, f"weight{i}", f"bias{i}"], [f"sums{i}"]))
        at = f"sums{i}"
        if relu:
            nodes.append(helper.make_node("Relu", [at], [f"above{i}"]))
            at = f"above{i}"
    nodes[-1].output[0] = "y"
    widths = (layers[0].weight.shape[1], len(layers[-1].bias))
    return model_of(nodes, weights, widths, (TensorProto.FLOAT, TensorProto.FLOAT))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    widths: tuple[int, int],
    kinds: tuple[int, int],
) -> onnx.ModelProto:
    """Return nodes as a graph from `x` (B, N) to `y` (B, M): their widths and element types."""
    ends = zip(("x", "y"), kinds, widths, strict=True)
    x, y = (helper.make_tensor_value_info(name, kind, ["rows", width]) for name, kind, width in ends)
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def session_options() -> onnxruntime.SessionOptions:
    """Return options for one thread, the caller's, and no memory of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # nothing is allocated: outputs are given
    options.log_severity_level = _ERRORS_ONLY
    return options
