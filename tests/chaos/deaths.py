"""Kill -9 every worker of a host: when its messages run again, and in which order."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from tests.chaos.lab import QUEUE, Lab, noting
from tests.waiting import wait_until

#: Workers that are killed in a round, and messages that each of them holds; of these, one runs.
WORKERS, HELD = 2, 4

#: Messages behind those.
BEHIND = 4

#: Seconds within which messages run again on the same host.
SAME_HOST_S = 2.0

#: Seconds of a lease: far beyond a round on the same host; short elsewhere, where it is waited for.
LEASE_S, LEASE_ELSEWHERE_S = 60.0, 6.0

ROWS = (
    "rounds", "workers killed", "messages held", "half of them ran again after, s",
    "99 of 100 after, s", "the last after, s", "promised, s",
)  # fmt: skip


def kill_hosts(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill all workers, and start a new one on the same host, so many times.

    Returns:
        Rows of what happened. Times are from the moment in which the new worker is ready.

    Raises:
        AssertionError: a message was lost or came late, or one behind it came first.
    """
    with Lab(folder, lease_s=LEASE_S, max_deliveries=1_000) as lab:
        chance = random.Random(seed)
        times: list[float] = []
        for number in range(rounds):
            with noting(f"round {number}"):
                times += _die(lab, chance, number, is_elsewhere=False)
    return _rows(rounds, times, SAME_HOST_S)


def kill_hosts_elsewhere(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill all workers, and start a new one that can't see that they are dead, so many times.

    Returns:
        Rows of what happened. Times are from the moment in which the last worker was killed.

    Raises:
        AssertionError: a message was lost or came late.
    """
    with Lab(folder, lease_s=LEASE_ELSEWHERE_S, max_deliveries=1_000) as lab:
        chance = random.Random(seed)
        times: list[float] = []
        for number in range(rounds):
            with noting(f"round {number}"):
                times += _die(lab, chance, number, is_elsewhere=True)
    return _rows(rounds, times, LEASE_ELSEWHERE_S * 4 / 3 + 2)


def _die(lab: Lab, chance: random.Random, number: int, *, is_elsewhere: bool) -> list[float]:
    """Do one round; returns after how many seconds each message ran again."""
    conf, gate = {"worker_prefetch_multiplier": HELD}, f"gate-{number}"
    held = WORKERS * HELD
    lab.journal.clear()
    for n in range(held + BEHIND):
        lab.send(n, kwargs={"gate": gate})
    victims = [lab.new_worker(f"victim-{number}-{i}", conf=conf) for i in range(WORKERS)]
    lab.workers(*victims)
    wait_until(lambda: lab.client.llen(QUEUE) == BEHIND, 30, "the messages to be held")
    wait_until(lambda: len(lab.journal.order()) == WORKERS, 30, "the tasks to be started")
    if is_elsewhere:
        for path in (lab.folder / "cqrs-celery").iterdir():
            path.unlink()
    lab.waits(chance.random() * 0.5)
    for victim in victims:
        victim.kill()
    began = time.monotonic()
    lab.open(gate)
    lab.journal.clear()
    successor = lab.worker(f"successor-{number}", conf=conf)
    if not is_elsewhere:
        began = time.monotonic()
    lab.wait_done(*range(held + BEHIND), deadline_s=lab.lease_s * 4 / 3 + 30)
    lab.wait_empty()
    successor.kill()
    starts = [line for line in lab.journal.lines() if line.event == "start"]
    order = [line.n for line in starts]
    assert sorted(order) == list(range(held + BEHIND)), f"started: {order}"
    if not is_elsewhere:
        assert set(order[:held]) == set(range(held)), f"what was behind came first: {order}"
    return [max(0.0, line.at - began) for line in starts if line.n < held]


def _rows(rounds: int, times: list[float], promised_s: float) -> dict[str, Any]:
    times.sort()
    late = [seconds for seconds in times if seconds > promised_s]
    p99 = times[int(len(times) * 0.99)]
    assert p99 <= promised_s, f"{len(late)} of {len(times)} came late, up to {late[-1]:.1f} s"
    shown = (times[len(times) // 2], p99, times[-1], promised_s)
    numbers = (rounds, rounds * WORKERS, len(times), *(f"{seconds:.2f}" for seconds in shown))
    return dict(zip(ROWS, numbers, strict=True))
