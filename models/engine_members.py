"""What each kind of member expects to see: windows in, reconstructions out, on the CPU.

Batches have one of a few fixed shapes, and rows of every buffer start on a 64-byte boundary: matrix libraries pick
their code by shape and alignment, and with both fixed a row has the same bits wherever it stands in a batch and
whatever stands beside it. `models.engine_scorer` checks that on the actual weights.

Legend: B windows of one batch, w rows of the member's window, C channels, D = w * C readings, k components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.engine_buffers import Workspace
from models.engine_conv import DirectConv
from models.engine_gaps import reconstruct_holed
from models.engine_products import PackedDense
from models.engine_single import SingleDense
from models.fitted_members import Principal, fitted_affine, fitted_convolutions, principal
from models.networks import Affine, Convolutions
from pipeline.bundle import Bundle
from pipeline.values import Bool, Float32


class Member(Protocol):
    """One fitted model. `shapes`: the batch sizes it takes, rising. A call overwrites what the last one returned."""

    shapes: tuple[int, ...]

    def expect(self, x: Float32) -> Float32:
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
        self._last = last
        # In float32 always: residuals of components are small differences, and cheap.
        self._chain = linear_chain(components_layers(found, last), space, reduced=False)
        self.shapes = self._chain.shapes
        self._on_host = found.on_host()

    def expect(self, x: Float32) -> Float32:
        """Project fully observed windows, and back: x -> V'(V(x - mean)) + mean."""
        return self._chain.expect(x)

    def expect_holed(self, x: Float32, observed: Bool, real: int) -> Float32:
        """Reconstruct windows with gaps, (B, D), from their observed readings, (B, D) bool.

        The first `real` ones: others only fill the batch up, and come back as zeros.
        """
        rows = (np.ascontiguousarray(array[:real]) for array in (x, observed))
        out = np.zeros((len(x), self._last), np.float32)
        reconstruct_holed(*rows, *self._on_host, self._last, out[:real])
        return out


def components_layers(found: Principal, last: int) -> list[Affine]:
    """Return the projection on components, and the way back to the last readings, as layers."""
    first = len(found.mean) - last
    offset = -(found.components.astype(np.float64) @ found.mean.astype(np.float64)).astype(np.float32)
    back = np.ascontiguousarray(found.components[:, first:].T)
    return [Affine(found.components, offset, relu=False), Affine(back, found.mean[first:].copy(), relu=False)]


def build_member(bundle: Bundle, group: int, index: int, space: Workspace) -> Member:
    """Build member `index` of a group from the bundle's tensors.

    Raises
    ------
    BundleError : a kind, parameter or tensor that is missing, unknown or of another shape than the spec says.
    """
    spec, channels = bundle.members[index], len(bundle.channels)
    last = channels if spec.error == "last" else spec.window * channels
    if spec.kind == "pca":
        return PcaMember(principal(bundle, group, index), last, space)
    if spec.kind == "dense":
        return linear_chain(fitted_affine(bundle, group, index, last), space)
    return _convolutional(fitted_convolutions(bundle, group, index), last, space)


def _convolutional(net: Convolutions, last: int, space: Workspace) -> Member:
    if space.profile.precision == "bfloat16" and space.profile.priority != "latency":
        from models import engine_bfloat16

        return engine_bfloat16.RoundedConv(net, last, space)
    return DirectConv(net, last, space)


def linear_chain(layers: Sequence[Affine], space: Workspace, reduced: bool = True) -> Member:
    """Return linear layers as the profile has them computed, or in float32 if not `reduced`."""
    if space.profile.priority == "latency":
        return SingleDense(layers, space)
    if reduced and space.profile.precision == "int8":
        from models import engine_int8

        return engine_int8.Int8Dense(layers, space)
    if reduced and space.profile.precision == "bfloat16":
        from models import engine_bfloat16

        return engine_bfloat16.RoundedDense(layers, space)
    return PackedDense(layers, space)
