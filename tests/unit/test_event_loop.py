"""The process's event loop: async handlers share it, wherever they are called from."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_app, current_task

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Query,
    Session,
    applies,
    command_handler,
    query_handler,
    subscribes,
)
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.locks import MemoryLocks
from cqrs_celery.dispatch import event_loop
from cqrs_celery.dispatch.event_loop import close_loop, run_coroutine
from cqrs_celery.errors import HandlerCancelled, InsideEventLoop, SessionError, StaleVersion
from cqrs_celery.session.off_loop import THREADS
from tests.nodes import REPOSITORY
from tests.waiting import wait_until


class Spun(Event, name="loop.spun"):
    pass


class Wheel(Aggregate, name="LoopWheel"):
    turns: int = 0

    @applies(Spun)
    def _spun(self, event: Spun) -> None:
        self.turns += 1


class Spin(Command, name="loop.spin", aggregate=Wheel, key="id"):
    id: str = "it"


class SpinNow(Spin, name="loop.spin_now", aggregate=Wheel, key="id"):
    pass


class Turns(Query, name="loop.turns"):
    pass


#: What an async handler awaits in its middle, and what was seen.
world = SimpleNamespace(inside=None, seen=[], loops=set(), reads=False)
where: ContextVar[str] = ContextVar("where", default="nowhere")


@command_handler(Spin, soft_time_limit=5)
async def spin(command: Spin, session: Session) -> int:
    world.loops.add(asyncio.get_running_loop())
    wheel = await session.find_async(Wheel, command.id)
    if wheel is None:
        wheel = Wheel(command.id)
        session.add(wheel)
    if world.inside:
        await world.inside(session)
    wheel.record(Spun())
    return wheel.turns


@command_handler(SpinNow)
def spin_now(command: SpinNow, session: Session) -> int:
    wheel = session.find(Wheel, command.id) or Wheel(command.id)
    session.add(wheel)
    wheel.record(Spun())
    return wheel.turns


@query_handler(Turns)
async def turns(query: Turns) -> str:
    await asyncio.sleep(0)
    world.loops.add(asyncio.get_running_loop())
    return where.get()


class SpinLocked(Spin, name="loop.spin_locked", aggregate=Wheel, key="id"):
    pass


class SpinLockedNow(Spin, name="loop.spin_locked_now", aggregate=Wheel, key="id"):
    pass


@command_handler(SpinLocked, lock="always")
async def spin_locked(command: SpinLocked, session: Session) -> int:
    return int(await spin(command, session))


@command_handler(SpinLockedNow, lock="always")
def spin_locked_now(command: SpinLockedNow, session: Session) -> int:
    return int(spin_now(command, session))


@subscribes(Spun)
async def watch(event: Spun, session: Session) -> None:
    await asyncio.sleep(0)
    if world.reads:
        await session.find_async(Wheel, "another")
    world.loops.add(asyncio.get_running_loop())
    world.seen.append("spun")


class SilentStore(MemoryEventStore):
    """A store that tells nobody of its events, and is taken for one that does."""

    delivers = True


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give the current application, in memory and eager."""
    before = Celery(set_as_current=False)
    app = Celery("loop", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://", task_always_eager=True)
    world.__dict__.update(inside=None, seen=[], loops=set(), reads=False)
    app.set_current()
    yield CQRS(app)
    before.set_current()
    app.close()


# ------------------------------------------------------------ one loop


def test_all_async_handlers_of_a_process_share_one_loop_in_a_thread_of_its_own(
    cqrs: CQRS,
) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: cqrs.execute(Spin(id=str(n))), range(40)))
    cqrs.send_command(Spin()).get()
    cqrs.query(Turns())
    (loop,) = world.loops
    assert loop is event_loop._the_loop().loop
    assert loop.is_running()
    assert world.seen == ["spun"] * 41


