"""The atomic commit of the embedded default: a folder in which one file, replaced as a whole, says what counts.

::

    commit.json     positions, and how many bytes of each file below are committed
    alerts.ndjson   grows; one alert a line
    dead.ndjson     grows; one dead letter a line
    state-<g>.log   grows; the newest record of an asset counts; compaction starts generation g + 1
    lock            held while a process has the folder

A commit appends to the files, waits for the disk, then renames a new `commit.json` into place: that rename is the
commit. Until then the bytes are beyond what counts, and opening the folder cuts them off. So a crash at any moment
leaves the commit before it or the commit itself, never a part.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from connectors.alert_json import decode_alert, decode_dead_letter, encode_alert, encode_dead_letter
from connectors.durable import GrowingFile, sync_folder, write_beside
from connectors.state_files import StateFile
from pipeline.errors import SinkUnavailable, StateError, Unavailable
from pipeline.protocols import Batch, Restored, Sink
from pipeline.values import Alert, DeadLetter

Step = Literal["alerts", "dead", "compact", "state", "record", "replace", "after"]
_RECORD = "commit.json"
_LINES_PER_WRITE = 1000


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What `commit.json` holds. Sizes are in bytes."""

    version: Literal[1] = 1
    number: int = 0
    positions: tuple[tuple[str, int, int], ...] = ()  # topic, partition, next offset
    alerts: int = 0
    dead: int = 0
    generation: int = 0  # of the state file
    state: int = 0
    sent: dict[str, tuple[int, int]] = {}  # sink -> sizes of alerts and dead letters that it has taken

    def position_of(self) -> dict[tuple[str, int], int]:
        """Return (topic, partition) -> next offset."""
        return {(topic, partition): offset for topic, partition, offset in self.positions}


class FileCommitter:
    """Commits alerts, dead letters, state and positions together, in one folder.

    Parameters
    ----------
    folder : where; made if need be. One process at a time.
    sinks : name -> sink that is given every alert and dead letter after its commit, at least once. What a sink does
        not take is offered again at the next commit, and when the folder is opened; a new name starts with what is
        committed next.
    on_unsent : told the name of a sink and why it did not take what it was given.
    slack : bytes of outdated state that are not worth a compaction.
    reach : called before each step of a commit; tests let it raise.

    Raises
    ------
    StateError : another process has the folder, or its files do not fit together.
    SinkUnavailable : the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        sinks: Mapping[str, Sink] | None = None,
        *,
        on_unsent: Callable[[str, Unavailable], None] | None = None,
        slack: int = 64 << 20,
        reach: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._sinks = dict(sinks or {})
        self._on_unsent = on_unsent
        self._slack = slack
        self._reach = reach
        self._lock = _lock(folder)
        try:
            self._last = _first_commit(folder) if _is_new(folder) else _read_commit(folder)
            self._alerts = _open_committed(folder / "alerts.ndjson", self._last.alerts)
            self._dead = _open_committed(folder / "dead.ndjson", self._last.dead)
            self._state = StateFile(_state_path(folder, self._last.generation), self._last.state, slack)
            self._remove_other_generations()
            at_end = (self._last.alerts, self._last.dead)
            self._sent = {name: self._last.sent.get(name, at_end) for name in self._sinks}
            self._forward()
        except BaseException:
            os.close(self._lock)
            raise

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return where the partition goes on, with the newest state of its assets.

        Raises
        ------
        StateError : a saved state is damaged.
        """
        position = self._last.position_of().get((topic, partition))
        return None if position is None else Restored(position, self._state.states(topic, partition))

    def rotation(self, topic: str, partition: int) -> tuple[int, int]:
        """Return that everything that changed is saved in full."""
        return (1, 0)

    def commit(self, batch: Batch) -> None:
        """Make a batch count, as a whole.

        Raises
        ------
        SinkUnavailable : the disk did not take it; the commit before it still counts, and this one can be tried again.
        StateError : a position would go backwards; or the disk fails in a way that only a restart can judge.
        """
        positions = self._advance(batch)
        try:
            record = self._append(batch, positions)
            self._reach("record")
            new = write_beside(self._folder / _RECORD, msgspec.json.encode(record))
            self._reach("replace")
            new.replace(self._folder / _RECORD)
        except (SinkUnavailable, OSError) as error:
            self._roll_back()
            raise SinkUnavailable(f"nothing was committed to {self._folder}: {error}") from error
        except BaseException:
            self._let_go()
            raise
        self._accept(record)
        self._reach("after")
        self._forward()

    def close(self) -> None:
        """Note what the sinks have taken, close the files and let go of the folder; the sinks are the caller's."""
        if self._lock >= 0 and self._sent != self._last.sent:
            record = msgspec.structs.replace(self._last, sent=dict(self._sent))
            with suppress(OSError):  # what is not noted is sent again
                write_beside(self._folder / _RECORD, msgspec.json.encode(record)).replace(self._folder / _RECORD)
        self._let_go()

    def _let_go(self) -> None:
        self._alerts.close()
        self._dead.close()
        self._state.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def unsent(self) -> dict[str, int]:
        """Sink -> bytes of alerts and dead letters that it has not taken yet."""
        total = self._last.alerts + self._last.dead
        return {name: total - sum(sent) for name, sent in self._sent.items()}

    def _advance(self, batch: Batch) -> dict[tuple[str, int], int]:
        positions = self._last.position_of()
        for key, position in batch.positions.items():
            if position < positions.get(key, 0):
                raise StateError(f"{key[0]}[{key[1]}] would go back from offset {positions[key]} to {position}")
            positions[key] = position
        return positions

    def _append(self, batch: Batch, positions: Mapping[tuple[str, int], int]) -> Commit:
        """Write what the batch adds beyond what counts; return the record that will make it count."""
        self._reach("alerts")
        _append_lines(self._alerts, [encode_alert(a) for a in batch.alerts])
        self._reach("dead")
        _append_lines(self._dead, [encode_dead_letter(d) for d in batch.dead])
        self._reach("compact")
        generation = self._last.generation
        if self._state.wasteful():
            generation += 1
            old, self._state = self._state, self._state.compact(_state_path(self._folder, generation))
            old.close()
        self._reach("state")
        self._state.append(batch.states)
        return Commit(
            number=self._last.number + 1,
            positions=tuple((topic, partition, at) for (topic, partition), at in sorted(positions.items())),
            alerts=self._alerts.size,
            dead=self._dead.size,
            generation=generation,
            state=self._state.size,
            sent=dict(self._sent),
        )

    def _accept(self, record: Commit) -> None:
        grown = record.generation != self._last.generation
        self._last = record
        self._state.accept()
        try:
            sync_folder(self._folder)
        except OSError as error:
            self._let_go()
            raise StateError(f"cannot tell whether a commit to {self._folder} is on disk: start again") from error
        if grown:
            self._remove_other_generations()

    def _roll_back(self) -> None:
        """Cut off what was appended, so that the commit can be tried again."""
        try:
            self._alerts.truncate(self._last.alerts)
            self._dead.truncate(self._last.dead)
            committed = _state_path(self._folder, self._last.generation)
            if self._state.path == committed:
                self._state.roll_back(self._last.state)
            else:
                self._state.close()
                self._state = StateFile(committed, self._last.state, self._slack)
                self._remove_other_generations()
        except (OSError, SinkUnavailable) as error:
            self._let_go()
            raise StateError(f"cannot undo a failed commit to {self._folder}: {error}; start again") from error

    def _remove_other_generations(self) -> None:
        for path in self._folder.glob("state-*.log"):
            if path != self._state.path:
                with suppress(OSError):  # tried again when the folder is opened
                    path.unlink()

    def _forward(self) -> None:
        """Offer each sink what it has not taken yet."""
        for name, sink in self._sinks.items():
            try:
                self._forward_to(name, sink)
            except Unavailable as error:
                if self._on_unsent is not None:
                    self._on_unsent(name, error)

    def _forward_to(self, name: str, sink: Sink) -> None:
        alerts, dead = self._sent[name]
        for lines, size in _blocks(self._alerts, alerts, self._last.alerts):
            sink.write([decode_alert(line) for line in lines], [])
            alerts += size
            self._sent[name] = (alerts, dead)
        for lines, size in _blocks(self._dead, dead, self._last.dead):
            sink.write([], [decode_dead_letter(line) for line in lines])
            dead += size
            self._sent[name] = (alerts, dead)


