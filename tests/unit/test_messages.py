"""Messages are typed, frozen, registered by name, and become JSON and back."""

import contextlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_celery.errors import (
    ConfigurationError,
    DuplicateRegistration,
    MalformedMessage,
    NotConfigured,
    RegistrationError,
    ReservedFieldName,
    UnknownMessageType,
)
from cqrs_celery.messages.class_options import ACCEPTED, FIXED
from cqrs_celery.messages.message import Command, Event, Message, MessageMeta, Query
from cqrs_celery.messages.registry import Registry, registry
from cqrs_celery.messages.sender import use_sender
from cqrs_celery.messages.serializer import Encoded, Serializer


class MessagesItemCreated(Event):
    name: str
    count: int = 0


class MessagesItemCreatedLater(Event, name="MessagesItemCreated", version=2):
    title: str


class MessagesCheckInItems(Command, name="messages.check_in_items"):
    id: str
    count: int


class Address(msgspec.Struct, frozen=True):
    street: str
    number: int | None = None


class MessagesEverything(Event):
    text: str
    number: int
    fraction: float
    truth: bool
    moment: datetime
    price: Decimal
    key: UUID
    lines: list[str]
    counts: dict[str, int]
    address: Address
    nothing: str | None = None


@pytest.fixture
def serializer() -> Serializer:
    return Serializer("shop")


# Registration


def test_a_message_is_registered_under_its_class_name_and_version_one():
    entry = MessagesItemCreated.__registered__
    assert (entry.kind, entry.name, entry.version, entry.cls) == (
        "event",
        "MessagesItemCreated",
        1,
        MessagesItemCreated,
    )


def test_a_base_class_with_its_result_registers_nothing():
    # given
    known = {entry.cls for entry in registry.subclasses(Message)}

    # when
    class AnsweredCommand(Command[int], name="messages.answered_command"):
        pass

    class AnsweredQuery(Query[list[str]], name="messages.answered_query"):
        pass

    # then
    found = {entry.cls for entry in registry.subclasses(Message)}
    assert found - known == {AnsweredCommand, AnsweredQuery}


def test_a_name_without_a_dot_belongs_to_the_application_that_uses_it():
    assert MessagesItemCreated.__registered__.full_name("shop") == "shop.MessagesItemCreated"
    assert MessagesCheckInItems.__registered__.full_name("shop") == "messages.check_in_items"


def test_two_classes_with_one_name_are_refused_and_both_are_named():
    # given
    class First(Event, name="messages.taken"):
        pass

    # when
    with pytest.raises(DuplicateRegistration) as refused:

        class Second(Event, name="messages.taken"):
            pass

    # then
    text = str(refused.value)
    assert "'messages.taken'" in text
    assert "First" in text
    assert "Second" in text
    assert text.count("test_messages.py:") >= 1


def test_classes_of_one_name_in_two_modules_are_two_classes():
    MessageMeta("Twin", (Event,), {"__module__": "one"}, name="messages.twin")
    with pytest.raises(DuplicateRegistration, match=r"one\.Twin and by other\.Twin"):
        MessageMeta("Twin", (Event,), {"__module__": "other"}, name="messages.twin")


@pytest.mark.timeout(10)
def test_aliases_that_lead_in_a_circle_lead_nowhere():
    own = Registry()
    own.add("event", "shop.one", 2, MessagesItemCreated, aliases=("shop.other",))
    own.add("event", "shop.other", 3, MessagesItemCreatedLater, aliases=("shop.one",))
    for name in ("shop.one", "shop.other"):
        with pytest.raises(UnknownMessageType, match="version 1"):
            own.resolve("event", name, 1, "shop")


def test_one_name_may_have_several_versions_and_several_kinds():
    class V1(Event, name="messages.versioned"):
        pass

    class V2(Event, name="messages.versioned", version=2):
        pass

    class Ask(Query, name="messages.versioned"):
        pass

    assert registry.find("event", "messages.versioned", 1, "shop").cls is V1
    assert registry.find("event", "messages.versioned", 2, "shop").cls is V2
    assert registry.find("query", "messages.versioned", 1, "shop").cls is Ask


def test_defining_a_class_again_replaces_it_as_reloading_a_module_does():
    def define() -> type[Event]:
        class Reloaded(Event, name="messages.reloaded"):
            pass

        return Reloaded

    define()
    newest = define()
    assert registry.find("event", "messages.reloaded", 1, "shop").cls is newest


