"""Settings -> the small frozen specs that the program's parts are given. No part ever sees the settings themselves."""

from __future__ import annotations

import math
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.settings import Settings, config_id
from pipeline.errors import ConfigError
from pipeline.values import NS_PER_DAY, NS_PER_S

if TYPE_CHECKING:
    from connectors.kafka_settings import KafkaSettings
    from jobs.config.options import Alert, Channel, QualityAlert
    from models.train_spec import TrainSpec
    from pipeline.alert import AlertSpec, LifeCycleSpec
    from pipeline.align import AlignSpec
    from pipeline.bundle import SmootherSpec
    from pipeline.chain import ChainSpec
    from pipeline.gate import GateSpec
    from pipeline.mapping import FieldMapping, Format

_AUTO_PERIODS = 10  # what `auto` means for a gap, in periods


def period_ns(settings: Settings) -> int:
    """Return the feed's period in ns."""
    return _ns(settings.feed.period_s)


def channels(settings: Settings) -> tuple[Channel, ...]:
    """Return the feed's channels.

    Raises
    ------
    ConfigError : none is named.
    """
    if not settings.feed.channels:
        raise ConfigError("feed.channels", [], 'name the channels to watch, as in channels = ["flow", "pressure"]')
    return settings.feed.channels


def field_mapping(settings: Settings, message_format: Format | None = None) -> FieldMapping:
    """Return how messages map to channels; `message_format` is that of a source which knows it better."""
    from pipeline.mapping import FieldMapping

    m, known = settings.mapping, channels(settings)
    names = tuple(c.name for c in known)
    fields = tuple(c.field or c.name for c in known)
    low = tuple(-math.inf if c.low is None else c.low for c in known)
    high = tuple(math.inf if c.high is None else c.high for c in known)
    origin = (m.time_origin - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return FieldMapping(
        channels=names,
        fields=() if fields == names else fields,
        format=message_format or m.format,
        layout=m.layout,
        asset=m.asset,
        asset_value=m.asset_value,
        time=m.time,
        time_unit=m.time_unit,
        time_origin_ns=origin,
        values=m.values,
        sensor=m.sensor,
        value=m.value,
        low=low if any(map(math.isfinite, low)) else (),
        high=high if any(map(math.isfinite, high)) else (),
        max_ahead_ns=None if m.max_ahead_s == "off" else _ns(m.max_ahead_s),
        max_bytes=m.max_bytes,
    )


def align_spec(settings: Settings) -> AlignSpec:
    """Return how rows become frames, with every `auto` resolved."""
    from pipeline.align import AlignSpec

    a, period = settings.align, period_ns(settings)
    gap = _AUTO_PERIODS * period if a.max_gap_s == "auto" else _ns(a.max_gap_s)
    retire = max(NS_PER_DAY, 10 * gap) if a.retire_after_s == "auto" else _ns(a.retire_after_s)
    return AlignSpec(
        mode=a.mode,
        period_ns=period,
        rounding=a.rounding,
        lateness_ns=_ns(a.lateness_s),
        max_gap_ns=gap,
        retire_after_ns=retire,
    )


def gate_spec(settings: Settings) -> GateSpec:
    """Return what each channel may do; a channel whose stuck limit is learned has none until a bundle serves."""
    from pipeline.gate import GateSpec

    g, known = settings.gate, channels(settings)
    stuck = g.stuck if isinstance(g.stuck, int) else 0
    missing = _AUTO_PERIODS
    if g.missing_after_s != "auto":
        missing = 0 if g.missing_after_s == "off" else max(1, round(g.missing_after_s / settings.feed.period_s))
    return GateSpec(
        stuck_frames=tuple(stuck if c.stuck_frames is None else c.stuck_frames for c in known),
        max_step=tuple(math.inf if c.max_step is None else c.max_step for c in known),
        missing_frames=missing,
    )


def learned_stuck(settings: Settings) -> tuple[bool, ...]:
    """Return the channels whose stuck limit is taken from the bundle that serves."""
    return tuple(settings.gate.stuck == "auto" and c.stuck_frames is None for c in channels(settings))


def smoother_spec(settings: Settings) -> SmootherSpec:
    """Return the smoother's rules."""
    from pipeline.bundle import SmootherSpec

    s = settings.smoother
    return SmootherSpec(
        yardstick=s.yardstick,
        memory=s.memory,
        span_ns=_ns(s.span_s),
        admit_z=s.admit_z,
        mad_floor=s.mad_floor,
        ewma_span=s.ewma_span,
    )


def alert_spec(settings: Settings) -> AlertSpec:
    """Return the life cycles of anomalies and of sensor faults."""
    from pipeline.alert import AlertSpec

    a = settings.alert
    severities = tuple(sorted((level, name) for name, level in a.severity.items()))
    return AlertSpec(
        feed=settings.feed.name,
        config_id=config_id(settings),
        channels=tuple(c.name for c in channels(settings)),
        anomaly=_life_cycle(a, open_at=a.open_at, close_at=a.close_at, severities=severities, top=a.top),
        quality=_life_cycle(a.quality, severities=((1.0, "warning"),), top=a.top),
    )


def chain_spec(settings: Settings, message_format: Format | None = None) -> ChainSpec:
    """Return the rules of the feed, from its bytes to its alerts."""
    from pipeline.chain import ChainSpec

    return ChainSpec(
        mapping=field_mapping(settings, message_format),
        align=align_spec(settings),
        gate=gate_spec(settings),
        smoother=smoother_spec(settings),
        alert=alert_spec(settings),
        learned_stuck=learned_stuck(settings),
        max_assets=settings.feed.max_assets,
    )


def train_spec(settings: Settings) -> TrainSpec:
    """Return what is to be fitted.

    Raises
    ------
    ConfigError : options that do not go together, such as a bottleneck that is none for so few channels.
    """
    from models.train_spec import TrainSpec

    if "stream" in settings.train.members and settings.align.mode != "grid":
        raise ConfigError(
            "train.members",
            settings.train.members,
            'a streaming model needs a grid: set align.mode = "grid", or use conv',
        )
    given = {"channels", "period_ns", "smoother"}
    return TrainSpec(
        channels=tuple(c.name for c in channels(settings)),
        period_ns=period_ns(settings),
        smoother=smoother_spec(settings),
        **{f.name: getattr(settings.train, f.name) for f in fields(TrainSpec) if f.name not in given},
    )


def source_path(settings: Settings) -> Path:
    """Return the file or folder to read.

    Raises
    ------
    ConfigError : none is named, or it is not there.
    """
    path = settings.source.path
    if not path:
        raise ConfigError("source.path", "", 'name the file to watch, or set source.type = "kafka"')
    if not Path(path).exists():
        raise ConfigError("source.path", path, "there is no such file or folder")
    return Path(path)


def kafka_settings(settings: Settings) -> KafkaSettings:
    """Return how to reach the brokers.

    Raises
    ------
    ConfigError : settings that do not go together, a file that is not there.
    """
    from connectors.kafka_settings import KafkaSettings

    k = settings.kafka
    return KafkaSettings(
        bootstrap=",".join(k.bootstrap),
        security_protocol=k.security_protocol,
        sasl_mechanism=k.sasl_mechanism,
        sasl_username=k.sasl_username,
        sasl_password=k.sasl_password.get_secret_value(),
        ssl_ca=k.ssl_ca,
        ssl_certificate=k.ssl_certificate,
        ssl_key=k.ssl_key,
        ssl_key_password=k.ssl_key_password.get_secret_value(),
        allow_plaintext=k.allow_plaintext,
    )


def _life_cycle(rules: Alert | QualityAlert, **more: object) -> LifeCycleSpec:
    from pipeline.alert import LifeCycleSpec

    return LifeCycleSpec(
        min_duration_ns=_ns(rules.min_duration_s),
        frames=rules.frames,
        of=rules.of,
        merge_gap_ns=_ns(rules.merge_gap_s),
        cooldown_ns=_ns(rules.cooldown_s),
        update_every_ns=_ns(rules.update_every_s),
        **more,  # type: ignore[arg-type]
    )


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
