import math

import pytest

from models.autoencoders import build_module
from models.train_spec import TrainSpec, member_specs
from pipeline.errors import ConfigError

CHANNELS = tuple(f"c{i}" for i in range(38))


def test_the_defaults_are_the_measured_recipe():
    spec = TrainSpec(CHANNELS, 60_000_000_000)
    pca, dense = member_specs(spec)
    assert (pca.kind, pca.window, pca.params["variance"]) == ("pca", 32, 0.9)
    assert (dense.kind, dense.window) == ("dense", 16)
    assert (dense.params["hidden"], dense.params["latent"]) == ([128, 64], 16)
    assert {(m.error, m.aggregate) for m in (pca, dense)} == {("last", "mse")}
    loop = spec.loop(7)
    assert (loop.steps, loop.batch, loop.learning_rate, loop.weight_decay) == (1200, 256, 1e-3, 1e-4)
    assert (loop.schedule, loop.mask_share, loop.noise, loop.loss, loop.seed) == ("one_cycle", 0.3, 0.0, "mse", 7)
    assert (spec.scaler, spec.soft_clip) == ("standard", 3.0)


def test_every_field_of_the_loop_is_handed_on():
    given = {
        "steps": 3,
        "batch": 4,
        "learning_rate": 0.5,
        "schedule": "plateau",
        "weight_decay": 0.25,
        "clip_norm": 6.0,
        "loss": "huber",
        "huber_delta": 7.0,
        "mask_share": 0.125,
        "noise": 0.75,
        "patience": 2,
    }
    loop = TrainSpec(CHANNELS, 1, hold_out=0.1, **given).loop(9)
    assert {name: getattr(loop, name) for name in given} == given


def test_sizes_left_open_follow_the_input():
    small = member_specs(TrainSpec(("one",), 1, members=("dense", "conv")))
    assert [m.params["latent"] for m in small] == [2, 1]
    wide = member_specs(TrainSpec(tuple(f"c{i}" for i in range(200)), 1, members=("dense", "conv")))
    assert [m.params["latent"] for m in wide] == [64, 40]


def test_every_member_can_be_built_from_its_spec():
    for member in member_specs(TrainSpec(CHANNELS, 1, members=("dense", "conv", "dense"), dense_batch_norm=True)):
        assert build_module(member, 38).compression_ratio > 1


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("feed.channels", {"channels": ()}),
        ("feed.channels", {"channels": ("a", "b", "a")}),
        ("feed.period_s", {"period_ns": 0}),
        ("train.min_windows", {"min_windows": 1}),
        ("train.members", {"members": ()}),
        ("train.members", {"members": ("pca", "lstm")}),
        ("train.per_group", {"per_group": "site"}),
        ("train.scaler", {"scaler": "minmax"}),
        ("train.error", {"error": "first"}),
        ("train.aggregate", {"aggregate": "max"}),
        ("train.soft_clip", {"soft_clip": -3.0}),
        ("train.hold_out", {"hold_out": 0.9}),
        ("train.patience", {"patience": 3}),
        ("train.pca_variance", {"pca_variance": 1.0}),
        ("train.pca_max_components", {"pca_max_components": 0}),
        ("train.pca_window", {"pca_window": 0}),
        ("train.pca_window", {"pca_window": 1000}),
        ("train.pca_window", {"channels": ("a",), "pca_window": 1}),
        ("train.dense_window", {"dense_window": -1}),
        ("train.dense_hidden", {"dense_hidden": (128, 0)}),
        ("train.dense_latent", {"dense_latent": -2}),
        ("train.dense_latent", {"dense_latent": 608}),
        ("train.dense_dropout", {"dense_dropout": 1.0}),
        ("train.conv_kernels", {"members": ("conv",), "conv_kernels": (4, 4)}),
        ("train.conv_strides", {"members": ("conv",), "conv_strides": (0, 2)}),
        ("train.conv_latent", {"members": ("conv",), "conv_latent": 152}),
        ("train.members", {"members": ("stream", "pca")}),
        ("train.conv_kernels", {"members": ("stream",), "conv_kernels": (5,)}),
        ("train.conv_kernels", {"members": ("stream",), "conv_strides": (0, 2)}),
        ("train.conv_window", {"members": ("stream",), "conv_window": 3}),
        ("train.conv_latent", {"members": ("stream",), "conv_latent": 200}),
        ("train.learning_rate", {"learning_rate": math.nan}),
        ("train.mask_share", {"mask_share": 1.0}),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_key(key, given):
    with pytest.raises(ConfigError) as refused:
        TrainSpec(**({"channels": CHANNELS, "period_ns": 60_000_000_000} | given))
    assert refused.value.key == key


def test_settings_of_members_that_are_not_asked_for_are_not_judged():
    TrainSpec(CHANNELS, 1, members=("pca",), dense_latent=10_000, conv_kernels=(4, 4))
