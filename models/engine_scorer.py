"""One member of one group: chunks of windows in, residuals per channel and one error a window out.

Bits must not depend on the batch. Where a gap is decides how a window is scored, and nothing else does; batches have
fixed shapes (`models.engine_members`); and `Scorer.settle` tries on the actual weights whether they keep the promise.

Legend: B windows of one batch, k windows of a chunk, w rows of the member's window, C channels, D = w * C readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numba import njit

from models.aggregation import aggregation
from models.engine_buffers import Workspace, aligned
from models.engine_members import Member, PcaMember, build_member
from models.engine_rings import Chunk
from models.engine_t_squared import TSquared, statistic_of
from models.fitted_members import fitted_aggregation, signature_of
from pipeline.bundle import Bundle
from pipeline.values import Bool, Float32, Float64, Int32, Int64

_SEED = 0  # of the windows that are tried; any will do
_MOST_PADDING = 1.5  # batch size for each row in it
_KNOWN_CUTS = 4096  # numbers of rows whose batches are remembered


class Scorer:
    """Scores chunks with one member of one group.

    Parameters
    ----------
    size : the most windows of a chunk, at least the largest batch.
    space : buffers, the attributes below among them, that other groups' scorers of this member use in their turn.

    Attributes
    ----------
    expected : (size, C) float32, the last rows as the member expects them, scaled.
    residual, weight : (size, C) float32, as in `models.aggregation`. The first k rows are those of the last chunk.
    shapes : batch sizes in use.
    signature : equal for scorers that run the same code on arrays of the same shapes.
    """

    def __init__(self, bundle: Bundle, group: int, index: int, size: int, space: Workspace) -> None:
        spec, channels = bundle.members[index], len(bundle.channels)
        self._member: Member = build_member(bundle, group, index, space)
        self._space, self._channels, self._rows = space, channels, spec.window
        self._readings, self._first = spec.window * channels, (bundle.window - spec.window) * channels
        self._all_seen = np.ones((1, 1), np.bool_)
        self._whole = spec.error == "window"
        self._counted = spec.window if self._whole else 1  # rows that residuals rest on
        self._gaps_matter = self._whole or isinstance(self._member, PcaMember)
        self.signature = signature_of(bundle, group, index)
        self._errors = aggregation(spec.aggregate, channels, fitted_aggregation(bundle, group, index))
        self._t_squared = None if statistic_of(spec) == "q" else TSquared(bundle, group, index, self._first)
        self.shapes = self._member.shapes
        self.expected, self.residual, self.weight = space.results(size, channels)

    def score(self, chunk: Chunk, k: int) -> Float64:
        """Return the errors (k,) of the first k windows of a chunk."""
        windows = chunk.x[:, self._first : self._first + self._readings]
        gaps = _weigh(chunk.observed, chunk.age, self._rows, self._counted, k, self.weight)
        if gaps < k or not self._gaps_matter:  # the others' results are overwritten below
            for at, shape in cuts(k, self.shapes):
                self._plain(windows[at : at + shape], at)
        if gaps and self._gaps_matter:
            holed = np.flatnonzero(chunk.age[:k] < self._rows)
            self._score_holed(windows, chunk.observed[holed, self._first :], holed)
        residual, weight = self.residual[:k], self.weight[:k]
        errors = self._errors(residual, weight)
        if self._t_squared is None:
            return errors
        return self._t_squared.errors(chunk, k, errors, residual, weight)

    @property
    def fell_back(self) -> bool:
        """Whether batch sizes are fewer than the member could take, because its bits depended on them."""
        return self.shapes != self._member.shapes

    def settle(self) -> None:
        """Settle on batch sizes that keep a row's bits.

        What is tried is the way through the member: gaps are a matter of single rows and readings.
        """
        tried = np.random.default_rng(_SEED).standard_normal((self.shapes[-1], self._readings), np.float32)
        # Where a window starts within its row decides how it is aligned: it must start here as it does in a chunk.
        windows = aligned(len(tried), self._first + self._readings)[:, self._first :]

        def run(pick: Int64) -> Float32:
            n = len(pick)
            windows[:n] = tried[pick]
            self._plain(windows[:n], 0)
            return np.stack([self.expected[:n], self.residual[:n]])

        self.shapes = next(s for s in fallbacks(self.shapes) if s == (1,) or keeps_bits(run, s))

    def _plain(self, x: Float32, at: int) -> None:
        """Score windows without gaps, (B, D): expected last rows and residuals, from row `at` on."""
        into = slice(at, at + len(x))
        back = self._member.expect(x)
        _differ(back, x, self._all_seen, False, self._whole, self.expected[into], self.residual[into])

    def _score_holed(self, windows: Float32, observed: Bool, holed: Int64) -> None:
        """Score the windows at `holed`, each by its own `observed` (len(holed), D)."""
        for at, shape in cuts(len(holed), self.shapes):
            pick = np.minimum(np.arange(at, at + shape), len(holed) - 1)  # the last one fills the batch up
            x = self._space.rows("holed", self.shapes[-1], self._readings)[:shape]
            x[:] = windows[holed[pick]]
            seen, member = observed[pick], self._member
            real = min(shape, len(holed) - at)
            back = member.expect_holed(x, seen, real) if isinstance(member, PcaMember) else member.expect(x)
            expected, residual = (np.empty((shape, self._channels), np.float32) for _ in range(2))
            _differ(back, x, seen, True, self._whole, expected, residual)
            where = holed[pick[:real]]
            self.expected[where], self.residual[where] = expected[:real], residual[:real]


class _Settles(Protocol):
    """What tries on its weights which batch sizes keep a row's bits: a `Scorer`, or a streamed network."""

    shapes: tuple[int, ...]

    @property
    def signature(self) -> object: ...

    @property
    def fell_back(self) -> bool: ...

    def settle(self) -> None: ...


