"""pyod 3.6.7: its autoencoder on ready windows of 2,048 values, 1,024 at a time."""

from __future__ import annotations

import numpy as np
import torch
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.pca import PCA

from jobs.benches.peers.turns import take_turns

_READINGS, _WINDOWS = 2048, 1024


def main() -> None:
    """Fit briefly, then take turns."""
    torch.set_num_threads(1)
    x = np.random.default_rng(0).standard_normal((_WINDOWS, _READINGS)).astype(np.float32)
    dense = AutoEncoder(hidden_neuron_list=[256, 32], epoch_num=1, verbose=0)
    dense.fit(x)
    components = PCA(n_components=32)
    components.fit(x)
    take_turns(
        {
            "autoencoder": (lambda _: dense.decision_function(x), _WINDOWS),
            "pca": (lambda _: components.decision_function(x), _WINDOWS),
        }
    )


if __name__ == "__main__":
    main()
