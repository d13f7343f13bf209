import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_cases import a_batch, a_state, an_alert

import connectors
from connectors.file_commit import FileCommitter, read_alerts, read_dead_letters
from connectors.memory import Crash, ListSink
from connectors.state_files import StateFile
from pipeline.errors import SinkUnavailable, StateError
from pipeline.protocols import Batch

STEPS = ["alerts", "dead", "compact", "state", "record", "replace", "after"]


def seen(folder):
    """Everything that a restart and the readers see."""
    committer = FileCommitter(folder)
    restored = committer.restore("sensors", 0)
    committer.close()
    state = None if restored is None else (restored.position, {s.asset: s for s in restored.assets})
    return state, list(read_alerts(folder)), list(read_dead_letters(folder))


def at(step, error):
    def reach(name):
        if name == step:
            raise error

    return reach


def commit_all(folder, batches, **options):
    committer = FileCommitter(folder, **options)
    for batch in batches:
        committer.commit(batch)
    committer.close()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_crash_at_any_step_leaves_the_commit_before_it_or_the_commit(tmp_path, step, done):
    batches = [a_batch(n) for n in range(1, done + 2)]
    commit_all(tmp_path / "old", batches[:-1])
    commit_all(tmp_path / "new", batches)
    commit_all(tmp_path / "run", batches[:-1])
    committer = FileCommitter(tmp_path / "run", reach=at(step, Crash()))
    with pytest.raises(Crash):
        committer.commit(batches[-1])
    committer.close()
    assert seen(tmp_path / "run") == seen(tmp_path / ("new" if step == "after" else "old"))


@settings(deadline=None, max_examples=15)
@given(crashes=st.lists(st.sampled_from(["", *STEPS]), max_size=12))
def test_any_number_of_crashes_changes_nothing_once_the_input_was_read(tmp_path_factory, crashes):
    folder, undisturbed = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("undisturbed")
    commit_all(undisturbed, [a_batch(n) for n in range(1, 5)])
    turns = iter(crashes)
    done = 0
    while done < 4:
        step = next(turns, "")
        committer = FileCommitter(folder, reach=at(step, Crash()))
        restored = committer.restore("sensors", 0)
        done = 0 if restored is None else restored.position // 10
        try:
            while done < 4:
                committer.commit(a_batch(done + 1))
                done += 1
        except Crash:
            pass
        committer.close()
    assert seen(folder) == seen(undisturbed)
    assert (folder / "alerts.ndjson").read_bytes() == (undisturbed / "alerts.ndjson").read_bytes()


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_full_disk_leaves_the_previous_commit_and_the_next_try_succeeds(tmp_path, step):
    steps = {step: 1}

    def reach(name):
        if committer_is_ready and steps.pop(name, None):
            raise OSError(errno.ENOSPC, "No space left on device")

    committer_is_ready = False
    committer = FileCommitter(tmp_path / "run", reach=reach)
    committer.commit(a_batch(1))
    committer_is_ready = True
    with pytest.raises(SinkUnavailable, match=r"nothing was committed.*No space left"):
        committer.commit(a_batch(2))
    assert [a.id for a in read_alerts(tmp_path / "run")] == ["id1"]
    assert {s.asset: s for s in committer.restore("sensors", 0).assets} == {"a": a_state("a", 1), "b": a_state("b", 1)}
    committer.commit(a_batch(2))
    committer.close()
    commit_all(tmp_path / "undisturbed", [a_batch(1), a_batch(2)])
    assert seen(tmp_path / "run") == seen(tmp_path / "undisturbed")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_refuses_a_write_leaves_the_previous_commit(tmp_path, monkeypatch, call):
    committer = FileCommitter(tmp_path)
    committer.commit(a_batch(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _full)
        with pytest.raises(SinkUnavailable):
            committer.commit(a_batch(2))
    committer.commit(a_batch(2))
    committer.close()
    assert [a.id for a in read_alerts(tmp_path)] == ["id1", "id2"]


@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_dies_leaves_the_commit_before_it_or_the_commit(tmp_path, step):
    program = f"""
        import os
        from pathlib import Path
        from io_cases import a_batch
        from connectors.file_commit import FileCommitter
        armed = []
        committer = FileCommitter(Path({str(tmp_path)!r}), reach=lambda s: armed and s == {step!r} and os._exit(9))
        committer.commit(a_batch(1))
        armed.append(True)
        committer.commit(a_batch(2))
    """
    path = [str(Path(connectors.__file__).parents[1]), str(Path(__file__).parents[1] / "support")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": ":".join(path)}, check=False
    )
    assert done.returncode == 9
    (position, states), alerts, dead = seen(tmp_path)
    number = 2 if step == "after" else 1
    assert position == 10 * number
    assert states["a"] == a_state("a", number)
    assert len(alerts) == len(dead) == number


def test_readers_never_see_what_is_not_committed(tmp_path):
    committer = FileCommitter(tmp_path)
    committer.commit(a_batch(1))
    with (tmp_path / "alerts.ndjson").open("ab") as file:
        file.write(b'{"half":')
    assert [a.id for a in read_alerts(tmp_path)] == ["id1"]
    committer.close()


def test_one_process_has_the_folder_and_the_other_is_told_which(tmp_path):
    committer = FileCommitter(tmp_path)
    with pytest.raises(StateError, match=f"in use by process {os.getpid()}"):
        FileCommitter(tmp_path)
    committer.close()
    FileCommitter(tmp_path).close()


def test_a_file_that_lost_committed_bytes_is_refused(tmp_path):
    commit_all(tmp_path, [a_batch(1)])
    path = tmp_path / "alerts.ndjson"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match=r"alerts.ndjson has \d+ bytes, \d+ were committed"):
        FileCommitter(tmp_path)


