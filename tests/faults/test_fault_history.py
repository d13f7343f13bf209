"""The history that workers write: its disk is full, or a partition moves. Each row that is committed is in it once."""

import re

import pytest
from fault_stage import PLAN, equal

from connectors.history_views import open_history
from jobs.chaos_feed import _BAD, messages

pytestmark = pytest.mark.kafka


def test_a_full_disk_stops_the_worker_before_its_commit_and_with_room_again_nothing_is_missing(attempt, tmp_path):
    run = attempt("full", slots=1, run__max_rows=200, history__enabled="true", history__root=tmp_path)
    run.mutant = "files_end_at_200_kb"
    worker = run.fork(0)
    run.wait(lambda: worker.exitcode is not None)
    assert worker.exitcode == 75, "try again later"
    assert "make room on the disk" in run.log.read_text()
    assert 0 < run.committed() < run.stage.sent
    run.mutant = ""
    run.start()
    run.wait_drained()
    run.stop()
    equal(run)
    once(run, tmp_path)


def test_a_worker_that_joins_later_takes_partitions_over_with_their_history(attempt, tmp_path):
    run = attempt("joined", run__max_rows=30, history__enabled="true", history__root=tmp_path)
    run.start(0)
    run.until_committed(300)
    run.start(1)
    run.wait_drained()
    run.stop()
    assert run.ended == [], "nobody gave up, and nobody was started again"
    shares = re.findall(r"(\d+) rows, \d+ scored", run.log.read_text())[-2:]
    assert min(map(int, shares)) > 0, "both had partitions"
    equal(run)
    once(run, tmp_path)


def once(run, root):
    """Every reading of the input is in the history, once."""
    rows = open_history(root).sql('SELECT "partition", "offset", count(*) FROM rows GROUP BY ALL').fetchall()
    assert len(rows) == run.stage.sent - sum(value in _BAD for _, value in messages(PLAN))
    assert {times for *_, times in rows} == {1}
