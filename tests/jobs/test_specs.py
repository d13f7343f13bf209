import math
from dataclasses import fields, replace

import pytest

from jobs.config import specs
from jobs.settings import Settings, config_id, load
from models.networks import NETWORKS
from models.train_spec import TrainSpec, member_specs
from pipeline.alert import QUALITY_LIFE_CYCLE, AlertSpec, LifeCycleSpec
from pipeline.align import AlignSpec
from pipeline.bundle import SmootherSpec
from pipeline.errors import ConfigError
from pipeline.gate import GateSpec
from pipeline.mapping import FieldMapping
from pipeline.values import NS_PER_DAY, NS_PER_S


def settings(**flags) -> Settings:
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return load(flags={"feed.channels": "a,b"} | dotted, environ={"HOME": "/nonexistent"}).settings


def test_the_default_mapping_is_that_of_the_pipeline_apart_from_the_time():
    expected = FieldMapping(channels=("a", "b"), time_unit="ms", max_ahead_ns=3600 * NS_PER_S)
    assert specs.field_mapping(settings()) == expected


def test_every_field_of_the_mapping_comes_from_the_settings():
    chosen = settings(
        feed__channels=[
            {"name": "a", "field": "A", "low": -1.5, "high": 2},
            {"name": "b", "high": 5},
            {"name": "c"},
        ],
        mapping__format="arrow",
        mapping__layout="long",
        mapping__asset="",
        mapping__asset_value="pump",
        mapping__time="t",
        mapping__time_unit="us",
        mapping__time_origin="2000-01-01T00:00:00.000001+00:00",
        mapping__sensor="tag",
        mapping__value="reading",
        mapping__max_ahead_s="off",
        mapping__max_bytes=10,
    )
    assert specs.field_mapping(chosen) == FieldMapping(
        channels=("a", "b", "c"),
        fields=("A", "b", "c"),
        format="arrow",
        layout="long",
        asset="",
        asset_value="pump",
        time="t",
        time_unit="us",
        time_origin_ns=946_684_800_000_001_000,
        sensor="tag",
        value="reading",
        low=(-1.5, -math.inf, -math.inf),
        high=(2.0, 5.0, math.inf),
        max_ahead_ns=None,
        max_bytes=10,
    )


def test_a_source_that_knows_its_format_says_so():
    assert specs.field_mapping(settings(), "arrow").format == "arrow"


def test_auto_times_follow_the_period():
    assert specs.align_spec(settings(feed__period_s=2)) == AlignSpec(
        mode="grid",
        period_ns=2 * NS_PER_S,
        max_gap_ns=20 * NS_PER_S,
        retire_after_ns=NS_PER_DAY,
    )
    daily = specs.align_spec(settings(feed__period_s=86_400))
    assert (daily.max_gap_ns, daily.retire_after_ns) == (10 * NS_PER_DAY, 100 * NS_PER_DAY)


def test_stated_times_are_taken():
    spec = specs.align_spec(
        settings(
            align__mode="none",
            align__rounding="floor",
            align__lateness_s=0.1,
            align__max_gap_s=0.3,
            align__retire_after_s=7,
        )
    )
    assert spec == AlignSpec(
        mode="none",
        period_ns=NS_PER_S,
        rounding="floor",
        lateness_ns=100_000_000,
        max_gap_ns=300_000_000,
        retire_after_ns=7 * NS_PER_S,
    )


@pytest.mark.parametrize(("stuck", "expected"), [("auto", 0), ("off", 0), (12, 12)])
def test_a_channels_own_stuck_limit_wins_over_the_gates(stuck, expected):
    spec = specs.gate_spec(
        settings(feed__channels=["a", {"name": "b", "stuck_frames": 7, "max_step": 0.5}], gate__stuck=stuck)
    )
    assert spec.stuck_frames == (expected, 7)
    assert spec.max_step == (math.inf, 0.5)


def test_only_channels_without_a_limit_of_their_own_learn_one():
    channels = ["a", {"name": "b", "stuck_frames": 7}]
    assert specs.learned_stuck(settings(feed__channels=channels)) == (True, False)
    assert specs.learned_stuck(settings(feed__channels=channels, gate__stuck="off")) == (False, False)
    assert specs.learned_stuck(settings(feed__channels=channels, gate__stuck=12)) == (False, False)


@pytest.mark.parametrize(("after", "frames"), [("auto", 10), ("off", 0), (5.0, 10), (0.1, 1)])
def test_missing_is_counted_in_frames(after, frames):
    spec = specs.gate_spec(settings(feed__period_s=0.5, gate__stuck="off", gate__missing_after_s=after))
    assert spec == GateSpec(stuck_frames=(0, 0), max_step=(math.inf, math.inf), missing_frames=frames)


