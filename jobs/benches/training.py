"""What `torch.compile` is worth in training: steps of the convolutional autoencoder, with it and without, in turn.

The step is that of `models.training` on a batch that is there already. The ratio counts compiling in: how much sooner a
default training of 1,200 steps ends. Below 1 it does not pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jobs.benches.measure import Result, Trial, against, result
from models.autoencoders import ConvAutoencoder
from models.training import LoopSpec, masked_loss, training_device

_WINDOW, _CHANNELS, _HIDDEN, _LATENT = 64, 32, (32,), 16
_KERNELS, _STRIDES = (7, 5), (2, 2)


def compiled(trial: Trial) -> Result:
    """Return the time of a whole training without `torch.compile` to that with it, compiling included."""
    torch.set_num_threads(1)
    device = training_device(trial.device.partition(":")[0])
    spec = LoopSpec(batch=trial.size(256, 8))
    backend = "aot_eager" if trial.quick else "inductor"
    x = torch.randn(spec.batch, _WINDOW, _CHANNELS, generator=torch.Generator().manual_seed(0)).to(device)
    plain, quick = (_module().to(device) for _ in range(2))
    start = time.perf_counter()
    fast = _step(quick, torch.compile(quick, dynamic=False, backend=backend), x, spec)
    fast(0)  # compiles forward and backward
    compile_s = time.perf_counter() - start
    taken = trial.rounds({"eager": _step(plain, plain, x, spec), "compiled": fast}, time.perf_counter)
    steps = spec.steps
    whole = steps * taken["eager"] / (compile_s + steps * taken["compiled"])
    lines = [
        against(f"a training of {steps} steps on {device.type} without it", whole),
        against("a step without it", taken["eager"] / taken["compiled"]),
    ]
    return result("train.compile", lines, {"compile_s": compile_s, "eager_step_s": float(taken["eager"].mean())})


def _module() -> nn.Module:
    torch.manual_seed(0)
    return ConvAutoencoder(_WINDOW, _CHANNELS, _HIDDEN, _LATENT, _KERNELS, _STRIDES).train()


def _step(module: nn.Module, forward: Callable[..., Tensor], x: Tensor, spec: LoopSpec) -> Callable[[int], object]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=spec.learning_rate, fused=True)
    observed = torch.ones_like(x)

    def step(_: int) -> object:
        loss = masked_loss(forward(x, observed), x, observed, spec)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), spec.clip_norm)
        optimiser.step()
        return float(loss.detach())

    return step
