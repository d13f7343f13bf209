"""continual-inference 1.2.4: the strided encoder of the streaming bench, a row of every series at a step.

It has continual convolutions, strided ones among them, and no transposed ones: the encoder is all that it can do.
"""

from __future__ import annotations

import continual as co
import numpy as np
import torch

from jobs.benches.peers.turns import take_turns

_SERIES, _CHANNELS, _HIDDEN, _LATENT, _HOP = 8192, 32, 32, 16, 4


def main() -> None:
    """Fill its buffers, then take turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = co.Sequential(
        co.Conv1d(_CHANNELS, _HIDDEN, kernel_size=7, stride=2, padding=3),
        torch.nn.ReLU(),
        co.Conv1d(_HIDDEN, _LATENT, kernel_size=5, stride=2, padding=2),
    ).eval()
    random = np.random.default_rng(0)
    rows = [torch.from_numpy(random.standard_normal((_SERIES, _CHANNELS), np.float32)) for _ in range(2 * _HOP)]

    def hop(i: int) -> list[object]:
        with torch.inference_mode():
            at = _HOP * (i % 2)
            return [encoder.forward_step(row) for row in rows[at : at + _HOP]]

    for i in range(8):
        steps = hop(i)
    if sum(isinstance(step, torch.Tensor) and step.shape == (_SERIES, _LATENT) for step in steps) != 1:
        raise RuntimeError(f"a hop of {_HOP} rows gave {[getattr(step, 'shape', step) for step in steps]}")
    take_turns({"encoder": (hop, _SERIES * _HOP)})


if __name__ == "__main__":
    main()
