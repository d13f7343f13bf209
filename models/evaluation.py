"""How well scores agree with labelled faults. Nothing here adjusts a score or a prediction by the labels.

Rows are points in time of one asset, in order. A row without a score (NaN: warming, abstained) never alerts: it counts
as predicted normal at any threshold, and ranks below every scored row where only ranks matter. Figures that cannot be
computed (no labelled row, nothing detected) are NaN here and null in JSON, and means leave them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import InputError, ShapeError
from pipeline.values import Bool, Float64, Int64

VUS_THRESHOLDS = 250
DEFAULT_WINDOW = 125  # of TSB-AD, where the autocorrelation has no usable peak
_ACF_ROWS, _ACF_LAGS, _ACF_FIRST, _ACF_LAST = 20_000, 400, 3, 300


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of rows at one threshold; "positive" is anomalous."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, row by row."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def far(self) -> float:
        """False-alarm rate: share of the normal rows that are over the threshold."""
        return _share(self.fp, self.fp + self.tn)

    @property
    def mar(self) -> float:
        """Missed-alarm rate: share of the anomalous rows that are not over the threshold."""
        return _share(self.fn, self.fn + self.tp)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


@dataclass(frozen=True, slots=True)
class Events:
    """Labelled stretches against breaches.

    `delay_rows` is the median, over the detected ones, of rows from the start of the label to the first breach.
    `false_episodes` are unbroken runs of breaches that touch no labelled row.
    """

    labelled: int
    detected: int
    delay_rows: float
    false_episodes: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every figure of one asset. `best_f1` uses the best threshold in hindsight: an upper bound, not a result."""

    asset: str
    rows: int
    unscored: int
    vus_window: int
    vus_pr: float
    auc_pr: float
    best_f1: float
    f1: float
    far: float
    mar: float
    event_recall: float
    delay_rows: float
    false_episodes_per_day: float
    confusion: Confusion

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; what could not be computed is None."""
        return _plain(asdict(self))


# What has a mean over assets.
FIGURES = ("vus_pr", "auc_pr", "best_f1", "f1", "far", "mar", "event_recall", "delay_rows", "false_episodes_per_day")


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of every asset, their plain means, and F1, FAR and MAR of all rows together (`micro`).

    `of` says how many assets each mean rests on.
    """

    assets: tuple[Evaluation, ...]
    mean: Mapping[str, float]
    of: Mapping[str, int]
    micro: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; what could not be computed is None."""
        return {
            "assets": [e.to_json() for e in self.assets],
            "mean": _plain(self.mean),
            "of": dict(self.of),
            "micro": _plain(self.micro),
        }


def evaluate(
    asset: str,
    score: ArrayLike,
    label: ArrayLike,
    threshold: ArrayLike,
    vus_window: int,
    rows_per_day: float,
) -> Evaluation:
    """Judge the scores of one asset.

    Parameters
    ----------
    score : (n,), high = anomalous, NaN where there is none.
    label : (n,), 1 or True where anomalous.
    threshold : a number, or (n,) where it changes over time; a row breaches when its score is above it.
    vus_window : rows, see `acf_window`.
    rows_per_day : to turn counts into rates.

    Raises
    ------
    ShapeError : lengths that differ.
    InputError : no rows, labels other than 0 and 1, a threshold of NaN, or a window or rate that is not positive.
    """
    score, label = _checked(score, label)
    if vus_window < 0 or not rows_per_day > 0:
        raise InputError(f"vus_window = {vus_window}, rows_per_day = {rows_per_day}: must be 0 or more, and positive")
    level = np.asarray(threshold, np.float64)
    if level.shape not in ((), score.shape):
        raise ShapeError(f"threshold of shape {level.shape}: expected a number or {score.shape}")
    if np.isnan(level).any():
        raise InputError("threshold is NaN: nothing would ever be over it; use infinity to say so")
    breached = np.greater(score, level)  # a score of NaN is not greater
    counts, found = confusion(label, breached), events(label, breached)
    return Evaluation(
        asset=asset,
        rows=len(score),
        unscored=int(np.count_nonzero(np.isnan(score))),
        vus_window=vus_window,
        vus_pr=vus_pr(score, label, vus_window),
        auc_pr=auc_pr(score, label),
        best_f1=best_f1(score, label),
        f1=counts.f1,
        far=counts.far,
        mar=counts.mar,
        event_recall=_share(found.detected, found.labelled),
        delay_rows=found.delay_rows,
        false_episodes_per_day=found.false_episodes * rows_per_day / len(score),
        confusion=counts,
    )


def report(evaluations: Sequence[Evaluation]) -> Report:
    """Join the figures of several assets.

    Raises
    ------
    InputError : there are none.
    """
    if not evaluations:
        raise InputError("no asset was evaluated: there is nothing to report")
    columns = {name: np.array([getattr(e, name) for e in evaluations]) for name in FIGURES}
    known = {name: column[~np.isnan(column)] for name, column in columns.items()}
    total = sum((e.confusion for e in evaluations), start=Confusion(0, 0, 0, 0))
    return Report(
        assets=tuple(evaluations),
        mean={name: float(column.mean()) if len(column) else math.nan for name, column in known.items()},
        of={name: len(column) for name, column in known.items()},
        micro={"f1": total.f1, "far": total.far, "mar": total.mar},
    )


def vus_pr(score: ArrayLike, label: ArrayLike, window: int) -> float:
    """Return the volume under the surface of precision and recall over thresholds and label widths.

    Equal to TSB-AD 1.5 (`generate_curve`, version "opt") with 250 thresholds: for every width w = 0..`window`, labels
    get ramps sqrt(1 - d / w) over the w // 2 rows on both sides, existence (the share of widened labels that were hit)
    weighs recall, and the area under precision over recall is averaged over the widths.

    Parameters
    ----------
    score, label : (n,), as in `evaluate`.
    window : largest width, in rows.

    Returns
    -------
    The volume; NaN if no row is labelled.

    References
    ----------
    [1] J. Paparrizos et al., "Volume Under the Surface", VLDB 2022, section 4.
    [2] Q. Liu, J. Paparrizos, "The Elephant in the Room: TSB-AD", NeurIPS 2024.
    """
    score, label = _checked(score, label)
    positives = int(label.sum())
    if positives == 0:
        return math.nan
    ranked = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-ranked, kind="stable")
    falling = ranked[order]
    thresholds = falling[np.linspace(0, len(score) - 1, VUS_THRESHOLDS).astype(np.int64)]
    predicted = np.searchsorted(-falling, -thresholds, side="right")  # rows at or above each threshold
    within = np.cumsum(label[order])[predicted - 1]
    stretches = segments(label)
    areas = np.empty(window + 1)
    for width in range(window + 1):
        soft = _ramped(label, stretches, width)
        hits = np.cumsum(soft[order])[predicted - 1]
        # TSB-AD's recall counts the ramps' weight that was predicted half into its denominator.
        recall = np.minimum(hits / (positives + (hits - within) / 2), 1.0)
        recall *= _existence(ranked, thresholds, stretches, width)
        areas[width] = np.dot(np.diff(recall, prepend=0.0), hits / predicted)
    return float(areas.mean())


def acf_window(channel: ArrayLike) -> int:
    """Return the period of a channel in rows: the highest local peak of its autocorrelation, else 125.

    Equal to TSB-AD 1.5 (`find_length_rank`, rank 1): the first 20,000 rows, lags 3 to 400. Its range check is done
    before the first lag is added, so that the periods it can return are 6 to 303. Rows without a reading (NaN) count
    as the mean.

    Raises
    ------
    ShapeError : more than one channel.
    """
    x = np.asarray(channel, np.float64)
    if x.ndim != 1:
        raise ShapeError(f"channel has shape {x.shape}, expected (n,)")
    x = x[:_ACF_ROWS]
    seen = np.isfinite(x)
    if not seen.any():
        return DEFAULT_WINDOW
    x = np.where(seen, x - x[seen].mean(), 0.0)
    spectrum = np.fft.rfft(x, 2 * len(x))  # padded: a circular correlation would wrap around
    acf = np.fft.irfft(spectrum * spectrum.conj())[: min(_ACF_LAGS + 1, len(x))]
    if not acf[0] > 0:
        return DEFAULT_WINDOW
    acf = acf[_ACF_FIRST:] / acf[0]
    peaks = 1 + np.flatnonzero((acf[1:-1] > acf[:-2]) & (acf[1:-1] > acf[2:]))
    if len(peaks) == 0:
        return DEFAULT_WINDOW
    highest = int(peaks[np.argsort(acf[peaks])[-1]])
    return highest + _ACF_FIRST if _ACF_FIRST <= highest <= _ACF_LAST else DEFAULT_WINDOW


def auc_pr(score: ArrayLike, label: ArrayLike) -> float:
    """Return the average precision: the sum of precision times the step in recall over distinct scores.

    NaN if no row is labelled. Rows with equal scores are one step: their order does not matter.
    """
    score, label = _checked(score, label)
    hits, predicted = _steps(score, label)
    if hits[-1] == 0:
        return math.nan
    return float(np.dot(np.diff(hits, prepend=0), hits / predicted) / hits[-1])


def best_f1(score: ArrayLike, label: ArrayLike) -> float:
    """Return the highest F1, row by row, that any threshold reaches; NaN if no row is labelled."""
    score, label = _checked(score, label)
    hits, predicted = _steps(score, label)
    if hits[-1] == 0:
        return math.nan
    return float((2 * hits / (predicted + hits[-1])).max())


def confusion(label: ArrayLike, breached: ArrayLike) -> Confusion:
    """Count rows. A labelled stretch that is hit once counts its other rows as missed.

    Parameters
    ----------
    label, breached : (n,) bool or 0 and 1.

    Raises
    ------
    ShapeError, InputError : as in `evaluate`.
    """
    breached, label = _checked(breached, label)
    hit, over = int((label & (breached > 0)).sum()), int((breached > 0).sum())
    positives = int(label.sum())
    return Confusion(tp=hit, fp=over - hit, fn=positives - hit, tn=len(label) - over - positives + hit)


def events(label: ArrayLike, breached: ArrayLike) -> Events:
    """Count labelled stretches that were hit in at least one row, and runs of breaches that hit none.

    Parameters
    ----------
    label, breached : (n,) bool or 0 and 1.

    Raises
    ------
    ShapeError, InputError : as in `evaluate`.
    """
    breached, label = _checked(breached, label)
    over = breached > 0
    stretches = segments(label)
    delays = [int(np.argmax(over[a:b])) for a, b in stretches if over[a:b].any()]
    false = sum(not label[a:b].any() for a, b in segments(over))
    return Events(len(stretches), len(delays), float(np.median(delays)) if delays else math.nan, false)


def segments(mask: Bool) -> Int64:
    """Return the unbroken runs of True as (k, 2) rows [start, stop)."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.astype(np.int64).reshape(-1, 2)


