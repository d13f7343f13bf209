import errno
import json
import os
from dataclasses import replace

import pytest
from follow_cases import MemoryFollower, Topics
from hypothesis import given, settings
from hypothesis import strategies as st
from io_cases import T0, a_push, an_alert

from connectors.alert_json import encode_alert
from connectors.historian import FeedLogs, Historian
from connectors.history import ParquetHistory
from connectors.history_views import open_history
from connectors.kafka_client import Committed
from connectors.memory import Crash
from connectors.scores_topic import ScoresTopic
from pipeline.decode import FieldMapping, decode
from pipeline.errors import SchemaError, SinkUnavailable, StateError
from pipeline.state import AssetTable
from pipeline.values import Position, Scored

NAMES = ("temp", "vib_x", "vib_y")
ASSETS = ("a0", "a1")
MAPPING = FieldMapping(channels=NAMES, asset="asset", time="ts", time_unit="ns", max_ahead_ns=None)
LOGS = FeedLogs("north", "in", "scores", "alerts", MAPPING)
TOPIC = ScoresTopic("scores", "north", NAMES)
STEPS = ["publish", "published", "commit"]
N = 16


def message(offset: int, partition: int) -> bytes:
    if offset % 13 == 5:
        return b"no json"
    values = {name: round((offset * 7 + partition + c) % 11 / 3, 3) for c, name in enumerate(NAMES)}
    return json.dumps({"asset": ASSETS[offset % 2], "ts": T0 + offset * 10**9, **values}).encode()


def alert_of(offset: int, partition: int):
    return an_alert(f"p{partition}-{offset}", feed="north", evidence=Position("in", partition, offset))