def test_the_default_smoother_and_life_cycles_are_those_of_the_pipeline():
    assert specs.smoother_spec(settings()) == SmootherSpec()
    assert specs.alert_spec(settings()) == AlertSpec(
        feed="feed",
        config_id=config_id(settings()),
        channels=("a", "b"),
        anomaly=LifeCycleSpec(),
        quality=QUALITY_LIFE_CYCLE,
    )


def test_every_rule_of_the_life_cycle_comes_from_the_settings():
    spec = specs.alert_spec(
        settings(
            alert__open_at=2,
            alert__close_at=0.5,
            alert__min_duration_s=1,
            alert__frames=3,
            alert__of=4,
            alert__merge_gap_s=2,
            alert__cooldown_s=3,
            alert__update_every_s=4,
            alert__severity={"high": 3, "low": 2},
            alert__top=2,
            alert__quality__min_duration_s=9,
        )
    )
    assert spec.anomaly == LifeCycleSpec(
        open_at=2.0,
        close_at=0.5,
        min_duration_ns=NS_PER_S,
        frames=3,
        of=4,
        merge_gap_ns=2 * NS_PER_S,
        cooldown_ns=3 * NS_PER_S,
        update_every_ns=4 * NS_PER_S,
        severities=((2.0, "low"), (3.0, "high")),
        top=2,
    )
    assert spec.quality == replace(QUALITY_LIFE_CYCLE, min_duration_ns=9 * NS_PER_S, top=2)


def test_the_smoother_comes_from_the_settings():
    chosen = settings(
        smoother__yardstick=False,
        smoother__memory=64,
        smoother__span_s=60,
        smoother__admit_z=3,
        smoother__mad_floor=0.5,
        smoother__ewma_span=9,
    )
    assert specs.smoother_spec(chosen) == SmootherSpec(False, 64, 60 * NS_PER_S, 3.0, 0.5, 9)


def test_the_default_training_is_the_measured_recipe():
    assert specs.train_spec(settings()) == TrainSpec(channels=("a", "b"), period_ns=NS_PER_S)


def test_every_choice_of_training_is_an_option():
    chosen = {"steps": 7, "members": ("conv",), "conv_hidden": (4,), "noise": 0.5, "per_group": "fleet"}
    flags = {f"train__{name}": value for name, value in chosen.items()}
    spec = specs.train_spec(settings(**flags))
    assert spec == TrainSpec(channels=("a", "b"), period_ns=NS_PER_S, **chosen)
    names = {f.name for f in fields(TrainSpec)} - {"channels", "period_ns", "smoother"}
    assert names <= set(type(settings().train).model_fields)


def test_a_streaming_model_without_a_grid_is_refused():
    chosen = {"train__members": ("stream",), "feed__channels": [f"c{i}" for i in range(8)]}
    assert specs.train_spec(settings(**chosen)).members == ("stream",)
    with pytest.raises(ConfigError, match="needs a grid"):
        specs.train_spec(settings(**chosen, align__mode="none"))


@pytest.mark.parametrize("kind", ["pca", *NETWORKS])
def test_every_kind_of_model_can_be_asked_for_with_its_sizes(kind):
    chosen = settings(train__members=[kind], feed__channels=[f"c{i}" for i in range(8)])
    (member,) = member_specs(specs.train_spec(chosen))
    assert member.kind == kind
    sizes = "conv" if kind == "stream" else kind
    wanted = {f"{sizes}_window", *(f"{sizes}_{name}" for name in member.params)}
    assert wanted <= set(type(chosen.train).model_fields)


def test_the_chain_is_put_together_from_its_parts():
    chosen = settings(gate__stuck="off", feed__max_assets=5)
    spec = specs.chain_spec(chosen)
    assert (spec.mapping, spec.align, spec.gate) == (
        specs.field_mapping(chosen),
        specs.align_spec(chosen),
        specs.gate_spec(chosen),
    )
    assert spec.max_assets == 5


def test_a_feed_without_channels_is_refused():
    with pytest.raises(ConfigError, match="name the channels"):
        specs.chain_spec(Settings())


def test_kafka_secrets_reach_the_client_and_no_text():
    chosen = settings(
        kafka__bootstrap="a:1,b:2",
        kafka__security_protocol="SASL_SSL",
        kafka__sasl_mechanism="PLAIN",
        kafka__sasl_username="me",
        kafka__sasl_password="geheim",
    )
    reached = specs.kafka_settings(chosen)
    assert (reached.bootstrap, reached.sasl_password) == ("a:1,b:2", "geheim")
    assert "geheim" not in repr(reached) + repr(chosen)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="name the file"):
        specs.source_path(settings())
    with pytest.raises(ConfigError, match="no such file"):
        specs.source_path(settings(source__path=str(tmp_path / "gone.csv")))
    assert specs.source_path(settings(source__path=str(tmp_path))) == tmp_path
