"""Confirmed normal: which rows of an asset a model may learn from, and why the others may not.

Alerts and what operators said about them become intervals of event time, intervals become a mask over the rows, and
every row that is left out is counted under one reason. Two rules keep a fault from being learned as normal: alerts and
their guard bands stay out until somebody dismisses them, and what one run may take back from dismissed alerts is
capped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np

from pipeline.errors import InputError, ShapeError
from pipeline.values import Bool, Int64, UInt8

Span = tuple[int, int]  # [start, end) in ns

_NEVER, _FOREVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class Reason(IntEnum):
    """Why a row is left out. A row with several reasons is counted under the first of them in this order."""

    SELECTED = 0
    QUALITY = 1  # the gate masked a reading: a sensor fault
    WARMING = 2  # the window was not full
    KNOWN_EVENT = 3  # maintenance or the like, entered by an operator
    CONFIRMED = 4  # an operator confirmed the fault
    BEFORE_CHANGE = 5  # older than the newest change point
    IN_ALERT = 6
    GUARD_BAND = 7  # this close to an alert
    OVER_CAP = 8  # from a dismissed alert, beyond what one run may take back


class Verb(StrEnum):
    """What an operator says about an alert or a stretch of time."""

    CONFIRM = "confirm"  # a fault: never trained on
    DISMISS = "dismiss"  # no fault: trained on, up to the cap
    KNOWN_EVENT = "known_event"  # not normal, not a fault: never trained on
    CHANGE_POINT = "change_point"  # from here on this is normal: what was before is not trained on any more


@dataclass(frozen=True, slots=True)
class Label:
    """One thing that one person said, about an alert (`alert_id`) or an asset's time from `start_ns` to `end_ns`.

    The end is exclusive; None: it goes on. A label about a stretch of time means every alert of the asset that starts
    in it. Labels are append-only: a person who changes their mind says something else about the same target.

    Raises
    ------
    InputError : both targets or neither, or a stretch that ends before it starts.
    """

    verb: Verb
    who: str
    when_ns: int
    alert_id: str = ""
    asset: str = ""
    start_ns: int | None = None
    end_ns: int | None = None

    def __post_init__(self) -> None:
        stretch = (self.asset != "", self.start_ns is not None)
        if self.alert_id and (any(stretch) or self.end_ns is not None):
            raise InputError(
                f"label of {self.who!r}: names alert {self.alert_id!r} and a time as well: give one of them"
            )
        if not self.alert_id and not all(stretch):
            raise InputError(f"label of {self.who!r}: needs an alert id, or an asset and a start time")
        if self.start_ns is not None and self.end_ns is not None and self.end_ns <= self.start_ns:
            raise InputError(f"label of {self.who!r}: ends at {self.end_ns}, not after its start at {self.start_ns}")

    @property
    def target(self) -> tuple[str, str, int | None, int | None]:
        """What it is about; labels of one target replace or contradict one another."""
        return (self.alert_id, self.asset, self.start_ns, self.end_ns)


@dataclass(frozen=True, slots=True)
class AlertInterval:
    """An anomaly alert as it stands now: over the threshold from `start_ns` up to `end_ns` (None: still open)."""

    id: str
    asset: str
    start_ns: int
    end_ns: int | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """What several people say about one target, when they do not agree."""

    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of one asset that are confirmed normal.

    `counts` has every reason, `SELECTED` included, and sums to n. `taken_back` counts the selected rows that only a
    dismissal let in. `conflicts` are about this asset; `unmatched` labels, of any asset, name alerts that were not
    handed over.
    """

    mask: Bool  # (n,), True: may be trained on
    reason: UInt8  # (n,), Reason codes
    counts: Mapping[Reason, int]
    taken_back: int
    conflicts: tuple[Conflict, ...]
    unmatched: tuple[Label, ...]


