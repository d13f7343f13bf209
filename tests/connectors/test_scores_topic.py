from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_cases import a_push

from connectors.scores_topic import ScoresTopic, decode_scores
from pipeline.errors import SchemaError
from pipeline.values import Scored, Scores, Verdicts

NAMES = ("temp", "vib_x", "vib_y")
TOPIC = ScoresTopic("scores", "north", NAMES)


def scored(n=40, first=100, assets=("a0", "a1")):
    _, verdicts = a_push(range(first, first + n), partition=3)
    return Scored("t", 3, assets, verdicts, first, first + n)


def flat(one: Scored) -> dict[str, np.ndarray]:
    """Every column, with names in the place of codes."""
    verdicts = one.verdicts
    columns = {f.name: getattr(verdicts, f.name) for f in fields(Verdicts) if f.name != "scores"}
    columns |= {f.name: getattr(verdicts.scores, f.name) for f in fields(Scores)}
    columns["asset"] = np.array([one.assets[code] for code in verdicts.scores.asset])
    columns["partition"] = columns["model_id"] = columns["lag_ns"] = np.empty(0)
    return columns


def require_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, column in one.items():
        assert other[name].dtype == column.dtype or name == "asset", name
        np.testing.assert_array_equal(other[name], column, name)


def test_verdicts_come_back_as_they_were():
    one = scored()
    one = replace(one, verdicts=replace(one.verdicts, scores=replace(one.verdicts.scores, lag_ns=13)))
    (body,) = TOPIC.encode(one, 1_000_000)
    back = decode_scores(body)
    assert (back.feed, back.channels, back.part, back.last) == ("north", NAMES, 0, True)
    found = back.scored
    assert (found.topic, found.partition, found.first, found.next) == ("t", 3, 100, 140)
    assert (found.verdicts.scores.partition, found.verdicts.scores.model_id) == (3, "m1")
    assert found.verdicts.scores.lag_ns == 13
    require_same(flat(one), flat(found))


@settings(deadline=None, max_examples=20)
@given(n=st.integers(0, 60), most=st.integers(4000, 20_000), top=st.integers(0, 4))
def test_however_small_the_records_they_hold_every_row_once_in_order(n, most, top):
    one = scored(n)
    bodies = replace(TOPIC, top=top).encode(one, most)
    assert all(len(body) <= most for body in bodies)
    back = [decode_scores(body) for body in bodies]
    assert [b.part for b in back] == list(range(len(bodies)))
    assert [b.last for b in back] == [False] * (len(bodies) - 1) + [True]
    parts = [flat(b.scored) for b in back]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    wanted = flat(one)
    if top in (1, 2):
        for name in ("by_channel", "expected", "actual"):
            del wanted[name]
    require_same(wanted, whole)


def test_the_channels_with_the_largest_shares_are_told_about_and_the_others_say_nothing():
    one = scored(4)
    shares = np.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0, 0, 0]], np.float32)
    one = replace(one, verdicts=replace(one.verdicts, scores=replace(one.verdicts.scores, by_channel=shares)))
    found = decode_scores(replace(TOPIC, top=2).encode(one, 1_000_000)[0]).scored.verdicts.scores
    np.testing.assert_array_equal(
        found.by_channel, np.array([[0, 0.6, 0.3], [0.5, 0.5, 0], [0.2, 0, 0.6], [0, 0, 0]], np.float32)
    )
    kept = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]], np.bool_)
    for name in ("expected", "actual"):
        wanted = np.where(kept, getattr(one.verdicts.scores, name), np.nan)
        np.testing.assert_array_equal(getattr(found, name), wanted)


def test_the_bytes_do_not_depend_on_the_codes_of_assets():
    one = scored(9)
    s = one.verdicts.scores
    other = replace(
        one,
        assets=("other", "a1", "a0"),
        verdicts=replace(one.verdicts, scores=replace(s, asset=(2 - s.asset).astype(np.int32))),
    )
    assert TOPIC.encode(one, 1_000_000) == TOPIC.encode(other, 1_000_000)


def test_a_push_without_verdicts_says_which_messages_it_took():
    (body,) = TOPIC.encode(Scored("t", 1, (), None, 7, 12), 1_000_000)
    back = decode_scores(body)
    assert (back.scored.first, back.scored.next, back.last, len(back.scored.verdicts)) == (7, 12, True, 0)
    assert back.scored.verdicts.scores.by_channel.shape == (0, 3)


def test_a_row_that_is_larger_than_a_record_is_handed_over_for_the_committer_to_refuse():
    bodies = TOPIC.encode(scored(3), 100)
    assert [len(decode_scores(body).scored.verdicts) for body in bodies] == [1, 1, 1]


def test_programs_that_know_arrow_alone_can_read_it():
    with pa.ipc.open_stream(TOPIC.encode(scored(10), 1_000_000)[0]) as stream:
        table = stream.read_all()
    assert table["asset"].to_pylist()[:2] == ["a0", "a1"]
    assert table["score"].null_count == 2
    assert table.schema.metadata[b"midwatch.scores"] == b"1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda body: b"", "not a record of a scores topic"),
        (lambda body: b'{"alert": 1}', "not a record of a scores topic"),
        (lambda body: body[:-200], "not a record of a scores topic"),
        (lambda body: retold(body, {b"midwatch.scores": b"2"}), "schema version '2', this program reads '1'"),
        (lambda body: retold(body, {b"midwatch.push": b"{}"}), "damaged"),
        (lambda body: retold(body, {b"midwatch.channels": b'["one"]'}), "damaged"),
        (lambda body: retold(body, {}, drop="ratio"), "damaged.*ratio"),
    ],
)
def test_what_is_no_record_of_a_scores_topic_is_refused_with_what_was_found(spoil, message):
    with pytest.raises(SchemaError, match=message):
        decode_scores(spoil(TOPIC.encode(scored(), 1_000_000)[0]))


def retold(body, metadata, drop=None):
    with pa.ipc.open_stream(body) as stream:
        table = stream.read_all()
    table = table.replace_schema_metadata(table.schema.metadata | metadata)
    if drop:
        table = table.drop_columns([drop])
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return bytes(out.getvalue())
