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


def test_two_champions_in_a_row_under_kills_leave_every_alert_numbered_without_gap_or_double(stage, attempt):
    root = stage.folder / "models-of-two"
    shutil.copytree(stage.folder / "models", root, dirs_exist_ok=True)
    known, dice = Registry(root), random.Random(2)
    first, second = known.champion(), retrained(stage, root, replace(PLAN, seed=PLAN.seed + 1))
    run = attempt("promoted", run__max_rows=30, registry__root=root)
    run.start()

    def serving(model: str) -> int:
        return run.log.read_text().count(f"model {model} serves")

    for champion in (second, first, second):
        run.until_committed(run.committed() + 500)
        known.promote(champion, "for a trial of the machinery", time.time_ns())
        run.signal(dice.randrange(2), signal.SIGKILL)
        served = serving(champion)
        run.wait(lambda served=served, champion=champion: serving(champion) > served)
    run.wait_drained()
    run.stop()
    said = [json.loads(record.value) for record in run.read("alerts")]
    times = Counter((alert["id"], alert["seq"]) for alert in said)
    assert set(times.values()) == {1}, "published twice"
    for name in {alert["id"] for alert in said}:
        changes = [alert for alert in said if alert["id"] == name]
        assert [alert["seq"] for alert in changes] == list(range(len(changes)))
        assert changes[0]["state"] == "open"
    assert {alert["model_id"] for alert in said if alert["kind"] == "anomaly"} <= {first, second}
    assert run.verdict().dead_lost == run.verdict().dead_doubled == 0
