"""Every option of what is fitted, on what, and where the threshold comes from. `models.train_spec` takes most of them.

A change takes effect with the next training.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from jobs.config.options import Seconds, Section, listed, option

_Size = Annotated[int, Field(ge=1)]
_Sizes = Annotated[tuple[_Size, ...], BeforeValidator(listed)]
_Kinds = Annotated[tuple[Literal["pca", "dense", "conv", "stream"], ...], BeforeValidator(listed)]
_Profiles = Annotated[tuple[str, ...], BeforeValidator(listed)]


class Train(Section):
    """What is fitted, on which rows, and where the threshold comes from. A change waits for the next training."""

    min_rows: int = option(2000, "rows", "with fewer normal rows than this nothing is trained", ge=1)
    days: float = option(28.0, "days", "how far back training looks", gt=0)
    guard_s: Seconds = option(600.0, "s", "rows this close to an alert are not normal either")
    dismissed_share: float = option(0.05, "share", "most of the rows that dismissed alerts may give back", ge=0, le=1)
    holdout_share: float = option(
        0.2, "share", "newest part of an asset's normal windows, for the threshold", gt=0, lt=1
    )
    percentile: float = option(99.5, "%", "of the held-out smoothed scores: the threshold", gt=50, lt=100)

    members: _Kinds = option(
        ("pca", "dense"), "", "the ensemble, a kind named twice has two seeds; or stream alone", min_length=1
    )
    per_group: Literal["asset", "fleet"] = option(
        "asset", "", "asset: a model for each asset with enough history, and one for the rest; fleet: one for all"
    )
    min_windows: int = option(450, "windows", "normal windows that a model needs", ge=2)
    scaler: Literal["standard", "robust"] = option("standard", "", "mean and deviation, or median and MAD")
    soft_clip: float = option(3.0, "scales", "scaled readings are linear to here and logarithmic beyond", gt=0)
    error: Literal["last", "window"] = option("last", "", "whether the last row's error counts, or the window's mean")
    aggregate: Literal["mse", "ztop", "mahalanobis"] = option(
        "mse", "", "how channel errors become one: mean square, mean of the worst eighth, Mahalanobis distance"
    )

    pca_window: int = option(32, "rows", "what principal components see", ge=1)
    pca_variance: float = option(0.9, "share", "of the variance that the components explain", gt=0, lt=1)
    pca_max_components: int = option(512, "components", "most of them", ge=1)
    pca_statistic: Literal["q", "t2", "combined"] = option(
        "q", "", "its error: Q (residual), t2 (Hotelling's T² within the components), or both over their limits"
    )
    dense_window: int = option(16, "rows", "what the dense autoencoder sees", ge=1)
    dense_hidden: _Sizes = option((128, 64), "units", "its hidden layers, mirrored in the decoder")
    dense_latent: int = option(0, "units", "its bottleneck; 0: chosen from the size of a window", ge=0)
    dense_batch_norm: bool = option(False, "", "normalise each hidden layer over the batch")
    dense_dropout: float = option(0.0, "share", "of the encoder's units dropped while training", ge=0, lt=1)
    conv_window: int = option(32, "rows", "what the convolutional autoencoder sees", ge=1)
    conv_hidden: _Sizes = option((32,), "channels", "its layers before the bottleneck, mirrored in the decoder")
    conv_latent: int = option(0, "channels", "its bottleneck; 0: chosen from the size of a window", ge=0)
    conv_kernels: _Sizes = option((5, 5), "rows", "kernel of each layer; odd, at least its stride")
    conv_strides: _Sizes = option((2, 2), "rows", "stride of each layer")

    steps: int = option(1200, "steps", "gradient steps of an autoencoder", ge=1)
    batch: int = option(256, "windows", "in a step", ge=1)
    learning_rate: float = option(1e-3, "", "of AdamW; one_cycle goes up to three times as much", gt=0)
    schedule: Literal["one_cycle", "plateau"] = option("one_cycle", "", "how the learning rate changes")
    weight_decay: float = option(1e-4, "", "of AdamW", ge=0)
    clip_norm: float = option(1.0, "", "longest gradient", gt=0)
    loss: Literal["mse", "huber"] = option("mse", "", "what is minimised")
    huber_delta: float = option(1.0, "scales", "where the Huber loss becomes linear", gt=0)
    mask_share: float = option(0.3, "share", "of whole channels hidden from the encoder while training", ge=0, lt=1)
    noise: float = option(0.0, "scales", "deviation of the noise that the encoder sees while training", ge=0)
    hold_out: float = option(0.0, "share", "newest windows kept for early stopping and the plateau", ge=0, le=0.5)
    patience: int = option(0, "checks", "without a better loss before training stops; 0: never", ge=0)
    seed: int = option(0, "", "of every random choice", ge=0)
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "",
        "torch.compile for training steps, which changes low bits; auto: on CUDA only, it does not pay on a CPU",
    )

    profiles: _Profiles = option(
        (), "", "what to calibrate for besides the profile of [run] and cpu-float32, such as cpu-int8 or cuda-float32"
    )
    test_share: float = option(
        0.1, "share", "newest part of an asset's normal windows, to judge by; 0: all are learned from", ge=0, lt=1
    )
    recalibrate_days: float = option(5.0, "days", "how far back `nightly --recalibrate-only` looks", gt=0)
