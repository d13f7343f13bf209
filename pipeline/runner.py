"""The loop that every program runs: poll, push through the chain, keep history, commit.

It reads no clock: how long a poll may gather before its commit is the source's `timeout_s`. History is written before
the commit, under names fixed by offsets, so that what is replayed after a crash lands on itself.

Partitions come and go while it runs. One that came is restored beside the loop, by `spawn`, and the others go on, once
its last owner has let go of its history; one that went away is forgotten, with what was about to be committed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pipeline.chain import Chain
from pipeline.errors import InUse, PipelineError, Rebalanced
from pipeline.protocols import Batch, Committer, History, Restored, Source
from pipeline.values import Alert, Output, Place, Polled, Scored, Verdicts

T = TypeVar("T")
_ATTEMPTS = 20  # of one commit, with a poll after each, before the error is the caller's


@dataclass(frozen=True, slots=True)
class Step:
    """What one turn of the loop did, for whoever watches it."""

    polled: Sequence[Polled]
    output: Output
    positions: Mapping[Place, int]  # (topic, partition) -> next offset


def at_once(call: Callable[[], T]) -> Future[T]:
    """Make a call now; return what came of it."""
    done: Future[T] = Future()
    try:
        done.set_result(call())
    except PipelineError as failed:
        done.set_exception(failed)
    return done


class Runner:
    """Drives one chain from one source into one committer.

    Parameters
    ----------
    max_rows : about how many messages one turn takes.
    commit_interval_s : how long a poll may gather; the latency of an alert on a quiet feed.
    keep_state : False where a run that ends is never gone on with: nothing is saved.
    publish_scores : hand the verdicts to the committer, too.
    observe : called after every commit, with what was done.
    given : called with (topic, partition, what was restored) before a partition goes on.
    spawn : makes a call elsewhere, one after the other; by default here and now.
    """

    def __init__(
        self,
        chain: Chain,
        source: Source,
        committer: Committer,
        history: History | None = None,
        *,
        max_rows: int = 8192,
        commit_interval_s: float = 0.2,
        keep_state: bool = True,
        publish_scores: bool = False,
        observe: Callable[[Step], None] = lambda step: None,
        given: Callable[[str, int, Restored], None] = lambda topic, partition, restored: None,
        spawn: Callable[[Callable[[], Restored | None]], Future[Restored | None]] = at_once,
    ) -> None:
        self.chain = chain
        self._source = source
        self._committer = committer
        self._history = history
        self._max_rows = max_rows
        self._interval_s = commit_interval_s
        self._keep_state = keep_state
        self._publish_scores = publish_scores
        self._observe = observe
        self._given = given
        self._spawn = spawn
        self._going: set[Place] = set()  # partitions that are read
        self._restoring: dict[Place, Future[Restored | None]] = {}
        self._starts: dict[Place, int] = {}  # of partitions that were never committed, to be committed at once
        self._stop: Callable[[], bool] = lambda: False
        self._held: list[Polled] = []  # read while a commit was tried again
        self._polled = False

    def step(self) -> Step | None:
        """Take what is there, through to the commit. None: nothing was there."""
        self.follow()
        self._commit_starts()
        polled, self._held = self._held, []
        self._polled = True
        polled += self._source.poll(self._max_rows, self._interval_s)
        self._forget_lost()
        polled = [p for p in polled if len(p) and (p.topic, p.partition) in self._going]
        if not polled:
            return None
        output = self.chain.push(polled)
        if self._history is not None:
            self._keep(self._history, polled, output)
        positions = {(p.topic, p.partition): p.position for p in polled}
        self._commit(self._batch(polled, positions, output))
        done = Step(polled, output, positions)
        self._observe(done)
        return done

    def run(self, stop: Callable[[], bool], between: Callable[[], None] = lambda: None) -> None:
        """Step until `stop` says so or a finite source has ended; `between` is called before each step.

        A commit for which a broker is missing is not tried again once `stop` says so.
        """
        self._stop = stop
        while not stop():
            between()
            if self.step() is None and self._going.issuperset(self._source.partitions()) and self._source.ended():
                break

    def follow(self) -> None:
        """Forget partitions that went away; restore those that came; go on with those that are restored.

        Raises
        ------
        StateError : a partition cannot be restored.
        InUse : another process keeps the history of a partition that was there from the beginning.
        """
        self._forget_lost()
        for place in self._source.partitions():
            if place not in self._going and place not in self._restoring and self._taken_up(place):
                self._restoring[place] = self._spawn(partial(self._committer.restore, *place))
        for place, restored in list(self._restoring.items()):
            if restored.done():
                del self._restoring[place]
                self._begin(place, restored)

    def _taken_up(self, place: Place) -> bool:
        """Take a partition's history up; False while its last owner, who is still to hear of the loss, has it."""
        if self._history is None:
            return True
        try:
            self._history.take(*place)
        except InUse:
            if not self._polled:
                raise  # what a source has from the beginning may be delivered before it is sought
            return False
        return True

    def _begin(self, place: Place, done: Future[Restored | None]) -> None:
        failed = done.exception()
        if isinstance(failed, PipelineError) and failed.retriable:
            return  # it is asked for again at the next turn
        restored = done.result()
        if restored is not None:
            self._given(*place, restored)
            self.chain.restore(*place, restored)
        start = self._source.seek(*place, None if restored is None else restored.position)
        self._going.add(place)
        if start is not None:
            self._starts[place] = start

    def _commit_starts(self) -> None:
        """Commit where partitions start, or what comes before their first commit would be lost to a restart."""
        if self._starts:
            starts, self._starts = self._starts, {}
            self._commit(Batch(starts))

    def _forget_lost(self) -> None:
        for place in self._source.lost():
            self._going.discard(place)
            self._restoring.pop(place, None)
            self._starts.pop(place, None)
            self._held = [p for p in self._held if (p.topic, p.partition) != place]
            self.chain.drop(*place)
            if self._history is not None:
                self._history.drop(*place)

    def _batch(self, polled: Sequence[Polled], positions: Mapping[Place, int], output: Output) -> Batch:
        rotations = {place: self._committer.rotation(*place) for place in positions} if self._keep_state else {}
        states, deltas = self.chain.take_states(rotations)
        scored = self._scored(polled, output) if self._publish_scores else ()
        return Batch(positions, output.alerts, output.dead, states, deltas, scored)

    def _commit(self, batch: Batch) -> None:
        """Commit, again after errors that pass; what is of partitions that went away meanwhile is left out.

        Polling goes on between two attempts, or the group would take this worker for dead. A watch that is to stop
        does not wait for brokers: its last commit is the next one's to make.
        """
        for attempt in range(_ATTEMPTS):
            try:
                self._committer.commit(batch)
            except PipelineError as failed:
                stops = self._stop() and not isinstance(failed, Rebalanced)
                if not failed.retriable or attempt == _ATTEMPTS - 1 or stops:
                    raise
                self._held += self._source.poll(1, self._interval_s)
                self._forget_lost()
                batch = _only(batch, self._going)
            else:
                return

    def _scored(self, polled: Sequence[Polled], output: Output) -> list[Scored]:
        verdicts: Sequence[Verdicts | None] = output.verdicts or [None] * len(polled)
        return [
            Scored(p.topic, p.partition, self.chain.assets(p.topic, p.partition), v, int(p.offset[0]), p.position)
            for p, v in zip(polled, verdicts, strict=True)
        ]

    def _keep(self, history: History, polled: Sequence[Polled], output: Output) -> None:
        for i, p in enumerate(polled):
            history.append(
                p.topic,
                p.partition,
                self.chain.assets(p.topic, p.partition),
                [output.rows[i]],
                [output.verdicts[i]] if output.verdicts else [],
                [a for a in output.alerts if _place_of(a) == (p.topic, p.partition)],
                (int(p.offset[0]), p.position),
            )


def _only(batch: Batch, places: set[Place]) -> Batch:
    """Return what a batch holds of some partitions."""
    return replace(
        batch,
        positions={place: position for place, position in batch.positions.items() if place in places},
        alerts=[alert for alert in batch.alerts if _place_of(alert) in places],
        dead=[letter for letter in batch.dead if (letter.topic, letter.partition) in places],
        states={place: states for place, states in batch.states.items() if place in places},
        deltas={place: delta for place, delta in batch.deltas.items() if place in places},
        scored=[scored for scored in batch.scored if (scored.topic, scored.partition) in places],
    )


def _place_of(alert: Alert) -> Place:
    return (alert.evidence.topic, alert.evidence.partition)
