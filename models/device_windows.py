"""The host engine with its members on a device: whole windows cross, in pinned chunks, results come back per channel.

CUDA is served by `models.device_engine`, where only rows cross; this is its yardstick.

Legend: k windows of a chunk, R rows kept, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.device_members import DeviceMember
from models.device_process import reporting, set_precision
from models.engine import HostEngine, chunk_over
from models.engine_rings import Chunk
from models.profiles import Profile
from pipeline.bundle import Bundle
from pipeline.values import Float32, Float64, Int32, Rows, Scores

_CHUNK = 4096  # windows gathered before they cross


class WindowsEngine(HostEngine):
    """Scores rows in float32 on a device; a CPU will do, to see that it works.

    Raises
    ------
    BundleError : tensors that are missing, or do not fit the bundle's members.
    DeviceUnavailable : the device is not there, or its memory is full.
    """

    def __init__(self, bundle: Bundle, profile: Profile) -> None:
        super().__init__(bundle)
        set_precision(profile)
        self._profile, self._device = profile, torch.device(profile.device)
        readings = bundle.window * len(bundle.channels)
        with reporting(self._device), torch.inference_mode():
            pinned = torch.zeros(_CHUNK, readings, pin_memory=self._device.type == "cuda")
            self._chunk = chunk_over(pinned.numpy(), readings)
            there = pinned.to(self._device, copy=True)
            self._scorers = [
                [
                    _Scorer(DeviceMember(bundle, g, m, self._device, torch.float32), there, len(bundle.channels))
                    for m in range(len(bundle.members))
                ]
                for g in range(len(bundle.groups))
            ]

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Take rows, and return one score per row; raises DeviceUnavailable too."""
        with reporting(self._device), torch.inference_mode():
            return super().push(batches)


class _Scorer:
    """As `models.engine_scorer.Scorer`, through a member on a device."""

    def __init__(self, member: DeviceMember, there: torch.Tensor, channels: int) -> None:
        self._member, self._there, self._channels = member, there, channels
        self._results = torch.zeros(2, len(there), channels, device=there.device)
        self._told = torch.zeros(2, len(there), channels, pin_memory=there.device.type == "cuda")
        self.expected: Float32
        self.residual: Float32
        self.expected, self.residual = self._told.numpy()
        self.weight = np.zeros((len(there), channels), np.float32)

    def score(self, chunk: Chunk, k: int) -> Float64:
        """Return the errors (k,) of the first k windows of a chunk."""
        x, results = self._there[:k], self._results[:, :k]
        x.copy_(torch.from_numpy(chunk.x[:k]), non_blocking=True)
        self._member.compare(x, x[:, -self._channels :], results)
        holed = np.flatnonzero(chunk.age[:k] < chunk.observed.shape[1] // self._channels)
        seen = chunk.observed[holed]
        if self._member.masks and len(holed):
            where = torch.from_numpy(holed).to(x.device)
            results[1, where] = self._member.compare_holed(x[where], torch.from_numpy(seen).to(x.device))
        self._told[:, :k].copy_(results)
        self._member.mend(self._told.numpy(), holed, chunk.x[holed], seen)
        observed = np.ones((k, self._channels), np.bool_)
        observed[holed] = seen[:, -self._channels :]
        self.weight[:k] = self._member.weigh(observed, holed, seen)
        return self._member.errors(self.residual[:k], self.weight[:k])
