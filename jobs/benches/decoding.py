"""Messages to columns, against what the bytes alone cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from jobs.benches import fleet
from jobs.benches.measure import Ratio, Result, Trial, against, result, worst
from pipeline.decode import decode
from pipeline.mapping import FieldMapping, Format
from pipeline.state import AssetTable
from pipeline.values import Polled

_POLLS = 8  # taken in turn, so that no poll is in the cache because it was just read


def json(trial: Trial) -> Result:
    """JSON lines to asset codes, times and readings, against msgspec decoding the same lines into structs.

    Readings in an array, four digits behind the point (about 330 bytes a row), in polls of 1,024 and 8,192 messages;
    under `more` also under their names (570 bytes), and with all 17 digits of a double.
    """
    sizes = [trial.size(n, 32) for n in (1024, 8192)]
    short = [_compare(f"msgspec structs, n={n}", _array_lines(n, 4), "values", trial) for n in sizes]
    others = [
        _compare("msgspec structs, named readings", _named_lines(sizes[0]), "", trial),
        _compare("msgspec structs, 17 digits", _array_lines(sizes[0], 99), "values", trial),
    ]
    lines = worst([line for line, _ in short]) + [line for line, _ in others]
    return result("decode.json", lines, {"rows_per_s": short[0][1], "rows_per_s_named": others[0][1]})


def _compare(what: str, lines: Sequence[Sequence[bytes]], values: str, trial: Trial) -> tuple[Ratio, float]:
    mapping = fleet.chain_spec(values=values).mapping
    fields: list[tuple[str, type]] = [("asset", str), ("ts", int)]
    fields += [("values", list[float])] if values else [(name, float) for name in fleet.CHANNEL_NAMES]
    bare = msgspec.json.Decoder(msgspec.defstruct("Line", fields))
    table = AssetTable({})
    polls = [fleet.polled(some) for some in lines]
    taken = trial.rounds(
        {
            "ours": lambda i: decode(polls[i % _POLLS], mapping, table),
            "msgspec": lambda i: [bare.decode(line) for line in lines[i % _POLLS]],
        }
    )
    return against(what, taken["msgspec"] / taken["ours"]), len(polls[0]) / float(np.median(taken["ours"]))


def _array_lines(count: int, digits: int) -> list[list[bytes]]:
    g = np.random.default_rng(0)
    polls = []
    for _ in range(_POLLS):
        values = g.normal(size=(count, fleet.CHANNELS))
        message = fleet.messages(g.integers(0, fleet.ASSETS, count), 0, values.round(digits))
        polls.append([line for line in message.value if line is not None])
    return polls


def _named_lines(count: int) -> list[list[bytes]]:
    parsed = [[msgspec.json.decode(line) for line in poll] for poll in _array_lines(count, 4)]
    return [
        [
            msgspec.json.encode(
                {"asset": m["asset"], "ts": m["ts"], **dict(zip(fleet.CHANNEL_NAMES, m["values"], strict=True))}
            )
            for m in poll
        ]
        for poll in parsed
    ]


def binary(trial: Trial) -> Result:
    """Packed records of 140 bytes (asset, time, 32 float32) to codes, times and readings, against copying their bytes.

    Eight messages of 1,024 records a poll; under `more` one such message a poll, and 1,024 messages of one record. The
    same rows as Arrow (asset names, a column a channel: about 150 bytes a row) are under `more` too, against copying
    the bytes of those.
    """
    rows = trial.size(1024, 32)
    packed = [_records(rows, seed) for seed in range(_POLLS)]
    size = len(packed[0]) // rows
    singles = [packed[0][at : at + size] for at in range(0, len(packed[0]), size)]
    arrow = [_arrow_message(rows, seed) for seed in range(_POLLS)]
    records, arrows = _mapping("records"), _mapping("arrow")
    table, named = AssetTable({}), AssetTable({})
    many, one, small = _poll(packed, rows), [_poll([body], rows) for body in packed], _poll(singles, 1)
    many_arrow = _poll(arrow, rows)
    taken = trial.rounds(
        {
            "many": lambda _: decode(many, records, table),
            "copy": _copy(packed),
            "one": lambda i: decode(one[i % _POLLS], records, table),
            "small": lambda _: decode(small, records, table),
            "arrow": lambda _: decode(many_arrow, arrows, named),
            "copy_arrow": _copy(arrow),
        }
    )
    return result(
        "decode.binary",
        [
            against("memcpy of the same bytes", taken["copy"] / taken["many"]),
            against("memcpy, one message a poll", taken["copy"] / _POLLS / taken["one"]),
            against("memcpy, one record a message", taken["copy"] / _POLLS / taken["small"]),
            against("memcpy of the same rows as Arrow", taken["copy_arrow"] / taken["arrow"]),
        ],
        {
            "rows_per_s": _POLLS * rows / float(np.median(taken["many"])),
            "rows_per_s_arrow": _POLLS * rows / float(np.median(taken["arrow"])),
            "bytes_per_row": size,
        },
    )


def _mapping(message_format: Format) -> FieldMapping:
    return FieldMapping(channels=fleet.CHANNEL_NAMES, format=message_format, time_unit="ms")


def _copy(bodies: Sequence[bytes]) -> Callable[[int], object]:
    sources = [np.frombuffer(body, np.uint8) for body in bodies]
    targets = [np.empty_like(source) for source in sources]

    def copy(_: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)

    return copy


def _poll(bodies: Sequence[bytes], rows: int) -> Polled:
    n = len(bodies)
    return Polled("bench", 0, rows * np.arange(n, dtype=np.int64), np.zeros(n, np.int64), bodies, end=rows * n)


def _records(rows: int, seed: int) -> bytes:
    g = np.random.default_rng(seed)
    found = np.empty(rows, [("asset", "<i4"), ("ts", "<i8"), ("x", "<f4", (fleet.CHANNELS,))])
    found["asset"] = g.integers(0, fleet.ASSETS, rows)
    found["ts"] = fleet.FIRST_MS + 1000 * np.arange(rows)
    found["x"] = g.standard_normal((rows, fleet.CHANNELS), np.float32)
    return found.tobytes()


def _arrow_message(rows: int, seed: int) -> bytes:
    g = np.random.default_rng(seed)
    columns = {
        "asset": pa.array([f"pump-{i:05d}" for i in g.integers(0, fleet.ASSETS, rows)]),
        "ts": pa.array(fleet.FIRST_MS + 1000 * np.arange(rows)),
        **{name: pa.array(g.standard_normal(rows, np.float32)) for name in fleet.CHANNEL_NAMES},
    }
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()
