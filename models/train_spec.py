"""All that decides what is fitted, checked before anything is read.

The defaults are the recipe that was measured: scaling by mean and standard deviation, linear to 3 and logarithmic
beyond; principal components of 32-row windows at 90 % of the variance beside a dense autoencoder of 16-row windows
(128-64-16, mirrored), trained with 30 % of whole channels hidden; the error is that of the last row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from models.networks import NETWORKS, check_layers, default_latent, network_of
from models.scaling import ScalerKind, check_soft_clip
from models.stream_layers import span_of
from models.training import LoopSpec
from pipeline.bundle import MemberSpec, SmootherSpec
from pipeline.errors import ConfigError
from pipeline.values import NS_PER_S

_MOST_PCA_READINGS = 8192  # D of a window: the covariance takes 8 D² bytes, its decomposition time ~ D³


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """All that decides what is fitted. `models.training.LoopSpec` explains the fields of the loop.

    Parameters
    ----------
    channels, period_ns : of the series, in order; they go into the bundle.
    members : kinds of models, `pca` or of `models.networks.NETWORKS`; a kind named twice is fitted from two seeds.
        Or `stream` alone: the network that the `conv_*` fields describe, run over an endless series.
    per_group : `asset` fits every asset with at least `min_windows` windows on its own and all of them together as the
        group of the rest and of assets to come; `fleet` fits that group only.
    scaler, soft_clip : see `models.scaling`.
    error, aggregate : see `pipeline.bundle.MemberSpec`; `stream` averages `conv_window` rows with `window`.
    min_windows : normal windows that a group needs; 450 is what 80 % of 600 rows hold. With fewer, fitting and
        calibrating on one asset gave false-alarm rates near 1.
    *_window : rows.
    dense_latent, conv_latent : 0 chooses from the size of the input (`models.networks.default_latent`).
    hold_out : share of the newest windows that training leaves to early stopping and the plateau schedule.
    smoother : goes into the bundle.

    Raises
    ------
    ConfigError : a value that cannot be used, under its key in the configuration.
    """

    channels: tuple[str, ...]
    period_ns: int
    members: tuple[str, ...] = ("pca", "dense")
    per_group: Literal["asset", "fleet"] = "asset"
    scaler: ScalerKind = "standard"
    soft_clip: float = 3.0
    error: Literal["last", "window"] = "last"
    aggregate: Literal["mse", "ztop", "mahalanobis"] = "mse"
    min_windows: int = 450
    pca_window: int = 32
    pca_variance: float = 0.9
    pca_max_components: int = 512
    pca_statistic: Literal["q", "t2", "combined"] = "q"
    dense_window: int = 16
    dense_hidden: tuple[int, ...] = (128, 64)
    dense_latent: int = 0
    dense_batch_norm: bool = False
    dense_dropout: float = 0.0
    conv_window: int = 32
    conv_hidden: tuple[int, ...] = (32,)
    conv_latent: int = 0
    conv_kernels: tuple[int, ...] = (5, 5)
    conv_strides: tuple[int, ...] = (2, 2)
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
    hold_out: float = 0.0
    patience: int = 0
    seed: int = 0
    compile: Literal["auto", "on", "off"] = "auto"
    smoother: SmootherSpec = field(default_factory=SmootherSpec)

    def __post_init__(self) -> None:
        _check_data(self)
        _check_choices(self)
        self.loop(self.seed)
        for member in member_specs(self):
            _check_member(member, len(self.channels))

    def loop(self, seed: int) -> LoopSpec:
        """Return the part of this that the training loop needs."""
        return LoopSpec(
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            loss=self.loss,
            huber_delta=self.huber_delta,
            mask_share=self.mask_share,
            noise=self.noise,
            patience=self.patience,
            seed=seed,
            compile=self.compile,
        )


def member_specs(spec: TrainSpec) -> tuple[MemberSpec, ...]:
    """Return the members that `spec` asks for, with all sizes settled."""
    channels = len(spec.channels)
    windows = {"pca": spec.pca_window, "dense": spec.dense_window, "conv": spec.conv_window}
    stride = int(np.prod(spec.conv_strides))
    if "stream" in spec.members:
        check_layers(spec.conv_hidden, spec.conv_kernels, spec.conv_strides)
        span = span_of(spec.conv_kernels, spec.conv_strides)
        windows["stream"] = span.rows(spec.conv_window if spec.error == "window" else 1)
    params: dict[str, dict[str, Any]] = {
        "pca": {
            "variance": spec.pca_variance,
            "max_components": spec.pca_max_components,
            "statistic": spec.pca_statistic,
        },
        "dense": {
            "hidden": list(spec.dense_hidden),
            "latent": spec.dense_latent or default_latent("dense", spec.dense_window, channels),
            "batch_norm": spec.dense_batch_norm,
            "dropout": spec.dense_dropout,
        },
        "conv": {
            "hidden": list(spec.conv_hidden),
            "latent": spec.conv_latent or default_latent("conv", spec.conv_window, channels, stride),
            "kernels": list(spec.conv_kernels),
            "strides": list(spec.conv_strides),
        },
    }
    params["stream"] = params["conv"]
    return tuple(MemberSpec(kind, windows[kind], spec.error, spec.aggregate, params[kind]) for kind in spec.members)


def _check_data(spec: TrainSpec) -> None:
    if not spec.channels or len(set(spec.channels)) < len(spec.channels):
        raise ConfigError("feed.channels", spec.channels, "name at least one channel, each once")
    if spec.period_ns <= 0:
        raise ConfigError("feed.period_s", spec.period_ns / NS_PER_S, "use a period above 0")
    if spec.min_windows < 2:
        raise ConfigError("train.min_windows", spec.min_windows, "use at least 2; 450 is what was measured")


def _check_choices(spec: TrainSpec) -> None:
    choices = {
        "per_group": ("asset", "fleet"),
        "scaler": ("standard", "robust"),
        "error": ("last", "window"),
        "aggregate": ("mse", "ztop", "mahalanobis"),
        "pca_statistic": ("q", "t2", "combined"),
    }
    for name, allowed in choices.items():
        if getattr(spec, name) not in allowed:
            raise ConfigError(f"train.{name}", getattr(spec, name), f"choose one of {', '.join(allowed)}")
    kinds = ("pca", *NETWORKS)
    if not spec.members or not set(spec.members) <= set(kinds):
        raise ConfigError("train.members", spec.members, f"name one or more of {', '.join(kinds)}")
    if "stream" in spec.members and len(spec.members) > 1:
        raise ConfigError(
            "train.members", spec.members, "a streaming model is served alone: name stream only, or conv in its place"
        )
    if "stream" in spec.members and spec.conv_window < np.prod(spec.conv_strides):
        raise ConfigError("train.conv_window", spec.conv_window, "use at least the product of train.conv_strides")
    if not 0 <= spec.hold_out <= 0.5:
        raise ConfigError("train.hold_out", spec.hold_out, "use a share from 0 to 0.5")
    if spec.patience and not spec.hold_out:
        raise ConfigError("train.patience", spec.patience, "hold a part out (train.hold_out = 0.1), or use 0")
    if not 0 < spec.pca_variance < 1:
        raise ConfigError("train.pca_variance", spec.pca_variance, "use a share between 0 and 1, such as 0.9")
    if spec.pca_statistic != "q" and spec.aggregate != "mse":
        raise ConfigError("train.pca_statistic", spec.pca_statistic, "set train.aggregate = 'mse', or use 'q'")
    if spec.pca_max_components < 1:
        raise ConfigError("train.pca_max_components", spec.pca_max_components, "allow at least 1")
    if not 0 <= spec.dense_dropout < 1:
        raise ConfigError("train.dense_dropout", spec.dense_dropout, "use a share from 0 to below 1")
    check_soft_clip(spec.soft_clip)


def _check_member(member: MemberSpec, channels: int) -> None:
    kind = "conv" if member.kind == "stream" else member.kind  # whose options it is made of
    readings, key = member.window * channels, f"train.{kind}_window"
    if member.window < 1:
        raise ConfigError(key, member.window, "a window has at least one row")
    if member.kind == "pca":
        if not 2 <= readings <= _MOST_PCA_READINGS:
            raise ConfigError(
                key,
                member.window,
                f"{channels} channels make windows of {readings} readings, "
                f"pca takes 2 to {_MOST_PCA_READINGS}: choose another window",
            )
        return
    sizes = {name: value for name, value in member.params.items() if name in ("hidden", "latent", "strides")}
    for name, value in sizes.items():
        if any(size < 1 for size in (value if isinstance(value, list) else [value])):
            raise ConfigError(f"train.{kind}_{name}", value, "use sizes of at least 1")
    ratio = network_of(member, channels).compression_ratio
    if ratio <= 1:
        raise ConfigError(
            f"train.{kind}_latent",
            member.params["latent"],
            f"a window of {readings} readings would go through a bottleneck that is no smaller: anything gets through; "
            "use fewer latents or a longer window",
        )
