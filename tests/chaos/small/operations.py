"""The operations on a small queue: which make sense in a state, and which calls they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import (
    Destination,
    Settlement,
    ack,
    bury,
    give_back,
    later,
    requeue,
)
from tests.queues import LEASE_MS

from .model import CONSUMERS, MESSAGES, MOST_TRIES, SEQUENCES, Model
from .server import DELAY_MS, QUEUE, Call, Program, call_of, join, letters_call

#: The name of an operation, and its arguments.
Operation = tuple[Any, ...]

#: Tried in every state: calls that may change nothing.
NOTHING: Operation = ("what counts nothing",)

#: How many deliveries a take asks for, and how many messages of one sequence.
TAKES = ((1, 1), (3, 3))

#: Why a message is made a dead letter.
WHY = '{"why":1}'


def operations(model: Model) -> Iterator[Operation]:
    """Yield the operations that make sense now."""
    if len(model.sequence_of) < MESSAGES:
        is_first = not set(model.sequence_of.values()) - {""}
        for sequence in ("", *SEQUENCES[: 1 if is_first else 2]):
            yield "publish", sequence, False
            yield "publish", sequence, True
    for name in CONSUMERS:
        if model.consumers[name] == "gone":
            yield "join", name
            continue
        for count, run in TAKES:
            yield "take", name, count, run
        held = model.held.get(name, {})
        for message in held:
            for how in "anrld":
                yield "settle", name, how, message
            if (name, message) in model.over:
                yield "settle twice", name, message
        if held:
            yield "finish and take", name
        if len(held) > 1:
            yield "requeue all", name
        yield "beat", name
        yield "leave", name
        if model.consumers[name] == "live":
            yield "end lease", name
    if "ended" in model.consumers.values():
        yield ("recover",)
    if any(at for _, at in model.delayed):
        yield ("due",)
    dead = [message for message, state in model.letters.items() if state == "d"]
    for message in dead:
        yield "redrive", message
        yield "discard", message
    if dead and model.rules.blocks:
        yield ("redrive due",)
    if model.unsettled() - set(model.letters):
        yield ("purge",)
    yield NOTHING


def _settlement(how: str, message: int, fence: int, model: Model) -> Settlement:
    if how == "l":
        return later(message, fence, DELAY_MS + model.next_time())
    if how == "d":
        return bury(message, fence, WHY)
    return {"a": ack, "n": give_back, "r": requeue}[how](message, fence)


def calls(operation: Operation, model: Model) -> list[Call] | Program:
    """Return the calls that an operation is, or the program, where it may be several scripts."""
    kind, *arguments = operation
    if kind in _PROGRAMS:
        return partial(_PROGRAMS[kind], model, *arguments)
    if kind == "beat":
        return [call_of(ReliableQueue.beat, arguments[0], LEASE_MS)]
    if kind in {"redrive", "discard"}:
        return [letters_call(kind, QUEUE, arguments[0])]
    if kind == "publish":
        return [_publish(len(model.sequence_of) + 1, arguments[0], arguments[1], model)]
    if kind in {"take", "settle", "settle twice", "finish and take", "requeue all"}:
        return [_exchange(kind, arguments, model)]
    if kind == "end lease":
        return [("", ["ZADD", "cq:consumers", "1", arguments[0]])]
    if kind == "due":
        return _due(model)
    assert operation == NOTHING, kind
    return _without_effect(model)


def _redrive_due(model: Model, queue: ReliableQueue) -> object:
    """Let every letter's time come, and look after them."""
    client: Any = queue.client
    members = [f"{QUEUE}\x1f{message}" for message, state in model.letters.items() if state == "d"]
    client.zadd(queue.key("redrive"), dict.fromkeys(members, 1), xx=True)
    return queue.letters.redrive_due()


_PROGRAMS: dict[str, Callable[..., object]] = {
    "join": lambda model, name, queue: join(queue, name, model.rules),
    "leave": lambda model, name, queue: queue.leave(name),
    "recover": lambda model, queue: queue.recover(most_tries=MOST_TRIES),
    "purge": lambda model, queue: queue.purge(QUEUE),
    "redrive due": _redrive_due,
}


def _publish(number: int, sequence: str, is_delayed: bool, model: Model) -> Call:
    return call_of(
        ReliableQueue.publish,
        [Destination(QUEUE, f"m{number}", sequence)],
        publish_id=f"p{number}",
        delay_ms=DELAY_MS + model.next_time() if is_delayed else 0,
    )


def _exchange(kind: str, arguments: list[Any], model: Model) -> Call:
    consumer, settlements, count, run = arguments[0], [], 0, 1
    held = model.held.get(consumer, {})
    if kind == "take":
        _, count, run = arguments
    elif kind == "settle":
        _, how, message = arguments
        settlements = [_settlement(how, message, held[message], model)]
    elif kind == "settle twice":
        message = arguments[1]
        fences = (model.over[consumer, message], held[message])
        settlements = [_settlement("a", message, fence, model) for fence in fences]
    else:
        how, count = ("a", 1) if kind == "finish and take" else ("r", 0)
        settlements = [_settlement(how, message, fence, model) for message, fence in held.items()]
    return call_of(
        ReliableQueue.settle_and_take,
        consumer,
        settlements,
        queues=[QUEUE],
        count=count,
        run=run,
        was_idle=consumer in model.hungry,
    )


def _due(model: Model) -> list[Call]:
    """Return the plain commands by which the time of what is due first comes."""
    place = next(i for i, (_, at) in enumerate(model.delayed) if at)
    what, score = model.delayed[place][0], str(place + 1)
    sequence = what if isinstance(what, str) else model.sequence_of[what]
    member = f"0|{'' if isinstance(what, str) else what}|{sequence}"
    return [
        ("", ["ZADD", f"cq:delayed:{QUEUE}", "XX", score, member]),
        ("", ["ZADD", "cq:due", "1", QUEUE]),
    ]


def _without_effect(model: Model) -> list[Call]:
    """Return calls that may change nothing: repeated publishes, late settlements, a look."""
    found = [call_of(ReliableQueue.count, QUEUE)]
    for number, sequence in model.sequence_of.items():
        found.append(_publish(number, sequence, False, model))
    found += [_late(one, fence, model) for one, fence in model.over.items()]
    for name, state in model.consumers.items():
        if state == "gone":
            found.append(call_of(ReliableQueue.beat, name, LEASE_MS))
            found.append(_exchange("take", [name, 1, 1], model))
    return found


def _late(one: tuple[str, int], fence: int, model: Model) -> Call:
    settlements = [_settlement(how, one[1], fence, model) for how in "arld"]
    return call_of(ReliableQueue.settle_and_take, one[0], settlements)
