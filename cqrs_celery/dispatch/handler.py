"""The object that a decorated function becomes: the function, and its Celery task."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Generic

import celery
from celery.utils.functional import head_from_fun
from typing_extensions import TypeVar

from ..errors import DuplicateRegistration
from ..messages.registry import where
from ..messages.results import R, SentCommand
from .command_task import CommandTask
from .definitions import Definition, definitions, task_name_taken
from .retrying import as_tuple
from .runtime import current_app, runtime_of
from .sending import command_queue
from .subscription_task import BatchTask, SubscriptionTask
from .tasks import HandlerTask


def _header(message: Any) -> None:
    """Provide the signature that Celery checks arguments against: the message alone."""


#: A command as plain values: its type, version and data.
Plain = dict[str, Any]

#: A command's class.
C = TypeVar("C", default=Any)


class Handler(Generic[C, R]):
    """A declared handler: of the command `C`, whose result is `R`, or a subscription's function.

    Calling it calls the user's function with the same arguments. Its other attributes (`delay`,
    `apply_async`, `s`, `si`, `name`, …) are those of its Celery task in the current application.
    """

    if TYPE_CHECKING:
        name: str

        def delay(
            self,
            command: C | Plain,
            *,
            task_id: str | None = None,
            idempotency_key: str | None = None,
        ) -> SentCommand[R]:
            """Send a command; see `CommandTask.delay`."""

        def apply_async(
            self, args: tuple[C | Plain] | list[C | Plain], kwargs: None = None, **options: Any
        ) -> SentCommand[R]:
            """Send a command; see `CommandTask.apply_async`."""

        def apply(
            self, args: tuple[C | Plain] | list[C | Plain], kwargs: None = None, **options: Any
        ) -> SentCommand[R]:
            """Carry out a command in this process; see `CommandTask.apply`."""

        def AsyncResult(self, task_id: str, **options: Any) -> SentCommand[R]:  # noqa: N802
            """Return the result of a sent command; see `CommandTask.AsyncResult`."""

    def __init__(self, definition: Definition) -> None:
        functools.update_wrapper(self, definition.function)
        self.definition = definition

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's function."""
        return self.definition.function(*args, **kwargs)

    @property
    def task(self) -> celery.Task:
        """Its task in the current application.

        Raises:
            NotConfigured: there is no CQRS app in this process.
        """
        definition = self.definition
        is_event = definition.kind == "event"
        name = definition.subscription if is_event else definition.messages[0].__registered__.name
        app = current_app(definition.function.__qualname__, name)
        return task_of(app, definition)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        return f"<handler {self.definition.function.__qualname__}>"


def task_of(app: celery.Celery, definition: Definition) -> celery.Task:
    """Return a handler's task in an application; build the task if it is missing.

    Raises:
        DuplicateRegistration: another handler, or another task of the application, has its name.
    """
    name = definition.task_name(runtime_of(app).application)
    task = app.tasks.get(name)
    if task is None or getattr(task, "definition", None) is not definition:
        task = build_task(app, definition)
    return task


def _check_name(app: celery.Celery, definition: Definition, name: str) -> None:
    task = app.tasks.get(name)
    if task is None:
        return
    other = getattr(task, "definition", None)
    if other is None:
        function = getattr(task, "__wrapped__", None) or type(task)
        raise DuplicateRegistration(
            f"the task name {name!r} is claimed by the Celery task {where(function)} and by"
            f" {where(definition.function)}: one of them would never run. Rename one of them."
        )
    if other.place != definition.place and other in definitions.all():
        raise task_name_taken(name, other, definition)


def build_task(app: celery.Celery, definition: Definition) -> celery.Task:
    """Build a handler's task in an application, and register it.

    Raises:
        DuplicateRegistration: another handler, or another task of the application, has its name.
    """
    application = runtime_of(app).application
    name = definition.task_name(application)
    _check_name(app, definition, name)
    is_command = definition.kind == "command"
    home = command_queue(name) if is_command else definition.subscription_name(application)
    base: type[HandlerTask] = BatchTask if definition.batch else SubscriptionTask
    if is_command:
        base = CommandTask
    # Celery warns about some options that a task class sets itself, so the class inherits them.
    options = {**definition.retrying.task_options(), **definition.options}
    if is_command:
        options["throws"] = (*CommandTask.throws, *as_tuple(options.get("throws", ())))
    configured = type(base.__name__, (base,), {"abstract": True, **options})
    task_class = type(
        definition.function.__name__,
        (configured,),
        {
            "abstract": False,
            "app": app,
            "name": name,
            "definition": definition,
            "home_queue": home,
            "__doc__": definition.function.__doc__,
            "__module__": definition.function.__module__,
            "__header__": staticmethod(head_from_fun(_header)),
        },
    )
    app.tasks.pop(name, None)
    return app.register_task(task_class())
