"""The results of commands: of one that was carried out, and of one that was sent.

`R` is the type that a command's or a query's handler returns, as in `Command[int]` and
`Query[Item]`; if the class does not declare it, it is `Any`.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol

import msgspec
from typing_extensions import TypeVar

#: The type that a handler returns.
R = TypeVar("R", default=Any)

#: The same, for classes that only return it.
R_co = TypeVar("R_co", covariant=True, default=Any)


class CommandResult(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True):
    """The outcome of a command that was carried out.

    `result["value"]` is `result.value`, since Celery passes it on as a mapping within a chain.

    Attributes:
        value: the value that the handler returned.
        position: the global position of the last event that the command committed; None if it
            committed nothing.
        is_repeated: True if the command had committed before and its handler did not run.
    """

    value: R_co = None  # type: ignore[assignment]  # for a handler that returns nothing
    position: int | None = None
    is_repeated: bool = False

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class SentCommand(Protocol[R_co]):
    """The result of a command that was sent: a Celery `AsyncResult`, as type checkers see it.

    Celery's other attributes are available too; their types are not declared.
    """

    @property
    def id(self) -> str:
        """The id of the task that carries the command out."""

    @property
    def state(self) -> str:
        """Celery's state of the task, such as PENDING or SUCCESS."""

    def get(self, timeout: float | None = None, *args: Any, **options: Any) -> CommandResult[R_co]:
        """Wait for the command's outcome and return it.

        Args:
            timeout: the most seconds to wait; None for no limit.
            args: Celery's further arguments.
            options: Celery's options, such as `interval`.

        Raises:
            celery.exceptions.TimeoutError: there was no outcome in time.
            Exception: the error that the handler raised.
        """

    def ready(self) -> bool:
        """Return whether the command has an outcome."""

    def successful(self) -> bool:
        """Return whether the command was carried out."""

    def failed(self) -> bool:
        """Return whether the command's handler failed."""

    def forget(self) -> None:
        """Delete the outcome from the result backend."""

    def revoke(self, *args: Any, **options: Any) -> None:
        """Tell workers to drop the task if they have not started it."""

    def __getattr__(self, name: str) -> Any: ...
