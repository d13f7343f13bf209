from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka_state import (
    MARKER_KEY,
    CommitMarker,
    decode_marker,
    encode_marker,
    pack_state,
    state_key,
    unpack_state,
)
from pipeline.errors import StateError
from pipeline.protocols import AssetState

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["#commit", "##commit", "#", ""]
)


@settings(deadline=None, max_examples=200)
@given(asset=names, columns=st.binary(max_size=40), window=st.binary(max_size=40))
def test_a_state_record_gives_back_the_asset_its_columns_and_its_window(
    asset: str, columns: bytes, window: bytes
) -> None:
    state = AssetState(asset, columns, window)
    assert unpack_state(state_key(asset), pack_state(state)) == state


@settings(deadline=None, max_examples=200)
@given(one=names, other=names)
def test_two_assets_never_share_a_key_and_none_has_the_markers(one: str, other: str) -> None:
    assert (state_key(one) == state_key(other)) == (one == other)
    assert state_key(one) != MARKER_KEY


@settings(deadline=None, max_examples=200)
@given(value=st.binary(max_size=60))
def test_a_value_that_is_no_state_record_is_refused(value: bytes) -> None:
    with pytest.raises(StateError, match="pump"):
        unpack_state(b"pump", value)


def test_a_record_cut_short_is_refused() -> None:
    packed = pack_state(AssetState("pump", b"abc", b"defg"))
    for cut in range(len(packed)):
        with pytest.raises(StateError, match="not written by this version"):
            unpack_state(b"pump", packed[:cut])


def test_a_commit_marker_comes_back_and_anything_else_is_refused() -> None:
    assert decode_marker(encode_marker(CommitMarker(7, 4711)), "state", 0) == CommitMarker(7, 4711)
    for value in (b"7", b"{}", b"\xff", b'{"n":"seven","position":1}'):
        with pytest.raises(StateError, match="topic 'state', partition 3"):
            decode_marker(value, "state", 3)
