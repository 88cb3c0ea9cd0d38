"""Run the long random tests and print what they found, one table each, in markdown.

    python -m tests.chaos [--only NAME] [--rounds N] [--steps 100000] [--seed N] [--json FILE]

A run is a function that takes the arguments and yields tables; add it to RUNS. A violation of what
is promised ends the program with the run's name and its seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import celery
import kombu
import redis

from tests.chaos.black_hole import black_hole
from tests.chaos.deaths import kill_hosts, kill_hosts_elsewhere
from tests.chaos.fuzz import fuzz
from tests.chaos.killing import kill_around_takes, kill_publishers
from tests.chaos.kills import kill_committers, kill_postgres, kill_redis, kill_relays
from tests.chaos.outages import cut_connections, demote_servers, kill_servers
from tests.chaos.queue_model import QueueModel
from tests.chaos.redeliveries import (
    redeliver_commands,
    redeliver_in_memory,
    redeliver_on_postgresql,
    redeliver_on_sqlite,
)
from tests.chaos.small.__main__ import every_interleaving as try_every_interleaving
from tests.chaos.small.__main__ import folder_of as small_folder
from tests.chaos.starvation import starve_queues
from tests.chaos.subscriptions import (
    disturb_gevent,
    disturb_solo,
    disturb_subscriptions,
    disturb_threads,
)
from tests.chaos.wear import (
    wear_postgresql,
    wear_psycopg3,
    wear_sqlite,
    wear_workers_by_sessions,
    wear_workers_by_transactions,
    wear_workers_in_django,
    wear_workers_in_django_on_sqlite,
    wear_workers_on_postgresql,
    wear_workers_on_psycopg3,
    wear_workers_on_sqlite,
)
from tests.nodes import RedisNode

#: Steps between two empty servers. Short, so that a failure is quickly repeated with its seed.
ROUND_STEPS = 5_000

#: Rows of the queue's table, in this order; 0 where nothing happened.
QUEUE_ROWS = (
    "steps", "publishes", "deliveries", "delayed", "duplicates refused", "late settlements refused",
    "consumers died", "consumers frozen past their lease", "consumers left", "charged", "worn out",
    "purged", "audits", "lost", "doubled", "out of order", "keys left",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The outcome of one run."""

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


def every_interleaving(options: argparse.Namespace) -> Iterator[Table]:
    """Try every interleaving of a few operations; a run that was ended is gone on with."""
    folder, depth = small_folder(), options.rounds or 7
    found = try_every_interleaving(folder, depth)
    shutil.rmtree(folder)
    rows = {"date": datetime.now(UTC).date().isoformat(), "server": newest_server()}
    yield Table(f"Every interleaving of {depth} operations on a small queue", rows | found)


@dataclass(frozen=True)
class Rounds:
    """A run against real workers: so many rounds of something that goes wrong.

    Args:
        title: the table's.
        work: takes a folder, the rounds and the seed; returns rows.
        rounds: how many, if nothing else is said; all runs together take some two hours.
        needs: a program without which the run is left out, and says so.
    """

    title: str
    work: Callable[..., dict[str, Any]]
    rounds: int
    needs: str = ""

    @property
    def __name__(self) -> str:
        """The name for `--only`."""
        return self.work.__name__

    def __call__(self, options: argparse.Namespace) -> Iterator[Table]:
        """Do all rounds in a folder of their own, which is kept if a promise was not."""
        if self.needs and shutil.which(self.needs) is None:
            yield Table(self.title, {"not run": f"no {self.needs} on PATH"})
            return
        folder = Path(tempfile.mkdtemp(prefix="cqrs-chaos-"))
        try:
            found = self.work(folder, rounds=options.rounds or self.rounds, seed=options.seed)
        except AssertionError as error:
            error.add_note(f"everything that was written: {folder}")
            raise
        except BaseException:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
        rows = {
            "date": datetime.now(UTC).date().isoformat(),
            "server": newest_server(),
            "Celery, Kombu, redis-py": f"{celery.__version__}, {kombu.__version__},"
            f" {redis.__version__}",
            "Python": platform.python_version(),
            "seed": str(options.seed),
        }
        yield Table(self.title, rows | found)


