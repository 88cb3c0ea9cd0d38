"""Poll the queues once a second for a consumer that waits for a wake-up.

A wake-up may be lost, and stock producers send none. A poll costs the same however many queues
there are on the server, and however many of them the consumer has.
"""

from __future__ import annotations

from collections.abc import Sequence

from .reliable_queue import ReliableQueue
from .scripts import load
from .values import PRIORITY_STEPS

#: The most queues whose lists are looked at in one poll.
MOST_QUEUES = 100

#: What follows a queue's name in the name of the list of each priority step, as stock Kombu has it.
_STEP_SUFFIXES = ("", *(f"\x06\x16{step}" for step in PRIORITY_STEPS if step))

_poll = load("poll")


class IdlePoll:
    """The polls of one idle consumer.

    One command looks at the lists of up to `MOST_QUEUES` queues, which are all of them in most
    setups. A consumer that has more looks at that many in turn. Besides, a script finds what is
    due, what another consumer was woken for and has not taken, and what stock producers pushed into
    queues in which they did so before.

    Args:
        queue: the queues.
        consumer: the name of the consumer.
    """

    def __init__(self, queue: ReliableQueue, consumer: str) -> None:
        self._queue = queue
        self._consumer = consumer
        self._marks = [queue.key("due"), queue.key("called")]
        self._place = 0

    def may_take(self, queues: Sequence[str]) -> bool:
        """Return whether a take may bring something; one command, mostly.

        Also True if another consumer's message is due: a take puts it in line.

        Args:
            queues: all that the consumer takes from, in the same order each time.

        Returns:
            False if there is nothing; of more than `MOST_QUEUES` queues, a message that a stock
            producer pushed may be found by a later poll.

        Raises:
            redis.RedisError: as the driver raised it.
        """
        client = self._queue.client
        prefix, some = self._queue.prefix, self._next_of(queues)
        lists = [f"{prefix}{queue}{step}" for queue in some for step in _STEP_SUFFIXES]
        found = int(client.exists(*lists, *self._marks))
        if not found and len(some) == len(queues):
            return False
        may_take, marks = _poll(client, [self._queue.key("id")], [prefix, self._consumer])
        return bool(may_take) or found > int(marks)

    def _next_of(self, queues: Sequence[str]) -> Sequence[str]:
        """Return the queues whose turn it is."""
        if len(queues) <= MOST_QUEUES:
            return queues
        first = self._place % len(queues)
        self._place = first + MOST_QUEUES
        some = queues[first : self._place]
        return [*some, *queues[: MOST_QUEUES - len(some)]]
