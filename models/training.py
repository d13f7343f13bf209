"""One plain training loop for every autoencoder: the target is the clean window, what is not observed never counts.

Legend: N rows, B windows a step, W rows a window, C channels.

Denoising is part of the loop and not of a module, so that it composes with every architecture and is off when scoring:
whole channels are hidden from the encoder, which then has to use the other channels, and noise may be added.

References
----------
[1] Vincent et al., "Extracting and composing robust features with denoising autoencoders", ICML 2008.
[2] Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
[3] Smith & Topin, "Super-convergence: very fast training of neural networks using large learning rates" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from models.series import thinned, windows
from pipeline.errors import ConfigError, TooLittleHistory, TrainingError
from pipeline.values import Bool, Float32, Int64

_HELD_OUT_WINDOWS = 2048  # of the held-out part, evenly thinned, at each check
_SAFE_STEPS = 25  # steps between copies of weights that gave a finite loss
_GAIN = 1e-4  # share by which the held-out loss must fall to count as better

Tensors = dict[str, NDArray[np.generic]]
_Stopped = Literal["finished", "early", "non_finite"]


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """How to train; the defaults are the measured recipe.

    `schedule`: `one_cycle` (up to 3 times `learning_rate` and down to nothing over all steps) or `plateau` (halved
    after three checks without a better loss). `mask_share`: chance of each channel to be hidden from the encoder for
    a whole window (a lone channel never is). `noise`: standard deviation of the noise added to what the encoder sees,
    in scaled units, so in a channel's own standard deviations. `patience`: checks without a better held-out loss after
    which training stops and goes back to the best weights; 0: never. A check is made every `check_every` steps.

    Raises
    ------
    ConfigError : a value out of range.
    """

    steps: int = 1200
    batch: int = 256
    learning_rate: float = 1e-3
    schedule: Literal["one_cycle", "plateau"] = "one_cycle"
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = 1.0
    mask_share: float = 0.3
    noise: float = 0.0
    patience: int = 0
    check_every: int = 50
    seed: int = 0
    compile: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "clip_norm", "huber_delta", "check_every"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"train.{name}", value, "use a positive number")
        for name in ("weight_decay", "noise", "patience", "seed"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"train.{name}", value, "use 0 or more")
        if not 0 <= self.mask_share < 1:
            raise ConfigError("train.mask_share", self.mask_share, "use a share from 0 to below 1, such as 0.3")
        if self.schedule not in ("one_cycle", "plateau"):
            raise ConfigError("train.schedule", self.schedule, "choose 'one_cycle' or 'plateau'")
        if self.loss not in ("mse", "huber"):
            raise ConfigError("train.loss", self.loss, "choose 'mse' or 'huber'")
        if self.compile not in ("auto", "on", "off"):
            raise ConfigError("train.compile", self.compile, "choose 'auto', 'on' or 'off'")


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What happened. `loss[i]` is the loss of step i on its own batch, before its update.

    `held_out` is the loss at each check (empty without a held-out part). `stopped`: `finished`, `early`, or
    `non_finite`: a loss or gradient that was no finite number. The weights returned are those of `weights_step`,
    the number of updates they have seen.
    """

    seed: int
    threads: int
    device: str
    compiled: bool
    loss: Float32
    held_out: Float32
    stopped: _Stopped
    weights_step: int


Report = Callable[[int, int, float], None]  # step (from 1), steps, loss


