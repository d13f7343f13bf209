"""Members whose products are of bfloat16 on the CPU: torch's, around the arrays of the engine.

The one profile of the CPU that needs torch: ONNX Runtime has no such products there. It is imported when an engine of
this profile is opened.

Legend: B windows of one batch, C channels, D readings of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.engine_buffers import Workspace
from models.networks import Affine, Convolution, Convolutions
from pipeline.values import Float32


class RoundedDense:
    """A chain of linear layers as a `models.engine_members.Member`.

    Parameters
    ----------
    layers : of the network, in order, in float32: they are rounded here.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, layers: Sequence[Affine], space: Workspace) -> None:
        self.shapes = space.batch_sizes()
        most = self.shapes[-1]
        self._layers = [
            (_rounded(weight).t().contiguous(), _rounded(bias), relu, _room(space, f"layer {i}", most, len(bias)))
            for i, (weight, bias, relu) in enumerate(layers)
        ]
        self._x = _room(space, "rounded", most, layers[0].weight.shape[1])
        self._out = torch.from_numpy(space.rows("out", most, len(layers[-1].bias)))

    @torch.inference_mode()
    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        n = len(x)
        between = self._x[:n].copy_(torch.from_numpy(x))
        for weight, bias, relu, room in self._layers:
            between = torch.addmm(bias, between, weight, out=room[:n])
            if relu:
                between.relu_()
        out: Float32 = self._out[:n].copy_(between).numpy()
        return out


class RoundedConv:
    """A convolutional autoencoder over time-major rows, without a transpose: 2-D layers of height 1, channels last.

    Parameters
    ----------
    net : fitted.
    last : readings to reconstruct, counted from the end; all rows are decoded, then cut.
    space : as in RoundedDense.
    """

    def __init__(self, net: Convolutions, last: int, space: Workspace) -> None:
        self.shapes = space.batch_sizes(convolutional=True)
        self._last = last
        self._rows, self._channels, self._before = net.window, net.channels, net.before
        layers = [module for layer in net.layers for module in _flat(layer)]
        self._net = nn.Sequential(*layers).to(torch.bfloat16).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def expect(self, x: Float32) -> Float32:
        """Reconstruct windows, (B, D)."""
        rows = torch.from_numpy(x).reshape(-1, self._rows, self._channels)
        if self._before:
            rows = nn.functional.pad(rows, (0, 0, self._before, 0))
        flat = rows.to(torch.bfloat16).unsqueeze(1).permute(0, 3, 1, 2)
        back: Tensor = self._net(flat).permute(0, 2, 3, 1)
        out: Float32 = back[:, 0].flatten(1)[:, -self._last :].float().numpy()
        return out


def _rounded(array: Float32) -> Tensor:
    return torch.from_numpy(array).to(torch.bfloat16)


def _room(space: Workspace, name: str, count: int, width: int) -> Tensor:
    return torch.from_numpy(space.rows(name, count, width, np.int16)).view(torch.bfloat16)


def _flat(layer: Convolution) -> list[nn.Module]:
    """Return a layer over time as one over (1, time), and the ReLU after it."""
    kernel, inputs, outputs = layer.weight.shape
    size = ((1, kernel), (1, layer.stride), (0, layer.padding))
    with torch.device("meta"):  # weights follow
        flat = (
            nn.ConvTranspose2d(inputs, outputs, *size, output_padding=(0, layer.stride - 1))
            if layer.transposed
            else nn.Conv2d(inputs, outputs, *size)
        )
    weight = torch.from_numpy(layer.weight).permute((1, 2, 0) if layer.transposed else (2, 1, 0))
    flat.weight = nn.Parameter(weight.unsqueeze(2).contiguous(), requires_grad=False)
    flat.bias = nn.Parameter(torch.from_numpy(layer.bias), requires_grad=False)
    return [flat, nn.ReLU()] if layer.relu else [flat]
