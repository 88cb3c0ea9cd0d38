"""Handlers, subscriptions and settings, without a server: tasks run in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    CommandResult,
    Event,
    Metadata,
    Query,
    RecordedEvent,
    Session,
    applies,
    command_handler,
    query_handler,
    subscribes,
)
from cqrs_celery.errors import (
    AggregateNotFound,
    ConcurrencyError,
    DuplicateRegistration,
    HandlerNotFound,
    HandlerSignatureError,
    InvalidSetting,
    InvalidText,
    MalformedMessage,
    RegistrationError,
    ReservedFieldName,
    SessionError,
)
from cqrs_celery.store.stream import StreamName
from tests.nodes import REPOSITORY

if TYPE_CHECKING:
    from decimal import Decimal

APPLICATION = "bank"


class AccountOpened(Event, name="bank.account_opened"):
    owner: str


class Moved(Event, name="bank.moved"):
    amount: int


class Deposited(Moved, name="bank.deposited"):
    pass


class Withdrawn(Moved, name="bank.withdrawn"):
    pass


class FeeCharged(Event, name="bank.fee_charged"):
    amount: int


class Account(Aggregate, name="BankAccount"):
    balance: int = 0

    @classmethod
    def open(cls, id: str, owner: str) -> Account:
        account = cls(id)
        account.record(AccountOpened(owner=owner))
        return account

    def deposit(self, amount: int) -> None:
        self.record(Deposited(amount=amount))

    def withdraw(self, amount: int) -> None:
        if amount > self.balance:
            raise ValueError(f"the balance is {self.balance}, which is less than {amount}")
        self.record(Withdrawn(amount=amount))

    def charge(self, amount: int) -> None:
        self.record(FeeCharged(amount=amount))

    @applies(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @applies(Withdrawn)
    def _withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount


class OpenAccount(Command, name="bank.open_account", aggregate=Account, key="id"):
    id: str
    owner: str = "Ada"


class Deposit(Command, name="bank.deposit", aggregate=Account, key="id"):
    id: str
    amount: int


class Withdraw(Command, name="bank.withdraw", aggregate=Account, key="id"):
    id: str
    amount: int


class DepositSoon(Command, name="bank.deposit_soon"):
    id: str
    amount: int


class ChargeFee(Command, name="bank.charge_fee", aggregate=Account, key="id"):
    id: str


class DepositNow(Deposit, name="bank.deposit_now", aggregate=Account, key="id"):
    pass


class DepositTwice(Deposit, name="bank.deposit_twice", aggregate=Account, key="id"):
    pass


class Transfer(Command, name="bank.transfer"):
    source: str
    target: str
    amount: int


class HandlersPing(Command):
    pass


class ReturnOddly(Command, name="bank.return_oddly"):
    id: str


class CommitEarly(Command, name="bank.commit_early"):
    id: str


class Unhandled(Command, name="bank.unhandled"):
    pass


class Balance(Query, name="bank.balance"):
    id: str


class BalanceSoon(Query, name="bank.balance_soon"):
    id: str


class UnansweredQuery(Query, name="bank.unanswered"):
    pass


#: What handlers and subscribers have seen, and what a test plants for them.
log = SimpleNamespace(statement=[], audit=[], recorded=[], traces=[], attempts=0, meanwhile=None)


@command_handler(OpenAccount)
def open_account(command: OpenAccount, session: Session) -> None:
    if session.find(Account, command.id):
        raise ValueError(f"the account {command.id} exists")
    session.add(Account.open(command.id, command.owner))


@command_handler(Deposit)
def deposit(command: Deposit, session: Session) -> int:
    log.attempts += 1
    account = session.get(Account, command.id)
    if log.meanwhile:
        log.meanwhile()
    account.deposit(command.amount)
    return account.balance


@command_handler(DepositNow, retry_on_conflict=0)
def deposit_now(command: DepositNow, session: Session) -> int:
    return deposit(command, session)


@command_handler(DepositTwice, retry_on_conflict=1)
async def deposit_twice(command: DepositTwice, session: Session) -> int:
    return deposit(command, session)


@command_handler(Withdraw, rate_limit="100/s")
def withdraw(command: Withdraw, session: Session, metadata: Metadata) -> int:
    """Withdraw, if the balance is enough."""
    log.traces.append(metadata)
    account = session.get(Account, command.id)
    account.withdraw(command.amount)
    return account.balance


@command_handler(DepositSoon)
async def deposit_soon(command: DepositSoon, session: Session) -> int:
    log.attempts += 1
    account = session.get(Account, command.id)
    account.deposit(command.amount)
    return account.balance


@command_handler(ChargeFee)
def charge_fee(command: ChargeFee, session: Session) -> None:
    session.get(Account, command.id).charge(1)


@command_handler(Transfer)
def transfer(command: Transfer, session: Session) -> None:
    session.get(Account, command.target).deposit(command.amount)
    session.get(Account, command.source).withdraw(command.amount)


@command_handler(HandlersPing)
def ping(command: HandlersPing) -> str:
    return "pong"


@command_handler(ReturnOddly)
def return_oddly(command: ReturnOddly, session: Session) -> object:
    session.get(Account, command.id).deposit(1)
    return object()


@command_handler(CommitEarly)
def commit_early(command: CommitEarly, session: Session) -> None:
    session.get(Account, command.id).deposit(1)
    session.commit()


@query_handler(Balance)
def balance(query: Balance) -> int:
    return int(query.id)


@query_handler(BalanceSoon)
async def balance_soon(query: BalanceSoon) -> int:
    return int(query.id)


@subscribes(AccountOpened, subscription="bank.statement")
def begin_statement(event: AccountOpened) -> None:
    log.statement.append(event)


@subscribes(Deposited, Withdrawn, subscription="bank.statement")
def add_to_statement(event: Deposited | Withdrawn) -> None:
    log.statement.append(event)


@subscribes(Moved)
def audit(event: Moved, recorded: RecordedEvent[Moved]) -> None:
    log.audit.append(event)
    log.recorded.append(recorded)


@subscribes(Withdrawn, subscription="fees")
def charge_for_withdrawals(event: Withdrawn, recorded: RecordedEvent[Withdrawn]) -> None:
    if event.amount >= 100:
        ChargeFee(id=recorded.aggregate_id).delay()


@subscribes(FeeCharged)
async def give_back_fee(
    event: FeeCharged, recorded: RecordedEvent[FeeCharged], session: Session
) -> None:
    if recorded.aggregate_id == "vip":
        session.get(Account, recorded.aggregate_id).deposit(event.amount)


@subscribes(FeeCharged, retry_on_conflict=1)
def give_gift(event: FeeCharged, recorded: RecordedEvent[FeeCharged], session: Session) -> None:
    if recorded.aggregate_id == "gift":
        deposit(Deposit(id="gift", amount=event.amount), session)


def application(**settings: Any) -> CQRS:
    """Return an application of the given settings, which is not the current one."""
    app = Celery(APPLICATION, set_as_current=False)
    app.conf.update(
        {"cqrs_event_store": "memory://", "broker_url": "memory://", "result_backend": "cache"}
    )
    app.conf.update({"cache_backend": "memory", "task_always_eager": True, **settings})
    return CQRS(app)


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give the current application, whose tasks run in this process."""
    before = Celery(set_as_current=False)
    cqrs = application()
    cqrs.app.set_current()
    log.__dict__.update(statement=[], audit=[], recorded=[], traces=[], attempts=0, meanwhile=None)
    yield cqrs
    before.set_current()


