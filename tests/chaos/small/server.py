"""A small queue on a real server: try operations on one of its states, and read what is there.

The scripts are the queue's own, called with the arguments that `ReliableQueue` gives them. Two
commands of theirs are answered by the driver: Redis's clock stands still, and whom a script wakes
is heard. A state is what is in every key, and nothing else, so it can be put back.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.scripts import Script
from cqrs_celery.queue.values import LetterPolicy
from tests.queues import LEASE_MS, MAY_STAY

from .model import CONSUMERS, Model, Rules

QUEUE = "q"
#: Redis's clock while an operation runs, in ms; a number of 13 digits that begin so is a time.
NOW_MS = 1_700_000_000_000
#: What is delayed is due after this, and one more for each that is delayed already.
DELAY_MS = 1_000_000
#: Fences begin here; a number of 10 digits that begin so is one.
FIRST_FENCE = 9_000_000_000

_TIME_OR_FENCE = re.compile(r"\b(?:17\d{11}|9\d{9})\b")
_DRIVER = Path(__file__).with_name("driver.lua")

#: What is in every key: {key, type, what the server returns of it}.
State = list[list[Any]]

#: A script's hash, or "" for a plain command, with its arguments.
Call = tuple[str, list[str]]

#: What uses the queue as its callers do, in any number of calls; returns what it was answered.
Program = Callable[[ReliableQueue], Any]


class Outcome(NamedTuple):
    """What became of one operation.

    Attributes:
        replies: one of each call; of a program, what it has returned.
        woken: the consumers that were.
        state: after it.
    """

    replies: list[Any]
    woken: list[str]
    state: State


class _Called(Exception):
    """A script would be called now."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.call = call


class _Recorder:
    """A client that calls nothing, and tells what would be called."""

    def evalsha(self, sha: str, keys: int, *rest: Any) -> None:
        arguments = [r.decode() if isinstance(r, bytes) else str(r) for r in rest[keys:]]
        raise _Called((sha, arguments))


_queue = ReliableQueue(cast(Any, _Recorder()))


