from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka_state import NOTHING, assembled, delta_records, pack_state, state_key, unpack_delta, unpack_state
from pipeline.delta import Delta, patched
from pipeline.errors import StateError
from pipeline.protocols import AssetState

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["#commit", "#commit 1 0", "##commit", "#", ""]
)


@settings(deadline=None, max_examples=200)
@given(asset=names, columns=st.binary(max_size=40), window=st.binary(max_size=40), n=st.integers(1, 2**40))
def test_a_state_record_gives_back_the_asset_its_columns_its_window_and_its_commit(
    asset: str, columns: bytes, window: bytes, n: int
) -> None:
    state = AssetState(asset, columns, window)
    assert unpack_state(state_key(asset), pack_state(state, n)) == (state, n)


@settings(deadline=None, max_examples=200)
@given(one=names, other=names, n=st.integers(1, 99))
def test_two_assets_never_share_a_key_and_none_has_a_commits(one: str, other: str, n: int) -> None:
    assert (state_key(one) == state_key(other)) == (one == other)
    assert state_key(one) != delta_records(None, n, 0, 7, n, 1000)[0][0]


@settings(deadline=None, max_examples=200)
@given(value=st.binary(max_size=60))
def test_a_value_that_is_no_state_record_is_refused(value: bytes) -> None:
    with pytest.raises(StateError, match="pump"):
        unpack_state(b"pump", value)
    with pytest.raises(StateError, match="commit's record"):
        unpack_delta(value)


def test_a_record_cut_short_is_refused() -> None:
    packed = pack_state(AssetState("pump", b"abc", b"defg"), 3)
    for cut in range(len(packed)):
        with pytest.raises(StateError, match="not written by this version"):
            unpack_state(b"pump", packed[:cut])
    ((_, value),) = delta_records(a_delta(np.random.default_rng(0), 2, 3), 1, 10, 4, 1, 100_000)
    for cut in range(len(value)):
        with pytest.raises(StateError, match="commit's record"):
            unpack_delta(value[:cut])


def a_delta(g: np.random.Generator, k: int, n: int, channels: int = 3) -> Delta:
    return Delta(
        model_id="m1",
        assets=[f"pump-{i}" for i in range(k)],
        whole=g.random(k) < 0.5,
        columns=g.integers(0, 255, (k, 20), np.uint8),
        asset=g.integers(0, k, n).astype(np.int32),
        ts_ns=np.arange(n, dtype=np.int64),
        x=g.normal(size=(n, channels)).astype(np.float32),
        observed=g.random((n, channels)) < 0.8,
        continuity=g.integers(0, 3, n).astype(np.uint8),
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 6), n=st.integers(0, 40), most=st.integers(700, 5000))
def test_a_commit_cut_into_records_says_the_same_of_every_asset(seed: int, k: int, n: int, most: int) -> None:
    delta = a_delta(np.random.default_rng(seed), k, n)
    records = delta_records(delta, 9, 77, 4, 6, most)
    heads, parts = zip(*(unpack_delta(value) for _, value in records), strict=True)
    assert [(h.n, h.position, h.every, h.since, h.part, h.parts, h.model_id) for h in heads] == [
        (9, 77, 4, 6, part, len(records), "m1") for part in range(len(records))
    ]
    assert len({key for key, _ in records}) == len(records)
    base = {name: bytes(20) for name in delta.assets}
    assert patched(base, parts) == patched(base, [delta])
    for i, name in enumerate(delta.assets):
        mine = delta.asset == i
        got = [(p, p.asset == p.assets.index(name)) for p in parts if name in p.assets]
        for column in ("ts_ns", "x", "observed", "continuity"):
            pieces = [getattr(p, column)[rows] for p, rows in got]
            np.testing.assert_array_equal(np.concatenate(pieces), getattr(delta, column)[mine])


def test_one_row_larger_than_a_record_is_an_error_that_names_its_asset() -> None:
    with pytest.raises(StateError, match=r"'pump-0' takes .* more than 600"):
        delta_records(a_delta(np.random.default_rng(0), 1, 1, channels=200), 1, 0, 4, 1, 600)


def commits(*numbers: int, every: int = 3, since: int = 1) -> dict[bytes, bytes]:
    """Return the records that commits of one asset leave; `since` is what the last of them says."""
    delta = a_delta(np.random.default_rng(0), 1, 2)
    records = [r for n in numbers for r in delta_records(delta, n, 10 * n, every, since, 100_000)]
    return dict(records) | {b"pump-0": pack_state(AssetState("pump-0", bytes(20), b""), since)}


def test_a_topic_without_records_has_no_commit() -> None:
    assert assembled({}, "here").newest == NOTHING


def test_only_what_changed_after_an_asset_was_saved_is_left_to_be_made_up() -> None:
    found = assembled(commits(2, 3, 4, since=2), "here")
    assert (found.newest.n, found.newest.position, len(found.deltas)) == (4, 40, 2)


@pytest.mark.parametrize("missing", [2, 3])
def test_a_commit_whose_record_is_missing_is_an_error(missing: int) -> None:
    kept = commits(*({2, 3, 4} - {missing}), since=2)
    with pytest.raises(StateError, match=f"here: of commit {missing} of 4 0 of 1 records are there"):
        assembled(kept, "here")


def test_assets_without_any_commit_are_an_error() -> None:
    with pytest.raises(StateError, match="here has assets, but no commit"):
        assembled({b"pump": pack_state(AssetState("pump", b"", b""), 1)}, "here")


def test_what_is_left_of_a_commit_that_had_more_records_is_left_out() -> None:
    many = delta_records(a_delta(np.random.default_rng(1), 6, 40), 1, 10, 3, 1, 900)
    few = delta_records(a_delta(np.random.default_rng(2), 1, 1), 4, 40, 3, 4, 100_000)
    assert len(many) > len(few)
    assert assembled(dict(many) | dict(few), "here").newest.n == 4