def settle(groups: Sequence[Sequence[_Settles]]) -> tuple[str, ...]:
    """Let the members of each group settle; those of equal signatures run the same code, so one of them tries.

    Returns
    -------
    Those that fell back, as `g0.m1`.
    """
    known: dict[object, _Settles] = {}
    fallen = []
    for g, members in enumerate(groups):
        for m, member in enumerate(members):
            twin = known.setdefault((m, member.signature), member)
            if twin is member:
                member.settle()
            member.shapes = twin.shapes
            fallen += [f"g{g}.m{m}"] if member.fell_back else []
    return tuple(fallen)


@lru_cache(_KNOWN_CUTS)
def cuts(rows: int, shapes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return (start, shape) of the fixed-shape batches that cover `rows` rows; the last may reach past them.

    A batch that is not full does its work for nothing: rather two batches than one that is filled by less than 2/3.
    """
    found, at = [], 0
    while at < rows:
        left = rows - at
        fits = next((s for s in shapes if s >= left), shapes[-1])
        smaller = [s for s in shapes if s <= left]
        shape = fits if fits <= _MOST_PADDING * left or not smaller else smaller[-1]
        found.append((at, shape))
        at += shape
    return tuple(found)


def fallbacks(shapes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield all shapes, the largest alone, and single rows, whose place in a batch cannot matter."""
    yield shapes
    yield shapes[-1:]
    yield (1,)


def keeps_bits(run: Callable[[Int64], Float32], shapes: tuple[int, ...]) -> bool:
    """Return whether rows come out the same in every shape, at several places, beside other rows.

    Parameters
    ----------
    run : numbers of rows, in the order of the batch, as many as one of the shapes says -> (2, B, C).
    """
    reference = run(np.arange(shapes[-1]))
    rows = [np.arange(shape) for shape in shapes]
    orders = [order for r in rows for order in (np.roll(r, 1), np.roll(r, 3), np.roll(r[::-1], len(r) // 2))]
    return all(np.array_equal(run(order), reference[:, order]) for order in orders)


@njit(nogil=True, cache=True)
def _differ(
    back: Float32, x: Float32, observed: Bool, gaps: bool, whole: bool, expected: Float32, residual: Float32
) -> None:
    """Write what the last rows were expected to be and the residuals, (B, C), as in `models.aggregation`.

    `back` (B, D), or (B, C) if not `whole`; of `observed` (B, D) nothing is read unless there are gaps.
    """
    channels = expected.shape[1]
    last, end = back.shape[1] - channels, x.shape[1] - channels
    rows = x.shape[1] // channels
    count = np.full(channels, np.float32(rows))
    total = np.empty(channels, np.float32)
    for i in range(back.shape[0]):
        for c in range(channels):
            expected[i, c] = back[i, last + c]
        if not whole:
            for c in range(channels):
                residual[i, c] = x[i, end + c] - back[i, c]
            continue
        total[:] = np.float32(0.0)
        if gaps:
            _add_observed(back[i], x[i], observed[i], total, count)
        else:
            _add(back[i], x[i], total)
        for c in range(channels):
            residual[i, c] = np.sqrt(total[c] / count[c])


@njit(nogil=True, cache=True)
def _add(back: Float32, x: Float32, total: Float32) -> None:
    """Add up squared differences. Within a slice an index cannot be negative: checks would cost three times the sum."""
    channels = len(total)
    for at in range(0, len(x), channels):
        expected, actual = back[at : at + channels], x[at : at + channels]
        for c in range(channels):
            off = expected[c] - actual[c]
            total[c] += off * off


@njit(nogil=True, cache=True)
def _add_observed(back: Float32, x: Float32, observed: Bool, total: Float32, count: Float32) -> None:
    """Add up squared differences where readings were observed, and count those (at least one)."""
    channels = len(total)
    count[:] = np.float32(0.0)
    for at in range(0, len(x), channels):
        for c in range(channels):
            if observed[at + c]:
                off = back[at + c] - x[at + c]
                total[c] += off * off
                count[c] += np.float32(1.0)
    for c in range(channels):
        count[c] = max(count[c], np.float32(1.0))


@njit(nogil=True, cache=True)
def _weigh(observed: Bool, age: Int32, rows: int, counted: int, k: int, weight: Float32) -> int:
    """Count each channel's observed readings in the last `counted` rows of each window.

    Returns
    -------
    How many of the k windows have gaps in their last `rows` rows.
    """
    channels = weight.shape[1]
    readings = observed.shape[1]
    gaps = 0
    for i in range(k):
        gaps += age[i] < rows
        if age[i] >= counted:
            weight[i, :] = np.float32(counted)
            continue
        weight[i, :] = np.float32(0.0)
        for at in range(readings - counted * channels, readings, channels):
            for c in range(channels):
                weight[i, c] += np.float32(observed[i, at + c])
    return gaps
