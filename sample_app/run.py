"""Keep the sample running until Ctrl-C: `python -m sample_app.run`.

A Redis or Valkey server where `celeryconfig.py` expects one, an embedded one if none answers there;
a worker; Flower. What they keep is in `.sample/`. At the first run, the shop's orders are sent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from cqrs_celery import redis_or_embedded
from sample_app import read_model
from sample_app.app import app
from sample_app.processes import TOP, WORKER, ended_by_sigterm, last_words, running
from sample_app.send import send_orders

#: Where everything is kept; git does not see it.
DIRECTORY: Final = TOP / ".sample"

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    directory: Path = options.directory.resolve()
    # Also for the worker.
    database = Path(os.environ.setdefault(read_model.VARIABLE, str(directory / "stock.sqlite3")))
    is_first_run = not database.exists()
    flower = ("flower", "--address=127.0.0.1", f"--port={options.flower_port}")
    logs = {name: directory / f"{name}.log" for name in ("worker", "flower")}
    try:
        with ExitStack() as stack:
            stack.enter_context(ended_by_sigterm())
            url = app.conf.broker_url
            redis = stack.enter_context(redis_or_embedded(url, directory / "redis"))
            worker = stack.enter_context(running(WORKER, logs["worker"]))
            # Flower asks for the workers' queues at its start.
            while worker.poll() is None and not app.control.ping(timeout=1, limit=1):
                pass
            programs = {
                "worker": worker,
                "flower": stack.enter_context(running(flower, logs["flower"])),
            }
            where = "embedded, ends with this program" if redis else "was there, is left alone"
            console.print(f"Redis       {app.connection().as_uri()} ({where})")
            console.print(f"Flower      http://127.0.0.1:{options.flower_port}")
            console.print(f"read model  {database}")
            console.print(f"logs        {directory}")
            if is_first_run:
                number = send_orders()
                console.print(f"sent        {number} commands, as this is the first run")
            console.print("Ctrl-C ends it.")
            return _wait(programs, logs)
    except KeyboardInterrupt:
        return 0


def _wait(programs: Mapping[str, subprocess.Popen[bytes]], logs: Mapping[str, Path]) -> int:
    """Wait until one of the programs has ended, which none should; Ctrl-C interrupts it."""
    while True:
        for name, program in programs.items():
            if program.poll() is not None:
                console.print(f"[red]{name} has ended.[/] Its last words:")
                console.print(last_words(logs[name]), markup=False)
                return 1
        time.sleep(0.5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sample_app.run", description=__doc__)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="keep everything there")
    parser.add_argument("--flower-port", type=int, default=5555)
    return parser


if __name__ == "__main__":
    sys.exit(main())
