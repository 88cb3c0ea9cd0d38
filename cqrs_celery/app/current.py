"""Send commands by the application that is current where the sending happens."""

from __future__ import annotations

from typing import Any

from ..dispatch.runtime import current_app


class CurrentApplication:
    """A sender that leaves each command to the CQRS application that is current there."""

    def send_command(self, command: Any, **options: Any) -> Any:
        """Send a command by the current application."""
        cls: Any = type(command)
        app = current_app(cls.__qualname__, cls.__registered__.name)
        return app.cqrs.send_command(command, **options)
