"""The factories that an application provides, and the plan for calling them for one handler.

    cqrs.provide(Mailer, make_mailer)

    @command_handler(ConfirmOrder)
    def confirm_order(command: ConfirmOrder, session: Session, mailer: Mailer) -> None: ...

A plan lists the factories to call, in order, with the arguments of each. It is made at the first
use of a handler, and again after something else was provided. Handlers that ask for nothing have no
plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import DuplicateRegistration, HandlerSignatureError
from ..messages.metadata import Metadata
from ..messages.registry import where
from ..session.session import Session
from .asking import Asked, name_of, names
from .definitions import Definition
from .factories import Factory, check_key
from .signature import INJECTABLE


class Arguments(NamedTuple):
    """The keyword arguments of a handler or a factory.

    Attributes:
        keys: the parameters that get a value of this handling, each with its type.
        nothing: the parameters that get None, since nobody provides their types.
    """

    keys: Mapping[str, Any]
    nothing: tuple[str, ...] = ()

    def of(self, made: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the arguments, taken from the values that were made."""
        given = {name: made[key] for name, key in self.keys.items()}
        return {**given, **dict.fromkeys(self.nothing)} if self.nothing else given


class Step(NamedTuple):
    """A factory to call, with its arguments."""

    factory: Factory
    arguments: Arguments


@dataclass(frozen=True)
class Plan:
    """The factories to call for one handler, in order.

    Attributes:
        steps: the factories, each after those whose values it takes.
        arguments: those of the handler itself.
        needs_session: whether a factory asks for the session.
    """

    steps: tuple[Step, ...]
    arguments: Arguments
    needs_session: bool


@dataclass(eq=False)
class Override:
    """A factory in place of another, until it is restored."""

    factory: Factory


