"""The engine whose windows live on a device: new rows cross the bus, expected rows and residuals come back.

    host: plan a piece ─▶ pinned rows ─▶ │ scatter into rings ─▶ gather windows ─▶ members │ ─▶ pinned ─▶ aggregate
          (state, scaling)    inward     │               one CUDA graph a batch size       │   outward    (float64)

Two pieces are under way at a time (`models.device_lanes`). Scaling, state and aggregation are those of the host engine,
so the two differ by the rounding of the members' products alone. Everything but graphs and streams runs on the CPU too.

Legend: n rows, B rows of one piece, R rows kept, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import numpy as np
import torch

from models.aggregation import channel_shares, combine
from models.device_lanes import Graphs, Lane, streams_of
from models.device_members import DeviceMember
from models.device_process import reporting, set_precision
from models.device_rings import DeviceRings, Planned
from models.engine_rings import padded
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
from models.engine_scorer import keeps_bits
from models.profiles import Profile
from pipeline.bundle import Bundle
from pipeline.protocols import RawWindows
from pipeline.values import Float32, Int32, Int64, Rows, Scores

BUCKETS = (64, 256, 1024, 4096, 16384, 65536)
_MIDDLE = 4096  # the bucket that every other one must agree with, bit by bit: neither slow for few rows nor for many
_TRIED = 4096  # windows that are tried at the start, again and again where a bucket is larger
_SEED = 0
_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


class DeviceEngine:
    """Scores rows with the members of a bundle on a device; see `pipeline.protocols.Engine`.

    Models of several groups take turns: it is made for fleets that share one.

    Parameters
    ----------
    bundle : with the tensors of every group.
    profile : float32, tf32 or bfloat16; a CPU will do, to see that it works.
    buckets : batch sizes, rising. A bucket in which a row has other bits than in the middle one is left out.

    Attributes
    ----------
    buckets : those in use.
    fallbacks : those that were left out, as text.

    Raises
    ------
    BundleError : tensors that are missing, or do not fit the bundle's members.
    DeviceUnavailable : the device is not there, or its memory is full.
    """

    def __init__(self, bundle: Bundle, profile: Profile, buckets: Sequence[int] = BUCKETS) -> None:
        set_precision(profile)
        self._bundle, self._profile, self._device = bundle, profile, torch.device(profile.device)
        channels, size, dtype = len(bundle.channels), buckets[-1], _DTYPES[profile.precision]
        self._loc, self._scale = scalers(bundle, "loc"), scalers(bundle, "scale")
        with self._working():
            self._rings = DeviceRings(bundle.window, self._loc, self._scale, bundle.soft_clip, self._device)
            readings = bundle.window * channels
            self._x = torch.zeros(size, padded(readings), device=self._device)[:, :readings]
            self._members = [
                [DeviceMember(bundle, g, m, self._device, dtype) for m in range(len(bundle.members))]
                for g in range(len(bundle.groups))
            ]
            self.buckets = self._settled(tuple(buckets))
            streams, count = streams_of(self._device), len(bundle.members)
            shape = (self.buckets[-1], bundle.window, channels, count)
            self._lanes = [Lane(*shape, self._device, streams) for _ in range(2)]
        self.fallbacks = tuple(str(b) for b in buckets if b not in self.buckets)
        self._graphs, self._grown = Graphs(self._device), 0

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
        with self._working():
            return self._rings.allocate(groups_of(self._bundle, assets))

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Take aligned, gated rows with their slots (n,), in order; return one score per row.

        Raises
        ------
        ShapeError : rows of other channels than the bundle's, or slots that do not match them; nothing was taken.
        StateError : a slot that is not allocated; nothing was taken.
        DeviceUnavailable : the device failed. Some rows may have been taken: go on from saved windows, elsewhere.
        """
        joined = join(batches, len(self._bundle.channels), self.model_id)
        found = nothing(*joined.x.shape)
        with self._working():
            for group, order in by_group(self._rings.group_of(joined.slots)):
                self._score(group, order, joined, found)
        return hand_out(batches, joined, found, self.model_id)

    def fill(self, batches: Sequence[tuple[Rows, Int32]]) -> None:
        """Take rows into the windows without scoring them. Raises as `push` does."""
        joined = join(batches, len(self._bundle.channels), self.model_id)
        with self._working():
            self._rings.store(*joined)

    def dump(self, slots: Int32) -> RawWindows:
        """Return the last rows of each slot, as they came: from the host, even if the device is lost."""
        return self._rings.dump(slots)

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put windows back; the scores that follow are those of an engine that was never interrupted, bit by bit."""
        with self._working():
            self._rings.load(slots, raw)

    def drop(self, slots: Int32) -> None:
        """Free slots."""
        self._rings.drop(slots)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with reporting(self._device), torch.inference_mode():
            yield

    def _score(self, group: int, order: Int64, rows: Joined, found: Found) -> None:
        """Take the rows at `order`, all of one group, piece by piece; while one is worked on, the next is planned."""
        under_way: deque[tuple[Lane, Planned]] = deque()
        lanes = cycle(self._lanes)
        while len(order):
            if len(under_way) == len(self._lanes):
                self._collect(group, *under_way.popleft(), rows, found)
            lane = next(lanes)
            planned = self._rings.plan(*rows, order, lane.piece, found.status, found.coverage)
            self._launch(group, lane, planned)
            under_way.append((lane, planned))
            order = order[planned.taken :]
        for lane, planned in under_way:
            self._collect(group, lane, planned, rows, found)

    def _launch(self, group: int, lane: Lane, planned: Planned) -> None:
        bucket = next(b for b in self.buckets if b >= planned.taken)
        piece = lane.piece
        piece.target[planned.taken : bucket] = 0
        piece.start[planned.windows : bucket] = 0
        piece.last[planned.windows : bucket] = 0
        if self._rings.grown != self._grown:
            self._graphs.forget()
            self._grown = self._rings.grown

        def work() -> None:
            self._graphs.run((group, id(lane), bucket), lambda: self._compute(group, lane, bucket))
            if planned.holes and any(member.masks for member in self._members[group]):
                self._compute_holed(group, lane, planned.holes)

        lane.launch(work, bucket, planned.windows)

    def _compute(self, group: int, lane: Lane, bucket: int) -> None:
        """Take one batch into the rings, and score the windows it ends."""
        sent = lane.sent
        self._rings.scatter(sent.target[:bucket], sent.rows[:bucket])
        x = self._x[:bucket]
        self._rings.gather(sent.start[:bucket], x)
        last = sent.rows.index_select(0, sent.last[:bucket])
        for member, results in zip(self._members[group], lane.results, strict=True):
            member.compare(x, last, results[:, :bucket])

    def _compute_holed(self, group: int, lane: Lane, holes: int) -> None:
        """Look again at windows with gaps, in batches of the same sizes; the windows are still there."""
        at = 0
        while at < holes:
            bucket = next((b for b in self.buckets if b >= holes - at), self.buckets[-1])
            pick = np.minimum(np.arange(at, at + bucket), holes - 1)  # the last one fills the batch up
            windows = torch.from_numpy(lane.piece.holed[pick]).to(self._device)
            seen = torch.from_numpy(lane.piece.holed_seen[pick]).to(self._device)
            real = min(bucket, holes - at)
            for member, results in zip(self._members[group], lane.results, strict=True):
                if member.masks:
                    results[1, windows[:real]] = member.compare_holed(self._x[windows], seen)[:real]
            at += bucket

    def _collect(self, group: int, lane: Lane, planned: Planned, rows: Joined, found: Found) -> None:
        """Wait for a piece, and write what came of it."""
        lane.finish()
        if not planned.windows:
            return
        piece, told, members = lane.piece, lane.told.numpy()[:, :, : planned.windows], self._members[group]
        at = piece.ends[: planned.windows]
        gaps = (piece.holed[: planned.holes], piece.holed_x[: planned.holes], piece.holed_seen[: planned.holes])
        for member, said in zip(members, told, strict=True):
            member.mend(said, *gaps)
        observed = rows.observed[at]
        weights = [member.weigh(observed, gaps[0], gaps[2]) for member in members]
        residuals = [np.ascontiguousarray(said[1]) for said in told]
        found.score[at] = combine([m.errors(r, w) for m, r, w in zip(members, residuals, weights, strict=True)])
        channel_shares(residuals, weights, rows.observed, at, found.by_channel)
        expected = sum((said[0] for said in told[1:]), start=told[0, 0].copy())
        scaler = (self._loc[group], self._scale[group], self._bundle.soft_clip)
        to_input_units(expected, len(members), at, rows.observed, *scaler, found.expected)

    def _settled(self, buckets: tuple[int, ...]) -> tuple[int, ...]:
        """Return the buckets in which rows have the bits that they have in the middle one."""
        readings, channels = self._x.shape[1], len(self._bundle.channels)
        tried = np.random.default_rng(_SEED).standard_normal((min(_TRIED, buckets[-1]), readings), np.float32)
        windows = torch.from_numpy(tried).to(self._device)
        middle = next((b for b in buckets if b >= _MIDDLE), buckets[-1])
        kept = buckets
        alone = buckets
        for members in {tuple(m.signature for m in group): group for group in self._members}.values():

            def run(pick: Int64, members: Sequence[DeviceMember] = members) -> Float32:
                x = self._x[: len(pick)].copy_(windows[torch.from_numpy(pick % len(tried)).to(self._device)])
                out = torch.empty(len(members), 2, len(pick), channels, device=self._device)
                for member, results in zip(members, out, strict=True):
                    member.compare(x, x[:, -channels:], results)
                return out.flatten(0, 1).cpu().numpy()

            kept = tuple(b for b in kept if keeps_bits(run, tuple(sorted({b, middle}))))
            alone = alone if kept else tuple(b for b in alone if keeps_bits(run, (b,)))
        return kept or alone[-1:] or (1,)
