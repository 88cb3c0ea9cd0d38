"""The sessions that handlers get: a command's, which the runner commits, and a query's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, Self, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.watching import Watching
from ..errors import SessionError
from ..store.events import CommandRecord, Committed, Lease
from .session import Session

A = TypeVar("A", bound=Aggregate)


class HandlerSession(Session):
    """The session that a command's handler gets; the code that runs the handler commits it.

        session = HandlerSession(repository, metadata=metadata)
        try:
            result = handler(command, session)
            committed = session.commit_on_return(command=record, lease=lease)
        finally:
            session.close()

    A handler must not commit by itself: it could commit twice, and only one of the commits can be
    recorded as the command's.
    """

    _place = "handler"

    #: Whether something was committed: events, or rows that were written through `connection`.
    has_committed = False

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Refuse to commit, since the commit happens when the handler returns.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            "a command handler tried to commit its session. The session is committed once, when the"
            " handler returns. Remove the commit (or the `with`); to write nothing, raise an"
            " exception."
        )

    def __enter__(self) -> Self:
        self.commit()
        return self

    def watching(self) -> Watching:
        """Return the context in which to call the handler; it collects what records events."""
        self._watching = Watching()
        return self._watching

    def enclose(self) -> None:
        """Begin the store's transaction, if handlers are called in one.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if self._repository.encloses_handlers:
            self._transaction = self._repository.begin(is_enclosing=True)

    def commit_on_return(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Commit as `Session.commit` does, on behalf of the handler's runner, and end the session.

        The session ends only if the commit succeeds: after StoreUnavailable the commit may be
        repeated.

        Raises:
            SessionError: the handler made an aggregate that recorded something, and did not add it.
            CQRSError: as `Session.commit` does.
        """
        self._check_added()
        has_rows = self._transaction is not None
        committed = super().commit(command=command, lease=lease)
        self.has_committed = has_rows or committed is not None
        self.close()
        return committed


class QuerySession(Session):
    """The session that a query's handler gets: it reads, and nothing is committed."""

    def add(self, aggregate: Aggregate) -> NoReturn:
        """Refuse to add, since a query changes nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            f"a query's handler added {aggregate!r} to its session, which commits nothing: a query"
            " only reads. Use a command to change something."
        )

    def require_unchanged(self, aggregate: Aggregate) -> NoReturn:
        """Refuse to check, since a query commits nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            f"a query's handler called require_unchanged({aggregate!r}), but its session commits"
            " nothing, so nothing is checked. A query only reads: leave it out."
        )

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> NoReturn:
        """Refuse to commit, since a query changes nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            "a query's handler tried to commit its session, or to end it by `with`: a query only"
            " reads, and its caller ends the session. Use a command to change something."
        )

    def __enter__(self) -> Self:
        self.commit()

    def get_or_create(
        self, cls: type[A], id: str, make: Callable[[str], A] | None = None
    ) -> NoReturn:
        """Refuse to create, since a query changes nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            f"a query's handler called get_or_create({cls.__qualname__}, {id!r}), which adds a"
            " missing aggregate to the session. A query only reads: use get or find."
        )

    async def get_or_create_async(
        self, cls: type[A], id: str, make: Callable[[str], A] | None = None
    ) -> NoReturn:
        """Refuse to create, as `get_or_create` does.

        Raises:
            SessionError: always.
        """
        self.get_or_create(cls, id, make)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Return the context in which to call the handler; the session ends with it.

        Raises:
            SessionError: an aggregate recorded an event inside, which would never be written.
        """
        watching = Watching()
        try:
            with watching:
                yield
        finally:
            self.close()
        for aggregate in watching.found:
            if aggregate.pending_events:
                events = [pending.type.__qualname__ for pending in aggregate.pending_events]
                raise SessionError(
                    f"{aggregate!r} recorded {', '.join(events)} in a query's handler, which"
                    " commits nothing: a query only reads. Use a command to change something."
                )
