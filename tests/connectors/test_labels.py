import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest

from connectors.labels import LABELS, Label, append_label, labels_table, read_labels
from pipeline.errors import InputError, SchemaError


def a_label(verb="confirm", **changes):
    fields = {"feed": "north", "asset": "pump-7", "start_ns": 100, "end_ns": 200, "alert_id": "ab12", "who": "mia"}
    return Label(**{**fields, "verb": verb, "when_ns": 1_000, **changes})


def test_labels_come_back_in_the_order_in_which_they_were_given(tmp_path):
    path = tmp_path / "feedback" / "labels.ndjson"
    given = [
        a_label(),
        a_label("dismiss", who="noor", note='"grün"\n'),
        a_label("change_point", end_ns=None, alert_id=""),
    ]
    for label in given:
        append_label(path, label)
    assert read_labels(path) == given


def test_no_file_is_no_labels(tmp_path):
    assert read_labels(tmp_path / "labels.ndjson") == []
    assert labels_table([]).schema.equals(LABELS)


def test_labels_become_a_table_with_their_place_in_the_file():
    table = labels_table([a_label(), a_label("dismiss", end_ns=None)]).to_pydict()
    assert table["position"] == [0, 1]
    assert table["verb"] == ["confirm", "dismiss"]
    assert table["end_ns"] == [200, None]


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (a_label(who=""), "say who"),
        (a_label("known_event", end_ns=None), "say when it ends"),
        (a_label("shelve", end_ns=None), "say when it ends"),
        (a_label("shelve", alert_id=""), "name the alert"),
        (a_label("dismiss", alert_id="", end_ns=None), "name an alert, or an end"),
        (a_label("change_point"), "has no end"),
        (a_label(end_ns=99), "before the start"),
    ],
)
def test_a_label_that_lacks_what_its_verb_needs_is_refused(tmp_path, label, why):
    path = tmp_path / "labels.ndjson"
    with pytest.raises(InputError, match=why):
        append_label(path, label)
    assert not path.exists()


def test_a_line_that_a_crash_left_unfinished_is_passed_over_then_cut_off(tmp_path):
    path = tmp_path / "labels.ndjson"
    append_label(path, a_label())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert read_labels(path) == [a_label()]
    append_label(path, a_label("dismiss"))
    assert [label.verb for label in read_labels(path)] == ["confirm", "dismiss"]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "labels.ndjson"
    append_label(path, a_label())
    path.write_bytes(path.read_bytes() + b'{"verb":"praise"}\n')
    with pytest.raises(SchemaError, match=r"labels\.ndjson, line 2: not a label"):
        read_labels(path)


def test_several_processes_may_label_at_the_same_time(tmp_path):
    path = tmp_path / "labels.ndjson"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_label_many, args=(path, f"person {i}")) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    labels = read_labels(path)
    assert len(labels) == 40
    assert [label.when_ns for label in labels if label.who == "person 1"] == list(range(20))


def test_several_threads_may_label_at_the_same_time(tmp_path):
    path = tmp_path / "labels.ndjson"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: _label_many(path, f"person {i}"), range(4)))
    assert sorted((label.who, label.when_ns) for label in read_labels(path)) == [
        (f"person {i}", when) for i in range(4) for when in range(20)
    ]


def _label_many(path, who):
    for i in range(20):
        append_label(path, a_label(who=who, when_ns=i))
