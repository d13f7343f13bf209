"""The gate: may this candidate become champion? Decided on figures of both on the same rows, said in sentences.

Everything is judged on ratios (1.0 = threshold) that were made by the serving path: held-out normal rows, the same
rows with injected faults (`models.synthetic`), and, once there are any, faults that operators confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import ks_2samp

from pipeline.errors import GateRefused, InputError, ShapeError
from pipeline.values import Float32, Int64

_ROUNDING = 1e-9  # 0.9 - 0.05 must not refuse 0.85


@dataclass(frozen=True, slots=True)
class Suite:
    """Ratios over rows that hold faults, and where: rows [start, stop) of each. NaN: no score, so nothing was found."""

    ratio: Float32  # (m,)
    intervals: Int64  # (k, 2)

    def __post_init__(self) -> None:
        if self.intervals.ndim != 2 or self.intervals.shape[1] != 2:
            raise ShapeError(f"intervals of faults are {self.intervals.shape}, expected (k, 2)")
        starts, stops = self.intervals.T
        if not ((starts >= 0) & (starts < stops) & (stops <= len(self.ratio))).all():
            raise InputError(f"an interval of a fault is empty or outside its {len(self.ratio)} rows")

    @property
    def recall(self) -> float:
        """Share of the faults with at least one row over the threshold; 0.0 without faults.

        Chance alone finds about as many as there are false episodes in the length of a fault, so that it says little
        without the false-alarm rate beside it.
        """
        over = np.concatenate([[0], np.cumsum(self.ratio > 1.0)])
        starts, stops = self.intervals.T
        return float(np.count_nonzero(over[stops] > over[starts]) / max(len(starts), 1))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one bundle made of the gate's rows. `thresholds`, by asset, are in units of the smoothed score, > 0."""

    model_id: str
    normal: Float32  # (n,) ratios of held-out normal rows, NaN where there is no score
    injected: Suite
    thresholds: Mapping[str, float]
    confirmed: Suite | None = None

    def __post_init__(self) -> None:
        bad = [a for a, t in self.thresholds.items() if not (t > 0 and np.isfinite(t))]
        if bad:
            raise InputError(f"{self.model_id}: threshold of {bad[0]!r} is {self.thresholds[bad[0]]}: must be positive")

    @property
    def scored(self) -> int:
        """Held-out normal rows that have a score."""
        return int(np.count_nonzero(~np.isnan(self.normal)))

    @property
    def far(self) -> float:
        """False-alarm rate: share of the scored held-out normal rows over the threshold; 0.0 without any."""
        return float(np.count_nonzero(self.normal > 1.0) / max(self.scored, 1))


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a candidate must keep to. Rates and recalls are shares from 0 to 1.

    `far_budget`: a false-alarm rate that is always good enough. Beyond it, `far_factor` times the champion's plus
    `far_slack` is, up to `far_ceiling`; beyond that, no more than the champion's. A recall may be `recall_slack` below
    the champion's, down to `min_recall`; below that, it may not fall. So no sequence of nights, each within its slack,
    leads past the ceiling or the floor, and a better candidate is never refused for being beyond them.
    """

    far_budget: float = 0.01
    far_factor: float = 1.2
    far_slack: float = 0.001
    far_ceiling: float = 0.05
    recall_slack: float = 0.05
    min_recall: float = 0.5
    pca_recall_slack: float = 0.02
    min_normal_rows: int = 1000
    min_faults: int = 10
    warn_threshold_change: float = 0.2
    warn_ks: float = 0.2


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict. `reasons` say why not (none: it passed), `warnings` what to look at, `figures` all that was used."""

    passed: bool
    reasons: tuple[str, ...]
    figures: Mapping[str, float]
    warnings: tuple[str, ...] = field(default=())

    def require(self) -> None:
        """Raise GateRefused unless the candidate passed."""
        if not self.passed:
            raise GateRefused(self.reasons)


def judge(
    candidate: Outcome, champion: Outcome | None, pca: Outcome | None, limits: GateLimits | None = None
) -> GateReport:
    """Compare a candidate with the champion and with PCA alone, all on the same rows.

    Without a champion the candidate must keep to the budget and the least recall. A recall is that of faults, not of
    rows. The candidate is refused if

    - there are too few scored normal rows or injected faults to judge by;
    - its false-alarm rate is over the limit that follows from budget and champion, or from budget and PCA;
    - its recall, of injected or confirmed faults, is under the limit that follows from the champion, or PCA's.

    Thresholds that moved far, scores that are distributed otherwise (Kolmogorov-Smirnov distance between the ratios
    of normal rows) and comparisons that could not be made are warnings.

    Raises
    ------
    ShapeError : the outcomes are not about the same rows and faults.
    """
    limits = limits or GateLimits()
    for other in (champion, pca):
        if other is not None:
            _check_same_rows(candidate, other)
    figures: dict[str, float] = {}
    reasons = _judge_evidence(candidate, limits, figures)
    reasons += _judge_false_alarms(candidate, champion, pca, limits, figures)
    reasons += _judge_recall("injected", candidate, champion, pca, limits, figures)
    if candidate.confirmed is not None:
        reasons += _judge_recall("confirmed", candidate, champion, pca, limits, figures)
    warnings = _compare_scores(candidate, champion, limits, figures)
    if pca is None:
        warnings.append("PCA alone was not scored: whether it would do as well is not known")
    return GateReport(not reasons, tuple(reasons), figures, tuple(warnings))


