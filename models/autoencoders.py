"""Autoencoders as torch modules: tensors in, tensors out, nothing else.

Legend: B windows, W rows a window, C channels. Every module takes `x` (B, W, C), scaled, and `observed` (B, W, C),
1.0 where a reading was seen, and returns the reconstruction (B, W, C). What is not observed is masked in: it enters
as 0, the location of its channel, so nothing about it can be read from `x`.

References
----------
Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313 (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError, ShapeError

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class DenseAutoencoder(nn.Module):
    """Fully connected, mirrored: W * C -> hidden -> latent -> hidden reversed -> W * C.

    Parameters
    ----------
    window, channels : W and C; both are fixed by the weights.
    hidden : sizes of the encoder's hidden layers, each followed by a ReLU; () gives a linear autoencoder.
    latent : size of the bottleneck.
    linear_bottleneck : False puts a ReLU on the latents.
    batch_norm : batch normalisation before each ReLU of the encoder.
    dropout : share of the encoder's hidden activations dropped in training.
    """

    def __init__(
        self,
        window: int,
        channels: int,
        hidden: Sequence[int] = (128, 64),
        latent: int = 16,
        linear_bottleneck: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.window, self.channels, self.latent = window, channels, latent
        sizes = (window * channels, *hidden)
        encoder: list[nn.Module] = []
        for taken, given in pairwise(sizes):
            encoder += [nn.Linear(taken, given)]
            encoder += [nn.BatchNorm1d(given)] if batch_norm else []
            encoder += [nn.ReLU()]
            encoder += [nn.Dropout(dropout)] if dropout > 0 else []
        encoder += [nn.Linear(sizes[-1], latent)]
        encoder += [] if linear_bottleneck else [nn.ReLU()]
        back = (latent, *reversed(sizes))
        decoder: list[nn.Module] = []
        for taken, given in pairwise(back):
            decoder += [nn.Linear(taken, given), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder[:-1])

    @property
    def compression_ratio(self) -> float:
        """Readings of a window per latent value."""
        return self.window * self.channels / self.latent

    def describe_inputs(self, batch: int = 1) -> Shapes:
        """Return name -> (shape, dtype) of what `forward` takes, in order."""
        return _inputs(batch, self.window, self.channels)

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Reconstruct windows: (B, W, C), (B, W, C) -> (B, W, C)."""
        _check_inputs(x, observed, self.window, self.channels)
        flat = (x * observed).reshape(x.shape[0], self.window * self.channels)
        out: Tensor = self.decoder(self.encoder(flat))
        return out.reshape(x.shape)


