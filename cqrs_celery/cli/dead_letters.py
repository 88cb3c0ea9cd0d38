"""`celery -A app cqrs dead-letters`: list what failed and why, try it again, or discard it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
from celery.bin.base import CeleryCommand

from ..errors import MissingDependency
from ..messages.compression import ExpandsTooFar, expand
from ..queue.dead_letters import DeadLetters
from ..queue.values import DeadLetter, LetterPolicy
from ..transport import envelope
from .broker import broker_channel, is_reply_queue
from .stored import head_of, parsed
from .table import plain, print_table

#: The text in a table for each answer of the queue; "done" depends on what was to be done.
_ANSWERS = {
    "none": "there is no such letter any more",
    "tried": "is being tried already",
    "archived": "is archived: use --archived",
}

#: The text for "done". A retry has not succeeded yet: the message waits for a worker.
_DONE = {"retry": "queued again", "discard": "deleted"}

#: The alarm of a letter that is not archived and has few messages behind it.
BLOCKS = "blocks its sequence: retry it, or discard it"

#: The alarm of a letter that waits for an operator: that of a command, or of another task.
LEFT = "no worker tries it again: retry it, or discard it"


class Row(NamedTuple):
    """A dead letter in the form that is shown."""

    id: int
    subscription: str
    aggregate: str
    state: str
    exception: str
    error: str
    attempts: int
    first_failed_at: str
    failed_at: str
    age_s: int
    next_try_at: str | None
    waiting: int
    reason: str
    task: str
    task_id: str
    worker: str


class Filter(NamedTuple):
    """A choice of dead letters; an empty filter chooses all of them."""

    ids: Sequence[int] = ()
    subscription: str = ""
    aggregate: str = ""
    exception: str = ""
    older_than_s: float | None = None
    newer_than_s: float | None = None
    is_archived: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the filter chooses every letter."""
        return self == Filter()

    def fits(self, row: Row) -> bool:
        """Return whether a letter is chosen."""
        return (
            (not self.ids or row.id in self.ids)
            and self.aggregate in ("", row.aggregate, row.aggregate.rpartition(":")[2])
            and self.exception in ("", row.exception, row.exception.rpartition(".")[2], row.reason)
            and (self.older_than_s is None or row.age_s >= self.older_than_s)
            and (self.newer_than_s is None or row.age_s <= self.newer_than_s)
            and (not self.is_archived or row.state == "archived")
        )


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--archived", "is_archived", is_flag=True,
                     help="Only those whose time to live is over."),
        click.option("--newer-than", "newer_than_s", type=float, metavar="SECONDS",
                     help="Only those that first failed at most so long ago."),
        click.option("--older-than", "older_than_s", type=float, metavar="SECONDS",
                     help="Only those that first failed at least so long ago."),
        click.option("--exception", default="", metavar="NAME",
                     help="Only this exception, by its name or its full name; or this reason."),
        click.option("--aggregate", default="",
                     help="Only this aggregate, by its id or its stream."),
        click.option("--subscription", default="", help="Only this subscription, or this queue."),
        click.argument("ids", nargs=-1, type=int),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(name="dead-letters", help="List what failed and why, try it again, or discard it.")
def dead_letters() -> None:
    """Group the commands about dead letters."""


