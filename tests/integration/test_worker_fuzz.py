"""No bytes end a worker: each message becomes a run, or a dead letter with its reason."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chaos.fuzz import KINDS, QUEUE, Mill, Stored, Text, messages, mills, nested, written
from tests.conftest import require_server

#: Every way to run tasks, beside those of the fuzz.
EVERY_KIND = (*KINDS, ("threads", False), ("gevent", False))

#: A key that a worker has, and that is no list: Kombu's bindings of remote control.
BINDINGS = "_kombu.binding.celery.pidbox"

ENVELOPE, MALFORMED, INVALID = (
    "unreadable envelope", "malformed task message", "invalid task message",
)  # fmt: skip


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Mill]]:
    """Run a worker of every kind, which no test may end."""
    require_server()
    with mills(tmp_path_factory.mktemp("mills"), EVERY_KIND) as running:
        assert running[0].data.type(BINDINGS) == b"set"
        yield running


def head(**changes: Any) -> dict[str, Any]:
    """Return a task message's head, with other parts."""
    whole: dict[str, Any] = {
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "properties": {
            "correlation_id": "1",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
        },
        "headers": {"task": "grist.late_work", "id": "1", "retries": 0, "timelimit": [None, None]},
    }
    return {**whole, **changes}


def headers(**changes: Any) -> Stored:
    """Return a message that has other headers."""
    whole = head()
    return own({**whole, "headers": {**whole["headers"], **changes}})


def properties(**changes: Any) -> Stored:
    """Return a message that has other properties."""
    whole = head()
    return own({**whole, "properties": {**whole["properties"], **changes}})


NOTHING = Text("[[], {}, {}]")


def own(of: Any, body: Any = NOTHING) -> Stored:
    """Return a message in the transport's form."""
    return Stored(written(of).encode() + b"\n" + written(body).encode(), is_raw=False)


def body(value: Any, **changes: Any) -> Stored:
    """Return a message that has another body."""
    return own(head(**changes), value)


def stock(text: bytes | None = b"[[], {}, {}]", **changes: Any) -> Stored:
    """Return a message as a stock producer pushes it."""
    inside = None if text is None else base64.b64encode(text).decode()
    whole = head()
    whole["properties"] = {**whole["properties"], "body_encoding": "base64", "delivery_tag": "1"}
    return Stored(written({"body": inside, **whole, **changes}).encode(), is_raw=True)


def without(*names: str) -> Stored:
    """Return a message that lacks headers."""
    whole = head()
    left = {name: one for name, one in whole["headers"].items() if name not in names}
    return own({**whole, "headers": left})


def old(**changes: Any) -> Stored:
    """Return a message of Celery's first protocol."""
    content = {"task": "grist.late_work", "id": "1", "args": [], "kwargs": {}, **changes}
    return own(head(headers={}), content)


