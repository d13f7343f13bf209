"""The disk of the history is full: nothing is committed that the history lacks, and nothing is missing afterwards."""

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
    rows = open_history(tmp_path).sql('SELECT "partition", "offset", count(*) FROM rows GROUP BY ALL').fetchall()
    assert len(rows) == run.stage.sent - sum(value in _BAD for _, value in messages(PLAN))
    assert {times for *_, times in rows} == {1}
