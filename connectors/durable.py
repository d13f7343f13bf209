"""Files that survive a crash: one that only grows, and one that changes as a whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InUse, SinkUnavailable

_BLOCK = 1 << 20


class GrowingFile:
    """A file that one process appends to, unbuffered: what `append` could not write as a whole is cut off again.

    Raises
    ------
    SinkUnavailable : on opening and appending, when the disk does not take it.
    InUse : another process has the file.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        """Open `path`; `wait` until whoever has it, process or thread, has closed it, instead of raising."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SinkUnavailable(f"cannot open {path}: {error.strerror}; make its folder writable") from error
        if wait:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        else:
            self._claim()
        self.size = os.fstat(self._fd).st_size

    def _claim(self) -> None:
        """Lock the file, and see that it still has its name: whoever had it may have put another one in its place."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            mine = False
        if not mine:
            self.close()
            raise InUse(f"{self.path} is in use by another process: stop it, or use another file")

    def append(self, body: bytes) -> None:
        """Write at the end; not on disk before `sync`."""
        at = self.size
        rest = memoryview(body)
        try:
            while rest:
                done = os.pwrite(self._fd, rest, at)
                rest, at = rest[done:], at + done
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise SinkUnavailable(f"cannot write to {self.path}: {error.strerror}; make room on the disk") from error
        self.size = at

    def sync(self) -> None:
        """Wait until everything is on disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise SinkUnavailable(f"cannot write to {self.path}: {error.strerror}; check the disk") from error

    def rename(self, path: Path) -> None:
        """Put the file, locked as it is, in the place of another one."""
        self.path = self.path.replace(path)

    def truncate(self, size: int) -> None:
        """Cut off what lies beyond `size`."""
        os.ftruncate(self._fd, size)
        self.size = size

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on; fewer at the end of the file."""
        parts = []
        while count > 0 and (part := os.pread(self._fd, count, start)):
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return b"".join(parts)

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the lines between two sizes, without their line ends, as far as they are finished."""
        stop = self.size if stop is None else stop
        rest = b""
        for at in range(start, stop, _BLOCK):
            *whole, rest = (rest + self.read(at, min(_BLOCK, stop - at))).split(b"\n")
            yield from whole

    def cut_unfinished_line(self) -> None:
        """Cut off a last line that has no end: a crash came while it was written."""
        end = self.size
        while end > 0:
            start = max(0, end - _BLOCK)
            at = self.read(start, end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        self.truncate(end)

    def close(self) -> None:
        """Close the file; again: nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_beside(path: Path, body: bytes) -> Path:
    """Write new content for `path` to a name beside it, on disk; `replace` on what is returned puts it in place."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    return new


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
