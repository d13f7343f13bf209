import json
import math
from pathlib import Path

import naive_metrics as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation import (
    FIGURES,
    Confusion,
    acf_window,
    auc_pr,
    best_f1,
    confusion,
    evaluate,
    events,
    report,
    segments,
    vus_pr,
)
from pipeline.errors import InputError, ShapeError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())


def labels(n: int, stretches) -> np.ndarray:
    label = np.zeros(n, np.bool_)
    for a, b in stretches:
        label[a:b] = True
    return label


@pytest.mark.parametrize("case", GOLDEN["metrics"], ids=lambda c: c["name"])
def test_figures_equal_those_of_the_reference_implementations(case):
    score = np.array(case["score_thousandths"]) / 1000
    label = labels(len(score), case["stretches"])
    assert vus_pr(score, label, case["window"]) == pytest.approx(case["vus_pr"], abs=1e-12)
    assert auc_pr(score, label) == pytest.approx(case["auc_pr"], abs=1e-12)
    assert best_f1(score, label) == pytest.approx(case["best_f1"], abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN["acf_window"], ids=lambda c: c["name"])
def test_the_window_from_autocorrelation_equals_the_reference(case):
    assert acf_window(np.array(case["hundredths"]) / 100) == case["window"]


SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: any(y for _, y in rows)
)


@given(rows=SCORED, window=st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_ranked_figures_equal_their_definitions_spelt_out(rows, window):
    score, label = [s for s, _ in rows], [y for _, y in rows]
    assert vus_pr(score, label, window) == pytest.approx(naive.vus_pr(score, label, window), abs=1e-12)
    assert auc_pr(score, label) == pytest.approx(naive.auc_pr(score, label), abs=1e-12)
    assert best_f1(score, label) == pytest.approx(naive.best_f1(score, label), abs=1e-12)


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None, max_examples=100)
def test_counts_and_events_equal_their_definitions_spelt_out(rows):
    label, breached = [y for y, _ in rows], [p for _, p in rows]
    counts = confusion(label, breached)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == naive.confusion(label, breached)
    found = events(label, breached)
    labelled, detected, delays, false = naive.events(label, breached)
    assert (found.labelled, found.detected, found.false_episodes) == (labelled, detected, false)
    assert found.delay_rows == (np.median(delays) if delays else pytest.approx(math.nan, nan_ok=True))
    assert segments(np.array(label)).tolist() == [[a, b + 1] for a, b in naive.stretches(label)]


@given(period=st.integers(4, 60), noise=st.floats(0.01, 2), n=st.integers(20, 300), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=15)
def test_the_window_equals_its_definition_spelt_out(period, noise, n, seed):
    rng = np.random.default_rng(seed)
    x = np.sin(2 * np.pi * np.arange(n) / period) + noise * rng.normal(size=n)
    assert acf_window(x) == naive.acf_window(x)


@pytest.mark.parametrize("x", [np.zeros(500), np.full(500, np.nan), np.arange(3.0), np.empty(0)])
def test_a_channel_without_a_period_gets_the_default_window(x):
    assert acf_window(x) == 125


def test_a_channel_with_gaps_keeps_its_period():
    x = np.sin(2 * np.pi * np.arange(2000) / 50)
    x[np.random.default_rng(0).random(2000) < 0.2] = np.nan
    assert acf_window(x) == 50


def test_a_random_score_gets_about_the_base_rate():
    rng = np.random.default_rng(7)
    label = labels(40_000, [(a, a + 100) for a in range(500, 40_000, 2000)])  # 5 %
    aucs, volumes, f1s = [], [], []
    for _ in range(3):
        score = rng.random(len(label))
        aucs.append(auc_pr(score, label))
        volumes.append(vus_pr(score, label, 0))
        f1s.append(evaluate("m", score, label, 0.99, 0, 1440).f1)
    assert np.mean(aucs) == pytest.approx(0.05, abs=0.005)
    assert np.mean(volumes) == pytest.approx(0.05, abs=0.005)
    assert np.mean(f1s) < 0.03  # point-adjusted, this would be near 0.7


def test_a_long_event_that_is_hit_once_counts_as_one_row():
    label = labels(1000, [(100, 600)])
    score = np.zeros(1000)
    score[300] = 1
    one = evaluate("m", score, label, 0.5, 0, 1440)
    assert one.confusion == Confusion(tp=1, fp=0, fn=499, tn=500)
    assert one.f1 == pytest.approx(2 / 501)
    assert one.mar == pytest.approx(0.998)
    assert (one.event_recall, one.delay_rows) == (1.0, 200.0)


def test_a_perfect_score_gets_one():
    label = labels(2000, [(100, 160), (900, 1000)])
    one = evaluate("m", label.astype(float), label, 0.5, 0, 1440)
    assert [one.vus_pr, one.auc_pr, one.best_f1, one.f1, one.event_recall] == [1.0] * 5
    assert (one.far, one.mar, one.delay_rows, one.false_episodes_per_day) == (0, 0, 0, 0)