@pytest.mark.parametrize("name", ["with space", ".x", "x.", "a..b", "1.x", "ü"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(RegistrationError, match="expected letters, digits"):
        MessageMeta("Odd", (Event,), {}, name=name)


@pytest.mark.parametrize("alias", ["with space", "", 5])
def test_an_alias_that_is_no_name_is_refused(alias):
    with pytest.raises(RegistrationError, match="expected letters, digits"):
        MessageMeta(
            "Odd", (Event,), {}, name="messages.odd_alias", aliases=("messages.fine", alias)
        )


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(RegistrationError, match="expected a whole number from 1"):
        MessageMeta("Odd", (Event,), {}, name="messages.odd_version", version=version)


def test_a_field_that_hides_a_name_of_the_base_class_is_refused():
    with pytest.raises(ReservedFieldName, match="'delay'") as refused:

        class Hiding(Command):
            delay: int  # type: ignore[assignment]

    assert refused.value.field == "delay"


def test_a_private_field_is_refused():
    with pytest.raises(ReservedFieldName, match="'_secret'"):

        class Private(Event):
            _secret: int


def test_an_event_may_have_fields_that_only_commands_keep_for_themselves():
    class MessagesDelayed(Event):
        delay: int
        name: str
        version: int

    assert MessagesDelayed(delay=1, name="x", version=3).version == 3


def test_a_command_knows_its_aggregate_and_key():
    class MessagesForAggregate(Command, aggregate=dict, key="id"):
        id: str

    assert MessagesForAggregate.__aggregate__ is dict
    assert MessagesForAggregate.__key__ == "id"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"aggregate": dict}, "expected both"),
        ({"key": "id"}, "expected both"),
        ({"aggregate": dict, "key": "ident"}, "has the key 'ident', but its fields are id"),
    ],
)
def test_an_aggregate_and_its_key_go_together(options, expected):
    with pytest.raises(RegistrationError, match=expected):
        MessageMeta("Odd", (Command,), {"__annotations__": {"id": str}}, **options)


def test_only_a_command_is_for_an_aggregate():
    with pytest.raises(RegistrationError, match="only a command may have both"):

        class MessagesEventForAggregate(Event, aggregate=dict, key="id"):
            id: str


def test_subclasses_of_a_base_are_found():
    # given
    class MessagesStock(Event):
        pass

    class MessagesStockMoved(MessagesStock):
        pass

    # then
    assert {entry.cls for entry in registry.subclasses(MessagesStock)} == {
        MessagesStock,
        MessagesStockMoved,
    }


# Values


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("array_like", True, "fields are stored by name, so that they may come and go"),
        ("eq", False, "messages are values"),
        ("forbid_unknown_fields", True, "unknown_fields='refuse' says so"),
        ("frozen", False, "what was sent or recorded never changes"),
        ("kw_only", False, "fields are given by name, so that their order may change"),
        (
            "omit_defaults",
            True,
            "a value that was left out would be read as another one once the default changes",
        ),
        ("tag", True, "its name says what it is"),
        ("tag_field", "kind", "its name says what it is"),
    ],
)
def test_an_option_that_breaks_what_a_message_promises_is_refused(option, value, reason):
    fixed = FIXED[option][0]
    with pytest.raises(RegistrationError) as refused:
        MessageMeta("Odd", (Event,), {"__module__": "shop"}, name="messages.odd", **{option: value})
    assert str(refused.value) == (
        f"shop.Odd has {option} = {value!r}; a message has {option} = {fixed!r}: {reason}."
        " Remove it."
    )
    # and the value that it has anyway may be given
    MessageMeta("Even", (Event,), {}, name="messages.even", **{option: fixed})


def test_an_option_that_comes_with_another_base_is_refused_too():
    class Compact(msgspec.Struct, array_like=True):
        pass

    class Brief(msgspec.Struct, omit_defaults=True):
        pass

    with pytest.raises(RegistrationError, match=r"test_messages\.Short has omit_defaults = True"):
        MessageMeta("Short", (Event, Brief), {"__module__": __name__}, name="messages.short")
    with pytest.raises(RegistrationError, match=r"test_messages\.Both has array_like = True"):
        MessageMeta("Both", (Event, Compact), {"__module__": __name__}, name="messages.both")


def test_a_class_argument_that_does_not_exist_is_refused():
    with pytest.raises(RegistrationError) as refused:
        MessageMeta("Typo", (Event,), {"__module__": "shop"}, nmae="messages.typo")
    assert str(refused.value) == (
        "shop.Typo has the class argument 'nmae', which does not exist; did you mean 'name'? There"
        " are: name, version, aggregate, key, aliases, unknown_fields, cache_hash, dict, gc,"
        " order, rename, repr_omit_defaults, weakref."
    )


