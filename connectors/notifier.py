"""Alerts from the committed topic to a sink: at least once, with what came again dropped as far back as is kept."""

from __future__ import annotations

from collections import Counter, OrderedDict

from connectors.alert_json import decode_polled
from connectors.kafka_client import Committed
from connectors.kafka_follow import Follower
from pipeline.protocols import Sink
from pipeline.values import Alert


class Notifier:
    """Hands alerts on in the order of their topic; a position is committed when the sink has taken what is before it.

    Parameters
    ----------
    follower : of the alerts topic.
    remembered : how many alerts are kept in mind to tell what comes again; the one that changed longest ago goes first.
    """

    def __init__(self, follower: Follower, sink: Sink, *, remembered: int = 100_000) -> None:
        self.counts: Counter[str] = Counter()
        self._follower = follower
        self._sink = sink
        self._most = remembered
        self._seen: OrderedDict[str, int] = OrderedDict()  # alert id -> newest seq
        self._untaken: list[Alert] = []

    def step(self, max_rows: int, timeout_s: float) -> int:
        """Hand on what is there; return how many alerts were new.

        Raises
        ------
        SinkUnavailable : the sink did not take it; the next step offers it again, before it reads on.
        """
        if not self._untaken:
            self._read(max_rows, timeout_s)
        if self._untaken:
            self._sink.write(self._untaken, [])
        done = len(self._untaken)
        self.counts["alerts"] += done
        self._untaken = []
        return done

    def commit(self) -> None:
        """Commit how far the sink has taken everything; not while it owes an answer."""
        if not self._untaken:
            follower = self._follower
            follower.commit({place: Committed(follower.position(place)) for place in follower.places()})

    def _read(self, max_rows: int, timeout_s: float) -> None:
        for polled in self._follower.poll(max_rows, timeout_s):
            for alert in decode_polled(polled):
                if alert.seq <= self._seen.get(alert.id, -1):
                    self.counts["again"] += 1
                    continue
                self._seen[alert.id] = alert.seq
                self._seen.move_to_end(alert.id)
                self._untaken.append(alert)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
