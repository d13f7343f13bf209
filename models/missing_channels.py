"""What a missing channel does to errors: the held-out rows once more, with one channel hidden after the other.

For each model and each channel two numbers, as `pipeline.standardise` applies them: `shift`, by how much the median of
the logarithmic errors moves; `gain`, what their distance from it is multiplied by, so that the smoothed score passes
its threshold as often as with all channels. The gain is found by bisection, through the smoother itself.

Assets of one model share both: on simulated pumps those of single pumps differed by little, and tails are short of
rows. Row 0 takes those of the model that scores unknown assets, else the mean over models.

Hiding C channels in turn would make calibration C + 1 times as long, so blocks of rows are hidden, not all of them:
half of the blocks are those with the highest scores, which thresholds rest on, and count once; the other half are
spread evenly over the rest, and each counts for those left out around it (a stratified sample). A model gets as many
rows as `_rows_for` says. With few of them the tail is matched where at least `_ABOVE` rows lie beyond.

Legend: n held-out rows of one asset, m sampled rows of a model, C channels, K rows of the calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from models.held_out import Held, Smoothing, rows_of
from models.series import Series, thinned
from pipeline.bundle import POOLED, Bundle, Calibration, SmootherSpec
from pipeline.protocols import Engine
from pipeline.standardise import GAIN_LIMIT
from pipeline.values import Bool, Float32, Float64, Int64, Rows

_BLOCK = 64  # rows that follow one another, so that the EWMA has a past
_MOST_ROWS, _LEAST_ROWS = 16_384, 512  # sampled of one model
_MOST_SCORES = 2**19  # of all models and channels, unless `_LEAST_ROWS` of each are more
_FEWEST = 100  # rows of a model; with fewer nothing is measured
_ABOVE = 30  # rows that lie beyond the level at which tails are matched
_HALVINGS = 12  # of the range that holds the gain
_PUSHED = 8192  # rows that go through the engine at a time


@dataclass(frozen=True, slots=True)
class _Sample:
    """The sampled rows of one model, asset after asset."""

    held: tuple[Held, ...]  # sampled rows of each asset
    cal_row: tuple[int, ...]  # of each asset
    weight: Float64  # (m,), held-out rows that a row stands for; 0 where it does not count

    def joined(self, name: str) -> Float32 | Bool | Int64:
        """Return a column of all assets, (m, ...)."""
        return np.concatenate([getattr(h, name) for h in self.held])


def missing_channels(
    engine: Engine, bundle: Bundle, series: Sequence[Series], held: Sequence[Held], calibration: Calibration
) -> tuple[Float32, Float32]:
    """Return `missing_shift` and `missing_gain`, (K, C) float32 each.

    0 and 1, that is errors as they are, stand for what cannot be measured: a channel that an asset lacks in most of its
    held-out rows (its figures are those of errors without it), or one without which nothing is scored.

    Parameters
    ----------
    held : of the engine, as `models.held_out.held_out` returns them.
    calibration : with thresholds, and without figures for missing channels.
    """
    rows, channels = len(calibration.mad), len(bundle.channels)
    by_name, row_of = {one.asset: one for one in series}, calibration.row_of()
    models: dict[int | None, list[Held]] = {}
    for h in held:
        models.setdefault(bundle.asset_group.get(h.asset, bundle.default_group), []).append(h)
    most = _rows_for(len(models), channels)
    found: dict[int | None, Float64] = {}
    for model, members in models.items():
        if sum(int(h.counts.sum()) for h in members) >= _FEWEST:
            sample = _sampled(members, [row_of.get(h.asset, POOLED) for h in members], calibration, bundle, most)
            hidden = _hidden_errors(engine, by_name, sample, channels)
            found[model] = _measured(sample, hidden, calibration, bundle.smoother)
    nothing = np.stack([np.zeros(channels), np.ones(channels)])
    mean: Float64 = np.mean(list(found.values()), axis=0) if found else nothing
    pooled = found.get(bundle.default_group, mean)
    figures = np.repeat(pooled[:, None], rows, axis=1)
    for model, members in models.items():
        for h in members:
            if h.asset in row_of:
                lacks = h.observed.mean(axis=0) < 0.5
                figures[:, row_of[h.asset]] = np.where(lacks, nothing, found.get(model, pooled))
    shift, gain = figures.astype(np.float32)
    return shift, gain


def _rows_for(models: int, channels: int) -> int:
    return max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_SCORES // (models * channels)))


def _sampled(
    held: Sequence[Held], cal_row: Sequence[int], calibration: Calibration, bundle: Bundle, most: int
) -> _Sample:
    """Choose at most about `most` rows, in blocks: the highest, and some of the others."""
    peak, place = [], []
    for i, (h, row) in enumerate(zip(held, cal_row, strict=True)):
        ratio = Smoothing([h], [row], calibration, bundle.smoother).run() / calibration.threshold[row]
        ratio = np.where(h.counts, ratio, -np.inf)
        begins = np.arange(0, len(ratio), _BLOCK)
        peak.append(np.maximum.reduceat(ratio, begins) if len(ratio) else ratio)
        place.append(np.stack([np.full(len(begins), i), begins], axis=1))
    highest, where = np.concatenate(peak), np.concatenate(place)
    order = np.argsort(-highest, kind="stable")[: int(np.isfinite(highest).sum())]
    blocks = -(-most // _BLOCK)
    sure = blocks if len(order) <= blocks else blocks // 2
    rest = np.sort(order[sure:])
    picked = thinned(rest, blocks - sure)
    weight = np.zeros(len(highest))
    weight[order[:sure]] = 1.0
    weight[picked] = len(rest) / max(len(picked), 1)
    of_row = [np.zeros(len(h.error)) for h in held]
    for (i, begin), stands_for in zip(where, weight, strict=True):
        of_row[i][begin : begin + _BLOCK] = stands_for
    chosen = [(h.take(w > 0), row, w[w > 0]) for h, row, w in zip(held, cal_row, of_row, strict=True) if w.any()]
    counts = np.concatenate([h.counts for h, _, _ in chosen])
    weights = np.where(counts, np.concatenate([w for _, _, w in chosen]), 0.0)
    return _Sample(tuple(h for h, _, _ in chosen), tuple(row for _, row, _ in chosen), weights)


def _hidden_errors(engine: Engine, series: Mapping[str, Series], sample: _Sample, channels: int) -> Float32:
    """Return (C, m) errors of the sampled rows with each channel hidden; NaN where there is none."""
    out = np.full((channels, len(sample.weight)), np.nan, np.float32)
    at = 0
    for batch in _batches(sample, series, engine.rows_kept):
        before = _joined([rows_of(one, slice(max(first - engine.rows_kept + 1, 0), first)) for one, first, _ in batch])
        rows = _joined([rows_of(one, slice(first, stop)) for one, first, stop in batch])
        to = slice(at, at + len(rows))
        lead = [min(first, engine.rows_kept - 1) for _, first, _ in batch]
        for c in range(channels):
            slots = engine.allocate([one.asset for one, _, _ in batch])
            engine.fill([(_without(before, c), np.repeat(slots, lead))])
            lengths = [stop - first for _, first, stop in batch]
            out[c, to] = engine.push([(_without(rows, c), np.repeat(slots, lengths))])[0].score
            engine.drop(slots)
        at = to.stop
    return out


def _batches(sample: _Sample, series: Mapping[str, Series], rows_kept: int) -> Iterator[list[tuple[Series, int, int]]]:
    """Yield runs of sampled rows (series, first row, end), some at a time."""
    batch: list[tuple[Series, int, int]] = []
    for h in sample.held:
        cuts = np.flatnonzero(np.diff(h.row) != 1) + 1
        for run in np.split(h.row, cuts):
            for first in range(int(run[0]), int(run[-1]) + 1, _PUSHED):
                if batch and sum(stop - begin + rows_kept for _, begin, stop in batch) > _PUSHED:
                    yield batch
                    batch = []
                batch.append((series[h.asset], first, min(first + _PUSHED, int(run[-1]) + 1)))
    yield batch


def _joined(parts: Sequence[Rows]) -> Rows:
    names = [f.name for f in fields(Rows) if f.name != "partition"]
    return Rows(partition=0, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _without(rows: Rows, channel: int) -> Rows:
    x, observed = rows.x.copy(), rows.observed.copy()
    x[:, channel], observed[:, channel] = 0.0, False
    return replace(rows, x=x, observed=observed)


def _measured(sample: _Sample, hidden: Float32, calibration: Calibration, smoother: SmootherSpec) -> Float64:
    """Return shift and gain of one model, (2, C)."""
    error, observed = sample.joined("error").astype(np.float64), sample.joined("observed")
    lengths = [len(h.error) for h in sample.held]
    usual = np.repeat(calibration.median[list(sample.cal_row)].astype(np.float64), lengths)
    threshold = np.repeat(calibration.threshold[list(sample.cal_row)], lengths)
    smoothing = Smoothing(sample.held, sample.cal_row, calibration, smoother)

    def tail(errors: Float64) -> float:
        return _quantile(smoothing.run(errors.astype(np.float32)) / threshold, sample.weight, level)

    level = 1.0 - max(1.0 - calibration.percentile / 100.0, _ABOVE / sample.weight.sum())
    wanted = tail(error)
    shift, gain = np.zeros(len(hidden)), np.ones(len(hidden))
    for c, without in enumerate(hidden.astype(np.float64)):
        usable = (sample.weight > 0) & np.isfinite(without) & (without > 0) & (error > 0) & observed[:, c]
        if (usual <= 0).any() or sample.weight[usable].sum() < 0.5 * sample.weight.sum():
            continue
        away = [_quantile(np.log(e[usable]), sample.weight[usable], 0.5) for e in (without, error)]
        shift[c] = away[0] - away[1]
        distance = np.log(without[usable] / usual[usable]) - shift[c]
        low, high = -np.log(GAIN_LIMIT), np.log(GAIN_LIMIT)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            errors = error.copy()
            errors[usable] = usual[usable] * np.exp(np.exp(middle) * distance)
            low, high = (low, middle) if tail(errors) > wanted else (middle, high)
        gain[c] = np.exp(0.5 * (low + high))
    return np.stack([shift, gain])


def _quantile(values: Float32 | Float64, weight: Float64, level: float) -> float:
    """Return the least value that at least `level` of the weight does not exceed; a weight of 0 leaves a value out."""
    there = np.flatnonzero(weight > 0)
    order = there[np.argsort(values[there], kind="stable")]
    share = np.cumsum(weight[order]) / weight[order].sum()
    return float(values[order[min(int(np.searchsorted(share, level)), len(order) - 1)]])
