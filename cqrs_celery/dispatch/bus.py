"""Run handlers in this process: find the one, give it what it asks for, commit on its return.

Order of a command's execution: its id is looked up, and has it committed before, the recorded
outcome is the result; else a session is opened; the handler runs; what its aggregates have recorded
is committed in one append, together with the command's id. An exception commits nothing. A conflict
with another writer repeats all of it, with fresh state, under the aggregate's lock. An exception
after a replica was read repeats it once, with reads of the primary. Around all of that is the
middleware.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..errors import (
    ConcurrencyError,
    DuplicateCommand,
    HandlerNotFound,
    StoreError,
)
from ..messages.metadata import Metadata
from ..messages.serializer import Serializer
from ..session.handling import HandlerSession, QuerySession
from ..session.off_loop import handler_off_loop, off_loop
from ..session.repository import Repository
from ..session.session import Session
from ..store.events import CommandOutcome, RecordedEvent
from .attempts import Attempt as Attempt
from .conflicts import delay_s
from .context import handling
from .definitions import Definition, Definitions
from .definitions import definitions as all_definitions
from .event_loop import run_coroutine
from .kinds import check_kind
from .locks import CommandGate, CommandLock, Locks
from .middleware import Call, Middleware, around, checked
from .repeating import Next, Tries
from .results import CommandResult as CommandResult


class Bus:
    """Run the handlers of one application.

    Args:
        repository: where handlers' sessions load and save.
        serializer: of the application.
        app: Celery's application; None where nothing is sent.
        locks: of aggregates; None for none.
        definitions: the handlers.
        middleware: around every handler, the first one outermost.
    """

    def __init__(
        self,
        repository: Repository,
        serializer: Serializer,
        *,
        app: Any = None,
        locks: Locks | None = None,
        definitions: Definitions = all_definitions,
        middleware: Iterable[Middleware] = (),
    ) -> None:
        self.app = app
        self.repository = repository
        self.serializer = serializer
        self.locks = locks
        self.definitions = definitions
        self.middleware = checked(middleware)

    def find(self, message: Any) -> Definition:
        """Return the handler of a command or query.

        Raises:
            HandlerNotFound: there is none.
        """
        definition = self.definitions.handler_of(type(message))
        if definition is None:
            raise self.missing(message)
        return definition

    def missing(self, message: Any) -> HandlerNotFound:
        """Return the error for a command or query that has no handler.

        A handler of either kind serves both ways of asking, so both were looked for.
        """
        kind, name, looked_for = message.__kind__, type(message).__qualname__, "sync or async"
        return HandlerNotFound(
            f"no {looked_for} handler for the {kind} {name} is declared in this process;"
            f" expected a function with @{kind}_handler({name}). Import the module that has it.",
            message_type=name,
            looked_for=looked_for,
        )

    def run(self, definition: Definition, attempt: Attempt) -> CommandResult:
        """Run a handler with a session, and commit on its return; repeat it on a conflict.

        It is repeated as well, once and with reads of the primary, if it raises after something was
        read from a replica, which may lag or be away.

        Returns:
            What it returned; what was recorded, without running it, where that is looked for first
            and found.

        Raises:
            ConcurrencyError: other writers won every time.
            StaleVersion: the handler expects another version of an aggregate; it ran once.
            DuplicateInstance: the session has an aggregate in two instances; it ran once.
            SubscriptionFailed: it is committed, in memory, and a subscription's function failed.
            LockTimeout: somebody else held the aggregate's lock all the time.
            Exception: whatever the handler raised; then nothing was committed.
        """
        if not self.middleware:
            return self._run(definition, attempt)
        with around(self.middleware, _call_of(definition, attempt)) as call:
            call.result = result = self._run(definition, attempt)
        return result

    def _run(self, definition: Definition, attempt: Attempt) -> CommandResult:
        if attempt.looks_first and (found := attempt.find()):
            return result_of(found, definition)
        tries, again = Tries(definition), attempt.repeats()
        with CommandLock(self.locks, attempt.stream, definition) as lock:
            lock.before()
            while True:
                try:
                    with tries.reads:
                        return self._run_once(definition, attempt, tries)
                except DuplicateCommand as error:
                    return result_of(CommandOutcome(error.position, error.outcome), definition)
                except Exception as error:
                    follows = tries.after(error)
                    if follows is Next.FAIL:
                        raise
                attempt = again()
                if follows is Next.CONFLICT:
                    time.sleep(delay_s(tries.conflicts - 1))
                    lock.after_conflict()

    def _run_once(self, definition: Definition, attempt: Attempt, tries: Tries) -> CommandResult:
        session = HandlerSession(self.repository, metadata=attempt.metadata)
        try:
            if Session in definition.injections.values() and not definition.is_async:
                session.enclose()
            try:
                with self._handling(definition, attempt), session.watching():
                    value = _call(definition, attempt, session)
            except Exception as error:
                # A transaction in which something failed may answer no more.
                session.close()
                if _may_be_repeated(error) and (found := attempt.find()):
                    return result_of(found, definition)
                raise
            tries.is_committing = True
            return self._commit(session, definition, attempt, value)
        finally:
            session.close()

    def _handling(self, definition: Definition, attempt: Attempt) -> handling:
        return handling(attempt.metadata, _name_of(definition), self.app)

    def _commit(
        self, session: HandlerSession, definition: Definition, attempt: Attempt, value: Any
    ) -> CommandResult:
        record = attempt.record(value)
        if value is not None and (record is not None or definition.kind == "command"):
            # As whoever repeats the command, or waits for its result, reads it.
            if record is not None:
                written = record.outcome
            else:
                name = self.serializer.name_of(definition.messages[0])
                written = definition.returned.write(value, of=name)
            value = definition.returned.read(written)
        committed = session.commit_on_return(command=record, lease=attempt.lease)
        return CommandResult(value=value, position=committed.position if committed else None)

    async def run_async(self, definition: Definition, attempt: Attempt) -> CommandResult:
        """Run a handler as `run` does, without blocking the event loop.

        An async handler is awaited here, and its commit runs in a thread; a sync handler runs in
        a thread as a whole. Cancelled in the middle of a commit, it ends when that has ended.
        """
        if not definition.is_async:
            async with CommandGate(self.locks, attempt.stream, definition):
                return await handler_off_loop(self.run, definition, attempt)
        if not self.middleware:
            return await self._run_async(definition, attempt)
        with around(self.middleware, _call_of(definition, attempt)) as call:
            call.result = result = await self._run_async(definition, attempt)
        return result

    async def _run_async(self, definition: Definition, attempt: Attempt) -> CommandResult:
        if attempt.looks_first and (found := await off_loop(attempt.find)):
            return result_of(found, definition)
        tries, again = Tries(definition), attempt.repeats()
        async with CommandLock(self.locks, attempt.stream, definition) as lock:
            await lock.before_async()
            while True:
                try:
                    with tries.reads:
                        return await self._run_once_async(definition, attempt, tries)
                except DuplicateCommand as error:
                    return result_of(CommandOutcome(error.position, error.outcome), definition)
                except Exception as error:
                    follows = tries.after(error)
                    if follows is Next.FAIL:
                        raise
                attempt = again()
                if follows is Next.CONFLICT:
                    await asyncio.sleep(delay_s(tries.conflicts - 1))
                    await lock.after_conflict_async()

    async def _run_once_async(
        self, definition: Definition, attempt: Attempt, tries: Tries
    ) -> CommandResult:
        session = HandlerSession(self.repository, metadata=attempt.metadata)
        try:
            try:
                with self._handling(definition, attempt), session.watching():
                    value = await definition.function(
                        attempt.message, **_arguments(definition, attempt, session)
                    )
            except Exception as error:
                if _may_be_repeated(error) and (found := await off_loop(attempt.find)):
                    return result_of(found, definition)
                raise
            tries.is_committing = True
            return await off_loop(self._commit, session, definition, attempt, value)
        finally:
            session.close()

    def answer(self, query: Any) -> Any:
        """Run a query's handler; returns what it returns.

        Raises:
            HandlerNotFound: there is none.
            Exception: whatever the handler raised.
        """
        check_kind(query, "query")
        definition = self.find(query)
        with self._around_query(definition, query) as call, self._read(definition) as given:
            answer = definition.function(query, **given)
            if definition.is_async:
                answer = run_coroutine(answer, of=_name_of(definition))
            call.result = answer
        return call.result

    async def answer_async(self, query: Any) -> Any:
        """Run a query's handler without blocking the event loop; a sync one runs in a thread."""
        check_kind(query, "query")
        definition = self.find(query)
        if not definition.is_async:
            return await handler_off_loop(self.answer, query)
        with self._around_query(definition, query) as call, self._read(definition) as given:
            call.result = await definition.function(query, **given)
        return call.result

    def _read(self, definition: Definition) -> AbstractContextManager[dict[str, Any]]:
        """Return the context of a query's handler, which gives its parameters beside the query."""
        return self._reading(definition) if definition.injections else nullcontext({})

    @contextmanager
    def _reading(self, definition: Definition) -> Iterator[dict[str, Any]]:
        session = QuerySession(self.repository)
        with session.reading():
            yield dict.fromkeys(definition.injections, session)

    def _around_query(self, definition: Definition, query: Any) -> AbstractContextManager[Call]:
        return around(self.middleware, Call("query", query, _name_of(definition)))


