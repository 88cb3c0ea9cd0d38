"""Put another store's events on the subscribers' queues, each exactly once.

In one step, a script sends a batch of events to their subscribers and saves the position of the
last one. So a relay that is killed, or runs twice, repeats and omits nothing. An idle relay blocks
on a list that committers push to.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis

from ...errors import StoreUnavailable
from ...queue.names import key_of
from ...queue.scripts import load
from ...store.events import Lease, Place, StoredEvent, Subscriber
from ...store.refusals import ClaimLost
from .background import BackgroundCall
from .event_store import Body, RedisEventStore, inside_json
from .records import record_of
from .unhandled import OldestUnhandled, PlacesGiven

logger = logging.getLogger(__name__)

_relay = load("relay", __package__ + ".scripts")
_take_over = load("relay_take_over", __package__ + ".scripts")


class RelayQueue:
    """The subscribers' queues, in the broker's Redis, for the relay of one store.

    Args:
        client: returns a redis client that returns bytes; called once per operation.
        store_id: returns the store's id, unique among the stores that relay into these queues.
        prefix: the broker's key prefix.
        body: the texts before and after an event in the body that its subscribers get.
        where: names the server in errors, without credentials.
        wake_client: returns the client of `wake`, with short timeouts; by default `client`.
        lease_client: returns the client of `is_held`; by default `client`.
    """

    #: Whether a worker's lease on its message can be looked up here.
    has_leases = True

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        *,
        store_id: Callable[[], str],
        prefix: str = "",
        body: Body = ("", ""),
        where: str = "Redis",
        wake_client: Callable[[], redis.Redis] | None = None,
        lease_client: Callable[[], redis.Redis] | None = None,
    ) -> None:
        self._client = client
        self._wake_client = wake_client or client
        self._lease_client = lease_client or client
        self._waking = BackgroundCall(self._wake_now, name="cqrs-wake")
        self._wake_key = ""
        self._store_id = store_id
        self._prefix = prefix
        self._before = f'{body[0]}{{"stream":'
        self._after = body[1]
        self.where = where
        self._oldest = OldestUnhandled(client, self._key)
        self._given = PlacesGiven()
        self._registry = RedisEventStore(client, prefix=prefix, where=where)

    # ------------------------------------------------------------ relay

    def position(self) -> int | None:
        """Return the position of the last event that was sent; None if Redis knows none."""
        with self._reach("look up how far the relay has come"):
            found = cast("bytes | None", self._client().hget(self._key("relay"), self._store_id()))
        return None if found is None else int(found.partition(b"|")[0])

    def is_at(self, token: str, position: int, broker_id: str) -> bool:
        """Return whether a relay is still the one whose events are accepted, and at this position.

        Args:
            token: the relay's claim.
            position: the position of the last event that it sent.
            broker_id: the broker's id when the claim was made.
        """
        with self._reach("look up how far the relay has come"):
            pipe: Any = self._client().pipeline(transaction=False)
            pipe.get(self._key("broker"))
            pipe.hget(self._key("relay"), self._store_id())
            broker, known = pipe.execute()
        parts = (known or b"").split(b"|")
        return (
            broker == broker_id.encode()
            and len(parts) == 4
            and (parts[0], parts[2]) == (str(position).encode(), token.encode())
        )

    def broker_id(self) -> str:
        """Return this broker's unique id; it is generated at the first call.

        The id is lost with the broker's data, and does not depend on its URL.
        """
        with self._reach("look up the broker's id"):
            client: Any = self._client()
            key = self._key("broker")
            found = client.get(key)
            if found is None:
                client.set(key, secrets.token_hex(16), nx=True)
                found = client.get(key)
        return cast("bytes", found).decode()

    def next_number(self) -> int:
        """Return a number for a claim that is higher than all earlier ones."""
        with self._reach("count a relay's claim"):
            client: Any = self._client()
            return int(client.incr(self._key("relay-claims")))

    def take_over(
        self, token: str, place: Place | None = None, *, broker_id: str = ""
    ) -> Place | None:
        """Make this relay the one whose events are accepted.

        Args:
            token: the relay's claim, which begins with its number and a dot.
            place: the place after which to go on; None for the one that Redis knows.
            broker_id: the broker's id when the claim was made; empty if it does not matter.

        Returns:
            The place after which to go on; None if Redis knows none.

        Raises:
            ClaimLost: a later claim has taken over already, or the broker has lost its data since.
        """
        to: list[Any] = ["", ""] if place is None else [*place]
        with self._reach("begin to relay"):
            args = [self._prefix, self._store_id(), token, *to, broker_id]
            found = _take_over(self._client(), [self._key("id")], args)
        if found is None:
            return None
        if found == 0:
            raise ClaimLost
        # Another relay may have taken over in between, or data may have been lost.
        self._oldest.reset(after=int(found[2]))
        self._given.forget()
        return Place(int(found[0]), found[1].decode())

    def enqueue(self, token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Send events to their subscribers, if the event before them was the last one sent.

        Args:
            token: the relay's claim; nothing is sent if another claim has taken over.
            after_position: the position of the event before them.
            events: the events, in order.

        Returns:
            The position now; None if Redis knows none. If it is not the position of the last event,
            nothing was sent.
        """
        args: list[Any] = [self._prefix, self._store_id(), token, after_position]
        for stored in events:
            event, key = stored.event, stored.stream.key
            numbers = f',"position":{stored.global_position},"version":{stored.version},'
            args += (
                stored.global_position,
                event.type,
                event.event_id,
                inside_json(event.metadata.correlation_id),
                inside_json(event.metadata.causation_id),
                key,
                b"".join(
                    (
                        f"{self._before}{json.dumps(key)}{numbers}".encode(),
                        record_of(event),
                        self._after.encode(),
                    )
                ),
            )
        with self._reach("send events to their subscribers"):
            found = _relay(self._client(), [self._key("id")], args)
        return None if found is None else int(found)

    def lowest_unhandled(self) -> int | None:
        """Return the position of the oldest event that some subscriber has not handled.

        Returns:
            The position; None if all events are handled. It may be lower than the oldest unhandled
            one if the search would take too long; the next call continues it. It may also be lower
            if other stores send to these queues: each call remembers how far the relay has come,
            and events sent by then count as handled when no older message of any store is left.
        """
        with self._reach("look for the oldest event that is not handled"):
            client: Any = self._client()
            if client.hlen(self._key("relay")) > 1 or client.exists(self._key("all")):
                return self._lowest_among_stores(client)
            return self._oldest.look()

    def _lowest_among_stores(self, client: Any) -> int:
        # The position is read first: all events up to it have numbers up to the last one.
        known = client.hget(self._key("relay"), self._store_id())
        last = client.get(self._key("id"))
        if known is None or last is None:
            return 1
        self._given.remember(int(known.partition(b"|")[0]), int(last))
        self._oldest.look()
        return self._given.handled_before(self._oldest.first_number) + 1

    # ------------------------------------------------------------ waking

    def wake(self) -> None:
        """Wake the relay soon.

        This method returns at once and raises no error, whether Redis answers or not. A failure
        delays events by up to half a second, since the relay also polls. After a failure, no new
        attempt is made for a few seconds.
        """
        try:
            # Done in the caller's thread, since Django may allow only that to use the connection.
            # The store has just committed, and is asked only once while its connections last.
            self._wake_key = self._key("relay-wake:") + self._store_id()
        except Exception as error:  # noqa: BLE001  the commit has succeeded
            logger.debug("relay not woken: %s", error)
            return
        self._waking.request()

    def _wake_now(self) -> None:
        with self._wake_client().pipeline(transaction=False) as pipe:
            pipe.rpush(self._wake_key, b"1")
            pipe.ltrim(self._wake_key, 0, 0)
            pipe.execute()

    def wait(self, timeout_s: float) -> None:
        """Wait until the relay is woken, at most `timeout_s` seconds."""
        with self._reach("wait for events"):
            self._client().blpop([self._key("relay-wake:") + self._store_id()], timeout=timeout_s)

    # ------------------------------------------------------------ subscribers and leases

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber; return the number of topics that are new for it."""
        return self._registry.register(subscriber)

    def register_all(self, subscribers: Iterable[Subscriber]) -> None:
        """Register subscribers again after Redis has lost them."""
        for subscriber in subscribers:
            self.register(subscriber)

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; return the number it was removed from."""
        return self._registry.unregister(name, topics)

    def is_held(self, lease: Lease) -> bool:
        """Return whether a worker still holds its message.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        with self._reach("look up a lease"):
            flight = cast(
                "bytes | None",
                self._lease_client().hget(
                    self._key(f"flight:{lease.consumer}"), str(lease.message_id)
                ),
            )
        return flight is not None and flight.partition(b"|")[0] == str(lease.fence).encode()

    def _key(self, name: str) -> str:
        # Without a client, since creating one may query the server.
        return key_of(self._prefix, name)

    @contextmanager
    def _reach(self, what: str) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreUnavailable(
                f"could not {what}: {self.where} does not answer ({error}). Start it, or correct"
                " its URL."
            ) from error
