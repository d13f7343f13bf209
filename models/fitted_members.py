"""What a bundle holds of one member of one group, checked: its network, its principal components, its aggregation.

Whoever serves or exports a member builds on these. All are copies.

Legend: C channels, D readings of a window, k components.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.aggregation import FITTED, check_fitted
from models.networks import Affine, Convolutions, Network, affine_layers, convolutions, misfits, network_of
from pipeline.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.values import Float32, Float64

_LEAST_RIDGE = 1e-5  # many times what float32 leaves of the orthogonality of components; below it gaps are ill-posed
_AGGREGATION = "agg."


class Principal(NamedTuple):
    """Principal components, as windows with and without gaps need them."""

    mean: Float32  # (D,)
    components: Float32  # (k, D), orthonormal rows
    variance: Float64  # (k,)
    ridge: Float64  # (k,), noise / variance

    def on_host(self) -> tuple[Float32, Float32, Float64]:
        """Return mean (D,), loadings (D, k) and ridge (k,), as `models.engine_gaps` takes them."""
        return self.mean, np.ascontiguousarray(self.components.T), self.ridge


def signature_of(bundle: Bundle, group: int, index: int) -> tuple[object, ...]:
    """Return what is equal for members that run the same code on arrays of the same shapes."""
    return tuple(sorted((name, array.shape) for name, array in _arrays(bundle, group, index).items()))


def weights_of(bundle: Bundle, group: int, index: int) -> tuple[Network, dict[str, NDArray[Any]]]:
    """Return the network of a member, and its weights, by their names within it.

    Raises
    ------
    BundleError : a kind, parameter or tensor that is missing, unknown or of another shape than the spec says.
    """
    spec, arrays = bundle.members[index], _arrays(bundle, group, index)
    network = network_of(spec, len(bundle.channels))
    weights = {name: array for name, array in arrays.items() if not name.startswith(_AGGREGATION)}
    wrong = misfits(network, weights)
    if wrong:
        kind = "streaming" if spec.kind == "stream" else spec.kind
        raise BundleError(f"bundle {bundle.id}: tensors g{group}.m{index}.* do not fit a {kind} member: {wrong}")
    return network, weights


def fitted_affine(bundle: Bundle, group: int, index: int, last: int) -> list[Affine]:
    """Return the layers of a dense member, of which the last one gives `last` readings only. Raises as `weights_of`."""
    return affine_layers(*weights_of(bundle, group, index), last)


def fitted_convolutions(bundle: Bundle, group: int, index: int) -> Convolutions:
    """Return the layers of a convolutional member. Raises as `weights_of`."""
    return convolutions(*weights_of(bundle, group, index))


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
    mean, components, variance, noise = (np.array(bundle.tensors[name]) for name in names)
    k = len(components) if components.ndim else 0
    shapes = [array.shape for array in (mean, components, variance, noise)]
    if shapes != [(readings,), (k, readings), (k,), ()]:
        raise BundleError(
            f"{prefix}{{mean, components, variance, noise}} are {shapes}: "
            f"expected ({readings},), (k, {readings}), (k,) and ()"
        )
    variance = variance.astype(np.float64)
    ridge = np.maximum(noise.astype(np.float64) / variance, _LEAST_RIDGE)
    return Principal(mean.astype(np.float32), components.astype(np.float32), variance, ridge)


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