class Providers:
    """The factories of one application. Its methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._factories: dict[Any, Factory] = {}
        self._overrides: list[Override] = []
        self._now: dict[Any, Factory] = {}
        # Each with the factories it was made from; these are replaced as a whole, never changed.
        self._plans: WeakKeyDictionary[Definition, tuple[dict[Any, Factory], Plan]] = (
            WeakKeyDictionary()
        )

    def add(self, key: Any, function: Callable[..., Any]) -> None:
        """Provide a type.

        Args:
            key: the type, by which handlers ask.
            function: makes a value for each handling.

        Raises:
            DuplicateRegistration: it is provided already; both factories are named.
            RegistrationError: the type can't be provided, or the factory asks for what it can't be
                given.
        """
        check_key(key)
        factory = Factory.of(key, function)
        with self._lock:
            other = self._factories.get(key)
            if other is not None:
                raise DuplicateRegistration(
                    f"{name_of(key)} is provided by {other.place} and by {factory.place}; expected"
                    " one. Remove one of them; in a test, use cqrs.overriding"
                )
            self._factories[key] = factory
            self._renew()

    def override(self, factory: Factory) -> Override:
        """Use a factory in place of another, until it is restored; the newest one counts.

        Raises:
            RegistrationError: its type can't be provided.
        """
        check_key(factory.key)
        override = Override(factory)
        with self._lock:
            self._overrides.append(override)
            self._renew()
        return override

    def restore(self, override: Override) -> None:
        """End an override; a second time does nothing."""
        with self._lock:
            if override in self._overrides:
                self._overrides.remove(override)
            self._renew()

    @contextmanager
    def overriding(self, factory: Factory) -> Iterator[None]:
        """Use a factory in place of another inside of a block.

        Raises:
            RegistrationError: its type can't be provided.
        """
        override = self.override(factory)
        try:
            yield
        finally:
            self.restore(override)

    def _renew(self) -> None:
        overrides = {one.factory.key: one.factory for one in self._overrides}
        self._now = {**self._factories, **overrides}

    def plan_of(self, definition: Definition) -> Plan:
        """Return the plan of a handler.

        Raises:
            HandlerSignatureError: it asks for what nobody provides, factories ask for each other in
                a circle, one asks for what this handler has not, or one is async and the handler is
                not.
        """
        now = self._now
        known = self._plans.get(definition)
        if known is not None and known[0] is now:
            return known[1]
        plan = _Planner(definition, now).plan()
        self._plans[definition] = (now, plan)
        return plan


@dataclass
class _Planner:
    """The making of one handler's plan."""

    definition: Definition
    factories: Mapping[Any, Factory]
    steps: dict[Any, Step] = field(default_factory=dict)
    needs_session: bool = False

    def plan(self) -> Plan:
        """Return the plan."""
        arguments = self._arguments(self.definition.asked, where(self.definition.function), ())
        return Plan(tuple(self.steps.values()), arguments, self.needs_session)

    def _arguments(
        self, asks: Mapping[str, Asked], asker: str, path: tuple[Factory, ...]
    ) -> Arguments:
        keys, nothing = {}, []
        for name, asked in asks.items():
            if self._can_give(name, asked, asker, path):
                keys[name] = asked.key
            elif asked.is_required:
                raise self._missing(name, asked, asker)
            elif not asked.has_default:
                nothing.append(name)
        return Arguments(keys, tuple(nothing))

    def _can_give(self, name: str, asked: Asked, asker: str, path: tuple[Factory, ...]) -> bool:
        key = asked.key
        if key is Metadata:
            return True
        if key is Session:
            if self.definition.batch:
                if asked.is_required:
                    raise self._without_session(name, asker)
                return False
            self.needs_session = True
            return True
        factory = self.factories.get(key)
        if factory is not None and key not in self.steps:
            self._add(factory, path)
        return factory is not None

    def _add(self, factory: Factory, path: tuple[Factory, ...]) -> None:
        if factory in path:
            raise self._circle((*path[path.index(factory) :], factory))
        if factory.is_async and not self.definition.is_async:
            raise HandlerSignatureError(
                f"{where(self.definition.function)} asks for {name_of(factory.key)}, whose factory,"
                f" {factory.place}, is async; the handler is not. Make it an async def, or provide"
                f" {name_of(factory.key)} by a factory that is not async"
            )
        asker = f"the factory of {name_of(factory.key)}, {factory.place}"
        arguments = self._arguments(factory.asks, asker, (*path, factory))
        self.steps[factory.key] = Step(factory, arguments)

    def _missing(self, name: str, asked: Asked, asker: str) -> HandlerSignatureError:
        definition, wanted = self.definition, name_of(asked.key)
        kind = "batch" if definition.batch else definition.kind
        given = names(INJECTABLE[kind], none="nothing else")
        provided = names(self.factories, none="nothing yet")
        handler = where(definition.function)
        of = "" if asker == handler else f", asked for by the handler {handler}"
        return HandlerSignatureError(
            f"{asker}{of}: the parameter {name!r} asks for {wanted}, which nobody provides;"
            f" expected what a handler of a {kind} is given ({given}), or what the application"
            f" provides ({provided}). Write cqrs.provide({wanted}, …) with a factory where the"
            f" application is made (in a test with scenario, scenario.providing({wanted}, …)), or"
            " give the parameter a default"
        )

    def _without_session(self, name: str, asker: str) -> HandlerSignatureError:
        return HandlerSignatureError(
            f"{asker}: the parameter {name!r} asks for Session, which a function that takes a batch"
            f" does not have, as {where(self.definition.function)}. Give the parameter a default"
        )

    def _circle(self, circle: tuple[Factory, ...]) -> HandlerSignatureError:
        around = " → ".join(name_of(one.key) for one in circle)
        places = ", ".join(f"{name_of(one.key)} by {one.place}" for one in circle[:-1])
        return HandlerSignatureError(
            f"{where(self.definition.function)} asks for {name_of(circle[0].key)}, whose factories"
            f" ask for each other in a circle: {around} ({places}). Remove a parameter of one of"
            " them"
        )