def select_normal(
    ts_ns: Int64,
    asset: str,
    alerts: Sequence[AlertInterval],
    labels: Sequence[Label],
    quality_bad: Bool,
    guard_ns: int,
    warming: Bool | None = None,
    dismissed_share: float = 0.05,
) -> Selection:
    """Select the rows of one asset that a model may learn from.

    A row in an alert, or less than `guard_ns` from one, is left out, unless every such alert was dismissed. Rows that
    only a dismissal lets in are at most `dismissed_share` of all that is selected: the alerts that were dismissed
    first come first, each from its start. Where people disagree about an alert it counts as not dismissed.

    Parameters
    ----------
    ts_ns : (n,) int64, increasing.
    alerts, labels : of any asset; those of others are ignored.
    quality_bad : (n,) bool, True where the gate found a fault in any reading.
    guard_ns : >= 0, on both sides of an alert.
    warming : (n,) bool, True where the row has no score yet; None: nowhere.
    dismissed_share : 0 to 1; 1 switches the cap off.

    Raises
    ------
    ShapeError : arrays of different lengths.
    InputError : times that do not increase, one alert id twice, a negative guard, or a share outside 0 to 1.
    """
    warming = np.zeros(len(ts_ns), np.bool_) if warming is None else warming
    _check(ts_ns, alerts, quality_bad, warming, guard_ns, dismissed_share)
    in_force, conflicts = settle(labels)
    own = [a for a in alerts if a.asset == asset]
    said = {a.id: [label for label in in_force if _means(label, a)] for a in own}
    verbs = {alert_id: {label.verb for label in about} for alert_id, about in said.items()}

    reason = np.zeros(len(ts_ns), np.uint8)
    for code, spans in _spans_left_out(asset, own, verbs, in_force, guard_ns):  # a stronger one writes over a weaker
        reason[_covered(ts_ns, spans)] = code
    reason[warming] = Reason.WARMING
    reason[quality_bad] = Reason.QUALITY

    dismissed = [a for a in own if verbs[a.id] == {Verb.DISMISS}]
    dismissed.sort(key=lambda a: (min(label.when_ns for label in said[a.id]), a.start_ns, a.id))
    taken_back = _hold_to_cap(ts_ns, reason, [_span(a, guard_ns) for a in dismissed], dismissed_share)
    known = {a.id for a in alerts}
    return Selection(
        mask=reason == Reason.SELECTED,
        reason=reason,
        counts={code: int(np.count_nonzero(reason == code)) for code in Reason},
        taken_back=taken_back,
        conflicts=tuple(c for c in conflicts if c.labels[0].alert_id in said or c.labels[0].asset == asset),
        unmatched=tuple(label for label in in_force if label.alert_id and label.alert_id not in known),
    )


def settle(labels: Iterable[Label]) -> tuple[tuple[Label, ...], tuple[Conflict, ...]]:
    """Return the labels in force and where they contradict one another.

    Of what a person said about a target the newest holds; of two at the same time, the one that comes later in the
    log. People who say different things about one target are a conflict.
    """
    newest: dict[tuple[object, str], Label] = {}
    for label in labels:
        before = newest.get((label.target, label.who))
        if before is None or label.when_ns >= before.when_ns:
            newest[label.target, label.who] = label
    by_target: dict[object, list[Label]] = {}
    for label in newest.values():
        by_target.setdefault(label.target, []).append(label)
    conflicts = tuple(Conflict(tuple(said)) for said in by_target.values() if len({s.verb for s in said}) > 1)
    return tuple(newest.values()), conflicts


def _means(label: Label, alert: AlertInterval) -> bool:
    if label.alert_id:
        return label.alert_id == alert.id
    if label.asset != alert.asset or label.start_ns is None:
        return False
    if label.verb == Verb.CHANGE_POINT and label.end_ns is None:
        return False  # only says when: it takes no alert back
    return label.start_ns <= alert.start_ns and (label.end_ns is None or alert.start_ns < label.end_ns)