def test_figures_depend_on_ranks_only_and_not_on_scale():
    rng = np.random.default_rng(1)
    label = labels(500, [(100, 130), (400, 410)])
    score = rng.random(500) + label * 0.3
    for f in (auc_pr, best_f1, lambda s, y: vus_pr(s, y, 9)):
        assert f(score, label) == f(np.exp(5 * score), label)


def test_a_row_without_a_score_never_alerts_and_ranks_last():
    label = labels(100, [(40, 60)])
    score = np.where(label, 1.0, 0.0)
    score[:10] = np.nan  # normal rows: nothing is lost
    same = evaluate("m", score, label, 0.5, 4, 1440)
    assert (same.unscored, same.f1, same.auc_pr) == (10, 1.0, 1.0)
    score[40:50] = np.nan  # anomalous rows: they are missed, and rank below the normal ones
    worse = evaluate("m", score, label, 0.5, 4, 1440)
    assert worse.confusion == Confusion(tp=10, fp=0, fn=10, tn=80)
    assert worse.delay_rows == 10
    ranked = np.where(np.isnan(score), -1.0, score)
    assert worse.auc_pr == auc_pr(ranked, label)
    assert worse.vus_pr == vus_pr(ranked, label, 4)


def test_a_threshold_may_change_from_row_to_row():
    label = labels(4, [(2, 4)])
    score = np.array([1.0, 1.0, 1.0, 1.0])
    assert evaluate("m", score, label, [2, 2, 0.5, 0.5], 0, 4).f1 == 1.0


def test_a_score_on_the_threshold_is_no_breach():
    assert evaluate("m", [1.0, 2.0], [0, 1], 1.0, 0, 2).confusion == Confusion(tp=1, fp=0, fn=0, tn=1)


def test_false_episodes_are_counted_by_the_day():
    label = labels(2880, [(100, 110)])  # two days of minutes
    score = np.zeros(2880)
    score[[5, 6, 7, 500, 2000]] = 1  # three episodes
    score[95:101] = 1  # starts early, but touches the label
    assert evaluate("m", score, label, 0.5, 0, 1440).false_episodes_per_day == 1.5


def test_without_labelled_rows_only_false_alarms_are_known():
    one = evaluate("m", np.arange(10.0), np.zeros(10), 8.5, 3, 10)
    assert one.far == 0.1
    assert all(math.isnan(v) for v in (one.vus_pr, one.auc_pr, one.best_f1, one.mar, one.event_recall, one.delay_rows))
    plain = one.to_json()
    assert plain["vus_pr"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_the_report_means_what_is_known_and_adds_up_rows():
    hit = evaluate("a", [0, 1, 1, 0], [0, 1, 1, 0], 0.5, 0, 4)
    missed = evaluate("b", [0, 0, 0, 1], [0, 1, 0, 0], 0.5, 0, 4)
    clean = evaluate("c", [0, 0], [0, 0], 0.5, 0, 4)
    joined = report([hit, missed, clean])
    assert joined.mean["mar"] == 0.5
    assert joined.of["mar"] == 2
    assert joined.mean["far"] == pytest.approx((0 + 1 / 3 + 0) / 3)
    assert joined.of["far"] == 3
    assert (joined.mean["delay_rows"], joined.of["delay_rows"]) == (0, 1)
    assert joined.micro == {"f1": 4 / 6, "far": 1 / 7, "mar": 1 / 3}
    assert set(joined.mean) == set(FIGURES)
    plain = joined.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert [e["asset"] for e in plain["assets"]] == ["a", "b", "c"]


def test_a_mean_of_nothing_is_null_in_json():
    plain = report([evaluate("c", [0, 0], [0, 0], 0.5, 0, 4)]).to_json()
    assert plain["mean"]["vus_pr"] is None
    assert plain["of"]["vus_pr"] == 0


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"scores of shape \(3,\) and labels of shape \(2,\)"):
        auc_pr([1, 2, 3], [0, 1])
    with pytest.raises(InputError, match="no rows"):
        best_f1([], [])
    with pytest.raises(InputError, match="labels hold"):
        vus_pr([1.0, 2.0], [0, 2], 3)
    with pytest.raises(InputError, match="rows_per_day"):
        evaluate("m", [1.0, 2.0], [0, 1], 1.0, 0, 0)
    with pytest.raises(InputError, match="vus_window"):
        evaluate("m", [1.0, 2.0], [0, 1], 1.0, -1, 5)
    with pytest.raises(ShapeError, match="threshold of shape"):
        evaluate("m", [1.0, 2.0], [0, 1], [1.0], 0, 5)
    with pytest.raises(InputError, match="threshold is NaN"):
        evaluate("m", [1.0, 2.0], [0, 1], [1.0, np.nan], 0, 5)
    with pytest.raises(ShapeError, match="channel"):
        acf_window(np.zeros((5, 2)))
    with pytest.raises(InputError, match="nothing to report"):
        report([])
