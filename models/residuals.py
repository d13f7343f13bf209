"""Channel residuals of a member on the part it was fitted on, and what aggregation needs to know about them.

A channel residual is signed and in scaled units: of the window's last row (`error = last`), or the root mean square
over its rows (`error = window`, then never negative).

References
----------
Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", JMVA 88 (2004).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders import load_module
from models.pca import PrincipalComponents, reconstruct, scores
from models.scaling import MAD_TO_STD
from models.series import windows
from pipeline.bundle import MemberSpec
from pipeline.values import Bool, Float32, Float64, Int64

_CHUNK = 1024  # windows at a time
_SMALLEST_VARIANCE = 1e-8  # in scaled units squared: keeps the precision finite where nothing is left over

Tensors = Mapping[str, NDArray[np.generic]]
Reconstruction = Callable[[Float32, Bool], Float64]


def channel_residuals(
    member: MemberSpec, tensors: Tensors, scaled: Float32, observed: Bool, ends: Int64
) -> tuple[Float32, Bool]:
    """Return the residual of every channel in n windows, and whether it rests on any reading: (n, C) and (n, C).

    Parameters
    ----------
    member : says how `tensors` are to be read, and of which rows the residual is (`error`).
    tensors : the member's own, by name.
    scaled, observed : (rows, C), 0.0 where not observed.
    ends : (n,) rows that end the windows.
    """
    channels = scaled.shape[1]
    residual = np.zeros((len(ends), channels), np.float32)
    known = np.zeros((len(ends), channels), np.bool_)
    rebuild = (
        _pca_reconstruction(tensors) if member.kind == "pca" else _module_reconstruction(member, tensors, channels)
    )
    for i in range(0, len(ends), _CHUNK):
        x, seen = windows(scaled, observed, ends[i : i + _CHUNK], member.window)
        left = np.where(seen, x - rebuild(x, seen), 0.0)
        part = slice(i, i + len(x))
        if member.error == "last":
            residual[part], known[part] = left[:, -1], seen[:, -1]
        else:
            count = seen.sum(axis=1)
            residual[part] = np.sqrt(np.square(left).sum(axis=1) / np.maximum(count, 1))
            known[part] = count > 0
    return residual, known


def fit_aggregation(residual: Float32, known: Bool) -> dict[str, Float32]:
    """Fit what `ztop` and `mahalanobis` need, on residuals of normal rows.

    `median` and `mad` (1.4826 MAD, no floor) are of each channel's absolute residual. `location` and `precision` are of
    the signed ones: the mean, and the inverse of the Ledoit-Wolf covariance. A residual that is not known counts as its
    channel's mean.

    Parameters
    ----------
    residual, known : (n, C).

    Returns
    -------
    `median`, `mad`, `location` (C,) and `precision` (C, C), float32.
    """
    channels = residual.shape[1]
    median, mad, location = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for c in range(channels):
        values = residual[known[:, c], c].astype(np.float64)
        if len(values):
            size = np.abs(values)
            median[c] = np.median(size)
            mad[c] = MAD_TO_STD * np.median(np.abs(size - median[c]))
            location[c] = values.mean()
    deviation = np.where(known, residual - location, 0.0)
    covariance = ledoit_wolf(deviation) + _SMALLEST_VARIANCE * np.eye(channels)
    fitted = {"median": median, "mad": mad, "location": location, "precision": np.linalg.inv(covariance)}
    return {name: value.astype(np.float32) for name, value in fitted.items()}


def ledoit_wolf(deviation: Float64) -> Float64:
    """Return the covariance (C, C) of centred rows (n, C), shrunk towards mu I by the optimal share (section 3.2).

    With S the sample covariance and <A, B> = tr(A B') / C: mu = <S, I>, d² = |S - mu I|²,
    b² = min(d², sum_k |x_k x_k' - S|² / n²), and the estimate is b²/d² mu I + (1 - b²/d²) S.
    """
    rows, channels = deviation.shape
    sample = deviation.T @ deviation / rows
    mu = float(np.trace(sample)) / channels
    d2 = float(np.square(sample - mu * np.eye(channels)).sum()) / channels
    # sum_k |x_k x_k' - S|² = sum_k |x_k|^4 - n |S|²
    fourth = float(np.square(np.square(deviation).sum(axis=1)).sum())
    b2 = min(d2, (fourth / rows - float(np.square(sample).sum())) / rows / channels)
    share = b2 / d2 if d2 > 0 else 1.0
    return np.asarray(share * mu * np.eye(channels) + (1 - share) * sample)


def _pca_reconstruction(tensors: Tensors) -> Reconstruction:
    mean, components, variance = (np.asarray(tensors[n], np.float64) for n in ("mean", "components", "variance"))
    pca = PrincipalComponents(mean, components, variance, noise=float(np.asarray(tensors["noise"], np.float64)))

    def rebuild(x: Float32, seen: Bool) -> Float64:
        flat = (len(x), -1)
        return reconstruct(pca, scores(pca, x.reshape(flat), seen.reshape(flat))).reshape(x.shape)

    return rebuild


def _module_reconstruction(member: MemberSpec, tensors: Tensors, channels: int) -> Reconstruction:
    module = load_module(member, channels, tensors)

    @torch.inference_mode()
    def rebuild(x: Float32, seen: Bool) -> Float64:
        out = module(torch.from_numpy(x), torch.from_numpy(seen).to(torch.float32))
        return np.asarray(out.numpy(), np.float64)

    return rebuild
