"""What goes into the queue and what comes out of it, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Kombu's default priority steps; a priority counts as the next lower step. 0 is the most urgent.
PRIORITY_STEPS = (0, 3, 6, 9)


class Destination(NamedTuple):
    """Where a message goes.

    Args:
        queue: the queue's name, without prefix.
        payload: the whole message; only its head where the publish has a shared body.
        sequence: what it must stay in order with; "" for nothing.
        priority: the priority step; 0 is taken first.
    """

    queue: str
    payload: str | bytes
    sequence: str = ""
    priority: int = 0


class Publish(NamedTuple):
    """One message on its way into the queue; see `ReliableQueue.publish` for its parts."""

    destinations: Sequence[Destination]
    publish_id: str = ""
    delay_ms: int = 0
    ttl_ms: int = 0
    body: str | bytes = ""


class FullQueue(NamedTuple):
    """A queue that had no room for a message, and how many messages wait there at least."""

    queue: str
    found: int


class Taken(NamedTuple):
    """One delivery: a message that this consumer holds until it settles it.

    `fence` grows with every take: a settlement counts only with the fence of its own delivery.
    `tries` counts the deliveries before this one that ended without a settlement. `body` is empty
    unless several queues share it. `has_letter` says that it was put in line again from a dead
    letter. `take` is the same for all that one take has brought.
    """

    id: int
    fence: int
    queue: str
    sequence: str
    priority: int
    tries: int
    payload: bytes
    body: bytes
    has_letter: bool = False
    take: int = 0


class Settlement(NamedTuple):
    """How one delivery ends; made by the functions below."""

    operation: str
    id: int
    fence: int
    delay_ms: int = 0
    text: str | bytes = ""


def ack(id: int, fence: int) -> Settlement:
    """Return the settlement of a message that is done."""
    return Settlement("a", id, fence)


def give_back(id: int, fence: int) -> Settlement:
    """Return a message that was not started to its place; no delivery is counted."""
    return Settlement("n", id, fence)


def requeue(id: int, fence: int) -> Settlement:
    """Return a message that was started to its place; the delivery is counted."""
    return Settlement("r", id, fence)


def later(id: int, fence: int, delay_ms: int, payload: str | bytes = "") -> Settlement:
    """Deliver the message again after a delay; what is behind it in its sequence waits.

    Args:
        id: the message.
        fence: of its delivery.
        delay_ms: milliseconds by Redis's clock, from now.
        payload: replaces the stored payload and the shared body; "" keeps them.
    """
    return Settlement("l", id, fence, delay_ms, payload)


def bury(id: int, fence: int, why: str) -> Settlement:
    """Make the message a dead letter.

    Args:
        id: the message.
        fence: of its delivery.
        why: JSON text for whoever reads the letter.
    """
    return Settlement("d", id, fence, 0, why)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answer to a settle-and-take.

    Attributes:
        is_known: False if this consumer's lease ended and its messages were recovered.
        refused: ids whose settlement counted nothing, since the consumer no longer held them.
        revoked: ids taken back because an earlier message of their sequence went back.
        due_in_ms: milliseconds until something delayed is due; None if nothing is.
        taken: the new deliveries; those of one sequence in its order.
        paused: the queues that are paused, also those that were not asked.
    """

    is_known: bool
    refused: tuple[int, ...] = ()
    revoked: tuple[int, ...] = ()
    due_in_ms: int | None = None
    taken: Sequence[Taken] = field(default=())
    paused: Sequence[str] = ()


class Beat(NamedTuple):
    """The answer to a heartbeat.

    `is_held` says whether the lease is, `first_end_ms` when the first of all leases ends, `now_ms`
    Redis's clock, `expired_queues` how many unused queues have outlived their time, `letters_due`
    how many dead letters must be looked after.
    """

    is_held: bool
    first_end_ms: int
    now_ms: int
    expired_queues: int = 0
    letters_due: int = 0


class Recovered(NamedTuple):
    """What was taken back from one consumer."""

    consumer: str
    messages: int
    dead_letters: int


class QueueCount(NamedTuple):
    """Count a queue's messages by what they wait for.

    `ready` counts what a free worker could take now (a sequence counts once); `in_sequences` all
    messages of running sequences; `retrying` those of sequences whose head waits for its time;
    `blocked` those of sequences behind a dead letter, it included.
    """

    ready: int
    in_sequences: int
    retrying: int
    blocked: int
    delayed: int
    dead: int


class SequenceCount(NamedTuple):
    """The numbers of a queue's sequences, by what they wait for.

    Attributes:
        going: those that are ready or held.
        retrying: those whose first message waits for its time.
        blocked: those behind a dead letter.
    """

    going: int
    retrying: int
    blocked: int


class DeadLetter(NamedTuple):
    """A message set aside, whole, with the reason.

    Attributes:
        id: the message's.
        queue: where it was to be handled.
        sequence: that it is in; "" for none.
        priority: its priority step.
        first_died_at_ms: when it became a letter, by Redis's clock.
        died_at_ms: when it last did, after a redrive.
        times: how often it did.
        tries: deliveries since the last redrive that ended without a settlement.
        state: "dead"; "tried", its message is in line or in flight; or "archived", its time is
            over.
        why: JSON text of whoever set it aside.
        payload: the message, or its head where several queues share a body.
        body: the shared body; else empty.
    """

    id: int
    queue: str
    sequence: str
    priority: int
    first_died_at_ms: int
    died_at_ms: int
    times: int
    tries: int
    state: str
    why: str
    payload: bytes
    body: bytes


class LetterPolicy(NamedTuple):
    """What the dead letters of a queue do.

    Attributes:
        kind: "block": a letter holds up its sequence, and is archived past its time; "discard": it
            holds it up, and is deleted past its time; "continue": it holds up nothing.
        first_redrive_ms: milliseconds after which it is tried again by itself; doubled each time.
        most_redrive_ms: the most milliseconds between two tries.
        life_ms: milliseconds for which it is tried again.
        crowd: how many messages may wait behind it without alarm.
    """

    kind: str = "block"
    first_redrive_ms: int = 300_000
    most_redrive_ms: int = 3_600_000
    life_ms: int = 604_800_000
    crowd: int = 10_000


def priority_step(priority: int, steps: Sequence[int] = PRIORITY_STEPS) -> int:
    """Return the step that a priority counts as: the highest one not above it."""
    return max((step for step in steps if step <= priority), default=steps[0])
