"""The auditor of the chaos runs complains of what is wrong, and of nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.chaos.auditor import Auditor, Held, Truth
from tests.chaos.docks import SUBSCRIPTIONS, Deed, Handling

#: What goes well: a commit of two events with a row, and its handling by all subscriptions.
DEED = Deed("about", "t", "row", ("crate", "crate"))
SAID = [DEED, DEED._replace(what="returned")]


def landed(version: int, token: str = "t", id: str = "") -> Held:
    event_id = id or f"e{version}"
    return Held("ChaosCrate", "crate", version, event_id, "docks.landed", {"token": token})


def booked(version: int, event_id: str) -> Held:
    return Held(
        "ChaosCrateLedger", "crate", version, f"b{version}", "docks.booked", {"event_id": event_id}
    )


def handling(
    version: int, start: float, end: float | None = None, *, by: str = ""
) -> list[Handling]:
    found = []
    for name in [by] if by else SUBSCRIPTIONS:
        found.append(Handling("start", start, name, f"e{version}", "crate", version))
        if end is not None:
            found.append(Handling("end", end, name, f"e{version}", "crate", version))
    return found


EVENTS = [landed(1), landed(2), booked(1, "e1"), booked(2, "e2")]
HANDLED = [*handling(1, 10, 11), *handling(2, 12, 13)]


def audit(
    events: list[Held] = EVENTS, said: list[Deed] = SAID, handled: list[Handling] = HANDLED,
    *, deeds: Any = ("t",), rows: Any = ("e1", "e2"),
) -> str:  # fmt: skip
    """Return the kinds of the auditor's complaints."""
    auditor = Auditor(Truth(events, Counter(deeds), Counter(rows)), said, handled)
    try:
        auditor.judge()
    except AssertionError:
        return ", ".join(sorted(auditor.wrong))
    return ""


def test_what_is_right_is_not_complained_of() -> None:
    assert audit() == ""
    # nor is what a kill may do: a commit that is there or not, a handling that began, or came again
    assert audit(said=[DEED]) == ""
    assert audit([], [DEED], [], deeds=(), rows=()) == ""
    assert audit(handled=[*handling(1, 8), *HANDLED, *handling(1, 14, 15)]) == ""


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"events": [], "deeds": (), "handled": [], "rows": ()}, "lost by the store"),
        ({"said": [DEED, DEED._replace(what="refused")]}, "not announced"),
        ({"said": []}, "not announced"),
        ({"deeds": ()}, "not whole"),
        ({"deeds": ("t", "t")}, "not whole"),
        ({"said": [DEED._replace(crates=("crate",))]}, "not whole"),
        ({"said": [DEED._replace(crates=("crate",) * 3)]}, "not whole"),
        ({"events": [landed(1), landed(3, id="e2"), *EVENTS[2:]]}, "gap in a stream"),
        ({"handled": handling(1, 10, 11)}, "lost"),
        ({"handled": [*handling(1, 10, 11), *handling(2, 12)]}, "lost"),
        (
            {"handled": [*HANDLED, *handling(3, 14, by="docks.look")]},
            "handled without being committed",
        ),
        ({"handled": [*handling(1, 10, 12.5), *handling(2, 12, 13)]}, "out of order"),
        ({"handled": [*handling(2, 8), *HANDLED]}, "out of order"),
        ({"rows": ("e1",)}, "effects lost"),
        ({"rows": ("e1", "e2", "e2")}, "effects doubled"),
        ({"rows": ("e1", "e2", "e3")}, "handled without being committed"),
        ({"events": EVENTS[:3]}, "effects lost"),
        ({"events": [*EVENTS, booked(3, "e1")]}, "effects doubled"),
    ],
)
def test_what_is_wrong_is_complained_of(changed: dict[str, Any], complaint: str) -> None:
    assert audit(**changed) == complaint