def commit_push(topics: Topics, partition: int, first: int, after: int, most: int = 4500, **changes) -> None:
    """What the watch commits when it has taken the messages from `first` to `after`; verdicts come 3 messages late."""
    _, verdicts = a_push(range(first, after), delay=3, partition=partition)
    scored = Scored("in", partition, ASSETS, verdicts, first, after)
    topics.add("scores", partition, replace(TOPIC, **changes).encode(scored, most))
    alerts = [encode_alert(alert_of(at, partition)) for at in range(first, after) if at % 10 == 9]
    if alerts:
        topics.add("alerts", (first // 7) % 2, alerts)


def feed(topics: Topics, partition: int, count: int) -> None:
    first = topics.ends.get(("in", partition), 0)
    topics.add("in", partition, [message(at, partition) for at in range(first, first + count)], marker=False)


def committed(end: int = 70, step: int = 9, partitions: int = 2, most: int = 4500) -> Topics:
    topics = Topics()
    for p in range(partitions):
        feed(topics, p, end)
        for first in range(0, end, step):
            commit_push(topics, p, first, min(first + step, end), most)
    topics.add("alerts", 0, [encode_alert(an_alert("theirs", feed="south"))])
    topics.logs.setdefault(("alerts", 1), [])
    topics.ends.setdefault(("alerts", 1), 0)
    return topics


def historian(topics: Topics, root, cut=lambda: 1000, **options) -> Historian:
    crash = options.pop("crash", lambda when: None)
    return Historian(MemoryFollower(topics, cut, crash), LOGS, root, offsets_per_file=N, **options)


def run(topics: Topics, root, **options) -> Historian:
    one = historian(topics, root, **options)
    while one.step(1000, 0):
        pass
    one.flush()
    return one


def files(root, *names):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*.parquet"))
        if not names or path.relative_to(root).parts[0] in names
    }


def test_rows_and_scores_are_the_very_files_that_the_watch_itself_would_have_written(tmp_path):
    topics = committed()
    run(topics, tmp_path / "historian")
    watch = ParquetHistory(tmp_path / "watch", "north", NAMES, offsets_per_file=N)
    table = AssetTable({}, 10)
    for asset in ASSETS:
        table.code(asset)
    for p in range(2):
        for first in range(0, 70, 9):
            after = min(first + 9, 70)
            rows = decode(topics.polled(("in", p), first, after - first), MAPPING, table).rows
            _, verdicts = a_push(range(first, after), delay=3, partition=p)
            alerts = [alert_of(at, p) for at in range(first, after) if at % 10 == 9]
            watch.append("in", p, ASSETS, [rows], [verdicts], alerts, (first, after))
    watch.close()
    both = [files(tmp_path / who, "rows", "scores") for who in ("historian", "watch")]
    assert len(both[0]) == 20
    assert both[0] == both[1]
    query = "SELECT json FROM alerts ORDER BY id"
    alerts = [open_history(tmp_path / who).execute(query).fetchall() for who in ("historian", "watch")]
    assert len(alerts[0]) == 14
    assert alerts[0] == alerts[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    run(committed(end=50), root)
    return files(root)


@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_any_cuts_any_flushes_and_any_crashes_give_the_same_files(tmp_path_factory, undisturbed, data):
    root = tmp_path_factory.mktemp("run")
    topics = committed(end=50, most=3000)
    assert len(topics.logs["scores", 0]) > 2 * 6  # a push has several records, and a poll may end after any
    steps = st.tuples(st.sampled_from([*STEPS, "before", "after"]), st.integers(1, 12))
    for name, turn in data.draw(st.lists(steps, max_size=4)):
        reach = at_turn(name, turn)
        one = historian(topics, root, cut=lambda: data.draw(st.integers(0, 20)), reach=reach, crash=reach)
        try:
            for flush in data.draw(st.lists(st.booleans(), max_size=8)):
                one.step(1000, 0)
                if flush:
                    one.flush()
        except Crash:
            pass
    one = historian(topics, root, cut=lambda: data.draw(st.integers(2, 12)))
    while one.step(1000, 0):
        one.flush()
    assert files(root) == undisturbed


def at_turn(step, turn):
    """Crash the `turn`-th time that a step is reached."""
    left = {step: turn}

    def reach(name):
        left[name] = left.get(name, -1) - 1
        if left[name] == 0:
            raise Crash

    return reach


def test_rows_are_in_no_file_before_they_are_scored(tmp_path):
    topics = committed(end=0)
    feed(topics, 0, 30)
    topics.logs.setdefault(("scores", 0), [])
    topics.ends.setdefault(("scores", 0), 0)
    run(topics, tmp_path)
    assert files(tmp_path) == {}
    commit_push(topics, 0, 0, 20)
    run(topics, tmp_path)
    assert offsets(tmp_path, "rows") == [at for at in range(20) if at % 13 != 5]
    commit_push(topics, 0, 20, 30)
    run(topics, tmp_path)
    assert offsets(tmp_path, "rows") == [at for at in range(30) if at % 13 != 5]


def offsets(root, name, partition=0):
    found = open_history(root).execute(f'SELECT "offset" FROM {name} WHERE partition = {partition} ORDER BY ALL')
    return [offset for (offset,) in found.fetchall()]


def test_rows_that_were_read_after_the_last_scores_are_written_by_the_next_process(tmp_path):
    topics = committed()
    one = historian(topics, tmp_path)
    one._follower.held = {("in", 0), ("in", 1)}  # the input does not answer for now
    one.step(1000, 0)
    one.flush()
    assert files(tmp_path, "rows") == {}
    run(topics, tmp_path)
    assert offsets(tmp_path, "rows") == [at for at in range(70) if at % 13 != 5]


def test_a_partition_whose_scores_lag_is_held_and_holds_nobody_back(tmp_path):
    topics = Topics()
    for p in range(2):
        feed(topics, p, 400)
    for first in range(0, 400, 10):
        commit_push(topics, 0, first, first + 10)
    commit_push(topics, 1, 0, 10)
    topics.add("alerts", 0, [])
    one = historian(topics, tmp_path, cut=lambda: 20, waiting_rows=100)
    for _ in range(60):
        one.step(1000, 0)
    one.flush()
    assert offsets(tmp_path, "rows", 0)[-1] == 399
    assert one._follower.held == {("in", 1)}
    assert 25 < one._follower.position(("in", 1)) < 100
    for first in range(10, 400, 10):
        commit_push(topics, 1, first, first + 10)
    for _ in range(60):
        one.step(1000, 0)
    one.flush()
    assert offsets(tmp_path, "rows", 1)[-1] == 399
    assert one._follower.held == set()


def test_positions_are_those_of_what_is_in_files(tmp_path):
    topics = committed(end=20, step=10)
    feed(topics, 0, 5)
    run(topics, tmp_path)
    assert topics.committed["in", 0] == Committed(20)
    assert topics.committed["scores", 0] == Committed(topics.ends["scores", 0], '{"next":20}')
    assert topics.committed["alerts", 0] == Committed(topics.ends["alerts", 0])


def test_a_push_of_which_a_part_is_missing_is_read_again_from_its_first_part(tmp_path):
    topics = committed(end=9)
    commit_push(topics, 0, 9, 80)
    assert len(topics.logs["scores", 0]) > 3
    last = topics.logs["scores", 0].pop()
    run(topics, tmp_path)
    assert topics.committed["scores", 0].offset == topics.logs["scores", 0][1][0]
    topics.logs["scores", 0].append(last)
    run(topics, tmp_path)
    assert offsets(tmp_path, "scores") == list(range(77))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_push_that_a_flush_finds_open_is_written_when_its_last_part_has_come(tmp_path, parts):
    topics = committed(end=9, partitions=1)
    commit_push(topics, 0, 9, 80)
    cuts = [1000, 1 + parts]  # of the input, and of the scores
    one = historian(topics, tmp_path, cut=lambda: cuts.pop(0) if cuts else 1000)
    one.step(1000, 0)
    one.flush()
    assert offsets(tmp_path, "scores") == list(range(6))
    assert topics.committed["scores", 0].offset == topics.logs["scores", 0][1][0]
    one.step(1000, 0)
    one.flush()
    assert offsets(tmp_path, "scores") == list(range(77))
    assert topics.committed["scores", 0].offset == topics.logs["scores", 0][-1][0] + 1


def test_a_log_that_is_scored_again_takes_the_place_of_what_was_there(tmp_path):
    topics = committed(end=60, partitions=1)
    run(topics, tmp_path)
    for first in range(0, 60, 20):
        commit_push(topics, 0, first, first + 20)
    run(topics, tmp_path)
    assert offsets(tmp_path, "scores") == list(range(57))
    assert set(positions(tmp_path)) <= {max(at, at + 3 - (at + 3) % 20) for at in range(57)}


def positions(root):
    return [p for (p,) in open_history(root).execute("SELECT position FROM scores").fetchall()]


def test_scores_about_other_channels_get_files_of_their_own(tmp_path):
    topics = committed(end=10, partitions=1)
    _, verdicts = a_push(range(10, 20), channels=2)
    scored = Scored("in", 0, ASSETS, verdicts, 10, 20)
    topics.add("scores", 0, ScoresTopic("scores", "north", ("temp", "flow")).encode(scored, 9000))
    run(topics, tmp_path)
    widths = open_history(tmp_path).execute("SELECT len(by_channel), count(*) FROM scores GROUP BY 1 ORDER BY 1")
    assert widths.fetchall() == [(2, 10), (3, 7)]


def test_an_alert_that_is_in_the_topic_twice_is_one_record_of_the_view(tmp_path):
    topics = committed(end=20)
    topics.add("alerts", 1, [encode_alert(alert_of(9, 0))])
    run(topics, tmp_path)
    found = open_history(tmp_path).execute("SELECT id, seq FROM alerts ORDER BY ALL").fetchall()
    assert found == [("p0-19", 0), ("p0-9", 0), ("p1-19", 0), ("p1-9", 0)]


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path, monkeypatch):
    topics = committed()
    run(committed(), tmp_path / "plain")
    left = [3]

    def full_after_three_files(fd):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    one = historian(topics, tmp_path / "run")
    one.step(1000, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_three_files)
        with pytest.raises(SinkUnavailable, match="make room"):
            one.flush()
    assert topics.committed == {}
    one.flush()
    assert files(tmp_path / "run") == files(tmp_path / "plain")


@pytest.mark.parametrize(
    ("topic", "value", "error", "message"),
    [
        ("scores", b"no arrow", SchemaError, "topic 'scores', partition 0, offset 0: not a record of a scores topic"),
        ("alerts", b"{}", SchemaError, "topic 'alerts', partition 0, offset 0: not an alert"),
        (
            "scores",
            ScoresTopic("scores", "south", NAMES).encode(Scored("in", 0, (), None, 0, 1), 9000)[0],
            StateError,
            "scores of feed 'south', topic 'in'.*Give each feed a kafka.scores_topic of its own",
        ),
    ],
)
def test_what_does_not_belong_there_is_named_with_its_place(tmp_path, topic, value, error, message):
    topics = Topics()
    topics.add(topic, 0, [value])
    with pytest.raises(error, match=message):
        historian(topics, tmp_path).step(1000, 0)


def test_a_position_that_somebody_else_committed_is_refused(tmp_path):
    topics = committed(end=20)
    topics.committed["scores", 0] = Committed(1, "by hand")
    with pytest.raises(StateError, match=r"was not committed by midwatch .*'by hand'"):
        run(topics, tmp_path)


def test_it_has_caught_up_when_all_that_is_scored_was_read(tmp_path):
    topics = committed(end=30)
    feed(topics, 0, 100)  # not scored yet
    one = historian(topics, tmp_path, cut=lambda: 10)
    ends = dict(topics.ends)
    assert not one.caught_up(ends)
    for _ in range(9):
        one.step(1000, 0)
    assert one.caught_up(ends)
