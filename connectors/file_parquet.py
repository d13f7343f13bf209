"""Parquet files as one log of rows: sorted by name, read batch by batch, only the mapped columns."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.file_blocks import BLOCK_ROWS, Block
from pipeline.errors import SchemaError, StateError
from pipeline.mapping import FieldMapping, mapping_problem


class ParquetLog:
    """One file, or several in the order given; rows are numbered through all of them.

    Raises
    ------
    SchemaError : a file is no Parquet, or lacks a mapped column; lists those it has.
    """

    def __init__(self, paths: Sequence[Path], mapping: FieldMapping) -> None:
        self._paths = list(paths)
        self._columns = list(mapping.columns)
        self._rows = [_rows_in(path, mapping) for path in paths]

    def read(self, start: int) -> Generator[Block | None]:
        """Yield batches from row `start` on."""
        if start > sum(self._rows):
            raise StateError(
                f"{self._paths[0]} and its like have {sum(self._rows)} rows, the saved position is {start}: "
                "these are not the files they were"
            )
        first = 0
        for path, rows in zip(self._paths, self._rows, strict=True):
            if first + rows > start:
                yield from self._read_file(path, first, max(0, start - first))
            first += rows

    def _read_file(self, path: Path, first: int, skip: int) -> Iterator[Block]:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            at, group = 0, 0
            while group < len(groups) and at + groups[group] <= skip:
                at += groups[group]
                group += 1
            rest = range(group, len(groups))
            for batch in file.iter_batches(BLOCK_ROWS, row_groups=list(rest), columns=self._columns):
                if at + len(batch) > skip:
                    cut = max(0, skip - at)
                    yield Block(first + at + cut, batch=_plain(batch).slice(cut))
                at += len(batch)


def _rows_in(path: Path, mapping: FieldMapping) -> int:
    try:
        with pq.ParquetFile(path) as file:
            found, rows = file.schema_arrow.names, int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error
    problem = mapping_problem(found, mapping)
    if problem is not None:
        raise SchemaError(f"{path}: {problem}")
    return rows


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch without dictionaries: each message carries its own values."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
