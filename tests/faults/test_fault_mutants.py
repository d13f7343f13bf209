"""The suite's own test: our code, broken on purpose, must not get through it."""

import time

import pytest
from fault_stage import PATIENCE_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.mark.parametrize(
    ("mutant", "step"),
    [
        ("offsets_outside_the_transaction", "after_send_offsets"),
        ("state_read_uncommitted", "after_produce"),
        ("no_replay", "after_commit"),
        ("deltas_ignored", "after_commit"),
    ],
)
def test_a_mutant_does_not_make_the_alert_topic_of_the_undisturbed_run(attempt, mutant, step):
    # Fixed slots: the group itself would refuse offsets that are committed by somebody who is no member.
    run = attempt("mutant", assignment="fixed", run__max_rows=200)
    run.mutant = mutant
    run.start(failpoint=f"{step}:0.3")
    deadline = time.monotonic() + PATIENCE_S
    # It goes through and says something else, or a worker notices that offsets and state do not belong together.
    while not run.drained() and run.ended.count(1) < 2 and time.monotonic() < deadline:
        run.tend()
        time.sleep(0.1)
    drained = run.drained()
    run.stop()
    assert not (drained and run.verdict().equal)