def test_alerts_without_a_commit_file_are_never_thrown_away(tmp_path):
    commit_all(tmp_path, [a_batch(1)])
    (tmp_path / "commit.json").unlink()
    with pytest.raises(StateError, match=r"has no commit\.json"):
        FileCommitter(tmp_path)
    assert (tmp_path / "alerts.ndjson").stat().st_size > 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version":2}', b'{"version":1,"alerts":"x"}'])
def test_a_damaged_commit_file_is_refused(tmp_path, body):
    commit_all(tmp_path, [a_batch(1)])
    (tmp_path / "commit.json").write_bytes(body)
    with pytest.raises(StateError, match=r"commit\.json is damaged"):
        FileCommitter(tmp_path)


@pytest.mark.parametrize("where", [0, 3, 6, 12, 40, -1])
def test_a_damaged_state_is_refused(tmp_path, where):
    commit_all(tmp_path, [a_batch(1)])
    path = tmp_path / "state-000000.log"
    body = bytearray(path.read_bytes())
    body[where] ^= 0xFF
    path.write_bytes(body)
    with pytest.raises(StateError, match=r"state-000000.log is damaged"):
        FileCommitter(tmp_path)


def test_compaction_keeps_the_newest_state_of_every_asset_and_shrinks_the_file(tmp_path):
    committer = FileCommitter(tmp_path, slack=2000)
    committer.commit(a_batch(1, assets=("quiet",)))
    for number in range(2, 60):
        committer.commit(a_batch(number))
    committer.close()
    files = list(tmp_path.glob("state-*.log"))
    assert len(files) == 1
    assert files[0].name > "state-000000.log"
    assert files[0].stat().st_size < 20_000
    (_, states), alerts, _ = seen(tmp_path)
    assert states == {"quiet": a_state("quiet", 1), "a": a_state("a", 59), "b": a_state("b", 59)}
    assert len(alerts) == 59


@pytest.mark.parametrize("error", [Crash(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_commit_that_compacted_leaves_the_old_generation(tmp_path, monkeypatch, error):
    committer = FileCommitter(tmp_path, reach=lambda s: armed and at("replace", error)(s))
    armed = False
    committer.commit(a_batch(1))
    monkeypatch.setattr(StateFile, "wasteful", lambda self: self.path.name == "state-000000.log")
    armed = True
    with pytest.raises((Crash, SinkUnavailable)):
        committer.commit(a_batch(2))
    committer.close()
    (position, states), _, _ = seen(tmp_path)
    assert (position, states["a"]) == (10, a_state("a", 1))
    assert [p.name for p in tmp_path.glob("state-*.log")] == ["state-000000.log"]


def test_sinks_get_alerts_after_their_commit(tmp_path):
    sink = ListSink()

    def reach(step):
        assert step == "after" or sink.alerts == []

    committer = FileCommitter(tmp_path, {"list": sink}, reach=reach)
    committer.commit(a_batch(1))
    assert [a.id for a in sink.alerts] == ["id1"]
    assert len(sink.dead) == 1
    assert committer.unsent == {"list": 0}
    committer.close()


def test_a_sink_that_is_down_gets_everything_later_and_stops_nobody(tmp_path):
    down, up, told = ListSink(), ListSink(), []
    down.fail_next(2, SinkUnavailable("no route"))
    committer = FileCommitter(
        tmp_path, {"down": down, "up": up}, on_unsent=lambda name, error: told.append((name, str(error)))
    )
    for number in (1, 2):
        committer.commit(a_batch(number))
    assert committer.unsent["down"] > 0
    assert committer.unsent["up"] == 0
    committer.commit(a_batch(3))
    assert [a.id for a in down.alerts] == [a.id for a in up.alerts] == ["id1", "id2", "id3"]
    assert told == [("down", "no route")] * 2
    committer.close()


def test_what_a_crash_kept_from_a_sink_is_sent_when_the_folder_is_opened(tmp_path):
    sink = ListSink()
    committer = FileCommitter(tmp_path, {"s": sink}, reach=at("after", Crash()))
    with pytest.raises(Crash):
        committer.commit(a_batch(1))
    committer.close()
    assert sink.alerts == []
    FileCommitter(tmp_path, {"s": sink}).close()
    assert [a.id for a in sink.alerts] == ["id1"]


def test_after_a_clean_stop_nothing_is_sent_twice(tmp_path):
    commit_all(tmp_path, [a_batch(1)], sinks={"s": ListSink()})
    sink = ListSink()
    FileCommitter(tmp_path, {"s": sink}).close()
    assert sink.alerts == []


def test_a_new_sink_is_not_flooded_with_the_past(tmp_path):
    commit_all(tmp_path, [a_batch(1)])
    sink = ListSink()
    commit_all(tmp_path, [a_batch(2)], sinks={"new": sink})
    assert [a.id for a in sink.alerts] == ["id2"]


def test_names_with_any_characters_come_back(tmp_path):
    asset, topic = 'füße\n"/\\', "tøpic/ü"
    batch = Batch({(topic, 3): 5}, [replace(an_alert(), asset=asset)], [], {(topic, 3): [a_state(asset, 1)]})
    commit_all(tmp_path, [batch])
    committer = FileCommitter(tmp_path)
    assert list(committer.restore(topic, 3).assets) == [a_state(asset, 1)]
    committer.close()
    assert next(iter(read_alerts(tmp_path))).asset == asset
    assert json.loads((tmp_path / "commit.json").read_bytes())["positions"] == [[topic, 3, 5]]


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
