"""`midwatch replay`: files through the live path at any speed, with history, alerts and state, as if they came now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.run import run

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings


def replay(settings: Settings, path: Path, speed: float | None, console: Console) -> int:
    """Replay one file or folder to its end; return how many alerts opened. Going on after a stop loses nothing."""
    paced = {"type": "file", "path": str(path), "follow": False, "speed": speed or "max"}
    source = settings.source.model_copy(update=paced)
    counts = run(settings=settings.model_copy(update={"source": source}), console=console)
    console.record({name: counts[name] for name in ("rows", "scored", "alerts", "late", "dead")})
    return counts["alerts"]