#: What ended workers, or vanished, or would have; with its dead letter's reason.
CASES: dict[str, tuple[Stored, str]] = {
    "headers that are a list": (own(head(headers=[1])), ENVELOPE),
    "headers that are a text": (own(head(headers="x")), ENVELOPE),
    "no headers": (own({"properties": {}}), ENVELOPE),
    "properties that are null": (own(head(properties=None)), ENVELOPE),
    "properties that are a list": (own(head(properties=[])), ENVELOPE),
    "properties that are a text": (own(head(properties="x")), ENVELOPE),
    "delivery info that is a text": (properties(delivery_info="x"), ENVELOPE),
    "delivery info that is a list": (properties(delivery_info=[1]), ENVELOPE),
    "an unknown body encoding": (properties(body_encoding="rot13"), ENVELOPE),
    "a body encoding that is a list": (properties(body_encoding=[]), ENVELOPE),
    "a content type that is a list": (own(head(**{"content-type": []})), ENVELOPE),
    "a content encoding that is a number": (own(head(**{"content-encoding": 8})), ENVELOPE),
    "a correlation id that is an object": (properties(correlation_id={}), ENVELOPE),
    "a body that is not encoded as it says": (
        own({**head(), "properties": {"body_encoding": "base64"}}, [[1], {}, {}]), ENVELOPE,
    ),
    "a routing key of half a character": (
        properties(delivery_info={"exchange": "", "routing_key": Text('"\\ud800"')}), "",
    ),
    "a routing key that is a key of the queue's own": (
        properties(delivery_info={"exchange": "", "routing_key": "cq:msg"}), "",
    ),
    "a routing key of a key that is no list": (
        properties(delivery_info={"exchange": "", "routing_key": BINDINGS}), "",
    ),
    "a sequence of half a character": (
        own({
            **head(headers={**head()["headers"], "cqrs_sequence": Text('"\\ud800"')}),
            "properties": {"delivery_info": {"exchange": "", "routing_key": "elsewhere"}},
        }), "",
    ),
    "a reply address that is a list": (properties(reply_to=[1]), ENVELOPE),
    "a priority that is a text": (properties(priority="high"), ENVELOPE),
    "a typed value that its type can't be made of": (
        headers(x={"__type__": "uuid", "__value__": {}}), ENVELOPE,
    ),
    "a head nested deep": (headers(x=nested(300)), ENVELOPE),
    "a head nested deeper than Python goes": (headers(x=nested(100_000)), ENVELOPE),
    "a head that is cut": (Stored(b'{"headers": {', is_raw=False), ENVELOPE),
    "a head that is too large": (headers(x="x" * (1 << 20)), ENVELOPE),
    "half a head of opening brackets": (Stored(b"[" * 100_000, is_raw=False), ENVELOPE),
    "nothing at all": (Stored(b"", is_raw=False), ENVELOPE),
    "nothing at all, pushed": (Stored(b"", is_raw=True), ENVELOPE),
    "a number, pushed": (Stored(b"9999999", is_raw=True), ENVELOPE),
    "a number of more digits than a number has": (Stored(b"9" * 5000, is_raw=True), ENVELOPE),
    "a sequence that is none, pushed": (Stored(b"=nobody", is_raw=True), ENVELOPE),
    "an at sign, pushed": (Stored(b"@", is_raw=True), ENVELOPE),
    "bytes that are no text": (Stored(b"\xff\xfe\x00", is_raw=True), ENVELOPE),
    "a stock body that is an object": (stock(None, body={"a": 1}), ENVELOPE),
    "a stock body that is cut": (stock(None, body="abc"), ENVELOPE),
    "a stock body of other characters": (stock(None, body="?"), MALFORMED),
    "a stock body that is no text": (stock(b"\xff\xfe"), "undecodable body"),
    "a task's name that is an object": (headers(task={}), MALFORMED),
    "a task's name that is null": (headers(task=None), MALFORMED),
    "no id": (without("id"), MALFORMED),
    "an id that is a number": (headers(id=1), ""),
    "an id of half a character": (headers(id=Text('"\\ud800"')), MALFORMED),
    "an empty id": (headers(id=""), MALFORMED),
    "retries that are a text": (headers(retries="x"), MALFORMED),
    "retries that are too many": (headers(retries=10**18), MALFORMED),
    "retries below none": (headers(retries=-1), MALFORMED),
    "a time limit that is a number": (headers(timelimit=3), MALFORMED),
    "time limits that are texts": (headers(timelimit=["x", "y"]), MALFORMED),
    "time limits without end": (headers(timelimit=[Text("1e999"), None]), MALFORMED),
    "time limits that are no number": (headers(timelimit=[Text("NaN"), None]), MALFORMED),
    "an eta that is an object": (headers(eta={}), MALFORMED),
    "an expiry that is a list": (headers(expires=[]), MALFORMED),
    "an expiry that is no time": (headers(expires="soon"), INVALID),
    "an expiry that no time zone has": (headers(expires="0001-01-01T00:00:00"), ""),
    "an eta that Python can't wait for": (
        stock(headers={**head()["headers"], "eta": "9999-12-31T23:59:59"}), MALFORMED,
    ),
    "an eta before time": (
        stock(headers={**head()["headers"], "eta": "0001-01-01T00:00:00+14:00"}), "",
    ),
    "a shadow that is a list": (headers(shadow=[]), MALFORMED),
    "a group that is a number": (headers(group=7), ""),
    "a group that is a list": (headers(group=[7]), MALFORMED),
    "an ignored result that is a number": (headers(ignore_result=1), ""),
    "an ignored result that is a text": (headers(ignore_result="x"), ""),
    "stamps that are a list": (headers(stamps=[1], stamped_headers=["x"]), MALFORMED),
    "stamped headers that are a number": (headers(stamped_headers=7), MALFORMED),
    "a header that Celery's request has a method for": (headers(get=1), ""),
    "a header over what Celery's request keeps": (headers(_children="x"), ""),
    "a text of three characters": (body(Text("tru"), **{"content-type": None}), MALFORMED),
    "headers of headers that are a text": (headers(headers="x"), MALFORMED),
    "an unknown compression": (headers(compression="rot13"), "undecodable body"),
    "a body that expands too far": (
        stock(
            zlib.compress(bytes(65 * 2**20)),
            headers={**head()["headers"], "compression": "application/x-gzip"},
        ),
        "undecodable body",
    ),
    "a compression that is a list": (headers(compression=[1]), "undecodable body"),
    "a body nested deep": (body([[nested(300)], {}, {}]), MALFORMED),
    "a body nested deeper than Python goes": (body(nested(100_000)), MALFORMED),
    "a body that is cut": (body(Text("[[1], {")), "undecodable body"),
    "no body": (body(Text("")), MALFORMED),
    "a body that is null": (body(None), MALFORMED),
    "a body of another shape": (body({"hello": 1}), MALFORMED),
    "arguments that are a number": (body([5, {}, {}]), INVALID),
    "keyword arguments that are a list": (body([[], [1], {}]), INVALID),
    "options that are a list": (body([[], {}, [1]]), INVALID),
    "options that are a text": (body([[], {}, "x"]), INVALID),
    "options that overwrite the request": (body([[], {}, {"delivery_info": "x"}]), INVALID),
    "callbacks that are a number": (body([[], {}, {"callbacks": 5}]), INVALID),
    "a chain of numbers": (body([[], {}, {"chain": [1]}]), INVALID),
    "a chord that is a text": (body([[], {}, {"chord": "x"}]), INVALID),
    "a content type that is not accepted": (
        body([[], {}, {}], **{"content-type": "application/x-python-serialize"}), INVALID,
    ),
    "an unknown task": (headers(task="grist.nothing"), "unknown task"),
    "an unknown task of a stock producer without a body": (
        stock(None, headers={"task": "grist.nothing", "id": "1"}), ENVELOPE,
    ),
    "no task": (own(head(headers={}), {"hello": 1}), "no task message"),
    "no task, and a list": (own(head(headers={}), [1]), "no task message"),
    "an old task whose arguments are a text": (old(args="x"), MALFORMED),
    "an old task whose keyword arguments are a list": (old(kwargs=[]), MALFORMED),
    "an old task whose retries are a text": (old(retries="x"), MALFORMED),
    "an old task that is unknown, without an id": (
        own(head(headers={}), {"task": "grist.nothing"}), MALFORMED,
    ),
    "an early task whose options overwrite the request": (
        own(head(headers={**head()["headers"], "task": "grist.work"}), [[], {}, {"id": 7}]),
        INVALID,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_message_that_no_worker_can_run_becomes_a_dead_letter_and_ends_none(
    name: str, fed: list[Mill]
) -> None:
    # given what once ended a worker, or vanished
    stored, reason = CASES[name]
    # when a worker of every kind gets it
    for mill in fed:
        mill.begin()
        mill.feed([stored])
        mill.ask()
    # then each goes on, and keeps it whole with the reason
    for mill in fed:
        mill.check()
        found = list(mill.queue.letters.all(QUEUE))
        reasons = [json.loads(letter.why)["reason"] for letter in found]
        if reason:
            assert reasons == [reason], mill.worker.name
            assert found[0].payload == stored.content
    # and it can be looked at
    fed[0].read_letters(show=1)
    for mill in fed:
        mill.settle_accounts()


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{p}-{c}" for p, c in KINDS])
@settings(
    max_examples=2,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_whatever_bytes_are_in_a_queue_the_worker_goes_on_and_nothing_vanishes(
    kind: int, fed: list[Mill], seed: int
) -> None:
    # given a worker, and messages that are valid, mutated, spoilt and random
    mill = fed[kind]
    mill.begin()
    # when it gets them
    mill.feed(messages(seed, 250))
    mill.ask()
    # then it is the same process, works on, and each has become a run or a dead letter
    mill.check()
    # and those can be looked at
    mill.read_letters(show=2)
    mill.choose_letters()
    mill.settle_accounts()
