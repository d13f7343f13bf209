"""What is different when a streaming member is fitted: only rows that have all their neighbours count.

Its network never sees the edge of a window when it serves, so neither the loss nor the residuals know one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders import load_module
from models.series import windows
from models.stream_layers import member_span
from pipeline.bundle import MemberSpec
from pipeline.values import Bool, Float32, Int64

_CHUNK = 1024  # windows at a time


def to_train(member: MemberSpec, rows: int) -> tuple[MemberSpec, slice]:
    """Return the member over training windows in which so many rows have all that they read, and which ones."""
    span = member_span(member)
    return replace(member, window=span.rows(rows)), slice(span.back, span.back + rows)


def stream_residuals(
    member: MemberSpec, tensors: Mapping[str, NDArray[np.generic]], scaled: Float32, observed: Bool, ends: Int64
) -> tuple[Float32, Bool]:
    """Return the residual of every channel of one row in each of n windows, and whether it was observed: (n, C) each.

    Parameters
    ----------
    member : over training windows of at least a hop (`to_train`).
    tensors : its weights, by name.
    scaled, observed : (rows, C), 0.0 where not observed.
    ends : (n,) rows that end the windows. Their remainders by the hop pick the row, so that all phases come.
    """
    channels, span = scaled.shape[1], member_span(member)
    module = load_module(member, channels, tensors)
    residual = np.zeros((len(ends), channels), np.float32)
    known = np.zeros((len(ends), channels), np.bool_)
    for i in range(0, len(ends), _CHUNK):
        some = ends[i : i + _CHUNK]
        x, seen = windows(scaled, observed, some, member.window)
        with torch.inference_mode():
            back = module(torch.from_numpy(x), torch.from_numpy(seen).to(torch.float32)).numpy()
        at, row = np.arange(len(some)), member.window - 1 - span.lag - some % span.hop
        known[i : i + _CHUNK] = seen[at, row]
        residual[i : i + _CHUNK] = np.where(seen[at, row], x[at, row] - back[at, row], 0)
    return residual, known