def test_a_thousand_are_under_way_at_a_time() -> None:
    # given handlers of which none goes on before all are there
    inside, gate = [], asyncio.Event()

    async def meet() -> None:
        inside.append(1)
        if len(inside) == 1000:
            gate.set()
        await gate.wait()

    # when a thousand threads run one each, then all come together
    with ThreadPoolExecutor(1000) as threads:
        list(threads.map(lambda _: run_coroutine(meet(), of="meet"), range(1000)))
    assert len(inside) == 1000


def test_what_a_handler_awaits_sees_the_callers_context_and_changes_none(cqrs: CQRS) -> None:
    token = where.set("here")
    try:
        assert cqrs.query(Turns()) == "here"

        async def change(session: Session) -> None:
            world.seen.append(where.get())
            where.set("there")

        world.inside = change
        cqrs.execute(Spin())
        assert world.seen[0] == "here"
        assert where.get() == "here"
    finally:
        where.reset(token)


def test_celery_knows_each_coroutines_task_in_it_and_in_what_it_starts(cqrs: CQRS) -> None:
    # given handlers that take turns in the loop
    async def look(session: Session) -> None:
        async def started() -> tuple[Any, ...]:
            await asyncio.sleep(0)
            return current_task.name, current_task.request.id, current_app.main

        for _ in range(5):
            world.seen.append((await started(), *await asyncio.gather(started())))

    world.inside = look
    # when three threads run one each, in an application that is current in none of them
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda n: spin_as(cqrs, str(n)), range(3)))
    # then each has seen its own task, in itself and in what it has started
    seen = [one for one in world.seen if one != "spun"]
    assert len(seen) == 15
    for one, other in seen:
        assert one == other
        assert one[0] == "loop.spin"
    assert {one[1] for one, _ in seen} == {"0", "1", "2"}
    # and nothing of it is left in the loop
    assert run_coroutine(_current(), of="it") is None


def spin_as(cqrs: CQRS, task_id: str) -> Any:
    cqrs.app.set_current()
    # Not delay: that of an eager task forbids get() to all threads, while it runs.
    return spin.apply((Spin(id=task_id),), task_id=task_id).get()


async def _current() -> Any:
    return current_task._get_current_object()


# ------------------------------------------------------------ inside a running loop


@pytest.mark.parametrize("cls", [Spin, SpinNow])
def test_execute_inside_a_running_loop_is_refused_and_names_execute_async(
    cqrs: CQRS, cls: Any
) -> None:
    async def wrong() -> None:
        cqrs.execute(cls())

    text = rf"execute\({cls.__name__}\) was called .* await cqrs\.execute_async\({cls.__name__}"
    with pytest.raises(InsideEventLoop, match=text) as it:
        asyncio.run(wrong())
    assert (it.value.message_type, it.value.instead) == (cls.__name__, "execute_async")
    assert cqrs.store.read_all() == []


def test_query_inside_a_running_loop_is_refused_and_names_query_async(cqrs: CQRS) -> None:
    async def wrong() -> None:
        cqrs.query(Turns())

    with pytest.raises(InsideEventLoop, match=r"await cqrs\.query_async\(Turns") as it:
        asyncio.run(wrong())
    assert it.value.instead == "query_async"


@pytest.mark.parametrize("cls", [Spin, SpinNow])
def test_an_eager_task_inside_a_running_loop_works(cqrs: CQRS, cls: Any) -> None:
    async def send() -> Any:
        return cls().delay().get()

    assert asyncio.run(send())["value"] == 1
    assert world.seen == ["spun"]


def test_execute_async_awaits_in_the_callers_loop_and_subscriptions_run_in_the_processs(
    cqrs: CQRS,
) -> None:
    async def run() -> Any:
        return asyncio.get_running_loop(), await cqrs.execute_async(Spin())

    own, result = asyncio.run(run())
    assert result.value == 1
    assert world.loops == {own, event_loop._the_loop().loop}


