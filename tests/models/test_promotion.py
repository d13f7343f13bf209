import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.promotion import GateLimits, GateReport, Outcome, Suite, judge
from pipeline.errors import GateRefused, InputError, ShapeError

ROWS, FAULTS, LENGTH = 10_000, 20, 30


def suite(recall: float, faults: int = FAULTS) -> Suite:
    """Ratios of which this share of the faults has one row over the threshold."""
    intervals = np.array([(100 * i + 10, 100 * i + 10 + LENGTH) for i in range(faults)], np.int64).reshape(-1, 2)
    ratio = np.full(100 * faults, 0.2, np.float32)
    ratio[intervals[: round(recall * faults), 0] + 7] = 3.0
    return Suite(ratio, intervals)


def outcome(model_id="b1", far=0.005, recall=0.9, confirmed=None, threshold=5.0, rows=ROWS, faults=FAULTS) -> Outcome:
    normal = np.linspace(0.1, 0.9, rows, dtype=np.float32)
    normal[: round(far * rows)] = 2.0
    return Outcome(
        model_id,
        normal,
        suite(recall, faults),
        {"m01": threshold, "m02": 5.0},
        None if confirmed is None else suite(confirmed),
    )


CANDIDATE, CHAMPION, PCA = outcome("new"), outcome("old"), outcome("pca")


def the_reason(report: GateReport) -> str:
    assert not report.passed
    (reason,) = report.reasons
    return reason


def test_a_candidate_as_good_as_the_champion_is_promoted():
    report = judge(CANDIDATE, CHAMPION, PCA)
    assert report.passed
    assert report.reasons == report.warnings == ()
    report.require()


def test_every_figure_is_in_the_report():
    c, o, p = (outcome(m, f, r, confirmed=r) for m, f, r in (("c", 0.02, 0.8), ("o", 0.03, 0.85), ("p", 0.04, 0.7)))
    report = judge(replace(c, thresholds={"m01": 5.5}), o, p)
    assert report.figures == pytest.approx(
        {
            "normal_rows": ROWS,
            "injected_faults": FAULTS,
            "far": 0.02,
            "far_limit": 0.037,
            "champion_far": 0.03,
            "pca_far": 0.04,
            "pca_far_limit": 0.049,
            "injected_recall": 0.8,
            "injected_recall_limit": 0.8,
            "champion_injected_recall": 0.85,
            "pca_injected_recall": 0.7,
            "confirmed_recall": 0.8,
            "confirmed_recall_limit": 0.8,
            "champion_confirmed_recall": 0.85,
            "pca_confirmed_recall": 0.7,
            "threshold_change": 0.1,
            "ks": 0.01,
        }
    )
    assert report.passed
    json.dumps(asdict(report), allow_nan=False)


def test_more_false_alarms_than_the_champion_allows_are_refused():
    champion = outcome("old", far=0.02)
    assert judge(outcome(far=0.025), champion, outcome("pca", far=0.03)).passed
    reason = the_reason(judge(outcome("new", far=0.0251), champion, outcome("pca", far=0.03)))
    assert reason == (
        "2.51% of 10000 held-out normal rows are over the threshold, at most 2.50% may be "
        "(budget 1.00%, champion old has 2.00%)"
    )


def test_within_the_budget_a_quieter_champion_does_not_matter():
    assert judge(outcome(far=0.01), outcome(far=0.0), outcome(far=0.0)).passed


def test_more_false_alarms_than_pca_alone_are_refused():
    reason = the_reason(judge(outcome(far=0.03), outcome(far=0.03), outcome(far=0.012)))
    assert reason == "3.00% of 10000 held-out normal rows are over the threshold, but only 1.20% with PCA alone"


def test_a_loss_of_recall_beyond_the_slack_is_refused():
    assert judge(outcome(recall=0.85), outcome(recall=0.9), outcome(recall=0.5)).passed
    reason = the_reason(judge(outcome(recall=0.8), outcome("old", recall=0.9), outcome(recall=0.5)))
    assert reason == "80.0% of the injected faults are found, 85.0% must be (champion old finds 90.0%)"


def test_a_candidate_that_pca_alone_beats_is_refused():
    assert judge(outcome(recall=0.9), outcome(recall=0.9), outcome(recall=0.9)).passed
    reason = the_reason(judge(outcome(recall=0.9), outcome(recall=0.9), outcome(recall=0.95)))
    assert reason == ("90.0% of the injected faults are found, but 95.0% by PCA alone (at most 2.0% less is accepted)")


def test_a_loss_of_confirmed_faults_is_refused():
    pca = outcome("pca", confirmed=0.5)
    assert judge(outcome(confirmed=0.95), outcome(confirmed=1.0), pca).passed
    reason = the_reason(judge(outcome(confirmed=0.9), outcome("old", confirmed=1.0), pca))
    assert reason == "90.0% of the confirmed faults are found, 95.0% must be (champion old finds 100.0%)"


def test_too_little_evidence_is_refused_however_good_it_looks():
    few = outcome(far=0.0, recall=1.0, rows=999)
    assert "only 999 held-out normal rows have a score, 1000 are needed" in the_reason(judge(few, few, few))
    few = outcome(far=0.0, recall=1.0, faults=9)
    assert "only 9 faults were injected, 10 are needed" in the_reason(judge(few, few, few))


def test_a_candidate_that_does_not_score_is_refused():
    silent = replace(CANDIDATE, normal=np.full(ROWS, np.nan, np.float32))
    assert "only 0 held-out normal rows have a score" in the_reason(judge(silent, CHAMPION, PCA))


