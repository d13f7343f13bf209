"""What the file formats have in common: a log of rows, numbered from 0, read block by block."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows: lines as they came, one message each; or a batch, one message as a whole.

    A line in a log of batches is one that could not be made a row: it goes on as it came, for decode to refuse.
    """

    first: int  # number of the first row
    lines: Sequence[bytes] = ()
    batch: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return len(self.lines) if self.batch is None else int(self.batch.num_rows)

    def cut(self, rows: int) -> tuple[Block, Block]:
        """Return the first `rows` rows and the rest."""
        if self.batch is None:
            return Block(self.first, self.lines[:rows]), Block(self.first + rows, self.lines[rows:])
        head, rest = self.batch.slice(0, rows), self.batch.slice(rows)
        return Block(self.first, batch=head), Block(self.first + rows, batch=rest)


class FileLog(Protocol):
    """A file, or files, as a log of rows."""

    def read(self, start: int) -> Generator[Block | None]:
        """Yield the rows from number `start` on; None: nothing more is there now.

        Raises
        ------
        StateError : the log is shorter than `start`.
        """
        ...


def messages_of(block: Block, max_bytes: int) -> tuple[list[int], list[bytes]]:
    """Return offsets and bodies: lines as they are, a batch as Arrow streams of at most `max_bytes`, if rows allow."""
    if block.batch is None:
        return list(range(block.first, block.first + len(block))), list(block.lines)
    body = _arrow_stream(block.batch)
    if len(body) <= max_bytes or len(block) == 1:
        return [block.first], [body]
    head, rest = block.cut(len(block) // 2)
    offsets, bodies = messages_of(head, max_bytes)
    more_offsets, more_bodies = messages_of(rest, max_bytes)
    return offsets + more_offsets, bodies + more_bodies


def _arrow_stream(batch: pa.RecordBatch) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(out.getvalue())