def read_alerts(folder: Path) -> Iterator[Alert]:
    """Yield the alerts that are committed in a folder, in order; a process may be committing to it."""
    for line in _committed_lines(folder / "alerts.ndjson", _read_commit(folder).alerts):
        yield decode_alert(line)


def read_dead_letters(folder: Path) -> Iterator[DeadLetter]:
    """Yield the dead letters that are committed in a folder, in order; a process may be committing to it."""
    for line in _committed_lines(folder / "dead.ndjson", _read_commit(folder).dead):
        yield decode_dead_letter(line)


def _committed_lines(path: Path, size: int) -> Iterator[bytes]:
    if not size:
        return
    with path.open("rb") as file:
        while file.tell() < size:
            yield file.readline()


def _blocks(file: GrowingFile, start: int, stop: int) -> Iterator[tuple[list[bytes], int]]:
    lines = file.lines(start, stop)
    while block := list(islice(lines, _LINES_PER_WRITE)):
        yield block, sum(len(line) + 1 for line in block)


def _append_lines(file: GrowingFile, lines: list[bytes]) -> None:
    if lines:
        file.append(b"".join(line + b"\n" for line in lines))
        file.sync()


def _state_path(folder: Path, generation: int) -> Path:
    return folder / f"state-{generation:06d}.log"


def _open_committed(path: Path, size: int) -> GrowingFile:
    file = GrowingFile(path)
    if file.size < size:
        file.close()
        raise StateError(f"{path} has {file.size} bytes, {size} were committed: put its folder back from a copy")
    file.truncate(size)
    return file


def _is_new(folder: Path) -> bool:
    return not any((folder / name).exists() for name in (_RECORD, "alerts.ndjson", "dead.ndjson"))


def _first_commit(folder: Path) -> Commit:
    """Write the commit of nothing, so that files without a commit are never taken for a new folder."""
    try:
        write_beside(folder / _RECORD, msgspec.json.encode(Commit())).replace(folder / _RECORD)
        sync_folder(folder)
    except OSError as error:
        raise SinkUnavailable(f"cannot write to {folder}: {error.strerror}; make room on the disk") from error
    return Commit()


def _read_commit(folder: Path) -> Commit:
    path = folder / _RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Commit)
    except FileNotFoundError:
        raise StateError(f"{folder} has no {_RECORD}: put it back from a copy, or move its files away") from None
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged ({error}): put its folder back from a copy") from error


def _lock(folder: Path) -> int:
    """Take the folder for this process; return the descriptor that holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SinkUnavailable(f"cannot open {folder}: {error.strerror}; make it writable") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode().strip()
        os.close(fd)
        raise StateError(f"{folder} is in use by process {owner}: stop it, or use another folder") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
