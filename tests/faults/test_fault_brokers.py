"""Brokers are killed, frozen and restarted, leaders and coordinators move, transactions time out. Once all are back,
the committed alert topic equals that of one undisturbed run over the same input, alert by alert."""

import signal
import time

import pytest
from fault_stage import equal

from connectors.kafka_view import move_leaders

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_every_broker_killed_in_turn_and_so_every_leader_and_coordinator_changes_nothing(stage, attempt):
    run = attempt("brokers", run__max_rows=20)
    run.start()
    for node in (1, 2, 3):
        run.until_committed(run.committed() + 100)
        stage.cluster.kill(node)
        run.until_committed(max(run.committed(), 0) + 20)  # the two that are left carry on
        stage.cluster.restart(node)
    run.wait_drained()
    run.stop()
    equal(run)


def test_a_broker_that_is_frozen_for_a_while_changes_nothing(stage, attempt):
    run = attempt("stalled", run__max_rows=100)
    run.start()
    run.until_committed(300)
    stage.cluster.pause(2)
    try:
        time.sleep(4.0)
    finally:
        stage.cluster.resume(2)
    run.wait_drained()
    run.stop()
    equal(run)


def test_leaders_moved_under_load_change_nothing(stage, attempt):
    run = attempt("moved", run__max_rows=50)
    run.start()
    topics = [stage.feed.input, *[stage.feed.own(run.run)[f"{t}_topic"] for t in ("alerts", "dead", "state")]]
    moved = 0
    for _ in range(4):
        run.until_committed(run.committed() + 200)
        moved += move_leaders(stage.kafka, topics)
    run.wait_drained()
    run.stop()
    assert moved > 0
    equal(run)


def test_workers_frozen_for_longer_than_their_transaction_may_last_change_nothing(attempt):
    run = attempt("timed-out", run__max_rows=50, kafka__commit_timeout_s=2)
    run.start()
    for slot in (0, 1):
        run.until_committed(run.committed() + 200)
        run.signal(slot, signal.SIGSTOP)
        time.sleep(3.0)
        run.signal(slot, signal.SIGCONT)
    run.wait_drained()
    run.stop()
    equal(run)
