"""Find the oldest event that some subscriber has not handled, without reading the whole backlog.

Bodies have increasing numbers, and their events have increasing positions. The exception is a relay
that went back: the events that it sends again have higher numbers, and only those count. A handled
event stays handled, so each number is examined once: a search continues where the last one ended.
The first search finds where to begin by passes over all bodies, one slice at a time.

If several stores send to the same queues, a position alone does not show which store it belongs to.
Each relay then remembers its position together with the highest number at that time. The events
that it had sent by then are handled when everything up to that number is, whichever store sent it.

A message that is retried no longer shares its body: it has its own number, which is not lower, and
its position is in its head.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any, Final, cast

import redis

from ...store.events import POSITION_HEADER

#: The most seconds that a search may take.
LOOK_S: Final = 0.25

#: The numbers examined in one round trip.
SLICE: Final = 1_000

#: The most places that a relay remembers. Above that, the one with the nearest neighbours goes.
MOST_PLACES: Final = 500

#: The beginning of an event's body, with its position.
_POSITION: Final = re.compile(rb'[\[{",:]*"stream":"(?:[^"\\]|\\.)*","position":(\d+)')

#: The position in the head of a retried event. No text inside the JSON can match it.
_RETRIED: Final = re.compile(rb'"%s": ?(\d+)' % POSITION_HEADER.encode())


class OldestUnhandled:
    """A cursor over the bodies that some message still needs; not safe for several threads.

    Args:
        client: returns a redis client that returns bytes.
        key: returns the key of a name.
        look_s: the most seconds that a search may take.
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
        """Begin anew, such as after the server may have lost data.

        Args:
            after: the number of the last body before the relay went back.
        """
        self._after = after
        self._server = ""
        # No event before this number is unhandled; None until both passes are done.
        self._next: int | None = None
        self._reread = 0
        self._cursor = 0
        self._is_second_pass = False
        self._lowest = 0
        self._position = 1

    @property
    def first_number(self) -> int:
        """The number before which the last search found no unhandled event."""
        return self._next or 0

    def look(self) -> int | None:
        """Return the position of the oldest unhandled event.

        Returns:
            A position before which everything is handled: that of the oldest unhandled event, or a
            lower one if the search did not get that far. None if all events are handled.

        Raises:
            redis.RedisError: the server does not answer.
        """
        client: Any = self._client()
        server = _server_of(client)
        if not server or server != self._server:
            # Another server, or one that was restarted, may have lost data.
            self.reset(after=self._after)
            self._server = server
        # If the server can't be identified, each search covers all numbers.
        deadline = time.monotonic() + (self._look_s if server else math.inf)
        last = int(client.get(self._key("id")) or 0)
        if not self._lowest:
            # Later messages have higher numbers.
            self._lowest = last + 1
        if self._next is None and not self._pass(client, deadline):
            return self._position
        return self._go_on(client, last, deadline)

    def _pass(self, client: Any, deadline: float) -> bool:
        """Scan all bodies, then all retried ones again; return whether both passes are done.

        A message that is retried meanwhile changes its place once, perhaps to one that was already
        scanned. The second pass finds those.
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
            # Both in one command, since a retried message moves from one field to the other.
            needed = client.hmget(self._key("refs"), [*numbers, *(f"0{n}" for n in numbers)])
            counts = zip(numbers, needed[: len(numbers)], needed[len(numbers) :], strict=True)
            for number, is_shared, is_retried in counts:
                if not (is_shared or is_retried):
                    continue
                body = client.hget(self._key("body"), number) if is_shared else b""
                if body is None and self._reread != number:
                    # The message was handled just now, or is retried.
                    self._next = self._reread = number
                    break
                found = _POSITION.match(body or b"")
                if found is None and is_retried:
                    found = _retried_position(client.hget(self._key("msg"), number) or b"")
                if found:
                    self._next, self._position = number, int(found[1])
                    return self._position
                # The message is not an event, or was handled just now.
            else:
                self._next = first + len(numbers)
            if time.monotonic() > deadline:
                return self._position
        return None


class PlacesGiven:
    """One store's positions, each with the highest message number at the time it was reached."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []

    def forget(self) -> None:
        """Forget all places, such as after the relay went back."""
        self._places.clear()

    def remember(self, position: int, last_number: int) -> None:
        """Remember that all events up to a position have numbers up to `last_number`."""
        if self._places and self._places[-1][0] == position:
            return
        self._places.append((position, last_number))
        if len(self._places) > MOST_PLACES:
            numbers = [number for _, number in self._places]
            inner = range(1, len(numbers) - 1)
            del self._places[min(inner, key=lambda i: numbers[i + 1] - numbers[i - 1])]

    def handled_before(self, number: int) -> int:
        """Return the position up to which everything is handled, if all before a number is.

        Args:
            number: the number of the last call, or a higher one.

        Returns:
            The position; 0 if none is known.
        """
        handled = [place for place in self._places if place[1] < number]
        if not handled:
            return 0
        del self._places[: len(handled) - 1]
        return handled[-1][0]


def _retried_position(payload: bytes) -> re.Match[bytes] | None:
    """Return the match of the position in a retried event's payload; None for another message."""
    _, head, *_ = [*payload.split(b"\n", 2), b""]
    return _RETRIED.search(head)


def _server_of(client: Any) -> str:
    """Return the unique id of a server's process; empty if the user may not ask for it."""
    try:
        return str(client.info("server").get("run_id", ""))
    except redis.ResponseError:
        return ""
