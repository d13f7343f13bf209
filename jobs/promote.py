"""`midwatch models`: which bundles there are, and which of them serves."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.build import registry
from pipeline.values import NS_PER_S

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings


def list_bundles(settings: Settings, console: Console) -> None:
    """Print every bundle, the newest first."""
    rows = [
        {
            "id": entry.id,
            "champion": "*" if entry.champion else "",
            "created": utc(entry.created_ns),
            "what": entry.problem or entry.summary,
        }
        for entry in registry(settings).list()
    ]
    console.rows(rows, ("id", "champion", "created", "what"))


def show_bundle(settings: Settings, bundle: str, console: Console) -> None:
    """Print a bundle's manifest, and the moves that made it champion."""
    known = registry(settings)
    manifest = known.manifest(bundle)
    moves = [
        {"verb": m.verb, "reason": m.reason, "at": utc(m.at_ns) if m.at_ns else None}
        for m in known.moves()
        if m.id == bundle
    ]
    console.record({**manifest, "champion": known.champion() == bundle, "moves": moves})


def promote_bundle(settings: Settings, bundle: str, console: Console) -> None:
    """Make a bundle the champion, by hand."""
    known = registry(settings)
    known.promote(bundle, "by hand", time.time_ns())
    console.record({"champion": known.champion()})


def rollback(settings: Settings, console: Console) -> None:
    """Move the pointer back to the champion before."""
    console.record({"champion": registry(settings).rollback("by hand", time.time_ns())})


def utc(ns: int) -> str:
    """Return a time as people write it."""
    return datetime.fromtimestamp(ns / NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
