"""Whether two runs over the same input said the same: alert by alert, in order, and dead letter by dead letter."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.kafka_view import Record


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the alerts of an undisturbed run.

    Attributes
    ----------
    expected : changes of alerts that the undisturbed run published.
    lost : of these, how many are not there.
    doubled : how many are there more often than once, each further time counted.
    different : how many say something else than expected, in any field or header, to the bit.
    unexpected : how many are there that the undisturbed run did not publish.
    disordered : assets whose changes come in another order.
    dead_expected, dead_lost, dead_doubled : the same of dead letters.
    examples : a few sentences on what is wrong.
    """

    expected: int
    lost: int = 0
    doubled: int = 0
    different: int = 0
    unexpected: int = 0
    disordered: int = 0
    dead_expected: int = 0
    dead_lost: int = 0
    dead_doubled: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """True where both runs said the same."""
        wrong = (self.lost, self.doubled, self.different, self.unexpected, self.disordered)
        return not any((*wrong, self.dead_lost, self.dead_doubled))


def compare(
    alerts: Sequence[Record], expected: Sequence[Record], dead: Sequence[Record], dead_expected: Sequence[Record]
) -> Verdict:
    """Hold what was published under faults against what one undisturbed run published of the same input.

    Records of one key must be in the order of their log; the order across keys is nobody's promise.
    """
    found, wanted = _by_name(alerts), _by_name(expected)
    lost = [name for name in wanted if name not in found]
    more = [name for name in found if name not in wanted]
    doubled = [name for name in wanted for _ in found.get(name, [])[1:]]
    different = [n for n in wanted if any(_said(r) != _said(wanted[n][0]) for r in found.get(n, []))]
    orders, orders_wanted = _order(alerts), _order(expected)
    disordered = [key for key in orders_wanted if _firsts(orders[key], wanted) != _firsts(orders_wanted[key], found)]
    letters, letters_wanted = Counter(map(_said, dead)), Counter(map(_said, dead_expected))
    told = (("lost", lost), ("doubled", doubled), ("different", different), ("unexpected", more))
    examples = [f"{what}: {_text(name, found, wanted)}" for what, names in told for name in names[:3]]
    examples += [f"disordered: asset {key!r}" for key in disordered[:3]]
    return Verdict(
        expected=sum(map(len, wanted.values())),
        lost=len(lost),
        doubled=len(doubled),
        different=len(different),
        unexpected=sum(len(found[name]) for name in more),
        disordered=len(disordered),
        dead_expected=letters_wanted.total(),
        dead_lost=(letters_wanted - letters).total(),
        dead_doubled=(letters - letters_wanted).total(),
        examples=examples,
    )


def _by_name(records: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
    """Return the records by what is unique for ever: an alert's id and seq."""
    out: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        body = _body(record)
        out[body["id"], body["seq"]].append(record)
    return dict(out)


def _order(records: Sequence[Record]) -> dict[bytes | None, list[tuple[str, int]]]:
    out: dict[bytes | None, list[tuple[str, int]]] = defaultdict(list)
    for record in records:
        body = _body(record)
        out[record.key].append((body["id"], body["seq"]))
    return out


def _firsts(names: Sequence[tuple[str, int]], known: dict[tuple[str, int], list[Record]]) -> list[tuple[str, int]]:
    """Return names in the order of their first coming, without those that the other run does not have."""
    return [name for name in dict.fromkeys(names) if name in known]


def _body(record: Record) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(record.value or b"{}")
    return body


def _said(record: Record) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
    return record.key, record.value, record.headers


def _text(
    name: tuple[str, int], found: dict[tuple[str, int], list[Record]], wanted: dict[tuple[str, int], list[Record]]
) -> str:
    """Say what an alert is, and in which fields two of it differ."""
    every = [*found.get(name, []), *wanted.get(name, [])[:1]]
    one, other = _body(every[0]), _body(every[-1])
    fields = {key: (one[key], other[key]) for key in one if one[key] != other.get(key)}
    return f"{name[0]}:{name[1]} of asset {one['asset']!r}, {one['kind']} {one['state']} {fields or ''}".rstrip()