def test_a_fault_without_scores_is_not_found():
    blind = Suite(np.where(CANDIDATE.injected.ratio > 1, np.nan, 0.5).astype(np.float32), CANDIDATE.injected.intervals)
    assert blind.recall == 0.0
    assert not judge(replace(CANDIDATE, injected=blind), CHAMPION, PCA).passed


def test_without_a_champion_the_limits_are_absolute():
    assert judge(outcome(far=0.01, recall=0.5), None, None).passed
    assert the_reason(judge(outcome(far=0.0101), None, None)) == (
        "1.01% of 10000 held-out normal rows are over the threshold, at most 1.00% may be (budget 1.00%)"
    )
    assert the_reason(judge(outcome(recall=0.45), None, None)) == (
        "45.0% of the injected faults are found, 50.0% must be (the least allowed)"
    )


def test_several_rules_give_several_reasons():
    report = judge(outcome(far=0.2, recall=0.0), CHAMPION, PCA)
    assert len(report.reasons) == 4
    with pytest.raises(GateRefused) as refused:
        report.require()
    assert refused.value.reasons == report.reasons


def test_a_threshold_that_moved_far_is_a_warning_and_no_refusal():
    assert judge(outcome(threshold=6.0), CHAMPION, PCA).warnings == ()
    report = judge(outcome(threshold=3.5), CHAMPION, PCA)
    assert report.passed
    assert report.warnings == ("thresholds of 1 of 2 assets moved by more than 20%, most that of m01: 5 to 3.5 (-30%)",)
    assert report.figures["threshold_change"] == pytest.approx(-0.3)


def test_no_threshold_in_common_is_a_warning():
    report = judge(replace(CANDIDATE, thresholds={"x": 1.0}), CHAMPION, PCA)
    assert report.warnings == ("no asset has a threshold in both new and champion old",)
    assert "threshold_change" not in report.figures


def test_scores_that_are_distributed_otherwise_are_a_warning():
    even = np.linspace(0.0, 0.5, ROWS, dtype=np.float32)
    report = judge(replace(CANDIDATE, normal=even + np.float32(0.15)), replace(CHAMPION, normal=even), PCA)
    assert report.passed
    assert report.figures["ks"] == pytest.approx(0.3, abs=1e-3)  # 0.15 of an even spread over 0.5
    assert report.warnings == (
        "ratios of normal rows are distributed otherwise than the champion's: Kolmogorov-Smirnov distance 0.30, "
        "0.20 is usual at most",
    )


def test_a_gate_without_pca_says_so():
    assert judge(CANDIDATE, CHAMPION, None).warnings == (
        "PCA alone was not scored: whether it would do as well is not known",
    )


@given(nights=st.integers(1, 60))
@settings(deadline=None, max_examples=5)
def test_no_sequence_of_nights_within_the_slack_leads_past_the_ceiling_or_under_the_floor(nights):
    champion = outcome("old", far=0.01, recall=1.0, rows=2000)
    for _ in range(nights):  # every night the worst candidate that still passes
        limits = judge(champion, champion, None).figures
        far = int(limits["far_limit"] * 2000) / 2000
        recall = int(np.ceil(limits["injected_recall_limit"] * FAULTS - 1e-6)) / FAULTS
        worst = outcome("new", far=far, recall=recall, rows=2000)
        assert judge(worst, champion, None).passed
        champion = worst
    assert champion.far <= 0.05
    assert champion.injected.recall >= 0.5


def test_a_better_candidate_is_promoted_even_if_it_is_still_beyond_ceiling_and_floor():
    bad = outcome("old", far=0.10, recall=0.3)
    assert judge(outcome(far=0.08, recall=0.4), bad, None).passed
    assert judge(outcome(far=0.10, recall=0.3), bad, None).passed
    assert not judge(outcome(far=0.101, recall=0.3), bad, None).passed
    assert not judge(outcome(far=0.10, recall=0.25), bad, None).passed


def test_limits_can_be_set():
    strict = GateLimits(far_budget=0.001, min_recall=0.95)
    assert len(judge(CANDIDATE, None, None, strict).reasons) == 2


def test_outcomes_on_other_rows_are_not_compared():
    with pytest.raises(ShapeError, match=r"new has \(10000,\) normal rows, old \(5000,\)"):
        judge(CANDIDATE, outcome("old", rows=5000), None)
    with pytest.raises(ShapeError, match="other injected faults"):
        judge(CANDIDATE, None, outcome("pca", faults=19))
    shifted = Suite(CHAMPION.injected.ratio, CHAMPION.injected.intervals + 1)
    with pytest.raises(ShapeError, match="other injected faults"):
        judge(CANDIDATE, replace(CHAMPION, injected=shifted), None)
    with pytest.raises(ShapeError, match="only one of new and old was scored on confirmed faults"):
        judge(CANDIDATE, outcome("old", confirmed=0.5), None)


def test_intervals_and_thresholds_that_make_no_sense_are_refused():
    ratio = np.zeros(10, np.float32)
    for interval in ((5, 5), (-1, 3), (8, 11)):
        with pytest.raises(InputError, match="empty or outside its 10 rows"):
            Suite(ratio, np.array([interval], np.int64))
    with pytest.raises(ShapeError, match="intervals"):
        Suite(ratio, np.zeros((1, 3), np.int64))
    for threshold in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="threshold of 'm01'"):
            outcome(threshold=threshold)
