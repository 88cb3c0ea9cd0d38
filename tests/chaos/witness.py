"""Judge a run of `tests.chaos.subscriptions` by what was seen from outside, not by the library.

What is known: the journal that the handlers wrote, what was published, whom the run killed and
froze and when, what the workers' logs say they have lost, and what handlers have committed.

An attempt is one run of a function for one event. It is *late* if its worker was frozen past its
lease, or an orphan whose main process was killed: others may have its message. Only late attempts
may run beside another of their sequence, and nothing that a late one does may count. An attempt is
*cut* if its process was killed in it, or before anybody can have heard of its end. Every further
attempt at an event needs a reason: the one before failed, or was late, or was cut.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.chaos.post import BOOK, FIRST_REDRIVE_S, MAX_RETRIES, SUBSCRIPTIONS, Line, lines_of
from tests.telling import Said

#: Seconds after its end in which an attempt may not have been settled yet, on a busy machine.
UNSETTLED_S = 1.0

#: Seconds after its thaw in which a worker learns that it has lost its lease, on a busy machine.
TOLD_S = 2.0

#: Seconds after a thaw in which a thread has begun what it was about to begin.
BEGINS_S = 1.0

#: The part of a lease that is left at least when its holder's last beat is over.
LEFT = 0.5

#: Seconds for which a process may still run that is being stopped.
IN_TIME_S = 0.05

#: Violations that are shown.
SHOWN = 12


@dataclass(slots=True)
class Attempt:
    """Be one run of a function."""

    id: str
    subscription: str
    aggregate: str
    version: int
    retries: int
    worker: str
    group: int
    pid: int
    message_id: int
    thread: int
    start: float
    end: float | None = None
    outcome: str = ""

    @property
    def event(self) -> tuple[str, str, int]:
        """The subscription, and the event."""
        return self.subscription, self.aggregate, self.version

    def __str__(self) -> str:
        end = "…" if self.end is None else f"{self.end:.3f}"
        return (
            f"{self.subscription}:{self.aggregate}:{self.version} {self.outcome or 'open'}"
            f" {self.start:.3f}-{end} retry {self.retries} {self.worker} {self.group}/{self.pid}"
            f" message {self.message_id} [{self.id}]"
        )


class Disturbance(NamedTuple):
    """Be something that was done to a worker.

    Attributes:
        kind: "killed": with all its processes; "child killed": one of them; "orphaned": its main
            process killed, the others later; "frozen"; "frozen and killed" instead of thawed.
        group: the worker's processes.
        at: when it began.
        until: when a frozen one was about to go on, or all were dead that were to die.
        pid: the process, of a killed child.
        stopped: when a frozen one surely stood still, or an orphaned one's main process was dead.
        alive: when one of its processes, of those that were killed, was seen for the last time.
    """

    kind: str
    group: int
    at: float
    until: float
    pid: int = 0
    stopped: float = 0.0
    alive: float = 0.0


def read_attempts(folder: Path) -> list[Attempt]:
    """Return all attempts in the order of their starts."""
    found: dict[str, Attempt] = {}
    ends: list[Line] = []
    for line in (line for path in folder.iterdir() for line in lines_of(path.read_text())):
        if line.what == "start":
            found[line.attempt] = Attempt(line.attempt, *line[3:], line.at)
        else:
            ends.append(line)
    for line in ends:
        found[line.attempt].outcome, found[line.attempt].end = line.what, line.at
    return sorted(found.values(), key=lambda attempt: attempt.start)


@dataclass
class Witness:
    """Know what happened, and say what was wrong with it.

    Args:
        attempts: in the order of their starts.
        disturbances: in the order of time.
        said: in the workers' logs, in the order of time.
        published: how many events each aggregate has.
        poison: the versions that always fail, by "<subscription>:<aggregate>".
        booked: what handlers have committed, by aggregate: version and attempt, in the order of
            the commits.
        lease_s: seconds of a lease.
        redriven_after_s: seconds that a dead letter waits at least.
    """

    attempts: Sequence[Attempt]
    disturbances: Sequence[Disturbance]
    said: Sequence[Said]
    published: dict[str, int]
    poison: dict[str, int]
    booked: dict[str, list[tuple[int, str]]]
    lease_s: float
    redriven_after_s: float = FIRST_REDRIVE_S * 0.95
    seen: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: when the lease's last beat can have been, of attempts that are late
    _late: dict[str, Disturbance] = field(default_factory=dict)
    #: when the processes of late attempts can have settled something for the last time
    _settled_until: dict[str, float] = field(default_factory=dict)
    #: attempts that came to their end when another worker had begun with their event
    _taken_over: dict[str, Attempt] = field(default_factory=dict)
    #: attempts whose thread was frozen between its look at the lease and the handler
    _begun: set[str] = field(default_factory=set)
    _starts: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    _by_group: dict[int, list[Disturbance]] = field(default_factory=lambda: defaultdict(list))

    def judge(self) -> Counter[str]:
        """Look at everything; returns counts.

        Raises:
            AssertionError: a promise was not kept.
        """
        for one in self.disturbances:
            self._by_group[one.group].append(one)
            self.seen[one.kind] += 1
        self._find_late()
        sequences: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            sequences[attempt.subscription, attempt.aggregate].append(attempt)
            self.seen["handlings"] += 1
            self.seen["failed"] += attempt.outcome == "fail"
        for subscription in SUBSCRIPTIONS:
            for aggregate, count in self.published.items():
                attempts = sequences.pop((subscription, aggregate), [])
                self._judge_sequence(f"{subscription}:{aggregate}", attempts, count)
        if sequences:
            self._complain("unknown", f"nobody published for {list(sequences)[:5]}")
        self._judge_commits()
        if self.wrong:
            shown = [f"{kind}: {text}" for kind, texts in self.wrong.items() for text in texts]
            counts = {kind: len(texts) for kind, texts in self.wrong.items()}
            raise AssertionError("\n".join([f"{counts}, {dict(self.seen)}", *shown[:SHOWN]]))
        return self.seen

    def _complain(self, kind: str, text: str) -> None:
        self.wrong[kind].append(text)

    # ------------------------------------------------------------ who was late, who was cut

    def _find_late(self) -> None:
        """Find the attempts whose message others may have had, by log, freeze and kill."""
        by_message: dict[tuple[int, int], list[Attempt]] = defaultdict(list)
        by_group: dict[int, list[Attempt]] = defaultdict(list)
        by_event: dict[tuple[str, str, int], list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            by_event[attempt.event].append(attempt)
            by_message[attempt.group, attempt.message_id].append(attempt)
            by_group[attempt.group].append(attempt)
            self._starts[attempt.group, attempt.thread].append(attempt.start)
        for loss in self.said:
            if not loss.text.startswith("lease lost: "):
                continue
            freeze = self._freeze_before(loss)
            if freeze is None:
                self._complain("lease lost without a freeze", str(loss))
                continue
            self.seen["leases lost"] += 1
            lost = {*loss.facts["messages"], *loss.facts["settled_too_late"]}
            self.seen["messages lost with them"] += len(lost)
            for message_id in lost:
                for attempt in by_message[loss.group, message_id]:
                    is_first = self._is_first_since(freeze, attempt)
                    if attempt.start >= loss.at and not (
                        is_first
                        and attempt.start < loss.at + BEGINS_S
                        and self._is_given_away(attempt, freeze, by_event[attempt.event])
                    ):
                        continue  # the queue has given it to the same worker again
                    if _was_open(attempt, freeze.at):
                        self._note_late(attempt, freeze)
                        if is_first and attempt.start > freeze.at + IN_TIME_S:
                            self.seen["begun as it was frozen"] += 1
                            self._begun.add(attempt.id)
        for one in self.disturbances:
            if one.kind not in {"orphaned", "frozen and killed"}:
                continue
            for attempt in by_group[one.group]:
                is_frozen = one.kind != "orphaned"
                if attempt.start < one.until and _was_open(attempt, one.at):
                    if is_frozen and attempt.start > one.at + UNSETTLED_S:
                        self._complain("ran while frozen", f"{attempt} in {one}")
                    self._note_late(attempt, one)

    def _note_late(self, attempt: Attempt, since: Disturbance) -> None:
        self._late[attempt.id] = since
        self._settled_until[attempt.id] = max(since.at, since.stopped)

    def _freeze_before(self, loss: Said) -> Disturbance | None:
        """Return the freeze that has cost a worker its lease."""
        for one in reversed(self._by_group[loss.group]):
            is_long = one.until - one.at > self.lease_s * LEFT
            if one.kind == "frozen" and is_long and one.until <= loss.at <= one.until + TOLD_S:
                return one
        return None

    def _is_first_since(self, freeze: Disturbance, attempt: Attempt) -> bool:
        """Say whether an attempt is the first of its thread since a freeze.

        Then its thread may have been frozen between the library's last look at the lease and the
        handler's first line.
        """
        starts = self._starts[attempt.group, attempt.thread]
        place = bisect_right(starts, max(freeze.at, freeze.stopped))
        return place < len(starts) and starts[place] == attempt.start

    def _is_given_away(
        self, attempt: Attempt, since: Disturbance, others: Sequence[Attempt]
    ) -> bool:
        """Say whether an event has another attempt since, and neither gave the other a reason."""
        return any(
            one.id != attempt.id
            and one.start > since.at
            and (one.start < (attempt.end or math.inf) or attempt.outcome == "end")
            and not self._has_led_to(attempt, one)
            for one in others
        )

    def _has_led_to(self, attempt: Attempt, before: Attempt) -> bool:
        """Say whether an attempt was made since another one had failed, or its process was killed.

        What was about to begin as it was frozen has the retries that it had then.
        """
        if before.outcome == "fail":
            since_s = attempt.start - (before.end or math.inf)
            is_retry = since_s >= 0 and before.retries < attempt.retries
            return is_retry or (before.retries == MAX_RETRIES and since_s >= self.redriven_after_s)
        cut = self._cut(before)
        return not before.outcome and cut is not None and cut.until <= attempt.start

    def _cut(self, attempt: Attempt) -> Disturbance | None:
        """Return what has killed an attempt's process in it, or before its end was known."""
        for one in self._by_group[attempt.group]:
            if one.kind == "frozen" or (one.pid and one.pid != attempt.pid):
                continue
            # Of a freeze or of orphans, what was open at its beginning is late, and not asked for.
            if attempt.start <= one.until + IN_TIME_S and _was_open(attempt, one.at):
                return one
        return None

    # ------------------------------------------------------------ one sequence

    def _judge_sequence(self, name: str, attempts: list[Attempt], count: int) -> None:
        poisoned = self.poison.get(name, count + 1)
        done: dict[int, float] = {}
        for attempt in attempts:
            if self._counts(attempt):
                assert attempt.end is not None
                done.setdefault(attempt.version, attempt.end)
        lost = [version for version in range(1, min(poisoned, count + 1)) if version not in done]
        if lost:
            self.seen["lost"] += len(lost)
            self._complain("lost", f"{name}: {lost} of {count}, poison {poisoned}")
        self._judge_blocked(name, attempts, poisoned, count)
        for attempt in attempts:
            before = attempt.version - 1
            if before and done.get(before, attempt.start + 1) > attempt.start:
                if attempt.id in self._late and self._ended_before(attempts, before, attempt):
                    continue
                self._complain("out of order", f"{attempt} before the end of {before}")
            if not attempt.outcome and self._cut(attempt) is None:
                self._complain("without an end", str(attempt))
        last: Attempt | None = None
        was_late = 0
        latest: dict[int, Attempt] = {}
        for attempt in attempts:
            if attempt.id in self._late:
                was_late = attempt.version
                continue
            if last is not None:
                if attempt.version < last.version:
                    self._judge_return(last, attempt, latest.get(attempt.version))
                self._judge_pair(last, attempt, is_after_late=was_late == attempt.version)
            latest[attempt.version] = last = attempt
            was_late = 0
        self._judge_late(attempts)

    def _counts(self, attempt: Attempt) -> bool:
        """Say whether an attempt's end can have counted."""
        if attempt.outcome != "end" or attempt.end is None:
            return False
        return attempt.end <= self._settled_until.get(attempt.id, attempt.end)

    def _ended_before(self, attempts: list[Attempt], version: int, late: Attempt) -> bool:
        """Say whether a late worker, for its part, has kept the order."""
        return any(
            one.version == version and one.outcome == "end" and (one.end or 0) <= late.start
            for one in attempts
        )

    def _judge_blocked(self, name: str, attempts: list[Attempt], poisoned: int, count: int) -> None:
        if poisoned > count:
            return
        self.seen["blocked sequences"] += 1
        self.seen["events parked behind them"] += count - poisoned
        behind = [attempt for attempt in attempts if attempt.version > poisoned]
        if behind:
            self._complain("ran behind a dead letter", f"{name}: {behind[0]}")
        tries = [one for one in attempts if one.version == poisoned]
        if any(one.outcome == "end" for one in tries):
            self._complain("poison passed", name)
        if not any(one.retries == MAX_RETRIES and one.outcome == "fail" for one in tries):
            self._complain("never a dead letter", name)

    def _judge_pair(self, one: Attempt, other: Attempt, *, is_after_late: bool) -> None:
        """Judge two attempts of a sequence of which the second began next, but for late ones."""
        cut = self._cut(one)
        over = one.end if one.end is not None else _dead_at(cut) if cut else None
        if over is None:
            return  # complained of already
        if other.start < over:
            self._complain("overlap", f"{one} and {other}")
        if other.version != one.version or is_after_late:
            return
        if one.outcome == "fail" and one.retries < MAX_RETRIES and other.retries > one.retries:
            self.seen["retried in place"] += 1
        elif (
            one.outcome == "fail"
            and one.retries == MAX_RETRIES
            and (cut is None or other.start - over >= self.redriven_after_s)
        ):
            # Tried again once: a message keeps its count of retries when it is a dead letter.
            self.seen["dead letters tried again"] += 1
            if other.start - over < self.redriven_after_s:
                self._complain("tried again too early", f"{one} and {other}")
        elif cut is None:
            self._complain("repeated without a reason", f"{one} and {other}")
        else:
            self.seen["repeated after a kill"] += 1
            if cut.kind != "child killed" and self._is_too_early(other, cut):
                self._complain("taken over within the lease", f"{one} and {other} after {cut}")

    def _judge_return(self, last: Attempt, attempt: Attempt, before: Attempt | None) -> None:
        """Judge a sequence that begins anew at an earlier event.

        A worker may go on in a sequence before the settlement of an event has reached the server,
        so what comes back when it is killed can be several events: from the first whose end
        nobody had heard of. One kill must explain the first and the last of them.
        """
        cut, first_cut = self._cut(last), self._cut(before) if before is not None else None
        if cut is None or first_cut != cut:
            self._complain("out of order", f"{attempt} after {last}; {self._context(attempt)}")
        else:
            self.seen["sequences begun anew after a kill"] += 1
            if cut.kind != "child killed" and self._is_too_early(attempt, cut):
                self._complain("taken over within the lease", f"{attempt} after {cut}")

    def _context(self, attempt: Attempt) -> str:
        """Return what happened to an attempt's worker shortly before it, and what it has lost."""
        since, until = attempt.start - 15, attempt.start + 5
        done = [one for one in self._by_group[attempt.group] if since < one.at < until]
        losses = [
            f"{one.at:.3f} {kind}"
            for one in self.said
            if one.group == attempt.group and since < one.at < until
            for kind in ("messages", "settled_too_late")
            if attempt.message_id in one.facts.get(kind, ())
        ]
        near = [one for one in self.attempts if abs(one.start - attempt.start) < 5]
        line = attempt.subscription, attempt.aggregate
        same_line = [str(one) for one in near if (one.subscription, one.aggregate) == line]
        same_process = [
            f"{one.start:.3f} {one.subscription}:{one.aggregate}:{one.version}"
            for one in near
            if one.pid == attempt.pid
        ]
        return (
            f"its worker: {done}; its message lost: {losses}; its process: {same_process};"
            f" its sequence: {same_line}"
        )

    def _is_too_early(self, taken: Attempt, since: Disturbance) -> bool:
        """Tell whether a message was taken over within its lease, from a worker not yet dead.

        All workers of a run are on one host, whatever their names say: what a dead one held is
        there for others at once. A worker is dead when its last process is.
        """
        return taken.start < min(since.at + self.lease_s * LEFT, _dead_at(since))

    def _judge_late(self, attempts: list[Attempt]) -> None:
        """Judge what others did with the messages of late attempts: only after the lease."""
        for late in attempts:
            since = self._late.get(late.id)
            if since is None:
                continue
            self.seen["late"] += 1
            if late.start > since.at + self.lease_s + IN_TIME_S and late.id not in self._begun:
                self._complain("begun past its lease", str(late))
            if late.outcome == "fail" and late.end is not None and late.end <= since.at + IN_TIME_S:
                continue  # its retry may have been sent in time
            other = self._taker(late, since.at, attempts)
            if other is None:
                continue
            self.seen["repeated after a freeze"] += other.start > late.start
            if self._is_too_early(other, since):
                self._complain("taken over within the lease", f"{late} and {other}")
            if late.end is not None and other.start < late.end:
                self._taken_over[late.id] = other
                is_both = other.end is None or other.end > late.start
                self.seen["overlaps of a holder past its lease"] += is_both

    def _taker(self, late: Attempt, since: float, attempts: list[Attempt]) -> Attempt | None:
        """Return the first attempt of another worker that has taken a late one's message over."""
        for other in attempts:
            is_same = other.version == late.version and other.group != late.group
            if is_same and other.start > since and other.id not in self._late:
                return other
        return None

    # ------------------------------------------------------------ commits

    def _judge_commits(self) -> None:
        """Compare what was committed with what was handled, what was refused with who was late."""
        by_id = {attempt.id: attempt for attempt in self.attempts}
        for aggregate, count in self.published.items():
            books = self.booked.get(aggregate, [])
            due = min(count, self.poison.get(f"{BOOK}:{aggregate}", count + 1) - 1)
            if [version for version, _ in books] != list(range(1, due + 1)):
                self._complain("commits", f"{aggregate}: {books}, expected 1 to {due}")
            for version, attempt_id in books:
                attempt = by_id[attempt_id]
                self.seen["commits"] += 1
                is_its_own = (attempt.aggregate, attempt.version) == (aggregate, version)
                if attempt.outcome != "end" or not is_its_own:
                    self._complain("commits", f"{aggregate}:{version} by {attempt}")
                if attempt_id in self._taken_over:
                    self._complain(
                        "a late commit was taken",
                        f"{attempt}, taken over by {self._taken_over[attempt_id]}",
                    )
        late = {
            (attempt.group, attempt.message_id)
            for attempt in self.attempts
            if attempt.id in self._late
        }
        for said in self.said:
            if said.text.startswith("lease lost, commit refused"):
                self.seen["commits refused"] += 1
                if (said.group, said.facts["message_id"]) not in late:
                    self._complain("commit refused without a reason", str(said))
            self.seen["retries refused"] += said.text.startswith("retry dropped")
            self.seen["not started"] += said.text.startswith("lease lost, not started")


def _dead_at(cut: Disturbance) -> float:
    """Return the time since which a worker, or its child, may have been dead.

    What was killed is dead a little before the one that kills it knows.
    """
    return math.inf if cut.kind == "frozen" else cut.alive or cut.until


def _was_open(attempt: Attempt, at: float) -> bool:
    """Say whether an attempt's end was not certain to be settled at a time."""
    return attempt.end is None or attempt.end > at - UNSETTLED_S
