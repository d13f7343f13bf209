"""The life cycle of one (asset, kind), stated as plainly as possible: the oracle for `pipeline.alert`."""

from dataclasses import dataclass, field


@dataclass
class NaiveLifeCycle:
    open_at: float = 1.0
    close_at: float = 0.8
    min_duration: int = 0
    frames: int = 2
    of: int = 5
    merge_gap: int = 0
    cooldown: int = 0
    update_every: int = 0
    severities: tuple = (1.0, 2.0, 4.0)
    state: str = "idle"
    own: list = field(default_factory=list)  # (ts, over by itself) of the scored frames
    pending: int = 0
    opened: int = 0
    seq: int = 0
    peak: float = 0.0
    level: int = 0
    clear: int | None = None
    resolved: int | None = None
    published: int = 0
    last: int | None = None

    def _level(self):
        return max(i for i, s in enumerate(self.severities) if i == 0 or self.peak >= s)

    def _publish(self, state, reason, ts, end=None):
        event = (state, reason, self.seq, ts, self.opened, self.pending, end, self.level, self.peak)
        self.seq += 1
        self.published = ts
        return event

    def step(self, ts, ratio, own, fresh):
        """One frame; ratio None: no score. Returns the list of events."""
        events = []
        if fresh:
            if self.state == "open":
                end = self.clear if self.clear is not None else self.last
                events.append(self._publish("resolved", "retired", self.last, end))
            self.state, self.own, self.resolved, self.clear = "idle", [], None, None
        self.last = ts
        if ratio is None:
            return events
        self.own.append((ts, own > self.open_at))
        if self.state == "open":
            self.peak = max(self.peak, ratio)
            if ratio < self.close_at:
                self.clear = ts if self.clear is None else self.clear
                if ts - self.clear >= self.merge_gap:
                    self.level = self._level()
                    events.append(self._publish("resolved", "below_threshold", ts, self.clear))
                    self.state, self.resolved, self.own, self.clear = "idle", ts, [], None
                    return events
            else:
                self.clear = None
            if self._level() > self.level:
                self.level = self._level()
                events.append(self._publish("updated", "severity", ts))
            elif self.update_every and ts - self.published >= self.update_every:
                events.append(self._publish("updated", "still_open", ts))
            return events
        if ratio <= self.open_at:
            self.state = "idle"
            return events
        if self.state == "idle":
            self.state, self.pending, self.peak = "pending", ts, 0.0
        self.peak = max(self.peak, ratio)
        held = ts - self.pending >= self.min_duration
        cool = self.resolved is None or ts - self.resolved >= self.cooldown
        if held and cool and sum(over for _, over in self.own[-self.of :]) >= self.frames:
            self.state, self.opened, self.seq, self.clear = "open", ts, 0, None
            self.level = self._level()
            events.append(self._publish("open", "over_threshold", ts))
        return events