def train(
    build: Callable[[], nn.Module],
    scaled: Float32,
    observed: Bool,
    ends: Int64,
    window: int,
    spec: LoopSpec,
    held_ends: Int64 | None = None,
    device: str = "cpu",
    report: Report | None = None,
    counted: slice = slice(None),
) -> tuple[Tensors, TrainingRecord]:
    """Build a module and train it to reconstruct the windows that end at `ends`.

    Reproducible: the same seed gives the same weights, bit by bit, on the same CPU with one torch thread. The global
    random state of torch is left as it was. When a loss or a gradient is not finite, training stops and the last
    weights that gave a finite loss are returned; the record says so and the caller decides.

    Parameters
    ----------
    build : makes the module with fresh weights; called after seeding.
    scaled, observed : (N, C), 0.0 where not observed.
    ends : rows that end training windows.
    held_ends : rows that end windows kept out of training, for the plateau schedule and early stopping.
    device : see `training_device`.
    report : called at every check and after the last step.
    counted : rows of a window that the loss counts, of those that the module reconstructs.

    Returns
    -------
    The state of the module by name, and the record.

    Raises
    ------
    TooLittleHistory : fewer than two windows to train on.
    ConfigError : early stopping is asked for and nothing is held out, or a device that is not there.
    TrainingError : not even the first loss was finite.
    """
    if len(ends) < 2:
        raise TooLittleHistory(len(ends), 2, f"normal windows of {window} rows")
    held = np.empty(0, np.int64) if held_ends is None else thinned(held_ends, _HELD_OUT_WINDOWS)
    if spec.patience and not len(held):
        raise ConfigError("train.patience", spec.patience, "hold a part out (train.hold_out), or use 0")
    where = training_device(device)
    source = _Windows(scaled, observed, window, where)

    def attempt(compiled: bool) -> tuple[_Run, _Stopped]:
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            torch.manual_seed(spec.seed)
            module = build().to(where)
            forward = torch.compile(module, dynamic=False) if compiled else module
            run = _Run(module, forward, source, ends, held, spec, counted)
            return run, _loop(run, spec, report)

    compiled = spec.compile == "on" or (spec.compile == "auto" and where.type == "cuda")
    try:
        run, stopped = attempt(compiled)
    except RuntimeError as error:  # compilers fail at the first step: nothing is lost by starting again
        if not compiled:
            raise
        if spec.compile == "on":
            raise ConfigError("train.compile", "on", f"torch cannot compile here, use 'off': {error}") from error
        run, stopped = attempt(compiled := False)
    if not run.curve:
        raise TrainingError(
            "the first loss was not finite: look for readings that are not finite, or widen the limits of the scaler"
        )
    weights, weights_step, finite = run.result(diverged=stopped == "non_finite")
    record = TrainingRecord(
        seed=spec.seed,
        threads=torch.get_num_threads(),
        device=str(where),
        compiled=compiled,
        loss=np.array(run.curve, np.float32),
        held_out=np.array(run.held_out, np.float32),
        stopped=stopped if finite else "non_finite",
        weights_step=weights_step,
    )
    return weights, record


def training_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the GPU where there is one.

    Raises
    ------
    ConfigError : an unknown name, or a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError("run.device", name, "choose 'auto', 'cpu' or 'cuda'")
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError(
            "run.device", name, "torch sees no GPU here: choose 'cpu', or 'auto' to take one where there is one"
        )
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def masked_loss(reconstruction: Tensor, target: Tensor, observed: Tensor, spec: LoopSpec) -> Tensor:
    """Return the mean loss over the observed readings of a batch, a scalar; 0 where nothing was observed."""
    if spec.loss == "huber":
        each = nn.functional.huber_loss(reconstruction, target, reduction="none", delta=spec.huber_delta)
    else:
        each = nn.functional.mse_loss(reconstruction, target, reduction="none")
    return (each * observed).sum() / observed.sum().clamp(min=1.0)


