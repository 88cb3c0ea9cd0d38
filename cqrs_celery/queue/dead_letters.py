"""Look at dead letters, redrive them, discard them.

A dead letter is a message that was set aside with the reason. If its queue's policy says so, it
holds up its sequence until it is done, until it is discarded, or, under the policy "discard", until
its time is over.
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

#: The most letters processed by one script, so that the server is never blocked for long.
BATCH = 100

#: What became of a request: it is done; there is no such letter; its message is queued or in flight
#: already; or the letter is archived, and archived letters were not asked for.
Answer = Literal["done", "none", "tried", "archived"]


class LookedAfter(NamedTuple):
    """What was done about a letter that was due.

    Attributes:
        queue: the letter's queue.
        id: the letter's id.
        deed: "redriven", "archived", "discarded", or "closed": it was archived before, and still
            holds up its sequence.
        waiting: how many messages wait behind it.
        is_crowded: True if these are more than its queue's policy allows without an alarm.
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
        """Set what happens to the dead letters of a queue, from the next one on.

        Args:
            queue: its name.
            policy: the policy. With None, letters hold up nothing and wait until somebody redrives
                or discards them.
        """
        key = f"{self._prefix}cq:policy"
        if policy is None:
            self._redis.hdel(key, queue)
        else:
            self._redis.hset(key, queue, "|".join(map(str, policy)))

    def policy(self, queue: str) -> LetterPolicy | None:
        """Return the policy for the dead letters of a queue; None if none was set."""
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
        """Yield the letters of a queue in no particular order; each is read when it is needed."""
        for field, letter in self._redis.hscan_iter(f"{self._prefix}cq:dead:{queue}", count=100):
            yield self._read(queue, int(field), bytes(letter))

    def in_order(self, queue: str) -> Iterator[DeadLetter]:
        """Yield the letters of a queue, oldest message first; each is read when it is needed."""
        key = f"{self._prefix}cq:dead:{queue}"
        ids = sorted(self._redis.hkeys(key), key=int)
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            for message_id, letter in zip(some, self._redis.hmget(key, some), strict=True):
                if letter is not None:
                    yield self._read(queue, int(message_id), letter)

    def get(self, queue: str, message_id: int) -> DeadLetter | None:
        """Return one letter; None if there is no such letter."""
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
        """Return when a letter is due next, in milliseconds of Redis's clock; None for never."""
        due = self._redis.zscore(f"{self._prefix}cq:redrive", f"{letter.queue}\x1f{letter.id}")
        return None if due is None else int(due)

    def redrive(self, queue: str, message_id: int, *, also_archived: bool = False) -> Answer:
        """Queue a letter's message again, with a fresh count of tries.

        If the letter holds up its sequence, the sequence continues with the message; otherwise the
        message goes to the end of its sequence. The letter stays until the message is done. An
        archived letter's time starts anew.

        Args:
            queue: the letter's queue.
            message_id: the letter's id.
            also_archived: True to redrive an archived letter too; it is left alone otherwise.

        Returns:
            What became of the request.
        """
        return self._run(_redrive, queue, message_id, int(also_archived))

    def discard(self, queue: str, message_id: int) -> Answer:
        """Delete a letter and its message for good; a sequence that it held up goes on.

        Args:
            queue: the letter's queue.
            message_id: the letter's id.

        Returns:
            What became of the request.
        """
        return self._run(_discard, queue, message_id)

    def redrive_due(self, most: int = BATCH) -> list[LookedAfter]:
        """Redrive, archive or delete the letters that are due, those first that were due first.

        Args:
            most: the most letters to process in this call.

        Returns:
            What was done about each letter. If there are `most` of them, more may be due: call
            again.
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