def history(cqrs: CQRS, id: str) -> list[str]:
    """Return the types of an account's events, oldest first."""
    stream = StreamName(APPLICATION, "BankAccount", id)
    return [stored.event.type for stored in cqrs.store.read_stream(stream)]


# Commands


def test_a_command_reaches_its_handler_and_is_committed_on_return(cqrs: CQRS) -> None:
    # given an account
    cqrs.execute(OpenAccount(id="1"))
    # when a command is executed
    result = cqrs.execute(Deposit(id="1", amount=5))
    # then what its handler returned comes back, with the place of its event (2)
    assert (result.value, result.position, result.is_repeated) == (5, 2, False)
    assert history(cqrs, "1") == ["bank.account_opened", "bank.deposited"]


def test_a_command_without_result_and_without_events_has_neither(cqrs: CQRS) -> None:
    assert cqrs.execute(HandlersPing()).value == "pong"
    assert cqrs.execute(HandlersPing()).position is None
    assert cqrs.execute(OpenAccount(id="1")).value is None


def test_an_exception_is_the_outcome_and_commits_nothing(cqrs: CQRS) -> None:
    # given two accounts
    cqrs.execute(OpenAccount(id="1"))
    cqrs.execute(OpenAccount(id="2"))
    # when a handler changes one, and raises at the other
    with pytest.raises(ValueError, match="balance is 0"):
        cqrs.execute(Transfer(source="1", target="2", amount=5))
    # then neither has changed, and nobody was told
    assert history(cqrs, "1") == history(cqrs, "2") == ["bank.account_opened"]
    assert not log.audit


def test_a_command_for_a_missing_aggregate_says_which(cqrs: CQRS) -> None:
    with pytest.raises(AggregateNotFound, match="BankAccount-nobody") as caught:
        cqrs.execute(Deposit(id="nobody", amount=1))
    assert (caught.value.aggregate_type, caught.value.aggregate_id) == ("BankAccount", "nobody")


def test_delay_on_the_handler_and_on_the_command_are_one_task(cqrs: CQRS) -> None:
    # given an account
    open_account.delay(OpenAccount(id="1"))
    # when commands are sent both ways
    by_handler = deposit.delay(Deposit(id="1", amount=5))
    by_command = Deposit(id="1", amount=2).delay()
    # then both results are Celery's, and carry value and position
    assert by_handler.get() == CommandResult(value=5, position=2)
    assert by_command.get() == CommandResult(value=7, position=3)
    assert by_command.successful()