def _spans_left_out(
    asset: str,
    own: Sequence[AlertInterval],
    verbs: Mapping[str, set[Verb]],
    in_force: Sequence[Label],
    guard_ns: int,
) -> list[tuple[Reason, list[Span]]]:
    """Return what alerts and labels leave out, weakest reason first."""
    let_in = {alert_id for alert_id, v in verbs.items() if v and v <= {Verb.DISMISS, Verb.CHANGE_POINT}}
    standing = [a for a in own if a.id not in let_in]
    stretches = [label for label in in_force if label.asset == asset]
    changed = {label.alert_id for label in in_force if label.verb == Verb.CHANGE_POINT}
    changes = [_span(a)[0] for a in own if a.id in changed]
    changes += [_span(s)[0] for s in stretches if s.verb == Verb.CHANGE_POINT]

    def about(verb: Verb) -> list[Span]:
        return [_span(a) for a in own if verb in verbs[a.id]] + [_span(s) for s in stretches if s.verb == verb]

    return [
        (Reason.GUARD_BAND, [_span(a, guard_ns) for a in standing]),
        (Reason.IN_ALERT, [_span(a) for a in standing]),
        (Reason.BEFORE_CHANGE, [(_NEVER, start) for start in changes]),
        (Reason.CONFIRMED, about(Verb.CONFIRM)),
        (Reason.KNOWN_EVENT, about(Verb.KNOWN_EVENT)),
    ]


def _span(over: AlertInterval | Label, margin_ns: int = 0) -> Span:
    start = _NEVER if over.start_ns is None else over.start_ns - margin_ns
    end = _FOREVER if over.end_ns is None else over.end_ns + margin_ns
    return max(start, _NEVER), min(end, _FOREVER)


def _covered(ts_ns: Int64, spans: Sequence[Span]) -> Bool:
    """Return which of the increasing times lie in any of the spans [start, end)."""
    edges = np.zeros(len(ts_ns) + 1, np.int64)
    if spans:
        starts, ends = np.array(spans, np.int64).T
        np.add.at(edges, np.searchsorted(ts_ns, starts), 1)
        np.add.at(edges, np.searchsorted(ts_ns, ends), -1)
    return np.asarray(np.cumsum(edges[:-1]) > 0, np.bool_)


def _hold_to_cap(ts_ns: Int64, reason: UInt8, spans: Sequence[Span], share: float) -> int:
    """Let rows in `spans` be selected, span after span, until they are `share` of all; the rest is over the cap."""
    selected = reason == Reason.SELECTED
    back = selected & _covered(ts_ns, spans)
    total = int(np.count_nonzero(back))
    ordinary = int(np.count_nonzero(selected)) - total
    left = total if share == 1 else int(share * ordinary / (1 - share) + 1e-9)
    taken = 0
    for start, end in spans:
        i, j = np.searchsorted(ts_ns, (start, end))
        rows = i + np.flatnonzero(back[i:j])
        back[i:j] = False
        reason[rows[left:]] = Reason.OVER_CAP
        kept = min(left, len(rows))
        left, taken = left - kept, taken + kept
    return taken


def _check(
    ts_ns: Int64,
    alerts: Sequence[AlertInterval],
    quality_bad: Bool,
    warming: Bool,
    guard_ns: int,
    dismissed_share: float,
) -> None:
    for name, mask in (("quality_bad", quality_bad), ("warming", warming)):
        if mask.shape != ts_ns.shape or mask.dtype != np.bool_:
            raise ShapeError(f"{name} is {mask.dtype} {mask.shape}, expected bool {ts_ns.shape}")
    backward = np.flatnonzero(np.diff(ts_ns) <= 0)
    if len(backward):
        raise InputError(f"ts_ns: row {backward[0] + 1} is not later than the row before it: align the rows first")
    for alert_id, times in Counter(a.id for a in alerts).items():
        if times > 1:
            raise InputError(f"alert {alert_id!r} is there {times} times: hand over its newest state only")
    for a in alerts:
        if a.end_ns is not None and a.end_ns < a.start_ns:
            raise InputError(f"alert {a.id!r} ends at {a.end_ns}, before its start at {a.start_ns}")
    if guard_ns < 0:
        raise InputError(f"guard_ns = {guard_ns}: must be 0 or more")
    if not 0 <= dismissed_share <= 1:
        raise InputError(f"dismissed_share = {dismissed_share}: must be from 0 to 1")
