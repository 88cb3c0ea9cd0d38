"""Put a black hole between workers and Redis, as a firewall does that has lost its state.

Nothing is refused, reset or closed; nothing comes through. Afterwards the connections of before
stay dead ("lost"), or all that was held back comes through late ("thaw"). Every pool has a worker
on ours and one on Kombu's own transport, in the same holes. The latter are watched, not judged.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.chaos.lab import Lab
from tests.nodes import WorkerNode
from tests.proxy import Proxy
from tests.waiting import DeadlineMissed, wait_until

#: Seconds that the long form's hole lasts.
HOLE_S = 120.0

#: Seconds after the hole's end within which a worker on ours must have begun a new task.
BOUND_S = 5.0

#: Seconds after the hole's end until which all workers are watched.
WATCH_S = 60.0

POOLS = ("solo", "prefork", "threads", "gevent")

HOLES = ("lost", "thaw")

#: Tasks that are sent before the hole: some run in it, some wait in the worker, the rest in Redis.
BEFORE = 10

#: Seconds that the first of them takes, and, where two run at a time, by how much the second one
#: outlasts the hole.
FIRST_S, OUTLASTS_S = 3.0, 8.0

#: Seconds that each other one takes.
OTHER_S = 0.02

#: Tasks sent after the hole, as many seconds apart; the first that begins is the one that counts.
AFTER, AFTER_EVERY_S = 8, 0.25

#: Settings of a worker on Kombu's own transport; its database is another one.
STOCK: Mapping[str, Any] = {
    "broker_transport": "redis",
    "imports": [],
    "broker_transport_options": {},
}


@dataclass
class Case:
    """One worker in one hole."""

    transport: str
    pool: str
    hole: str
    #: of its tasks' numbers
    first: int
    worker: WorkerNode
    #: where its tasks are sent, past the hole
    url: str
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    #: seconds from the hole's end until it answered a ping
    answered_s: float | None = None

    @property
    def queue(self) -> str:
        """The queue that it alone consumes."""
        return f"{self.pool}-{self.hole}"


def black_hole(
    folder: Path,
    *,
    rounds: int,
    seed: int,
    hole_s: float = HOLE_S,
    watch_s: float = WATCH_S,
    pools: Sequence[str] = POOLS,
    transports: Sequence[str] = ("ours", "stock"),
    arguments: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Run every worker through a hole.

    Args:
        folder: where everything runs.
        rounds: how many holes, one after the other, each with new workers.
        seed: unused; nothing here is random.
        hole_s: seconds that the hole lasts.
        watch_s: seconds after its end until which all workers are watched.
        pools: of these, one worker on each transport.
        transports: ours, and stock for Kombu's own.
        arguments: further arguments of the workers.
        options: of our transport.

    Returns:
        A row for each worker: what it did after the hole.

    Raises:
        AssertionError: a worker on ours was late, lost a task or ended.
    """
    rows: dict[str, Any] = {"hole, seconds": f"{hole_s:g}"}
    late: list[str] = []
    for number in range(rounds):
        own = folder / f"hole-{number + 1}"
        own.mkdir()
        with Lab(own, **{"lease_s": 30.0, **options}) as lab, contextlib.ExitStack() as stack:
            assert lab.node is not None
            proxies = {hole: stack.enter_context(Proxy(lab.node.port)) for hole in HOLES}
            cases = [
                _new_case(lab, proxies[hole], transport, pool, hole, arguments)
                for transport in transports
                for hole in HOLES
                for pool in pools
            ]
            lab.workers(*(case.worker for case in cases))
            _go_through(lab, proxies, cases, hole_s)
            found = _watch(lab, cases, watch_s)
        suffix = f", hole {number + 1}" if rounds > 1 else ""
        for case, (row, complaint) in zip(cases, found, strict=True):
            rows[f"{case.transport}, {case.pool}, {case.hole}{suffix}"] = row
            if case.transport == "ours" and complaint:
                late.append(f"{case.pool}, {case.hole}: {complaint}")
    if late:
        error = AssertionError("; ".join(late))
        error.add_note("\n".join(f"{name}: {row}" for name, row in rows.items()))
        raise error
    return rows


