"""Autoencoders as lists of layers, and their weights as the arrays that serving multiplies by: no library underneath.

`models.autoencoders` builds its modules from the same lists, so that there is one description of each kind: a layer's
place in its list is its place in the module, and names its tensors.

Legend: W rows of a window, C channels; of one layer: N inputs and M outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError
from pipeline.values import Float32

NORM_EPS = 1e-5  # added to the variance of a batch normalisation

Weights = Mapping[str, NDArray[Any]]


class Dense(NamedTuple):
    """A linear layer."""

    taken: int
    given: int


class Norm(NamedTuple):
    """Batch normalisation of so many values."""

    width: int


class Relu(NamedTuple):
    """What is below 0 becomes 0."""


class Dropout(NamedTuple):
    """A share of the values is dropped in training."""

    share: float


class Conv(NamedTuple):
    """A convolution over time, padded with kernel // 2 zeros at both ends.

    A transposed one gives `stride` times as many rows as it takes.
    """

    taken: int
    given: int
    kernel: int
    stride: int
    transposed: bool = False


Part = Dense | Norm | Relu | Dropout | Conv


class Network(NamedTuple):
    """An autoencoder of windows (W, C): its parts in order."""

    window: int
    channels: int
    latent: int
    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]

    @property
    def total_stride(self) -> int:
        """Rows per latent step: the product of the strides; of a dense one, 1."""
        return prod(part.stride for part in self.encoder if isinstance(part, Conv))

    @property
    def compression_ratio(self) -> float:
        """Readings of a window per latent value."""
        convolutional = any(isinstance(part, Conv) for part in self.encoder)
        steps = -(-self.window // self.total_stride) if convolutional else 1
        return self.window * self.channels / (self.latent * steps)


class Affine(NamedTuple):
    """A fitted linear layer: x W' + b, and ReLU if asked for."""

    weight: Float32  # (M, N)
    bias: Float32  # (M,)
    relu: bool


class Convolution(NamedTuple):
    """A fitted convolution over time, of a network that goes down to its latents and back up."""

    weight: Float32  # (kernel, N, M)
    bias: Float32  # (M,)
    stride: int
    padding: int
    relu: bool
    transposed: bool


class Convolutions(NamedTuple):
    """A fitted convolutional autoencoder."""

    window: int  # W
    total_stride: int
    layers: tuple[Convolution, ...]

    @property
    def channels(self) -> int:
        """C."""
        return int(self.layers[0].weight.shape[1])

    @property
    def before(self) -> int:
        """Rows, unobserved, that are put before a window to make it whole steps of the latents."""
        return -self.window % self.total_stride


