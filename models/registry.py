"""The registry: a folder of immutable bundles and one pointer to the champion.

    <root>/bundles/<id>/manifest.json        what the bundle is (`models.manifest`)
    <root>/bundles/<id>/weights.safetensors  its arrays
    <root>/champion                          JSON: the champion and every move that led to it
    <root>/lock                              held while something is written

Whatever is written appears by one rename, after its bytes and before its folder were forced to disk: a process that
dies anywhere leaves the old state or the new one. Reading follows no symbolic link below the root, opens nothing but
these files, and checks everything before an array is handed out.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.manifest import ID_PATTERN, BundleEntry, Manifest, pack, parse, unpack
from pipeline.bundle import Bundle
from pipeline.errors import BundleError

MAX_MANIFEST_BYTES = 64 * 1024 * 1024  # a million assets with long names fit; memory is safe from a planted file
_MANIFEST, _WEIGHTS, _POINTER = "manifest.json", "weights.safetensors", "champion"


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of the champion: `id` is the champion after it. `at_ns` is the caller's clock, if it gave one."""

    verb: Literal["promote", "rollback"]
    id: str
    reason: str
    at_ns: int | None = None


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    champion: str
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One bundle in a listing. `problem` says why its manifest cannot be used ("": it can)."""

    id: str
    created_ns: int
    champion: bool
    summary: str
    provenance: Mapping[str, Any]
    problem: str = ""


class Registry:
    """The bundles under one folder. It keeps nothing in memory, so that any number of processes may use one folder.

    Parameters
    ----------
    root : the folder; made at the first write.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def add(self, bundle: Bundle, created_ns: int) -> Bundle:
        """Store a bundle and return it as it reads back, with its id; the same content again changes nothing.

        Parameters
        ----------
        created_ns : when it was made, by the caller's clock; no part of the content.

        Raises
        ------
        BundleError : the bundle contradicts itself or cannot be stored, or the one stored under its id is damaged.
        OSError : the disk does not take it; the registry is as before.
        """
        packed = pack(bundle, created_ns)
        with self._writing():
            bundles = self.root / "bundles"
            folder = bundles / packed.id
            if not os.path.lexists(folder):
                fresh = bundles / ".new"
                if os.path.lexists(fresh):  # left by a process that died here
                    shutil.rmtree(fresh)
                fresh.mkdir()
                _write(fresh / _WEIGHTS, packed.weights)
                _write(fresh / _MANIFEST, json.dumps(packed.manifest, indent=1).encode())
                _force(fresh)
                os.rename(fresh, folder)  # noqa: PTH104 - named so that crash tests can stop before it
                _force(bundles)
                _force(self.root)  # where `bundles` itself may be new
        return self.load(packed.id)

    def load(self, bundle_id: str) -> Bundle:
        """Return a bundle after everything about it was checked.

        Raises
        ------
        BundleError : no such bundle, or the first violation: a bad id, a symbolic link, a manifest that was changed,
            weights of another size or hash, tensors with other names, shapes or dtypes, parts that do not fit.
        """
        manifest = self._manifest(bundle_id)
        weights = self._read("bundles", bundle_id, _WEIGHTS, limit=manifest.weights.bytes)
        return unpack(manifest, weights, str(self.root / "bundles" / bundle_id / _WEIGHTS))

    def manifest(self, bundle_id: str) -> dict[str, Any]:
        """Return a bundle's manifest as plain JSON values, checked, without touching its weights."""
        plain: dict[str, Any] = json.loads(msgspec.json.encode(self._manifest(bundle_id)))
        return plain

    def champion(self) -> str | None:
        """Return the champion's id, None as long as nothing was promoted."""
        pointer = self._pointer()
        return pointer.champion if pointer else None

    def moves(self) -> tuple[Move, ...]:
        """Return every promotion and rollback, oldest first."""
        pointer = self._pointer()
        return pointer.moves if pointer else ()

    def promote(self, bundle_id: str, reason: str, at_ns: int | None = None) -> None:
        """Make a bundle the champion, after loading it whole; nothing changes if it already is.

        Raises
        ------
        BundleError : the bundle is missing or damaged; the champion stays.
        """
        self.load(bundle_id)
        with self._writing():
            pointer = self._pointer()
            if pointer is None or pointer.champion != bundle_id:
                self._point(pointer, Move("promote", bundle_id, reason, at_ns))

    def rollback(self, reason: str = "", at_ns: int | None = None) -> str:
        """Make the champion before this one the champion again and return its id.

        A rollback undoes the newest promotion that was not yet undone; another goes one further back.

        Raises
        ------
        BundleError : there is no earlier champion, or it is damaged; the champion stays.
        """
        with self._writing():
            pointer = self._pointer()
            line = _line_of_champions(pointer.moves) if pointer else []
            if len(line) < 2:
                raise BundleError(f"{self.root / _POINTER}: no earlier champion to go back to")
            self.load(line[-2])
            self._point(pointer, Move("rollback", line[-2], reason, at_ns))
        return line[-2]

    def list(self) -> list[Entry]:
        """Return all bundles, newest first; one whose manifest is damaged is listed with its problem, last."""
        bundles = self.root / "bundles"
        names = os.listdir(bundles) if bundles.is_dir() else []  # noqa: PTH208 - names, not paths
        champion = self.champion()
        entries = [self._entry(name, champion) for name in names if ID_PATTERN.fullmatch(name)]
        return sorted(entries, key=lambda e: (e.problem == "", e.created_ns, e.id), reverse=True)

    def _entry(self, bundle_id: str, champion: str | None) -> Entry:
        try:
            manifest = self._manifest(bundle_id)
        except BundleError as error:
            return Entry(bundle_id, 0, bundle_id == champion, "", {}, str(error))
        bundle = manifest.bundle
        return Entry(bundle_id, manifest.created_ns, bundle_id == champion, _summary(bundle), bundle.provenance)

    def _manifest(self, bundle_id: str) -> Manifest:
        if not ID_PATTERN.fullmatch(bundle_id):
            raise BundleError(f"{bundle_id!r} is not a bundle id: b and 12 hexadecimal digits")
        raw = self._read("bundles", bundle_id, _MANIFEST, limit=MAX_MANIFEST_BYTES)
        where = str(self.root / "bundles" / bundle_id / _MANIFEST)
        manifest = parse(raw, where)
        if manifest.id != bundle_id:
            raise BundleError(f"{where}: this is bundle {manifest.id} in a folder of another name")
        return manifest

    def _pointer(self) -> _Pointer | None:
        path = self.root / _POINTER
        if not os.path.lexists(path):
            return None
        try:
            pointer = msgspec.json.decode(self._read(_POINTER, limit=MAX_MANIFEST_BYTES), type=_Pointer)
        except msgspec.DecodeError as error:
            raise BundleError(f"{path}: not a champion pointer: {error}") from None
        line = _line_of_champions(pointer.moves)
        if not line or line[-1] != pointer.champion or not all(ID_PATTERN.fullmatch(i) for i in line):
            raise BundleError(f"{path}: champion {pointer.champion!r} is not what its own moves lead to")
        return pointer

    def _point(self, pointer: _Pointer | None, move: Move) -> None:
        moves = (*(pointer.moves if pointer else ()), move)
        raw = msgspec.json.format(msgspec.json.encode(_Pointer(move.id, moves)), indent=1)
        fresh = self.root / ".champion.new"
        fresh.unlink(missing_ok=True)
        _write(fresh, raw)
        os.replace(fresh, self.root / _POINTER)  # noqa: PTH105 - named so that crash tests can stop before it
        _force(self.root)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        (self.root / "bundles").mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # let go of when the handle closes, so a death releases it too
            yield
        finally:
            os.close(handle)

    def _read(self, *parts: str, limit: int) -> bytes:
        """Return a file's bytes. Steps through the folders by handle, so that no link can be put in between."""
        path = self.root.joinpath(*parts)
        try:
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for i, part in enumerate(parts):
                # O_NONBLOCK: a pipe in place of a file is refused below instead of waited on.
                kind = os.O_DIRECTORY if i + 1 < len(parts) else os.O_NONBLOCK
                try:
                    deeper = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=handle)
                finally:
                    os.close(handle)
                handle = deeper
        except OSError as error:
            link = error.errno in (errno.ELOOP, errno.ENOTDIR)
            why = "a symbolic link, or no folder, on the way" if link else os.strerror(error.errno or 0)
            raise BundleError(f"{path}: cannot be opened: {why}") from None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path}: not a regular file")
            if status.st_size > limit:
                raise BundleError(f"{path}: {status.st_size} bytes, at most {limit} expected")
            return file.read(limit + 1)


def _line_of_champions(moves: tuple[Move, ...]) -> list[str]:
    """Replay the moves: a promotion puts a champion on top of the line, a rollback takes it off.

    A rollback that does not lead to the id it names returns an empty line.
    """
    line: list[str] = []
    for move in moves:
        if move.verb == "promote":
            line.append(move.id)
        elif len(line) > 1 and line[-2] == move.id:
            line.pop()
        else:
            return []
    return line


def _summary(bundle: BundleEntry) -> str:
    members = " + ".join(f"{m.kind} w{m.window}" for m in bundle.members)
    profiles = ", ".join(sorted(bundle.calibrations)) or "not calibrated"
    groups = f"{len(bundle.groups)} group" + ("s" if len(bundle.groups) > 1 else "")
    return f"{members}; {len(bundle.channels)} channels, {len(bundle.asset_group)} assets in {groups}; {profiles}"


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _force(folder: Path) -> None:
    """Force a folder's entries to disk: without it a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