class ConvAutoencoder(nn.Module):
    """Convolutional over time: strided convolutions down to the latents, mirrored transposed ones back up.

    Any window length works: rows are put before the window, unobserved, until its length is a multiple of
    `total_stride`, and cut off the reconstruction again; the last row always has the same phase.

    Fully convolutional, with odd kernels, zero padding at the edges only and nothing that depends on the batch, so the
    same weights can run over an endless series, a few rows at a time. Three properties, all in rows and all computed
    from the layers, say what that takes: `total_stride` (rows per latent step), `receptive_field` (most rows that one
    reconstructed row reads) and `delay` (most rows after it among them: how long it waits until it is final).

    Parameters
    ----------
    window, channels : W and C.
    hidden : channels of the encoder's layers before the latents, each followed by a ReLU.
    latent : channels of the latents (no activation).
    kernels, strides : of each encoder layer, len(hidden) + 1 of them; kernels odd and >= their stride.

    Raises
    ------
    ConfigError : kernels and strides that do not fit one another.
    """

    def __init__(
        self,
        window: int,
        channels: int,
        hidden: Sequence[int] = (32,),
        latent: int = 8,
        kernels: Sequence[int] = (5, 5),
        strides: Sequence[int] = (2, 2),
    ) -> None:
        super().__init__()
        check_layers(hidden, kernels, strides)
        self.window, self.channels, self.latent = window, channels, latent
        sizes = (channels, *hidden, latent)
        layers = list(zip(sizes[:-1], sizes[1:], kernels, strides, strict=True))
        encoder: list[nn.Module] = []
        for taken, given, kernel, stride in layers:
            encoder += [nn.Conv1d(taken, given, kernel, stride, kernel // 2), nn.ReLU()]
        decoder: list[nn.Module] = []
        for given, taken, kernel, stride in reversed(layers):
            # With output_padding = stride - 1 a layer gives back exactly stride times as many rows as it takes.
            decoder += [nn.ConvTranspose1d(taken, given, kernel, stride, kernel // 2, stride - 1), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder[:-1])
        self.decoder = nn.Sequential(*decoder[:-1])

    @property
    def total_stride(self) -> int:
        """Rows per latent step: the product of the strides."""
        product = 1
        for layer in self.encoder:
            if isinstance(layer, nn.Conv1d):
                product *= layer.stride[0]
        return product

    @property
    def receptive_field(self) -> int:
        """Most input rows that one reconstructed row depends on, over all phases, itself included."""
        return max(last - first + 1 for first, last in self._reach())

    @property
    def delay(self) -> int:
        """Most rows after a row that its reconstruction depends on, over all phases."""
        return max(last for _, last in self._reach())

    @property
    def compression_ratio(self) -> float:
        """Readings of a window per latent value."""
        steps = -(-self.window // self.total_stride)
        return self.window * self.channels / (self.latent * steps)

    def describe_inputs(self, batch: int = 1) -> Shapes:
        """Return name -> (shape, dtype) of what `forward` takes, in order."""
        return _inputs(batch, self.window, self.channels)

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
            for layer in reversed(self.decoder):
                if isinstance(layer, nn.ConvTranspose1d):
                    # output o gathers inputs i with o = i * stride - padding + tap, 0 <= tap < kernel
                    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
                    first, last = -(-(first + padding - kernel + 1) // stride), (last + padding) // stride
            for layer in reversed(self.encoder):
                if isinstance(layer, nn.Conv1d):
                    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
                    first, last = first * stride - padding, last * stride - padding + kernel - 1
            reach.append((first - phase, last - phase))
        return reach


Autoencoder = DenseAutoencoder | ConvAutoencoder

MODULES: Mapping[str, Callable[..., Autoencoder]] = {
    "dense": DenseAutoencoder,
    "conv": ConvAutoencoder,
    "stream": ConvAutoencoder,  # the same network, run over an endless series
}


def build_module(member: MemberSpec, channels: int) -> Autoencoder:
    """Build the module of a member, with fresh weights: its `kind` names the class, its `params` the sizes.

    Raises
    ------
    BundleError : a kind or a parameter that this program does not know.
    """
    if member.kind not in MODULES:
        raise BundleError(
            f"member kind {member.kind!r} is no autoencoder, only {', '.join(sorted(MODULES))} are: "
            "the bundle was made by another version; retrain, or go back to that version"
        )
    try:
        return MODULES[member.kind](member.window, channels, **member.params)
    except TypeError as error:
        raise BundleError(f"member {member.kind!r} cannot be built from {dict(member.params)}: {error}") from None


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


def compression_ratio(member: MemberSpec, channels: int) -> float:
    """Return how many readings of a window share one latent value of a member; no weights are made for it."""
    with torch.device("meta"):
        return build_module(member, channels).compression_ratio


def default_latent(kind: str, window: int, channels: int, total_stride: int = 4) -> int:
    """Return a bottleneck that is small on purpose, so that what is not normal does not get through.

    `dense`: 16 values, which is what the recipe was measured with (W * C = 608 and 128), but never more than 1/8 of
    the window's readings and never fewer than 1/50. `conv`: as many channels as make 1/20 of the readings.
    """
    if kind == "conv":
        return max(1, round(channels * total_stride / 20))
    readings = window * channels
    return max(1, min(16, readings // 8), readings // 50)


def _inputs(batch: int, window: int, channels: int) -> Shapes:
    shape = (batch, window, channels)
    return {"x": (shape, torch.float32), "observed": (shape, torch.float32)}


def _check_inputs(x: Tensor, observed: Tensor, window: int, channels: int) -> None:
    if tuple(x.shape[1:]) != (window, channels) or x.shape != observed.shape:
        raise ShapeError(
            f"x is {tuple(x.shape)} and observed {tuple(observed.shape)}: both must be (B, {window}, {channels})"
        )


def check_layers(hidden: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise ConfigError unless convolutions of these sizes fit one another and can be mirrored."""
    if not len(hidden) + 1 == len(kernels) == len(strides):
        raise ConfigError(
            "train.conv_kernels", list(kernels), f"give {len(hidden) + 1} kernels and strides: one per layer"
        )
    for kernel, stride in zip(kernels, strides, strict=True):
        if stride < 1 or kernel % 2 == 0 or kernel < stride:
            raise ConfigError("train.conv_kernels", kernel, f"use an odd kernel of at least its stride ({stride})")
