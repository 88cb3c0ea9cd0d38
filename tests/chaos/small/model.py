"""What a small queue promises: where each message is, who holds it, in which order.

The model knows no key of the queue. It is told an operation and returns what the queue must answer;
what it then holds must be what `server.read` finds. Time does not pass by itself: what is delayed
becomes due, a lease ends, a letter's time comes when an operation says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CONSUMERS = ("A", "B")
SEQUENCES = ("X", "Y")
MESSAGES = 3
#: Deliveries without a settlement after which a message is a dead letter.
MOST_TRIES = 2


class Rules(NamedTuple):
    """How a small queue is set up.

    Attributes:
        blocks: whether its dead letters hold up their sequence, and are redriven by themselves.
        slots: how many messages a consumer is said to run at once; 0 for not known.
    """

    blocks: bool = True
    slots: int = 0


#: One delivery: consumer, message and fence.
Delivery = tuple[str, int, int]


@dataclass
class Model:
    """A small queue, as it must be.

    Attributes:
        rules: how it is set up.
        sequence_of: every message ever published, with its sequence, or "".
        line: what a free worker could take, next first: a message, or a sequence's name.
        order: the unsettled messages of each sequence, those in flight too, in their order.
        state: of each sequence: ("r",) ready, ("h", consumer, n) its first n are held, ("l",) its
            first waits for its time, ("d",) its first is a dead letter.
        held: of each consumer, the messages that it holds, with their fences, oldest first.
        delayed: what waits for its time, earliest first: a message or a sequence, and its time; 0
            once it is due.
        tries: deliveries without a settlement that count, of each message that has some.
        letters: the dead letters: "d", or "t" for one that is tried again.
        deaths: how often each of them died.
        consumers: each one: "live", "ended" (its lease), or "gone" (recovered, or has left).
        hungry: those whose last take brought nothing.
        asleep: those of them that nobody has woken since.
        over: the last delivery of a message to a consumer that went back, by its own word or
            without: settling it again must count nothing, even where the same consumer holds the
            message anew.
        fence: the highest fence so far.
    """

    rules: Rules
    sequence_of: dict[int, str] = field(default_factory=dict)
    line: list[int | str] = field(default_factory=list)
    order: dict[str, list[int]] = field(default_factory=dict)
    state: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    held: dict[str, dict[int, int]] = field(default_factory=dict)
    delayed: list[tuple[int | str, int]] = field(default_factory=list)
    tries: dict[int, int] = field(default_factory=dict)
    letters: dict[int, str] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    consumers: dict[str, str] = field(default_factory=lambda: dict.fromkeys(CONSUMERS, "live"))
    hungry: set[str] = field(default_factory=set)
    asleep: set[str] = field(default_factory=set)
    over: dict[tuple[str, int], int] = field(default_factory=dict)
    fence: int = 0

    def copy(self) -> Model:
        """Return a model that changes by itself."""
        return Model(
            self.rules,
            self.sequence_of.copy(),
            self.line.copy(),
            {name: ids.copy() for name, ids in self.order.items()},
            self.state.copy(),
            {name: held.copy() for name, held in self.held.items()},
            self.delayed.copy(),
            self.tries.copy(),
            self.letters.copy(),
            self.deaths.copy(),
            self.consumers.copy(),
            self.hungry.copy(),
            self.asleep.copy(),
            self.over.copy(),
            self.fence,
        )

    # ------------------------------------------------------------ in line

    def publish(self, sequence: str, is_delayed: bool) -> None:
        """Put a new message in line, or delay it: then it holds up nothing."""
        message = len(self.sequence_of) + 1
        self.sequence_of[message] = sequence
        if is_delayed:
            self.delay(message)
        else:
            self.enqueue(message)

    def next_time(self) -> int:
        """Return a time after every one that something waits for."""
        return max((at for _, at in self.delayed), default=0) + 1

    def delay(self, what: int | str) -> None:
        self.delayed.append((what, self.next_time()))

    def enqueue(self, message: int) -> None:
        """Put a message behind all others, those of its sequence included."""
        sequence = self.sequence_of[message]
        if not sequence:
            self.line.append(message)
            return
        self.order.setdefault(sequence, []).append(message)
        if sequence not in self.state:
            self.state[sequence] = ("r",)
            self.line.append(sequence)

    def free(self, sequence: str, *, at_head: bool) -> None:
        """Let a sequence go on, if anything is left of it."""
        if not self.order.get(sequence):
            self.order.pop(sequence, None)
            self.state.pop(sequence, None)
            return
        self.state[sequence] = ("r",)
        self.line.insert(0 if at_head else len(self.line), sequence)

    def put_back(self, messages: Iterable[int]) -> None:
        """Put plain messages at the head, each before the first younger one that stands there."""
        back = list(messages)
        if not back:
            return
        youngest = max(back)
        while self.line and isinstance(self.line[0], int) and self.line[0] <= youngest:
            back.append(self.line[0])
            del self.line[0]
        self.line[:0] = sorted(back)

    def promote(self) -> None:
        """Put what is due in line: what was delivered before at the head, earliest first."""
        due = [what for what, at in self.delayed if not at]
        self.delayed = [one for one in self.delayed if one[1]]
        heads = [w for w in due if isinstance(w, str) or not self.sequence_of[w]]
        for what in heads:
            if isinstance(what, str):
                self.state[what] = ("r",)
        self.line[:0] = heads
        for what in due:
            if isinstance(what, int) and self.sequence_of[what]:
                self.enqueue(what)

    # ------------------------------------------------------------ take and settle

    def take(self, consumer: str, count: int, run: int) -> tuple[list[tuple[Any, ...]], int]:
        """Return what a take brings, {message, sequence, tries}, and how many are not behind
        another one of their sequence."""
        self.promote()
        elements, self.line = self.line[:count], self.line[count:]
        messages = [one if isinstance(one, int) else self.order[one][0] for one in elements]
        firsts = len(messages)
        for one in elements:
            if isinstance(one, str):
                more = self.order[one][1:run]
                messages += more
                self.state[one] = ("h", consumer, 1 + len(more))
        if not messages:
            self.hungry.add(consumer)
            self.asleep.add(consumer)
        else:
            self.hungry.discard(consumer)
            self.asleep.discard(consumer)
        return [(m, self.sequence_of[m], self.tries.get(m, 0)) for m in messages], firsts

    def hold(self, consumer: str, taken: Iterable[tuple[int, int]]) -> None:
        """Remember deliveries with their fences."""
        for message, fence in taken:
            self.held.setdefault(consumer, {})[message] = fence
            self.fence = max(self.fence, fence)

    def settle(self, consumer: str, operations: Iterable[tuple[str, int]]) -> list[int]:
        """End deliveries that the consumer holds; returns what it has to hand back with them."""
        held = self.held.get(consumer, {})
        backs: dict[str, tuple[str, int] | None] = {}
        plain: list[int] = []
        revoked: list[int] = []
        for how, message in operations:
            if message not in held:
                continue
            fence, sequence = held.pop(message), self.sequence_of[message]
            if how == "a" or (how == "d" and not (sequence and self.rules.blocks)):
                if sequence:
                    self._leave(sequence, message)
                    backs.setdefault(sequence, None)
                if how == "a":
                    self.finish(message)
                else:
                    self.bury(message)
                continue
            self.over[consumer, message] = fence
            if how == "r":
                self.tries[message] = self.tries.get(message, 0) + 1
            if sequence:
                revoked += self._withdraw(consumer, sequence, message)
                backs[sequence] = (how, message)
            elif how == "l":
                self.delay(message)
            else:
                plain.append(message)
        returning = [name for name, back in backs.items() if back]
        returning.sort(key=lambda name: -(backs[name] or ("", 0))[1])
        for name in [name for name, back in backs.items() if not back] + returning:
            self._go_on(name, backs[name])
        self.put_back(plain)
        return revoked

    def _leave(self, sequence: str, message: int) -> None:
        self.order[sequence].remove(message)
        _, consumer, n = self.state[sequence]
        self.state[sequence] = ("h", consumer, n - 1)

    def _withdraw(self, consumer: str, sequence: str, message: int) -> list[int]:
        """Take everything back that the consumer holds behind a message of a sequence."""
        _, _, n = self.state[sequence]
        ahead = self.order[sequence].index(message)
        behind = self.order[sequence][ahead + 1 : n]
        for one in behind:
            self.over[consumer, one] = self.held[consumer].pop(one)
        self.state[sequence] = ("h", consumer, ahead)
        return behind

    def _go_on(self, sequence: str, back: tuple[str, int] | None) -> None:
        _, _, n = self.state[sequence]
        how, message = back or ("", 0)
        if n:
            return
        if how == "l":
            self.state[sequence] = ("l",)
            self.delay(sequence)
        elif how == "d":
            self.state[sequence] = ("d",)
            self.bury(message)
        else:
            self.free(sequence, at_head=back is not None)

    def finish(self, message: int) -> None:
        """Forget a message that is done, or deleted."""
        for kept in (self.tries, self.letters, self.deaths):
            kept.pop(message, None)
        self.over = {one: fence for one, fence in self.over.items() if one[1] != message}

    # ------------------------------------------------------------ consumers that are lost

    def recover(self) -> list[tuple[str, int, int]]:
        """Give back what consumers hold whose lease has ended: {consumer, messages, letters}."""
        ended = sorted(name for name, state in self.consumers.items() if state == "ended")
        return self._give_back({name: self.charged(name) for name in ended})

    def leave(self, consumer: str) -> list[tuple[str, int, int]]:
        """Give back what a consumer holds that ends in order: no delivery counts."""
        return self._give_back({consumer: set()})

    def charged(self, consumer: str) -> set[int]:
        """Return the messages that may have been running: their delivery counts."""
        held, slots = self.held.get(consumer, {}), self.rules.slots
        firsts: dict[int | str, int] = {}
        for message in held:
            sequence = self.sequence_of[message]
            firsts[sequence or message] = self.order[sequence][0] if sequence else message
        oldest = sorted(firsts.values(), key=held.__getitem__)
        if not slots or len(oldest) <= slots:
            return set(oldest)
        # An odd fence was taken behind another one of its sequence, to be delivered later.
        return {message for message in oldest[:slots] if held[message] % 2 == 0}

    def _give_back(self, ended: dict[str, set[int]]) -> list[tuple[str, int, int]]:
        """Put back what consumers held, all of it together: what is older comes first.

        Args:
            ended: their names, each with what counts a delivery.
        """
        found, held, worn = [], set[int](), set[int]()
        for consumer, charged in ended.items():
            mine = self._end(consumer)
            letters = {message for message in charged if self._is_worn(message)}
            found.append((consumer, len(mine), len(letters)))
            held |= mine
            worn |= letters
        names = {self.sequence_of[message] for message in held} - {""}
        for name in sorted(names, key=lambda name: -self.order[name][0]):
            first = self.order[name][0]
            if first in worn and self.rules.blocks:
                self.state[name] = ("d",)
                continue
            if first in worn:
                del self.order[name][0]
            self.free(name, at_head=True)
        self.put_back(m for m in held if not self.sequence_of[m] and m not in worn)
        return found

    def _end(self, consumer: str) -> set[int]:
        """Forget a consumer; returns what it held."""
        held = self.held.pop(consumer, {})
        self.consumers[consumer] = "gone"
        self.hungry.discard(consumer)
        self.asleep.discard(consumer)
        self.over |= {(consumer, message): fence for message, fence in held.items()}
        return set(held)

    def _is_worn(self, message: int) -> bool:
        """Count a delivery, and set the message aside if it was one too many."""
        self.tries[message] = self.tries.get(message, 0) + 1
        if self.tries[message] < MOST_TRIES:
            return False
        self.bury(message)
        return True

    # ------------------------------------------------------------ letters, and the rest

    def bury(self, message: int) -> None:
        """Make a message a dead letter."""
        self.letters[message] = "d"
        self.deaths[message] = self.deaths.get(message, 0) + 1

    def holds_up(self, message: int) -> bool:
        """Tell whether a letter is what its sequence waits for."""
        sequence = self.sequence_of[message]
        return self.state.get(sequence) == ("d",) and self.order[sequence][0] == message

    def redrive(self, message: int) -> None:
        """Put a letter back in line, with a fresh count: to the head of what it holds up."""
        is_head = self.holds_up(message)
        self.letters[message] = "t"
        self.tries.pop(message, None)
        if is_head:
            self.free(self.sequence_of[message], at_head=True)
        else:
            self.enqueue(message)

    def discard(self, message: int) -> None:
        """Delete a letter; what it held up goes on."""
        sequence = self.sequence_of[message]
        if self.holds_up(message):
            del self.order[sequence][0]
            self.free(sequence, at_head=True)
        self.finish(message)

    def redrive_due(self) -> list[tuple[int, int]]:
        """Redrive every letter: {message, how many waited behind it}."""
        found = []
        for message in sorted(m for m, state in self.letters.items() if state == "d"):
            is_head = self.holds_up(message)
            behind = len(self.order[self.sequence_of[message]]) - 1 if is_head else 0
            found.append((message, behind))
            self.redrive(message)
        return found

    def purge(self) -> int:
        """Delete what is neither in flight nor dead; returns how many."""
        gone = [m for m in self.line if isinstance(m, int)]
        gone += [what for what, _ in self.delayed if isinstance(what, int)]
        self.line, self.delayed = [], []
        for name, state in list(self.state.items()):
            kept = {"h": lambda s: int(s[2]), "d": lambda _: 1}.get(state[0], lambda _: 0)(state)
            gone += self.order[name][kept:]
            del self.order[name][kept:]
            if not kept:
                self.free(name, at_head=True)
        for message in gone:
            self.finish(message)
        return len(gone)

    def count(self) -> list[int]:
        """Return the numbers that the queue must give: see `QueueCount`."""
        waiting = {"r": 0, "h": 0, "l": 0, "d": 0}
        for name, state in self.state.items():
            waiting[state[0]] += len(self.order[name])
        alone = sum(isinstance(what, int) for what, _ in self.delayed)
        running = waiting["r"] + waiting["h"]
        return [len(self.line), running, waiting["l"], waiting["d"], alone, len(self.letters)]

    def unsettled(self) -> set[int]:
        """Return every message that is somewhere."""
        found = {message for message in self.line if isinstance(message, int)}
        found |= {what for what, _ in self.delayed if isinstance(what, int)}
        return found.union(self.letters, *self.order.values(), *self.held.values())
