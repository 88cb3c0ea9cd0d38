"""Run Celery's programs beside this one: the worker, Flower."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Where `celeryconfig.py` and `sample_app` are.
TOP: Final = Path(__file__).resolve().parent.parent

#: Two processes that carry out commands and keep the read model.
WORKER: Final = ("worker", "--pool=prefork", "--concurrency=2", "--loglevel=INFO")

#: Seconds that a program has to end by itself. A busy worker may want more, and loses nothing: what
#: it was at comes back.
STOP_S: Final = 5.0


@contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `celery -A sample_app.app …` until the block is left, with all its children.

    It is asked to end then, and killed if it does not. Ctrl-C reaches this program alone, which
    ends the others in the right order: the worker before the server that it works with.

    Args:
        arguments: of `celery`; `WORKER`, for example.
        log: the file that its output goes to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  nothing of it comes from outside
            [sys.executable, "-m", "celery", "-A", "sample_app.app", *arguments],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:  # also after a second Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_words(log: Path, lines: int = 20) -> str:
    """Return the end of a program's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let `kill` end the block as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
