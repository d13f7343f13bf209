"""Writes metrics.json: figures of the reference implementations, for inputs that are stored with them.

Needs an environment of its own, because the reference asks for old libraries:
    pip install --no-deps TSB-AD==1.5 && pip install scikit-learn statsmodels
    python tests/golden/make_metrics.py
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve
from TSB_AD.evaluation.basic_metrics import generate_curve
from TSB_AD.utils.slidingWindows import find_length_rank


def case(name, score, stretches, window):
    """`score` in whole thousandths, so that it is short and exact in JSON; ties are wanted."""
    thousandths = np.asarray(np.round(score * 1000), np.int64)
    label = np.zeros(len(score), np.int64)
    for a, b in stretches:
        label[a:b] = 1
    score = thousandths / 1000
    precision, recall, _ = precision_recall_curve(label, score)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmax(2 * precision * recall / (precision + recall))
    return {
        "name": name,
        "score_thousandths": thousandths.tolist(),
        "stretches": stretches,
        "window": window,
        "vus_pr": float(generate_curve(label, score, window, "opt", 250)[-1]),
        "auc_pr": float(average_precision_score(label, score)),
        "best_f1": float(f1),
    }


def cases(rng):
    n = 700
    score = rng.random(n)
    yield case("random score", score, [[50, 80], [300, 301], [500, 560]], 40)
    lifted = score.copy()
    lifted[55:90] += 0.4
    lifted[505:540] += 0.3
    yield case("good score with a delay", lifted, [[50, 80], [300, 301], [500, 560]], 40)
    yield case("stretches at both ends", lifted, [[0, 30], [690, 700]], 33)
    yield case("stretches whose ramps meet", lifted, [[100, 110], [118, 125], [126, 130], [170, 171]], 30)
    yield case("many ties", np.round(lifted, 1), [[50, 80], [500, 560]], 20)
    yield case("constant score", np.ones(n), [[50, 80]], 10)
    yield case("window 0", lifted, [[50, 80], [300, 301]], 0)
    yield case("window 1", lifted, [[50, 80], [300, 301]], 1)
    yield case("everything is an anomaly but one row", lifted, [[0, 699]], 12)
    yield case("fewer rows than thresholds", lifted[:120], [[50, 80], [100, 101]], 15)


def channels(rng):
    t = np.arange(1500)
    noise = rng.normal(size=1500)
    yield "period 50", np.sin(2 * np.pi * t / 50) + 0.1 * noise
    yield "period 288, two harmonics", np.sin(2 * np.pi * t / 288) + 0.5 * np.sin(4 * np.pi * t / 288) + 0.05 * noise
    yield "random walk", np.cumsum(noise)
    yield "white noise", noise
    yield "period 5, below the range", np.sin(2 * np.pi * t / 5)
    yield "period 390, above the range", np.sin(2 * np.pi * t / 390)
    yield "short", (np.sin(2 * np.pi * t / 20) + 0.1 * noise)[:60]


def main():
    rng = np.random.default_rng(20261121)
    golden = {"reference": "TSB-AD 1.5, scikit-learn", "metrics": list(cases(rng)), "acf_window": []}
    for name, x in channels(rng):
        hundredths = np.asarray(np.round(x * 100), np.int64)
        golden["acf_window"].append(
            {"name": name, "hundredths": hundredths.tolist(), "window": int(find_length_rank(hundredths / 100, rank=1))}
        )
    Path(__file__).with_name("metrics.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