def test_a_message_with_every_accepted_option_comes_back(serializer):
    options = dict.fromkeys(ACCEPTED, True) | {"rename": "camel"}

    class Everything(Event, name="messages.everything", **options):
        shelf_number: int = 1
        article: str = "bolt"

    for message in (Everything(), Everything(shelf_number=2)):
        assert serializer.decode("event", *serializer.encode(message)) == message
        assert serializer.from_plain("event", serializer.to_plain(message)) == message


def test_a_message_is_frozen():
    item = MessagesItemCreated(name="bolt")
    with pytest.raises(AttributeError):
        item.name = "nut"  # type: ignore[misc]


def test_messages_are_equal_by_type_and_content():
    assert MessagesItemCreated(name="bolt") == MessagesItemCreated(name="bolt", count=0)
    assert MessagesItemCreated(name="bolt") != MessagesItemCreated(name="nut")


def test_fields_are_given_by_name_so_that_their_order_may_change():
    with pytest.raises(TypeError):
        MessagesItemCreated("bolt")  # type: ignore[call-arg]


def test_a_message_tells_celerys_json_encoder_what_it_is():
    assert MessagesCheckInItems(id="42", count=5).__json__() == {
        "type": "messages.check_in_items",
        "version": 1,
        "data": {"id": "42", "count": 5},
    }


def test_delay_without_an_app_says_so_at_once():
    use_sender(None)
    with pytest.raises(NotConfigured, match="MessagesCheckInItems was sent, but no CQRS app"):
        MessagesCheckInItems(id="42", count=5).delay()


# Encoding and decoding


@pytest.mark.parametrize("application", ["", "  "])
def test_a_blank_application_is_refused(application):
    """ACCEPTANCE 67."""
    with pytest.raises(ConfigurationError, match="blank"):
        Serializer(application)


def test_a_message_is_stored_under_its_full_name_with_its_own_fields_only(serializer):
    assert serializer.encode(MessagesItemCreated(name="bolt")) == Encoded(
        "shop.MessagesItemCreated", 1, b'{"name":"bolt","count":0}'
    )


def test_the_version_says_which_class_reads_it(serializer):
    later = MessagesItemCreatedLater(title="bolt")
    assert serializer.decode("event", *serializer.encode(later)) == later


def test_a_message_of_another_application_is_read_under_its_full_name():
    # given: a name with a dot, which every application knows by that name
    plain = Serializer("shop").to_plain(MessagesCheckInItems(id="42", count=5))
    # then
    assert Serializer("elsewhere").from_plain("command", plain) == MessagesCheckInItems(
        id="42", count=5
    )


def test_a_message_without_an_application_is_unknown_to_others():
    encoded = Serializer("shop").encode(MessagesItemCreated(name="bolt"))
    with pytest.raises(UnknownMessageType):
        Serializer("elsewhere").decode("event", *encoded)


def test_a_field_with_a_default_may_be_missing_and_an_unknown_one_is_passed_over(serializer):
    data = b'{"name":"bolt","colour":"grey"}'
    assert serializer.decode("event", "shop.MessagesItemCreated", 1, data) == MessagesItemCreated(
        name="bolt"
    )


def test_an_unknown_name_is_an_error_that_names_it(serializer):
    with pytest.raises(UnknownMessageType, match=r"'shop\.Nobody', version 1") as refused:
        serializer.decode("event", "shop.Nobody", 1, b"{}")
    assert (refused.value.name, refused.value.version) == ("shop.Nobody", 1)


def test_an_unknown_version_is_an_error_that_says_which_are_known(serializer):
    with pytest.raises(UnknownMessageType, match="MessagesItemCreated version 2") as refused:
        serializer.decode("event", "shop.MessagesItemCreated", 3, b"{}")
    assert refused.value.version == 3