def test_a_thousand_commands_are_carried_out_in_one_loop_and_none_is_refused() -> None:
    # given a store that delivers to nobody, and 50 aggregates
    world.inside = None
    cqrs = CQRS(Celery("loop", set_as_current=False, broker="memory://"), store=SilentStore())

    async def all_of_them() -> list[Any]:
        commands = [(Spin if n % 3 else SpinNow)(id=str(n % 50)) for n in range(1000)]
        return await asyncio.gather(*[cqrs.execute_async(command) for command in commands])

    results = asyncio.run(all_of_them())
    assert sorted(result.position for result in results) == list(range(1, 1001))
    streams = {stored.stream.aggregate_id: stored.version for stored in cqrs.store.read_all()}
    assert streams == {str(n): 20 for n in range(50)}


def test_an_async_subscription_of_what_a_coroutine_commits_in_the_loop_runs_too(
    cqrs: CQRS,
) -> None:
    # given an async handler that commits by a session of its own, in memory
    async def commit(session: Session) -> None:
        with cqrs.session() as own:
            wheel = Wheel("own")
            own.add(wheel)
            wheel.record(Spun())

    world.inside = commit
    # when it runs in the process's loop, which so waits for the subscription
    assert cqrs.execute(Spin()).value == 1
    # then it is not waited for in vain
    assert world.seen == ["spun", "spun"]


def test_more_commands_than_threads_commit_for_subscriptions_that_read_and_commit_too(
    cqrs: CQRS,
) -> None:
    # given more commands of one loop than there are threads, each of which commits and waits, in
    # its thread, for an async subscription that needs threads itself
    ids = [str(n) for n in range(2 * THREADS)]
    world.reads = True

    async def run() -> Any:
        commands = [cqrs.execute_async(Spin(id=one)) for one in ids]
        return await asyncio.wait_for(asyncio.gather(*commands), 60)

    # then none waits for ever
    assert [result.value for result in asyncio.run(run())] == [1] * len(ids)
    assert world.seen == ["spun"] * len(ids)


