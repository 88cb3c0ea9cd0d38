"""Messages that wait for their event store: logged by their count."""

from __future__ import annotations

import logging

import pytest

from cqrs_celery.workers.waiting import QUIET_S, WaitingMessages


def test_messages_that_wait_are_logged_by_their_count_until_the_store_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a store that was away for a hundred messages
    now = [100.0]
    waiting = WaitingMessages(clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            waiting.note("the database does not answer")
    # then the first is logged, and each power of two, in one line
    assert len(caplog.records) == 7
    assert "the database does not answer" in caplog.text
    assert "Traceback" not in caplog.text
    # when a message is handled that needs no store, then nothing is said
    caplog.clear()
    with caplog.at_level(logging.INFO):
        waiting.note_handled()
    assert caplog.text == ""
    assert waiting.are_there
    # when one is handled and none has failed for a while, then the store is back
    now[0] += QUIET_S + 1
    with caplog.at_level(logging.INFO):
        waiting.note_handled()
        waiting.note_handled()
    assert [record.getMessage() for record in caplog.records] == [
        "the worker could handle a message again after 100 failures"
    ]
    assert not waiting.are_there
