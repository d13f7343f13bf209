"""The registry: exact round trips, refusals, and a death between any two steps."""

import os
import shutil
from pathlib import Path

import pytest
from registry_cases import assert_same, small_bundle

from models.manifest import pack
from models.registry import Registry


class Death(BaseException):
    """The process ends here: not an Exception, so that no clean-up for errors runs."""


STEPS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink")


def die_before(monkeypatch: pytest.MonkeyPatch, step: int, half_write: bool) -> list[str]:
    """Let the process die before its `step`-th call that changes the disk; return the calls as they are made."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            calls.append(name)
            if len(calls) > step:
                if name == "write" and half_write:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Death
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in STEPS:
        wrap(name)
    return calls


@pytest.mark.parametrize("half_write", [False, True])
def test_a_death_between_any_two_steps_leaves_the_old_state_or_the_new_one(tmp_path: Path, half_write: bool) -> None:
    start = tmp_path / "start"
    old = Registry(start).add(small_bundle(1), created_ns=1).id
    Registry(start).promote(old, "first")
    new = pack(small_bundle(2), 2).id
    seen = set()
    for step in range(100):
        root = tmp_path / f"{half_write}{step}"
        shutil.copytree(start, root)
        with pytest.MonkeyPatch.context() as patch:
            calls = die_before(patch, step, half_write)
            try:
                Registry(root).add(small_bundle(2), created_ns=2)
                Registry(root).promote(new, "gate passed")
                survived = True
            except Death:
                survived = False
        # What the next process finds:
        registry = Registry(root)
        ids = {entry.id for entry in registry.list()}
        champion = registry.champion()
        assert ids in ({old}, {old, new})
        assert champion in (old, new)
        assert champion in ids
        assert all(entry.problem == "" for entry in registry.list())
        assert_same(registry.load(champion), small_bundle(1 if champion == old else 2))
        seen.add((len(ids), champion == new))
        # ... and it can go on:
        assert registry.add(small_bundle(2), created_ns=3).id == new
        registry.promote(new, "gate passed")
        assert registry.rollback() == old
        if survived:
            break
    assert survived
    assert {"mkdir", "write", "fsync", "rename", "replace"} <= set(calls)
    assert seen == {(1, False), (2, False), (2, True)}


def test_bytes_are_forced_to_disk_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = die_before(monkeypatch, 10_000, half_write=False)
    bundle_id = Registry(tmp_path).add(small_bundle(), created_ns=1).id
    at = calls.index("rename")
    assert calls[:at][-1] == "fsync"
    assert calls[at + 1] == "fsync"
    calls.clear()
    Registry(tmp_path).promote(bundle_id, "first")
    at = calls.index("replace")
    assert calls[at - 1] == calls[at + 1] == "fsync"


def test_a_full_disk_leaves_the_registry_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    old = registry.add(small_bundle(1), created_ns=1).id
    registry.promote(old, "first")

    def full(handle: int, content: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            registry.add(small_bundle(2), created_ns=2)
    assert [e.id for e in registry.list()] == [old]
    assert registry.champion() == old
    registry.add(small_bundle(2), created_ns=2)
