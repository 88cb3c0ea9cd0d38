"""Options that do nothing, or that can't be, are refused where they are given."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS, Command, Event, command_handler, subscribes
from cqrs_celery.errors import InvalidSetting, RegistrationError
from cqrs_celery.transport.channel import Channel
from cqrs_celery.transport.options import OPTIONS, check_options
from cqrs_celery.transport.transport import Transport
from cqrs_celery.workers.registration import subscriber_of


class OptionsCommand(Command):
    pass


class OptionsHappened(Event):
    pass


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("nonsense", "no such option"),
        ("rate_limits", "did you mean 'rate_limit'"),
        ("locks", "no such option"),
        ("queue", "keeps for itself"),
        ("acks_late", "keeps for itself"),
        ("_app", "no such option"),
    ],
)
def test_a_task_option_that_would_do_nothing_is_refused(option: str, text: str) -> None:
    def handle(command: OptionsCommand) -> None:
        pass

    options: dict[str, Any] = {option: "x"}
    with pytest.raises(RegistrationError, match=text) as refused:
        command_handler(OptionsCommand, **options)(handle)
    assert option in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_s", 0), ("lease_s", "30"), ("lease_s", True), ("lease_s", None),
        ("max_deliveries", 0), ("max_deliveries", 2.5), ("max_run", 0), ("dedup_ttl_s", -1),
    ],
)  # fmt: skip
def test_a_transport_option_that_can_t_be_names_what_is_accepted(option: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match="accepted: a ") as refused:
        check_options({option: value}, known=Channel.from_transport_options)
    assert refused.value.setting == f"broker_transport_options['{option}']"


def test_a_misspelt_transport_option_names_the_one_that_was_meant() -> None:
    with pytest.raises(InvalidSetting, match="did you mean 'lease_s'"):
        check_options({"leases_s": 30}, known=Channel.from_transport_options)


def test_options_of_kombu_and_of_others_are_let_pass() -> None:
    check_options(
        {"max_connections": 5, "max_retries": 3, "whatever": 1},
        known=Channel.from_transport_options,
    )


def test_every_option_has_a_default_that_it_accepts() -> None:
    check_options({name: getattr(Channel, name) for name in OPTIONS}, known=())


def connection(**settings: Any) -> Any:
    app = Celery("tls")
    app.conf.update(broker_transport="cqrs_celery.transport:Transport", **settings)
    return app.connection_for_write()


def test_a_url_that_says_tls_is_refused_where_kombu_would_talk_plain_text() -> None:
    with pytest.raises(InvalidSetting, match="reliable-rediss://") as refused:
        _ = connection(broker_url="rediss://:secret@broker.example:6380/0").transport
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": "redis://broker.example"},
        {"broker_url": "rediss://broker.example", "broker_use_ssl": {"ssl_cert_reqs": "required"}},
        {"broker_url": "rediss://broker.example?ssl_cert_reqs=required"},
    ],
)
def test_a_url_whose_words_are_kept_is_not(settings: dict[str, Any]) -> None:
    assert type(connection(**settings).transport) is Transport


def test_a_dead_letter_is_tried_after_5_minutes_then_hourly_at_most_for_a_week() -> None:
    """What holds where no setting says otherwise, as it was with the predecessor."""

    @subscribes(OptionsHappened, subscription="options.list")
    def on_options(event: OptionsHappened) -> None:
        """Take it."""

    app = Celery("options", changes={"cqrs_event_store": "memory://"}, set_as_current=False)
    cqrs = CQRS(app)
    policy = subscriber_of(on_options.definition, cqrs.runtime).dead_letters
    assert (policy.kind, policy.first_redrive_s, policy.most_redrive_s) == ("block", 300, 3600)
    assert policy.ttl_s == 168 * 3600
