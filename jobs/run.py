"""`midwatch run`: watch a feed until it ends or is told to stop. Follows the champion without losing a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs import build
from jobs.beside import Beside, side_by_side
from jobs.config import specs
from jobs.every import Every
from jobs.hot import busy, hot
from jobs.stopping import until_signal
from pipeline.chain import Chain
from pipeline.errors import BundleError, DeviceUnavailable
from pipeline.protocols import Restored, Source
from pipeline.runner import Runner, Step, at_once

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

_LOOK_S = 1.0  # how often the champion's pointer is looked at
_TELL_S = 10.0
_CLOSE_S = 5.0  # what letting go of the brokers may take
_FLUSH_S = 60.0  # how old the newest rows may be that a nightly job sees; they are on disk before that


def run(settings: Settings, console: Console, told: Callable[[Step], None] | None = None) -> Counter[str]:
    """Watch until the source ends or SIGTERM or SIGINT comes; what was taken is committed first.

    Without a champion the watch collects history, tells data-quality faults, and says when there is enough to train.
    A device that is lost or full is left: the watch starts again from its last commit, on the CPU, if the champion was
    calibrated for that. Returns the counts of everything it did, or of what it did on the CPU.

    Raises
    ------
    DeviceUnavailable : the device is lost, and the CPU cannot take over.
    """
    try:
        return _watch(settings, console, told)
    except DeviceUnavailable as error:
        from models.profiles import FALLBACK

        if FALLBACK.name not in build.require_champion(settings).calibrations:
            raise
        console.warn(f"{error}; the watch starts again from its last commit, as {FALLBACK.name}")
    return _watch(build.with_profile(settings, FALLBACK), console, told)


def _watch(settings: Settings, console: Console, told: Callable[[Step], None] | None) -> Counter[str]:
    from_kafka = settings.source.type == "kafka"
    mapping = specs.field_mapping(settings) if from_kafka else build.file_mapping(settings)
    chain = build.chain_of(settings, mapping, journal=from_kafka)
    history = build.history_of(settings)
    watch = _Watch(settings, chain, console, told, history.flush if history is not None else lambda: None)
    # Before there is a producer: one whose slot has not joined yet is ended by others as what a dead worker left open.
    watch.follow_champion()
    feed = build.open_feed(settings, console)
    watch.source = feed.source
    runner = Runner(
        chain,
        feed.source,
        feed.committer,
        history,
        max_rows=settings.run.max_rows,
        commit_interval_s=settings.run.commit_interval_s,
        publish_scores=build.publishes_scores(settings),
        observe=watch.after,
        given=watch.given,
        spawn=Beside[Restored | None]().spawn if from_kafka and settings.kafka.assignment == "group" else at_once,
    )
    try:
        with until_signal() as stopped:
            runner.run(stopped, watch.between)
    finally:
        closes = [feed.source.close, feed.committer.close]
        if from_kafka:  # whose clients wait for brokers that are away
            side_by_side(closes, _CLOSE_S)
        else:
            for close in closes:
                close()
        if history is not None:
            history.close()
    watch.tell()
    return watch.counts


class _Watch:
    """What goes on beside the loop: the champion is followed, counts are kept and told."""

    def __init__(
        self,
        settings: Settings,
        chain: Chain,
        console: Console,
        told: Callable[[Step], None] | None,
        flush: Callable[[], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.source: Source | None = None
        self._read: Counter[tuple[str, int]] = Counter()  # by partition, since it was last told
        self._settings, self._chain, self._console, self._told = settings, chain, console, told
        self._refused = ""
        self._due = [Every(_LOOK_S, self.follow_champion), Every(_TELL_S, self.tell), Every(_FLUSH_S, flush)]
        self._enough = False

    def after(self, step: Step) -> None:
        """Count what a step did."""
        self.counts.update(step.output.counts)
        self.counts["alerts"] += sum(a.state == "open" for a in step.output.alerts)
        self._read.update({(p.topic, p.partition): len(p) for p in step.polled})
        if self._told is not None:
            self._told(step)

    def given(self, topic: str, partition: int, restored: Restored) -> None:
        """Take a partition over: with the model that it was left with, or a newer one."""
        if restored.model_id != self._chain.model_id:
            self.follow_champion()
        self.counts["missed"] += restored.missed
        if restored.missed:
            self._console.warn(
                f"{topic}[{partition}]: {restored.missed} messages have expired unread, going on at {restored.position}"
            )

    def between(self) -> None:
        """Do between two steps what is due."""
        for one in self._due:
            one()

    def follow_champion(self) -> None:
        """Serve the champion if it is another than the one that serves. One that does not fit is told once."""
        wanted = build.registry(self._settings).champion()
        if wanted is None:
            self._collecting()
            return
        if wanted in (self._chain.model_id, self._refused):
            return
        try:
            bundle = build.require_champion(self._settings, wanted)
            engine = build.engine_of(bundle, self._settings)
            build.require_room(self._settings, bundle, self._chain.state_bytes(engine.rows_kept))
            self._chain.serve(bundle, engine)
            self._console.say(f"model {wanted} serves")
        except BundleError as error:
            self._refused = wanted
            kept = f"{self._chain.model_id} goes on" if self._chain.model_id else "nothing is scored"
            self._console.warn(f"model {wanted} is refused, {kept}: {error}")

    def tell(self) -> None:
        """Say what was done so far."""
        c = self.counts
        missed = f", {c['missed']} expired unread" if c["missed"] else ""
        self._console.say(
            f"{c['rows']} rows, {c['scored']} scored, {c['alerts']} alerts, {c['late']} late, {c['dead']} dead letters"
            + missed
        )

        self._tell_hot()

    def _tell_hot(self) -> None:
        """Say which partitions fall behind because they carry more than their share; asks the broker only then."""
        lag = getattr(self.source, "lag", None)  # of sources that know one
        if self.source is None or lag is None:
            return
        read = dict.fromkeys(self.source.partitions(), 0) | self._read
        self._read.clear()
        if not busy(read):
            return
        for found in hot(read, lag(), self._settings.run.max_rows):
            self._console.warn(
                f"{found.topic}[{found.partition}] is hot: {found.share:.0%} of the messages, {found.lag} wait; "
                "spread its assets over more keys (SCALING.md)"
            )

    def _collecting(self) -> None:
        need = self._settings.train.min_rows
        if self.counts["rows"] >= need and not self._enough:
            self._enough = True
            self._console.say(f"{self.counts['rows']} rows are in the history: enough for `midwatch train`")
        elif not self.counts:
            self._console.say(f"no champion yet: collecting history until `midwatch train` has {need} rows")
