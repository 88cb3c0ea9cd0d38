"""The arguments and the results of the queue's operations, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Kombu's default priority steps; a priority counts as the highest step not above it. 0 is the most
#: urgent.
PRIORITY_STEPS = (0, 3, 6, 9)


class Destination(NamedTuple):
    """One queue that a message is published to.

    Args:
        queue: the queue's name, without prefix.
        payload: the whole message; only its head if the publish has a shared body.
        sequence: the sequence whose order the message keeps; "" for none.
        priority: the priority step; 0 is taken first.
    """

    queue: str
    payload: str | bytes
    sequence: str = ""
    priority: int = 0


class Publish(NamedTuple):
    """One message to publish; `ReliableQueue.publish` describes its fields."""

    destinations: Sequence[Destination]
    publish_id: str = ""
    delay_ms: int = 0
    ttl_ms: int = 0
    body: str | bytes = ""


class FullQueue(NamedTuple):
    """A queue that refused a message because it was full.

    Attributes:
        queue: its name.
        found: how many messages wait there, at least.
    """

    queue: str
    found: int


class Taken(NamedTuple):
    """One delivery: a message that a consumer holds until it settles it.

    Attributes:
        id: the message's id.
        fence: the number of the delivery. It grows with every take, and a settlement counts only
            with the fence of its own delivery.
        queue: the queue that the message was taken from.
        sequence: the sequence that the message is in; "" for none.
        priority: its priority step.
        tries: the earlier deliveries that ended without a settlement.
        payload: the message, or its head if several queues share the body.
        body: the shared body; empty unless several queues share it.
        has_letter: True if the message was redriven from a dead letter.
        take: a number that all messages of one take have in common.
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
    """How one delivery ended; made by the functions below.

    Attributes:
        operation: the letter of the operation.
        id: the message's id.
        fence: the number of the delivery.
        delay_ms: milliseconds until the message is delivered again.
        text: the new payload, or the reason for the dead letter.
    """

    operation: str
    id: int
    fence: int
    delay_ms: int = 0
    text: str | bytes = ""


def ack(id: int, fence: int) -> Settlement:
    """Return the settlement that removes a message, since it is done.

    Args:
        id: the message.
        fence: the number of its delivery.
    """
    return Settlement("a", id, fence)


def give_back(id: int, fence: int) -> Settlement:
    """Return the settlement that puts an unstarted message back in its place.

    The delivery is not counted.

    Args:
        id: the message.
        fence: the number of its delivery.
    """
    return Settlement("n", id, fence)


def requeue(id: int, fence: int) -> Settlement:
    """Return the settlement that puts a started message back in its place.

    The delivery is counted.

    Args:
        id: the message.
        fence: the number of its delivery.
    """
    return Settlement("r", id, fence)


def later(id: int, fence: int, delay_ms: int, payload: str | bytes = "") -> Settlement:
    """Return the settlement that delivers a message again after a delay.

    The messages behind it in its sequence wait for it.

    Args:
        id: the message.
        fence: the number of its delivery.
        delay_ms: milliseconds from now, by Redis's clock.
        payload: replaces the stored payload and the shared body; "" keeps them.
    """
    return Settlement("l", id, fence, delay_ms, payload)


def bury(id: int, fence: int, why: str) -> Settlement:
    """Return the settlement that makes a message a dead letter.

    Args:
        id: the message.
        fence: the number of its delivery.
        why: the reason, as JSON text, for whoever reads the letter.
    """
    return Settlement("d", id, fence, 0, why)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answer to a settle-and-take.

    Attributes:
        is_known: False if this consumer's lease ended and its messages were recovered.
        refused: the ids of messages that the consumer no longer held; their settlements were
            ignored.
        revoked: the ids of messages that the queue took back, since an earlier message of their
            sequence went back.
        due_in_ms: milliseconds until the next delayed message is due; None if none is delayed.
        taken: the new deliveries; those of one sequence are in its order.
        paused: all paused queues, including those that were not asked for.
    """

    is_known: bool
    refused: tuple[int, ...] = ()
    revoked: tuple[int, ...] = ()
    due_in_ms: int | None = None
    taken: Sequence[Taken] = field(default=())
    paused: Sequence[str] = ()


class Beat(NamedTuple):
    """The answer to a heartbeat.

    Attributes:
        is_held: whether the consumer still has its lease.
        first_end_ms: when the first of all leases ends, in milliseconds of Redis's clock.
        now_ms: Redis's clock, in milliseconds.
        expired_queues: how many unused queues have outlived their time.
        letters_due: how many dead letters must be looked after.
    """

    is_held: bool
    first_end_ms: int
    now_ms: int
    expired_queues: int = 0
    letters_due: int = 0


class Recovered(NamedTuple):
    """The outcome of recovering one consumer.

    Attributes:
        consumer: its name.
        messages: how many messages were taken back from it.
        dead_letters: how many of these became dead letters.
    """

    consumer: str
    messages: int
    dead_letters: int


class QueueCount(NamedTuple):
    """The numbers of a queue's messages, by what they wait for.

    Attributes:
        ready: what a free worker could take now; a sequence counts once.
        in_sequences: all messages of running sequences.
        retrying: the messages of sequences whose first message waits for its time.
        blocked: the messages of sequences behind a dead letter, the dead letter included.
        delayed: messages that wait for their time.
        dead: dead letters.
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
        going: sequences that are ready or held.
        retrying: sequences whose first message waits for its time.
        blocked: sequences behind a dead letter.
    """

    going: int
    retrying: int
    blocked: int


class DeadLetter(NamedTuple):
    """A message that was set aside unchanged, with the reason.

    Attributes:
        id: the message's id.
        queue: the queue that it was to be handled from.
        sequence: the sequence that it is in; "" for none.
        priority: its priority step.
        first_died_at_ms: when it first became a dead letter, in milliseconds of Redis's clock.
        died_at_ms: when it last became one, after a redrive.
        times: how often it became one.
        tries: the deliveries since the last redrive that ended without a settlement.
        state: "dead"; "tried" if its message is queued again or in flight; or "archived" if its
            time is over.
        why: the reason, as JSON text of whoever set it aside.
        payload: the message, or its head if several queues share a body.
        body: the shared body; empty if there is none.
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
    """What happens to the dead letters of a queue.

    Attributes:
        kind: "block": a letter holds up its sequence, and is archived when its time is over;
            "discard": it holds up its sequence, and is deleted when its time is over; "continue":
            it holds up nothing.
        first_redrive_ms: milliseconds until the first automatic redrive; doubled each time.
        most_redrive_ms: the most milliseconds between two redrives.
        life_ms: milliseconds for which the letter is redriven.
        crowd: how many messages may wait behind the letter without an alarm.
    """

    kind: str = "block"
    first_redrive_ms: int = 300_000
    most_redrive_ms: int = 3_600_000
    life_ms: int = 604_800_000
    crowd: int = 10_000


def priority_step(priority: int, steps: Sequence[int] = PRIORITY_STEPS) -> int:
    """Return the step that a priority counts as: the highest one that is not above it.

    Args:
        priority: a message's priority; 0 is the most urgent.
        steps: the steps, ascending.
    """
    return max((step for step in steps if step <= priority), default=steps[0])
