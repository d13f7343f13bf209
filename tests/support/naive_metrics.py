"""The metrics of `models.evaluation` again: definitions spelt out in loops, slow, nothing clever."""

import math


def stretches(label):
    """[(first row, last row)] of every unbroken run of ones."""
    found = []
    for i, y in enumerate(label):
        if y and (i == 0 or not label[i - 1]):
            found.append([i, i])
        if y:
            found[-1][1] = i
    return found


def vus_pr(score, label, window, thresholds=250):
    """Mean over label widths of the area under precision over (recall times existence)."""
    n = len(score)
    falling = sorted(score, reverse=True)
    # n - 1 in 249 equal steps, as numpy's linspace makes them, rounded down
    ranks = [int(k * ((n - 1) / (thresholds - 1))) if k < thresholds - 1 else n - 1 for k in range(thresholds)]
    areas = []
    for width in range(window + 1):
        soft = widened(label, width)
        groups = joined(label, width)
        area, recall_before = 0.0, 0.0
        for rank in ranks:
            predicted = [s >= falling[rank] for s in score]
            hits = sum(w for w, p in zip(soft, predicted, strict=True) if p)
            # true rows count whether predicted or not, ramps only where predicted
            weight = sum(1.0 if y else (w if p else 0.0) for y, w, p in zip(label, soft, predicted, strict=True))
            existence = sum(any(predicted[a : b + 1]) for a, b in groups) / len(groups)
            recall = min(hits / ((sum(label) + weight) / 2), 1.0) * existence
            area += (recall - recall_before) * hits / sum(predicted)
            recall_before = recall
        areas.append(area)
    return sum(areas) / len(areas)


def widened(label, width):
    """1 in a stretch, sqrt(1 - d / width) at distance d <= width // 2 from it; where two ramps meet, their sum or 1."""
    soft = [float(y) for y in label]
    for first, last in stretches(label):
        for i in range(len(label)):
            distance = first - i if i < first else i - last
            if 1 <= distance <= width // 2:
                soft[i] += math.sqrt(1 - distance / width)
    return [min(w, 1.0) for w in soft]


def joined(label, width):
    """[(first, last)] of stretches widened by width // 2 on both sides; those that meet or overlap are one."""
    groups = []
    for first, last in stretches(label):
        a, b = max(first - width // 2, 0), min(last + width // 2, len(label) - 1)
        if groups and first - width // 2 <= groups[-1][1]:
            groups[-1][1] = b
        else:
            groups.append([a, b])
    return groups


def auc_pr(score, label):
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        hits = sum(y for s, y in zip(score, label, strict=True) if s >= threshold)
        predicted = sum(s >= threshold for s in score)
        recall = hits / sum(label)
        area += (recall - recall_before) * hits / predicted
        recall_before = recall
    return area


def confusion(label, breached):
    pairs = list(zip(map(bool, label), map(bool, breached), strict=True))
    return tuple(pairs.count(kind) for kind in ((True, True), (False, True), (True, False), (False, False)))


def f1(label, breached):
    tp, fp, fn, _ = confusion(label, breached)
    return 2 * tp / (2 * tp + fp + fn)


def best_f1(score, label):
    return max(f1(label, [s >= threshold for s in score]) for threshold in set(score))


def events(label, breached):
    """(labelled, detected, delays of the detected, runs of breaches without a labelled row)."""
    delays = []
    for first, last in stretches(label):
        hit = [i for i in range(first, last + 1) if breached[i]]
        if hit:
            delays.append(hit[0] - first)
    false = sum(not any(label[a : b + 1]) for a, b in stretches(breached))
    return len(stretches(label)), len(delays), delays, false


def acf_window(channel):
    """The lag, 3 to 400, of the highest local peak of the autocorrelation, as TSB-AD searches it."""
    x = list(channel)[:20_000]
    mean = sum(x) / len(x)
    x = [v - mean for v in x]
    total = sum(v * v for v in x)
    if total == 0:
        return 125
    lags = range(3, min(401, len(x)))
    acf = [sum(x[i] * x[i + lag] for i in range(len(x) - lag)) / total for lag in lags]
    peaks = [i for i in range(1, len(acf) - 1) if acf[i] > acf[i - 1] and acf[i] > acf[i + 1]]
    if not peaks:
        return 125
    highest = max(peaks, key=lambda i: acf[i])
    return highest + 3 if 3 <= highest <= 300 else 125
