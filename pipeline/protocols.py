"""The contracts between the fold and everything around it. Each fits on one screen.

Every implementation is run through the same contract tests (`tests/contracts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.delta import Delta
from pipeline.values import Alert, Bool, DeadLetter, Float32, Int32, Polled, Rows, Scored, Scores, Verdicts


@dataclass(frozen=True, slots=True)
class RawWindows:
    """The last rows of k assets, oldest first, right-aligned: `count[i]` of the R rows are real."""

    x: Float32  # (k, R, C)
    observed: Bool  # (k, R, C)
    count: Int32  # (k,), rows since the window last started, at most R


class Engine(Protocol):
    """Scores rows against the windows it owns, across partitions and assets in one batch.

    The bits of a score depend on the asset's own rows alone, never on what else was in the batch or how the input
    was cut: engines pad to fixed shapes.
    """

    @property
    def model_id(self) -> str: ...

    @property
    def profile(self) -> str:
        """The serving profile that thresholds were fitted through, e.g. `cpu-float32`."""
        ...

    @property
    def rows_kept(self) -> int:
        """R: rows per asset on which any state derives."""
        ...

    def allocate(self, assets: Sequence[str]) -> Int32:
        """Give each asset a slot with an empty window; the name picks the group that scores it."""
        ...

    def push(self, batches: Sequence[tuple[Rows, Int32]]) -> list[Scores]:
        """Take aligned, gated rows with their slots (n,), in order; return one score per row."""
        ...

    def fill(self, batches: Sequence[tuple[Rows, Int32]]) -> None:
        """Take rows into the windows without scoring them."""
        ...

    def dump(self, slots: Int32) -> RawWindows: ...

    def load(self, slots: Int32, raw: RawWindows) -> None:
        """Put windows back; what derives from them is rebuilt through the same steps, bit by bit."""
        ...

    def drop(self, slots: Int32) -> None:
        """Free slots."""
        ...


class Source(Protocol):
    """Where messages come from, in log order within a partition."""

    def partitions(self) -> Sequence[tuple[str, int]]:
        """Return the (topic, partition) pairs this source reads now."""
        ...

    def lost(self) -> Sequence[tuple[str, int]]:
        """Return the partitions that were taken away since the last call, those that came back among them.

        Nothing is delivered of one that came back, nor of one that is new, before it is sought.
        """
        ...

    def seek(self, topic: str, partition: int, offset: int | None) -> int | None:
        """Go on at an offset; None: where this source starts by itself.

        Returns an offset if that is a start which would be elsewhere later: it is to be committed at once.
        """
        ...

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Return what is there, at most about `max_rows` messages, waiting at most `timeout_s`; [] is no end."""
        ...

    def ended(self) -> bool:
        """True once a finite source has nothing more; a live one never ends."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class AssetState:
    """One asset's saved state: the table's columns and the raw window, each packed."""

    asset: str
    columns: bytes
    window: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a partition goes on, and with what."""

    position: int  # the next offset to read
    assets: Sequence[AssetState] = ()
    deltas: Sequence[Delta] = ()  # in order; what changed in `assets` (and what is new) after they were saved
    model_id: str = ""  # that served at the last commit; "" where that is not known
    missed: int = 0  # messages before `position` that were never read: the log has dropped them


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything that one commit makes visible together, or not at all."""

    positions: Mapping[tuple[str, int], int]  # (topic, partition) -> next offset
    alerts: Sequence[Alert] = ()
    dead: Sequence[DeadLetter] = ()
    states: Mapping[tuple[str, int], Sequence[AssetState]] = field(default_factory=dict)  # assets saved in full
    deltas: Mapping[tuple[str, int], Delta] = field(default_factory=dict)
    scored: Sequence[Scored] = ()  # empty unless the committer publishes scores


class Committer(Protocol):
    """The one way to publish: outputs, state and positions in one atomic step."""

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return where the partition goes on (None: it was never committed)."""
        ...

    def rotation(self, topic: str, partition: int) -> tuple[int, int]:
        """Return (K, turn): the share of unsaved assets that the next commit must save; see `Chain.take_states`."""
        ...

    def commit(self, batch: Batch) -> None:
        """Publish a batch. The same batch again, after an error that is retriable, is published once.

        Raises
        ------
        Rebalanced : partitions may have moved: nothing was published. Ask the source, then commit what is left.
        """
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Somewhere alerts and dead letters go, at least once; (id, seq) deduplicates."""

    def write(self, alerts: Sequence[Alert], dead: Sequence[DeadLetter]) -> None: ...

    def close(self) -> None: ...


class History(Protocol):
    """Takes what the fold saw and said, for the nightly jobs. Writing the same positions again changes nothing."""

    def take(self, topic: str, partition: int) -> None:
        """Take a partition up, before its first push; again: nothing.

        Raises
        ------
        InUse : its last owner has not let go of it yet. Ask again.
        """
        ...

    def drop(self, topic: str, partition: int) -> None:
        """Let go of a partition that went away, so that its next owner can take it up; one not taken up: nothing."""
        ...

    def append(
        self,
        topic: str,
        partition: int,
        assets: Sequence[str],
        rows: Sequence[Rows],
        verdicts: Sequence[Verdicts],
        alerts: Sequence[Alert],
        position: tuple[int, int],
    ) -> None:
        """Add one push: `assets` names the codes, `position` is (first offset, next offset) of its messages."""
        ...

    def close(self) -> None: ...


__all__ = [
    "AssetState",
    "Batch",
    "Committer",
    "Engine",
    "History",
    "RawWindows",
    "Restored",
    "Sink",
    "Source",
]
