"""The scanner and the exact path are one decoder: same rows, bit by bit, and same dead letters."""

import itertools
import random
from unittest.mock import patch

import numpy as np
import pytest
from decode_cases import bits, dead_of, polled_of, rows_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from json_cases import AWKWARD, CHANNELS, KEYS, LOG_NS, ODD_ASSETS, ODD_NUMBERS, ODD_TIMES, message, number
from naive_decode import naive_decode

from pipeline import decode as decoding
from pipeline.decode import FieldMapping, decode
from pipeline.state import AssetTable

SOME = settings(deadline=None, max_examples=20)
MAPPINGS = {
    "values": FieldMapping(CHANNELS, values="values", time_unit="ms", low=(-1e3, -50.0, 0.1, -1e300)),
    "top": FieldMapping(CHANNELS, time_unit="s", high=(1e3, 50.0, 0.1, 1e300), time_origin_ns=10**18),
    "fields": FieldMapping(("a", "b", "c", "d"), fields=CHANNELS, values="values", time_unit="us", asset="@key"),
    "one asset": FieldMapping(CHANNELS, values="values", time_unit="iso", asset="", asset_value="püмp 1"),
    "long": FieldMapping(CHANNELS, layout="long", time_unit="ns", max_ahead_ns=18 * 10**8),
    "plain": FieldMapping(CHANNELS, values="values", time_unit="ms"),
    "awkward": FieldMapping(AWKWARD, values="values", time_unit="ms"),
}


def both(messages, mapping, keys=None):
    """Decode with the scanner, however few they are, and without it."""
    polled = polled_of(messages, keys, LOG_NS)
    table, exact_table = AssetTable({}), AssetTable({})
    with patch.object(decoding, "_FEW", -1):
        decoded = decode(polled, mapping, table)
    with patch.object(decoding, "_FEW", len(messages)):
        exact = decode(polled, mapping, exact_table)
    assert table.names == exact_table.names
    return polled, decoded, exact, table


def check(messages, mapping, keys=None):
    polled, decoded, exact, table = both(messages, mapping, keys)
    assert bits(decoded) == bits(exact)
    rows, dead = naive_decode(polled, mapping)
    assert rows_of(decoded, table) == rows
    assert dead_of(decoded) == dead


def batch_of(seed, mapping, size):
    """Messages for a mapping, and their keys."""
    rng = random.Random(seed)
    names = AWKWARD if mapping.channels == AWKWARD else CHANNELS
    messages = [message(rng, names, mapping.time_unit, bool(mapping.values)) for _ in range(size)]
    return messages, [rng.choice(KEYS) for _ in range(size)]


@pytest.mark.parametrize("name", MAPPINGS)
@SOME
@given(st.integers(0, 2**32))
def test_messages_decode_as_the_naive_decoder_says(name, seed):
    messages, keys = batch_of(seed, MAPPINGS[name], 100)
    for text, key in zip(messages, keys, strict=True):
        check([text], MAPPINGS[name], [key])
    check(messages, MAPPINGS[name], keys)


@pytest.mark.parametrize("name", [name for name in MAPPINGS if name != "awkward"])
def test_most_of_these_messages_are_good_and_read_by_the_scanner(name):
    """Or else the test above would compare the exact path with itself."""
    messages, keys = batch_of(0, MAPPINGS[name], 1000)
    with patch.object(decoding, "read_message", wraps=decoding.read_message) as exact:
        decoded = decode(polled_of(messages, keys, LOG_NS), MAPPINGS[name], AssetTable({}))
    assert exact.call_count < 600
    assert len(decoded.rows) > 500


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
@example(0)
def test_a_number_reads_to_the_same_float32_both_ways(seed):
    rng = random.Random(seed)
    check([f'{{"asset":"a","ts":1,"values":{{"s0":{number(rng)}}}}}'.encode() for _ in range(20)], MAPPINGS["plain"])


def test_every_odd_number_and_time_reads_the_same_both_ways():
    body = '{{"asset":"a","ts":{},"values":{{"s0":{}}},"extra":{}}}'
    in_place = [("1", number, "1") for number in ODD_NUMBERS.split()] + [("1", "1", n) for n in ODD_NUMBERS.split()]
    in_place += [(time, "1", "1") for time in (ODD_TIMES + ODD_NUMBERS).split()]
    batch = [body.format(*parts).encode() for parts in in_place]
    for unit in ("ns", "us", "ms", "s", "iso"):
        check(batch, FieldMapping(CHANNELS, values="values", time_unit=unit))
    assets = [f'{{"asset":{number},"ts":1,"values":[1,2,3,4]}}'.encode() for number in ODD_ASSETS]
    check(assets, MAPPINGS["plain"])


