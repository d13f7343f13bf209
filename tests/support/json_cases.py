"""JSON messages as hypothesis strategies: well-formed, odd and broken."""

import json

from hypothesis import strategies as st

CHANNELS = ("s0", "temperature", "weg °", "s3")
AWKWARD = ('quo"te', "back\\slash")  # names that messages write with escapes
LOG_NS = 1_790_000_000_000_000_000
ODD_NUMBERS = """\
    0 -0 0.0 -0.0 1 -1 01 +1 .5 1. 1e5 1E+5 1e-5 1e 1e+ -  --1 1e22 1e23 1e39 1e-39 1e400 -1e400 1e-400
    1e9999
    0e99 123456789012345678 1234567890123456789 12345678901234567890 9999999999999999999
    9.999999999999999999 0.9999999999999999999 9223372036854775807 9223372036854775808 922337203685477580.8
    340282356779733661637539395458142568447
    340282356779733661637539395458142568448 0.1 0.10000000149011612 0.12345678901234568 0.012345678901234568
    0.0000000000000000000001 0.00000000000000000000012345678901234567 9007199254740993 9007199254740993.0
    16777217 16777217.0 16777216.999999999 33554433.5 0.30000001192092896 18446744073709551616 18446744073709551616.5
    100000000 99999999 12345678.12345678 1234567812345678 0x10 1_000 1,5 NaN -NaN nan Infinity -Infinity inf null true
    false nul nulll tru "1" "" [] {} [1] {"a":1} 1.5e3.2 1e1.5
    １ ٣ 50.0 50.000000001 -50.000002 -50.00001 1e3 -1e3
"""
numbers = st.one_of(
    st.floats(width=32).map(repr),
    st.floats(allow_nan=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(-1000, 1000, places=4).map(str),
    st.sampled_from(ODD_NUMBERS.split()),
)
ODD_ASSETS = [
    '"p1"',
    '"p2"',
    '"püмp 1"',
    '""',
    "7",
    "07",
    "-7",
    "7.5",
    "12345678901234567890",
    "null",
    "true",
    '"p\\u0031"',
    '"😀"',
    "{}",
]
names = st.sampled_from(ODD_ASSETS)
ODD_TIMES = """\
    1.79e12 1.5 2.5 -2.5 0.0000000005 0.0000000015 0.00000000150 1e-400 4611686018427387904 1e30
    NaN null true
    4611686018427387905 9223372036854775808 -4611686018427387904 "1790000000000" 9999999999999999999
    "2026-02-29T00:00:00Z"
    "2024-02-29T23:59:59.5Z" "2026-01-01T00:00:00.1234567895" "2026-01-01T00:00:00.123456789" "2026-01-01t00:00:00z"
    "2026-01-01T24:00:00Z" "2026-01-01T00:00:00." "2026-1-1T00:00:00" "2026-01-01T00:00:00-23:59" "2026-01-01"
    "2026-01-01T00:00:00+24:00" "2026-01-01T00:00:60Z" "0001-01-01T00:00:00Z" "9999-12-31T23:59:59Z"
    "1823-11-12T00:00:00Z" "2115-12-31T23:59:59Z" "2116-02-20T23:53:38.427387904Z" "2116-02-20T23:53:38.427387905Z"
    "1900-02-29T00:00:00Z" "２026-01-01T00:00:00Z" "2026-01-01T00:00:00+0100" "2026-01-01T00:00:00\\u005a" {} []
"""
times = st.one_of(
    st.integers(1_790_000_000_000, 1_790_000_010_000).map(str),
    st.integers(LOG_NS, LOG_NS + 2 * 10**9).map(str),
    st.decimals(1_790_000_000, 1_790_000_001, places=7).map(str),
    st.datetimes().map(lambda d: f'"{d.isoformat()}Z"'),
    st.datetimes().map(lambda d: f'"{d.isoformat(sep=" ")}+05:30"'),
    st.sampled_from(ODD_TIMES.split()),
)
blanks = st.sampled_from(["", "", "", " ", "\t", "\r\n", "  "])


def member(name, values):
    return st.tuples(st.just(name), values)


@st.composite
def objects(draw, members, sometimes=()):
    """An object of (name, value) strategies in some order; now and then one is missing, twice there, or new."""
    chosen = [draw(m) for m in members if draw(st.integers(0, 19))]
    chosen += [draw(m) for m in (*members, *sometimes) if not draw(st.integers(0, 9))]
    if not draw(st.integers(0, 2)):
        chosen = draw(st.permutations(chosen))
    blank = draw(blanks)
    return "{" + ",".join(f'{blank}"{name}"{blank}:{blank}{value}{blank}' for name, value in chosen) + "}"


CHANNEL_TEXTS = [json.dumps(name, ensure_ascii=False)[1:-1] for name in (*CHANNELS, *AWKWARD)]
readings = [member(name, numbers) for name in CHANNEL_TEXTS]
extras = [
    member(
        "unit",
        st.sampled_from(['"°C"', '"\\u00b0C"', "12.50", "1e999", "01", "true", "nul", "null", '{"a":[1,{}]}', "[]"]),
    ),
    member("temp\\u0065rature", numbers),
    member("s0x", numbers),
]
holders = st.one_of(
    objects(readings, extras),
    st.lists(numbers, min_size=4, max_size=4).map(lambda v: "[" + ", ".join(v) + "]"),
    st.lists(numbers, max_size=5).map(lambda v: "[" + ",".join(v) + "]"),
    st.sampled_from(["null", "[]", "{}", "3", '"x"', "{,}", '{"s0":1,}', "[1,2,3,4,]"]),
)
sensors = st.sampled_from([json.dumps(name) for name in CHANNELS] + ['"s9"', '"weg °"', "null", "3", "[]"])
messages = objects(
    [member("asset", names), member("ts", times), member("values", holders), *readings[:4]],
    [member("sensor", sensors), member("value", numbers), *extras],
)
long_messages = objects(
    [member("asset", names), member("ts", times), member("sensor", sensors), member("value", numbers)], extras
)


@st.composite
def texts(draw, kind):
    """A message, often as it should be, sometimes an array of them, sometimes damaged."""
    body = draw(kind)
    if not draw(st.integers(0, 7)):
        rows = [body, *draw(st.lists(st.one_of(kind, numbers), max_size=3))]
        body = draw(blanks) + "[" + draw(blanks) + (draw(blanks) + ",").join(rows) + draw(blanks) + "]"
    body = (draw(blanks) + body + draw(blanks)).encode()
    if not draw(st.integers(0, 3)):
        body = draw(damaged(body))
    return body


@st.composite
def damaged(draw, body):
    at = draw(st.integers(0, len(body)))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "twice", "none"]))
    if kind == "flip" and at < len(body):
        return body[:at] + bytes([body[at] ^ (1 << draw(st.integers(0, 7)))]) + body[at + 1 :]
    if kind == "cut":
        return body[:at]
    if kind == "insert":
        return (
            body[:at]
            + draw(st.sampled_from([b"\0", b"\n", b"\x01", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b" ", b"}"]))
            + body[at:]
        )
    return body * 2 if kind == "twice" else draw(st.sampled_from([b"", None]))


keys = st.one_of(st.none(), st.sampled_from([b"", b"k1", "kл".encode(), b"\xff", b"\xed\xa0\x80", b"a\0b"]))
