"""Autoencoders as torch modules: tensors in, tensors out, nothing else.

Legend: B windows, W rows a window, C channels. Every module takes `x` (B, W, C), scaled, and `observed` (B, W, C),
1.0 where a reading was seen, and returns the reconstruction (B, W, C). What is not observed is masked in: it enters
as 0, the location of its channel, so nothing about it can be read from `x`.

References
----------
Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313 (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks import NORM_EPS, Conv, Dense, Dropout, Network, Norm, Part, conv_network, dense_network, network_of
from pipeline.bundle import MemberSpec
from pipeline.errors import ShapeError

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class _Autoencoder(nn.Module):
    """Modules of the parts of a network, at the same places."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.window, self.channels = network, network.window, network.channels
        self.encoder = nn.Sequential(*map(_module, network.encoder))
        self.decoder = nn.Sequential(*map(_module, network.decoder))

    @property
    def compression_ratio(self) -> float:
        """Readings of a window per latent value."""
        return self.network.compression_ratio

    def describe_inputs(self, batch: int = 1) -> Shapes:
        """Return name -> (shape, dtype) of what `forward` takes, in order."""
        shape = (batch, self.window, self.channels)
        return {"x": (shape, torch.float32), "observed": (shape, torch.float32)}


class DenseAutoencoder(_Autoencoder):
    """Fully connected, mirrored; parameters are those of `models.networks.dense_network`."""

    def __init__(self, window: int, channels: int, *sizes: Any, **named: Any) -> None:
        super().__init__(dense_network(window, channels, *sizes, **named))

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Reconstruct windows: (B, W, C), (B, W, C) -> (B, W, C)."""
        _check_inputs(x, observed, self.window, self.channels)
        flat = (x * observed).reshape(x.shape[0], self.window * self.channels)
        out: Tensor = self.decoder(self.encoder(flat))
        return out.reshape(x.shape)


class ConvAutoencoder(_Autoencoder):
    """Convolutional over time: strided convolutions down to the latents, mirrored transposed ones back up.

    Any window length works: rows are put before the window, unobserved, until its length is a multiple of
    `total_stride`, and cut off the reconstruction again; the last row always has the same phase.

    Fully convolutional, with odd kernels, zero padding at the edges only and nothing that depends on the batch, so the
    same weights can run over an endless series, a few rows at a time. Three properties, all in rows and all computed
    from the layers, say what that takes: `total_stride` (rows per latent step), `receptive_field` (most rows that one
    reconstructed row reads) and `delay` (most rows after it among them: how long it waits until it is final).

    Parameters are those of `models.networks.conv_network`.

    Raises
    ------
    ConfigError : kernels and strides that do not fit one another.
    """

    def __init__(self, window: int, channels: int, *sizes: Any, **named: Any) -> None:
        super().__init__(conv_network(window, channels, *sizes, **named))

    @property
    def total_stride(self) -> int:
        """Rows per latent step: the product of the strides."""
        return self.network.total_stride

    @property
    def receptive_field(self) -> int:
        """Most input rows that one reconstructed row depends on, over all phases, itself included."""
        return max(last - first + 1 for first, last in self._reach())

    @property
    def delay(self) -> int:
        """Most rows after a row that its reconstruction depends on, over all phases."""
        return max(last for _, last in self._reach())

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Reconstruct windows: (B, W, C), (B, W, C) -> (B, W, C)."""
        _check_inputs(x, observed, self.window, self.channels)
        before = -self.window % self.total_stride
        rows = nn.functional.pad((x * observed).transpose(1, 2), (before, 0))
        out: Tensor = self.decoder(self.encoder(rows))
        return out[:, :, before:].transpose(1, 2)

    def _reach(self) -> list[tuple[int, int]]:
        """Return per phase the first and last input row, relative to the reconstructed one, that it reads."""
        reach = []
        for phase in range(self.total_stride):
            first = last = phase
            for part in reversed((*self.network.encoder, *self.network.decoder)):
                if not isinstance(part, Conv):
                    continue
                kernel, stride, padding = part.kernel, part.stride, part.kernel // 2
                if part.transposed:
                    # output o gathers inputs i with o = i * stride - padding + tap, 0 <= tap < kernel
                    first, last = -(-(first + padding - kernel + 1) // stride), (last + padding) // stride
                else:
                    first, last = first * stride - padding, last * stride - padding + kernel - 1
            reach.append((first - phase, last - phase))
        return reach


Autoencoder = DenseAutoencoder | ConvAutoencoder

_MODULES: Mapping[str, Callable[..., Autoencoder]] = {
    "dense": DenseAutoencoder,
    "conv": ConvAutoencoder,
    "stream": ConvAutoencoder,
}


def build_module(member: MemberSpec, channels: int) -> Autoencoder:
    """Build the module of a member, with fresh weights.

    Raises
    ------
    BundleError : as `models.networks.network_of`.
    """
    network_of(member, channels)
    return _MODULES[member.kind](member.window, channels, **member.params)


def load_module(member: MemberSpec, channels: int, weights: Mapping[str, NDArray[Any]]) -> Autoencoder:
    """Build the module of a member with copies of these weights, by name; in evaluation mode.

    Raises
    ------
    BundleError : as `build_module`.
    RuntimeError : weights that do not fit the member.
    """
    with torch.device("meta"):  # no weights of its own, and no draw from the global random state
        module = build_module(member, channels).eval()
    module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, assign=True)
    return module


def _module(part: Part) -> nn.Module:
    match part:
        case Dense(taken, given):
            return nn.Linear(taken, given)
        case Norm(width):
            return nn.BatchNorm1d(width, NORM_EPS)
        case Dropout(share):
            return nn.Dropout(share)
        case Conv(taken, given, kernel, stride, transposed):
            if not transposed:
                return nn.Conv1d(taken, given, kernel, stride, kernel // 2)
            # With output_padding = stride - 1 a layer gives back exactly stride times as many rows as it takes.
            return nn.ConvTranspose1d(taken, given, kernel, stride, kernel // 2, stride - 1)
        case _:
            return nn.ReLU()


def _check_inputs(x: Tensor, observed: Tensor, window: int, channels: int) -> None:
    if tuple(x.shape[1:]) != (window, channels) or x.shape != observed.shape:
        raise ShapeError(
            f"x is {tuple(x.shape)} and observed {tuple(observed.shape)}: both must be (B, {window}, {channels})"
        )