def _ramped(label: Bool, stretches: Int64, width: int) -> Float64:
    """Return labels with ramps of `width // 2` rows on both sides of every stretch; where ramps meet, at most 1."""
    soft = label.astype(np.float64)
    half = width // 2
    if half == 0:
        return soft
    ramp = np.sqrt(1 - np.arange(1, half + 1) / width)  # at distance 1, 2, ... from the stretch
    for start, stop in stretches:
        after = soft[stop : stop + half]
        after += ramp[: len(after)]
        before = soft[max(start - half, 0) : start]
        before += ramp[: len(before)][::-1]
    return np.minimum(soft, 1.0)


def _existence(score: Float64, thresholds: Float64, stretches: Int64, width: int) -> Float64:
    """Return, per threshold, the share of stretches, widened by `width // 2` and joined where they meet, it hits."""
    half = width // 2
    apart = stretches[1:, 0] - half > stretches[:-1, 1] - 1 + half
    starts = stretches[np.append(True, apart), 0] - half
    stops = stretches[np.append(apart, True), 1] + half
    peaks = np.sort([score[max(a, 0) : b].max() for a, b in zip(starts, stops, strict=True)])
    return (len(peaks) - np.searchsorted(peaks, thresholds, side="left")) / len(peaks)


def _steps(score: Float64, label: Bool) -> tuple[Int64, Int64]:
    """Return true positives and predicted rows at every distinct score, the highest first."""
    ranked = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-ranked, kind="stable")
    falling = ranked[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)
    return np.cumsum(label[order], dtype=np.int64)[last], last + 1


def _checked(score: ArrayLike, label: ArrayLike) -> tuple[Float64, Bool]:
    s, y = np.asarray(score, np.float64), np.asarray(label)
    if s.ndim != 1 or s.shape != y.shape:
        raise ShapeError(f"scores of shape {s.shape} and labels of shape {y.shape}: expected two of (n,)")
    if len(s) == 0:
        raise InputError("no rows: there is nothing to judge")
    if not np.isin(y, (0, 1)).all():
        raise InputError(f"labels hold {np.unique(y)[:5].tolist()}: expected 0 and 1 only")
    return s, y.astype(np.bool_)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
