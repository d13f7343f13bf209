"""One night of models: split, fit, calibrate, choose between ensemble and PCA alone, judge against the champion.

`midwatch train` and `midwatch nightly` both come here. Nothing is stored or promoted: what comes back is a candidate
without an id, and the gate's report on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from models.calibration import CalibrationSpec, calibrate, recalibrate
from models.fitting import Progress, fit_bundle
from models.judging import Stretch, Trial, flips, loses_to_pca, outcome, pca_alone, trial
from models.profiles import FALLBACK, Profile
from models.promotion import GateLimits, GateReport, Outcome, judge
from models.series import Series
from models.splits import Split, fit_part, holdout, split, to_judge
from models.train_spec import TrainSpec, member_specs
from pipeline.bundle import Bundle

CANDIDATE = "the candidate"
# Of 200 faults on single channels an ensemble found 26 % and its PCA 32 %, and yet it ranked the real faults of those
# servers better (VUS-PR .57 against .52): only a clear deficit says that the ensemble is broken.
LIMITS = GateLimits(pca_recall_slack=0.1)
# A first model takes no better one's place, so it is let off the tight false-alarm budget and may be judged on as few
# rows as a threshold may rest on. How many faults of a single channel can be found at all depends on the plant (a third
# of them on real servers, most of them on simulated pumps): the least recall only tells a model that finds nothing.
FIRST_LIMITS = replace(LIMITS, far_budget=LIMITS.far_ceiling, min_recall=0.1, min_normal_rows=200, min_faults=5)
MOST_FLIPS = 0.005  # share of windows that another profile may judge otherwise without a warning
UNMEASURED = (
    "false alarms were not measured: no rows were kept for it (train.test_share = 0), and the threshold is a "
    "percentile of the very rows that were judged"
)


@dataclass(frozen=True, slots=True)
class RetrainSpec:
    """All that decides what a night makes of its rows.

    Parameters
    ----------
    holdout_share, test_share : of each asset's normal windows, the newest for the test, those before for the threshold;
        the rest is fitted on. With a test share of 0 the threshold's rows are judged, which says nothing about false
        alarms.
    limits : of the gate where there is a champion.
    first_limits : where there is none to be compared with.
    profiles : to calibrate for. Candidates are judged through the first one and trained on its device;
        others than `models.profiles.FALLBACK` are compared with it, so it must be among them.
    """

    train: TrainSpec
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    holdout_share: float = 0.2
    test_share: float = 0.1
    limits: GateLimits = LIMITS
    first_limits: GateLimits = FIRST_LIMITS
    profiles: tuple[Profile, ...] = (FALLBACK,)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What came out of a night: a bundle that is not registered yet, and what the gate says of it."""

    bundle: Bundle
    report: GateReport


