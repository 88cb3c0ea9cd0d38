"""Look at dead letters, try them again, let them go.

A letter is a message that was set aside with its reason. In a queue whose policy says so, it holds
up its sequence until it is done, discarded, or, where the policy says that, past its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import redis

from .names import literally
from .scripts import load
from .stored import stored
from .values import DeadLetter, LetterPolicy

_redrive = load("redrive")
_redrive_due = load("redrive_due")
_discard = load("discard")

#: The letters looked after in one script, so that the server is never blocked for long.
BATCH = 100

#: What became of an order: it is done, there is no such letter, its message is in line or in flight
#: already, or it is archived and that was not asked for.
Answer = Literal["done", "none", "tried", "archived"]


class LookedAfter(NamedTuple):
    """What was done about a letter whose time had come.

    `deed` is "redriven", "archived", "discarded", or "closed": it was archived before, and still
    holds up its sequence. `waiting` counts the messages behind it; `is_crowded` says that those are
    more than its queue's policy allows without alarm.
    """

    queue: str
    id: int
    deed: str
    waiting: int
    is_crowded: bool


class DeadLetters:
    """The dead letters of one virtual host.

    Args:
        client: a redis client that returns bytes.
        prefix: in front of every key.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = "") -> None:
        # The driver's types fit no reply exactly.
        self._redis: Any = client
        self._prefix = prefix
        self._keys = [f"{prefix}cq:id"]

    def set_policy(self, queue: str, policy: LetterPolicy | None) -> None:
        """Set what the dead letters of a queue do, from the next one on.

        Args:
            queue: its name.
            policy: None: they hold up nothing, and wait for somebody's order.
        """
        key = f"{self._prefix}cq:policy"
        if policy is None:
            self._redis.hdel(key, queue)
        else:
            self._redis.hset(key, queue, "|".join(map(str, policy)))

    def policy(self, queue: str) -> LetterPolicy | None:
        """Return what the dead letters of a queue do; None if nothing was said."""
        text = cast("bytes | None", self._redis.hget(f"{self._prefix}cq:policy", queue))
        if text is None:
            return None
        kind, *numbers = text.decode().split("|")
        return LetterPolicy(kind, *map(int, numbers))

    def queues(self) -> list[str]:
        """Return the names of the queues that have letters, sorted."""
        prefix = f"{self._prefix}cq:dead:"
        keys = self._redis.scan_iter(match=f"{literally(prefix)}*", count=1000)
        return sorted(key.decode().removeprefix(prefix) for key in keys)

    def all(self, queue: str) -> Iterator[DeadLetter]:
        """Yield the letters of a queue, in no particular order; each is read as it is asked for."""
        for field, letter in self._redis.hscan_iter(f"{self._prefix}cq:dead:{queue}", count=100):
            yield self._read(queue, int(field), bytes(letter))

    def in_order(self, queue: str) -> Iterator[DeadLetter]:
        """Yield the letters of a queue, the oldest message first, each read when needed."""
        key = f"{self._prefix}cq:dead:{queue}"
        ids = sorted(self._redis.hkeys(key), key=int)
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            for message_id, letter in zip(some, self._redis.hmget(key, some), strict=True):
                if letter is not None:
                    yield self._read(queue, int(message_id), letter)

    def get(self, queue: str, message_id: int) -> DeadLetter | None:
        """Return one letter; None if there is no such one."""
        letter = self._redis.hget(f"{self._prefix}cq:dead:{queue}", message_id)
        return None if letter is None else self._read(queue, message_id, letter)

    def waiting_behind(self, letter: DeadLetter) -> int:
        """Return how many messages a letter holds up."""
        key = f"{self._prefix}cq:seqs:{letter.queue}"
        line = f"{self._prefix}cq:seq:{letter.queue}\x1f{letter.sequence}"
        if not letter.sequence or letter.state == "tried":
            return 0
        state, head, length = (
            self._redis.pipeline(transaction=True)
            .hget(key, letter.sequence)
            .lindex(line, -1)
            .llen(line)
            .execute()
        )
        is_held_up = (state or b"")[:1] == b"d" and head == b"%d" % letter.id
        return int(length) - 1 if is_held_up else 0

    def due_at_ms(self, letter: DeadLetter) -> int | None:
        """Return when a letter is looked after next, by Redis's clock; None for never."""
        due = self._redis.zscore(f"{self._prefix}cq:redrive", f"{letter.queue}\x1f{letter.id}")
        return None if due is None else int(due)

    def redrive(self, queue: str, message_id: int, *, also_archived: bool = False) -> Answer:
        """Put a letter's message back in line, with a fresh count of tries.

        A sequence that it holds up goes on from it; any other gets it at its end. The letter stays
        until the message is done; an archived one begins a new life.

        Args:
            queue: whose letter.
            message_id: the letter's.
            also_archived: an archived letter is left alone without it.
        """
        return self._run(_redrive, queue, message_id, int(also_archived))

    def discard(self, queue: str, message_id: int) -> Answer:
        """Delete a letter with its message for good; a sequence that it held up goes on."""
        return self._run(_discard, queue, message_id)

    def redrive_due(self, most: int = BATCH) -> list[LookedAfter]:
        """Look after the letters whose time has come, those first that came first.

        Returns:
            What was done, at most to so many; call again while it is so many.
        """
        flat = _redrive_due(self._redis, self._keys, [self._prefix, most])
        return [
            LookedAfter(
                flat[i].decode(),
                int(flat[i + 1]),
                flat[i + 2].decode(),
                int(flat[i + 3]),
                bool(int(flat[i + 4])),
            )
            for i in range(0, len(flat), 5)
        ]

    def _run(self, script: Any, queue: str, message_id: int, *more: Any) -> Answer:
        answer = script(self._redis, self._keys, [self._prefix, queue, message_id, *more])
        return cast(Answer, answer.decode())

    def _read(self, queue: str, message_id: int, letter: bytes) -> DeadLetter:
        priority, died, tries, first, times, state, rest = letter.split(b"\x1f", 6)
        sequence, _, why = rest.rpartition(b"\x1f")
        payload, body = stored(self._redis, self._prefix, message_id)
        return DeadLetter(
            id=message_id,
            queue=queue,
            sequence=sequence.decode(),
            priority=int(priority),
            first_died_at_ms=int(first),
            died_at_ms=int(died),
            times=int(times),
            tries=int(tries),
            state={b"d": "dead", b"t": "tried", b"a": "archived"}[state],
            why=why.decode(),
            payload=payload,
            body=body,
        )