def test_sync_handlers_that_wait_for_a_lock_leave_its_holder_the_loops_own_threads() -> None:
    # given a loop whose own executor has one thread, and an async handler that needs it
    app = Celery("loop", broker="memory://", set_as_current=False)
    cqrs = CQRS(app, store=SilentStore())
    cqrs.runtime.bus.locks = MemoryLocks()
    started, others_wait = asyncio.Event(), asyncio.Event()

    async def hold(session: Session) -> None:
        started.set()
        await others_wait.wait()
        await asyncio.to_thread(lambda: None)

    world.__dict__.update(inside=hold, seen=[], loops=set())

    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        held = asyncio.create_task(cqrs.execute_async(SpinLocked()))
        await started.wait()
        # when sync handlers want the lock that it holds
        others = [asyncio.create_task(cqrs.execute_async(SpinLockedNow())) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        others_wait.set()
        return await asyncio.wait_for(asyncio.gather(held, *others), 60)

    # then each gets it in turn
    assert [result.value for result in asyncio.run(run())] == [1, 2, 3, 4]


# ------------------------------------------------------------ reading without blocking


class SlowStore(SilentStore):
    """A store whose reads wait for the loop to have gone on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def read_stream(self, *args: Any, **options: Any) -> Any:
        assert self.gate.wait(10), "the loop stood still"
        return super().read_stream(*args, **options)


def test_get_async_lets_the_loop_go_on() -> None:
    store = SlowStore()
    world.inside = None
    cqrs = CQRS(Celery("loop", set_as_current=False, broker="memory://"), store=store)

    async def both() -> Any:
        spinning = asyncio.create_task(cqrs.execute_async(Spin()))
        await asyncio.sleep(0.01)
        assert not spinning.done()
        store.gate.set()
        return await spinning

    assert asyncio.run(both()).value == 1


def test_get_async_is_get_in_all_else(cqrs: CQRS) -> None:
    cqrs.execute(Spin())

    async def reading(session: Session) -> None:
        one, other = await asyncio.gather(
            session.get_async(Wheel, "it"), session.find_async(Wheel, "it")
        )
        assert one is other is session.get(Wheel, "it")
        assert await session.find_async(Wheel, "nobody") is None
        with pytest.raises(StaleVersion):
            await session.get_async(Wheel, "it", expected_version=7)
        added = Wheel("new")
        session.add(added)
        assert await session.get_async(Wheel, "new") is added

    session = cqrs.session()
    asyncio.run(reading(session))
    # given a session that has ended while something was read
    session.close()
    with pytest.raises(SessionError, match="the session has ended"):
        asyncio.run(session.get_async(Wheel, "it"))


# ------------------------------------------------------------ interrupted


def test_a_handler_that_cancels_itself_is_a_failure_that_says_so(cqrs: CQRS) -> None:
    async def cancel(session: Session) -> None:
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(10)

    world.inside = cancel
    with pytest.raises(HandlerCancelled, match=r"handler .*\.spin was cancelled from within") as it:
        cqrs.execute(Spin())
    assert it.value.handler.endswith(".spin")
    assert cqrs.store.read_all() == []


def test_a_handler_that_exits_ends_its_caller_alone(cqrs: CQRS) -> None:
    async def leave(session: Session) -> None:
        sys.exit(7)

    world.inside = leave
    with pytest.raises(SystemExit):
        cqrs.execute(Spin())
    world.inside = None
    assert cqrs.execute(Spin()).value == 1


@pytest.mark.parametrize("what", ["gives up", "cleans up and returns", "raises its own"])
def test_an_interrupted_caller_cancels_the_coroutine_and_waits_for_its_end(
    cqrs: CQRS, what: str
) -> None:
    # given a handler that waits, and a signal that interrupts whoever waits for it
    class Interrupted(Exception):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted("time is up")

    async def wait(session: Session) -> None:
        world.seen.append("waiting")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            world.seen.append("cancelled")
            await asyncio.sleep(0.01)
            world.seen.append("cleaned up")
            if what == "gives up":
                raise
            if what == "raises its own":
                raise ValueError("no time") from None

    world.inside = wait
    before = signal.signal(signal.SIGUSR1, interrupt)

    def send() -> None:
        wait_until(lambda: world.seen == ["waiting"])
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    # when it comes
    try:
        if what == "cleans up and returns":
            assert cqrs.execute(Spin()).value == 1
        else:
            error = Interrupted if what == "gives up" else ValueError
            with pytest.raises(error, match="time"):
                cqrs.execute(Spin())
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    # then the coroutine has come to its end
    assert world.seen[:3] == ["waiting", "cancelled", "cleaned up"]


def test_a_process_that_is_to_end_does_not_wait_for_a_coroutine_that_goes_on(
    cqrs: CQRS, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a handler that will not be cancelled, and a signal that ends its process
    monkeypatch.setattr(event_loop, "CLOSE_S", 0.1)
    gate = threading.Event()

    def end(*_: Any) -> None:
        raise SystemExit(3)

    async def go_on(session: Session) -> None:
        world.seen.append("waiting")
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                world.seen.append("goes on")

    world.inside = go_on
    before = signal.signal(signal.SIGUSR1, end)

    def send() -> None:
        wait_until(lambda: world.seen == ["waiting"])
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    # then it ends nevertheless, while the coroutine is still there
    try:
        with pytest.raises(SystemExit):
            cqrs.execute(Spin())
        assert world.seen == ["waiting", "goes on"]
    finally:
        gate.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_command_that_is_cancelled_while_it_commits_ends_with_its_commit() -> None:
    # given a store whose commit takes its time
    class Slow(SilentStore):
        def __init__(self) -> None:
            super().__init__()
            self.began, self.gate = threading.Event(), threading.Event()

        def append(self, *args: Any, **options: Any) -> Any:
            self.began.set()
            assert self.gate.wait(10)
            return super().append(*args, **options)

    store = Slow()
    world.inside = None
    cqrs = CQRS(Celery("loop", set_as_current=False, broker="memory://"), store=store)

    async def cancelled() -> None:
        task = asyncio.create_task(cqrs.execute_async(Spin()))
        assert await asyncio.to_thread(store.began.wait, 10)
        # when it is cancelled, twice
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    # then the commit is whole
    assert len(store.read_all()) == 1


# ------------------------------------------------------------ the loop's life


def test_a_closed_loop_has_ended_its_tasks_and_the_next_coroutine_gets_another() -> None:
    ended = []

    async def linger() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("task")

    async def generate() -> Any:
        try:
            while True:
                yield 1
        finally:
            ended.append("generator")

    kept = generate()

    async def leave_behind() -> Any:
        task = asyncio.create_task(linger())
        await anext(kept)
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), task

    loop, _task = run_coroutine(leave_behind(), of="it")
    close_loop()
    assert ended == ["task", "generator"]
    assert loop.is_closed()
    assert run_coroutine(_loop(), of="it") is not loop
    close_loop()
    close_loop()
    gc.collect()


async def _loop() -> Any:
    return asyncio.get_running_loop()


SCRIPT = """
    import asyncio, os, sys
    from cqrs_celery.dispatch.event_loop import run_coroutine

    async def ask():
        await asyncio.sleep(0)
        return os.getpid()

    assert run_coroutine(ask(), of="ask") == os.getpid()
    pid = os.fork()
    if not pid:
        os._exit(0 if run_coroutine(ask(), of="ask") == os.getpid() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_coroutine(ask(), of="ask") == os.getpid()
    print("both go on")
"""


def run_script(script: str, *options: str) -> str:
    run = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


def test_a_fork_has_a_loop_of_its_own_and_its_parents_goes_on() -> None:
    assert run_script(SCRIPT) == "both go on\n"


GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import asyncio, time, gevent
    from asyncio import _get_running_loop
    from cqrs_celery.dispatch.event_loop import close_loop, is_loop_running, run_coroutine
    from cqrs_celery.session.off_loop import off_loop

    leaks, ticks, is_over = [], [], False

    def watch():
        while not is_over:
            ticks.append(time.monotonic())
            if _get_running_loop() is not None or is_loop_running():
                leaks.append(1)
            gevent.sleep(0.001)

    async def work(n):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.05)
        time.sleep(0.001)               # what a sync driver does
        assert asyncio.get_running_loop() is loop and is_loop_running()
        assert await off_loop(lambda: (time.sleep(0.001), is_loop_running())[1]) is False
        return n

    watcher = gevent.spawn(watch)
    tasks = [gevent.spawn(run_coroutine, work(n), of="work") for n in range(1000)]
    gevent.joinall(tasks, raise_error=True)
    is_over = True
    watcher.join()
    assert sum(task.value for task in tasks) == 499500
    assert not leaks
    assert len(ticks) > 100, len(ticks)

    async def wait():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ticks.append("cancelled")
            raise

    try:
        with gevent.Timeout(0.1):
            run_coroutine(wait(), of="wait")
    except gevent.Timeout:
        assert ticks[-1] == "cancelled"
    else:
        raise AssertionError("no timeout")

    def other():
        async def main():
            await asyncio.sleep(0.05)
            return asyncio.get_running_loop() is not None
        return asyncio.run(main())

    others = [gevent.spawn(other), gevent.spawn(run_coroutine, work(1), of="work")]
    gevent.joinall(others, raise_error=True)
    assert [task.value for task in others] == [True, 1]
    close_loop()
    print("done")
"""


def test_in_gevent_the_loop_is_a_greenlet_that_stalls_no_other_and_is_mistaken_by_none() -> None:
    pytest.importorskip("gevent")
    assert run_script(GEVENT, "-W", "ignore") == "done\n"
