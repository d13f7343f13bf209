"""Where the members of an engine work: buffers that are allocated once, and the fixed sizes of their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.engine_rings import padded
from models.profiles import Profile
from pipeline.kernels import aligned_zeros
from pipeline.values import Float32

# The weights of a dense layer are read once a batch, so a large one is worth it; one row must not pay for hundreds; a
# batch of convolutions is cut so that its activations stay in the cache.
SHAPES = (8, 16, 32, 64, 128, 256, 512, 1024)
_CONV_SHAPES = (8, 16, 32, 64, 128, 256)


class Workspace:
    """Buffers by name and width, shared by members of which only one works at a time: one member in all groups.

    Every row starts on a 64-byte boundary.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._rooms: dict[tuple[str, int, int, np.dtype[Any]], NDArray[Any]] = {}
        self._results: Float32 | None = None

    def rows(self, name: str, count: int, width: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return (count, width) of a dtype; what is in it is left over."""
        key = (name, count, width, np.dtype(dtype))
        if key not in self._rooms:
            self._rooms[key] = aligned(count, width, dtype)
        return self._rooms[key]

    def batch_sizes(self, convolutional: bool = False) -> tuple[int, ...]:
        """Return the batch sizes of members, rising."""
        if self.profile.priority == "latency":
            return (1,)
        return _CONV_SHAPES if convolutional else SHAPES

    def results(self, count: int, channels: int) -> Float32:
        """Return (3, count, channels) for what members say: expected last rows, residuals, weights."""
        if self._results is None:
            self._results = np.zeros((3, count, channels), np.float32)
        return self._results


def aligned(count: int, width: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return zeros (count, width), of which every row starts on a 64-byte boundary."""
    across = padded(width, np.dtype(dtype).itemsize)
    return aligned_zeros((count, across), dtype)[:, :width]
