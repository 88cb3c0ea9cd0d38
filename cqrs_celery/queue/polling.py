"""Poll the queues once a second for a consumer that waits for a wake-up.

A wake-up may be lost, and producers on Kombu's own transport send none. The cost of a poll depends
neither on the number of queues on the server nor on the number that the consumer has.
"""

from __future__ import annotations

from collections.abc import Sequence

from .reliable_queue import ReliableQueue
from .scripts import load
from .values import PRIORITY_STEPS

#: The most queues whose lists one poll examines.
MOST_QUEUES = 100

#: The suffix of a queue's list for each priority step, as in stock Kombu.
_STEP_SUFFIXES = ("", *(f"\x06\x16{step}" for step in PRIORITY_STEPS if step))

_poll = load("poll")


class IdlePoll:
    """The polls of one idle consumer.

    One command examines the lists of up to `MOST_QUEUES` queues, which are all of them in most
    setups. If a consumer has more, each poll examines the next `MOST_QUEUES`. In addition, a script
    finds what is due, what another consumer was woken for and has not taken, and what stock
    producers pushed into queues that they have used before.

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
        """Return whether a take may bring something; mostly one command.

        The answer is also True if another consumer's message is due: a take queues it.

        Args:
            queues: all queues that the consumer takes from, in the same order each time.

        Returns:
            False if there is nothing. With more than `MOST_QUEUES` queues, a message that a stock
            producer pushed may be found only by a later poll.

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
