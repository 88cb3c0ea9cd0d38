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
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from ..errors import (
    ConcurrencyError,
    DuplicateCommand,
    HandlerNotFound,
    StoreError,
)
from ..messages.metadata import NO_METADATA, Metadata
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
from .injection import Providers
from .kinds import check_kind
from .locks import CommandGate, CommandLock, Locks
from .middleware import Call, Middleware, around, checked
from .outcomes import committed_in_time, result_of
from .repeating import Next, Tries
from .results import CommandResult as CommandResult
from .scopes import Scope


class Bus:
    """Run the handlers of one application.

    Args:
        repository: where handlers' sessions load and save.
        serializer: of the application.
        app: Celery's application; None where nothing is sent.
        locks: of aggregates; None for none.
        definitions: the handlers.
        middleware: around every handler, the first one outermost.
        providers: what handlers may ask for besides what the package gives; None for nothing.
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
        providers: Providers | None = None,
    ) -> None:
        self.app = app
        self.repository = repository
        self.serializer = serializer
        self.locks = locks
        self.definitions = definitions
        self.middleware = checked(middleware)
        self.providers = providers or Providers()

    def takes_session(self, definition: Definition) -> bool:
        """Return whether a handler takes a session, or what it asks for does.

        Raises:
            HandlerSignatureError: it asks for what it can't be given; see `Providers.plan_of`.
        """
        is_asked = definition.asked and self.providers.plan_of(definition).needs_session
        return bool(is_asked) or Session in definition.injections.values()

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
                        if definition.asked:
                            return self._run_scoped(definition, attempt, tries)
                        return self._run_once(definition, attempt, tries)
                except DuplicateCommand as error:
                    return result_of(CommandOutcome(error.position, error.outcome), definition)
                except SoftTimeLimitExceeded:
                    if tries.is_committing and (found := attempt.find()):
                        return committed_in_time(found, definition)
                    raise
                except Exception as error:
                    follows = tries.after(error)
                    if follows is Next.FAIL:
                        raise
                attempt = again()
                if follows is Next.CONFLICT:
                    time.sleep(delay_s(tries.conflicts - 1))
                    lock.after_conflict()

    def _run_scoped(self, definition: Definition, attempt: Attempt, tries: Tries) -> CommandResult:
        scope = self._scope(definition, attempt)
        return scope.run(lambda: self._run_once(definition, attempt, tries, scope))

    def _scope(self, definition: Definition, attempt: Attempt) -> Scope:
        return Scope(
            self.providers.plan_of(definition),
            _name_of(definition),
            attempt.metadata,
            lambda: self._handling(definition, attempt),
            keeps_when_repeated=definition.kind == "event",
        )

    def _run_once(
        self,
        definition: Definition,
        attempt: Attempt,
        tries: Tries,
        scope: Scope | None = None,
    ) -> CommandResult:
        session = HandlerSession(self.repository, metadata=attempt.metadata)
        try:
            takes_session = Session in definition.injections.values()
            if not definition.is_async and (takes_session or (scope and scope.needs_session)):
                session.enclose()
            try:
                with self._handling(definition, attempt), session.watching():
                    given = _arguments(definition, attempt, session)
                    if scope is not None:
                        value = _call_in_scope(scope, definition, attempt, given, session)
                    else:
                        value = definition.function(attempt.message, **given)
                        if definition.is_async:
                            value = run_coroutine(value, of=_name_of(definition))
            except Exception as error:
                # A transaction in which something failed may answer no more.
                session.close()
                if _may_be_repeated(error) and (found := attempt.find()):
                    if scope is not None:
                        scope.error = error
                    return result_of(found, definition)
                raise
            tries.is_committing = True
            return self._commit(session, definition, attempt, value)
        finally:
            if scope is not None:
                scope.is_committed = session.has_committed
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
                        if definition.asked:
                            return await self._run_scoped_async(definition, attempt, tries)
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

    async def _run_scoped_async(
        self, definition: Definition, attempt: Attempt, tries: Tries
    ) -> CommandResult:
        async with self._scope(definition, attempt) as scope:
            return await self._run_once_async(definition, attempt, tries, scope)

    async def _run_once_async(
        self,
        definition: Definition,
        attempt: Attempt,
        tries: Tries,
        scope: Scope | None = None,
    ) -> CommandResult:
        session = HandlerSession(self.repository, metadata=attempt.metadata)
        try:
            try:
                with self._handling(definition, attempt), session.watching():
                    given = _arguments(definition, attempt, session)
                    if scope is None:
                        value = await definition.function(attempt.message, **given)
                    else:
                        call = partial(definition.function, attempt.message, **given)
                        value = await scope.call_async(call, session)
            except Exception as error:
                if _may_be_repeated(error) and (found := await off_loop(attempt.find)):
                    if scope is not None:
                        scope.error = error
                    return result_of(found, definition)
                raise
            tries.is_committing = True
            return await off_loop(self._commit, session, definition, attempt, value)
        finally:
            if scope is not None:
                scope.is_committed = session.has_committed
            session.close()

    def answer(self, query: Any) -> Any:
        """Run a query's handler; returns what it returns.

        Raises:
            HandlerNotFound: there is none.
            Exception: whatever the handler raised.
        """
        check_kind(query, "query")
        definition = self.find(query)
        with self._around_query(definition, query) as call:
            if not definition.is_async:
                call.result = self._answer(definition, query)
            else:
                answer = self._answer_async(definition, query)
                call.result = run_coroutine(answer, of=_name_of(definition))
        return call.result

    async def answer_async(self, query: Any) -> Any:
        """Run a query's handler without blocking the event loop; a sync one runs in a thread."""
        check_kind(query, "query")
        definition = self.find(query)
        if not definition.is_async:
            return await handler_off_loop(self.answer, query)
        with self._around_query(definition, query) as call:
            call.result = await self._answer_async(definition, query)
        return call.result

    def _answer(self, definition: Definition, query: Any) -> Any:
        if not (definition.injections or definition.asked):
            return definition.function(query)
        session = QuerySession(self.repository)
        given = dict.fromkeys(definition.injections, session)
        if not definition.asked:
            with session.reading():
                return definition.function(query, **given)
        scope = self._query_scope(definition)

        def read() -> Any:
            with session.reading():
                return scope.call(partial(definition.function, query, **given), session)

        return scope.run(read)

    async def _answer_async(self, definition: Definition, query: Any) -> Any:
        if not (definition.injections or definition.asked):
            return await definition.function(query)
        session = QuerySession(self.repository)
        given = dict.fromkeys(definition.injections, session)
        if not definition.asked:
            with session.reading():
                return await definition.function(query, **given)
        async with self._query_scope(definition) as scope:
            with session.reading():
                call = partial(definition.function, query, **given)
                return await scope.call_async(call, session)

    def _query_scope(self, definition: Definition) -> Scope:
        plan = self.providers.plan_of(definition)
        return Scope(plan, _name_of(definition), NO_METADATA, nullcontext)

    def _around_query(self, definition: Definition, query: Any) -> AbstractContextManager[Call]:
        return around(self.middleware, Call("query", query, _name_of(definition)))


def _call_of(definition: Definition, attempt: Attempt) -> Call:
    message = attempt.message
    kind = definition.kind if isinstance(message, list) else message.__kind__
    return Call(kind, message, _name_of(definition), attempt.metadata, attempt.recorded)


def _name_of(definition: Definition) -> str:
    return ".".join(definition.place)


def _may_be_repeated(error: Exception) -> bool:
    """Return whether a handler may have raised this at the state that its first run has made."""
    return not isinstance(error, StoreError) or isinstance(error, ConcurrencyError)


def _call_in_scope(
    scope: Scope,
    definition: Definition,
    attempt: Attempt,
    given: dict[str, Any],
    session: Session,
) -> Any:
    call = partial(definition.function, attempt.message, **given)
    return (scope.call_in_loop if definition.is_async else scope.call)(call, session)


def _arguments(definition: Definition, attempt: Attempt, session: Session) -> dict[str, Any]:
    given = {Session: session, Metadata: attempt.metadata, RecordedEvent: attempt.recorded}
    return {name: given[cls] for name, cls in definition.injections.items()}
