"""The scoring engine: aligned, gated rows in, one score per row out, for all partitions and assets of a worker.

Windows live in `models.engine_rings`, models in `models.engine_members`; here they meet, in arrays of numpy. CUDA is
served by `models.device_engine`, which brings torch along: serving on the CPU does without, save for bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.aggregation import channel_shares, combine
from models.engine_buffers import SHAPES, Workspace, aligned
from models.engine_rings import Chunk, Rings, padded
from models.engine_rows import (
    Found,
    Joined,
    by_group,
    groups_of,
    hand_out,
    join,
    nothing,
    scalers,
    to_input_units,
)
from models.engine_scorer import Scorer, settle
from models.profiles import FALLBACK, Precision, Priority, Profile, choose
from models.stream_engine import StreamEngine
from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.protocols import Engine, RawWindows
from pipeline.values import Bool, Float32, Float64, Int32, Int64, Rows, Scores

_CHUNK = SHAPES[-1]  # windows gathered before they are scored: the largest batch of any member


class _Scores(Protocol):
    """What takes chunks of windows to errors: a `Scorer`, whose attributes these are."""

    expected: Float32
    residual: Float32
    weight: Float32

    def score(self, chunk: Chunk, k: int) -> Float64: ...


class HostEngine:
    """Scores rows with the members of a bundle on the CPU; see `pipeline.protocols.Engine`.

    Parameters
    ----------
    bundle : with the tensors of every group.
    profile : how to serve it, one of the CPU's. Bits of bfloat16 hold for one number of torch threads: set it before
        (one, for a worker).

    Attributes
    ----------
    fallbacks : members (as `g0.m1`) that need fewer batch sizes on this machine than hoped for, so that a row's bits
        do not depend on its place in a batch; they score the same, slower.

    Raises
    ------
    BundleError : tensors that are missing, or do not fit the bundle's members.
    """

    def __init__(self, bundle: Bundle, profile: Profile = FALLBACK) -> None:
        self._bundle, self._profile = bundle, profile
        channels, groups = len(bundle.channels), range(len(bundle.groups))
        self._loc, self._scale = scalers(bundle, "loc"), scalers(bundle, "scale")
        self._rings = Rings(bundle.window, self._loc, self._scale, bundle.soft_clip)
        spaces = [Workspace(profile) for _ in bundle.members]
        scorers = [[Scorer(bundle, g, m, _CHUNK, space) for m, space in enumerate(spaces)] for g in groups]
        self.fallbacks = settle(scorers)
        self._scorers: Sequence[Sequence[_Scores]] = scorers
        readings = bundle.window * channels
        self._chunk = chunk_over(aligned(_CHUNK, padded(readings)), readings)

    @property
    def model_id(self) -> str:
        """The id of the bundle."""
        return self._bundle.id

    @property
    def profile(self) -> str:
        """The serving profile that thresholds were fitted through."""
        return self._profile.name

    @property
    def rows_kept(self) -> int:
        """R: rows per asset on which any state derives."""
        return self._bundle.window

    def allocate(self, assets: Sequence[str]) -> Int32:
        """Give each asset a slot with an empty window; one that no group scores is collected only."""
        return self._rings.allocate(groups_of(self._bundle, assets))

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Take aligned, gated rows with their slots (n,), in order; return one score per row.

        Raises
        ------
        ShapeError : rows of other channels than the bundle's, or slots that do not match them; nothing was taken.
        StateError : a slot that is not allocated; nothing was taken.
        """
        joined = join(batches, len(self._bundle.channels), self.model_id)
        found = nothing(*joined.x.shape)
        for group, order in by_group(self._rings.group_of(joined.slots)):
            self._score(group, order, joined, found)
        return hand_out(batches, joined, found, self.model_id)

    def fill(self, batches: Sequence[tuple[Rows, Int32]]) -> None:
        """Take rows into the windows without scoring them. Raises as `push` does."""
        self._rings.store(*join(batches, len(self._bundle.channels), self.model_id))

    def dump(self, slots: Int32) -> RawWindows:
        """Return the last rows of each slot, as they came."""
        return self._rings.dump(slots)

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put windows back; the scores that follow are those of an engine that was never interrupted, bit by bit."""
        self._rings.load(slots, raw)

    def drop(self, slots: Int32) -> None:
        """Free slots."""
        self._rings.drop(slots)

    def _score(self, group: int, order: Int64, rows: Joined, found: Found) -> None:
        """Take the rows at `order`, all of one group, and score the windows that are full."""
        while len(order):
            taken, k = self._rings.take(*rows, order, self._chunk, found.status, found.coverage)
            order = order[taken:]
            if k:
                self._score_chunk(group, k, rows.observed, found)

    def _score_chunk(self, group: int, k: int, observed: Bool, found: Found) -> None:
        scorers = self._scorers[group]
        at = self._chunk.ends[:k]
        found.score[at] = combine([scorer.score(self._chunk, k) for scorer in scorers])
        residuals, weights = [s.residual[:k] for s in scorers], [s.weight[:k] for s in scorers]
        channel_shares(residuals, weights, observed, at, found.by_channel)
        expected = sum((s.expected[:k] for s in scorers[1:]), start=scorers[0].expected[:k])
        scaler = (self._loc[group], self._scale[group], self._bundle.soft_clip)
        to_input_units(expected, len(scorers), at, observed, *scaler, found.expected)


def chunk_over(x: Float32, readings: int) -> Chunk:
    """Return an empty chunk whose windows, of so many readings, lie in `x`."""
    size = len(x)
    return Chunk(x, np.ones((size, readings), np.bool_), np.zeros(size, np.int64), np.zeros(size, np.int32))


def open_engine(
    bundle: Bundle, device: str = "auto", precision: Precision = "float32", priority: Priority = "throughput"
) -> Engine:
    """Open an engine for a bundle, for the profile that `models.profiles.choose` makes of what is asked for.

    Raises
    ------
    ConfigError : as `models.profiles.choose`; a streaming bundle on anything but the CPU, in float32, for throughput.
    BundleError, DeviceUnavailable : as HostEngine, StreamEngine and `models.device_engine.DeviceEngine`, for CUDA.
    """
    profile = choose(device, precision, priority, bundle)
    if bundle.streaming:
        if profile.name != FALLBACK.name:
            fix = f"a streaming model is served as {FALLBACK.name} only: set run.device = 'cpu'"
            raise ConfigError("run.device", profile.name, fix)
        return StreamEngine(bundle)
    if profile.kind == "cuda":
        from models import device_engine

        return device_engine.DeviceEngine(bundle, profile)
    return HostEngine(bundle, profile)
