import itertools
from collections import Counter

import numpy as np
import pytest

from jobs import build
from jobs.chaos_feed import FeedPlan, endless, messages
from jobs.chaos_stage import Feed, write_config
from jobs.config import specs
from jobs.settings import alone, load
from pipeline.values import Polled


def test_the_same_seed_sends_the_same_bytes_and_another_one_others():
    first, again, other = (list(itertools.islice(messages(FeedPlan(9000, 8, s)), 500)) for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_feed_brings_everything_that_goes_wrong_with_feeds(tmp_path):
    secrets = write_config(tmp_path / "midwatch.toml", Feed("t"), "storm", alone({}), {"slots": 2})
    assert secrets == {}
    settings = load(tmp_path / "midwatch.toml", environ={}).settings
    rows = list(messages(FeedPlan(12_000, 16, 1)))
    assert len(rows) == pytest.approx(12_000, rel=0.1)
    keys = [key for key, _ in rows]
    assert keys.count(b"pump-08") < keys.count(b"pump-01") / 4
    chain = build.chain_of(settings, specs.field_mapping(settings))
    n = len(rows)
    polled = Polled("t", 0, np.arange(n), np.full(n, 1_780_000_000 * 10**9), [v for _, v in rows], keys)
    out = chain.push([polled])
    assert min(out.counts[kind] for kind in ("late", "duplicate", "dead")) > 5
    reasons = Counter(letter.reason for letter in out.dead)
    assert {"not_json", "no_asset", "bad_time", "future", "too_large"} <= reasons.keys()
    assert {"stuck", "missing"} & {alert.kind for alert in out.alerts}
    assert {"open", "resolved"} <= {alert.state for alert in out.alerts}


def test_secrets_go_into_the_environment_of_the_workers_and_not_into_a_file(tmp_path):
    flags = {
        "kafka.bootstrap": "far:9092",
        "kafka.security_protocol": "SASL_SSL",
        "kafka.sasl_mechanism": "PLAIN",
        "kafka.sasl_username": "watch",
        "kafka.sasl_password": "hush",
        "kafka.start": "latest",
        "kafka.scores_topic": "theirs",
    }
    settings = alone(flags)
    environ = write_config(tmp_path / "midwatch.toml", Feed("t"), "calm", settings, {"slots": 1})
    assert "hush" not in (tmp_path / "midwatch.toml").read_text()
    read = load(tmp_path / "midwatch.toml", environ=environ).settings.kafka
    assert read.sasl_password.get_secret_value() == "hush"
    assert (read.bootstrap, read.sasl_username, read.topic) == (("far:9092",), "watch", "t-in")
    assert (read.start, read.scores_topic) == ("earliest", "")  # of their own feed nothing is touched
    assert (read.group, read.alerts_topic) == ("t-calm", "t-calm-alerts")


def test_an_endless_feed_goes_on_in_time_where_it_has_ended(tmp_path):
    write_config(tmp_path / "midwatch.toml", Feed("t"), "storm", alone({}), {"slots": 2})
    settings = load(tmp_path / "midwatch.toml", environ={}).settings
    plan = FeedPlan(2000, 8)
    once = list(messages(plan))
    rows = list(itertools.islice(endless(plan), 3 * len(once)))
    assert rows[: len(once)] == once
    chain = build.chain_of(settings, specs.field_mapping(settings))
    n = len(rows)
    keys, values = [key for key, _ in rows], [value for _, value in rows]
    out = chain.push([Polled("t", 0, np.arange(n), np.full(n, 1_780_000_000 * 10**9), values, keys)])
    assert out.counts["late"] + out.counts["duplicate"] < 0.03 * n
