"""Print which test shows which of the behaviours that the predecessor's users rely on.

    python -m tests.acceptance

A test names their numbers in its docstring: `ACCEPTANCE 46-48, 50 and 52`, or at its beginning:
`46-48: …`.
"""
# ruff: noqa: T201

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "cqrs_celery" / "testing"

#: All numbers; two were never given.
NUMBERS = [n for n in range(1, 94) if n not in (66, 79)]

#: What the page says without a number, and the tests that show it.
UNNUMBERED = {
    "a second handler for a command is refused at registration, naming both": [
        "tests/unit/test_bus.py::test_a_second_handler_is_refused_and_both_are_named",
    ],
    "an event whose aggregate id differs from the aggregate's is an error": [
        "tests/unit/test_aggregate.py::test_an_event_of_another_aggregate_is_an_error",
        "tests/unit/test_repository.py::test_a_store_s_event_of_another_aggregate_is_an_error",
    ],
    "version and pending events change only after the save succeeded": [
        "tests/unit/test_repository.py::test_after_a_save_nothing_is_pending_and_the_version_has_moved",
        "tests/unit/test_repository.py::test_a_save_after_somebody_else_s_is_refused_and_changes_nothing",
    ],
    "callers of the cache never share a mutable instance": [
        "tests/unit/test_cache.py::test_callers_never_share_a_mutable_instance",
    ],
    "a snapshot is written only after the commit": [
        "tests/unit/test_snapshots.py::test_a_snapshot_is_put_after_the_commit_and_not_if_it_failed",
    ],
    "a snapshot of another schema version is ignored, replayed, replaced": [
        "tests/unit/test_snapshots.py::test_one_of_another_schema_version_is_ignored_replayed_and_replaced",
    ],
    "separate read and write URLs; the version is checked where it is written": [
        "tests/integration/test_postgresql_event_store.py::test_a_stream_is_read_from_the_replica_unless_it_was_just_written_here",
    ],
    "sync and async subscribers": [
        "tests/integration/test_worker_subscriptions.py::test_the_decoded_event_arrives_and_nothing_is_left_in_flight",
    ],
    "sequential or concurrent, per subscription": [
        "tests/integration/test_queue_sequences.py::test_the_next_of_a_sequence_waits_for_the_first",
        "tests/integration/test_worker_retries.py::test_an_unordered_subscription_waits_for_nothing",
    ],
    "subscriptions in another service that shares only Redis": [
        "tests/integration/test_worker_commands.py::test_another_service_that_shares_only_redis_subscribes",
    ],
    "first redrive after 5 minutes, doubling, at most 60 apart, 168 hours to live": [
        "tests/unit/test_options.py::test_a_dead_letter_is_tried_after_5_minutes_then_hourly_at_most_for_a_week",
        "tests/integration/test_queue_redriving.py::test_it_is_tried_however_often_it_failed_within_its_time",
    ],
}  # fmt: skip

_LIST = r"(\d+(?:(?:-|–|, | and )\d+)*)"  # noqa: RUF001
_NAMED = re.compile(rf"(?:ACCEPTANCE {_LIST}(?![\d,]*\d{{3}})|^{_LIST}:)")


def numbers_in(text: str) -> Iterator[int]:
    """Yield the numbers that a docstring names."""
    for found in map(max, _NAMED.findall(text)):
        for part in re.split(r", | and ", found):
            first, _, last = part.replace("–", "-").partition("-")  # noqa: RUF001
            yield from range(int(first), int(last or first) + 1)


def shown() -> dict[int, list[str]]:
    """Return the tests by number, each as "<file>::<name>"."""
    tests: dict[int, list[str]] = defaultdict(list)
    for name, docstring in every_test():
        for number in numbers_in(docstring):
            tests[number].append(name)
    return tests


def every_test() -> Iterator[tuple[str, str]]:
    """Yield every test, as "<file>::<name>", and its docstring."""
    for path in sorted([*TESTS.rglob("*.py"), *PACKAGE.rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.relative_to(TESTS.parent)}::{node.name}"
                yield name, ast.get_docstring(node) or ""


def main() -> None:
    """Print the tables; the exit code is 1 if a number has no test."""
    tests = shown()
    for number in NUMBERS:
        for name in tests.get(number, ["MISSING"]):
            print(f"{number:3}  {name}")
    for words, names in UNNUMBERED.items():
        print(f"\n     {words}")
        for name in names:
            print(f"     {name}")
    missing = [number for number in NUMBERS if number not in tests]
    if missing:
        sys.exit(f"without a test: {', '.join(map(str, missing))}")


if __name__ == "__main__":
    main()
