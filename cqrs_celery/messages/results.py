"""What a command gives back: its result, and the result of a command that was sent.

`R` is what a command's handler returns, or a query's handler answers, as in `Command[int]` and
`Query[Item]`; of a class that does not say, it is `Any`.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol

import msgspec
from typing_extensions import TypeVar

#: What a handler returns.
R = TypeVar("R", default=Any)

#: The same, of what only gives it.
R_co = TypeVar("R_co", covariant=True, default=Any)


class CommandResult(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True):
    """The outcome of a command that was carried out.

    `result["value"]` is `result.value`: as a mapping is what Celery hands on within a chain.

    Attributes:
        value: what its handler returned.
        position: the global position of the last event that it committed; None if it committed
            nothing.
        is_repeated: True if the command had committed before and its handler did not run.
    """

    value: R_co = None  # type: ignore[assignment]  # as of a handler that returns nothing
    position: int | None = None
    is_repeated: bool = False

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class SentCommand(Protocol[R_co]):
    """The result of a command that was sent: a Celery `AsyncResult`, as type checkers see it.

    What is not listed here is Celery's too, and of no certain type.
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
            timeout: seconds to wait at most; None for as long as it takes.
            args: Celery's own.
            options: Celery's own, as `interval`.

        Raises:
            celery.exceptions.TimeoutError: it had no outcome in time.
            Exception: what the handler raised.
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
        """Tell workers to drop the task if they have not begun it."""

    def __getattr__(self, name: str) -> Any: ...
