"""The Celery task of a command, in order with others of its aggregate, carried out once."""

from __future__ import annotations

from typing import Any

import msgspec
from kombu.utils.uuid import uuid

from ..errors import AggregateNotFound, StaleVersion
from ..messages.message import Command
from ..refusal import Refusal
from .attempts import Attempt, stream_of
from .envelope import IDEMPOTENCY_KEY, key_of, pack_command, unpack_command
from .in_process import check_nested
from .keys import command_id_of
from .results import CommandAsyncResult, CommandResult, result_from
from .sending import note_sent, prepare_command, publishing, repeat_with_of, route
from .tasks import HandlerTask, only_argument


class CommandTask(HandlerTask):
    """The task of a command: its name is the command's name, its argument the command."""

    abstract = True
    #: Celery logs these in one line, at info: the command's sender has to deal with them.
    throws = (Refusal, StaleVersion, AggregateNotFound)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a command; it stays in order with the other commands to its aggregate.

        Args:
            args: the command alone.
            kwargs: none.
            options: Celery's own, and `idempotency_key`, to be the same whenever the command is
                sent again. The command then has its effect once.

        Raises:
            UnwritableMessage: the command is too large, or would be read back as another value.
            PublishFailed: the broker did not accept the message.
            TypeError: the arguments are not the command alone.
            ValueError: the key is not a text of 1 to 200 characters.
            InvalidText: the key, the task's id or the aggregate's id has a NUL, or half of a
                surrogate pair.
        """
        command = self._sent(args, kwargs)
        repeat_with = repeat_with_of(options)
        runtime = self.runtime
        packed, options = prepare_command(command, runtime, {**options, **repeat_with})
        route(self.app, self.name, options, home_queue=self.home_queue)
        with publishing(self.app, options["task_id"], self.name, repeat_with):
            result = super().apply_async((packed,), {}, **options)
        note_sent(runtime, options, self.name)
        return result

    def delay(
        self,
        *args: Any,
        task_id: str | None = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Send a command; see `apply_async` for the options."""
        given = {"task_id": task_id, IDEMPOTENCY_KEY: idempotency_key}
        options = {name: value for name, value in given.items() if value is not None}
        return self.apply_async(args, kwargs, **options)

    def _sent(self, args: Any, kwargs: Any) -> Any:
        """Return the command to send, or its plain values.

        Raises:
            TypeError: the arguments are something else, such as the command's fields.
        """
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) == 1 and isinstance(given[0], (Command, dict)):
            return given[0]
        name = self.definition.messages[0].__qualname__
        fields = ", ".join(f"{field}=…" for field in kwargs or ()) or "…"
        one = len(given) == 1
        found = f"one of type {type(given[0]).__qualname__}" if one else f"{len(given)} arguments"
        raise TypeError(
            f"{self.name} takes its message alone; found {found}. Write {name}({fields}).delay(),"
            f" or {self.definition.function.__name__}.delay({name}({fields}))"
        )

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Carry out a command in this process, as a task; the options are those of `apply_async`.

        Raises:
            NestedExecution: a handler called this.
        """
        check_nested(self.definition.messages[0].__qualname__, "apply()")
        key = options.pop(IDEMPOTENCY_KEY, None)
        if key is not None:
            packed, _ = prepare_command(
                self._sent(args, kwargs), self.runtime, {IDEMPOTENCY_KEY: key}
            )
            args, kwargs = (packed,), {}
        result = super().apply(args, kwargs, **options)
        if result.successful():
            result._result = result_from(result._result, self.definition.returned)
        return result

    def AsyncResult(self, task_id: str, **options: Any) -> CommandAsyncResult:  # noqa: N802
        """Return a sent command's result by its task's id; its `get` returns a `CommandResult`."""
        options = {"backend": self.backend, "task_name": self.name, "app": self.app, **options}
        return CommandAsyncResult(task_id, returned=self.definition.returned, **options)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command, and return its result as plain values.

        Raises:
            MessageError: the argument can't be read; the message becomes a dead letter.
            NestedExecution: a handler called this.
            Exception: the exception that the handler raised. It is the command's outcome; nothing
                was committed.
        """
        check_nested(self.definition.messages[0].__qualname__, "its task")
        result = self.settled(lambda: self._carry_out(only_argument(self, args, kwargs)))
        return msgspec.to_builtins(result, str_keys=True)

    def _carry_out(self, argument: Any) -> CommandResult:
        runtime = self.runtime
        if isinstance(argument, Command):
            argument = pack_command(argument, runtime.serializer)
        key = key_of(argument)
        command_id = self.request.id or uuid() if key is None else command_id_of(self.name, key)
        # A trace begins with the command, not with one of its sendings.
        root_id = "" if self.request.root_id == self.request.id else self.request.root_id
        command, trace = unpack_command(
            argument,
            runtime.serializer,
            root_id=root_id or "",
            parent_id=self.request.parent_id or "",
        )
        attempt = Attempt.for_command(
            command,
            self.definition,
            runtime,
            command_id=command_id,
            trace=trace,
            stream=stream_of(command, runtime.application),
            lease=self.lease,
        )
        return runtime.bus.run(self.definition, attempt)
