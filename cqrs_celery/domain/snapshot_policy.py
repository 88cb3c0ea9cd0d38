"""Policies that decide when an aggregate's state is worth a snapshot; asked after each commit.

    class InventoryItem(Aggregate, snapshot_every=100): ...
    class Ledger(Aggregate, snapshot_policy=SlowToLoad(0.05), snapshot_every=1000): ...

A policy is any object with `is_due`. Where a class names several, one that is due suffices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

#: Events that a policy of time waits for: on fewer, a snapshot spares nothing.
FEWEST_EVENTS = 10


class SnapshotFacts(NamedTuple):
    """The facts by which a policy decides.

    Attributes:
        version: the aggregate's, all of its events committed.
        snapshot_version: of its newest snapshot; 0 if it has none that fits its class.
        snapshot_age_s: seconds since that was taken; None if there is none.
        load_s: seconds that loading the aggregate took; 0 if it was not loaded.
    """

    version: int
    snapshot_version: int
    snapshot_age_s: float | None
    load_s: float

    @property
    def events_since(self) -> int:
        """The number of events that a load replays."""
        return self.version - self.snapshot_version


class SnapshotPolicy(Protocol):
    """The port of policies. What `is_due` raises is logged, and counts as no."""

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether a snapshot is to be taken now."""


@dataclass(frozen=True, slots=True)
class EveryEvents:
    """A snapshot as soon as a load would replay so many events.

    Attributes:
        events: from 1.
    """

    events: int

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether a load would replay so many events."""
        return facts.events_since >= self.events


@dataclass(frozen=True, slots=True)
class OlderThan:
    """A snapshot when something was committed and the last snapshot is old, or missing.

    Attributes:
        age_s: seconds.
        at_least_events: that a load would replay; on fewer it is not due.
    """

    age_s: float
    at_least_events: int = FEWEST_EVENTS

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether the snapshot is old or missing, and there are events to save."""
        is_old = facts.snapshot_age_s is None or facts.snapshot_age_s >= self.age_s
        return is_old and facts.events_since >= self.at_least_events


@dataclass(frozen=True, slots=True)
class SlowToLoad:
    """A snapshot when loading the aggregate took long.

    Attributes:
        load_s: seconds; the store's answer is part of them.
        at_least_events: that a load would replay; on fewer it is not due, for it is the store that
            is slow.
    """

    load_s: float
    at_least_events: int = FEWEST_EVENTS

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether loading took so long, for enough events."""
        return facts.load_s >= self.load_s and facts.events_since >= self.at_least_events


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A snapshot when one of several policies is due."""

    policies: tuple[SnapshotPolicy, ...]

    def is_due(self, facts: SnapshotFacts) -> bool:
        """Return whether one of the policies is due."""
        return any(policy.is_due(facts) for policy in self.policies)
