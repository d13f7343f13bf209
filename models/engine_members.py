"""What each kind of member expects to see: windows in, reconstructions out, on any torch device.

Batches have one of a few fixed shapes, and rows of every buffer start on a 64-byte boundary: matrix libraries pick
their code by shape and alignment, and with both fixed a row has the same bits wherever it stands in a batch and
whatever stands beside it. `models.engine_scorer` checks that on the actual weights.

Legend: B windows of one batch, w rows of the member's window, C channels, D = w * C readings, k components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from models.autoencoders import ConvAutoencoder, DenseAutoencoder
from models.engine_buffers import Workspace
from models.engine_conv import UnfoldedConv
from models.engine_gaps import reconstruct_holed
from models.engine_int8 import Int8Dense, Layer
from models.engine_products import PackedDense
from models.engine_single import SingleConv, SingleDense
from models.fitted_members import Principal, fitted_module, principal
from pipeline.bundle import Bundle
from pipeline.errors import BundleError


class Member(Protocol):
    """One fitted model. `shapes`: the batch sizes it takes, rising. A call overwrites what the last one returned."""

    shapes: tuple[int, ...]

    def expect(self, x: Tensor) -> Tensor:
        """Reconstruct windows, (B, D) scaled, 0 where not observed: (B, C) last rows only, or (B, D)."""
        ...


class PcaMember:
    """Projection on principal components, and back.

    Parameters
    ----------
    found : its components.
    last : readings to reconstruct, counted from the end: C for the last row only, D for all.
    space : where what it returns, and what lies between, is written.
    """

    def __init__(self, found: Principal, last: int, space: Workspace) -> None:
        mean, components = found.mean.to(space.device), found.components.to(space.device)
        readings = len(mean)
        self._last = last
        project = (components, -(components @ mean), False)
        back = (components[:, readings - last :].t(), mean[readings - last :].clone(), False)
        # In float32 always: residuals of components are small differences, and cheap.
        self._chain = linear_chain([project, back], space, reduced=False)
        self.shapes = self._chain.shapes
        self._on_host = found.on_host()

    def expect(self, x: Tensor) -> Tensor:
        """Project fully observed windows, and back: x -> V'(V(x - mean)) + mean."""
        return self._chain.expect(x)

    def expect_holed(self, x: Tensor, observed: Tensor, real: int) -> Tensor:
        """Reconstruct windows with gaps, (B, D), from their observed readings, (B, D) bool; on the host.

        The first `real` ones: others only fill the batch up, and come back as zeros.
        """
        rows = (np.ascontiguousarray(tensor[:real].cpu().numpy()) for tensor in (x, observed))
        out = np.zeros((len(x), self._last), np.float32)
        reconstruct_holed(*rows, *self._on_host, self._last, out[:real])
        return torch.from_numpy(out).to(x.device)


class DenseMember:
    """A dense autoencoder as a chain of matrix products over buffers that are allocated once.

    For devices and reduced precision; `models.engine_products` has the one for float32 on the CPU.

    Parameters
    ----------
    layers : as `models.engine_int8.Int8Dense`; those of reduced precision are rounded here.
    space : as in PcaMember.
    dtype : of weights and products.
    """

    def __init__(self, layers: Sequence[Layer], space: Workspace, dtype: torch.dtype) -> None:
        self.shapes = space.batch_sizes()
        most = self.shapes[-1]
        self._layers = [
            (weight.t().to(dtype).contiguous(), bias.to(dtype), relu, space.rows(f"layer {i}", most, len(bias), dtype))
            for i, (weight, bias, relu) in enumerate(layers)
        ]
        self._rounded = space.rows("rounded", most, layers[0][0].shape[1], dtype)
        self._out = space.rows("out", most, len(layers[-1][1]))

    def expect(self, x: Tensor) -> Tensor:
        """Reconstruct windows, (B, D)."""
        n = len(x)
        if x.dtype != self._rounded.dtype:
            x = self._rounded[:n].copy_(x)
        for weight, bias, relu, room in self._layers:
            x = torch.addmm(bias, x, weight, out=room[:n])
            if relu:
                x.relu_()
        return x if x.dtype == self._out.dtype else self._out[:n].copy_(x)


