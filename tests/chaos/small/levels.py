"""Go through every state, one level after the other, and go on where an earlier run was ended.

The nodes of each level are in a file of their own, one pickle after the other. What was done so far
is in `progress.json`, written after the nodes that it counts. A folder is of one form of the queue
and of these tests: another one begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .judge import Node
from .model import Rules
from .server import SmallServer, driver_text
from .walk import Walk

#: Seconds between two notes of how far it is.
NOTE_S = 10.0


@dataclass
class Progress:
    """How far a walk is.

    Attributes:
        form: of the queue and of these tests.
        level: the operations after which the states are that are gone on from.
        done: how many of them are done.
        size: bytes of the next level's file that belong to those.
        states: that were new at each depth.
        transitions: operations that were tried at each depth.
        took_s: seconds in all runs.
    """

    form: str = ""
    level: int = 0
    done: int = 0
    size: int = 0
    states: list[int] = field(default_factory=list)
    transitions: list[int] = field(default_factory=list)
    took_s: float = 0.0


def form_of(rules: Rules, depth: int) -> str:
    """Return what tells one form of the queue and of these tests from another."""
    text = f"{driver_text()} {rules} {depth}"
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text += path.read_text(encoding="utf-8")
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class LevelWalk:
    """A walk that can be ended and gone on with.

    Args:
        server: it is emptied.
        rules: how the queue is set up.
        folder: where the levels are kept.
        depth: the most operations.
        note_s: seconds between two notes of how far it is.
    """

    def __init__(
        self,
        server: SmallServer,
        rules: Rules,
        folder: Path,
        depth: int,
        *,
        note_s: float = NOTE_S,
    ) -> None:
        self._walk = Walk(server, rules)
        self._folder, self._depth, self._note_s = folder, depth, note_s
        self.progress = self._read()

    def run(self, tell: Callable[[str], None] = lambda _: None) -> Progress:
        """Try every interleaving of so many operations, or the rest of them.

        Args:
            tell: called after each note with how far it is.

        Returns:
            What was done, in this run and in those before it.

        Raises:
            Disagreement: with the operations that lead to it.
        """
        self._begin()
        progress = self.progress
        while progress.level < self._depth:
            self._run_level(progress.level, tell)
            progress.level, progress.done, progress.size = progress.level + 1, 0, 0
            self._note()
        return self.progress

    def _begin(self) -> None:
        """Notice again all that earlier runs did; without any, start."""
        if not self.progress.states:
            self._folder.mkdir(parents=True, exist_ok=True)
            start = self._walk.start()
            self._file(0).write_bytes(pickle.dumps(start))
            self.progress.states, self.progress.transitions = [1], [0]
            self._note()
            return
        following = self._file(self.progress.level + 1)
        if following.exists():
            os.truncate(following, self.progress.size)
        for level in range(self.progress.level + 2):
            for node in self._nodes(level):
                self._walk.notice(node)

    def _run_level(self, level: int, tell: Callable[[str], None]) -> None:
        progress, n = self.progress, level + 1
        if len(progress.states) <= n:
            progress.states.append(0)
            progress.transitions.append(0)
        states, transitions = progress.states[n], progress.transitions[n]
        began = noted = time.monotonic()
        before_s = progress.took_s
        with self._file(n).open("ab") as file:
            nodes = self._nodes(level, skip=progress.done)
            for _, found in self._walk.next_level(nodes, n, is_last=n == self._depth):
                for node in found:
                    pickle.dump(node, file)
                progress.done += 1
                progress.states[n] = states + self._walk.states[n]
                progress.transitions[n] = transitions + self._walk.transitions[n]
                progress.took_s = before_s + time.monotonic() - began
                if time.monotonic() - noted >= self._note_s:
                    noted = time.monotonic()
                    file.flush()
                    progress.size = file.tell()
                    self._note()
                    tell(f"{n} operations: {progress.done:,} of {progress.states[level]:,} states")

    def _nodes(self, level: int, *, skip: int = 0) -> Iterator[Node]:
        if not self._file(level).exists():
            return
        with self._file(level).open("rb") as file:
            while file.peek(1):
                node = pickle.load(file)
                if skip:
                    skip -= 1
                else:
                    yield node

    def _file(self, level: int) -> Path:
        return self._folder / f"level-{level}.pickle"

    def _read(self) -> Progress:
        form = form_of(self._walk.rules, self._depth)
        try:
            text = (self._folder / "progress.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return Progress(form)
        found = Progress(**json.loads(text))
        return found if found.form == form else Progress(form)

    def _note(self) -> None:
        written = self._folder / "progress.new"
        written.write_text(json.dumps(asdict(self.progress)), encoding="utf-8")
        written.replace(self._folder / "progress.json")