def _call_of(definition: Definition, attempt: Attempt) -> Call:
    message = attempt.message
    kind = definition.kind if isinstance(message, list) else message.__kind__
    return Call(kind, message, _name_of(definition), attempt.metadata, attempt.recorded)


def _name_of(definition: Definition) -> str:
    return ".".join(definition.place)


def result_of(found: CommandOutcome, definition: Definition) -> CommandResult:
    """Return the result of a command that had committed before: the first one's, in its type."""
    value = definition.returned.read(found.outcome)
    return CommandResult(value=value, position=found.position or None, is_repeated=True)


def _may_be_repeated(error: Exception) -> bool:
    """Return whether a handler may have raised this at the state that its first run has made."""
    return not isinstance(error, StoreError) or isinstance(error, ConcurrencyError)


def _call(definition: Definition, attempt: Attempt, session: Session) -> Any:
    result = definition.function(attempt.message, **_arguments(definition, attempt, session))
    return run_coroutine(result, of=_name_of(definition)) if definition.is_async else result


def _arguments(definition: Definition, attempt: Attempt, session: Session) -> dict[str, Any]:
    given = {Session: session, Metadata: attempt.metadata, RecordedEvent: attempt.recorded}
    return {name: given[cls] for name, cls in definition.injections.items()}
