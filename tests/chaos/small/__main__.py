"""Try every interleaving of a few operations on a small queue, on a server of its own.

    python -m tests.chaos.small [--depth 7] [--folder DIR]
    python -m tests.chaos.small --sample 100 --seed 7

The first form goes on where it was ended, if the folder is the same. The second is the one of
`make test`: all interleavings of four operations, and a sample of longer ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.nodes import RedisNode

from .judge import Disagreement
from .levels import LevelWalk, Progress
from .model import Rules
from .server import SmallServer
from .walk import Walk

#: Each way in which a small queue is set up.
ALL_RULES = tuple(Rules(blocks, slots) for blocks in (True, False) for slots in (0, 1))

#: Operations of which every interleaving is tried before samples are taken.
WHOLE = 4


def folder_of() -> Path:
    """Return where levels are kept if nothing else is said: runs that were ended go on there."""
    return Path(tempfile.gettempdir()) / "cqrs-every-interleaving"


@contextmanager
def small_server() -> Iterator[SmallServer]:
    """Run a server without persistence."""
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder), appendonly=False)
        try:
            node.start()
            with node.client() as client:
                yield SmallServer(client)
        finally:
            node.teardown()


def every_interleaving(folder: Path, depth: int) -> dict[str, Any]:
    """Try every interleaving of so many operations, in each set-up; returns rows.

    Each set-up has a process and a server of its own; as many run at once as there are cores.

    Raises:
        Disagreement: with the operations that lead to it.
    """
    rows: dict[str, Any] = {"operations": depth, "set-ups": len(ALL_RULES)}
    states = tried = 0
    took_s = 0.0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(_walk, folder, depth), ALL_RULES))
    for rules, done in zip(ALL_RULES, found, strict=True):
        name = _name_of(rules)
        rows[f"states, {name}"] = sum(done.states[:depth])
        rows[f"transitions, {name}"] = sum(done.transitions[: depth + 1])
        states += sum(done.states[:depth])
        tried += sum(done.transitions[: depth + 1])
        took_s += done.took_s
    return rows | {"states": states, "transitions": tried, "minutes": round(took_s / 60, 1)}


def _walk(folder: Path, depth: int, rules: Rules) -> Progress:
    name = _name_of(rules)
    with small_server() as server:
        return LevelWalk(server, rules, folder / name, depth).run(partial(_tell, name))


def _name_of(rules: Rules) -> str:
    return f"{'blocks' if rules.blocks else 'goes-on'}-{rules.slots}-slots"


def _tell(name: str, text: str) -> None:
    sys.stderr.write(f"{name}: {text}\n")


def samples(most: int, seed: int, depth: int) -> None:
    """Try what `make test` tries."""
    for rules in ALL_RULES:
        with small_server() as server:
            walk = Walk(server, rules)
            walk.run(depth, whole=WHOLE, most=most, seed=seed)
            sys.stdout.write(f"{rules}: {walk.transitions.total():,} transitions\n")


def main() -> int:
    """Run; returns 0 if the model agreed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.small",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--depth", type=int, default=7, help="operations one after the other")
    parser.add_argument("--folder", type=Path, default=folder_of())
    parser.add_argument("--sample", type=int, help="states of each level to go on from")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        if options.sample:
            samples(options.sample, options.seed, options.depth)
        else:
            for name, value in every_interleaving(options.folder, options.depth).items():
                sys.stdout.write(f"{name}: {value:,}\n")
    except Disagreement as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
