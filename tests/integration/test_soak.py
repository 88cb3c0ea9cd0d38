"""The soak's harness itself, for some seconds: what takes hours is `python -m tests.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import load
from tests.soak.__main__ import report_of, soak


@pytest.mark.chaos
def test_a_few_seconds_of_work_with_kills_leave_nothing_and_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given kills that come soon
    monkeypatch.setattr(load, "KILL_EVERY_S", 2.0)
    # when it runs for some seconds, in which each task must be done and nothing may be left
    run, verdicts = soak(tmp_path, seconds=8, seed=20261129)
    # then workers were killed, and everything was sampled
    assert run.seen["done"] == run.seen["sent"] > 20
    assert run.seen["killed"] > 0
    assert {len(samples) for samples in run.series.values()} == {run.seen["samples"]}
    assert run.seen["samples"] >= 8
    names = {"memory of Redis, MB", "keys of Redis that stay", "fields of hashes in Redis"}
    assert {verdict.name for verdict in verdicts} == names
    assert report_of(run, verdicts, 8, 1)["series"].keys() > names
