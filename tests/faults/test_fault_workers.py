"""Workers are killed, frozen, told to end and replaced. Whatever happens to them, the committed alert topic equals
that of one undisturbed run over the same input, alert by alert."""

import os
import random
import signal
import time

import pytest
from fault_stage import equal

pytestmark = pytest.mark.kafka
STEPS = {
    "before_produce": 0.2,
    "after_produce": 0.2,
    "after_send_offsets": 0.2,
    "after_commit": 0.2,
    "before_restore": 0.6,
    "after_read": 0.6,
}
SLOWER = pytest.param("kafka-python", marks=pytest.mark.slow)


@pytest.mark.parametrize("client", ["confluent", SLOWER])
def test_kills_at_random_points_leave_the_alert_topic_as_one_undisturbed_run_makes_it(attempt, client):
    run, dice = attempt(f"kills-{client}", client=client, run__max_rows=30), random.Random(1)
    run.start()
    for _ in range(10):
        run.until_committed(run.committed() + 100)
        run.signal(dice.randrange(2), signal.SIGKILL)
        time.sleep(dice.uniform(0, 0.2))
    run.wait_drained()
    run.stop()
    assert run.ended.count(-signal.SIGKILL) >= 8
    equal(run)


@pytest.mark.slow
@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
@pytest.mark.parametrize("step", STEPS)
def test_kills_at_a_step_of_the_commit_leave_the_alert_topic_as_one_undisturbed_run_makes_it(attempt, step, client):
    run = attempt(f"{step}-{client}", client=client, run__max_rows=200)
    run.start(failpoint=f"{step}:{STEPS[step]}")
    run.wait_drained()
    run.stop()
    assert run.ended.count(-signal.SIGKILL) >= 1
    equal(run)


@pytest.mark.slow
def test_a_worker_frozen_past_its_session_and_replaced_meanwhile_publishes_nothing_more(attempt):
    run = attempt("frozen", run__max_rows=30)
    run.start()
    run.until_committed(300)
    frozen = run.workers[0]
    run.signal(0, signal.SIGSTOP)
    began, before = time.monotonic(), run.committed()
    run.workers[0] = run.fork(0)
    run.until_committed(before + 300)
    time.sleep(max(0.0, 7.0 - (time.monotonic() - began)))
    os.kill(frozen.pid, signal.SIGCONT)
    run.wait(lambda: frozen.exitcode is not None)
    assert frozen.exitcode in (1, 75), "fenced off, or ended by its watchdog"
    run.wait_drained()
    run.stop()
    equal(run)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["after_produce", "after_send_offsets"])
def test_partitions_of_a_worker_killed_in_its_commit_that_stays_away_are_taken_over_without_loss_or_double(
    attempt, step
):
    # So long that it is not the broker who ends what the dead worker left open.
    run = attempt(f"away-{step}", slots=3, run__max_rows=20, kafka__commit_timeout_s=60)
    run.start(0, 1)
    gone = run.fork(2, failpoint=f"{step}:0.2")
    run.wait(lambda: gone.exitcode is not None)
    assert gone.exitcode == -signal.SIGKILL
    assert not run.drained(), "what it was committing is left to be read"
    run.wait_drained()
    assert f"ended what {run.member(2)} had left open" in run.log.read_text()
    run.start(2)
    run.wait(lambda: run.shares(2))
    run.stop()
    assert run.ended == []
    equal(run)


@pytest.mark.slow
@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
def test_a_worker_frozen_past_its_session_while_another_member_takes_over_publishes_nothing_more(attempt, client):
    run = attempt(f"passed-over-{client}", client=client, run__max_rows=50)
    run.start()
    run.wait(lambda: run.shares(0) and run.shares(1))
    run.until_committed(run.committed() + 100)
    frozen = run.workers.pop(0)
    os.kill(frozen.pid, signal.SIGSTOP)
    assert all(run.waiting()), "it has something to publish"
    run.wait_drained()
    before = [run.read(topic) for topic in ("alerts", "dead", "state")]
    os.kill(frozen.pid, signal.SIGCONT)
    run.workers[0] = frozen
    run.wait(lambda: run.shares(0))  # it has joined again, or was fenced off, ended, and was started again
    run.stop()
    assert [run.read(topic) for topic in ("alerts", "dead", "state")] == before
    equal(run)


@pytest.mark.slow
def test_workers_that_are_told_to_end_drain_and_what_follows_goes_on_where_they_were(attempt):
    run = attempt("drained", run__max_rows=100)
    run.start()
    for slot in (0, 1, 0):
        run.until_committed(run.committed() + 200)
        run.signal(slot, signal.SIGTERM)
    run.wait_drained()
    run.stop()
    assert set(run.ended) <= {0, -signal.SIGTERM}, "one that had not begun yet has nothing to drain"
    equal(run)


@pytest.mark.slow
def test_workers_added_and_removed_under_load_change_nothing(attempt):
    run = attempt("scaled", slots=4, run__max_rows=100)
    run.start(0, 1)
    run.until_committed(400)
    run.start(2, 3)
    run.until_committed(1200)
    for slot in (0, 2):
        gone = run.workers.pop(slot)
        gone.terminate()
        gone.join(60)
        assert gone.exitcode in (0, -signal.SIGTERM)
    run.until_committed(run.committed() + 1)
    run.start(0, 2)
    run.wait_drained()
    run.stop()
    equal(run)
