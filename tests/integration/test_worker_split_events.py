"""Old events that an upcaster splits, in workers that are killed between one part and the next."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.messages.metadata import new_id, utc_now
from cqrs_celery.store.events import NewEvent, StreamAppend
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from tests import sawmill
from tests.integration.conftest import WorkerFactory
from tests.nodes import WorkerNode
from tests.waiting import wait_until

APPLICATION = "from tests.sawmill import app"

#: What an old event of a log becomes, part by part.
PARTS = ["plank", "bark", "plank"]


class Note(NamedTuple):
    """Be a line of what handlers have noted."""

    subscription: str
    event: str
    log: str
    version: int
    part: int


class Sawmill:
    """An application whose store has old events, and the workers that handle them."""

    def __init__(
        self, folder: Path, workers: WorkerFactory, broker: str, store: str, monkeypatch: Any
    ) -> None:
        self._workers = workers
        self.folder = folder
        self.env = {
            "SAWMILL_BROKER": broker,
            "SAWMILL_STORE": store,
            "SAWMILL_FOLDER": str(folder),
        }
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        self.app = sawmill.make_app()
        self.store: Any = self.app.cqrs.store
        if store != "broker":
            create_schema(self.store)

    def start(self) -> WorkerNode:
        arguments = ["--without-mingle", "--without-gossip"]
        return self._workers(APPLICATION, pool="solo", arguments=arguments, env=self.env)

    def append(self, log: str, name: str, **data: Any) -> str:
        event = NewEvent(new_id(), name, 1, utc_now(), json.dumps(data).encode())
        stream = StreamName("sawmill", "Log", log)
        self.store.append([StreamAppend(stream, ANY_VERSION, [event])])
        return event.event_id

    def notes(self) -> list[Note]:
        path = self.folder / "notes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [Note(s, e, log, int(version), int(part)) for s, e, log, version, part in lines]

    def wait_note(self, *expected: Note) -> None:
        wait_until(
            lambda: set(expected) <= set(self.notes()),
            40,
            lambda: f"{expected}, found {self.notes()}",
        )

    def wait_notes(self, count: int, stacks: dict[str, list[Any]]) -> None:
        wait_until(lambda: len(self.notes()) >= count or is_done(self, stacks), 40)

    def stacked(self, log: str) -> list[tuple[str, int, int]]:
        """Return what the subscription has committed of a log's events, in order."""
        stored = self.store.read_stream(StreamName("sawmill", "Stack", log))
        found = [json.loads(one.event.data) for one in stored]
        return [(one["what"], one["version"], one["part"]) for one in found]

    def wait_stacked(self, log: str, expected: list[tuple[str, int, int]]) -> None:
        """Wait for commits, which come after the function has returned, and its note."""
        wait_until(lambda: self.stacked(log) == expected, 40, lambda: f"{self.stacked(log)}")

    def has_record(self, event_id: str, part: int) -> bool:
        record = self.store.find_command(f"{event_id}#{part}:sawmill.stacks.stack")
        return record is not None


@pytest.fixture(params=["redis", "sqlite"])
def mill(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    worker_factory: WorkerFactory,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Sawmill]:
    store = "broker" if request.param == "redis" else f"sqlite:///{tmp_path}/sawmill.db"
    mill = Sawmill(tmp_path, worker_factory, redis_url, store, monkeypatch)
    yield mill
    mill.app.close()


def expected(*versions: int) -> list[tuple[str, int, int]]:
    """Return what is stacked of old events at these versions."""
    return [(what, v, part) for v in versions for part, what in enumerate(PARTS, 1)]


def test_a_worker_that_is_killed_between_two_parts_goes_on_with_the_second(mill: Sawmill) -> None:
    # given a worker that has committed what the first part brought about, and is at the second
    (mill.folder / "closed-1-2").touch()
    worker = mill.start()
    old = mill.append("oak", "sawmill.log_sawn", planks=[8, 3])
    mill.append("oak", "sawmill.plank_cut", length=5)
    mill.wait_note(Note("stacks", "began", "oak", 1, 2))
    assert mill.has_record(old, 1)
    assert not mill.has_record(old, 2)
    # when it is killed, and another one comes
    worker.kill()
    (mill.folder / "closed-1-2").unlink()
    mill.start()
    # then each part is handled in its order, and committed once under an id of its own
    mill.wait_stacked("oak", [*expected(1), ("plank", 2, 1)])
    assert all(mill.has_record(old, part) for part in (1, 2, 3))
    # and the first part, which had committed, is not even begun again; the next event waits
    began = [note for note in mill.notes() if note[:2] == ("stacks", "began")]
    assert [(note.version, note.part) for note in began] == [(1, 1), (1, 2), (1, 2), (1, 3), (2, 1)]
    # and who takes one type alone, and commits nothing, gets its parts, some perhaps again
    mill.wait_note(Note("planks", "done", "oak", 2, 1))
    planks = [note for note in mill.notes() if note[:2] == ("planks", "done")]
    first = dict.fromkeys((note.version, note.part) for note in planks)
    assert list(first) == [(1, 1), (1, 3), (2, 1)]


def test_a_part_that_fails_is_retried_without_those_before_it(mill: Sawmill) -> None:
    # given a second part that fails twice
    for number in (1, 2):
        (mill.folder / f"broken-1-2-{number}").touch()
    mill.start()
    # when
    mill.append("fir", "sawmill.log_sawn", planks=[8, 3])
    # then
    mill.wait_stacked("fir", expected(1))
    began = [note.part for note in mill.notes() if note[:2] == ("stacks", "began")]
    assert began == [1, 2, 2, 2, 3]


def test_workers_that_are_killed_at_random_leave_each_part_once_and_in_order(
    mill: Sawmill,
) -> None:
    chance = random.Random(7)
    logs = ("oak", "fir", "elm")
    worker = mill.start()
    # given old and new events of several logs, some of which nobody takes any more
    versions: dict[str, list[tuple[str, int, int]]] = {log: [] for log in logs}
    count = dict.fromkeys(logs, 0)
    for _ in range(60):
        log, kind = chance.choice(logs), chance.choice(["split", "plain", "dropped"])
        count[log] += 1
        if kind == "split":
            mill.append(log, "sawmill.log_sawn", planks=[1, 2])
            versions[log] += expected(count[log])
        elif kind == "plain":
            mill.append(log, "sawmill.plank_cut", length=5)
            versions[log].append(("plank", count[log], 1))
        else:
            mill.append(log, "sawmill.saw_sharpened")
    # when workers are killed, each after a few calls
    for _ in range(5):
        mill.wait_notes(len(mill.notes()) + chance.randrange(1, 25), versions)
        worker.kill()
        worker = mill.start()
    # then
    wait_until(lambda: is_done(mill, versions), 60, lambda: f"{mill.stacked('oak')}")
    for log in logs:
        assert mill.stacked(log) == versions[log]


def is_done(mill: Sawmill, versions: dict[str, list[tuple[str, int, int]]]) -> bool:
    return all(len(mill.stacked(log)) >= len(found) for log, found in versions.items())
