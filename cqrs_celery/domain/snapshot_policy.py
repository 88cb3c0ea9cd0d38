"""Policies that decide, after each commit, whether to take a snapshot of an aggregate.

    class InventoryItem(Aggregate, snapshot_every=100): ...
    class Ledger(Aggregate, snapshot_policy=SlowToLoad(0.05), snapshot_every=1000): ...

A policy is any object with `is_due`. If a class has several, one that is due is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

#: The fewest events for which a time-based policy takes a snapshot; for fewer, it saves nothing.
FEWEST_EVENTS = 10


class SnapshotFacts(NamedTuple):
    """The facts by which a policy decides.

    Attributes:
        version: the version of the aggregate, whose events are all committed.
        snapshot_version: the version of its newest snapshot; 0 if none fits its class.
        snapshot_age_s: seconds since that snapshot was taken; None if there is none.
        load_s: seconds that loading the aggregate took; 0 if it was not loaded.
    """

    version: int
    snapshot_version: int
    snapshot_age_s: float | None
    load_s: float

    @property
    def events_since(self) -> int:
        """The number of events after the snapshot, which a load replays."""
        return self.version - self.snapshot_version


class SnapshotPolicy(Protocol):
    """The port of policies. An error that `is_due` raises is logged, and counts as False."""

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether to take a snapshot now."""


@dataclass(frozen=True, slots=True)
class EveryEvents:
    """A snapshot as soon as a load would replay a number of events.

    Attributes:
        events: the number of events, from 1.
    """

    events: int

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether a load would replay that number of events."""
        return facts.events_since >= self.events


@dataclass(frozen=True, slots=True)
class OlderThan:
    """A snapshot after a commit, if the last snapshot is old or missing.

    Attributes:
        age_s: seconds after which a snapshot is old.
        at_least_events: the fewest events that a load would replay; for fewer, it is not due.
    """

    age_s: float
    at_least_events: int = FEWEST_EVENTS

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether the snapshot is old or missing, and a load would replay enough events."""
        is_old = facts.snapshot_age_s is None or facts.snapshot_age_s >= self.age_s
        return is_old and facts.events_since >= self.at_least_events


@dataclass(frozen=True, slots=True)
class SlowToLoad:
    """A snapshot when loading the aggregate took long.

    Attributes:
        load_s: seconds, including the time until the store answered.
        at_least_events: the fewest events that a load would replay; for fewer, it is not due, since
            then the store is slow.
    """

    load_s: float
    at_least_events: int = FEWEST_EVENTS

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether loading took that long, and a load would replay enough events."""
        return facts.load_s >= self.load_s and facts.events_since >= self.at_least_events


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A snapshot when one of several policies is due."""

    policies: tuple[SnapshotPolicy, ...]

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether one of the policies is due."""
        return any(policy.is_due(facts) for policy in self.policies)
