"""What a command says: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Console:
    """The two streams of a command.

    Attributes
    ----------
    as_json : data are JSON, one object a line, instead of text for people.
    quiet : of the rest only warnings are said.
    verbose : details are said too.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def line(self, text: str) -> None:
        """Write one line of data as it is."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def record(self, record: Mapping[str, Any]) -> None:
        """Write one result: a JSON object, or a line for each of its entries."""
        if self.as_json:
            self.line(json.dumps(record, default=str))
            return
        width = max(map(len, record), default=0)
        for key, value in record.items():
            self.line(f"{key:<{width}}  {_text(value)}".rstrip())

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Write a table of `columns`; as JSON every entry of every row, one object a line."""
        if self.as_json:
            for row in rows:
                self.line(json.dumps(row, default=str))
            return
        table = [list(columns), *[[_text(row.get(name)) for name in columns] for row in rows]]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            self.line("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())

    def say(self, text: str) -> None:
        """Tell the person who watches, unless they asked for quiet."""
        if not self.quiet:
            self.warn(text)

    def detail(self, text: str) -> None:
        """Tell what is of interest only to those who asked for more."""
        if self.verbose:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Tell in any case."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar while something long is done, where standard error is a terminal; nothing elsewhere.

        Yields a function to be called with how much more is done. `total` None: how much there is, is not known.
        """
        if self.quiet or not sys.stderr.isatty():
            yield _nowhere
            return
        from rich.console import Console as Terminal
        from rich.progress import Progress

        with Progress(console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)


def _nowhere(_: int) -> None:
    """Show nothing."""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return str(value)
