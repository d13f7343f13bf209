"""The streaming engine: a convolutional autoencoder over an endless series, each row encoded and decoded once.

The score of a frame is that of the row `lag` rows before it: the mean error of the last W rows up to that one, equal to
what the network says of the whole series. Steps are whole hops (`models.stream_layers`), at grid slots that are a
multiple of the hop, so where a step falls is a matter of the time stamps alone; the lag is one for all rows, so every
frame has a score of its own, though only one in S does any work. Rows lie on a grid without gaps (`[align] mode =
"grid"`): one that does not follow the row before it starts a new window.

The state is raw rows. What derives from them is made again by running them through the same steps, when the next row
says where on the grid they lie.

Legend: n rows, C channels, S rows of a hop, W row errors averaged, B hops of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models import engine_rows
from models.aggregation import aggregation
from models.engine_buffers import Workspace
from models.engine_rows import Joined, by_group, groups_of, hand_out, join, scalers
from models.engine_scorer import settle
from models.fitted_members import fitted_aggregation, fitted_convolutions
from models.profiles import FALLBACK
from models.stream_layers import averaged, member_span, stream_layers
from models.stream_network import SHAPES, StreamNetwork
from models.stream_rings import Found, Hops, StreamRings, Taken
from pipeline.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.kernels import row_kernel
from pipeline.protocols import RawWindows
from pipeline.values import Float32, Int32, Int64, Rows, Scores

_REVIVED = 256  # slots whose derived state is made again at a time


class StreamEngine:
    """Scores rows with the one streaming member of a bundle; see `pipeline.protocols.Engine`. On the CPU.

    Attributes
    ----------
    fallbacks : groups (as `g0.m0`) whose networks need fewer batch sizes on this machine than hoped for.

    Raises
    ------
    BundleError : other members beside the streaming one; tensors that are missing, or do not fit.
    """

    def __init__(self, bundle: Bundle) -> None:
        if len(bundle.members) != 1 or bundle.members[0].kind != "stream":
            kinds = ", ".join(member.kind for member in bundle.members)
            raise BundleError(f"bundle {bundle.id} has the members {kinds}: a streaming one is served alone")
        self._bundle, member = bundle, bundle.members[0]
        self._channels = len(bundle.channels)
        layers = [stream_layers(fitted_convolutions(bundle, g, 0)) for g in range(len(bundle.groups))]
        space = Workspace(FALLBACK)
        self._networks = [StreamNetwork(of_group, space) for of_group in layers]
        self.fallbacks = settle([[network] for network in self._networks])
        self._errors_of = [
            aggregation(member.aggregate, self._channels, fitted_aggregation(bundle, g, 0))
            for g in range(len(bundle.groups))
        ]
        span = member_span(member)
        self._lag_ns = span.lag * bundle.period_ns
        self._rings = StreamRings(
            span,
            layers[0][0],
            averaged(member),
            bundle.period_ns,
            scalers(bundle, "loc"),
            scalers(bundle, "scale"),
            bundle.soft_clip,
        )
        self._kept = [np.zeros((0, width), np.float32) for width in self._networks[0].widths]
        most, c = SHAPES[-1], self._channels
        self._hops = Hops(
            slots=np.zeros(most, np.int32),
            fresh=np.zeros(most, np.bool_),
            late=np.zeros((most, span.hop, c), np.float32),
            runs=self._networks[0].runs,
        )
        self._residual, self._weight = (np.zeros((most * span.hop, c), np.float32) for _ in range(2))
        self._at = np.zeros(most * span.hop, np.int64)
        self._errors = np.zeros((most, span.hop), np.float64)

    @property
    def model_id(self) -> str:
        """The id of the bundle."""
        return self._bundle.id

    @property
    def profile(self) -> str:
        """The serving profile that thresholds were fitted through."""
        return FALLBACK.name

    @property
    def rows_kept(self) -> int:
        """R: rows per asset on which any state derives."""
        return self._rings.rows

    def allocate(self, assets: Sequence[str]) -> Int32:
        """Give each asset a slot with an empty window; one that no group scores is collected only."""
        slots = self._rings.allocate(groups_of(self._bundle, assets))
        more = len(self._rings) - len(self._kept[0])
        if more:
            self._kept = [np.concatenate([k, np.zeros((more, k.shape[1]), np.float32)]) for k in self._kept]
        return slots

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Take aligned, gated rows with their slots (n,), in order; return one score per row.

        What a score says (shares, expected, actual) is of the row `lag_ns` before the frame that carries it.

        Raises
        ------
        ShapeError : rows of other channels than the bundle's, or slots that do not match them; nothing was taken.
        StateError : a slot that is not allocated; nothing was taken.
        """
        joined, rows = self._taken(batches)
        found = Found.room(*rows.x.shape)
        self._revive(rows)
        self._advance(rows, found)
        return hand_out(batches, joined, engine_rows.Found(*found[:5]), self.model_id, found.actual, self._lag_ns)

    def fill(self, batches: Sequence[tuple[Rows, Int32]]) -> None:
        """Take rows into the windows without scoring them. Raises as `push` does."""
        self._rings.store(self._taken(batches)[1])

    def dump(self, slots: Int32) -> RawWindows:
        """Return the last rows of each slot, as they came."""
        self._rings.check(slots)
        return self._rings.dump(slots)

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put windows back; the scores that follow are those of an engine that was never interrupted, bit by bit."""
        self._rings.check(slots)
        self._rings.load(slots, raw)

    def drop(self, slots: Int32) -> None:
        """Free slots."""
        self._rings.drop(slots)

    def _taken(self, batches: Sequence[tuple[Rows, Int32]]) -> tuple[Joined, Taken]:
        joined = join(batches, self._channels, self.model_id)
        self._rings.check(joined.slots)
        times = np.concatenate([np.empty(0, np.int64), *(rows.ts_ns for rows, _ in batches)])
        return joined, Taken(joined.x, joined.observed, joined.continuity, times, joined.slots)

    def _revive(self, rows: Taken) -> None:
        """Make what derives from raw rows, for the slots that these rows go on with: take those again."""
        slots, follows = self._rings.stale(rows)
        for at in range(0, len(slots), _REVIVED):
            part = slice(at, at + _REVIVED)
            raw = self._rings.dump(slots[part])
            self._rings.restart(slots[part])
            real = np.arange(self.rows_kept) >= self.rows_kept - raw.count[:, None]
            grid = follows[part, None] - self.rows_kept + np.arange(self.rows_kept)
            again = Taken(
                x=raw.x[real],
                observed=raw.observed[real],
                continuity=np.zeros(int(raw.count.sum()), np.uint8),
                ts_ns=grid[real] * self._bundle.period_ns,
                slots=np.repeat(slots[part], raw.count),
            )
            self._advance(again, Found.room(*again.x.shape))

    def _advance(self, rows: Taken, found: Found) -> None:
        """Take rows, group by group; run the hops that they end; write what is found out about each of them."""
        for g, order in by_group(self._rings.group_of(rows.slots)):
            while len(order):
                taken, k = self._rings.take(rows, order, self._hops, found)
                network = self._networks[max(g, 0)]
                slots, fresh = self._hops.slots[:k], self._hops.fresh[:k]
                expected = network.run(slots, fresh, self._kept)
                self._judge(k, expected, network.given, g)
                self._rings.settle(rows, order[:taken], self._hops, expected, network.given, self._errors, found)
                order = order[taken:]

    def _judge(self, k: int, expected: Float32, given: int, group: int) -> None:
        """Write the errors of the rows that k hops reconstruct; NaN for a row of which nothing was observed."""
        if not k:
            return
        self._errors[:k] = np.nan
        m = _residuals(self._hops.late[:k], expected, given, self._residual, self._weight, self._at)
        if m:
            errors = self._errors_of[group](self._residual[:m], self._weight[:m])
            self._errors.reshape(-1)[self._at[:m]] = errors


@row_kernel
def _residuals(late: Float32, expected: Float32, given: int, residual: Float32, weight: Float32, at: Int64) -> int:
    """Write residuals and weights of the rows that hops reconstruct, those with nothing observed left out.

    Parameters
    ----------
    late : (k, S, C), NaN where not observed.
    expected : (k * S / given, padded)
    residual, weight : (B * S, C), and `at` (B * S,), which row each is: written.

    Returns
    -------
    How many there are.
    """
    hops, rows, channels = late.shape
    m = 0
    for k in range(hops):
        for r in range(rows):
            first = (r % given) * channels
            source = expected[(k * rows + r) // given, first : first + channels]
            came, off, counts = late[k, r], residual[m], weight[m]
            missing = 0
            for c in range(channels):
                missing += came[c] != came[c]
                off[c] = came[c] - source[c]
            for c in range(channels):
                counts[c] = np.float32(1.0)
            if missing:
                for c in range(channels):
                    if came[c] != came[c]:
                        off[c] = counts[c] = np.float32(0.0)
            if missing < channels:
                at[m] = k * rows + r
                m += 1
    return m