@dead_letters.command(cls=CeleryCommand, name="list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_letters(context: click.Context, /, as_json: bool, **filters: Any) -> None:
    """List dead letters: all of them, or those that the options choose."""
    with broker_channel(context) as channel:
        rows = [row for row, _ in _find(context, channel.queue.letters, Filter(**filters))]
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    print_table(
        ("id", "subscription", "aggregate", "state", "exception or reason", "attempts",
         "failed at", "next try", "waiting behind"),
        [
            (r.id, r.subscription, r.aggregate, r.state, r.exception or r.reason, r.attempts,
             r.failed_at, r.next_try_at or "", r.waiting)
            for r in rows
        ],
    )  # fmt: skip


@dead_letters.command(cls=CeleryCommand, name="show")
@click.argument("id", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(context: click.Context, id: int, as_json: bool) -> None:
    """Show one dead letter: its reason, its traceback, its message."""
    with broker_channel(context) as channel:
        found = next(_find(context, channel.queue.letters, Filter(ids=(id,))), None)
    if found is None:
        raise click.UsageError(f"there is no dead letter {id}; `list` shows the existing ones")
    row, letter = found
    facts = {**row._asdict(), **_message(letter)}
    traceback = _why(letter).get("traceback")
    if as_json:
        click.echo(json.dumps({**facts, "traceback": traceback}, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "" if value is None else plain(value, keeps_lines=True)
        # Indented, so that no line of the value looks like another field.
        shown = shown.replace("\n", "\n" + " " * (width + 2))
        click.echo(f"{name.replace('_', ' '):{width}}  {shown}".rstrip())
    if traceback:
        click.echo(f"\n{plain(traceback, keeps_lines=True).rstrip()}")


@dead_letters.command(cls=CeleryCommand, name="retry")
@_filters
@click.option("--all", "is_all", is_flag=True, help="Every letter that is not archived.")
@click.option("--dry-run", is_flag=True, help="Only say which are meant.")
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@click.pass_context
def retry(context: click.Context, /, **options: Any) -> None:
    """Try dead letters again now; messages that wait behind one follow when it succeeds."""
    _order(
        context,
        "retry",
        lambda letters, letter, chosen: letters.redrive(
            letter.queue, letter.id, also_archived=chosen.is_archived
        ),
        **options,
    )


@dead_letters.command(cls=CeleryCommand, name="discard")
@_filters
@click.option("--all", "is_all", is_flag=True, help="Every letter.")
@click.option("--dry-run", is_flag=True, help="Only say which are meant.")
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@click.pass_context
def discard(context: click.Context, /, **options: Any) -> None:
    """Delete dead letters for good; messages that wait behind one go on without it."""
    _order(
        context,
        "discard",
        lambda letters, letter, _: letters.discard(letter.queue, letter.id),
        **options,
    )


@dead_letters.command(cls=CeleryCommand, name="check")
@click.option(
    "--older-than",
    "older_than_s",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="Skip blocking letters that first failed less than so long ago.",
)
@click.option(
    "--waiting",
    "least_waiting",
    type=int,
    default=0,
    metavar="NUMBER",
    help="Skip blocking letters with fewer messages behind them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(context: click.Context, older_than_s: float, least_waiting: int, as_json: bool) -> None:
    """Report the letters that need an operator; the exit code is 1 if there are any.

    These are letters that block their sequence, within the bounds. Regardless of the bounds, they
    are also letters that are archived, that have more messages behind them than
    `cqrs_dead_letter_crowd`, or that no worker tries again, such as a command's.
    """
    alarms = []
    with broker_channel(context) as channel:
        letters = channel.queue.letters
        for row, letter in _find(context, letters, Filter()):
            alarm = _alarm(row, letters.policy(letter.queue))
            is_within = row.age_s >= older_than_s and row.waiting >= least_waiting
            if alarm and (is_within or alarm != BLOCKS):
                alarms.append((row, alarm))
    rows = [
        {"id": row.id, "subscription": row.subscription, "aggregate": row.aggregate,
         "waiting": row.waiting, "alarm": text}
        for row, text in alarms
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        print_table(
            ("id", "subscription", "aggregate", "waiting behind", "alarm"),
            [list(row.values()) for row in rows],
        )
    if alarms:
        context.exit(1)


def _alarm(row: Row, policy: LetterPolicy | None) -> str:
    """Return why a letter needs an operator; empty if it does not."""
    if row.state == "archived":
        return "archived: retry it with --archived, or discard it"
    if policy is not None and row.waiting > policy.crowd:
        return f"more than {policy.crowd} wait behind it"
    if row.state != "dead":
        return ""
    if policy is None or row.next_try_at is None:
        return LEFT
    return BLOCKS if row.aggregate and policy.kind != "continue" else ""


def _order(
    context: click.Context,
    deed: str,
    do: Callable[[DeadLetters, DeadLetter, Filter], str],
    *,
    is_all: bool,
    dry_run: bool,
    is_sure: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    chosen = Filter(**filters)
    if chosen.is_empty and not is_all:
        raise click.UsageError(f"choose what to {deed}: give ids, filter options, or --all")
    if as_json and not (is_sure or dry_run):
        raise click.UsageError("--json can't ask for confirmation: use --yes or --dry-run")
    with broker_channel(context) as channel:
        letters = channel.queue.letters
        # Without the messages themselves, which may be too large to keep in memory.
        found = [
            (row, letter._replace(payload=b"", body=b""))
            for row, letter in _find(context, letters, chosen)
        ]
        if missing := set(chosen.ids) - {row.id for row, _ in found}:
            raise click.UsageError(
                f"no dead letter {', '.join(map(str, sorted(missing)))} is chosen; nothing was done"
            )
        if not (dry_run or is_sure) and found:
            click.confirm(f"{deed} {len(found)} dead letters?", abort=True)
        answers = ["" if dry_run else do(letters, letter, chosen) for _, letter in found]
    rows = [
        {"id": row.id, "subscription": row.subscription, "aggregate": row.aggregate,
         "waiting": row.waiting, "outcome": answer or f"would {deed}"}
        for (row, _), answer in zip(found, answers, strict=True)
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        texts = {**_ANSWERS, "done": _DONE[deed]}
        print_table(
            ("id", "subscription", "aggregate", "waiting behind", "outcome"),
            [
                (*list(row.values())[:4], texts.get(str(row["outcome"]), row["outcome"]))
                for row in rows
            ],
        )
    if any(answer not in ("", "done") for answer in answers):
        context.exit(1)


def _find(
    context: click.Context, letters: DeadLetters, chosen: Filter
) -> Iterator[tuple[Row, DeadLetter]]:
    names = [chosen.subscription] if chosen.subscription else letters.queues()
    for name in names:
        if is_reply_queue(context.obj.app, name):
            continue
        for letter in letters.in_order(name):
            row = _row(letters, letter)
            if chosen.fits(row):
                yield row, letter


def _row(letters: DeadLetters, letter: DeadLetter) -> Row:
    why, headers = _why(letter), head_of(letter.payload, letter.body)["headers"]
    first_died_at = letter.first_died_at_ms / 1000
    first_failed_at = min(_positive(why.get("first_failed_at"), first_died_at), first_died_at)
    next_try_ms = letters.due_at_ms(letter)
    return Row(
        id=letter.id,
        subscription=letter.queue,
        aggregate=letter.sequence,
        state=letter.state,
        exception=str(why.get("exception") or ""),
        error=str(why.get("error") or ""),
        attempts=int(_positive(why.get("attempts"), 1)) + letter.times - 1,
        first_failed_at=_at(first_failed_at),
        failed_at=_at(letter.died_at_ms / 1000),
        age_s=int(time.time() - first_failed_at),
        next_try_at=_at(next_try_ms / 1000) if next_try_ms and letter.state == "dead" else None,
        waiting=letters.waiting_behind(letter),
        reason=str(why.get("reason") or ""),
        task=str(headers.get("task") or why.get("task") or ""),
        task_id=str(headers.get("id") or why.get("task_id") or ""),
        worker=str(why.get("worker") or ""),
    )


def _positive(value: object, otherwise: float) -> float:
    """Return a positive number of a letter's reason; another one if a header made it no number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # This also excludes NaN, which JSON can hold.
    return value if is_number and 0 < value < math.inf else otherwise  # type: ignore[operator, return-value]


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _why(letter: DeadLetter) -> dict[str, Any]:
    try:
        why = parsed(letter.why)
    except ValueError:
        return {}
    return why if isinstance(why, dict) else {}


def _message(letter: DeadLetter) -> dict[str, Any]:
    """Return the message itself: its argument if that can be read, otherwise its bytes."""
    try:
        body = envelope.split(letter.payload, letter.body)[1]
        [argument, *_], *_ = parsed(body)
        if not isinstance(argument, dict):
            return {"message": parsed(body)}
        plain = expand(argument.get("data"))
        return {"message": argument if plain is None else {**argument, "data": parsed(plain)}}
    except (MissingDependency, ExpandsTooFar):
        return {"message": argument}
    except (ValueError, TypeError):
        return {"raw": repr(letter.payload + letter.body)}
