"""Options that do nothing, or that can't be, are refused where they are given."""

from __future__ import annotations

import inspect
import re
from typing import Any

import kombu.connection
import pytest
from celery import Celery
from kombu.transport import redis as stock
from kombu.transport import virtual

from cqrs_celery import CQRS, Command, Event, command_handler, subscribes
from cqrs_celery.errors import InvalidSetting, RegistrationError
from cqrs_celery.transport.channel import Channel
from cqrs_celery.transport.options import KOMBU_OPTIONS, OPTIONS, TEXT_OPTIONS, check_options
from cqrs_celery.transport.sentinel import SentinelChannel
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
        ("queue", "keeps for itself. Remove it: a command's queue is set by task_routes"),
        ("acks_late", "keeps for itself"),
        ("_app", "no such option"),
        ("lock_wait", "did you mean 'lock_wait_s'"),
        ("retry_backof_max", "did you mean 'retry_backoff_max'"),
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
    ("option", "meant"),
    [
        ("order", "ordered"), ("batches", "batch"), ("on_dead_letters", "on_dead_letter"),
        ("dead_letter_ttl", "dead_letter_ttl_s"), ("subscriptions", "subscription"),
    ],
)  # fmt: skip
def test_a_misspelt_option_of_a_subscription_is_told_which_one_is_meant(
    option: str, meant: str
) -> None:
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(RegistrationError, match=f"did you mean '{meant}'"):

        @subscribes(OptionsHappened, **options)
        def handle(event: OptionsHappened) -> None: ...


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_s", 0), ("lease_s", "30"), ("lease_s", True), ("lease_s", None),
        ("max_deliveries", 0), ("max_deliveries", 2.5), ("max_run", 0), ("dedup_ttl_s", -1),
        ("queue_order_strategy", "sortde"), ("queue_order_strategy", None),
        ("priority_steps", 5), ("priority_steps", []), ("priority_steps", ["0"]),
        ("priority_steps", [3, 0]), ("socket_timeout", "5"), ("socket_timeout", 0),
        ("socket_connect_timeout", -1), ("socket_keepalive_options", [1]),
        ("max_connections", "10"), ("max_connections", 0), ("health_check_interval", None),
        ("global_keyprefix", None), ("sep", ""), ("client_name", 5), ("deadletter_queue", True),
        ("sentinel_kwargs", "none"), ("lock_folder", "locks"), ("lock_folder", 5),
    ],
)  # fmt: skip
def test_a_transport_option_that_can_t_be_names_what_is_accepted(option: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match="accepted: ") as refused:
        check_options({option: value})
    assert refused.value.setting == f"broker_transport_options['{option}']"
    assert repr(value) in str(refused.value)
    assert refused.value.accepted in str(refused.value)


@pytest.mark.parametrize("options", [None, "lease_s=5", ["lease_s"]])
def test_transport_options_that_are_no_dict_are_refused(options: Any) -> None:
    with pytest.raises(InvalidSetting, match="accepted: a dict") as refused:
        check_options(options)
    assert refused.value.setting == "broker_transport_options"


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("leases_s", "lease_s"), ("socket_timout", "socket_timeout"),
        ("visibilty_timeout", "visibility_timeout"), ("global_key_prefix", "global_keyprefix"),
        ("max_retry", "max_retries"),
    ],
)  # fmt: skip
def test_a_misspelt_transport_option_names_the_one_that_was_meant(
    misspelt: str, meant: str
) -> None:
    with pytest.raises(InvalidSetting, match=f"did you mean '{meant}'"):
        check_options({misspelt: 30})


def test_options_of_kombu_and_of_others_are_let_pass() -> None:
    check_options(
        {
            "max_connections": 5, "max_retries": 3, "polling_interval": 0.1, "master_name": "shop",
            "socket_timeout": None, "socket_connect_timeout": 0.5, "priority_steps": (0, 5),
            "confirm_publish": True, "whatever": 1,
        }
    )  # fmt: skip


def test_every_option_has_a_default_that_it_accepts() -> None:
    names = Channel.from_transport_options
    check_options({name: getattr(Channel, name) for name in names})


def test_every_option_that_kombu_reads_is_known() -> None:
    sources = [inspect.getsource(module) for module in (kombu.connection, stock, virtual.base)]
    pattern = r"""transport_opt(?:ion)?s(?:\.get\(\s*|\[)['"](\w+)"""
    read = {name for source in sources for name in re.findall(pattern, source)}
    assert {"health_check_interval", "max_retries", "polling_interval"} <= read
    assert read <= KOMBU_OPTIONS
    assert set(SentinelChannel.from_transport_options) <= {*KOMBU_OPTIONS, *OPTIONS, *TEXT_OPTIONS}


def test_a_wrong_transport_option_is_refused_before_anything_connects() -> None:
    options = {"queue_order_strategy": "sortde"}
    with pytest.raises(InvalidSetting, match="'sortde'; accepted: 'round_robin'"):
        _ = connection(broker_url="redis://nowhere", broker_transport_options=options).transport


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
