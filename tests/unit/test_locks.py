"""Locks of aggregates: when a handler takes them, and whom they keep waiting. Without a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, applies, command_handler
from cqrs_celery.app.locks import open_locks
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.locks import MemoryLocks
from cqrs_celery.backends.redis.locks import RedisLocks
from cqrs_celery.dispatch import gates
from cqrs_celery.errors import (
    ConcurrencyError,
    InvalidSetting,
    LockTimeout,
    NestedExecution,
    RegistrationError,
    StoreUnavailable,
)
from cqrs_celery.session.off_loop import THREADS
from cqrs_celery.store.stream import StreamName
from tests.waiting import wait_until

DOOR = StreamName("house", "Door", "front")


class Opened(Event, name="house.opened"):
    pass


class Door(Aggregate):
    times: int = 0

    @applies(Opened)
    def _opened(self, event: Opened) -> None:
        self.times += 1


class OpenDoor(Command, name="house.open_door", aggregate=Door, key="id"):
    id: str = "front"


class OpenDoorAlways(OpenDoor, name="house.open_door_always", aggregate=Door, key="id"):
    pass


class OpenDoorSoon(OpenDoor, name="house.open_door_soon", aggregate=Door, key="id"):
    pass


class OpenDoorFreely(OpenDoor, name="house.open_door_freely", aggregate=Door, key="id"):
    pass


class OpenDoorWithinADoor(OpenDoor, name="house.open_within", aggregate=Door, key="id"):
    pass


class Knock(Command, name="house.knock"):
    pass


class Meanwhile:
    """What somebody else does while a handler runs: commits first, so many times."""

    def __init__(self) -> None:
        self.times = 0
        self.inside = 0
        self.most_inside = 0
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.cqrs: Any = None

    def happens(self) -> None:
        self.entered.set()
        if self.times > 0:
            self.times -= 1
            with self.cqrs.session() as session:
                find(session, "front").record(Opened())

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            yield
        finally:
            self.inside -= 1


meanwhile = Meanwhile()


def find(session: Session, id: str) -> Door:
    door = session.find(Door, id)
    if door is None:
        door = Door(id)
        session.add(door)
    return door


def open_it(command: OpenDoor, session: Session) -> int:
    door = find(session, command.id)
    meanwhile.happens()
    door.record(Opened())
    return door.times


@command_handler(OpenDoor, lock_wait_s=0)
def open_door(command: OpenDoor, session: Session) -> int:
    return open_it(command, session)


@command_handler(OpenDoorAlways, lock="always", lock_wait_s=5)
def open_door_always(command: OpenDoorAlways, session: Session) -> int:
    with meanwhile.watched():
        return open_it(command, session)


@command_handler(OpenDoorSoon, lock="always", lock_wait_s=5)
async def open_door_soon(command: OpenDoorSoon, session: Session) -> int:
    with meanwhile.watched():
        await asyncio.sleep(0)
        return open_it(command, session)


@command_handler(OpenDoorFreely, lock=None)
def open_door_freely(command: OpenDoorFreely, session: Session) -> int:
    return open_it(command, session)


@command_handler(OpenDoorWithinADoor, lock="always", lock_wait_s=0)
def open_within(command: OpenDoorWithinADoor) -> int:
    value: int = meanwhile.cqrs.execute(OpenDoorAlways(id=command.id)).value
    return value


@command_handler(Knock)
def knock(command: Knock) -> str:
    return "who is there"


class CountingLocks(MemoryLocks):
    """Locks that remember what was locked, and what is waited for; or whose server is away."""

    def __init__(self, *, is_away: bool = False) -> None:
        super().__init__()
        self.locked: list[str] = []
        self.waiting: list[str] = []
        self.is_away = is_away

    @contextmanager
    def hold(self, stream: StreamName, *, wait_s: float) -> Iterator[None]:
        if self.is_away:
            raise StoreUnavailable("the locks are away")
        if wait_s:
            self.waiting.append(str(stream))
        with super().hold(stream, wait_s=wait_s):
            self.locked.append(str(stream))
            yield


@pytest.fixture
def cqrs() -> CQRS:
    """Give an application whose locks are counted."""
    global meanwhile
    app = Celery("house", broker="memory://", set_as_current=False)
    cqrs = CQRS(app, store=MemoryEventStore(on_commit=lambda events: None))
    cqrs.runtime.bus.locks = CountingLocks()
    meanwhile = Meanwhile()
    meanwhile.cqrs = cqrs
    return cqrs


def locked(cqrs: CQRS) -> list[str]:
    locks = cqrs.runtime.bus.locks
    assert isinstance(locks, CountingLocks)
    return locks.locked


def run(cqrs: CQRS, command: Command, *, is_async: bool) -> Any:
    if is_async:
        return asyncio.run(cqrs.execute_async(command)).value
    return cqrs.execute(command).value


both = pytest.mark.parametrize("is_async", [False, True])


# When


@both
def test_by_default_a_lock_is_taken_after_the_first_conflict_and_once(
    cqrs: CQRS, *, is_async: bool
) -> None:
    # given nobody else, then nothing is locked
    assert run(cqrs, OpenDoor(), is_async=is_async) == 1
    assert locked(cqrs) == []
    # given somebody who commits first, twice; then it is locked, once
    meanwhile.times = 2
    assert run(cqrs, OpenDoor(), is_async=is_async) == 4
    assert locked(cqrs) == ["Door-front"]


@both
@pytest.mark.parametrize("command", [OpenDoorAlways(), OpenDoorSoon()])
def test_always_takes_it_before_the_handler_runs(
    cqrs: CQRS, command: Command, *, is_async: bool
) -> None:
    assert run(cqrs, command, is_async=is_async) == 1
    meanwhile.times = 1
    assert run(cqrs, command, is_async=is_async) == 3
    assert locked(cqrs) == ["Door-front"] * 2


@both
def test_none_never_takes_it(cqrs: CQRS, *, is_async: bool) -> None:
    meanwhile.times = 2
    assert run(cqrs, OpenDoorFreely(), is_async=is_async) == 3
    assert locked(cqrs) == []


def test_a_command_for_no_aggregate_locks_nothing(cqrs: CQRS) -> None:
    assert cqrs.execute(Knock()).value == "who is there"
    assert locked(cqrs) == []


def test_workers_take_it_as_execute_does(cqrs: CQRS) -> None:
    cqrs.app.conf.task_always_eager = True
    assert cqrs.send_command(OpenDoorAlways()).get()["value"] == 1
    assert locked(cqrs) == ["Door-front"]


# Whom it keeps waiting


def test_under_always_handlers_for_one_aggregate_never_overlap(cqrs: CQRS) -> None:
    # when 8 threads execute commands to one aggregate, some sync and some async
    def work(n: int) -> None:
        for _ in range(5):
            run(cqrs, OpenDoorSoon() if n % 2 else OpenDoorAlways(), is_async=n % 4 > 1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    # then there was never more than one at work, so no conflict, and no lock is left
    assert meanwhile.most_inside == 1
    assert len(cqrs.store.read_stream(DOOR)) == len(locked(cqrs)) == 40
    assert cqrs.runtime.bus.locks._locks == {}  # type: ignore[union-attr]


@both
def test_a_lock_that_is_held_too_long_names_aggregate_and_holder(
    cqrs: CQRS, *, is_async: bool
) -> None:
    # given a thread that holds the lock
    locks, gate, held = cqrs.runtime.bus.locks, threading.Event(), threading.Event()
    assert locks is not None

    def hold() -> None:
        with locks.hold(DOOR, wait_s=0):
            held.set()
            gate.wait(10)

    holder = threading.Thread(target=hold, name="the-holder")
    holder.start()
    assert held.wait(10)
    try:
        # when a command has a conflict, and would repeat under the lock
        meanwhile.times = 1
        with pytest.raises(LockTimeout, match="Door-front is locked by the-holder") as caught:
            run(cqrs, OpenDoor(), is_async=is_async)
    finally:
        gate.set()
        holder.join()
    # then the error says what and who, and only the other's commit is there
    assert (caught.value.aggregate, caught.value.holder) == ("Door-front", "the-holder")
    assert caught.value.waited_s == 0
    assert len(cqrs.store.read_stream(DOOR)) == 1


def test_a_handler_may_not_execute_a_command_to_the_aggregate_that_it_has_locked(
    cqrs: CQRS,
) -> None:
    with pytest.raises(NestedExecution, match=r"OpenDoorAlways inside the handler .*open_within"):
        cqrs.execute(OpenDoorWithinADoor())
    assert locked(cqrs) == ["Door-front"]
    assert cqrs.store.read_all() == []


def test_a_cancelled_wait_leaves_no_lock_behind(cqrs: CQRS) -> None:
    locks = cqrs.runtime.bus.locks
    assert isinstance(locks, CountingLocks)

    async def cancel() -> None:
        # given a task that waits for the lock
        with locks.hold(DOOR, wait_s=0):
            task = asyncio.create_task(cqrs.execute_async(OpenDoorSoon()))
            await asyncio.to_thread(wait_until, lambda: len(locks.waiting) == 1)
            # when it is cancelled, and the lock comes free
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    # then somebody else gets it
    assert cqrs.execute(OpenDoorAlways()).value == 1


def test_many_in_one_loop_that_wait_for_one_lock_keep_nobody_from_another(cqrs: CQRS) -> None:
    # given a lock that somebody holds
    locks = cqrs.runtime.bus.locks
    assert isinstance(locks, CountingLocks)

    async def run() -> list[Any]:
        with locks.hold(DOOR, wait_s=0):
            # and more commands that wait for it than there are threads to wait in
            waiting = [
                asyncio.create_task(cqrs.execute_async(OpenDoorSoon())) for _ in range(THREADS * 2)
            ]
            await asyncio.to_thread(wait_until, lambda: len(locks.waiting) == 1)
            # when another aggregate's lock is wanted, then that is there
            other = await cqrs.execute_async(OpenDoorSoon(id="back"))
            assert other.value == 1
            assert not any(task.done() for task in waiting)
        # and when the first one is free, they come one after the other, each once
        return await asyncio.gather(*waiting)

    values = [result.value for result in asyncio.run(run())]
    assert values == list(range(1, THREADS * 2 + 1))
    assert gates._gates == {} or not any(gates._gates.values())


@pytest.mark.parametrize("wait_s", [0, 0.01])
def test_who_waits_in_vain_behind_others_of_its_loop_is_told_so(wait_s: float) -> None:
    async def run() -> None:
        locks = MemoryLocks()
        gate = await gates.enter_gate(locks, DOOR, wait_s=0)
        with pytest.raises(LockTimeout, match="another command of this event loop") as caught:
            await gates.enter_gate(locks, DOOR, wait_s=wait_s)
        assert (caught.value.aggregate, caught.value.waited_s) == ("Door-front", wait_s)
        # and whoever comes later gets in
        gate.leave()
        (await gates.enter_gate(locks, DOOR, wait_s=0)).leave()

    asyncio.run(run())


# What there is to lock with


def test_without_an_answer_a_conflict_is_repeated_without_a_lock_and_always_waits_for_one(
    cqrs: CQRS,
) -> None:
    cqrs.runtime.bus.locks = CountingLocks(is_away=True)
    meanwhile.times = 1
    assert cqrs.execute(OpenDoor()).value == 2
    assert asyncio.run(cqrs.execute_async(OpenDoor())).value == 3
    with pytest.raises(StoreUnavailable, match="the locks are away"):
        cqrs.execute(OpenDoorAlways())


def test_a_lock_that_is_asked_for_needs_something_to_lock_with(cqrs: CQRS) -> None:
    cqrs.runtime.bus.locks = None
    meanwhile.times = 1
    assert cqrs.execute(OpenDoor()).value == 2
    with pytest.raises(InvalidSetting, match="asks for lock = 'always', but there is nothing"):
        cqrs.execute(OpenDoorAlways())
    # and a worker says so when it starts
    with pytest.raises(InvalidSetting, match="but there is nothing to lock with"):
        cqrs.check_handlers()


@pytest.mark.parametrize(
    ("broker", "transport", "kind"),
    [
        ("redis://localhost:1", "cqrs_celery.transport:Transport", RedisLocks),
        ("redis://localhost:1", "", RedisLocks),
        ("memory://", "", type(None)),
        ("amqp://localhost:1", "", type(None)),
    ],
)
def test_locks_are_kept_in_the_brokers_redis_if_it_is_one(
    broker: str, transport: str, kind: type
) -> None:
    app = Celery("house", broker=broker, set_as_current=False)
    app.conf.broker_transport = transport or None
    assert isinstance(open_locks(app, object()), kind)  # type: ignore[arg-type]
    # and for events in this process's memory, there too
    assert isinstance(open_locks(app, MemoryEventStore()), MemoryLocks)


@pytest.mark.parametrize(
    ("command", "options", "text"),
    [
        (OpenDoor, {"lock": "sometimes"}, r"lock = 'sometimes'; expected 'on_conflict', 'always'"),
        (OpenDoor, {"lock": True}, "lock = True"),
        (Knock, {"lock": "always"}, "Knock is for no aggregate that could be locked"),
        (OpenDoor, {"lock_wait_s": -1}, "lock_wait_s = -1; expected seconds from 0"),
        (OpenDoor, {"lock_wait_s": None}, "lock_wait_s = None"),
        (OpenDoor, {"lock_wait_s": float("inf")}, "lock_wait_s = inf"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    command: type[Command], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(RegistrationError, match=text):

        @command_handler(command, **options)
        def never(command: Command) -> None: ...


def test_the_lock_carries_no_promise_the_version_check_does(cqrs: CQRS) -> None:
    # given a lock that lets everybody in, as one does that has expired
    class Open(MemoryLocks):
        @contextmanager
        def hold(self, stream: StreamName, *, wait_s: float) -> Iterator[None]:
            yield

    cqrs.runtime.bus.locks = Open()
    # when another writer commits first, each time
    meanwhile.times = 99
    # then it is refused all the same
    with pytest.raises(ConcurrencyError, match="Door-front"):
        cqrs.execute(OpenDoorAlways())
