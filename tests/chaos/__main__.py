"""Run the long random tests and print what they found, one table each, in markdown.

    python -m tests.chaos [--steps 100000] [--seed N] [--json FILE]

A run is a function that takes the arguments and yields tables; add it to RUNS. A violation of what
is promised ends the program with the seed and the step.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from tests.chaos.queue_model import QueueModel
from tests.nodes import RedisNode

#: Steps between two empty servers. Short, so that a failure is quickly repeated with its seed.
ROUND_STEPS = 5_000

#: Rows of the queue's table, in this order; 0 where nothing happened.
QUEUE_ROWS = (
    "steps", "publishes", "deliveries", "delayed", "duplicates refused", "late settlements refused",
    "consumers died", "consumers frozen past their lease", "consumers left", "worn out", "purged",
    "audits", "lost", "doubled", "out of order", "keys left",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Be the outcome of one run."""

    title: str
    rows: dict[str, Any]

    def markdown(self) -> str:
        """Return the table with its title above it."""
        lines = [f"## {self.title}", "", "| | |", "|---|---|"]
        for name, value in self.rows.items():
            shown = f"{value:,}" if isinstance(value, int) else str(value)
            lines.append(f"| {name} | {shown} |")
        return "\n".join(lines)


def server_version(client: Any) -> str:
    """Return what the server calls itself."""
    info = client.info("server")
    if info.get("server_name") == "valkey":
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def queue_model(options: argparse.Namespace) -> Iterator[Table]:
    """Use the reliable queue at random beside a model of it, in rounds on an emptied server."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder))
        try:
            node.start()
            with node.client() as client:
                version = server_version(client)
                for number, start in enumerate(range(0, options.steps, ROUND_STEPS)):
                    client.flushall()
                    model = QueueModel(client, options.seed + number)
                    model.run(min(ROUND_STEPS, options.steps - start))
                    seen += model.seen
        finally:
            node.teardown()
    rows: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "server": version,
        "redis-py": redis.__version__,
        "Python": platform.python_version(),
        "seeds": f"{options.seed} to {options.seed + number}",
    }
    yield Table("The reliable queue", rows | {name: seen[name] for name in QUEUE_ROWS})


#: Every run, in the order of printing.
RUNS: list[Callable[[argparse.Namespace], Iterator[Table]]] = [queue_model]


def main(arguments: list[str]) -> int:
    """Run everything; returns 0 if every promise was kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="random steps on the queue")
    parser.add_argument("--seed", type=int, help="of the first round; without it a random one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    sys.stderr.write(f"seed {options.seed}\n")
    tables = []
    for run in RUNS:
        try:
            for table in run(options):
                tables.append(table)
                sys.stdout.write(f"{table.markdown()}\n\n")
                sys.stdout.flush()
        except AssertionError as error:
            sys.stderr.write(f"{run.__name__} failed: {error}\n")
            return 1
    if options.json:
        options.json.write_text(json.dumps([asdict(table) for table in tables], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
