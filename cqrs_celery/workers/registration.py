"""Register the application's subscriptions when a worker starts, before it takes any message.

A registration is durable: events that are committed while no worker runs arrive later. It holds the
head of the subscriber's task message, with placeholders for the ids, so that the event store can
build each message by joining texts. During a rolling deploy, the last worker's registration wins.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Final

from celery import bootsteps
from celery.worker.state import maybe_shutdown

from ..app.relaying import RelayParts
from ..dispatch.definitions import Definition, definitions
from ..dispatch.handler import task_of
from ..dispatch.runtime import Runtime, runtime_of
from ..dispatch.topics import topics_of
from ..errors import InvalidSetting, StoreUnavailable
from ..store.events import DeadLetterPolicy, Subscriber
from ..store.ports import Subscriptions
from ..transport import envelope
from ..transport.consumer.event_batch import BATCH_HEADER
from ..transport.faults import Faults
from .refusing import ending_the_worker

logger = logging.getLogger(__name__)

#: The step's name in the log of its failures: "could not …".
STEP: Final = "register its subscriptions"

#: Seconds between two attempts while the store does not answer.
RETRY_S: Final = 1.0

#: Seconds between two checks, while waiting, whether the worker should stop.
LOOK_S: Final = 0.1

#: Placeholders for the ids that the event store inserts; no JSON text contains them by chance.
_ID, _ROOT, _PARENT = "\x00id\x00", "\x00root\x00", "\x00parent\x00"


class RegistrationStep(bootsteps.StartStopStep):
    """The step that registers after each connection, since the server may be a new one."""

    requires = ("celery.worker.consumer.connection:Connection",)
    name = "cqrs-registration"

    def start(self, parent: Any) -> None:
        """Register every subscription of the worker's application.

        If the store has its own database and that does not answer, this method waits for it.
        Raising an error would make Celery report a fault of the broker and reconnect to the broker,
        which could not help.

        Raises:
            ConnectionError: the store is in the broker's Redis, which does not answer; the worker
                reconnects, and calls this again.
            SystemExit: a handler needs something that does not exist, the event store has no
                tables, or its URL is wrong; a signal's receiver, which runs earlier, could not end
                the worker. Or the worker was told to stop.
        """
        with ending_the_worker():
            self._start(parent)

    def _start(self, parent: Any) -> None:
        runtime = runtime_of(parent.app)
        parent.app.cqrs.check_handlers()
        subscriptions, relay = runtime.subscriptions, parent.app.cqrs.relay
        if subscriptions is None:
            return
        if relay is not None:
            self._register_and_wait(runtime, subscriptions, relay)
            relay.is_registered.set()
            return
        try:
            self._register(runtime, subscriptions)
        except StoreUnavailable as error:
            logger.error(
                "subscriptions of %s not registered, tries again: %s",
                runtime.application,
                error,
                extra={"why": str(error)},
            )
            # Any other error would make Celery end the worker.
            raise ConnectionError(str(error)) from error

    def _register_and_wait(
        self, runtime: Runtime, subscriptions: Subscriptions, relay: RelayParts
    ) -> None:
        """Register as soon as the store and the queue answer.

        Raises:
            InvalidSetting: a URL is wrong; only at the worker's start.
            SystemExit: the worker was told to stop.
        """
        faults = Faults(logger, of="the worker", away=StoreUnavailable)
        # A store that worked before may fail in any way, such as a database that is being restored.
        is_checked = relay.is_registered.is_set()
        while True:
            try:
                self._register(runtime, subscriptions)
                if not is_checked:
                    _check_database(relay)
            except StoreUnavailable as error:
                if error.is_misconfigured and not relay.is_registered.is_set():
                    raise InvalidSetting(
                        str(error),
                        setting="cqrs_event_store",
                        accepted="the URL of an existing database",
                    ) from error
                faults.note(STEP, error)
                _pause()
            else:
                faults.clear(STEP)
                return

    def _register(self, runtime: Runtime, subscriptions: Subscriptions) -> None:
        registered: dict[str, list[str]] = {}
        new: dict[str, int] = {}
        for definition in definitions.all():
            if definition.kind == "event":
                subscriber = subscriber_of(definition, runtime)
                count = subscriptions.register(subscriber)
                registered.setdefault(subscriber.queue, []).extend(subscriber.topics)
                new[subscriber.queue] = new.get(subscriber.queue, 0) + count
        for queue, topics in registered.items():
            logger.info(
                "subscription %s registered (%d event type%s, %d new)",
                queue,
                len(topics),
                "" if len(topics) == 1 else "s",
                new[queue],
                extra={"queue": queue, "topics": topics, "new_topics": new[queue]},
            )


def _check_database(relay: RelayParts) -> None:
    """Check that the store's database has its tables, and that the replica is one of it.

    A replica that does not answer is logged: a worker can work without it.

    Raises:
        InvalidSetting: the replica is not a replica of the store's database.
        SchemaError: the tables are missing.
        StoreUnavailable: the database does not answer.
    """
    logger.debug("the store's id is %s", relay.outbox.store_id)
    if relay.replica is None:
        return
    try:
        relay.replica.check_replica()
    except StoreUnavailable as error:
        if error.is_misconfigured:
            raise
        logger.warning("the replica was not checked: %s", error)


def _pause() -> None:
    """Wait `RETRY_S` before the next attempt.

    Raises:
        SystemExit: the worker was told to stop.
    """
    ends_at = time.monotonic() + RETRY_S
    while time.monotonic() < ends_at:
        maybe_shutdown()
        time.sleep(LOOK_S)


def subscriber_of(definition: Definition, runtime: Runtime) -> Subscriber:
    """Return the registration of a subscription's function, as the event store keeps it.

    Raises:
        InvalidSetting: its task has an option that a message built by the store can't have, or its
            dead letters live longer than the ids of committed commands are remembered.
    """
    task = task_of(runtime.app, definition)
    for option in ("expires", "compression"):
        if getattr(task, option, None):
            raise InvalidSetting(
                f"the task {task.name} has {option} = {getattr(task, option)!r}; accepted: none,"
                " since the event store builds its messages by joining texts",
                setting=option,
                accepted="none",
            )
    policy = _policy(definition, runtime.dead_letters)
    if policy.ttl_s > runtime.command_id_ttl_s:
        raise InvalidSetting(
            f"the subscription {task.home_queue} has dead_letter_ttl_s = {policy.ttl_s}; accepted:"
            f" up to cqrs_command_id_ttl_s = {runtime.command_id_ttl_s}, the time for which the"
            " commits of its functions are remembered",
            setting="dead_letter_ttl_s",
            accepted=f"up to {runtime.command_id_ttl_s}",
        )
    topics = topics_of(definitions.topics_of(definition), runtime.serializer)
    return Subscriber(
        task.name,
        topics,
        task.home_queue,
        _head(task),
        definition.ordered or "none" if definition.ordered is not True else "aggregate",
        policy,
    )


def _policy(definition: Definition, default: DeadLetterPolicy) -> DeadLetterPolicy:
    lettering = definition.lettering
    return default._replace(
        kind=lettering.on_dead_letter.partition("_")[0],
        ttl_s=lettering.dead_letter_ttl_s or default.ttl_s,
    )


def _head(task: Any) -> tuple[str, str, str, str, str]:
    """Return the head of a task's message in five pieces around its four placeholders."""
    app = task.app
    task_id = f"{_ID}:{task.name}"
    message = app.amqp.as_task_v2(
        task_id, task.name, (), {},
        root_id=_ROOT, parent_id=_PARENT, ignore_result=task.ignore_result,
        argsrepr="(<recorded event>,)", kwargsrepr="{}", origin="cqrs",
    )  # fmt: skip
    if task.definition.batch:
        message.headers[BATCH_HEADER] = task.definition.batch
    properties = {
        **message.properties,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": task.home_queue},
        "priority": task.priority or 0,
    }
    properties["correlation_id"] = task_id
    # The ids come in the order of the placeholders: id, id, root, parent.
    headers = dict(message.headers)
    first = {name: headers.pop(name) for name in ("id", "root_id", "parent_id")}
    text = envelope.head_of(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "properties": properties,
            "headers": {**first, **headers},
        }
    )
    return _split(text)


def _split(text: str) -> tuple[str, str, str, str, str]:
    pieces = []
    for hole in (_ID, _ID, _ROOT, _PARENT):
        piece, _, text = text.partition(json.dumps(hole)[1:-1])
        pieces.append(piece)
    one, two, three, four = pieces
    return one, two, three, four, text
