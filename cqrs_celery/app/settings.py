"""The settings: they are in Celery's configuration under `cqrs_…`, and are checked at start."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import celery

from ..backends.sql.backends import backend_named, sql_backends
from ..errors import InvalidSetting
from ..messages.compression import ALGORITHMS, THRESHOLD_BYTES, Compression
from ..messages.serializer import MAX_MESSAGE_BYTES
from ..store.events import DeadLetterPolicy
from ..whole_numbers import is_whole

#: 14 days, in seconds.
COMMAND_ID_TTL_S = 14 * 24 * 3600

#: 7 days, in seconds: the time for which a dead letter may be tried again.
DEAD_LETTER_TTL_S = 7 * 24 * 3600

#: 5 minutes and an hour, in seconds: the first and the longest wait before a dead letter is tried
#: again.
FIRST_REDRIVE_S, MOST_REDRIVE_S = 300, 3600

#: The number of events behind a dead letter above which an alarm is raised.
CROWD = 10_000

#: The event store in the broker's own Redis.
BROKER = "broker"
#: The event store in this process's memory, for tests.
MEMORY = "memory://"

#: When snapshots are taken: at the commit, in a task, or never.
ON_COMMIT, IN_A_TASK, OFF = "commit", "task", "off"
#: Where aggregates are cached, besides `OFF`.
IN_MEMORY, IN_REDIS, IN_BOTH = "memory", "redis", "memory+redis"

#: The number of aggregates that are cached in a process's memory.
CACHE_SIZE = 1000
#: 10 minutes, in seconds: the time for which an unused aggregate stays cached.
CACHE_TTL_S = 600

#: The beginning of the URL of one of Django's databases.
DJANGO = "django://"

#: The names of all settings.
NAMES = (
    "cqrs_application",
    "cqrs_event_store",
    "cqrs_event_store_read_url",
    "cqrs_command_id_ttl_s",
    "cqrs_redrive_first_s",
    "cqrs_redrive_max_s",
    "cqrs_dead_letter_ttl_s",
    "cqrs_dead_letter_crowd",
    "cqrs_snapshots",
    "cqrs_cache",
    "cqrs_cache_size",
    "cqrs_cache_ttl_s",
    "cqrs_compression",
    "cqrs_compression_threshold_bytes",
    "cqrs_max_message_bytes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of an application.

    Attributes:
        application: `cqrs_application`; put in front of names that have no dot. Default: the
            Celery application's name.
        event_store: `cqrs_event_store`; "broker" (default), "memory://", a SQL database's URL, or
            one of Django's databases, "django://default".
        event_store_read_url: `cqrs_event_store_read_url`; the URL of a replica of that database.
        command_id_ttl_s: `cqrs_command_id_ttl_s`; seconds for which a command is remembered, so
            that it has its effect once. Default 14 days, at least as long as dead letters are kept.
        dead_letters: the policy of the settings `cqrs_redrive_first_s`, `cqrs_redrive_max_s`,
            `cqrs_dead_letter_ttl_s` and `cqrs_dead_letter_crowd`.
        snapshots: `cqrs_snapshots`; "commit" (default), "task" or "off".
        cache: `cqrs_cache`; "off" (default), "memory", "redis" or "memory+redis".
        cache_size: `cqrs_cache_size`; the number of aggregates that a process caches in memory.
            Default 1,000.
        cache_ttl_s: `cqrs_cache_ttl_s`; seconds for which an unused aggregate stays cached.
            Default 10 minutes.
        compression: `cqrs_compression`; "gzip" or "zstd" for JSON above
            `cqrs_compression_threshold_bytes`. Default: none.
        max_message_bytes: `cqrs_max_message_bytes`; the most bytes of JSON that a command, a
            message or an event may have. Default 16 MiB.
    """

    application: str
    event_store: str
    event_store_read_url: str | None
    command_id_ttl_s: int
    dead_letters: DeadLetterPolicy
    snapshots: str = ON_COMMIT
    cache: str = OFF
    cache_size: int = CACHE_SIZE
    cache_ttl_s: int = CACHE_TTL_S
    compression: Compression | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES


def read_settings(app: celery.Celery) -> Settings:
    """Return the checked settings of a Celery application.

    Raises:
        InvalidSetting: a setting has a value that is not accepted, or there is no such setting.
        MissingDependency: the settings name zstd, and it is not installed.
    """
    # Until Celery's configuration is read, app.conf is a pending object, which lacks some keys and
    # the prefix. Reading it replaces app.conf.
    len(app.conf)
    conf: Mapping[str, Any] = app.conf
    _check_names(conf)
    dead_letters = DeadLetterPolicy(
        "block",
        _seconds(conf, "cqrs_redrive_first_s", FIRST_REDRIVE_S, at_least=1),
        _seconds(conf, "cqrs_redrive_max_s", MOST_REDRIVE_S, at_least=1),
        _seconds(conf, "cqrs_dead_letter_ttl_s", DEAD_LETTER_TTL_S, at_least=1),
        _whole(conf, "cqrs_dead_letter_crowd", CROWD, at_least=1, what="a whole number"),
    )
    event_store = _event_store(conf)
    return Settings(
        application=_application(app),
        event_store=event_store,
        event_store_read_url=_read_url(conf, event_store),
        command_id_ttl_s=_command_id_ttl_s(conf, int(dead_letters.ttl_s)),
        dead_letters=dead_letters,
        snapshots=_one_of(conf, "cqrs_snapshots", ON_COMMIT, (ON_COMMIT, IN_A_TASK, OFF)),
        cache=_one_of(conf, "cqrs_cache", OFF, (OFF, IN_MEMORY, IN_REDIS, IN_BOTH)),
        cache_size=_whole(
            conf, "cqrs_cache_size", CACHE_SIZE, at_least=1, what="a whole number of aggregates"
        ),
        cache_ttl_s=_seconds(conf, "cqrs_cache_ttl_s", CACHE_TTL_S, at_least=1),
        compression=_compression(conf),
        max_message_bytes=_whole(
            conf,
            "cqrs_max_message_bytes",
            MAX_MESSAGE_BYTES,
            at_least=1024,
            what="a whole number of bytes",
        ),
    )


def _check_names(conf: Mapping[str, Any]) -> None:
    # With a namespace, such as CELERY for Django's settings, Celery reads cqrs_cache from
    # CELERY_CQRS_CACHE, and CQRS_CACHE may belong to another package. Without one, Celery ignores
    # CQRS_CACHE.
    prefix = str(getattr(conf, "prefix", None) or "")
    cased = str.upper if prefix.isupper() else str.lower
    known = [prefix + cased(name) for name in NAMES]
    start = prefix + cased("cqrs_")
    for key in conf:
        if key in known or key in NAMES:
            continue
        is_upper = not prefix and key.isupper() and key.lower() in NAMES
        if is_upper or key.startswith((start, "cqrs_")):
            candidates = known if key.startswith(start) else NAMES
            close = difflib.get_close_matches(key.lower() if is_upper else key, candidates, n=1)
            raise InvalidSetting(
                f"there is no setting {key!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
                + f" Settings are: {', '.join(NAMES)}.",
                setting=key,
                accepted=", ".join(NAMES),
            )


def _application(app: celery.Celery) -> str:
    value = app.conf.get("cqrs_application")
    name = (app.main or "") if value is None else value
    accepted = "letters, digits, '_' and '-'"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        if value is None:
            accepted += ". It is the name of the Celery app, Celery('shop'), unless it is set"
        raise _invalid("cqrs_application", name, accepted)
    return name


def _event_store(conf: Mapping[str, Any]) -> str:
    value = conf.get("cqrs_event_store", BROKER)
    if value not in (BROKER, MEMORY) and not _is_sql(value) and not _is_of_django(value):
        urls = [repr(one.example) for one in sql_backends()]
        accepted = f"{', '.join((repr(BROKER), repr(MEMORY), *urls))} or 'django://…'"
        raise _invalid("cqrs_event_store", _shown(value), accepted)
    return str(value)