def newest_server() -> str:
    """Return what the server that the tests find calls itself."""
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder))
        try:
            node.start()
            with node.client() as client:
                return server_version(client)
        finally:
            node.teardown()


#: No wheel brings it.
PGBOUNCER = "pgbouncer"

#: Every run, in the order of printing.
RUNS: list[Callable[[argparse.Namespace], Iterator[Table]]] = [
    queue_model,
    every_interleaving,
    Rounds("Workers frozen and killed around a take", kill_around_takes, 1_000),
    Rounds("All workers of a host killed, and a new one started there", kill_hosts, 200),
    Rounds("The same, and a new one started elsewhere", kill_hosts_elsewhere, 200),
    Rounds("Publishers killed while they publish to three queues", kill_publishers, 300),
    Rounds("Redis killed, and restarted from its append-only file", kill_servers, 40),
    Rounds("Redis demoted to a replica, and promoted back", demote_servers, 30),
    Rounds("Connections cut and replies swallowed under load", cut_connections, 250),
    Rounds("One queue beside another that is flooded", starve_queues, 1_000),
    Rounds("A black hole between workers and Redis", black_hole, 1),
    Rounds("Commands delivered again and again", redeliver_commands, 10_000),
    Rounds("The same, with the events in SQLite", redeliver_on_sqlite, 10_000),
    Rounds("The same, with the events in PostgreSQL", redeliver_on_postgresql, 10_000),
    Rounds("The same, with the events in memory", redeliver_in_memory, 10_000),
    Rounds("Committers killed, with the events in PostgreSQL", kill_committers, 300),
    Rounds("Relays killed", kill_relays, 60),
    Rounds("Redis killed between PostgreSQL and the subscriptions", kill_redis, 30),
    Rounds("PostgreSQL killed", kill_postgres, 30),
    Rounds("What the events are in, the queue, and the relays broken", wear_postgresql, 34),
    Rounds("The same, with psycopg 3", wear_psycopg3, 33),
    Rounds("The same, with SQLite", wear_sqlite, 33),
    Rounds(
        "PostgreSQL, the queue, and workers that handle broken", wear_workers_on_postgresql, 100
    ),
    Rounds("The same, with psycopg 3", wear_workers_on_psycopg3, 100),
    Rounds("The same, through PgBouncer by sessions", wear_workers_by_sessions, 100, PGBOUNCER),
    Rounds(
        "The same, through PgBouncer by transactions", wear_workers_by_transactions, 100, PGBOUNCER
    ),
    Rounds("The same, with SQLite", wear_workers_on_sqlite, 100),
    Rounds("The same, in Django's database on PostgreSQL", wear_workers_in_django, 100),
    Rounds("The same, in Django's database on SQLite", wear_workers_in_django_on_sqlite, 100),
    Rounds("Subscriptions whose workers are killed and frozen", disturb_subscriptions, 50_000),
    Rounds("The same, in pools of threads", disturb_threads, 5_000),
    Rounds("The same, in solo workers", disturb_solo, 5_000),
    Rounds("The same, in pools of greenlets", disturb_gevent, 5_000),
    Rounds("Workers fed with whatever bytes a queue may hold", fuzz, 200_000),
]


def main(arguments: list[str]) -> int:
    """Run everything; returns 0 if every promise was kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="random steps on the queue")
    names = [run.__name__ for run in RUNS]
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, help="rounds of each run against workers")
    parser.add_argument("--seed", type=int, help="of the first round; without it a random one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    sys.stderr.write(f"seed {options.seed}\n")
    tables = []
    for run in RUNS:
        if options.only and run.__name__ != options.only:
            continue
        try:
            for table in run(options):
                tables.append(table)
                sys.stdout.write(f"{table.markdown()}\n\n")
                sys.stdout.flush()
        except AssertionError as error:
            notes = "\n".join(getattr(error, "__notes__", []))
            sys.stderr.write(f"{run.__name__} failed, seed {options.seed}: {error}\n{notes}\n")
            return 1
    if options.json:
        options.json.write_text(json.dumps([asdict(table) for table in tables], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
