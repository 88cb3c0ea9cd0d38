"""What the model says of an operation, held against what the server did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cqrs_celery.queue.dead_letters import LookedAfter
from cqrs_celery.queue.values import Recovered

from .model import Model
from .operations import Operation
from .server import QUEUE, Outcome, State, as_sets, left_over, read, seen_by


class Node(NamedTuple):
    """A state that was reached, on the server and in the model, and by which operations."""

    state: State
    model: Model
    path: tuple[Operation, ...]


class Disagreement(AssertionError):
    """The server did not do what the model says."""

    def __init__(self, path: Iterable[Operation], what: str, expected: object, found: object):
        self.path, self.what, self.expected, self.found = tuple(path), what, expected, found
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.path, 1))
        super().__init__(f"{what}\nexpected {expected}\nfound    {found}\nafter\n{steps}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.what, self.expected, self.found)


def _number_of(reply: Any) -> int:
    """Return how many messages a publish has stored; it may say more beside."""
    return int(reply[0] if isinstance(reply, list) else reply)


class Judge:
    """What the model says of one operation, held against what the server did."""

    def __init__(self, node: Node, operation: Operation, outcome: Outcome) -> None:
        self.node_before, self.before = node, node.model
        self.operation, self.outcome = operation, outcome
        self.path = (*node.path, operation)
        self.model = node.model.copy()

    def check(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            raise Disagreement(self.path, what, expected, found)

    def node(self) -> Node:
        """Return the node that was reached.

        Raises:
            Disagreement: the server did something else.
        """
        kind, *arguments = self.operation
        getattr(self, f"_{kind.replace(' ', '_')}")(*arguments)
        self._check_wakes()
        seen, found = seen_by(self.model), read(self.outcome.state)
        for name, expected in seen.items():
            self.check(f"{name} after it", expected, found[name])
        if not seen["messages"]:
            self.check("keys left when all is done", [], left_over(self.outcome.state))
        return Node(self.outcome.state, self.model, self.path)

    def _check_wakes(self) -> None:
        """Somebody who sleeps is woken when there is something to take, and was not."""
        asleep, line = self.model.asleep, self.model.line
        is_new = line and not self.before.line
        is_left = line and self.operation[0] in {"take", "finish and take"}
        if asleep and (is_new or is_left):
            self.check("somebody is woken", True, bool(asleep.intersection(self.outcome.woken)))
        asleep.difference_update(self.outcome.woken)

    def _answer(self, expected: object) -> None:
        self.check("answer", expected, self.outcome.replies[-1])

    def _publish(self, sequence: str, is_delayed: bool) -> None:
        self.check("stored", 1, _number_of(self.outcome.replies[-1]))
        self.model.publish(sequence, is_delayed)

    def _join(self, name: str) -> None:
        self.model.consumers[name] = "live"

    def _beat(self, name: str) -> None:
        self.model.consumers[name] = "live"
        self.check("answer", 1, self.outcome.replies[0][0])

    def _end_lease(self, name: str) -> None:
        self.model.consumers[name] = "ended"

    def _due(self) -> None:
        place = next(i for i, (_, at) in enumerate(self.model.delayed) if at)
        self.model.delayed[place] = (self.model.delayed[place][0], 0)

    def _recover(self) -> None:
        self._answer([Recovered(*one) for one in self.model.recover()])

    def _leave(self, name: str) -> None:
        self._answer([Recovered(*one) for one in self.model.leave(name)])

    def _redrive(self, message: int) -> None:
        self._answer("done")
        self.model.redrive(message)

    def _discard(self, message: int) -> None:
        self._answer("done")
        self.model.discard(message)

    def _redrive_due(self) -> None:
        found = self.model.redrive_due()
        self._answer([LookedAfter(QUEUE, m, "redriven", n, False) for m, n in found])

    def _purge(self) -> None:
        self._answer(self.model.purge())

    def _take(self, name: str, count: int, run: int) -> None:
        self._exchange(name, [], count, run)

    def _settle(self, name: str, how: str, message: int) -> None:
        self._exchange(name, [(how, message)], 0, 1)

    def _settle_twice(self, name: str, message: int) -> None:
        """Once by the fence of an earlier delivery, which counts nothing, once by the present."""
        self._exchange(name, [("a", message)], 0, 1, late=[message])

    def _finish_and_take(self, name: str) -> None:
        self._exchange(name, [("a", message) for message in self.model.held[name]], 1, 1)

    def _requeue_all(self, name: str) -> None:
        self._exchange(name, [("r", message) for message in self.model.held[name]], 0, 1)

    def _exchange(
        self,
        name: str,
        settled: list[tuple[str, int]],
        count: int,
        run: int,
        late: Sequence[int] = (),
    ) -> None:
        (known, refused, revoked, due, take, firsts, taken, *_), *pieces = self.outcome.replies[0]
        expected = self.model.settle(name, settled)
        gone = [*late, *(m for _, m in settled if m in expected)]
        self.check("known", 1, known)
        self.check("refused", gone, [int(m) for m in refused])
        self.check("revoked", sorted(set(expected)), sorted(int(m) for m in revoked))
        if not count:
            return
        messages, many = self.model.take(name, count, run)
        brought = [
            (int(m), sequence, int(tries) % 1_000_000) for m, _, sequence, _, tries, _ in taken
        ]
        self.check("taken", messages, brought)
        letters = [m for m, _, _, _, tries, _ in taken if int(tries) >= 1_000_000]
        with_letter = [str(m) for m, _, _ in messages if m in self.model.letters]
        self.check("taken from letters", with_letter, letters)
        self.check("payloads", [f"m{m}" for m, _, _ in messages], pieces)
        if messages:
            self.check("not behind another one", many, firsts)
            self.check("fences grow", True, take > self.model.fence and take % 2 == 0)
        self.check("something is delayed", bool(self.model.delayed), due >= 0)
        fences = [(m, take + 2 * i + (i >= many)) for i, (m, _, _) in enumerate(messages)]
        self.model.hold(name, fences)

    def _what_counts_nothing(self) -> None:
        replies = iter(self.outcome.replies)
        expected = self.model.count()
        self.check("count", expected, next(replies)[: len(expected)])
        for _ in self.model.sequence_of:
            self.check("repeated publish", 0, _number_of(next(replies)))
        for name, message in self.model.over:
            known, refused, revoked, *_ = next(replies)[0]
            self.check("known", int(self.model.consumers[name] != "gone"), known)
            self.check("late settlements refused", [str(message)] * 4, refused)
            self.check("late settlements take nothing back", [], revoked)
        for state in self.model.consumers.values():
            if state == "gone":
                self.check("beat of one that was recovered", 0, next(replies)[0])
                known, *_ = answer = next(replies)[0]
                self.check("take of one that was recovered", (0, []), (known, answer[6]))
        after = self.outcome.state
        self.check("what is in the keys", as_sets(self.node_before.state), as_sets(after))
