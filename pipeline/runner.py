"""The loop that every program runs: poll, push through the chain, keep history, commit.

It reads no clock: how long a poll may gather before its commit is the source's `timeout_s`. History is written before
the commit, under names fixed by offsets, so that what is replayed after a crash lands on itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.chain import Chain
from pipeline.protocols import Batch, Committer, History, Source
from pipeline.values import Alert, Output, Polled, Scored, Verdicts


@dataclass(frozen=True, slots=True)
class Step:
    """What one turn of the loop did, for whoever watches it."""

    polled: Sequence[Polled]
    output: Output
    positions: Mapping[tuple[str, int], int]  # (topic, partition) -> next offset


class Runner:
    """Drives one chain from one source into one committer.

    Parameters
    ----------
    max_rows : about how many messages one turn takes.
    commit_interval_s : how long a poll may gather; the latency of an alert on a quiet feed.
    keep_state : False where a run that ends is never gone on with: nothing is saved.
    publish_scores : hand the verdicts to the committer, too.
    observe : called after every commit, with what was done.
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
        observe: Callable[[Step], None] | None = None,
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

    def restore(self) -> None:
        """Go on where each partition was committed last."""
        for topic, partition in self._source.partitions():
            restored = self._committer.restore(topic, partition)
            if restored is not None:
                self.chain.restore(topic, partition, restored)
                self._source.seek(topic, partition, restored.position)

    def step(self) -> Step | None:
        """Take what is there, through to the commit. None: nothing was there."""
        polled = [p for p in self._source.poll(self._max_rows, self._interval_s) if len(p)]
        if not polled:
            return None
        output = self.chain.push(polled)
        if self._history is not None:
            self._keep(self._history, polled, output)
        positions = {(p.topic, p.partition): p.position for p in polled}
        states = self.chain.take_states() if self._keep_state else {}
        scored = self._scored(polled, output) if self._publish_scores else ()
        self._committer.commit(Batch(positions, output.alerts, output.dead, states, scored))
        done = Step(polled, output, positions)
        if self._observe is not None:
            self._observe(done)
        return done

    def run(self, stop: Callable[[], bool]) -> None:
        """Restore, then step until `stop` says so or a finite source has ended."""
        self.restore()
        while not stop():
            if self.step() is None and self._source.ended():
                break

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
                _of_partition(output.alerts, p),
                (int(p.offset[0]), p.position),
            )


def _of_partition(alerts: Sequence[Alert], polled: Polled) -> list[Alert]:
    return [a for a in alerts if (a.evidence.topic, a.evidence.partition) == (polled.topic, polled.partition)]
