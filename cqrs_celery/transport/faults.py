"""Log the errors of a thread that must continue: each once in full, then by its count."""

from __future__ import annotations

import contextlib
import logging

import redis


class Faults:
    """The errors of one thread's steps, by step and kind.

    The first error of a kind is logged with its traceback, unless it means that the server does not
    answer. After that the second, fourth, eighth, … are logged in one line with the count. No
    method raises, even if logging fails.

    Args:
        logger: the logger to write to.
        of: the owner of the steps; part of each line.
        away: the errors that mean that a server does not answer.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        of: str,
        away: type[Exception] | tuple[type[Exception], ...] = redis.RedisError,
    ) -> None:
        self._logger = logger
        self._of = of
        self._away = away
        self._counts: dict[tuple[str, type], int] = {}

    def note(self, step: str, error: BaseException) -> None:
        """Log that a step failed.

        Args:
            step: what was tried, worded to follow "could not".
            error: the error that it raised.
        """
        kind = step, type(error)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count & (count - 1):
            return
        is_away = isinstance(error, self._away)
        with contextlib.suppress(Exception):
            self._logger.log(
                logging.WARNING if is_away else logging.ERROR,
                "%s could not %s, tries again (failure %d): %s: %s",
                self._of,
                step,
                count,
                type(error).__name__,
                error,
                exc_info=error if count == 1 and not is_away else None,
            )

    @property
    def are_there(self) -> bool:
        """Whether a step has failed and not succeeded since."""
        return bool(self._counts)

    def clear(self, step: str) -> None:
        """Note that a step succeeded; log it if the step had failed before.

        Args:
            step: what was tried, as it was given to `note`.
        """
        if not self._counts:
            return
        failed = [kind for kind in self._counts if kind[0] == step]
        if not failed:
            return
        count = sum(self._counts.pop(kind) for kind in failed)
        with contextlib.suppress(Exception):
            self._logger.info("%s could %s again after %d failures", self._of, step, count)