def test_a_name_is_known_for_its_kind_only(serializer):
    with pytest.raises(UnknownMessageType):
        serializer.decode("command", "shop.MessagesItemCreated", 1, b'{"name":"bolt"}')


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "truncated"),
        (b"not json", "malformed"),
        (b'{"name":"bo', "truncated"),
        (b"[]", "array"),
        (b"null", "null"),
        (b"{}", "`name`"),
        (b'{"name":5}', r"\$\.name"),
        (b'{"name":"bolt","count":"5"}', r"\$\.count"),
        (b'{"name":"bolt","count":null}', r"\$\.count"),
        (b'{"name":"\xff\xfe"}', "utf-8|UTF-8"),
        (b"\x80\x04\x95", "malformed|utf"),
    ],
)
def test_bytes_that_do_not_fit_are_an_error_that_says_where(serializer, data, where):
    with pytest.raises(MalformedMessage, match=where) as refused:
        serializer.decode("event", "shop.MessagesItemCreated", 1, data)
    assert (refused.value.name, refused.value.version) == ("shop.MessagesItemCreated", 1)


@pytest.mark.parametrize(
    "plain", [None, 5, "text", [], {}, {"type": "x", "version": 1}, {"data": {}}]
)
def test_a_task_argument_that_is_no_message_is_an_error(serializer, plain):
    with pytest.raises(MalformedMessage, match="expected as an object with type, version and data"):
        serializer.from_plain("command", plain)


def test_a_task_argument_whose_values_do_not_fit_is_an_error_that_says_where(serializer):
    plain = {"type": "messages.check_in_items", "version": 1, "data": {"id": "42", "count": "5"}}
    with pytest.raises(MalformedMessage, match=r"\$\.count"):
        serializer.from_plain("command", plain)


def test_a_value_that_json_has_no_form_for_is_an_error_when_encoding(serializer):
    class MessagesAnything(Event):
        value: object

    for write in (serializer.encode, serializer.to_plain):
        with pytest.raises(MalformedMessage, match=r"MessagesAnything, version 1, can't be"):
            write(MessagesAnything(value=object()))


@pytest.mark.parametrize("wrong", [{"name": 5}, {"name": None}, {"name": "bolt", "count": "5"}])
def test_a_message_that_could_not_be_read_again_is_not_written(serializer, wrong):
    for write in (serializer.encode, serializer.to_plain):
        with pytest.raises(MalformedMessage, match="can't be written as JSON that can be read"):
            write(MessagesItemCreated(**wrong))


def test_text_that_is_not_unicode_is_not_written(serializer):
    with pytest.raises(MalformedMessage, match="surrogates"):
        serializer.encode(MessagesItemCreated(name="\ud800"))


def test_not_a_number_is_not_written(serializer):
    class MessagesMeasured(Event):
        value: float

    with pytest.raises(MalformedMessage, match=r"\$\.value"):
        serializer.encode(MessagesMeasured(value=float("nan")))


def test_a_message_error_names_no_python_path(serializer):
    # given: stored data, which outlives modules
    encoded = serializer.encode(MessagesItemCreated(name="bolt"))
    # then
    assert "test_messages" not in repr(encoded)


def test_a_registry_of_its_own_knows_only_what_it_was_given():
    own = Registry()
    own.add("event", "only", 1, MessagesItemCreated)
    serializer = Serializer("shop", registry=own)
    assert serializer.decode("event", "shop.only", 1, b'{"name":"x"}').name == "x"
    with pytest.raises(UnknownMessageType):
        serializer.decode("event", "shop.MessagesItemCreated", 1, b'{"name":"x"}')


INT64 = st.integers(-(2**63), 2**63 - 1)

everything = st.builds(
    MessagesEverything,
    text=st.text(),
    number=INT64,
    fraction=st.floats(allow_nan=False, allow_infinity=False),
    truth=st.booleans(),
    moment=st.datetimes(timezones=st.just(UTC)),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    key=st.uuids(),
    lines=st.lists(st.text()),
    counts=st.dictionaries(st.text(), INT64),
    address=st.builds(Address, street=st.text(), number=st.none() | INT64),
    nothing=st.none() | st.text(),
)


@given(everything)
def test_every_message_comes_back_from_its_bytes(message):
    serializer = Serializer("shop")
    assert serializer.decode("event", *serializer.encode(message)) == message


@given(everything)
def test_every_message_comes_back_from_a_task_argument(message):
    serializer = Serializer("shop")
    plain = json.loads(json.dumps(serializer.to_plain(message)))
    assert serializer.from_plain("event", plain) == message


@given(st.binary())
def test_whatever_the_bytes_are_the_error_is_ours(data):
    with contextlib.suppress(MalformedMessage):
        Serializer("shop").decode("event", "shop.MessagesEverything", 1, data)


def test_a_base_without_a_kind_of_its_own_is_a_message():
    class MessagesPriceListPrinted(Message):
        pages: int

    assert MessagesPriceListPrinted.__registered__.kind == "message"
