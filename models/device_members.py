"""Members on a device: windows in, expected last rows and residuals out, with windows that have gaps told apart.

What networks compute is `models.reconstruction`, in the precision of the profile; windows, residuals and all of PCA
are float32. A window with gaps is scored by itself, as in the host engine: a PCA solves it on the host, in float64; a
network whose whole window counts leaves the gaps out of the mean.

Legend: B windows of one batch, k windows of a piece, h of them with gaps, w rows of the member's window, R rows of the
longest, C channels, D = w * C readings.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.aggregation import aggregate
from models.engine_gaps import reconstruct_holed
from models.engine_rings import padded
from models.engine_t_squared import need_q
from models.fitted_members import fitted_aggregation, principal, signature_of
from models.reconstruction import PcaReconstruction, reconstruction
from pipeline.bundle import Bundle
from pipeline.values import Bool, Float32, Float64, Int64


class DeviceMember:
    """One member of one group.

    Parameters
    ----------
    dtype : of a network's products.

    Attributes
    ----------
    signature : equal for members that run the same code on arrays of the same shapes.
    masks : whether windows with gaps need another look on the device (`compare_holed`).
    """

    def __init__(self, bundle: Bundle, group: int, index: int, device: torch.device, dtype: torch.dtype) -> None:
        spec, channels = bundle.members[index], len(bundle.channels)
        need_q(spec, "the engine on CUDA")
        self._rows, self._channels, self._aggregate = spec.window, channels, spec.aggregate
        self._first = (bundle.window - spec.window) * channels
        self._whole, self._pca = spec.error == "window", spec.kind == "pca"
        self._readings = (spec.window if self._whole else 1) * channels  # that are reconstructed
        self._dtype = torch.float32 if self._pca else dtype
        self._net: nn.Module = widened(reconstruction(bundle, group, index)).to(device, self._dtype)
        self.masks = self._whole and not self._pca
        self.signature = signature_of(bundle, group, index)
        self._fitted = fitted_aggregation(bundle, group, index)
        if self._pca:
            self._on_host = principal(bundle, group, index).on_host()

    def compare(self, x: Tensor, last: Tensor, into: Tensor) -> None:
        """Score windows as if they had no gaps: (B, R * C), their last rows (B, C), into (2, B, C)."""
        windows = x[:, self._first :]
        back = self._expect(windows)
        into[0] = back[:, -self._channels :]
        if self._whole:
            squared = (back - windows).square().view(-1, self._rows, self._channels)
            into[1] = (squared.sum(1) / self._rows).sqrt()
        else:
            torch.sub(last, back, out=into[1])

    def _expect(self, windows: Tensor) -> Tensor:
        """(B, D) -> (B, C), or (B, D) where the whole window counts."""
        out: Tensor = self._net(windows.to(self._dtype))
        return out[:, : self._readings].float()

    def compare_holed(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return the residuals (B, C) over the observed readings of windows (B, R * C), `seen` of the same shape."""
        windows, known = x[:, self._first :], seen[:, self._first :].view(-1, self._rows, self._channels)
        back = self._expect(windows)
        squared = (back - windows).square().view(-1, self._rows, self._channels) * known
        return (squared.sum(1) / known.sum(1).clamp(min=1)).sqrt()

    def mend(self, told: Float32, holed: Int64, x: Float32, seen: Bool) -> None:
        """Put right, on the host, what `compare` said (2, k, C) of a PCA's windows at `holed`: x, seen (h, R * C)."""
        part = ~seen[:, self._first :].all(axis=1)
        if not self._pca or not part.any():
            return
        windows, known = np.ascontiguousarray(x[part, self._first :]), np.ascontiguousarray(seen[part, self._first :])
        back = np.empty((len(windows), windows.shape[1] if self._whole else self._channels), np.float32)
        reconstruct_holed(windows, known, *self._on_host, back.shape[1], back)
        told[0, holed[part]] = back[:, -self._channels :]
        if not self._whole:
            told[1, holed[part]] = windows[:, -self._channels :] - back
            return
        shape = (-1, self._rows, self._channels)
        squared = (np.square(back - windows) * known).reshape(shape).sum(axis=1)
        told[1, holed[part]] = np.sqrt(squared / np.maximum(known.reshape(shape).sum(axis=1), 1))

    def weigh(self, observed: Bool, holed: Int64, seen: Bool) -> Float32:
        """Return how many readings residuals rest on, (k, C); `observed` (k, C) is that of the last rows."""
        if not self._whole:
            return observed.astype(np.float32)
        weight = np.full(observed.shape, self._rows, np.float32)
        weight[holed] = seen[:, self._first :].reshape(-1, self._rows, self._channels).sum(axis=1)
        return weight

    def errors(self, residual: Float32, weight: Float32) -> Float64:
        """Return one error a window, (k,)."""
        return aggregate(self._aggregate, residual, weight, self._fitted)


def widened(net: nn.Module) -> nn.Module:
    """Give layers units after their own that are always 0, so that rows of every product are multiples of 64 bytes.

    That is what tensor cores want, and unequal alignment would give rows other bits. Convolutions stay as they are.
    """
    if isinstance(net, PcaReconstruction):
        net.offset, net.components = _stretched(net.offset, 0), _stretched(net.components, 0)
        net.decoder, net.center = _stretched(_stretched(net.decoder, 0), 1), _stretched(net.center, 0)
        return net
    if not isinstance(net, nn.Sequential):
        return net
    layers = list(net)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            taken = _stretched(layer.weight, 1) if i else layer.weight
            layer.weight, layer.bias = (_parameter(_stretched(p, 0)) for p in (taken, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            layer.weight, layer.bias = (_parameter(_stretched(p, 0)) for p in (layer.weight, layer.bias))
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean, layer.running_var = (_stretched(t, 0) for t in (layer.running_mean, layer.running_var))
    return net


def _stretched(tensor: Tensor, axis: int) -> Tensor:
    """Return a tensor with zeros after it along an axis, up to a multiple of 64 bytes of float32."""
    shape = list(tensor.shape)
    shape[axis] = padded(shape[axis]) - shape[axis]
    return torch.cat([tensor.detach(), torch.zeros(shape)], axis)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