def _new_case(
    lab: Lab, proxy: Proxy, transport: str, pool: str, hole: str, arguments: Sequence[str]
) -> Case:
    assert lab.node is not None
    is_stock = transport == "stock"
    database = int(is_stock)
    worker = lab.new_worker(
        f"{transport}-{pool}-{hole}",
        pool=pool,
        concurrency=1 if pool == "solo" else 2,
        queues=[f"{pool}-{hole}"],
        url=proxy.url(database),
        conf={"worker_prefetch_multiplier": 4, **(STOCK if is_stock else {})},
        arguments=arguments,
    )
    first = 1000 * len(lab.nodes)
    url = lab.node.url_of(database)
    _app(lab, url)
    return Case(transport, pool, hole, first, worker, url)


def _app(lab: Lab, url: str) -> Celery:
    return lab.app(url, **(STOCK if url.endswith("/1") else {}))


def _go_through(lab: Lab, proxies: Mapping[str, Proxy], cases: list[Case], hole_s: float) -> None:
    for case in cases:
        # One that has run before: then everything is connected.
        lab.send(case.first, url=case.url, queue=case.queue)
    lab.wait_done(*(case.first for case in cases), deadline_s=60)
    for case in cases:
        case.before = [case.first + 1 + n for n in range(BEFORE)]
        second_s = OTHER_S if case.pool == "solo" else hole_s + OUTLASTS_S
        for n, seconds in zip(
            case.before, [FIRST_S, second_s, *[OTHER_S] * (BEFORE - 2)], strict=True
        ):
            lab.send(n, url=case.url, queue=case.queue, kwargs={"seconds": seconds})
    lab.wait_started(*(case.before[0] for case in cases), deadline_s=30)
    for hole, proxy in proxies.items():
        proxy.begin_hole(is_losing=hole == "lost")
    lab.waits(hole_s)
    for proxy in proxies.values():
        proxy.end_hole()


def _watch(lab: Lab, cases: list[Case], watch_s: float) -> list[tuple[str, str]]:
    """Return a row and a complaint for each case; the hole has just ended."""
    ended_at = time.monotonic()
    pingers = [
        threading.Thread(
            target=_ping,
            args=(_app(lab, url), [c for c in cases if c.url == url], ended_at, watch_s),
        )
        for url in dict.fromkeys(case.url for case in cases)
    ]
    for thread in pingers:
        thread.start()
    for number in range(AFTER):
        for case in cases:
            case.after.append(case.first + 100 + number)
            lab.send(case.after[-1], url=case.url, queue=case.queue)
        lab.waits(AFTER_EVERY_S)
    wanted = {n for case in cases for n in (*case.before, *case.after)}
    with contextlib.suppress(DeadlineMissed):
        wait_until(
            lambda: wanted <= lab.journal.done(),
            max(1.0, watch_s - (time.monotonic() - ended_at)),
            "all tasks",
        )
    for thread in pingers:
        thread.join()
    return [_told(lab, case, ended_at) for case in cases]


def _ping(app: Celery, cases: list[Case], ended_at: float, watch_s: float) -> None:
    missing = {case.worker.hostname: case for case in cases}
    while missing and time.monotonic() - ended_at < watch_s:
        for reply in app.control.ping(destination=list(missing), timeout=0.5):
            for name in reply:
                if name in missing:
                    missing.pop(name).answered_s = time.monotonic() - ended_at


def _told(lab: Lab, case: Case, ended_at: float) -> tuple[str, str]:
    done, starts = lab.journal.done(), lab.journal.starts()
    begun = [
        line.at for line in lab.journal.lines() if line.n in case.after and line.event == "start"
    ]
    next_s = min(begun) - ended_at if begun else None
    all_tasks = (*case.before, *case.after)
    undone = [n for n in all_tasks if n not in done]
    twice = sum(starts[n] > 1 for n in all_tasks)
    row = (
        f"next task {_shown(next_s)}, ping {_shown(case.answered_s)}, not done {len(undone)},"
        f" started twice {twice}"
    )
    complaints = []
    if next_s is None or next_s > BOUND_S:
        complaints.append(f"next task {_shown(next_s)}")
    if case.answered_s is None or case.answered_s > BOUND_S:
        complaints.append(f"ping {_shown(case.answered_s)}")
    if undone:
        complaints.append(f"not done: {undone}")
    if case.worker.status != "running":
        row += f", {case.worker.status}"
        complaints.append(f"worker {case.worker.status}")
    return row, ", ".join(complaints)


def _shown(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
