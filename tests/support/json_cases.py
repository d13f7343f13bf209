"""JSON messages out of a seeded generator: mostly well-formed, in every shape, with odd and broken ones among them."""

import json
from datetime import UTC, datetime, timedelta

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
GOOD_ASSETS = ['"p1"', '"p2"', '"püмp 1"', "7"]
ODD_HOLDERS = ["null", "[]", "{}", "3", '"x"', "{,}", '{"s0":1,}', "[1,2,3,4,]", "[1,2,3]", "[1,2,3,4,5]"]
EXTRAS = ['"°C"', "12.50", "true", "null", "[]", "{}", "[1,[2,[]],{}]", '{"a":[1,{}], "b" : {"c":null}}']
EXTRAS += ["[" * 59 + "]" * 59, '{"ts":1,"s0":"x","a":[{"values":3}]}']
ODD_EXTRAS = ['"\\u00b0C"', "1e999", "01", "nul", "-", '"x', "[,1]", "[1,]", '{"a":1,}', '{"a"}', "{1:2}", "[1 2]"]
ODD_EXTRAS += ["{]", "[}", "[[1]", "{}}", "[" * 61 + "]" * 61, '{"a":' * 70 + "1" + "}" * 70]
KEYS = [b"k1", "kл".encode(), b"k2"] * 6 + [b"", None, b"\xff", b"\xed\xa0\x80", b"a\0b"]
INSERTS = [b"\0", b"\n", b"\x01", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b" ", b"}", b",", b"0", b"\\"]
_SCALE = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}


def one_in(rng, n):
    return rng.randrange(n) == 0


def number(rng):
    if one_in(rng, 200):
        return rng.choice(ODD_NUMBERS.split())
    if one_in(rng, 100):
        return f"{rng.uniform(-1, 1) * 10.0 ** rng.randrange(-45, 45):.{rng.randrange(1, 20)}g}"
    kind = rng.randrange(6)
    if kind == 0:
        return repr(rng.uniform(-200, 200))
    if kind == 1:
        return str(rng.randrange(-(10 ** rng.randrange(1, 19)), 10**18))
    if kind == 2:
        return f"{rng.uniform(-1, 1) * 10.0 ** rng.randrange(-5, 9):.{rng.randrange(1, 19)}g}"
    if kind == 3:
        return "null"
    return str(round(rng.uniform(-200, 200), 4))


def time(rng, unit):
    if one_in(rng, 30):
        return rng.choice(ODD_TIMES.split())
    ns = LOG_NS + rng.randrange(2 * 10**9)
    if unit == "iso":
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)
        zone = rng.choice(["Z", "+05:30", "-23:59", "", "z"])
        return '"' + when.replace(tzinfo=None).isoformat(sep=rng.choice("T ")) + zone + '"'
    whole, part = divmod(ns, _SCALE[unit])
    digits = len(str(_SCALE[unit])) - 1
    return f"{whole}.{part:0{digits}d}" if digits and one_in(rng, 3) else str(whole)


def written(rng, members):
    """An object of members (name, value), in some order; now and then one is left out, or is there twice."""
    chosen = [m for m in members if not one_in(rng, 40)]
    if one_in(rng, 20):
        chosen.append(rng.choice(members))
    if one_in(rng, 3):
        rng.shuffle(chosen)
    blank = rng.choice(["", "", "", " ", "\t", "\r\n"])
    return "{" + ",".join(f'{blank}"{name}"{blank}:{blank}{value}{blank}' for name, value in chosen) + "}"


def quoted(names):
    return [json.dumps(name, ensure_ascii=False)[1:-1] for name in names]


def readings(rng, names):
    unit = rng.choice(ODD_EXTRAS if one_in(rng, 8) else EXTRAS)
    extras = [("s0x", number(rng)), ("unit", unit), ("temp\\u0065rature", number(rng))]
    return [(name, number(rng)) for name in quoted(names)] + (extras[: rng.randrange(3)] if one_in(rng, 3) else [])


def holder(rng, names):
    if one_in(rng, 30):
        return rng.choice(ODD_HOLDERS)
    if one_in(rng, 3):
        return "[" + rng.choice([",", ", "]).join(number(rng) for _ in names) + "]"
    return written(rng, readings(rng, names))


def row(rng, names, unit, nested):
    """One row in a shape that fits wide and long mappings alike; `nested`: with a values field."""
    asset = rng.choice(ODD_ASSETS if one_in(rng, 30) else GOOD_ASSETS)
    sensor = rng.choice(['"s9"', "null", "3", "[]"]) if one_in(rng, 30) else f'"{rng.choice(quoted(names))}"'
    members = [("asset", asset), ("ts", time(rng, unit))]
    members += [("values", holder(rng, names))] if nested or one_in(rng, 10) else []
    members += readings(rng, names)
    members += [("sensor", sensor), ("value", number(rng))]
    return written(rng, members if one_in(rng, 2) else [m for m in members if not one_in(rng, 6)])


def message(rng, names, unit, nested):
    """A message, often as it should be, sometimes an array of rows, sometimes damaged, rarely nothing."""
    text = row(rng, names, unit, nested)
    if one_in(rng, 20):
        rows = [
            text,
            *(row(rng, names, unit, nested) if rng.randrange(4) else number(rng) for _ in range(rng.randrange(4))),
        ]
        text = rng.choice(["[", " [ "]) + rng.choice([",", " ,\n"]).join(rows) + rng.choice(["]", " ]\t"])
    body = (rng.choice(["", "", " ", "\n"]) + text + rng.choice(["", "", " ", "\r\n"])).encode()
    return damaged(rng, body) if one_in(rng, 10) else body


def damaged(rng, body):
    at = rng.randrange(len(body))
    kind = rng.randrange(5)
    if kind == 0:
        return body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
    if kind == 1:
        return body[:at]
    if kind == 2:
        return body * 2
    if kind == 3:
        return rng.choice([b"", None])
    return body[:at] + rng.choice(INSERTS) + body[at:]