class ConvMember:
    """A convolutional autoencoder over time-major rows, without a transpose: 2-D layers of height 1, channels last.

    For devices and reduced precision; `models.engine_conv` has the one for float32 on the CPU.

    Parameters
    ----------
    module : fitted, in evaluation mode.
    last, space : as in PcaMember; all rows are decoded, then cut.
    """

    def __init__(self, module: ConvAutoencoder, last: int, space: Workspace) -> None:
        self.shapes = space.batch_sizes(convolutional=True)
        self._last = last
        self._rows, self._channels = module.window, next(module.parameters()).shape[1]
        self._before = -module.window % module.total_stride
        layers = [_flat_layer(layer) for layer in (*module.encoder, *module.decoder)]
        self._dtype = space.dtype
        self._net = nn.Sequential(*layers).to(self._dtype).to(memory_format=torch.channels_last).eval()

    def expect(self, x: Tensor) -> Tensor:
        """Reconstruct windows, (B, D)."""
        rows = x.view(-1, self._rows, self._channels)
        if self._before:
            rows = nn.functional.pad(rows, (0, 0, self._before, 0))
        out: Tensor = self._net(rows.to(self._dtype).unsqueeze(1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out[:, 0].flatten(1)[:, -self._last :].float()


def build_member(bundle: Bundle, group: int, index: int, space: Workspace) -> Member:
    """Build member `index` of a group from the bundle's tensors, on the device of its workspace.

    Raises
    ------
    BundleError : a kind, parameter or tensor that is missing, unknown or of another shape than the spec says.
    """
    spec, channels = bundle.members[index], len(bundle.channels)
    last = channels if spec.error == "last" else spec.window * channels
    if spec.kind == "pca":
        return PcaMember(principal(bundle, group, index), last, space)
    module = fitted_module(bundle, group, index).to(space.device)
    if isinstance(module, DenseAutoencoder):
        return linear_chain(dense_layers(module, last), space)
    if isinstance(module, ConvAutoencoder):
        return _convolutional(module, last, space)
    assert_never(module)  # mypy says so first: a new kind of autoencoder needs its member here


def _convolutional(module: ConvAutoencoder, last: int, space: Workspace) -> Member:
    if space.profile.priority == "latency":
        return SingleConv(module, last, space)
    if space.device.type == "cpu" and space.dtype == torch.float32:
        return UnfoldedConv(module, last, space)
    return ConvMember(module, last, space)


def linear_chain(layers: Sequence[Layer], space: Workspace, reduced: bool = True) -> Member:
    """Return linear layers as the profile has them computed, or in float32 if not `reduced`."""
    if space.profile.priority == "latency":
        return SingleDense(layers, space)
    if reduced and space.profile.precision == "int8":
        return Int8Dense(layers, space)
    dtype = space.dtype if reduced else torch.float32
    if space.device.type == "cpu" and dtype == torch.float32:
        return PackedDense(layers, space)
    return DenseMember(layers, space, dtype)


def dense_layers(module: DenseAutoencoder, last: int) -> list[Layer]:
    """Return the layers of a module at inference, of which the last one gives `last` readings only.

    Batch normalisation is folded into the layer before it.
    """
    layers = _linear_layers([*module.encoder, *module.decoder])
    weight, bias, relu = layers[-1]
    return [*layers[:-1], (weight[len(weight) - last :].clone(), bias[len(bias) - last :].clone(), relu)]


def _linear_layers(modules: Iterable[nn.Module]) -> list[Layer]:
    """Return (weight (out, in), bias (out,), ReLU after it) of each linear layer, as it is at inference."""
    layers: list[Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append((module.weight.detach(), module.bias.detach(), False))
        elif isinstance(module, nn.BatchNorm1d):
            layers[-1] = _folded(*layers[-1][:2], module)
        elif isinstance(module, nn.ReLU):
            layers[-1] = (*layers[-1][:2], True)
        elif not isinstance(module, nn.Dropout):
            raise BundleError(f"no engine for a dense member with a {type(module).__name__} layer")
    return layers


def _folded(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor, bool]:
    if norm.running_mean is None or norm.running_var is None:
        raise BundleError("a batch normalisation without running statistics cannot be served")
    gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return weight * gain[:, None], (bias - norm.running_mean) * gain + norm.bias.detach(), False


def _flat_layer(layer: nn.Module) -> nn.Module:
    """Return a layer over time as one over (1, time)."""
    if isinstance(layer, nn.ReLU):
        return layer
    if not isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
        raise BundleError(f"no engine for a convolutional member with a {type(layer).__name__} layer")
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    ends, size = (layer.in_channels, layer.out_channels), ((1, kernel), (1, stride), (0, padding))
    with torch.device("meta"):  # weights follow
        flat = (
            nn.Conv2d(*ends, *size)
            if isinstance(layer, nn.Conv1d)
            else nn.ConvTranspose2d(*ends, *size, output_padding=(0, layer.output_padding[0]))
        )
    assert layer.bias is not None
    assert flat.bias is not None
    flat.weight = nn.Parameter(layer.weight.detach().unsqueeze(2).contiguous(), requires_grad=False)
    flat.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return flat