def dense_network(
    window: int,
    channels: int,
    hidden: Sequence[int] = (128, 64),
    latent: int = 16,
    linear_bottleneck: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Network:
    """Return a fully connected, mirrored one: W * C -> hidden -> latent -> hidden reversed -> W * C.

    Parameters
    ----------
    window, channels : W and C; both are fixed by the weights.
    hidden : sizes of the encoder's hidden layers, each followed by a ReLU; () gives a linear autoencoder.
    latent : size of the bottleneck.
    linear_bottleneck : False puts a ReLU on the latents.
    batch_norm : batch normalisation before each ReLU of the encoder.
    dropout : share of the encoder's hidden activations dropped in training.
    """
    sizes = (window * channels, *hidden)
    encoder: list[Part] = []
    for taken, given in pairwise(sizes):
        encoder += [Dense(taken, given)]
        encoder += [Norm(given)] if batch_norm else []
        encoder += [Relu()]
        encoder += [Dropout(dropout)] if dropout > 0 else []
    encoder += [Dense(sizes[-1], latent)]
    encoder += [] if linear_bottleneck else [Relu()]
    decoder: list[Part] = []
    for taken, given in pairwise((latent, *reversed(sizes))):
        decoder += [Dense(taken, given), Relu()]
    return Network(window, channels, latent, tuple(encoder), tuple(decoder[:-1]))


def conv_network(
    window: int,
    channels: int,
    hidden: Sequence[int] = (32,),
    latent: int = 8,
    kernels: Sequence[int] = (5, 5),
    strides: Sequence[int] = (2, 2),
) -> Network:
    """Return a convolutional one: strided convolutions down to the latents, mirrored transposed ones back up.

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
    check_layers(hidden, kernels, strides)
    sizes = (channels, *hidden, latent)
    layers = list(zip(sizes[:-1], sizes[1:], kernels, strides, strict=True))
    encoder: list[Part] = []
    for taken, given, kernel, stride in layers:
        encoder += [Conv(taken, given, kernel, stride), Relu()]
    decoder: list[Part] = []
    for given, taken, kernel, stride in reversed(layers):
        decoder += [Conv(taken, given, kernel, stride, transposed=True), Relu()]
    return Network(window, channels, latent, tuple(encoder[:-1]), tuple(decoder[:-1]))


NETWORKS: Mapping[str, Callable[..., Network]] = {
    "dense": dense_network,
    "conv": conv_network,
    "stream": conv_network,  # the same network, run over an endless series
}


def network_of(member: MemberSpec, channels: int) -> Network:
    """Return the network of a member: its `kind` names the function, its `params` the sizes.

    Raises
    ------
    BundleError : a kind or a parameter that this program does not know.
    """
    if member.kind not in NETWORKS:
        raise BundleError(
            f"member kind {member.kind!r} is no autoencoder, only {', '.join(sorted(NETWORKS))} are: "
            "the bundle was made by another version; retrain, or go back to that version"
        )
    try:
        return NETWORKS[member.kind](member.window, channels, **member.params)
    except TypeError as error:
        raise BundleError(f"member {member.kind!r} cannot be built from {dict(member.params)}: {error}") from None


def check_layers(hidden: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise ConfigError unless convolutions of these sizes fit one another and can be mirrored."""
    if not len(hidden) + 1 == len(kernels) == len(strides):
        raise ConfigError(
            "train.conv_kernels", list(kernels), f"give {len(hidden) + 1} kernels and strides: one per layer"
        )
    for kernel, stride in zip(kernels, strides, strict=True):
        if stride < 1 or kernel % 2 == 0 or kernel < stride:
            raise ConfigError("train.conv_kernels", kernel, f"use an odd kernel of at least its stride ({stride})")


def default_latent(kind: str, window: int, channels: int, total_stride: int = 4) -> int:
    """Return a bottleneck that is small on purpose, so that what is not normal does not get through.

    `dense`: 16 values, which is what the recipe was measured with (W * C = 608 and 128), but never more than 1/8 of
    the window's readings and never fewer than 1/50. `conv`: as many channels as make 1/20 of the readings.
    """
    if kind == "conv":
        return max(1, round(channels * total_stride / 20))
    readings = window * channels
    return max(1, min(16, readings // 8), readings // 50)


def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that a network has, by name."""
    halves = {"encoder": network.encoder, "decoder": network.decoder}
    return {
        f"{half}.{i}.{name}": shape
        for half, parts in halves.items()
        for i, part in enumerate(parts)
        for name, shape in _shapes(part).items()
    }


def _shapes(part: Part) -> dict[str, tuple[int, ...]]:
    match part:
        case Dense(taken, given):
            return {"weight": (given, taken), "bias": (given,)}
        case Norm(width):
            of_each = ("weight", "bias", "running_mean", "running_var")
            return {**dict.fromkeys(of_each, (width,)), "num_batches_tracked": ()}
        case Conv(taken, given, kernel, _, transposed):
            return {"weight": (taken, given, kernel) if transposed else (given, taken, kernel), "bias": (given,)}
        case _:
            return {}


def misfits(network: Network, weights: Weights) -> str:
    """Return what is wrong with the weights of a network; empty: nothing."""
    want = shapes_of(network)
    found = [f"{name} is missing" for name in want if name not in weights]
    found += [f"{name} is not known" for name in weights if name not in want]
    found += [
        f"{name} is {weights[name].shape}, not {shape}"
        for name, shape in want.items()
        if name in weights and weights[name].shape != shape
    ]
    return ", ".join(found)


def affine_layers(network: Network, weights: Weights, last: int) -> list[Affine]:
    """Return the layers of a dense network at inference, copied, of which the last one gives `last` readings only.

    Batch normalisation is folded into the layer before it.
    """
    layers: list[Affine] = []
    for half, parts in (("encoder", network.encoder), ("decoder", network.decoder)):
        for i, part in enumerate(parts):
            own = {name: np.array(weights[f"{half}.{i}.{name}"], np.float32) for name in _shapes(part)}
            match part:
                case Dense():
                    layers.append(Affine(own["weight"], own["bias"], relu=False))
                case Norm():
                    layers[-1] = _folded(layers[-1], own)
                case Relu():
                    layers[-1] = layers[-1]._replace(relu=True)
    end = layers[-1]
    return [*layers[:-1], end._replace(weight=end.weight[-last:].copy(), bias=end.bias[-last:].copy())]


def _folded(layer: Affine, norm: Mapping[str, Float32]) -> Affine:
    gain = norm["weight"] / np.sqrt(norm["running_var"] + np.float32(NORM_EPS))
    return Affine(layer.weight * gain[:, None], (layer.bias - norm["running_mean"]) * gain + norm["bias"], layer.relu)


def convolutions(network: Network, weights: Weights) -> Convolutions:
    """Return the layers of a convolutional network, copied."""
    layers: list[Convolution] = []
    for half, parts in (("encoder", network.encoder), ("decoder", network.decoder)):
        for i, part in enumerate(parts):
            if isinstance(part, Relu):
                layers[-1] = layers[-1]._replace(relu=True)
            elif isinstance(part, Conv):
                weight, bias = (np.array(weights[f"{half}.{i}.{name}"], np.float32) for name in ("weight", "bias"))
                taps = np.ascontiguousarray(weight.transpose((2, 0, 1) if part.transposed else (2, 1, 0)))
                layers.append(Convolution(taps, bias, part.stride, part.kernel // 2, False, part.transposed))
    return Convolutions(network.window, network.total_stride, tuple(layers))
