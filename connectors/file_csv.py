"""CSV as a log of rows. A line that is no row goes on as it came, with its number: it aborts nothing, shifts nothing.

Lines are counted before they are parsed, so a quoted line end is not supported: a line with an odd number of quotes
is no row. Blank lines are numbered but are nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from connectors.file_blocks import BLOCK_ROWS, Block
from connectors.file_lines import LineReader, runs, skip_to
from pipeline.errors import SchemaError
from pipeline.mapping import FieldMapping, mapping_problem

ABSENT = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None")  # cells that stand for no value
_DELIMITERS = (",", ";", "\t", "|")


class CsvLog:
    """A CSV file with a header line; rows are numbered from the line after it.

    Parameters
    ----------
    delimiter : between cells.
    follow : the file grows.

    Raises
    ------
    SchemaError : a mapped column is not in the header, or is there twice; lists the columns.
    """

    def __init__(self, path: Path, mapping: FieldMapping, *, delimiter: str = ",", follow: bool = False) -> None:
        self._path = path
        self._delimiter = delimiter
        self._max_bytes = mapping.max_bytes
        self._follow = follow
        self._header = self._read_header(mapping)
        self._types = _types(mapping)

    def read(self, start: int) -> Generator[Block | None]:
        """Yield rows from number `start` on; None: nothing more is there now."""
        reader = LineReader(self._path, self._max_bytes, follow=self._follow)
        try:
            reader.take(1)
            skip_to(reader, start, self._path)
            while True:
                lines = reader.take(BLOCK_ROWS - start % BLOCK_ROWS)
                if not lines and not self._follow:
                    return
                for run in runs(lines, start):
                    yield from self._blocks(list(run.lines), run.first)
                if not lines:
                    yield None
                    reader.check_same_file()
                start += len(lines)
        finally:
            reader.close()

    def _read_header(self, mapping: FieldMapping) -> list[str]:
        reader = LineReader(self._path, self._max_bytes)
        lines = reader.take(1)
        reader.close()
        text = lines[0].decode("utf-8-sig", "replace") if lines else ""
        header = next(csv.reader([text], delimiter=self._delimiter), [])
        problem = mapping_problem(header, mapping)
        twice = [name for name in mapping.columns if header.count(name) > 1]
        if problem is None and twice:
            problem = f"column {', '.join(twice)} is there more than once: give each a name of its own"
        if problem is not None:
            other = max(_DELIMITERS, key=text.count)
            hint = f" (is the delimiter {other!r}?)" if len(header) == 1 and text.count(other) else ""
            raise SchemaError(f"{self._path}: {problem}{hint}")
        return header

    def _blocks(self, lines: list[bytes], first: int) -> Iterator[Block]:
        """Yield the rows among the lines as batches, and the lines that are none by themselves, in order."""
        bad = _unbalanced(lines) | {i for i, line in enumerate(lines) if len(line) > self._max_bytes}
        batch, no_rows = self._parse([line for i, line in enumerate(lines) if i not in bad])
        kept = [i for i in range(len(lines)) if i not in bad]
        bad.update(kept[i] for i in no_rows)
        begin = taken = 0
        for stop in (*sorted(bad), len(lines)):
            if stop > begin:
                yield Block(first + begin, batch=batch.slice(taken, stop - begin))
                taken += stop - begin
            if stop < len(lines):
                yield Block(first + stop, lines[stop : stop + 1])
            begin = stop + 1

    def _parse(self, lines: list[bytes]) -> tuple[pa.RecordBatch, set[int]]:
        """Return the rows among the lines, and the indices of the lines that are none."""
        bad: set[int] = set()
        if not lines:
            return pa.RecordBatch.from_pylist([], pa.schema(list(self._types.items()))), bad
        try:
            table = self._read_csv(lines, self._types, bad)
        except pa.ArrowInvalid:
            bad.clear()
            text = self._read_csv(lines, dict.fromkeys(self._types, pa.binary()), bad)
            kept = [i for i in range(len(lines)) if i not in bad]
            table, no_rows = _convert(text, self._types)
            bad.update(kept[i] for i in no_rows)
        return _one_batch(table), bad

    def _read_csv(self, lines: list[bytes], types: dict[str, pa.DataType], bad: set[int]) -> pa.Table:
        """Parse lines; those with another number of cells go into `bad`."""

        def skip(row: pv.InvalidRow) -> str:
            bad.add(row.number - 1)
            return "skip"

        body = b"\n".join(lines) + b"\n"
        return pv.read_csv(
            pa.BufferReader(body),
            pv.ReadOptions(column_names=self._header, use_threads=False, block_size=len(body) + 1),
            pv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=skip),
            pv.ConvertOptions(
                include_columns=list(types),
                column_types=types,
                null_values=ABSENT,
                strings_can_be_null=False,
                quoted_strings_can_be_null=True,
            ),
        )


def _types(mapping: FieldMapping) -> dict[str, pa.DataType]:
    """Return the type of each mapped column: numbers, and text for names and written times."""
    types = dict.fromkeys(mapping.columns, pa.float64())
    if mapping.asset:
        types[mapping.asset] = pa.string()
    if mapping.layout == "long":
        types[mapping.sensor] = pa.string()
    types[mapping.time] = {"iso": pa.string(), "ns": pa.int64()}.get(mapping.time_unit, pa.float64())
    return types


def _unbalanced(lines: list[bytes]) -> set[int]:
    """Return the lines in which a quote is opened and not closed: they would swallow the next ones."""
    if not any(b'"' in line for line in lines):
        return set()
    return {i for i, line in enumerate(lines) if line.count(b'"') % 2}


def _convert(raw: pa.Table, types: dict[str, pa.DataType]) -> tuple[pa.Table, set[int]]:
    """Return the rows in which every cell is of its type, and the indices of the others.

    Parameters
    ----------
    raw : the cells as bytes.
    """
    bad = {i for name in types for i in _failing(raw[name].combine_chunks(), pa.string())}
    cells = {name: _cells(_without(raw[name].combine_chunks(), bad), kind) for name, kind in types.items()}
    kept = [i for i in range(len(raw)) if i not in bad]
    no_numbers = {i for name, kind in types.items() for i in _failing(cells[name], kind)}
    columns = [_without(cells[name], no_numbers).cast(kind) for name, kind in types.items()]
    return pa.table(columns, names=list(types)), bad | {kept[i] for i in no_numbers}


def _cells(raw: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return cells as text that casts to a type as the CSV reader would: absent ones null, numbers without blanks."""
    text = raw.cast(pa.string())
    if pa.types.is_string(kind):
        return text
    return pc.if_else(pc.is_in(text, pa.array(ABSENT)), None, pc.ascii_trim(text, " \t"))


def _failing(cells: pa.Array, kind: pa.DataType) -> set[int]:
    """Return the places of the cells that do not cast to a type."""
    try:
        cells.cast(kind)
    except pa.ArrowInvalid:
        wrong = _wrong(cells.unique(), kind)
        return set(np.flatnonzero(pc.is_in(cells, pa.array(wrong, cells.type)).to_numpy(zero_copy_only=False)).tolist())
    return set()


def _wrong(values: pa.Array, kind: pa.DataType) -> list[str | bytes]:
    """Return the values that do not cast to a type: by halves, so that few among many cost little."""
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return [values[0].as_py()]
        half = len(values) // 2
        return _wrong(values.slice(0, half), kind) + _wrong(values.slice(half), kind)
    return []


def _without(cells: pa.Array, places: set[int]) -> pa.Array:
    if not places:
        return cells
    kept = np.ones(len(cells), np.bool_)
    kept[list(places)] = False
    return cells.filter(pa.array(kept))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
