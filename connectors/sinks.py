"""Sinks for a terminal, a file, and several at once. What comes again, by (id, seq), is dropped where it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from connectors.alert_json import decode_alert, decode_dead_letter, encode_alert, encode_dead_letter, rfc3339
from connectors.durable import GrowingFile
from pipeline.errors import PipelineError, SinkUnavailable
from pipeline.protocols import Sink
from pipeline.values import Alert, DeadLetter


class NdjsonSink:
    """Appends alerts to one file and dead letters to another, a JSON object a line; on disk when `write` returns.

    On opening, a line that a crash left unfinished is cut off and the rest is read, so that what comes again after a
    restart is not written twice. Alerts are told apart by (id, seq), dead letters by where in the log they lie.

    Parameters
    ----------
    alerts, dead : paths of the two files, made if need be; None: those are not kept here.
    """

    def __init__(self, alerts: Path | None, dead: Path | None = None) -> None:
        self._seen: dict[str, int] = {}  # alert id -> newest seq
        self._last: dict[tuple[str, int], tuple[int, int]] = {}  # (topic, partition) -> newest (offset, row)
        self._alerts = None if alerts is None else _open_lines(alerts)
        self._dead = None if dead is None else _open_lines(dead)
        for line in self._alerts.lines() if self._alerts else ():
            self._note(decode_alert(line))
        for line in self._dead.lines() if self._dead else ():
            self._note_dead(decode_dead_letter(line))

    def write(self, alerts: Sequence[Alert], dead: Sequence[DeadLetter]) -> None:
        """Append what is new and wait until it is on disk.

        Raises
        ------
        SinkUnavailable : the disk did not take it; what was written of it is cut off again.
        """
        if self._alerts is not None:
            new = list({(a.id, a.seq): a for a in alerts if a.seq > self._seen.get(a.id, -1)}.values())
            _append_lines(self._alerts, [encode_alert(a) for a in new])
            for alert in new:
                self._note(alert)
        if self._dead is not None:
            fresh = [d for d in dead if _where(d) > self._last.get((d.topic, d.partition), (-1, -2))]
            fresh.sort(key=_where)
            _append_lines(self._dead, [encode_dead_letter(d) for d in fresh])
            for letter in fresh:
                self._note_dead(letter)

    def close(self) -> None:
        """Close the files."""
        for file in (self._alerts, self._dead):
            if file is not None:
                file.close()

    def _note(self, alert: Alert) -> None:
        self._seen[alert.id] = max(alert.seq, self._seen.get(alert.id, -1))

    def _note_dead(self, letter: DeadLetter) -> None:
        key = (letter.topic, letter.partition)
        self._last[key] = max(_where(letter), self._last.get(key, (-1, -2)))


class TextSink:
    """Writes alerts to one stream and dead letters to another, for people or for programs.

    Parameters
    ----------
    out : takes alerts; standard output, as a rule.
    errors : takes dead letters; standard error, as a rule.
    as_json : one JSON object a line; else one readable line each.
    """

    def __init__(self, out: TextIO, errors: TextIO, *, as_json: bool) -> None:
        self._out = out
        self._errors = errors
        self._as_json = as_json

    def write(self, alerts: Sequence[Alert], dead: Sequence[DeadLetter]) -> None:
        """Write and flush.

        Raises
        ------
        SinkUnavailable : nobody reads the stream any more.
        """
        try:
            for alert in alerts:
                self._out.write((encode_alert(alert).decode() if self._as_json else alert_line(alert)) + "\n")
            for letter in dead:
                text = encode_dead_letter(letter).decode() if self._as_json else dead_letter_line(letter)
                self._errors.write(text + "\n")
            self._out.flush()
            self._errors.flush()
        except OSError as error:
            raise SinkUnavailable(f"cannot write alerts to the output stream: {error}") from error

    def close(self) -> None:
        """Leave the streams open: they are the caller's."""


class TeeSink:
    """Gives everything to several sinks; one that fails does not keep it from the others."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, alerts: Sequence[Alert], dead: Sequence[DeadLetter]) -> None:
        """Write to each sink, then raise the first error, if there was one; writing again is then safe."""
        errors: list[PipelineError] = []
        for sink in self._sinks:
            try:
                sink.write(alerts, dead)
            except PipelineError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Close each sink."""
        for sink in self._sinks:
            sink.close()


def alert_line(alert: Alert) -> str:
    """Return an alert as one line for people."""
    channels = "  ".join(f"{c.name} {c.share:.0%}" for c in alert.top_channels if c.share >= 0.005)
    when = rfc3339(alert.ts_ns)[:23] + "Z"
    parts = [when, alert.state.upper(), alert.asset, alert.kind, alert.severity, f"{alert.ratio:.2f}x"]
    if alert.state != "open":
        parts.append(f"peak {alert.peak_ratio:.2f}x")
    return "  ".join([*parts, *([channels] if channels else []), f"since {rfc3339(alert.onset_ns)[:23]}Z", alert.id])


def dead_letter_line(letter: DeadLetter) -> str:
    """Return a dead letter as one line for people."""
    row = "" if letter.row < 0 else f" row {letter.row}"
    where = f"{letter.topic}[{letter.partition}] offset {letter.offset}{row}"
    return f"dead letter: {where}: {letter.detail} ({letter.reason})"


def _open_lines(path: Path) -> GrowingFile:
    file = GrowingFile(path)
    file.cut_unfinished_line()
    return file


def _append_lines(file: GrowingFile, lines: Sequence[bytes]) -> None:
    if not lines:
        return
    size = file.size
    try:
        file.append(b"".join(line + b"\n" for line in lines))
        file.sync()
    except SinkUnavailable:
        file.truncate(size)
        raise


def _where(letter: DeadLetter) -> tuple[int, int]:
    return (letter.offset, letter.row)