def _judge_evidence(candidate: Outcome, limits: GateLimits, figures: dict[str, float]) -> list[str]:
    figures["normal_rows"] = rows = candidate.scored
    figures["injected_faults"] = faults = len(candidate.injected.intervals)
    reasons = []
    if rows < limits.min_normal_rows:
        reasons.append(
            f"only {rows} held-out normal rows have a score, {limits.min_normal_rows} are needed to judge by"
        )
    if faults < limits.min_faults:
        reasons.append(f"only {faults} faults were injected, {limits.min_faults} are needed to judge by")
    return reasons


def _judge_false_alarms(
    candidate: Outcome, champion: Outcome | None, pca: Outcome | None, limits: GateLimits, figures: dict[str, float]
) -> list[str]:
    figures["far"] = far = candidate.far
    figures["far_limit"] = limit = _far_limit(None if champion is None else champion.far, limits)
    known = f"budget {limits.far_budget:.2%}"
    if champion is not None:
        figures["champion_far"] = champion.far
        known += f", champion {champion.model_id} has {champion.far:.2%}"
    rows = f"of {candidate.scored} held-out normal rows"
    reasons = []
    if far > limit + _ROUNDING:
        reasons.append(f"{far:.2%} {rows} are over the threshold, at most {limit:.2%} may be ({known})")
    if pca is not None:
        figures["pca_far"] = pca.far
        figures["pca_far_limit"] = limit = _far_limit(pca.far, limits)
        if far > limit + _ROUNDING:
            reasons.append(f"{far:.2%} {rows} are over the threshold, but only {pca.far:.2%} with PCA alone")
    return reasons


def _judge_recall(
    suite: str,
    candidate: Outcome,
    champion: Outcome | None,
    pca: Outcome | None,
    limits: GateLimits,
    figures: dict[str, float],
) -> list[str]:
    def recall_of(outcome: Outcome | None) -> float | None:
        found: Suite | None = getattr(outcome, suite, None)
        return None if found is None else found.recall

    recall, before, alone = recall_of(candidate) or 0.0, recall_of(champion), recall_of(pca)
    figures[f"{suite}_recall"] = recall
    figures[f"{suite}_recall_limit"] = limit = limits.min_recall
    known = "the least allowed"
    if before is not None and champion is not None:
        figures[f"champion_{suite}_recall"] = before
        limit = max(before - limits.recall_slack, min(limits.min_recall, before))
        figures[f"{suite}_recall_limit"] = limit
        known = f"champion {champion.model_id} finds {before:.1%}"
    reasons = []
    if recall < limit - _ROUNDING:
        reasons.append(f"{recall:.1%} of the {suite} faults are found, {limit:.1%} must be ({known})")
    if alone is not None:
        figures[f"pca_{suite}_recall"] = alone
        if recall < alone - limits.pca_recall_slack - _ROUNDING:
            reasons.append(
                f"{recall:.1%} of the {suite} faults are found, but {alone:.1%} by PCA alone "
                f"(at most {limits.pca_recall_slack:.1%} less is accepted)"
            )
    return reasons


def _compare_scores(
    candidate: Outcome, champion: Outcome | None, limits: GateLimits, figures: dict[str, float]
) -> list[str]:
    if champion is None:
        return []
    warnings = []
    common = sorted(candidate.thresholds.keys() & champion.thresholds.keys())
    changes = {asset: candidate.thresholds[asset] / champion.thresholds[asset] - 1 for asset in common}
    if changes:
        most = max(common, key=lambda asset: abs(changes[asset]))
        figures["threshold_change"] = changes[most]
        moved = sum(abs(c) > limits.warn_threshold_change + _ROUNDING for c in changes.values())
        if moved:
            warnings.append(
                f"thresholds of {moved} of {len(common)} assets moved by more than {limits.warn_threshold_change:.0%}, "
                f"most that of {most}: {champion.thresholds[most]:.4g} to {candidate.thresholds[most]:.4g} "
                f"({changes[most]:+.0%})"
            )
    else:
        warnings.append(f"no asset has a threshold in both {candidate.model_id} and champion {champion.model_id}")
    ours, theirs = (o.normal[~np.isnan(o.normal)].astype(np.float64) for o in (candidate, champion))
    if len(ours) and len(theirs):
        figures["ks"] = ks = float(ks_2samp(ours, theirs, method="asymp").statistic)
        if ks > limits.warn_ks:
            warnings.append(
                f"ratios of normal rows are distributed otherwise than the champion's: Kolmogorov-Smirnov distance "
                f"{ks:.2f}, {limits.warn_ks:.2f} is usual at most"
            )
    return warnings


def _far_limit(before: float | None, limits: GateLimits) -> float:
    if before is None:
        return limits.far_budget
    allowed = before * limits.far_factor + limits.far_slack
    return max(limits.far_budget, min(allowed, max(limits.far_ceiling, before)))


def _check_same_rows(a: Outcome, b: Outcome) -> None:
    pairs = [("injected", a.injected, b.injected), ("confirmed", a.confirmed, b.confirmed)]
    if a.normal.shape != b.normal.shape:
        raise ShapeError(
            f"{a.model_id} has {a.normal.shape} normal rows, {b.model_id} {b.normal.shape}: score the same"
        )
    for name, mine, other in pairs:
        if (mine is None) != (other is None):
            raise ShapeError(f"only one of {a.model_id} and {b.model_id} was scored on {name} faults")
        if mine is None or other is None:
            continue
        if mine.ratio.shape != other.ratio.shape or not np.array_equal(mine.intervals, other.intervals):
            raise ShapeError(f"{a.model_id} and {b.model_id} were scored on other {name} faults: score the same")
