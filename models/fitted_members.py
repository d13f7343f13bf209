"""What a bundle holds of one member of one group, checked: its network, its principal components, its aggregation.

Whoever serves or exports a member builds on these. All are copies, on the CPU.

Legend: C channels, D readings of a window, k components.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.aggregation import FITTED, check_fitted
from models.autoencoders import Autoencoder, load_module
from pipeline.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.values import Float32, Float64

_LEAST_RIDGE = 1e-5  # many times what float32 leaves of the orthogonality of components; below it gaps are ill-posed
_AGGREGATION = "agg."


class Principal(NamedTuple):
    """Principal components, as windows with and without gaps need them."""

    mean: Tensor  # (D,) float32
    components: Tensor  # (k, D) float32, orthonormal rows
    variance: Tensor  # (k,) float64
    ridge: Tensor  # (k,) float64, noise / variance

    def on_host(self) -> tuple[Float32, Float32, Float64]:
        """Return mean (D,), loadings (D, k) and ridge (k,), as `models.engine_gaps` takes them."""
        return self.mean.numpy(), self.components.t().contiguous().numpy(), self.ridge.numpy()


def signature_of(bundle: Bundle, group: int, index: int) -> tuple[object, ...]:
    """Return what is equal for members that run the same code on arrays of the same shapes."""
    return tuple(sorted((name, array.shape) for name, array in _arrays(bundle, group, index).items()))


def fitted_module(bundle: Bundle, group: int, index: int) -> Autoencoder:
    """Build the network of a member with its weights, in evaluation mode.

    Raises
    ------
    BundleError : a kind, parameter or tensor that is missing, unknown or of another shape than the spec says.
    """
    spec, arrays = bundle.members[index], _arrays(bundle, group, index)
    weights = {name: array for name, array in arrays.items() if not name.startswith(_AGGREGATION)}
    try:
        return load_module(spec, len(bundle.channels), weights)
    except RuntimeError as error:
        kind = "streaming" if spec.kind == "stream" else spec.kind
        what = f"bundle {bundle.id}: tensors g{group}.m{index}.*"
        raise BundleError(f"{what} do not fit a {kind} member: {error}") from None


def principal(bundle: Bundle, group: int, index: int) -> Principal:
    """Return the components of a pca member.

    Raises
    ------
    BundleError : one of its tensors is missing, or of another shape.
    """
    prefix, readings = f"g{group}.m{index}.", bundle.members[index].window * len(bundle.channels)
    names = [prefix + name for name in ("mean", "components", "variance", "noise")]
    missing = [name for name in names if name not in bundle.tensors]
    if missing:
        raise BundleError(f"a pca member lacks the tensors {', '.join(missing)}")
    mean, components, variance, noise = (torch.tensor(bundle.tensors[name]) for name in names)
    k = len(components) if components.ndim else 0
    shapes = [tuple(tensor.shape) for tensor in (mean, components, variance, noise)]
    if shapes != [(readings,), (k, readings), (k,), ()]:
        raise BundleError(
            f"{prefix}{{mean, components, variance, noise}} are {shapes}: "
            f"expected ({readings},), (k, {readings}), (k,) and ()"
        )
    variance = variance.double()
    ridge = (noise.double() / variance).clamp_(min=_LEAST_RIDGE)
    return Principal(mean.float(), components.float(), variance, ridge)


def fitted_aggregation(bundle: Bundle, group: int, index: int) -> dict[str, Float64]:
    """Return what the aggregation of a member was fitted to, by name.

    Raises
    ------
    BundleError : an unknown aggregation, or one of its tensors is missing or of another shape.
    """
    kind, prefix = bundle.members[index].aggregate, f"g{group}.m{index}.{_AGGREGATION}"
    there = [name for name in FITTED.get(kind, ()) if prefix + name in bundle.tensors]
    fitted = {name: np.array(bundle.tensors[prefix + name], np.float64) for name in there}
    check_fitted(kind, len(bundle.channels), fitted)
    return fitted


def _arrays(bundle: Bundle, group: int, index: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a member, by their names within it."""
    prefix = f"g{group}.m{index}."
    return {name.removeprefix(prefix): a for name, a in bundle.tensors.items() if name.startswith(prefix)}
