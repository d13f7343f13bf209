"""The yardstick of everything that computes: what the same process reaches in one large fp32 matrix product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

_ROWS, _INNER, _OUTER = 1024, 2048, 256


def gemm() -> Callable[[int], object]:
    """Return a contestant: the product of (1024, 2048) and (2048, 256)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(_ROWS, _INNER, generator=generator)
    b = torch.randn(_OUTER, _INNER, generator=generator).t()
    out = torch.empty(_ROWS, _OUTER)

    def product(_: int) -> object:
        with torch.inference_mode():
            return torch.mm(a, b, out=out)

    return product


def network_floor(flop: int, gemm_s: np.ndarray) -> np.ndarray:
    """Return the seconds that `flop` operations take at the rate of the product that took `gemm_s`."""
    return flop / (2 * _ROWS * _INNER * _OUTER / gemm_s)