def retrain(
    series: Sequence[Series],
    spec: RetrainSpec,
    champion: Bundle | None = None,
    confirmed: Sequence[Stretch] = (),
    told: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Candidate:
    """Fit a candidate on the older normal rows, calibrate it on newer ones, judge it on the newest.

    The same series and spec give the same bundle, bit by bit, whoever is champion.

    Parameters
    ----------
    series : one for each asset, with its normal rows marked.
    champion : to be compared with; one that does not fit this feed, or was not calibrated for this host, is not, and a
        warning says so.
    confirmed : faults that a candidate must find.
    told : goes into the bundle's provenance: where the rows came from, which were left out and why.

    Raises
    ------
    TooLittleHistory : a part has too few normal windows.
    As `models.fitting.fit_bundle` and `models.calibration.calibrate`.
    """
    window = max(member.window for member in member_specs(spec.train))
    splits = split(series, window, spec.holdout_share, spec.test_share)
    fit = fit_part(series, splits)
    fitted = fit_bundle(fit, spec.train, progress, spec.profiles[0].kind)
    ensemble = _calibrated(fitted, series, splits, spec)
    rows = to_judge(splits) if spec.test_share else holdout(splits)
    held_out = {s.asset: s.calibration.start for s in splits if s.calibration_windows}
    on = trial(series, rows, window, spec.train.seed, confirmed, held_out)
    alone = _pca_of(fitted, fit, spec)
    candidate, own = ensemble, outcome(ensemble, on, spec.profiles[0], CANDIDATE)
    pca, instead = own, ""
    if alone is not None:
        calibrated = _calibrated(alone, series, splits, spec)
        pca = outcome(calibrated, on, spec.profiles[0], "PCA alone")
        instead = loses_to_pca(own, pca, LIMITS) if "pca" in spec.train.members else ""  # else nobody asked for it
        if instead:
            candidate, own = calibrated, replace(pca, model_id=CANDIDATE)
    report = _report(own, pca, champion, on, spec)
    if instead:
        report = replace(report, warnings=(f"PCA alone is the candidate: of the ensemble {instead}", *report.warnings))
    if not spec.test_share:
        report = replace(report, warnings=(UNMEASURED, *report.warnings))
    turned = flips(candidate, on, spec.profiles)
    provenance = {
        **candidate.provenance,
        **(told or {}),
        "splits": {s.asset: _parts(s, one) for s, one in zip(splits, series, strict=True)},
        "metrics": _metrics(own, pca, on),
        "flips": turned,
        "instead_of_ensemble": instead,
    }
    return Candidate(replace(candidate, provenance=provenance), _with_flips(report, turned))


def recalibrated(
    champion: Bundle,
    base: Bundle,
    series: Sequence[Series],
    spec: RetrainSpec,
    confirmed: Sequence[Stretch] = (),
    told: Mapping[str, Any] | None = None,
) -> Candidate:
    """Keep the weights, take new thresholds from the newest normal rows, judge them on rows that are newer still.

    Parameters
    ----------
    base : the champion as it was trained. Every night starts from it, not from the night before: floors cannot sink
        from night to night, and a night that is run twice changes nothing the second time.
    series : the newest rows of each asset, with its normal rows marked; the last `spec.test_share` of them are judged
        on (a fifth of them where that is 0).

    Raises
    ------
    As `retrain`.
    """
    splits = split(series, base.window, spec.test_share or 0.2)
    made = base
    for profile in spec.profiles:
        made = recalibrate(made, fit_part(series, splits), spec.calibration, profile)
    on = trial(series, holdout(splits), base.window, spec.train.seed, confirmed)
    own = outcome(made, on, spec.profiles[0], CANDIDATE)
    report = _report(own, None, champion, on, spec)
    turned = flips(made, on, spec.profiles)
    since = {"from": base.id, "metrics": _metrics(own, None, on), "flips": turned, **(told or {})}
    made = replace(made, id="", provenance={**base.provenance, "recalibrated": since})
    return Candidate(made, _with_flips(report, turned))


def _calibrated(bundle: Bundle, series: Sequence[Series], splits: Sequence[Split], spec: RetrainSpec) -> Bundle:
    for profile in spec.profiles:
        bundle = calibrate(bundle, series, holdout(splits), spec.calibration, profile)
    return bundle


def _pca_of(fitted: Bundle, fit: Sequence[Series], spec: RetrainSpec) -> Bundle | None:
    """Return PCA alone: the ensemble's own member, or one fitted for comparison; None: the bundle is nothing else."""
    if {member.kind for member in fitted.members} == {"pca"}:
        return None
    return pca_alone(fitted) or fit_bundle(fit, replace(spec.train, members=("pca",)), None, spec.profiles[0].kind)


def _report(own: Outcome, pca: Outcome | None, champion: Bundle | None, on: Trial, spec: RetrainSpec) -> GateReport:
    """Judge the candidate, against the champion where the two can be compared."""
    against, why = None, ""
    if champion is not None:
        why = _incomparable(champion, spec)
        against = None if why else outcome(champion, on, spec.profiles[0])
    report = judge(own, against, pca, spec.limits if against is not None else spec.first_limits)
    return replace(report, warnings=(why, *report.warnings)) if why else report


def _with_flips(report: GateReport, turned: Mapping[str, float]) -> GateReport:
    """Tell, and warn of, what reduced precision changes."""
    figures = {**report.figures, **{f"flips {name}": share for name, share in turned.items()}}
    warnings = [
        f"{share:.2%} of held-out normal windows are on another side of the threshold through {name} than in float32"
        for name, share in turned.items()
        if share > MOST_FLIPS
    ]
    return replace(report, figures=figures, warnings=(*report.warnings, *warnings))


def _incomparable(champion: Bundle, spec: RetrainSpec) -> str:
    if champion.channels != spec.train.channels or champion.period_ns != spec.train.period_ns:
        return f"champion {champion.id} is for other channels or another period: it was not compared with"
    if spec.profiles[0].name not in champion.calibrations:
        return f"champion {champion.id} is not calibrated for {spec.profiles[0].name}: it was not compared with"
    return ""


def _parts(made: Split, series: Series) -> dict[str, Any]:
    """Return what became of one asset's rows: windows in each part, and the times of their ends."""
    parts: dict[str, Any] = {}
    for name in ("fit", "calibration", "test"):
        rows: slice = getattr(made, name)
        if rows.start < rows.stop:
            times = [int(series.ts_ns[rows.start]), int(series.ts_ns[rows.stop - 1])]
            parts[name] = {"windows": getattr(made, f"{name}_windows"), "range_ns": times}
    return parts


def _metrics(own: Outcome, pca: Outcome | None, on: Trial) -> dict[str, float]:
    """Return the candidate's figures that depend on the night's rows alone, for its manifest."""
    out = {
        "normal_rows": float(own.scored),
        "far": own.far,
        "injected_faults": float(on.faults),
        "injected_recall": own.injected.recall,
    }
    if own.confirmed is not None:
        out["confirmed_recall"] = own.confirmed.recall
    if pca is not None:
        out |= {"pca_far": pca.far, "pca_injected_recall": pca.injected.recall}
    return out
