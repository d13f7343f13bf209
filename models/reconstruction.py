"""Members as plain torch modules, for whoever compiles, captures or exports them: scaled windows in, rows out.

The host engine has forms of its own that it runs on buffers (`models.engine_members`); these are built from the same
tensors and agree with them to float32 rounding.

Legend: B windows, w rows of the member's window, C channels, D = w * C readings, k components.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn

from models.autoencoders import Autoencoder, ConvAutoencoder, DenseAutoencoder, load_module
from models.fitted_members import principal, weights_of
from pipeline.bundle import Bundle


class PcaReconstruction(nn.Module):
    """Projection of fully observed windows on principal components, and back: V'(V(x - mean)) + mean.

    Parameters
    ----------
    mean : (D,)
    components : (k, D), orthonormal rows.
    last : readings to reconstruct, counted from the end.
    """

    offset: Tensor
    components: Tensor
    center: Tensor
    decoder: Tensor

    def __init__(self, mean: Tensor, components: Tensor, last: int) -> None:
        super().__init__()
        self.register_buffer("components", components)
        self.register_buffer("offset", -(components @ mean))
        self.register_buffer("center", mean[len(mean) - last :].clone())
        self.register_buffer("decoder", components[:, len(mean) - last :].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, last)."""
        latent = torch.addmm(self.offset, x, self.components.t())
        return torch.addmm(self.center, latent, self.decoder)


class ConvReconstruction(nn.Module):
    """A convolutional autoencoder over flat windows; all rows are decoded, then cut to the last readings."""

    def __init__(self, module: ConvAutoencoder, channels: int, last: int) -> None:
        super().__init__()
        self.encoder, self.decoder = module.encoder, module.decoder
        self._shape, self._last = (module.window, channels), last
        self._before = -module.window % module.total_stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, last)."""
        rows = nn.functional.pad(x.view(-1, *self._shape).transpose(1, 2), (self._before, 0))
        out: Tensor = self.decoder(self.encoder(rows))
        return out.transpose(1, 2).flatten(1)[:, -self._last :]


def reconstruction(bundle: Bundle, group: int, index: int) -> nn.Module:
    """Build member `index` of a group: `forward(x)` takes (B, D) float32, scaled, 0 where not observed.

    It returns (B, C), the last row only, where the member's error is `last`, else (B, D). Parameters are on the CPU,
    in evaluation mode, without gradients. A `pca` takes windows without gaps only.

    Raises
    ------
    BundleError : a kind, parameter or tensor that is missing, unknown or of another shape than the spec says.
    """
    spec, channels = bundle.members[index], len(bundle.channels)
    last = channels if spec.error == "last" else spec.window * channels
    if spec.kind == "pca":
        found = principal(bundle, group, index)
        return PcaReconstruction(torch.from_numpy(found.mean), torch.from_numpy(found.components), last).eval()
    module = fitted_module(bundle, group, index)
    if isinstance(module, DenseAutoencoder):
        net: nn.Module = nn.Sequential(*module.encoder, *module.decoder[:-1], _cut(module.decoder[-1], last))
    elif isinstance(module, ConvAutoencoder):
        net = ConvReconstruction(module, channels, last)
    else:
        assert_never(module)
    return net.eval().requires_grad_(False)


def fitted_module(bundle: Bundle, group: int, index: int) -> Autoencoder:
    """Build the network of a member with its weights, in evaluation mode.

    Raises
    ------
    BundleError : as `models.fitted_members.weights_of`.
    """
    _, weights = weights_of(bundle, group, index)
    return load_module(bundle.members[index], len(bundle.channels), weights)


def _cut(layer: nn.Module, last: int) -> nn.Linear:
    """Return a linear layer that gives the last outputs of another one only."""
    assert isinstance(layer, nn.Linear)
    with torch.device("meta"):
        cut = nn.Linear(layer.in_features, last)
    cut.weight = nn.Parameter(layer.weight.detach()[-last:].clone())
    cut.bias = nn.Parameter(layer.bias.detach()[-last:].clone())
    return cut