def call_of(method: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    """Return the script that a method of the queue calls, with its arguments."""
    try:
        method(_queue, *arguments, **options)
    except _Called as called:
        return called.call
    raise AssertionError(f"{method} calls no script")


def letters_call(name: str, *arguments: Any) -> Call:
    """Return the script that a method of the queue's letters calls."""
    return call_of(lambda queue: getattr(queue.letters, name)(*arguments))


def scripts() -> Iterator[Script]:
    """Yield the scripts that the queue calls."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("cqrs_celery.queue."):
            yield from (value for value in vars(module).values() if isinstance(value, Script))


def driver_text() -> str:
    """Return the driver with the scripts in it."""
    functions = [f"scripts['{s.sha}'] = function(KEYS, ARGV)\n{s.text}\nend" for s in scripts()]
    before, _, after = _DRIVER.read_text(encoding="utf-8").partition("\nSCRIPTS\n")
    return "\n".join([before, *functions, after])


class SmallServer:
    """A server that is emptied and filled again for every operation.

    Args:
        client: used by nobody else; its database is emptied.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._connection: Any = client.connection_pool.get_connection()
        self._decode = msgspec.msgpack.Decoder().decode
        self._connection.send_command("SCRIPT", "LOAD", driver_text())
        self._hash = self._connection.read_response()

    def ask(self, state: State, operations: Sequence[Sequence[Call]]) -> None:
        """Have operations tried, each on this state; `answer` returns what became of them."""
        packed = map(msgspec.msgpack.encode, (state, operations))
        self._connection.send_command("EVALSHA", self._hash, 0, NOW_MS, *packed)

    def answer(self) -> list[Outcome]:
        """Return the outcomes of the question that was asked."""
        found = self._decode(self._connection.read_response())
        return [
            Outcome(replies, list(map(_consumer_of, heard or ())), state or [])
            for replies, heard, state in found
        ]

    def try_program(self, state: State, program: Program) -> Outcome:
        """Try a program on a state; no question may be open."""
        client = StandingClock(self, state)
        reply = program(ReliableQueue(cast(Any, client)))
        return Outcome([reply], client.woken, client.state())

    def run_one(
        self, sha: str, arguments: Sequence[Any], state: State | None
    ) -> tuple[State, Any, list[str]]:
        """Run one script, or none, on a state, or on the present one.

        Returns:
            The state after it, its reply, and the consumers that it woke.
        """
        texts = [a.decode() if isinstance(a, bytes) else str(a) for a in arguments]
        before = b"" if state is None else msgspec.msgpack.encode(state)
        packed = msgspec.msgpack.encode(texts)
        self._connection.send_command("EVALSHA", self._hash, 0, NOW_MS, before, packed, sha)
        after, reply, heard = self._connection.read_response()
        return self._decode(after), reply, [_consumer_of(name.decode()) for name in heard]


def _consumer_of(channel: str) -> str:
    return channel.rpartition(":")[2]


class StandingClock:
    """A client whose server's clock stands still, and that remembers who was woken.

    Args:
        server: it is put into the state before the first call.
        state: in which a program begins.
    """

    def __init__(self, server: SmallServer, state: State) -> None:
        self._server = server
        self._before: State | None = state
        self._after: State | None = None
        self.woken: list[str] = []

    def state(self) -> State:
        """Return what is there now."""
        if self._after is None:
            self._run("", ())
        assert self._after is not None
        return self._after

    def evalsha(self, sha: str, keys: int, *rest: Any) -> Any:
        return self._run(sha, rest[keys:])

    def _run(self, sha: str, arguments: Sequence[Any]) -> Any:
        before, self._before = self._before, None
        self._after, reply, woken = self._server.run_one(sha, arguments, before)
        self.woken += woken
        return reply

    def time(self) -> tuple[int, int]:
        return NOW_MS // 1000, 0

    def __getattr__(self, name: str) -> Any:
        if self._before is not None:
            self._run("", ())
        self._after = None
        return getattr(self._server.client, name)


def beginning(server: SmallServer, rules: Rules) -> State:
    """Return the state with which everything begins: nothing but two consumers."""

    def begin(queue: ReliableQueue) -> None:
        queue.client.set(queue.key("fence"), FIRST_FENCE)
        for name in CONSUMERS:
            join(queue, name, rules)
        if rules.blocks:
            queue.letters.set_policy(QUEUE, LetterPolicy())

    return server.try_program([], begin).state


def join(queue: ReliableQueue, consumer: str, rules: Rules) -> None:
    """Begin as a consumer."""
    queue.beat(consumer, LEASE_MS, register=True)
    queue.consume(consumer, [QUEUE], about={"slots": rules.slots})


# ---------------------------------------------------------------- what is there


def _pairs(value: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(value[::2], value[1::2], strict=True))


def read(state: State) -> dict[str, Any]:
    """Return what a state holds, in the words of the model; see `seen_by`."""
    keys = {key: value for key, _, value in state}
    table = lambda name: _pairs(keys.get(f"cq:{name}", ()))  # noqa: E731
    held: dict[str, dict[int, int]] = {}
    for key, value in keys.items():
        if key.startswith("cq:flight:"):
            records = _pairs(value).items()
            held[key[10:]] = {int(m): int(record.partition("|")[0]) for m, record in records}
    leases = table("consumers")
    letters = {int(m): text.split("\x1f") for m, text in table(f"dead:{QUEUE}").items()}
    delayed = []
    for member, at in table(f"delayed:{QUEUE}").items():
        _, message, sequence = member.split("|", 2)
        delayed.append((int(message) if message else sequence, float(at) <= NOW_MS))
    return {
        "line": [e[1:] if e.startswith("=") else int(e) for e in reversed(keys.get(QUEUE, ()))],
        "order": {
            key.partition("\x1f")[2]: [int(m) for m in reversed(value)]
            for key, value in keys.items()
            if key.startswith(f"cq:seq:{QUEUE}\x1f")
        },
        "state": {name: _sequence_state(s) for name, s in table(f"seqs:{QUEUE}").items()},
        "held": held,
        "delayed": delayed,
        "tries": {int(m): t for m, n in table("tries").items() if (t := int(n) % 1_000_000)},
        "letters": {m: (parts[5], int(parts[4])) for m, parts in letters.items()},
        "consumers": {
            name: "gone"
            if name not in leases
            else "live"
            if float(leases[name]) >= NOW_MS
            else "ended"
            for name in CONSUMERS
        },
        "messages": set(map(int, table("msg"))),
    }


def _sequence_state(text: str) -> tuple[Any, ...]:
    kind, _, rest = text.partition("|")
    if kind[0] != "h":
        return (kind[0],)
    n, _, consumer = rest.partition("|")
    return ("h", consumer, int(n))


def seen_by(model: Model) -> dict[str, Any]:
    """Return what a model holds, as `read` returns it."""
    return {
        "line": model.line,
        "order": {name: ids for name, ids in model.order.items() if ids},
        "state": model.state,
        "held": {name: held for name, held in model.held.items() if held},
        "delayed": [(what, not at) for what, at in model.delayed],
        "tries": {m: n for m, n in model.tries.items() if n and m in model.unsettled()},
        "letters": {m: (state, model.deaths[m]) for m, state in model.letters.items()},
        "consumers": model.consumers,
        "messages": model.unsettled(),
    }


def left_over(state: State) -> list[str]:
    """Return the keys that no finished message may leave behind."""
    return [key for key, _, _ in state if not key.startswith(MAY_STAY)]


def as_sets(state: State) -> dict[str, Any]:
    """Return a state such that two of the same contents are equal."""
    found: dict[str, Any] = {}
    for key, kind, value in state:
        if kind in {"hash", "zset"}:
            value = _pairs(value)
        elif kind == "set":
            value = set(value)
        found[key] = value
    return found


# ---------------------------------------------------------------- which states are alike

#: Names that may change places: consumers, sequences, both.
_SWAPS = (
    None,
    str.maketrans("AB", "BA"),
    str.maketrans("XY", "YX"),
    str.maketrans("ABXY", "BAYX"),
)


def fingerprint(state: State, model: Model) -> str:
    """Return a text that is the same for states that differ by names, times and fences alone.

    Of times and fences only the order counts, of fences also whether they are odd. What only the
    model knows belongs to the state: who sleeps, and which deliveries are over.
    """
    known = [f"{c}{m}|{fence}" for (c, m), fence in model.over.items()]
    known += [f"{name} hungry" for name in model.hungry] + [
        f"{name} asleep" for name in model.asleep
    ]
    text = msgspec.json.encode([*state, ["model", "set", known]]).decode()
    return min(
        _normal(msgspec.json.decode(text if swap is None else text.translate(swap)))
        for swap in _SWAPS
    )


def _normal(state: State) -> str:
    lines = []
    for key, kind, value in state:
        if key == "cq:fence":
            continue
        if kind == "hash":
            value = sorted(zip(value[::2], value[1::2], strict=True))
        elif kind == "set":
            value = sorted(value)
        lines.append(f"{key} {value}")
    text = "\n".join(sorted(lines))
    ranks, rank = {}, 0
    numbers = sorted(set(_TIME_OR_FENCE.findall(text)))
    for before, number in pairwise(["", *numbers]):
        # Odd fences follow even ones by one; a gap of another width is not seen.
        rank += 1 if before[:2] == number[:2] else 100
        if number[0] == "9" and (rank - int(number)) % 2:
            rank += 1
        ranks[number] = str(rank)
    return _TIME_OR_FENCE.sub(lambda match: ranks[match[0]], text)
