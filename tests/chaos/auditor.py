"""Judge what became of commits whose every part was killed, by what the database itself holds.

The truth is read by plain SQL; what was committed was announced by the committers, and what was
handled noted by the handlers (`tests.chaos.docks`). The library is asked nothing.

A complaint is

- "lost by the store": a commit that returned is not in the database;
- "not whole": a commit is there with other events than it was announced with, or its events without
  its row, or its row without them;
- "not announced": the database holds what nobody was about to commit, or what was refused;
- "gap in a stream": its versions are not 1, 2, 3, …;
- "lost": a subscription did not handle an event that the database holds;
- "handled without being committed": it handled, or began to, one that the database does not hold;
- "out of order": a handling began before any handling of the event before it had ended;
- "effects lost", "effects doubled": what a subscription commits for an event is not there, or is
  twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.docks import ROW, SUBSCRIPTIONS, Deed, Handling

#: Complaints shown of each kind.
SHOWN = 5

#: An event with its stream: what is read is nothing but rows.
_EVENTS = (
    "SELECT s.aggregate_type, s.aggregate_id, e.version, e.event_id, e.type, e.payload"
    " FROM cqrs_events e JOIN cqrs_streams s USING (stream_id) ORDER BY s.stream_id, e.version"
)

#: Kinds of complaint that are rows of the table, all 0 if it is printed.
FOUND = (
    "lost by the store", "not whole", "not announced", "gap in a stream", "lost",
    "handled without being committed", "out of order", "effects lost", "effects doubled",
)  # fmt: skip


class Held(NamedTuple):
    """Be an event, as the database holds it."""

    aggregate_type: str
    aggregate_id: str
    version: int
    event_id: str
    type: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """Be what a database holds.

    Attributes:
        events: stream after stream, in the order of their versions.
        deeds: the tokens in the rows that committers wrote beside their events, and how often.
        rows: the same of the ids of events in the rows that a subscription wrote.
    """

    events: list[Held]
    deeds: Counter[str]
    rows: Counter[str]

    @property
    def landed(self) -> list[Held]:
        """The events that committers have committed."""
        return [one for one in self.events if one.type == "docks.landed"]

    @property
    def booked(self) -> Counter[str]:
        """Of which events a subscription has recorded one of its own, and how many."""
        booked = (one for one in self.events if one.type == "docks.booked")
        return Counter(one.payload["event_id"] for one in booked)


def read_truth(connection: Any) -> Truth:
    """Return what a database holds at one moment.

    Args:
        connection: of psycopg2, which commits each statement.
    """
    with connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        found = []
        for statement in (
            _EVENTS,
            "SELECT token FROM deeds",
            "SELECT event_id FROM rows_of_events",
        ):
            cursor.execute(statement)
            found.append(cursor.fetchall())
        cursor.execute("COMMIT")
    events, deeds, rows = found
    return Truth(
        [Held(*row) for row in events],
        Counter(row[0] for row in deeds),
        Counter(row[0] for row in rows),
    )


class Auditor:
    """Compare what was announced, what is held, and what was handled.

    Args:
        truth: what the database holds.
        deeds: what the committers said, each one's lines in their order.
        handlings: what the handlers noted.
    """

    def __init__(self, truth: Truth, deeds: list[Deed], handlings: list[Handling]) -> None:
        self._truth, self._landed = truth, truth.landed
        self._deeds = deeds
        self._handlings = sorted(handlings, key=lambda one: one.at)
        self.seen: Counter[str] = Counter()
        self.wrong: dict[str, list[str]] = defaultdict(list)

    def judge(self) -> Counter[str]:
        """Return what was seen.

        Raises:
            AssertionError: something is wrong; the text says how much of what, and shows some.
        """
        self._judge_commits()
        self._judge_streams()
        self._judge_handlings()
        self._judge_effects("docks.book", self._truth.booked)
        self._judge_effects("docks.row", self._truth.rows)
        if self.wrong:
            counts = {kind: len(texts) for kind, texts in self.wrong.items()}
            shown = [
                f"{kind}: {text}" for kind, texts in self.wrong.items() for text in texts[:SHOWN]
            ]
            raise AssertionError("\n".join([f"{counts}, {dict(self.seen)}", *shown]))
        return self.seen

    def _complain(self, kind: str, text: str) -> None:
        self.wrong[kind].append(text)

    def _judge_commits(self) -> None:
        held = Counter(one.payload["token"] for one in self._landed)
        last: dict[str, Deed] = {}
        for deed in self._deeds:
            last[deed.token] = deed
        for token, deed in last.items():
            self.seen["commits"] += token in held
            if deed.what == "returned" and token not in held:
                self._complain("lost by the store", str(deed))
            if deed.what == "refused" and token in held:
                self._complain("not announced", f"refused, and there: {deed}")
            if deed.what == "about":
                self.seen["killed in a commit"] += 1
                self.seen["killed in a commit, and committed"] += token in held
            if token in held and held[token] != len(deed.crates):
                self._complain("not whole", f"{held[token]} events of {deed}")
            if deed.kind == ROW and self._truth.deeds[token] != (token in held):
                self._complain("not whole", f"{self._truth.deeds[token]} rows of {deed}")
        for token in (held.keys() | self._truth.deeds.keys()) - last.keys():
            self._complain("not announced", token)
        self.seen["events"] = len(self._landed)

    def _judge_streams(self) -> None:
        versions: dict[tuple[str, str], list[int]] = defaultdict(list)
        for one in self._truth.events:
            versions[one.aggregate_type, one.aggregate_id].append(one.version)
        for stream, found in versions.items():
            if found != list(range(1, len(found) + 1)):
                self._complain("gap in a stream", f"{stream}: {found}")

    def _judge_handlings(self) -> None:
        due = {one.event_id: one for one in self._landed}
        ended: dict[tuple[str, str, int], float] = {}
        handled: dict[str, Counter[str]] = {name: Counter() for name in SUBSCRIPTIONS}
        for one in self._handlings:
            key = one.subscription, one.aggregate, one.version
            if one.what == "end":
                ended.setdefault(key, one.at)
                handled[one.subscription][one.event_id] += 1
                continue
            self.seen["handlings"] += 1
            if one.event_id not in due:
                self._complain("handled without being committed", str(one))
            if one.version > 1 and (*key[:2], one.version - 1) not in ended:
                near = [
                    (other.what, round(other.at, 3), other.version, other.pid, *other[-2:])
                    for other in self._handlings
                    if (other.subscription, other.aggregate) == key[:2]
                    and abs(other.version - one.version) < 3
                ]
                self._complain("out of order", f"{one}; what, at, version, process, lease: {near}")
        for subscription, counts in handled.items():
            for event_id in due.keys() - counts.keys():
                self._complain("lost", f"{subscription}: {due[event_id]}")
            self.seen["handled again"] += counts.total() - len(counts)

    def _judge_effects(self, subscription: str, effects: Counter[str]) -> None:
        due = {one.event_id for one in self._landed}
        for event_id in due - effects.keys():
            self._complain("effects lost", f"{subscription}: {event_id}")
        for event_id, count in effects.items():
            self.seen["effects"] += 1
            if count > 1:
                self._complain("effects doubled", f"{subscription}: {event_id}, {count} times")
            if event_id not in due:
                self._complain("handled without being committed", f"{subscription}: {event_id}")


def read_deeds(folder: Path) -> list[Deed]:
    """Return what the committers said, one after the other, oldest first."""
    return [Deed.from_text(line) for line in _lines(sorted(folder.iterdir(), key=_began))]


def read_handlings(folder: Path) -> list[Handling]:
    """Return what the handlers noted."""
    return [Handling.from_text(line) for line in _lines(folder.iterdir())]


def _began(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _lines(paths: Iterable[Path]) -> list[str]:
    return [line for path in paths for line in whole_lines(path.read_bytes())]


def whole_lines(written: bytes) -> list[str]:
    """Return the lines of a journal, without one that was torn at its end."""
    return written[: written.rfind(b"\n") + 1].decode().splitlines()
