"""Principal components the slow, obvious way: one window at a time, nothing shared with `models.pca`."""

import numpy as np


def fit(rows, share):
    """Return (mean, components, variance, noise) from the singular values of all windows, a (n, D) array."""
    rows = np.asarray(rows, np.float64)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean)
    variance = np.zeros(rows.shape[1])
    variance[: len(singular)] = singular**2 / (len(rows) - 1)
    k = 0
    while k == 0 or variance[:k].sum() <= share * variance.sum():
        k += 1
    k = min(k, rows.shape[1] - 1)
    return mean, directions[:k], variance[:k], variance[k:].mean()


def scores_of(mean, components, variance, noise, x, observed):
    """Return the scores (k,) of one window: the ridge written as k more readings of 0, each with its own weight."""
    kept = np.flatnonzero(observed)
    if len(kept) == len(x):
        return np.array([component @ (x - mean) for component in components])
    rows = [components[:, j] / np.sqrt(noise) for j in kept]
    right = [(x[j] - mean[j]) / np.sqrt(noise) for j in kept]
    for i in range(len(components)):
        rows.append(np.eye(len(components))[i] / np.sqrt(variance[i]))
        right.append(0.0)
    return np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]


def q_of(mean, components, t, x, observed):
    """Return the mean squared residual of one window over what was observed."""
    back = mean + sum(t[i] * components[i] for i in range(len(components)))
    return np.mean([(x[j] - back[j]) ** 2 for j in np.flatnonzero(observed)])


def principal_angles(a, b):
    """Return the angles between the row spaces of two matrices, in radians."""
    qa, qb = np.linalg.qr(np.asarray(a, np.float64).T)[0], np.linalg.qr(np.asarray(b, np.float64).T)[0]
    return np.arccos(np.clip(np.linalg.svd(qa.T @ qb, compute_uv=False), -1, 1))
