"""The suite's own test: our code, broken on purpose, must not get through it, and in the same setting ours must."""

import signal

import pytest
from fault_stage import equal

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def struck(attempt, step, mutant=""):
    """Start workers that die again and again at a step of the commit."""
    # Fixed slots: the group itself would refuse offsets that are committed by somebody who is no member.
    run = attempt("mutant", assignment="fixed", run__max_rows=200)
    run.mutant = mutant
    run.start(failpoint=f"{step}:0.3")
    return run


@pytest.mark.parametrize("step", ["after_send_offsets", "after_produce", "after_commit"])
def test_in_the_setting_of_the_mutants_the_code_as_it_is_makes_the_alert_topic_of_the_undisturbed_run(attempt, step):
    run = struck(attempt, step)
    run.wait_drained()
    run.stop()
    assert set(run.ended) == {-signal.SIGKILL}
    equal(run)


@pytest.mark.parametrize("mutant", ["no_replay", "deltas_ignored"])
def test_a_mutant_that_restores_less_than_there_is_goes_through_and_says_something_else(attempt, mutant):
    run = struck(attempt, "after_commit", mutant)
    run.wait_drained()
    run.stop()
    assert set(run.ended) == {-signal.SIGKILL}
    assert not run.verdict().equal


@pytest.mark.parametrize(
    ("mutant", "step", "words"),
    [
        ("offsets_outside_the_transaction", "after_send_offsets", "as its newest, the offsets of group"),
        ("state_read_uncommitted", "after_produce", "but its state is of commit"),
    ],
)
def test_a_mutant_whose_offsets_and_state_come_apart_ends_with_an_error_that_says_so(attempt, mutant, step, words):
    run = struck(attempt, step, mutant)
    run.wait(lambda: run.ended.count(1) > 0)
    run.stop()
    assert set(run.ended) == {-signal.SIGKILL, 1}
    assert words in run.log.read_text()