def corrupt(x: Tensor, observed: Tensor, spec: LoopSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what the encoder gets to see: windows with noise, and `observed` with whole channels hidden."""
    if spec.noise > 0:
        x = x + spec.noise * torch.randn(x.shape, generator=generator).to(x.device)
    if spec.mask_share > 0 and x.shape[2] > 1:
        chance = torch.rand((x.shape[0], 1, x.shape[2]), generator=generator)
        observed = observed * (chance >= spec.mask_share).to(x)
    return x, observed


class _Windows:
    """Batches of windows, gathered by index when they are asked for."""

    def __init__(self, scaled: Float32, observed: Bool, window: int, device: torch.device) -> None:
        self._rows = (scaled, observed)
        self._window = window
        self._device = device

    def __call__(self, ends: Int64) -> tuple[Tensor, Tensor]:
        x, seen = windows(*self._rows, ends, self._window)
        return torch.from_numpy(x).to(self._device), torch.from_numpy(seen).to(self._device, torch.float32)


class _Run:
    """The state of one training run: a step, a check, and what is left at the end."""

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[..., Tensor],
        source: _Windows,
        ends: Int64,
        held: Int64,
        spec: LoopSpec,
        counted: slice,
    ) -> None:
        self.curve: list[float] = []
        self.held_out: list[float] = []
        self._module, self._forward, self._source, self._spec = module.train(), forward, source, spec
        self._ends, self._held, self._counted = ends, held, counted
        self._generator = torch.Generator().manual_seed(spec.seed)
        self._optimiser = torch.optim.AdamW(
            module.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        self._schedule: OneCycleLR | ReduceLROnPlateau
        if spec.schedule == "plateau":
            self._schedule = ReduceLROnPlateau(self._optimiser, factor=0.5, patience=3)
        else:
            self._schedule = OneCycleLR(self._optimiser, 3 * spec.learning_rate, spec.steps)
        self._safe = (_weights(module), 0)
        self._best: tuple[Tensors, int] | None = None
        self._lowest, self._since = math.inf, 0

    def step(self) -> bool:
        """Update the weights once; False, and no update, when the loss or a gradient is not finite."""
        drawn = torch.randint(len(self._ends), (min(self._spec.batch, len(self._ends)),), generator=self._generator)
        x, observed = self._source(self._ends[drawn.numpy()])
        seen = corrupt(x, observed, self._spec, self._generator)
        loss = self._loss(self._forward(*seen), x, observed)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self._module.parameters(), self._spec.clip_norm)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            return False
        if len(self.curve) % _SAFE_STEPS == 0:
            self._safe = (_weights(self._module), len(self.curve))
        self.curve.append(value)
        self._optimiser.step()
        if isinstance(self._schedule, OneCycleLR):
            self._schedule.step()
        return True

    def check(self) -> bool:
        """Measure the held-out loss and adjust the schedule; True when it is time to stop."""
        recent = float(np.mean(self.curve[-self._spec.check_every :]))
        if len(self._held):
            recent = self._held_out_loss()
            self.held_out.append(recent)
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(recent)
        if not self._spec.patience:
            return False
        self._since += 1
        if recent < self._lowest * (1 - _GAIN):
            self._lowest, self._since, self._best = recent, 0, (_weights(self._module), len(self.curve))
        return self._since >= self._spec.patience

    def result(self, diverged: bool) -> tuple[Tensors, int, bool]:
        """Return the weights to keep, the updates they have seen, and whether all was finite to the end."""
        last = _weights(self._module)
        finite = not diverged and all(bool(np.isfinite(value).all()) for value in last.values())
        kept = self._best or ((last, len(self.curve)) if finite else self._safe)
        return *kept, finite

    def _loss(self, reconstruction: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        rows = self._counted
        return masked_loss(reconstruction[:, rows], x[:, rows], observed[:, rows], self._spec)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        self._module.eval()
        total = 0.0
        for i in range(0, len(self._held), self._spec.batch):
            x, observed = self._source(self._held[i : i + self._spec.batch])
            total += len(x) * float(self._loss(self._module(x, observed), x, observed))
        self._module.train()
        return total / len(self._held)


def _loop(run: _Run, spec: LoopSpec, report: Report | None) -> _Stopped:
    for step in range(1, spec.steps + 1):
        if not run.step():
            return "non_finite"
        if step % spec.check_every == 0 or step == spec.steps:
            if report is not None:
                report(step, spec.steps, run.curve[-1])
            if run.check():
                return "early"
    return "finished"


def _weights(module: nn.Module) -> Tensors:
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}
