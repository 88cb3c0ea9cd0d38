"""Go through the states of a small queue that some operations can reach, one level after the other.

From each state every operation that makes sense is tried, on the server and on the model. What the
server answers, whom it wakes and what is in it then must be what the model says. States that differ
by names, times and fences alone are one. A level that is too large for the time at hand can be
thinned by a seed: then it is a sample that goes on from there.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .judge import Judge, Node
from .model import Model, Rules
from .operations import NOTHING, Operation, calls, operations
from .server import Outcome, SmallServer, beginning, fingerprint


@dataclass
class Walk:
    """A walk through the states that can be reached.

    Args:
        server: it is emptied.
        rules: how the queue is set up.
    """

    server: SmallServer
    rules: Rules
    #: States that were new, and operations that were tried, at each depth.
    states: Counter[int] = field(default_factory=Counter)
    transitions: Counter[int] = field(default_factory=Counter)
    #: The kinds of operations that were tried.
    kinds: Counter[str] = field(default_factory=Counter)
    _seen: set[bytes] = field(default_factory=set)

    def start(self) -> Node:
        """Return the node at which everything begins."""
        node = Node(beginning(self.server, self.rules), Model(self.rules), ())
        self.notice(node)
        self.states[0] = 1
        return node

    def notice(self, node: Node) -> bool:
        """Return whether no state like a node's was noticed before."""
        text = fingerprint(node.state, node.model)
        key = hashlib.blake2b(text.encode(), digest_size=12).digest()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def run(self, depth: int, *, whole: int, most: int, seed: int) -> None:
        """Try every interleaving of some operations, and a sample of longer ones.

        Args:
            depth: the most operations.
            whole: up to so many, none is left out.
            most: how many states of each further level are gone on from, and one more for each kind
                of operation that was not tried before and that none of them has.
            seed: by which these are chosen.

        Raises:
            Disagreement: with the operations that lead to it.
        """
        level, rng = [self.start()], random.Random(seed)
        for n in range(1, depth + 1):
            if n > whole:
                level = self._sample(level, most, rng)
            level = [
                reached
                for _, found in self.next_level(level, n, is_last=n == depth)
                for reached in found
            ]

    def follow(self, path: Iterable[Operation]) -> Node:
        """Do some operations one after the other; returns what they lead to.

        Raises:
            Disagreement: with the operations that lead to it.
            ValueError: an operation makes no sense where it stands.
        """
        node = self.start()
        for wanted in path:
            ((_, tried, outcomes),) = self._tried([node])
            node = Judge(node, wanted, outcomes[tried.index(wanted)]).node()
        return node

    def _sample(self, level: list[Node], most: int, rng: random.Random) -> list[Node]:
        """Return some nodes of a level, with which every kind of operation that it has is tried.

        A kind that a hundredth of the states have would otherwise be left out by some seeds.
        """
        shuffled = rng.sample(level, len(level))
        chosen, known = shuffled[:most], set(self.kinds)
        known.update(one[0] for node in chosen for one in operations(node.model))
        for node in shuffled[most:]:
            kinds = {one[0] for one in operations(node.model)}
            if not kinds <= known:
                chosen.append(node)
                known |= kinds
        return chosen

    def next_level(
        self, level: Iterable[Node], n: int, *, is_last: bool
    ) -> Iterator[tuple[Node, list[Node]]]:
        """Yield each node with the states that one more operation reaches, and none did before.

        Raises:
            Disagreement: with the operations that lead to it.
        """
        for node, tried, outcomes in self._tried(level):
            found = []
            for operation, outcome in zip(tried, outcomes, strict=True):
                self.transitions[n] += 1
                self.kinds[operation[0]] += 1
                reached = Judge(node, operation, outcome).node()
                if not is_last and operation != NOTHING and self.notice(reached):
                    found.append(reached)
            self.states[n] += len(found)
            yield node, found

    def _tried(
        self, level: Iterable[Node]
    ) -> Iterator[tuple[Node, list[Operation], list[Outcome]]]:
        """Yield each node with its operations and outcomes; meanwhile the server goes on."""
        waiting: tuple[Node, list[Operation], list[Outcome]] | None = None
        for node in level:
            tried = list(operations(node.model))
            found = [calls(one, node.model) for one in tried]
            self.server.ask(node.state, [one for one in found if not callable(one)])
            if waiting:
                yield waiting
            of_calls = iter(self.server.answer())
            outcomes = [
                self.server.try_program(node.state, one) if callable(one) else next(of_calls)
                for one in found
            ]
            waiting = (node, tried, outcomes)
        if waiting:
            yield waiting
