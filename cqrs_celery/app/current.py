"""Send commands through the current CQRS application."""

from __future__ import annotations

from typing import Any

from ..dispatch.runtime import current_app


class CurrentApplication:
    """A sender that passes each command to the CQRS application current at that moment."""

    def send_command(self, command: Any, **options: Any) -> Any:
        """Send a command through the current application."""
        cls: Any = type(command)
        app = current_app(cls.__qualname__, cls.__registered__.name)
        return app.cqrs.send_command(command, **options)
