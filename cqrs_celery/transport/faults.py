"""Log the errors of a thread that must go on: each once in full, then by its count."""

from __future__ import annotations

import contextlib
import logging

import redis


class Faults:
    """The errors of one thread's steps, by step and kind.

    The first of a kind is logged with its traceback, unless it says that the server does not
    answer; then the second, fourth, eighth, … in one line with the count. No method raises, not
    even if logging does.

    Args:
        logger: gets them.
        of: whose steps they are; part of each line.
        away: errors that say that a server does not answer.
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
            step: what was tried, as it follows "could not".
            error: what it raised.
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
        """Note that a step succeeded; logged if it had failed before."""
        if not self._counts:
            return
        failed = [kind for kind in self._counts if kind[0] == step]
        if not failed:
            return
        count = sum(self._counts.pop(kind) for kind in failed)
        with contextlib.suppress(Exception):
            self._logger.info("%s could %s again after %d failures", self._of, step, count)
