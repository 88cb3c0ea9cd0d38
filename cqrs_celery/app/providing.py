"""What an application's handlers may ask for by its type, and what tests give in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeAlias, TypeVar, overload

from ..dispatch.factories import Factory
from ..dispatch.injection import Providers

T = TypeVar("T")

#: What a factory returns: a value, or what gives one when it is entered, iterated or awaited.
Made: TypeAlias = (
    T
    | Iterator[T]
    | AsyncIterator[T]
    | Awaitable[T]
    | AbstractContextManager[T]
    | AbstractAsyncContextManager[T]
)


class Providing:
    """The part of an application that provides what its handlers ask for.

    Attributes:
        providers: the factories.
    """

    def __init__(self) -> None:
        self.providers = Providers()

    # A type is taken as what makes it: checkers refuse an abstract class as a `type[T]`.
    def provide(self, cls: Callable[..., T], factory: Callable[..., Made[T]], /) -> None:
        """Provide a type: a parameter of a handler that is annotated with it is given a value.

        Each handling has its own value, which all parameters share that ask for it. It is closed
        when the session has committed or was rolled back, before a repetition, too.

        Args:
            cls: the type: a class, a class with its parameters, or a `typing.NewType`.
            factory: makes a value: a function, a class, a generator function, what returns a
                context manager; or an async one of these, for async handlers alone. It may itself
                ask for `Session`, `Metadata` and whatever else is provided.

        Raises:
            DuplicateRegistration: the type is provided already; both factories are named.
            RegistrationError: the type can't be provided, as `Session` or `int`; or the factory has
                a parameter that can't be given anything.
        """
        self.providers.add(cls, factory)

    @overload
    def overriding(
        self, cls: Callable[..., Any], value: Any, /
    ) -> AbstractContextManager[None]: ...
    @overload
    def overriding(
        self, cls: Callable[..., T], /, *, factory: Callable[..., Made[T]]
    ) -> AbstractContextManager[None]: ...
    def overriding(
        self,
        cls: Callable[..., T],
        value: Any = None,
        /,
        *,
        factory: Callable[..., Made[T]] | None = None,
    ) -> AbstractContextManager[None]:
        """Return a block in which handlers are given something else, in every thread: for tests.

            with cqrs.overriding(Mailer, FakeMailer()):
                cqrs.execute(ConfirmOrder(id="1"))

        Blocks may be nested, and may overlap: the newest one counts. The type need not be provided.

        Args:
            cls: the type.
            value: what every handling is given, and nobody closes.
            factory: makes a value for each handling, in place of one value.

        Raises:
            RegistrationError: the type can't be provided, or the factory has a parameter that can't
                be given anything.
        """
        return self.providers.overriding(replacement(cls, value, factory))


def replacement(
    cls: Callable[..., T], value: Any, factory: Callable[..., Made[T]] | None
) -> Factory:
    """Return the factory that gives a value, or that is given.

    Raises:
        RegistrationError: the factory has a parameter that can't be given anything.
    """
    return Factory.giving(cls, value) if factory is None else Factory.of(cls, factory)