def test_an_exception_of_a_sent_command_is_its_failure(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    result = Withdraw(id="1", amount=5).delay()
    assert result.failed()
    with pytest.raises(ValueError, match="balance is 0"):
        result.get()
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_immutable_signatures_make_a_chain(cqrs: CQRS) -> None:
    # given an account; when commands are chained
    cqrs.execute(OpenAccount(id="1"))
    result = chain(
        deposit.si(Deposit(id="1", amount=5)), withdraw.si(Withdraw(id="1", amount=2))
    ).apply_async()
    # then they ran in order, and the last one's result is the chain's
    assert result.get()["value"] == 3


def test_a_handler_is_still_the_function(cqrs: CQRS) -> None:
    assert ping(HandlersPing()) == "pong"
    assert withdraw.__doc__ == "Withdraw, if the balance is enough."
    assert withdraw.__name__ == "withdraw"


def test_a_handlers_task_has_the_commands_name_and_celerys_options(cqrs: CQRS) -> None:
    assert withdraw.name == "bank.withdraw"
    assert withdraw.rate_limit == "100/s"
    assert withdraw.home_queue == "bank.commands"
    assert cqrs.app.tasks["bank.withdraw"] is withdraw.task
    # a name without a dot belongs to the application
    assert ping.name == "bank.HandlersPing"


def test_a_task_takes_its_message_alone(cqrs: CQRS) -> None:
    with pytest.raises(TypeError, match="message alone; found 2"):
        deposit.delay(Deposit(id="1", amount=5), "session")  # type: ignore[call-arg]


def test_an_option_that_a_handlers_task_needs_is_refused(cqrs: CQRS) -> None:
    with pytest.raises(RegistrationError, match="'acks_late', which a handler's task keeps"):

        @command_handler(Unhandled, acks_late=False)
        def early(command: Unhandled) -> None: ...

    with pytest.raises(HandlerNotFound):
        cqrs.execute(Unhandled())


def test_an_async_handler_is_awaited_by_execute_and_by_a_task(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    assert cqrs.execute(DepositSoon(id="1", amount=5)).value == 5
    assert DepositSoon(id="1", amount=2).delay().get()["value"] == 7


async def _all(*awaitables: Any) -> list[Any]:
    return [await one for one in awaitables]


def test_execute_async_takes_sync_and_async_handlers(cqrs: CQRS) -> None:
    # (3, 4)
    opened, soon, done = asyncio.run(
        _all(
            cqrs.execute_async(OpenAccount(id="1")),
            cqrs.execute_async(DepositSoon(id="1", amount=5)),
            cqrs.execute_async(Deposit(id="1", amount=2)),
        )
    )
    assert (opened.value, soon.value, done.value) == (None, 5, 7)
    assert (opened.position, soon.position, done.position) == (1, 2, 3)


def test_a_query_reaches_its_handler_sync_or_async(cqrs: CQRS) -> None:
    # (1, 3)
    assert cqrs.query(Balance(id="7")) == 7
    assert cqrs.query(BalanceSoon(id="8")) == 8
    answers = asyncio.run(
        _all(cqrs.query_async(Balance(id="7")), cqrs.query_async(BalanceSoon(id="8")))
    )
    assert answers == [7, 8]


@pytest.mark.parametrize("message", [Unhandled(), UnansweredQuery()])
def test_a_missing_handler_names_the_message_and_what_was_looked_for(
    cqrs: CQRS, message: Command | Query
) -> None:
    # (5-8)
    run: Any = cqrs.execute if isinstance(message, Command) else cqrs.query
    run_async: Any = cqrs.execute_async if isinstance(message, Command) else cqrs.query_async
    for call in (lambda: run(message), lambda: asyncio.run(run_async(message))):
        with pytest.raises(HandlerNotFound, match=type(message).__name__) as caught:
            call()
        assert caught.value.message_type == type(message).__name__
        assert caught.value.looked_for == "sync or async"


def test_an_eager_command_without_handler_says_so(cqrs: CQRS) -> None:
    with pytest.raises(HandlerNotFound, match="Unhandled"):
        Unhandled().delay()


def test_a_return_value_that_json_cannot_hold_commits_nothing(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    result = return_oddly.delay(ReturnOddly(id="1"))
    with pytest.raises(MalformedMessage, match="returned a value"):
        result.get()
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_a_handler_may_not_commit_its_session(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    with pytest.raises(
        SessionError, match="The session is committed once, when the handler returns"
    ):
        cqrs.execute(CommitEarly(id="1"))
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_a_session_outside_a_handler_commits_at_the_end_of_its_block(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.add(Account.open("1", "Ada"))
        assert history(cqrs, "1") == []
    assert history(cqrs, "1") == ["bank.account_opened"]
    assert log.statement == [AccountOpened(owner="Ada")]


# Once


def test_a_command_with_an_id_has_its_effect_once(cqrs: CQRS) -> None:
    # given a command that was executed under an id
    cqrs.execute(OpenAccount(id="1"))
    first = cqrs.execute(Deposit(id="1", amount=5), idempotency_key="payment-17")
    # when it is executed again
    second = cqrs.execute(Deposit(id="1", amount=5), idempotency_key="payment-17")
    # then it has had its effect once, and the first outcome comes back
    assert (first.value, first.position, first.is_repeated) == (5, 2, False)
    assert (second.value, second.position, second.is_repeated) == (5, 2, True)
    assert history(cqrs, "1") == ["bank.account_opened", "bank.deposited"]


def test_an_async_command_with_an_id_has_its_effect_once(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    results = asyncio.run(
        _all(
            *[cqrs.execute_async(DepositSoon(id="1", amount=5), idempotency_key="a") for _ in "12"]
        )
    )
    assert [(r.value, r.position, r.is_repeated) for r in results] == [(5, 2, False), (5, 2, True)]
    assert history(cqrs, "1") == ["bank.account_opened", "bank.deposited"]


def test_a_repeated_command_is_not_refused_by_the_state_that_it_has_made(cqrs: CQRS) -> None:
    # given a command that its handler refuses once it has had its effect
    cqrs.execute(OpenAccount(id="1"), idempotency_key="opening-1")
    # when it is executed again under its id, or sent so
    result = cqrs.execute(OpenAccount(id="1"), idempotency_key="opening-1")
    sent = OpenAccount(id="1").delay(idempotency_key="opening-1")
    # then its first outcome is its outcome
    assert result.is_repeated
    assert sent.get()["is_repeated"] is True
    # while another command is refused
    with pytest.raises(ValueError, match="exists"):
        cqrs.execute(OpenAccount(id="1"), idempotency_key="opening-2")


def test_a_repeated_command_does_not_run_its_handler(cqrs: CQRS) -> None:
    # given a command that has committed under a key, and one that has under its task's id
    cqrs.execute(OpenAccount(id="1"))
    Deposit(id="1", amount=5).delay(idempotency_key="form-1")
    Deposit(id="1", amount=2).apply_async(task_id="task-1")
    # when they are sent and executed again
    results = [
        Deposit(id="1", amount=5).delay(idempotency_key="form-1").get(),
        deposit.apply_async((Deposit(id="1", amount=5),), idempotency_key="form-1").get(),
        deposit.apply((Deposit(id="1", amount=5),), idempotency_key="form-1").get(),
        deposit.si(Deposit(id="1", amount=5)).set(idempotency_key="form-1").delay().get(),
        Deposit(id="1", amount=2).apply_async(task_id="task-1").get(),
        cqrs.execute(Deposit(id="1", amount=5), idempotency_key="form-1"),
    ]
    # then each is told of the first outcome, and no handler ran
    first = CommandResult(value=5, position=2, is_repeated=True)
    other = CommandResult(value=7, position=3, is_repeated=True)
    assert results == [first, first, first, first, other, first]
    assert log.attempts == 2


def test_each_sending_under_a_key_is_a_task_of_its_own(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    one, other = [Deposit(id="1", amount=5).delay(idempotency_key="form-1") for _ in "12"]
    assert one.id != other.id
    assert one.get() == CommandResult(value=5, position=2)
    assert other.get() == CommandResult(value=5, position=2, is_repeated=True)
    # and what it causes is traced to the command, not to one of its sendings
    assert cqrs.store.read_all(after_position=1)[0].event.metadata == Metadata(
        correlation_id="bank.deposit:form-1", causation_id="bank.deposit:form-1"
    )


def test_two_commands_may_have_one_key(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"), idempotency_key="form-1")
    cqrs.execute(Deposit(id="1", amount=5), idempotency_key="form-1")
    assert cqrs.execute(Withdraw(id="1", amount=2), idempotency_key="form-1").value == 3


def test_a_command_that_failed_under_a_key_may_be_sent_again_under_it(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    assert Withdraw(id="1", amount=5).delay(idempotency_key="w").failed()
    cqrs.execute(Deposit(id="1", amount=5))
    assert Withdraw(id="1", amount=5).delay(idempotency_key="w").get()["is_repeated"] is False


@pytest.mark.parametrize("key", ["", "x" * 201, 17, b"x"])
def test_a_key_that_is_none_is_refused(cqrs: CQRS, key: Any) -> None:
    cqrs.execute(OpenAccount(id="1"))
    for send in (
        lambda: cqrs.execute(Deposit(id="1", amount=5), idempotency_key=key),
        lambda: Deposit(id="1", amount=5).delay(idempotency_key=key),
        lambda: Unhandled().delay(idempotency_key=key),
    ):
        with pytest.raises((ValueError, HandlerNotFound), match=r"1 to 200|Unhandled"):
            send()
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_a_key_that_came_with_a_message_is_checked_too(cqrs: CQRS) -> None:
    plain = {"type": "bank.deposit", "version": 1, "data": {"id": "1", "amount": 5}}
    with pytest.raises(MalformedMessage, match="1 to 200 characters; found 17"):
        deposit.apply(({**plain, "idempotency_key": 17},)).get()


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"], ids=["nul", "half of a pair"])
def test_an_id_that_no_store_can_hold_is_refused_when_it_is_given(cqrs: CQRS, bad: str) -> None:
    cqrs.execute(OpenAccount(id="1"))
    for use in (
        # by whoever sends, before anything is sent
        lambda: cqrs.execute(Deposit(id="1", amount=5), idempotency_key=bad),
        lambda: Deposit(id="1", amount=5).delay(idempotency_key=bad),
        lambda: Deposit(id="1", amount=5).apply_async(task_id=bad),
        lambda: cqrs.execute(Deposit(id=bad, amount=5)),
        # by a session, before anything is recorded
        lambda: cqrs.session().find(Account, bad),
        lambda: cqrs.session().get(Account, bad),
        lambda: cqrs.session().add(Account(bad)),
    ):
        with pytest.raises(InvalidText, match=r"has (a NUL|half of a surrogate pair)") as refused:
            use()
        assert refused.value.text == bad
    with pytest.raises((InvalidText, MalformedMessage), match=r"NUL|surrogates not allowed"):
        Deposit(id=bad, amount=5).delay()
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_an_id_that_no_store_can_hold_is_refused_where_it_arrives(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    plain = {"type": "bank.deposit", "version": 1, "data": {"id": "1", "amount": 5}}
    with pytest.raises(MalformedMessage, match="has a NUL"):
        deposit.apply(({**plain, "idempotency_key": "a\0b"},)).get()
    with pytest.raises(InvalidText, match="the command's id has a NUL"):
        deposit.apply((plain,), task_id="a\0b").get()
    assert history(cqrs, "1") == ["bank.account_opened"]


def test_a_conflict_repeats_the_handler_with_fresh_state(cqrs: CQRS) -> None:
    # given somebody who commits while the handler runs, once
    cqrs.execute(OpenAccount(id="1"))

    def interfere() -> None:
        log.meanwhile = None
        with cqrs.session() as session:
            session.get(Account, "1").deposit(10)

    log.meanwhile = interfere
    # when a command is executed
    result = cqrs.execute(Deposit(id="1", amount=5))
    # then it has seen what the other one did, and both stand
    assert result.value == 15
    assert log.attempts == 2
    assert history(cqrs, "1") == ["bank.account_opened", "bank.deposited", "bank.deposited"]


def test_a_conflict_that_never_ends_is_the_commands_error(cqrs: CQRS) -> None:
    # given somebody who always commits first
    cqrs.execute(OpenAccount(id="1"))

    def interfere() -> None:
        with cqrs.session() as session:
            session.get(Account, "1").deposit(10)

    log.meanwhile = interfere
    # when a command is executed, then the error says stream, expected and found
    with pytest.raises(ConcurrencyError, match="BankAccount-1") as caught:
        cqrs.execute(Deposit(id="1", amount=5))
    assert (caught.value.stream, caught.value.expected, caught.value.found) == (
        "BankAccount-1", 4, 5,
    )  # fmt: skip
    assert log.attempts == 4


@pytest.mark.parametrize("is_async", [False, True])
def test_a_decorator_says_how_often_a_conflict_is_retried(cqrs: CQRS, *, is_async: bool) -> None:
    # given handlers that are repeated never and once, and somebody who always commits first
    cqrs.execute(OpenAccount(id="1"))

    def interfere() -> None:
        with cqrs.session() as session:
            session.get(Account, "1").deposit(10)

    log.meanwhile = interfere
    for command, attempts in (
        (DepositNow(id="1", amount=5), 1),
        (DepositTwice(id="1", amount=5), 2),
    ):
        # when a command is executed, then it runs so often
        log.attempts = 0
        with pytest.raises(ConcurrencyError, match="BankAccount-1"):
            asyncio.run(cqrs.execute_async(command)) if is_async else cqrs.execute(command)
        assert log.attempts == attempts


def test_a_subscribers_conflict_is_retried_too(cqrs: CQRS) -> None:
    # given a subscriber that commits, and somebody who commits while it runs, once
    cqrs.execute(OpenAccount(id="gift"))

    def interfere() -> None:
        log.meanwhile = None
        with cqrs.session() as session:
            session.get(Account, "gift").deposit(10)

    log.meanwhile = interfere
    # when its event comes
    cqrs.execute(ChargeFee(id="gift"))
    # then it has run again, and its effect is there once
    assert history(cqrs, "gift")[1:] == ["bank.fee_charged", "bank.deposited", "bank.deposited"]
    assert log.attempts == 2


@pytest.mark.parametrize("retries", [-1, 1.5, "3", True, None])
def test_a_number_of_retries_that_is_none_is_refused(retries: Any) -> None:
    with pytest.raises(RegistrationError, match=r"retry_on_conflict = .*a whole number from 0"):

        @command_handler(Unhandled, retry_on_conflict=retries)
        def never(command: Unhandled) -> None: ...


# Subscriptions


def test_functions_of_one_subscription_see_an_aggregates_events_in_order(cqrs: CQRS) -> None:
    for command in (
        OpenAccount(id="1"), Deposit(id="1", amount=5), Withdraw(id="1", amount=2),
        Deposit(id="1", amount=3),
    ):  # fmt: skip
        command.delay()
    assert log.statement == [
        AccountOpened(owner="Ada"), Deposited(amount=5), Withdrawn(amount=2), Deposited(amount=3),
    ]  # fmt: skip


def test_a_base_class_means_every_event_below_it(cqrs: CQRS) -> None:
    cqrs.execute(OpenAccount(id="1"))
    cqrs.execute(Deposit(id="1", amount=5))
    cqrs.execute(Withdraw(id="1", amount=2))
    assert log.audit == [Deposited(amount=5), Withdrawn(amount=2)]


def test_the_facts_of_recording_come_with_the_event(cqrs: CQRS) -> None:
    # (72)
    cqrs.execute(OpenAccount(id="1"))
    cqrs.execute(Deposit(id="1", amount=5))
    (recorded,) = log.recorded
    assert recorded.event == Deposited(amount=5)
    assert recorded.stream == StreamName("bank", "BankAccount", "1")
    assert (recorded.version, recorded.global_position) == (2, 2)
    assert recorded.timestamp.tzinfo is not None


def test_tasks_and_queues_of_subscriptions_are_named_after_them(cqrs: CQRS) -> None:
    names = [
        (handler.name, handler.home_queue)
        for handler in (begin_statement, add_to_statement, audit, charge_for_withdrawals)
    ]
    assert names == [
        ("bank.statement.begin_statement", "bank.statement"),
        ("bank.statement.add_to_statement", "bank.statement"),
        ("bank.audit", "bank.audit"),
        ("bank.fees.charge_for_withdrawals", "bank.fees"),
    ]
    assert {name for name, _ in names} <= set(cqrs.app.tasks)


def test_a_subscription_is_registered_once_however_many_applications_there_are(
    cqrs: CQRS,
) -> None:
    # (71)
    application()
    cqrs.execute(OpenAccount(id="1"))
    assert log.statement == [AccountOpened(owner="Ada")]


def test_the_trace_flows_from_command_to_event_to_subscriber_to_command_to_event(
    cqrs: CQRS,
) -> None:
    # given an account with money
    cqrs.execute(OpenAccount(id="1"))
    cqrs.execute(Deposit(id="1", amount=500))
    # when a command has an event, whose subscriber sends a command, which has an event
    Withdraw(id="1", amount=100).apply_async(task_id="withdrawal")
    # then all carry the first command's id, and each event the id of its own command
    withdrawn, charged = cqrs.store.read_all(after_position=2)
    assert (withdrawn.event.type, charged.event.type) == ("bank.withdrawn", "bank.fee_charged")
    assert withdrawn.event.metadata == Metadata(
        correlation_id="withdrawal", causation_id="withdrawal"
    )
    assert charged.event.metadata.correlation_id == "withdrawal"
    assert charged.event.metadata.causation_id not in ("", "withdrawal")
    # and the second command's event says which event caused that command
    assert charged.event.metadata.causation_parent_id == withdrawn.event.event_id
    assert withdrawn.event.metadata.causation_parent_id == ""
    # and the handler was given the same
    assert log.traces == [withdrawn.event.metadata]


def test_what_a_subscribers_session_holds_is_committed_on_return(cqrs: CQRS) -> None:
    # given an account whose fees come back
    cqrs.execute(OpenAccount(id="vip"))
    # when it is charged
    ChargeFee(id="vip").apply_async(task_id="charge")
    # then the subscriber's commit stands, caused by the event, in the command's trace
    assert history(cqrs, "vip")[1:] == ["bank.fee_charged", "bank.deposited"]
    charged, deposited = cqrs.store.read_all(after_position=1)
    assert deposited.event.metadata == Metadata(
        correlation_id="charge", causation_id=charged.event.event_id
    )


def test_an_event_that_arrives_twice_is_committed_for_once(cqrs: CQRS) -> None:
    # given a subscriber that commits
    cqrs.execute(OpenAccount(id="vip"))
    cqrs.execute(ChargeFee(id="vip"))
    charged = cqrs.store.read_all(after_position=1, limit=1)
    # when its event arrives again
    cqrs._deliver(charged)
    # then there is one commit of it
    assert history(cqrs, "vip")[1:] == ["bank.fee_charged", "bank.deposited"]


# Declarations


def test_a_second_handler_is_refused_with_both_places() -> None:
    with pytest.raises(DuplicateRegistration, match=r"Withdraw is claimed by") as caught:

        @command_handler(Withdraw)
        def other(command: Withdraw) -> None: ...

    text = str(caught.value)
    assert f"{__name__}.withdraw ({__file__}:" in text
    assert "other (" in text
    with pytest.raises(DuplicateRegistration, match="the query Balance is claimed"):

        @query_handler(Balance)
        def again(query: Balance) -> None: ...


def test_a_second_function_for_an_event_of_one_subscription_is_refused() -> None:
    with pytest.raises(DuplicateRegistration, match=r"Withdrawn in subscription 'bank.statement'"):

        @subscribes(Withdrawn, subscription="bank.statement")
        def doubled(event: Withdrawn) -> None: ...


def test_an_annotation_that_does_not_match_is_refused() -> None:
    with pytest.raises(HandlerSignatureError, match=r"Unhandled.*annotated with Withdraw"):

        @command_handler(Unhandled)  # type: ignore[arg-type]
        def wrong(command: Withdraw) -> None: ...

    with pytest.raises(HandlerSignatureError, match=r"event Withdrawn.*annotated with Deposited"):

        @subscribes(Deposited, Withdrawn, subscription="bank.other")  # type: ignore[arg-type]
        def narrow(event: Deposited) -> None: ...


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    with pytest.raises(HandlerSignatureError, match=r"'Decimal' is not defined.*TYPE_CHECKING"):

        @command_handler(Unhandled)
        def unresolved(command: Unhandled, price: Decimal) -> None: ...


def test_a_parameter_that_nothing_can_be_given_to_is_refused() -> None:
    with pytest.raises(HandlerSignatureError, match=r"'count' is annotated with int.*Session"):

        @command_handler(Unhandled)
        def counting(command: Unhandled, count: int) -> None: ...

    with pytest.raises(HandlerSignatureError, match=r"'session' has no annotation;.*: Session, M"):

        @command_handler(Unhandled)
        def bare(command, session): ...

    with pytest.raises(HandlerSignatureError, match=r"annotated with Metadata;.*: Session$"):

        @query_handler(UnansweredQuery)
        def tracing(query: UnansweredQuery, metadata: Metadata) -> None: ...

    with pytest.raises(HandlerSignatureError, match="takes no argument"):

        @command_handler(Unhandled)  # type: ignore[arg-type]
        def nothing() -> None: ...


def test_a_field_that_hides_a_name_of_the_base_class_is_refused() -> None:
    with pytest.raises(ReservedFieldName, match="field 'delay'") as caught:

        class Late(Command, name="bank.late"):
            delay: int  # type: ignore[assignment]

    assert caught.value.field == "delay"


def _below(message: Any) -> None:
    """Stand below a decorator without parentheses."""


#: Untyped, as in code that no type checker has seen.
_bare: Any = _below


@pytest.mark.parametrize(
    ("decorator", "text"),
    [
        (lambda: command_handler(Withdrawn), "Withdrawn .* is no command"),
        (lambda: query_handler(Withdraw), "Withdraw .* is no query"),
        (lambda: subscribes(Withdraw), "Withdraw .* is no event"),
        (lambda: subscribes(), "names no event"),
        (lambda: command_handler(_bare), r"_below .*Write @command_handler\(…\) with the class"),
        (lambda: query_handler(_bare), r"_below .*Write @query_handler\(…\) with the class"),
        (lambda: subscribes(_bare), r"_below .*Write @subscribes\(…\) with the class"),
        (lambda: command_handler("bank.withdraw"), "'bank.withdraw' is no command"),  # type: ignore[arg-type]
    ],
)
def test_a_decorator_takes_only_its_kind_of_message(decorator: Any, text: str) -> None:
    with pytest.raises(RegistrationError, match=text):
        decorator()


# Settings


@pytest.mark.parametrize(
    ("settings", "setting", "text"),
    [
        ({"cqrs_event_stor": "broker"}, "cqrs_event_stor", "did you mean 'cqrs_event_store'"),
        ({"CQRS_CACHE": "memory"}, "CQRS_CACHE", "did you mean 'cqrs_cache'"),
        (
            {"cqrs_event_store": "mysql://bob:secret@h/d"},
            "cqrs_event_store",
            "is 'mysql://…'; accepted: 'broker', 'memory://', 'postgresql://…'",
        ),
        (
            {"cqrs_event_store_read_url": "postgresql://bob:secret@h/d"},
            "cqrs_event_store_read_url",
            "is 'postgresql://…'; accepted: the URL of a replica",
        ),
        ({"cqrs_application": 5}, "cqrs_application", "is 5; accepted: letters"),
        ({"cqrs_application": ""}, "cqrs_application", "is ''; accepted: letters"),
        ({"cqrs_command_id_ttl_s": "14"}, "cqrs_command_id_ttl_s", "is '14'; accepted: a whole"),
        ({"cqrs_command_id_ttl_s": 60}, "cqrs_command_id_ttl_s", "is 60; .* from 604800"),
        (
            {"cqrs_command_id_ttl_s": 60},
            "cqrs_command_id_ttl_s",
            "from 604800, which is cqrs_dead_letter_ttl_s",
        ),
        (
            {"cqrs_dead_letter_ttl_s": 2_000_000},
            "cqrs_dead_letter_ttl_s",
            "is 2000000; .* up to cqrs_command_id_ttl_s, which is 1209600 by default: set both",
        ),
        ({"broker_transport_options": "x=1"}, "broker_transport_options", "a dict of options"),
        ({"accept_content": ["pickle"]}, "accept_content", "a list with 'json' in it"),
        ({"task_protocol": 1}, "task_protocol", "is 1; accepted: 2"),
        (
            {"cqrs_event_store": "broker", "broker_url": "amqp://localhost"},
            "broker_transport",
            "found the transport 'amqp'",
        ),
        (
            {
                "cqrs_event_store": "broker",
                "broker_url": "redis+socket:///tmp/redis.sock",
                "broker_transport": "cqrs_celery.transport:Transport",
            },
            "broker_transport",
            "found the transport 'redis\\+socket'",
        ),
        (
            {"cqrs_event_store": "broker", "broker_url": "redis://localhost"},
            "broker_transport",
            r"Set broker_transport = 'cqrs_celery\.transport:Transport'",
        ),
    ],
)
def test_a_wrong_setting_names_itself_and_what_is_accepted(
    settings: dict[str, Any], setting: str, text: str
) -> None:
    with pytest.raises(InvalidSetting, match=text) as caught:
        _ = application(**settings).runtime
    assert caught.value.setting == setting
    assert caught.value.accepted


@pytest.mark.parametrize("name", [None, "my shop"])
def test_an_application_whose_name_does_not_do_is_told_where_it_comes_from(
    name: str | None,
) -> None:
    with pytest.raises(InvalidSetting, match=r"It is the name of the Celery app.*Celery\('shop'\)"):
        _ = CQRS(Celery(name, set_as_current=False)).settings


@pytest.mark.parametrize("broker", ["amqp://h//", "pyamqp://h//", "amqps://h//", "py-amqp"])
@pytest.mark.parametrize("options", [{}, {"confirm_publish": False}, {"max_retries": 3}])
def test_a_relay_over_rabbitmq_is_refused_unless_it_confirms(
    tmp_path: Path, broker: str, options: dict[str, Any]
) -> None:
    # given an application with a relay over RabbitMQ
    app = Celery("shop", broker=broker if "/" in broker else None, set_as_current=False)
    if broker == "py-amqp":
        app.conf.broker_transport = "pyamqp"
    app.conf.cqrs_event_store = f"sqlite:///{tmp_path / 'events.db'}"
    app.conf.broker_transport_options = options
    cqrs = CQRS(app)
    # when it is used, then it is told what to set
    with pytest.raises(InvalidSetting, match=r"{'confirm_publish': True}") as caught:
        _ = cqrs.store
    assert caught.value.setting == "broker_transport_options['confirm_publish']"
    # and with that, it works
    app.conf.broker_transport_options = {**options, "confirm_publish": True}
    assert cqrs.relay is None
    assert cqrs.store is not None
    assert cqrs.relay is not None


@pytest.mark.parametrize(
    ("broker", "store"),
    [("memory://", "sqlite:///{}"), ("amqp://h//", "memory://"), (None, "sqlite:///{}")],
    ids=["another broker", "no relay", "no broker"],
)
def test_what_sends_nothing_over_rabbitmq_needs_no_confirmation(
    tmp_path: Path, broker: str | None, store: str
) -> None:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.cqrs_event_store = store.format(tmp_path / "events.db")
    assert CQRS(app).store is not None


def test_with_a_namespace_settings_have_its_prefix_and_others_are_left_alone() -> None:
    def configured(**settings: Any) -> Celery:
        app = Celery("shop", set_as_current=False)
        app.config_from_object(SimpleNamespace(**settings), namespace="CELERY")
        return app

    settings = {"CELERY_CQRS_CACHE": "memory", "CQRS_CACHE": "another library's", "CQRS_X": 1}
    assert CQRS(configured(**settings)).settings.cache == "memory"
    with pytest.raises(InvalidSetting, match="did you mean 'CELERY_CQRS_CACHE'"):
        _ = CQRS(configured(CELERY_CQRS_CACH="memory")).settings


def test_an_application_that_names_no_store_keeps_events_in_the_broker() -> None:
    app = Celery("shop", broker="reliable-redis://localhost:1", set_as_current=False)
    settings = CQRS(app).settings
    assert (settings.event_store, settings.application) == ("broker", "shop")


def test_a_command_without_cqrs_app_raises_at_once() -> None:
    # given a process that has the command class, and no CQRS app
    script = """
        from cqrs_celery import Command
        from cqrs_celery.errors import NotConfigured

        class Ring(Command, name="bell.ring"):
            pass

        try:
            Ring().delay()
        except NotConfigured as error:
            print(error)
    """
    # when it sends one
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    # then the error says what is missing
    assert "Ring was sent, but no CQRS app exists in this process: create one" in run.stdout


def test_a_handler_without_cqrs_app_raises_at_once() -> None:
    script = """
        from cqrs_celery import Command, command_handler
        from cqrs_celery.errors import NotConfigured

        class Ring(Command, name="bell.ring"):
            pass

        @command_handler(Ring)
        def ring(command: Ring) -> None: ...

        try:
            ring.delay(Ring())
        except NotConfigured as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert "ring needs a CQRS app, but there is none in this process" in run.stdout
