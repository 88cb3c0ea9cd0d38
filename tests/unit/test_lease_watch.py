"""A consumer is dead by what was seen of its lease, whatever clocks, outages and stalls do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import pytest

from cqrs_celery.transport.consumer.lease_watch import Answer, Lease, LeaseWatch

LEASE_S = 30.0

#: Redis's clock when this machine's is at 0.
EPOCH_S = 1_000_000.0


class World:
    """Redis's clock, this machine's, and consumers that beat, as one observer sees them."""

    def __init__(self, *, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.watch = LeaseWatch(lease_s)
        self.now = 100.0
        self.set_by = 0.0
        self.ends: dict[str, float] = {}
        self.leases_s: dict[str, float] = {}
        self.beaten: dict[str, float] = {}
        self.dead: set[str] = set()
        self.killed: set[str] = set()
        self.is_away = False

    @property
    def redis_ms(self) -> float:
        return (EPOCH_S + self.now + self.set_by) * 1000

    def add(self, *names: str, lease_s: float | None = None) -> None:
        """Register consumers."""
        for name in names:
            self.leases_s[name] = lease_s or self.lease_s
            self._beat(name)

    def _beat(self, name: str) -> None:
        self.ends[name] = self.redis_ms + self.leases_s[name] * 1000
        self.beaten[name] = self.now

    def kill(self, *names: str) -> None:
        """Let consumers beat no more."""
        self.killed |= set(names)

    def look(self, *, took_s: float = 0.01) -> set[str]:
        """Let the observer look at all leases; returns whom it found dead."""
        if self.is_away:
            self.watch.note_failure()
            return set()
        answer = Answer(self.now, self.now + took_s, self.redis_ms + took_s * 500)
        self.watch.note(answer)
        is_of_all = self.watch.may_be_beyond
        leases = {
            name: Lease(end, self.leases_s[name])
            for name, end in self.ends.items()
            if is_of_all or end < answer.now_ms
        }
        found = set(self.watch.judge(answer, leases))
        for name in found:
            del self.ends[name]
        self.dead |= found
        return found

    def passes(self, seconds: float, *, step_s: float = 0.5, is_observing: bool = True) -> None:
        """Let time pass: who lives beats three times a lease, and the observer looks."""
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            for name in self.ends:
                is_due = self.now - self.beaten[name] >= self.leases_s[name] / 3
                if is_due and name not in self.killed and not self.is_away:
                    self._beat(name)
            if is_observing:
                self.look()

    def wait_for(self, condition: Callable[[], object], most_s: float) -> float:
        """Let time pass until something is so; returns how long that took."""
        began = self.now
        while not condition():
            assert self.now - began <= most_s, "it is not so in time"
            self.passes(0.5)
        return self.now - began


@pytest.fixture
def world() -> World:
    return World()


def test_who_beats_no_more_is_dead_a_third_of_a_lease_after_its_end_and_the_others_live(
    world: World,
) -> None:
    # given three consumers that have just beaten
    world.add("anna", "berta", "clara")
    # when one of them dies
    world.kill("anna")
    took_s = world.wait_for(lambda: world.dead, LEASE_S * 2)
    # then it is found neither early nor late
    assert world.dead == {"anna"}
    assert LEASE_S * 4 / 3 <= took_s <= LEASE_S * 4 / 3 + 2


def test_all_that_died_at_once_are_found_at_once(world: World) -> None:
    names = [f"worker-{number}" for number in range(50)]
    world.add(*names)
    world.passes(20)
    world.kill(*names)

    took_s = world.wait_for(lambda: world.dead == set(names), LEASE_S * 2)

    assert took_s <= LEASE_S * 4 / 3 + 2


def test_an_observer_that_comes_late_judges_after_a_third_of_a_lease_of_its_own(
    world: World,
) -> None:
    # given a consumer that died long ago
    world.add("anna")
    world.kill("anna")
    world.passes(500, is_observing=False)
    # when somebody begins to observe
    took_s = world.wait_for(lambda: world.dead, LEASE_S)
    # then it has seen the lease not renewed for itself
    assert LEASE_S / 3 < took_s <= LEASE_S / 3 + 2


def test_a_renewed_lease_saves_its_consumer_however_late(world: World) -> None:
    # given a consumer that is frozen until its lease has ended
    world.add("anna")
    world.kill("anna")
    world.passes(LEASE_S + 8)
    assert world.ends["anna"] < world.redis_ms
    # when it beats before it is judged
    world.killed.clear()
    world.passes(200)
    # then it lives
    assert not world.dead


def test_an_outage_of_redis_of_two_leases_kills_nobody(world: World) -> None:
    # given consumers, and Redis away until all leases have ended
    world.add("anna", "berta")
    world.passes(40)
    world.is_away = True
    world.passes(LEASE_S * 2)
    # when it comes back, and they beat as late as they may after that: a quarter of a lease
    world.is_away = False
    world.beaten = dict.fromkeys(world.ends, world.now - LEASE_S / 3 + LEASE_S / 4)
    world.passes(100)
    # then nobody was taken for dead
    assert not world.dead


def test_who_died_in_an_outage_is_found_after_it(world: World) -> None:
    world.add("anna", "berta")
    world.is_away = True
    world.kill("anna")
    world.passes(LEASE_S * 2)
    world.is_away = False

    took_s = world.wait_for(lambda: world.dead, LEASE_S)

    assert world.dead == {"anna"}
    assert took_s <= LEASE_S / 3 + 2


@pytest.mark.parametrize("set_by_s", [2.0, 31.0, 3_600.0, -2.0, -31.0, -3_600.0])
def test_a_clock_that_is_set_kills_nobody(world: World, set_by_s: float) -> None:
    # given consumers, at each moment between their beats
    names = [f"worker-{number}" for number in range(20)]
    for name in names:
        world.add(name)
        world.passes(0.5)
    world.passes(50)
    # when Redis's clock is set
    world.set_by += set_by_s
    world.passes(300)
    # then all live
    assert not world.dead


@pytest.mark.parametrize("set_by_s", [31.0, 3_600.0, -31.0, -3_600.0])
@pytest.mark.parametrize("is_before", [True, False])
def test_who_dies_around_a_clock_that_is_set_is_found(
    world: World, set_by_s: float, is_before: bool
) -> None:
    # given a consumer that dies just before or after Redis's clock is set
    world.add("anna", "berta")
    world.passes(35)
    if is_before:
        world.kill("anna")
    world.set_by += set_by_s
    world.passes(15)
    world.kill("anna")
    # then it is found, after at most the pause and what is watched otherwise
    world.wait_for(lambda: world.dead, LEASE_S * 3)
    world.passes(100)
    assert world.dead == {"anna"}


def test_an_observer_that_comes_after_the_clock_was_set_back_finds_the_dead(world: World) -> None:
    # given a consumer that died before Redis's clock was set back by an hour
    world.add("anna", "berta")
    world.kill("anna")
    world.set_by -= 3_600
    world.passes(20, is_observing=False)
    # when somebody begins to observe
    world.wait_for(lambda: world.dead, LEASE_S * 4 / 3 + 2)
    # then it alone is found
    world.passes(100)
    assert world.dead == {"anna"}


def test_an_observer_that_comes_after_the_clock_was_set_forward_kills_nobody(world: World) -> None:
    names = [f"worker-{number}" for number in range(20)]
    for name in names:
        world.add(name)
        world.passes(0.5, is_observing=False)
    world.set_by += 3_600

    world.passes(200)

    assert not world.dead


def test_a_suspended_observer_begins_anew(world: World) -> None:
    # given a consumer whose lease was seen to have ended, and then this machine is suspended
    world.add("anna")
    world.kill("anna")
    world.passes(LEASE_S + 1)
    assert world.watch.is_watching
    world.killed.clear()
    world.now += 7_200
    # when it looks again, before the other one has beaten
    assert world.look() == set()
    # then that one has all the time it needs
    world.passes(100)
    assert not world.dead


def test_a_suspend_that_this_clock_does_not_count_looks_like_a_clock_that_is_set(
    world: World,
) -> None:
    # given a machine without a clock that counts the time for which it was suspended
    world.add("anna", "berta")
    world.passes(20)
    world.set_by += 7_200
    # when it goes on, and everybody on it
    world.passes(200)
    # then nobody was judged
    assert not world.dead


def test_a_longer_lease_than_ones_own_is_judged_by_its_own_length(world: World) -> None:
    # given consumers whose leases last ten times as long, of which one dies
    world.add("anna", "berta", lease_s=300)
    world.passes(1_000)
    assert not world.dead
    assert not world.watch.is_watching
    world.kill("anna")
    # then it is found after that time
    took_s = world.wait_for(lambda: world.dead, 600)
    assert took_s > 300
    assert world.dead == {"anna"}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_living_live_and_the_dead_are_found(seed: int) -> None:
    # given some consumers, and an observer
    random = Random(seed)
    world = World(lease_s=random.choice([3.0, 30.0, 120.0]))
    names = [f"worker-{number}" for number in range(8)]
    for name in names:
        world.add(name)
        world.passes(random.random() * world.lease_s / 3, step_s=world.lease_s / 60)
    # when outages, set clocks and deaths follow each other
    step_s = world.lease_s / 60
    for _ in range(12):
        what = random.choice(["outage", "clock", "death", "nothing"])
        if what == "outage":
            world.is_away = True
            world.passes(random.random() * 3 * world.lease_s, step_s=step_s)
            world.is_away = False
        elif what == "clock":
            world.set_by += random.uniform(-2, 2) * random.choice([1, 30, 3_600])
        elif what == "death":
            world.kill(random.choice(names))
        world.passes(random.random() * 2 * world.lease_s, step_s=step_s)
        assert world.dead <= world.killed
    # then in the end the dead are found, and nobody else
    world.passes(world.lease_s * 3 + 10, step_s=step_s)
    assert world.dead == world.killed


def test_nobody_is_judged_by_two_looks_with_nothing_between_them(world: World) -> None:
    # given a consumer that can't beat, as a network between it and Redis is away for a while
    world.add("anna")
    world.kill("anna")
    world.passes(LEASE_S + 1)
    # when the observer itself stands still for more than a third of a lease
    world.passes(LEASE_S / 3 + 5, is_observing=False)
    # then that does not count as seen
    assert world.look() == set()
    assert world.watch.is_watching


def test_time_in_which_redis_owed_an_answer_does_not_count_as_seen(world: World) -> None:
    # given a consumer that could not beat until its lease had ended, and is watched
    world.add("anna")
    world.kill("anna")
    world.passes(LEASE_S + 1)
    assert world.watch.is_watching
    # when Redis stands still for more than a third of a lease, and answers what it was asked before
    took_s = LEASE_S / 3 + 2
    assert world.look(took_s=took_s) == set()
    world.now += took_s + 0.1
    # then the consumer has had no time yet, in which Redis answered, to renew
    assert world.look() == set()
    # and is found a third of a lease later
    found_in_s = world.wait_for(lambda: world.dead, LEASE_S)
    assert LEASE_S / 3 <= found_in_s <= LEASE_S / 3 + 2


def test_an_unchanged_mapping_of_nobody_costs_nothing(world: World) -> None:
    no_leases: Mapping[str, Lease] = {}
    answer = Answer(1.0, 1.1, world.redis_ms)
    assert world.watch.judge(answer, no_leases) == {}
    assert not world.watch.is_watching
    assert not world.watch.may_be_beyond