def _read_url(conf: Mapping[str, Any], event_store: str) -> str | None:
    value = conf.get("cqrs_event_store_read_url")
    if value is None:
        return None
    if not (_is_sql(value) and _is_sql(event_store)):
        raise _invalid(
            "cqrs_event_store_read_url",
            _shown(value),
            "the URL of a replica, where cqrs_event_store is the URL of a SQL database",
        )
    return str(value)


def _is_of_django(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(DJANGO)


def _is_sql(value: Any) -> bool:
    scheme, found, _ = str(value).partition("://")
    if not isinstance(value, str) or not found:
        return False
    return backend_named(scheme.partition("+")[0]) is not None


def _shown(value: Any) -> Any:
    """Return a URL without the part that may contain a password."""
    scheme, found, _ = str(value).partition("://")
    return f"{scheme}://…" if found else value


def _one_of(conf: Mapping[str, Any], name: str, default: str, accepted: tuple[str, ...]) -> str:
    value = conf.get(name, default)
    if value not in accepted:
        raise _invalid(name, value, " or ".join(map(repr, accepted)))
    return str(value)


def _compression(conf: Mapping[str, Any]) -> Compression | None:
    name, least = "cqrs_compression_threshold_bytes", 1
    threshold = _whole(conf, name, THRESHOLD_BYTES, at_least=least, what="a whole number of bytes")
    algorithm = conf.get("cqrs_compression")
    if algorithm is None:
        return None
    if algorithm not in ALGORITHMS:
        raise _invalid("cqrs_compression", algorithm, "None, 'gzip' or 'zstd'")
    return Compression(algorithm, threshold)


def _command_id_ttl_s(conf: Mapping[str, Any], dead_letter_ttl_s: int) -> int:
    name, other = "cqrs_command_id_ttl_s", "cqrs_dead_letter_ttl_s"
    ttl_s = _seconds(conf, name, COMMAND_ID_TTL_S, at_least=1)
    if ttl_s >= dead_letter_ttl_s:
        return ttl_s
    if name in conf:
        raise _invalid(
            name, ttl_s, f"a whole number of seconds from {dead_letter_ttl_s}, which is {other}"
        )
    raise _invalid(
        other,
        dead_letter_ttl_s,
        f"a whole number of seconds up to {name}, which is {ttl_s} by default: set both",
    )


def _seconds(conf: Mapping[str, Any], name: str, default: int, *, at_least: int) -> int:
    return _whole(conf, name, default, at_least=at_least, what="a whole number of seconds")


def _whole(conf: Mapping[str, Any], name: str, default: int, *, at_least: int, what: str) -> int:
    value = conf.get(name, default)
    if not is_whole(value, at_least=at_least):
        raise _invalid(name, value, f"{what} from {at_least}")
    return value


def _invalid(name: str, value: Any, accepted: str) -> InvalidSetting:
    return InvalidSetting(
        f"the setting {name} is {value!r}; accepted: {accepted}", setting=name, accepted=accepted
    )


def check_tasks(app: celery.Celery) -> None:
    """Check those of Celery's own settings that handlers' tasks rely on.

    Raises:
        InvalidSetting: JSON is not accepted, messages have the old protocol, or the transport
            options are not a dict. Celery's own error for the last would name no setting.
    """
    conf = app.conf
    if not isinstance(conf.broker_transport_options, Mapping):
        raise _invalid(
            "broker_transport_options", conf.broker_transport_options, "a dict of options"
        )
    if not {"json", "application/json"} & set(conf.accept_content):
        raise _invalid("accept_content", list(conf.accept_content), "a list with 'json' in it")
    if conf.task_protocol != 2:
        raise _invalid("task_protocol", conf.task_protocol, "2")
