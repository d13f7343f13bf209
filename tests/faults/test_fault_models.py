"""Models change while workers die: alerts go on with their numbers, nothing is published twice, no message is left."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest
from fault_stage import PLAN, retrained

from models.registry import Registry

pytestmark = pytest.mark.kafka


def numbered(run, models):
    """Every alert's changes are there once, in order and without a gap, of these models; and every dead letter once."""
    said = [json.loads(record.value) for record in run.read("alerts")]
    times = Counter((alert["id"], alert["seq"]) for alert in said)
    assert set(times.values()) == {1}, "published twice"
    for name in {alert["id"] for alert in said}:
        changes = [alert for alert in said if alert["id"] == name]
        assert [alert["seq"] for alert in changes] == list(range(len(changes)))
        assert changes[0]["state"] == "open"
    assert {alert["model_id"] for alert in said if alert["kind"] == "anomaly"} <= models
    assert run.verdict().dead_lost == run.verdict().dead_doubled == 0


def two_models(stage, name):
    """A registry of its own with two models, the first of which is champion."""
    root = stage.folder / name
    shutil.copytree(stage.folder / "models", root, dirs_exist_ok=True)
    known = Registry(root)
    return known, known.champion(), retrained(stage, root, replace(PLAN, seed=PLAN.seed + 1))


def serving(run, model):
    """How often a worker has begun to serve a model."""
    return run.log.read_text().count(f"model {model} serves")


def test_two_champions_in_a_row_under_kills_leave_every_alert_numbered_without_gap_or_double(stage, attempt):
    (known, first, second), dice = two_models(stage, "models-of-two"), random.Random(2)
    run = attempt("promoted", run__max_rows=30, registry__root=known.root)
    run.start()
    for champion in (second, first, second):
        run.until_committed(run.committed() + 500)
        known.promote(champion, "for a trial of the machinery", time.time_ns())
        run.signal(dice.randrange(2), signal.SIGKILL)
        served = serving(run, champion)
        run.wait(lambda served=served, champion=champion: serving(run, champion) > served)
    run.wait_drained()
    run.stop()
    numbered(run, {first, second})


@pytest.mark.slow
def test_a_model_promoted_as_another_worker_joins_leaves_every_alert_numbered_without_gap_or_double(stage, attempt):
    known, first, second = two_models(stage, "models-of-more-workers")
    run = attempt("joined", slots=4, run__max_rows=10, registry__root=known.root)
    run.start(0, 1)
    for slot, champion in ((2, second), (3, first)):
        run.until_committed(run.committed() + 300)
        served = serving(run, champion)
        known.promote(champion, "for a trial of the machinery", time.time_ns())
        run.start(slot)
        run.wait(lambda slot=slot: run.shares(slot))
        # By one that was there before: the one that joins begins with it.
        run.wait(lambda served=served, champion=champion: serving(run, champion) > served + 1)
    assert not run.drained()
    run.wait_drained()
    run.stop()
    assert run.ended == []
    numbered(run, {first, second})
