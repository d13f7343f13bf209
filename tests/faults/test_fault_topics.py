"""Topics that are missing, cut, made anew or grown: a clear error instead of a wrong answer, and a way on."""

import json
import time
import uuid

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from fault_stage import PARTITIONS, PLAN, equal

from connectors.kafka_client import NewTopic
from connectors.kafka_view import remove_feed
from jobs.chaos_feed import _BAD, messages
from jobs.chaos_stage import Feed, send

pytestmark = pytest.mark.kafka


@pytest.fixture
def own_input(stage):
    """A short input that a test may harm."""
    feed = Feed(f"harmed-{uuid.uuid4().hex[:6]}")
    feed.create(stage.client, PARTITIONS, runs=())
    rows = (row for row, _ in zip(messages(PLAN), range(800), strict=False))
    send(stage.client, feed.input, rows, 1e9, lambda: False)
    yield feed
    remove_feed(stage.kafka, [feed.input], [])


@pytest.fixture
def admin(stage):
    with AdminClient({"bootstrap.servers": stage.cluster.bootstrap}) as client:
        yield client


def test_every_message_that_cannot_be_used_is_a_dead_letter_once_and_no_other_is(stage):
    bad = [value for _, value in messages(PLAN) if value in _BAD]
    rows = [row for value in bad for row in ((b"1", b"2", b"3") if value == b"[1, 2, 3]" else (value,))]
    assert sorted(letter.value for letter in stage.dead) == sorted(rows)
    reasons = {dict(letter.headers)["midwatch_reason"] for letter in stage.dead}
    assert {b"not_json", b"no_asset", b"bad_time", b"future", b"too_large"} <= reasons


def test_an_undisturbed_run_opens_what_it_resolves_and_numbers_its_changes_without_a_gap(stage):
    changes = {}
    for record in stage.alerts:
        body = json.loads(record.value)
        changes.setdefault(body["id"], []).append((body["seq"], body["state"]))
    for found in changes.values():
        assert [seq for seq, _ in found] == list(range(len(found)))
        states = [state for _, state in found]
        assert states[0] == "open"
        assert "resolved" not in states[:-1]


def test_without_the_dead_letter_topic_nothing_is_read_and_once_it_is_there_nothing_is_lost(stage, attempt):
    run = attempt("deaf")
    dead = stage.feed.own(run.run)["dead_topic"]
    remove_feed(stage.kafka, [dead], [])
    run.wait(lambda: dead not in stage.client.topics())
    worker = run.fork(0)
    run.wait(lambda: worker.exitcode is not None)
    assert worker.exitcode == 2
    assert f"'{dead}'" in run.log.read_text()
    assert "no such topic" in run.log.read_text()
    assert run.committed() == 0
    stage.client.create_topics([NewTopic(dead, 1)])
    run.start()
    run.wait_drained()
    run.stop()
    equal(run)


def half_way(run):
    run.start()
    run.until_committed(400)
    run.stop()
    run.workers.clear()
    return run.read("alerts")


def refused(run, words):
    """A worker that starts now ends with an error that says so, and publishes nothing."""
    before = run.read("alerts")
    worker = run.fork(0)
    run.wait(lambda: worker.exitcode is not None)
    assert worker.exitcode == 1
    assert words in run.log.read_text()
    assert run.read("alerts") == before


def test_offsets_that_have_aged_out_are_an_error_that_says_so_and_not_a_silent_gap(attempt, own_input, admin):
    run = attempt("aged", feed=own_input, slots=1, run__max_rows=50)
    half_way(run)
    at = [TopicPartition(own_input.input, p, end) for p, end in enumerate(run._view.ends())]
    for done in admin.delete_records(at).values():
        done.result(20)
    refused(run, "has aged out, the earliest available is")


def test_an_input_topic_that_was_made_anew_is_an_error_that_says_so(stage, attempt, own_input, admin):
    run = attempt("anew", feed=own_input, slots=1, run__max_rows=50)
    half_way(run)
    remove_feed(stage.kafka, [own_input.input], [])
    run.wait(lambda: own_input.input not in stage.client.topics())
    stage.client.create_topics([NewTopic(own_input.input, PARTITIONS)])
    refused(run, "the topic was deleted and created again")


def test_partitions_that_were_added_stop_the_feed_because_assets_have_moved(attempt, own_input, admin):
    run = attempt("grown", feed=own_input, slots=1, run__max_rows=50)
    run.mutant = "partitions_looked_at_often"
    run.start()
    run.until_committed(200)
    (done,) = admin.create_partitions([NewPartitions(own_input.input, PARTITIONS + 2)]).values()
    done.result(20)
    worker = run.workers.pop(0)
    run.wait(lambda: worker.exitcode is not None)
    assert worker.exitcode in (1, 2)
    assert f"{PARTITIONS + 2}" in run.log.read_text()
    time.sleep(0.1)
