"""given/when/then checks what an aggregate records, and says clearly what was wrong."""

import pytest

from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import AggregateNotConstructible
from cqrs_celery.messages.message import Event
from cqrs_celery.testing import given, when


class TellingItemCreated(Event):
    name: str


class TellingItemsCheckedIn(Event):
    count: int


class TellingItem(Aggregate):
    name: str = ""
    count: int = 0

    @classmethod
    def create(cls, id: str, name: str) -> "TellingItem":
        if not name:
            raise ValueError("an item has a name")
        item = cls(id)
        item.record(TellingItemCreated(name=name))
        return item

    def check_in(self, count: int) -> int:
        if count <= 0:
            raise ValueError(f"check in at least 1 item, not {count}")
        self.record(TellingItemsCheckedIn(count=count))
        return self.count

    @applies(TellingItemCreated)
    def _created(self, event: TellingItemCreated) -> None:
        self.name = event.name

    @applies(TellingItemsCheckedIn)
    def _checked_in(self, event: TellingItemsCheckedIn) -> None:
        self.count += event.count


CREATED = TellingItemCreated(name="bolt")


def test_the_expected_events_pass():
    given(TellingItem, "42", CREATED).when(lambda item: item.check_in(5)).then(
        TellingItemsCheckedIn(count=5)
    )


def test_a_method_of_the_class_may_be_named_with_its_arguments():
    given(TellingItem, "42").when(TellingItem.check_in, count=5).then(
        TellingItemsCheckedIn(count=5)
    )


def test_the_creation_of_an_aggregate_has_no_history():
    when(TellingItem.create, "42", name="bolt").then(CREATED)


def test_no_expected_events_means_none():
    given(TellingItem, "42", CREATED).when(lambda item: item.name).then()


def test_history_is_neither_pending_nor_new():
    outcome = given(TellingItem, "42", CREATED, TellingItemsCheckedIn(count=5)).when(
        TellingItem.check_in, 2
    )
    assert (outcome.aggregate.version, outcome.aggregate.count, outcome.result) == (2, 7, 7)
    assert outcome.aggregate.name == "bolt"


def test_one_history_serves_several_actions():
    item = given(TellingItem, "42", CREATED)
    item.when(TellingItem.check_in, 5).then(TellingItemsCheckedIn(count=5))
    item.when(TellingItem.check_in, 7).then(TellingItemsCheckedIn(count=7))


def test_the_expected_exception_is_returned():
    error = given(TellingItem, "42").when(TellingItem.check_in, 0).raises(ValueError, match="not 0")
    assert str(error) == "check in at least 1 item, not 0"


def test_a_creation_may_be_refused():
    when(TellingItem.create, "42", name="").raises(ValueError, match="has a name")


def test_other_events_fail_and_all_is_shown():
    # given
    outcome = given(TellingItem, "42", CREATED).when(TellingItem.check_in, 5)
    # when
    with pytest.raises(AssertionError) as failure:
        outcome.then(TellingItemsCheckedIn(count=6), CREATED)
    # then
    assert str(failure.value) == (
        "given    TellingItemCreated(name='bolt')\n"
        "when     TellingItem.check_in(<TellingItem-42 at version 1, 0 pending>, 5)\n"
        "expected TellingItemsCheckedIn(count=6)\n"
        "         TellingItemCreated(name='bolt')\n"
        "found    TellingItemsCheckedIn(count=5)"
    )


def test_events_where_none_were_expected_fail():
    outcome = given(TellingItem, "42").when(TellingItem.check_in, 5)
    with pytest.raises(AssertionError, match=r"expected nothing\nfound    TellingItemsCheckedIn"):
        outcome.then()


def test_nothing_where_events_were_expected_fails():
    outcome = given(TellingItem, "42").when(lambda item: item.name)
    with pytest.raises(AssertionError, match="found    nothing"):
        outcome.then(CREATED)


def test_an_exception_where_events_were_expected_fails_and_is_the_cause():
    outcome = given(TellingItem, "42").when(TellingItem.check_in, 0)
    with pytest.raises(AssertionError, match="found    ValueError: check in at least") as failure:
        outcome.then(TellingItemsCheckedIn(count=0))
    assert isinstance(failure.value.__cause__, ValueError)


def test_events_where_an_exception_was_expected_fail():
    outcome = given(TellingItem, "42").when(TellingItem.check_in, 5)
    with pytest.raises(
        AssertionError, match=r"expected ValueError\nfound    TellingItemsCheckedIn\(count=5\)"
    ):
        outcome.raises(ValueError)


@pytest.mark.parametrize(("expected", "match"), [(KeyError, ""), (ValueError, "something else")])
def test_another_exception_or_text_fails(expected, match):
    outcome = given(TellingItem, "42").when(TellingItem.check_in, 0)
    with pytest.raises(AssertionError, match=f"expected {expected.__name__}"):
        outcome.raises(expected, match=match)


def test_the_aggregate_of_a_refused_creation_is_not_to_be_had():
    outcome = when(TellingItem.create, "42", name="")
    with pytest.raises(AssertionError, match="found    ValueError: an item has a name"):
        outcome.aggregate  # noqa: B018


def test_an_aggregate_that_can_not_be_built_fails_as_it_would_in_a_session():
    class TellingDemanding(Aggregate):
        def __init__(self, id: str, name: str) -> None:
            super().__init__(id)

    with pytest.raises(AggregateNotConstructible):
        given(TellingDemanding, "42").when(lambda item: item)
