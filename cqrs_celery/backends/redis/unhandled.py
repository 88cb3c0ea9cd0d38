"""Find the oldest event that some subscriber has not handled, without reading the whole backlog.

Bodies have increasing numbers, and so have the positions of events in them, but where the relay
went back: what it gives again has higher numbers, and only those count. What is handled stays
handled, so each number is looked at once: a look goes on where the last one ended. Where to begin,
the first look finds by passes over all that is there, a slice a time.

Where several stores give to the same queues, a position alone does not tell whose it is. Then each
relay remembers how far it had come at which number: what it had given by then is handled when
everything up to that number is, whoever gave it.

A message that is retried no longer shares the body: it counts under a number of its own, which is
not lower, and its position is in its head.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any, Final, cast

import redis

from ...store.events import POSITION_HEADER

#: Seconds that a look may take.
LOOK_S: Final = 0.25

#: Numbers looked at in one round trip.
SLICE: Final = 1_000

#: How many places a relay remembers. Of more, one between the nearest two is forgotten.
MOST_PLACES: Final = 500

#: How an event's body begins, and where its position is.
_POSITION: Final = re.compile(rb'[\[{",:]*"stream":"(?:[^"\\]|\\.)*","position":(\d+)')

#: Where its position is in the head of an event that is retried. No text in JSON can look so.
_RETRIED: Final = re.compile(rb'"%s": ?(\d+)' % POSITION_HEADER.encode())


class OldestUnhandled:
    """A cursor over the bodies that some message still needs; not for several threads.

    Args:
        client: returns a redis client that gives bytes.
        key: returns the key of a name.
        look_s: seconds that a look may take.
    """

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        key: Callable[[str], str],
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._client = client
        self._key = key
        self._look_s = look_s
        self.reset()

    def reset(self, *, after: int = 0) -> None:
        """Begin anew, as where the server may have lost data.

        Args:
            after: the number of the last body of before the relay went back.
        """
        self._after = after
        self._server = ""
        # No event before this number is unhandled; None until the pass over all is done.
        self._next: int | None = None
        self._reread = 0
        self._cursor = 0
        self._is_second_pass = False
        self._lowest = 0
        self._position = 1

    @property
    def first_number(self) -> int:
        """The number before which the last look has found no event that is not handled."""
        return self._next or 0

    def look(self) -> int | None:
        """Return the position of the oldest event that is not handled.

        Returns:
            A position in front of which everything is handled: that of the oldest one, or, where
            the look did not come so far, one before it. None if there is none.

        Raises:
            redis.RedisError: the server does not answer.
        """
        client: Any = self._client()
        server = _server_of(client)
        if not server or server != self._server:
            # Another server, or one that was started anew, may have less than it had.
            self.reset(after=self._after)
            self._server = server
        # Where that can't be told, each look goes over all.
        deadline = time.monotonic() + (self._look_s if server else math.inf)
        last = int(client.get(self._key("id")) or 0)
        if not self._lowest:
            # What comes later has a higher number.
            self._lowest = last + 1
        if self._next is None and not self._pass(client, deadline):
            return self._position
        return self._go_on(client, last, deadline)

    def _pass(self, client: Any, deadline: float) -> bool:
        """Go over all that is there; returns whether that is done.

        A message that is retried meanwhile changes its place once, perhaps to one that was passed:
        so those that are retried are gone over once more.
        """
        while True:
            pattern = "0*" if self._is_second_pass else None
            self._cursor, found = client.hscan(
                self._key("refs"), self._cursor, match=pattern, count=SLICE
            )
            numbers = (int(one) for one in found)
            self._lowest = min([self._lowest, *(one for one in numbers if one > self._after)])
            if self._cursor == 0:
                if self._is_second_pass:
                    self._next = self._lowest
                    return True
                self._is_second_pass = True
            if time.monotonic() > deadline:
                return False

    def _go_on(self, client: Any, last: int, deadline: float) -> int | None:
        while cast(int, self._next) <= last:
            first = cast(int, self._next)
            numbers = range(first, min(first + SLICE, last + 1))
            # At one moment, since a message that is retried moves from the one to the other.
            needed = client.hmget(self._key("refs"), [*numbers, *(f"0{n}" for n in numbers)])
            counts = zip(numbers, needed[: len(numbers)], needed[len(numbers) :], strict=True)
            for number, is_shared, is_retried in counts:
                if not (is_shared or is_retried):
                    continue
                body = client.hget(self._key("body"), number) if is_shared else b""
                if body is None and self._reread != number:
                    # Handled just now, or retried.
                    self._next = self._reread = number
                    break
                found = _POSITION.match(body or b"")
                if found is None and is_retried:
                    found = _retried_position(client.hget(self._key("msg"), number) or b"")
                if found:
                    self._next, self._position = number, int(found[1])
                    return self._position
                # A message that is no event, or one that was handled just now.
            else:
                self._next = first + len(numbers)
            if time.monotonic() > deadline:
                return self._position
        return None


class PlacesGiven:
    """How far one store's events had been given, when the numbers of messages had come how far."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []

    def forget(self) -> None:
        """Begin anew, as where the relay goes back."""
        self._places.clear()

    def remember(self, position: int, last_number: int) -> None:
        """Remember that everything up to a position has numbers up to this one."""
        if self._places and self._places[-1][0] == position:
            return
        self._places.append((position, last_number))
        if len(self._places) > MOST_PLACES:
            numbers = [number for _, number in self._places]
            inner = range(1, len(numbers) - 1)
            del self._places[min(inner, key=lambda i: numbers[i + 1] - numbers[i - 1])]

    def handled_before(self, number: int) -> int:
        """Return up to which position everything is handled, if all before a number is.

        Args:
            number: what was asked for last, or a higher one.

        Returns:
            The position; 0 if none is known.
        """
        handled = [place for place in self._places if place[1] < number]
        if not handled:
            return 0
        del self._places[: len(handled) - 1]
        return handled[-1][0]


def _retried_position(payload: bytes) -> re.Match[bytes] | None:
    """Return where the position is in a retried event's payload; None if it is another message."""
    _, head, *_ = [*payload.split(b"\n", 2), b""]
    return _RETRIED.search(head)


def _server_of(client: Any) -> str:
    """Return what tells a server's process from any other; empty if it may not be asked."""
    try:
        return str(client.info("server").get("run_id", ""))
    except redis.ResponseError:
        return ""
