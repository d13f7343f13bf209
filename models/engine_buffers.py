"""Where the members of an engine work: buffers that are allocated once, and the fixed sizes of their batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.engine_rings import padded
from models.profiles import Profile

# Batch sizes by kind of device. The weights of a dense layer are read once a batch, so a large one is worth it; one
# row must not pay for hundreds; a batch of convolutions is cut so that its activations stay in the cache.
_SHAPES: Mapping[str, tuple[int, ...]] = {"cpu": (8, 16, 32, 64, 128, 256, 512, 1024), "cuda": (256, 4096)}
_CONV_SHAPES: Mapping[str, tuple[int, ...]] = {"cpu": (8, 16, 32, 64, 128, 256), "cuda": (256, 4096)}


class Workspace:
    """Buffers by name and width, shared by members of which only one works at a time: one member in all groups.

    Every row starts on a 64-byte boundary.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.device = torch.device(profile.device)
        self.dtype = torch.bfloat16 if profile.precision == "bfloat16" else torch.float32  # of products
        self._rooms: dict[tuple[str, int, int, torch.dtype], Tensor] = {}
        self._results: tuple[Tensor, Tensor] | None = None

    def rows(self, name: str, count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (count, width) of a dtype; what is in it is left over."""
        key = (name, count, width, dtype)
        if key not in self._rooms:
            room = torch.zeros(count, padded(width, dtype.itemsize), dtype=dtype, device=self.device)
            self._rooms[key] = room[:, :width]
        return self._rooms[key]

    def batch_sizes(self, convolutional: bool = False) -> tuple[int, ...]:
        """Return the batch sizes of members, rising."""
        if self.profile.priority == "latency":
            return (1,)
        return (_CONV_SHAPES if convolutional else _SHAPES)[self.profile.kind]

    def results(self, count: int, channels: int) -> tuple[Tensor, Tensor]:
        """Return (2, count, channels) on the device for what members say, and (3, count, channels) on the host.

        On the CPU the first is part of the second.
        """
        if self._results is None:
            host = torch.zeros(3, count, channels, pin_memory=self.device.type == "cuda")
            self._results = (host[:2].to(self.device), host)
        return self._results