def neighbours(x):
    """Decimal texts on, just below and just above the border between a float32 and the next one."""
    border = (float(x) + float(np.nextafter(x, np.float32(np.inf)))) / 2
    return [f"{v:.17g}" for v in (border, np.nextafter(border, -np.inf), np.nextafter(border, np.inf))]


@SOME
@given(st.floats(0, 2.0**60, width=32))
def test_a_number_on_the_border_of_two_floats_reads_the_same_both_ways(x):
    for text in neighbours(np.float32(x)):
        check([f'{{"asset":"a","ts":1,"values":[{text},-{text},{text}1,{text}e0]}}'.encode()], MAPPINGS["plain"])


@SOME
@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), max_size=6))
def test_how_messages_are_cut_into_polls_changes_nothing(seed, cuts):
    mapping = MAPPINGS["values"]
    messages, _ = batch_of(seed, mapping, 30)
    whole_table, table = AssetTable({}), AssetTable({})
    whole = decode(polled_of(messages, log_ns=LOG_NS), mapping, whole_table)
    edges = [0, *sorted(cuts), 30]
    parts = [
        decode(polled_of(messages[begin:end], log_ns=LOG_NS, first_offset=100 + begin), mapping, table)
        for begin, end in itertools.pairwise(edges)
    ]
    assert table.names == whole_table.names
    for field in ("asset", "ts_ns", "x", "observed", "quality", "offset", "row"):
        joined = np.concatenate([getattr(part.rows, field) for part in parts])
        assert joined.tobytes() == getattr(whole.rows, field).tobytes()
    assert [d for part in parts for d in part.dead] == whole.dead


COMMON = {
    "values": [
        b'{"asset":"p1","ts":1790000000000,"values":[1,-2.5,3e2,null]}',
        b' { "ts" : 1790000000000.5 , "values" : { "s3" : 0.12345678901234568 , "s0" : 1 } , "asset" : 17 }\n',
        '{"asset":"püмp","unit":"°C","ok":true,"n":-1.5e3,"ts":1,"values":{"weg °":1,"new":2}}'.encode(),
        b'{"asset":"p1","ts":1790000000000,"values":{}}',
    ],
    "top": [b'{"s0":1,"asset":"p1","ts":1790000000.1234567,"s3":null}', b'{"asset":"p1","ts":1.79e9}'],
    "fields": [b'{"ts":1790000000000000,"values":{"temperature":12.5}}'],
    "one asset": [b'{"ts":"2026-01-31T23:59:59.5Z","values":{}}', b'{"ts":"2026-01-31 23:59:59+01:00","values":{}}'],
    "long": [b'{"asset":"p1","ts":1790000000000000001,"sensor":"temperature","value":-1.5}'],
}


@pytest.mark.parametrize("name", COMMON)
def test_the_shapes_that_feeds_send_never_see_the_exact_path(name):
    batch = COMMON[name] * 3
    polled = polled_of(batch, [b"key"] * len(batch), LOG_NS)
    unread = patch.object(decoding, "read_message", side_effect=AssertionError("left to the exact path"))
    with unread, patch.object(decoding, "_FEW", -1):
        decoded = decode(polled, MAPPINGS[name], AssetTable({}))
    assert len(decoded.rows) == len(batch)
    check(batch, MAPPINGS[name], [b"key"] * len(batch))


def test_every_cut_and_every_changed_bit_of_a_message_decodes_the_same_both_ways():
    whole = COMMON["values"][1] + COMMON["values"][2]
    for body, mapping in ((COMMON["values"][2], "values"), (COMMON["long"][0], "long"), (whole, "values")):
        cuts = [body[:at] for at in range(len(body))]
        flips = [
            body[:at] + bytes([body[at] ^ (1 << bit)]) + body[at + 1 :] for at in range(len(body)) for bit in range(8)
        ]
        check(cuts + flips, MAPPINGS[mapping])
