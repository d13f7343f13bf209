"""What every Committer does. To add one: a builder, and a line in `COMMITTERS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from io_cases import a_batch, a_letter, a_state, an_alert

from connectors.file_commit import FileCommitter, read_alerts, read_dead_letters
from connectors.memory import MemoryCommitter
from pipeline.errors import StateError
from pipeline.protocols import Batch, Committer
from pipeline.values import Alert, DeadLetter


@dataclass(frozen=True)
class CommitterCase:
    """A place that outlives a process: how one opens it, and what its readers see."""

    open: Callable[[], Committer]
    alerts: Callable[[], Sequence[Alert]]
    dead: Callable[[], Sequence[DeadLetter]]


def memory(tmp_path: Path) -> CommitterCase:
    committer = MemoryCommitter()
    return CommitterCase(lambda: committer, lambda: committer.alerts, lambda: committer.dead)


def file(tmp_path: Path) -> CommitterCase:
    return CommitterCase(
        lambda: FileCommitter(tmp_path), lambda: list(read_alerts(tmp_path)), lambda: list(read_dead_letters(tmp_path))
    )


COMMITTERS = [memory, file]


@pytest.fixture(params=COMMITTERS, ids=lambda build: build.__name__)
def case(request, tmp_path) -> CommitterCase:
    return request.param(tmp_path)


def states_of(committer, topic="sensors", partition=0):
    return {state.asset: state for state in committer.restore(topic, partition).assets}


def test_a_partition_that_was_never_committed_has_nothing_to_restore(case):
    committer = case.open()
    assert committer.restore("sensors", 0) is None
    committer.close()


def test_what_was_committed_is_there_for_the_next_process(case):
    committer = case.open()
    committer.commit(a_batch(1))
    committer.commit(a_batch(2))
    committer.close()
    assert list(case.alerts()) == [an_alert("id1", 0), an_alert("id2", 0)]
    assert list(case.dead()) == [a_letter(9), a_letter(19)]
    committer = case.open()
    assert committer.restore("sensors", 0).position == 20
    assert states_of(committer) == {"a": a_state("a", 2), "b": a_state("b", 2)}
    committer.close()


def test_an_asset_that_did_not_change_keeps_its_older_state(case):
    committer = case.open()
    committer.commit(a_batch(1))
    committer.commit(a_batch(2, assets=("b", "c")))
    assert states_of(committer) == {"a": a_state("a", 1), "b": a_state("b", 2), "c": a_state("c", 2)}
    committer.close()


def test_partitions_know_nothing_of_one_another(case):
    committer = case.open()
    committer.commit(a_batch(3, partition=0, assets=("a",)))
    committer.commit(a_batch(1, partition=1, assets=("a",)))
    assert committer.restore("sensors", 0).position == 30
    assert committer.restore("sensors", 1).position == 10
    assert states_of(committer, partition=1) == {"a": a_state("a", 1)}
    assert committer.restore("other", 0) is None
    committer.close()


def test_one_commit_may_hold_several_partitions(case):
    one, two = a_batch(1, partition=0), a_batch(2, partition=1)
    committer = case.open()
    committer.commit(
        Batch(
            {**one.positions, **two.positions},
            [*one.alerts, *two.alerts],
            [*one.dead, *two.dead],
            {**one.states, **two.states},
        )
    )
    assert [committer.restore("sensors", p).position for p in (0, 1)] == [10, 20]
    assert len(case.alerts()) == len(case.dead()) == 2
    committer.close()


def test_a_commit_of_positions_alone_keeps_the_states(case):
    committer = case.open()
    committer.commit(a_batch(1))
    committer.commit(Batch({("sensors", 0): 50}))
    assert committer.restore("sensors", 0).position == 50
    assert states_of(committer) == {"a": a_state("a", 1), "b": a_state("b", 1)}
    committer.close()


def test_a_position_never_goes_backwards(case):
    committer = case.open()
    committer.commit(a_batch(2))
    with pytest.raises(StateError, match="go back from offset 20 to 10"):
        committer.commit(replace(a_batch(1), alerts=[an_alert("never")]))
    assert committer.restore("sensors", 0).position == 20
    assert [a.id for a in case.alerts()] == ["id2"]
    committer.close()
